"""OSTree repos on the host: the one that a recipe names, and the composer's own, of checked objects."""

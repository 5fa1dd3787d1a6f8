"""The helper VM: its image, its machine, the shell into it, and the jobs it is given."""

"""What the user wrote: a TOML file that says which disk to make from which commit."""

"""Ways for the helper to reach the host's repo; each shows the repo and nothing else, read-only."""

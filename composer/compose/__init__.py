"""The jobs: build, update, verify, inspect; each takes what the user gave to what the user gets."""

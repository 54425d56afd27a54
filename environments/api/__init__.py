"""The HTTP API of environments."""

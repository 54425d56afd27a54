"""Wiring: settings, addresses, access rules and the command line. ``environments`` holds what to train, ``training`` the runs."""

__version__ = "0.1.0"
DEFAULT_PORT = 8001
"""Port of the server in every example."""

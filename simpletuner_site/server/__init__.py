"""Processes of the server: the web process, its worker and what they need to start."""

"""Resolves an environment and a submitted form to everything that a run is started with."""

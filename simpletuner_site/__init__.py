"""Wiring: settings, addresses, who may talk, the command line. What to train is in ``environments``, a run's life in ``training``."""

__version__ = "0.1.0"

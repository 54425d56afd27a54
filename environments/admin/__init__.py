"""Environments in the Django admin. Django imports this package to find the registered models."""

from environments.admin import environment, revisions

__all__ = ["environment", "revisions"]

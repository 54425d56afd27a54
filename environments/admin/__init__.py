"""Environments in the Django admin. Django imports this package to find what is registered."""

from environments.admin.environment import EnvironmentAdmin, RevisionAdmin

__all__ = ["EnvironmentAdmin", "RevisionAdmin"]

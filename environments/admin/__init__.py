"""Environments in the Django admin. Django imports this package to find the registered models."""

from environments.admin.environment import EnvironmentAdmin
from environments.admin.revisions import RevisionAdmin

__all__ = ["EnvironmentAdmin", "RevisionAdmin"]

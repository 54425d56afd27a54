"""Environments as rows. The files in ``config/<name>/`` hold the same for people; ``sync.py`` keeps both in step."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models import Q

from environments.create.names import LONGEST


class Action(models.TextChoices):
    """The change that a revision records."""

    CREATED = "created", "created"
    UPDATED = "updated", "changed"
    ACTIVATED = "activated", "activated"
    HAND_EDITED = "hand_edited", "config.json edited by hand"
    DATASETS_EDITED = "datasets_edited", "datasets changed"
    DATASETS_REGENERATED = "datasets_regenerated", "datasets file made anew"
    ADOPTED = "adopted", "found as a folder"
    STARTED = "started", "written by the start of a run"
    COPIED = "copied", "made as a copy"
    RENAMED = "renamed", "renamed"
    RESTORED = "restored", "brought back from a revision"
    DELETED = "deleted", "deleted"


class Environment(models.Model):
    """A named configuration that runs can be started from."""

    name = models.CharField(max_length=LONGEST, unique=True)
    description = models.TextField(blank=True, default="")
    tags: models.JSONField[list[str], list[str]] = models.JSONField(default=list, blank=True)
    config: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict, blank=True)
    """Option name without dashes -> typed value, for the options that were given."""
    is_active = models.BooleanField(default=False)
    """Runs start from it. At most one environment is active."""
    config_sha256 = models.CharField(max_length=64, blank=True, default="")
    """Hash of ``config.json`` when it was last written or read; another hash on disk means a manual edit."""
    datasets_sha256 = models.CharField(max_length=64, blank=True, default="")
    """The same for the datasets file."""
    file_problems: models.JSONField[list[dict[str, str]], list[dict[str, str]]] = models.JSONField(default=list, blank=True)
    """Why the current ``config.json`` cannot be used; ``config`` then holds the last usable one."""
    created_at = models.DateTimeField(auto_now_add=True)
    modified_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("is_active",), condition=Q(is_active=True), name="one_active_environment"),)

    def __str__(self) -> str:
        return self.name


class Revision(models.Model):
    """An environment after a change. Revisions outlive their environment."""

    environment_name = models.CharField(max_length=LONGEST, db_index=True)
    number = models.PositiveIntegerField()
    """Counts from 1 for each name."""
    action = models.CharField(max_length=24, choices=Action.choices)
    actor = models.CharField(max_length=150)
    """Who made the change: ``api``, ``admin:<user>``, ``hand`` for files edited by hand, ``run`` for the start of a run."""
    created_at = models.DateTimeField(auto_now_add=True)
    description = models.TextField(blank=True, default="")
    tags: models.JSONField[list[str], list[str]] = models.JSONField(default=list, blank=True)
    config: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict, blank=True)
    datasets_text = models.TextField(null=True, blank=True)
    """The text of the datasets file; None if there was none."""
    adapter_text = models.TextField(null=True, blank=True)
    """The text of the adapter file; None if there was none."""
    replaced_text = models.TextField(null=True, blank=True)
    """An unusable ``config.json`` that this change overwrote or deleted."""

    class Meta:
        ordering = ("-created_at", "-number")
        constraints = (models.UniqueConstraint(fields=("environment_name", "number"), name="revision_numbers_count_up"),)

    def __str__(self) -> str:
        return f"{self.environment_name} r{self.number}"

"""Checks whether the database is up to date without loading the migrations, which would slow down the start."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from trainer_engine.contract.atomic import PRIVATE_MODE

LOCK = "migrate.lock"


def expected_migrations() -> set[tuple[str, str]]:
    """``(app, name)`` of every migration file of the installed apps."""
    found: set[tuple[str, str]] = set()
    for config in apps.get_app_configs():
        folder = Path(config.path) / "migrations"
        found |= {(config.label, file.stem) for file in folder.glob("[!_]*.py")}
    return found


def applied_migrations() -> set[tuple[str, str]]:
    """The migrations that the database has applied; empty for a new one."""
    with connection.cursor() as cursor:
        if "django_migrations" not in connection.introspection.table_names(cursor):
            return set()
        cursor.execute("SELECT app, name FROM django_migrations")
        return {(app, name) for app, name in cursor.fetchall()}


def migrate_if_needed(*, verbosity: int = 0) -> bool:
    """Migrate the database if needed, in one process of this home at a time. Returns whether it was."""
    if expected_migrations() <= applied_migrations():
        return False
    with os.fdopen(os.open(settings.STATE_DIR / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE), "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if expected_migrations() <= applied_migrations():
            return False
        call_command("migrate", interactive=False, verbosity=verbosity)
    return True

"""A start asks the database what it has seen instead of loading every migration."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from simpletuner_site.server.migrations_state import applied_migrations, expected_migrations, migrate_if_needed


def test_every_migration_of_the_project_is_expected() -> None:
    assert {"environments", "training", "auth", "django_q"} <= {app for app, _ in expected_migrations()}
    assert ("auth", "0001_initial") in expected_migrations()


@pytest.mark.django_db
def test_an_up_to_date_database_is_left_alone() -> None:
    assert expected_migrations() <= applied_migrations()
    assert migrate_if_needed() is False


@pytest.mark.django_db(transaction=True)
def test_a_missing_migration_is_noticed() -> None:
    app, name = "sessions", "0001_initial"
    MigrationRecorder(connection).record_unapplied(app, name)
    try:
        assert (app, name) not in applied_migrations()
    finally:
        MigrationRecorder(connection).record_applied(app, name)


def test_a_new_database_has_seen_nothing(monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        monkeypatch.setattr(connection.introspection, "table_names", lambda cursor: [])
        assert applied_migrations() == set()

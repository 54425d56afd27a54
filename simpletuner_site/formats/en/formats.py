"""Moments as Django writes them, in templates and in its admin. Django asks the locale before the settings, so they stand here."""

from __future__ import annotations

from environments.moments import DJANGO_FORMAT

DATETIME_FORMAT = DJANGO_FORMAT
DATE_FORMAT = "Y-m-d"

"""Moments in templates: ``{{ job.created_at|moment }}``."""

from __future__ import annotations

from datetime import datetime

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from environments.moments import UNKNOWN, moment_of, moment_text

register = template.Library()


@register.filter
def moment(when: datetime | str | float | None) -> SafeString | str:
    """A moment as people read it, in an element that says it to programs, too."""
    found = moment_of(when)
    return (
        UNKNOWN if found is None else format_html('<time datetime="{}">{}</time>', found.isoformat(timespec="seconds"), moment_text(found))
    )

"""How moments are shown to people: one format on every page and in every terminal, in UTC, with the name of the zone.

Programs get ISO 8601 with the offset, as ``datetime.isoformat`` writes it. No Django.
"""

from __future__ import annotations

from datetime import datetime, timezone

FORMAT = "%Y-%m-%d %H:%M:%S UTC"
"""``2026-05-01 12:30:05 UTC``."""
DJANGO_FORMAT = r"Y-m-d H:i:s \U\T\C"
"""The same in the language of Django's templates. Its settings name UTC as the zone."""
UNKNOWN = "–"


def moment_of(moment: datetime | str | float | None) -> datetime | None:
    """A moment in UTC, of a ``datetime``, text in ISO 8601 or seconds since the epoch; None for what is no moment or none of the calendar.

    What names no zone is UTC.
    """
    if moment is None:
        return None
    try:
        if isinstance(moment, (int, float)):
            return datetime.fromtimestamp(moment, timezone.utc)
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment.strip().replace("Z", "+00:00"))
        return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None


def moment_text(moment: datetime | str | float | None) -> str:
    """A moment as people read it."""
    found = moment_of(moment)
    return UNKNOWN if found is None else found.strftime(FORMAT)

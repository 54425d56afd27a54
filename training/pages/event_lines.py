"""The log of a run for people: the events that matter, runs of similar ones folded into one line, and a filter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import urlencode

from trainer_engine.contract.events import EventType
from training.jobs import series
from training.jobs.series import part
from training.models import Event, Job
from training.pages.numbers import ShownImage, shown_image

LINES = 60
MOST_IMAGES = 12
MOST_ERRORS = 10
"""Errors that a page shows in addition to its lines."""
MOST_ROWS = 400
"""Rows that one page reads, of which folding makes fewer lines."""
NEWS = (EventType.STATUS, EventType.CHECKPOINT, EventType.SUMMARY, EventType.NOTIFICATION, EventType.ERROR)
FILTERS: Mapping[str, tuple[EventType, ...]] = MappingProxyType(
    {
        "news": (*NEWS, EventType.IMAGE),
        "problems": (EventType.NOTIFICATION, EventType.ERROR),
        "images": (EventType.IMAGE,),
        "everything": tuple(EventType),
    }
)
"""Value of ``?events=`` -> the types that are listed."""
QUIET = ("debug", "info")
"""Severities that the filter ``problems`` leaves out."""


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One line, which may stand for several events in a row."""

    index: int
    """Of the newest of its events."""
    oldest: int
    count: int
    key: str
    """Events with one key in a row are folded; empty: never."""
    time: str
    """ISO 8601, UTC."""
    severity: str
    text: str
    images: tuple[ShownImage, ...] = ()
    """The newest one of each prompt."""

    @property
    def times(self) -> str:
        return f"{self.count:,} events" if self.count > 1 else ""


def _key(event: Event) -> str:
    if event.type == EventType.PROGRESS.value:
        return event.type
    if event.type == EventType.STAGE.value:
        return f"{event.type} {part(event.payload, 'stage').get('key', '')}"
    if event.type == EventType.IMAGE.value:
        return f"{event.type} {part(event.payload, 'data').get('global_step')}"
    return ""


def _line(event: Event) -> EventLine:
    payload = event.payload
    data = part(payload, "data")
    text = str(payload.get("message") or payload.get("title") or event.type)
    if event.type == EventType.IMAGE.value:
        text = f"Validation images of step {data.get('global_step')}."
    hint = str(data.get("hint") or "")
    return EventLine(
        index=event.index,
        oldest=event.index,
        count=1,
        key=_key(event),
        time=event.timestamp,
        severity=event.severity,
        text=f"{text} {hint}".strip(),
        images=_images(event),
    )


def _images(event: Event) -> tuple[ShownImage, ...]:
    image = shown_image(event) if event.type == EventType.IMAGE.value else None
    return (image,) if image is not None else ()


def _with(line: EventLine, older: EventLine) -> EventLine:
    """A line that stands for the events of another one, too."""
    seen = {(image.title, image.prompt) for image in line.images}
    added = tuple(image for image in older.images if (image.title, image.prompt) not in seen and len(line.images) < MOST_IMAGES)
    return replace(line, count=line.count + older.count, oldest=older.oldest, images=line.images + added)


def folded(events: Iterable[Event]) -> list[EventLine]:
    """Lines of events that come newest first."""
    lines: list[EventLine] = []
    for event in events:
        line = _line(event)
        if lines and line.key and lines[-1].key == line.key:
            lines[-1] = _with(lines[-1], line)
        else:
            lines.append(line)
    return lines


@dataclass(frozen=True)
class EventList:
    """One page of the events of a run."""

    lines: list[EventLine]
    """Newest first."""
    errors: list[EventLine]
    """The newest errors that are older than the lines, so that none scrolls out of sight."""
    older: str
    """The address of the page with older events; empty if there are none."""
    filters: list[tuple[str, bool]]
    """Each filter, and whether it is chosen."""


def event_list(job: Job, chosen: str, before: int | None) -> EventList:
    """The page that a query asks for; that of the news for an unknown filter."""
    chosen = chosen if chosen in FILTERS else "news"
    lines, older = event_lines(job, chosen, before)
    errors = _errors_before(job, lines[-1].oldest) if lines and chosen != "images" else []
    address = f"?{urlencode({'events': chosen, 'before': older})}#events" if older is not None else ""
    return EventList(lines, errors, address, [(name, name == chosen) for name in FILTERS])


def _errors_before(job: Job, index: int) -> list[EventLine]:
    return [_line(event) for event in series.newest_events(job, (EventType.ERROR,), MOST_ERRORS, before=index)]


def event_lines(job: Job, chosen: str, before: int | None = None) -> tuple[list[EventLine], int | None]:
    """Lines, newest first, and the index before which the next page begins; None if there are no older events."""
    types = FILTERS.get(chosen, FILTERS["news"])
    rows = list(series.newest_events(job, types, MOST_ROWS, before=before))
    is_cut = len(rows) == MOST_ROWS
    lines = folded(event for event in rows if chosen != "problems" or event.severity not in QUIET)
    if len(lines) > LINES:
        return lines[:LINES], lines[LINES - 1].oldest
    return lines, rows[-1].index if is_cut else None

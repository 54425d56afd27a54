"""Numbers, times and media as the pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.template.defaultfilters import filesizeformat

from training.api import media
from training.api.run_overview import duration
from training.jobs.series import part, step_of
from training.models import Event

NOTHING = "–"
LONGEST_PROMPT = 2_000
"""Characters of a prompt that a page shows. Each image of a page repeats it."""
SPARK_WIDTH, SPARK_HEIGHT = 120, 32


def seconds_text(seconds: float | None) -> str:
    """A length of time, such as ``0.35 s`` or ``1:02:03``."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def number_text(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else f"{value:.{digits}g}"


def bytes_text(count: float | None) -> str:
    return NOTHING if count is None else filesizeformat(count).replace("\xa0", " ")


def sparkline(values: Sequence[float]) -> str:
    """The ``points`` of a polyline in a box of ``SPARK_WIDTH`` x ``SPARK_HEIGHT``; empty for fewer than two values."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = (
        f"{place * SPARK_WIDTH / (len(values) - 1):.1f},{1 + (high - value) / span * (SPARK_HEIGHT - 2):.1f}"
        for place, value in enumerate(values)
    )
    return " ".join(points)


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image or a clip of an event, by its address in the API."""

    small: str
    """Address of what the page shows."""
    large: str
    """Address of the best file, for a click."""
    title: str
    prompt: str
    step: int
    """Optimizer steps before it was generated."""
    is_preview: bool
    is_base: bool

    @property
    def alternative(self) -> str:
        """The text for who cannot see it."""
        made = "the base model" if self.is_base else f"step {self.step}"
        return f"{'Preview' if self.is_preview else 'Image'} of {made}: {self.prompt or 'no prompt'}"


def shown_image(event: Event) -> ShownImage | None:
    """None for an event without media."""
    payload = event.payload
    count = len(media.attached(payload))
    if not count:
        return None
    data = part(payload, "data")
    kind = data.get("validation_type")
    return ShownImage(
        small=media.url(event.job_id, event.index, 0),
        large=media.url(event.job_id, event.index, count - 1),
        title=str(payload.get("title", "")).rpartition(": ")[2],
        prompt=str(data.get("prompt") or payload.get("body", ""))[:LONGEST_PROMPT],
        step=step_of(data, "global_step"),
        is_preview=kind == "intermediary",
        is_base=kind == "base_model",
    )

"""What a journal tells that can be drawn. A million steps are read in seconds: of most lines, one regular expression sees a part."""

from __future__ import annotations

import json
import math
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer_engine.contract.events import EventType

TYPE = re.compile(rb'\{"seq":\d+,"type":"([a-z.]+)"')
NUMBERS = re.compile(rb'"data":\{"step":(\d+),"total_steps":(\d+),"epoch":\d+,"loss":([^,]+),"learning_rate":([^,]+),')
UNFINISHED = "intermediary"
PREVIEW = f'"validation_type":"{UNFINISHED}"'.encode()
BASE_MODEL = "base_model"
EVALUATION = b'"code":"evaluation"'
TOLD = (EventType.PROGRESS, EventType.CHECKPOINT, EventType.IMAGE, EventType.NOTIFICATION)
PROGRESS, CHECKPOINT, IMAGE, NOTIFICATION = (kind.value.encode() for kind in TOLD)


@dataclass(frozen=True)
class Drawn:
    """A finished image of a validation."""

    step: int
    """Optimizer steps taken when it was drawn."""
    name: str
    """The prompt's short name, with the label of the weights that drew it."""
    prompt: str
    size: tuple[int, int]
    """Width and height in pixels."""
    file: Path
    """May be gone."""
    is_base: bool = False
    """Whether the base model drew it."""


@dataclass
class Story:
    """A run so far."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    """One a step; NaN where the loss was not finite."""
    learning_rates: array[float] = field(default_factory=lambda: array("d"))
    total_steps: int = 0
    evaluations: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Name of an evaluation loss -> (step that was measured, value); without the quarters of the schedule."""
    checkpoints: list[int] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)
    """In the order in which they were told."""


def read_story(journal: Path) -> Story:
    """Lines of no interest, damaged ones, and half a line at the end are passed over. Raises OSError where there is no journal."""
    story = Story()
    with journal.open("rb") as lines:
        for line in lines:
            kind = TYPE.match(line)
            if kind is None or not line.endswith(b"\n"):
                continue
            if kind[1] == PROGRESS:
                _add_progress(story, line)
            elif kind[1] == CHECKPOINT:
                _add_checkpoint(story, line)
            elif kind[1] == IMAGE and PREVIEW not in line:
                _add_images(story, line, journal.parent)
            elif kind[1] == NOTIFICATION and EVALUATION in line:
                _add_evaluation(story, line)
    return story


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _number(value: object) -> float:
    """NaN for whatever is no finite number."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _add_progress(story: Story, line: bytes) -> None:
    if found := NUMBERS.search(line):
        step, total, loss, rate = found.groups()
    else:
        data = _parsed(line).get("data", {})
        step, total, loss, rate = (data.get(name) for name in ("step", "total_steps", "loss", "learning_rate"))
        if not isinstance(step, int):
            return
    story.steps.append(int(step))
    story.losses.append(_number(loss))
    story.learning_rates.append(_number(rate))
    story.total_steps = int(total or 0)


def _add_evaluation(story: Story, line: bytes) -> None:
    """From the notification itself: events of progress repeat it at later steps, and nothing follows the last one."""
    details = _parsed(line).get("data", {}).get("details", {})
    if not isinstance(details.get("step"), int):
        return
    for name, value in details.get("metrics", {}).items():
        if name.count("/") == 1:
            story.evaluations.setdefault(name, []).append((details["step"], _number(value)))


def _add_checkpoint(story: Story, line: bytes) -> None:
    step = _parsed(line).get("checkpoint", {}).get("step")
    if isinstance(step, int):
        story.checkpoints.append(step)


def _add_images(story: Story, line: bytes, folder: Path) -> None:
    event = _parsed(line)
    data = event.get("data", {})
    if data.get("validation_type") == UNFINISHED or not isinstance(data.get("global_step"), int):
        return
    width, height = data.get("resolution") or (0, 0)
    for entry in (*event.get("images", ()), *event.get("videos", ())):
        if entry.get("file"):
            story.drawn.append(
                Drawn(
                    step=data["global_step"],
                    name=str(event.get("title", "")).rpartition(": ")[2],
                    prompt=str(data.get("prompt") or event.get("body") or ""),
                    size=(int(width), int(height)),
                    file=folder / entry["file"],
                    is_base=data.get("validation_type") == BASE_MODEL,
                )
            )

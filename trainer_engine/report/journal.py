"""What a journal tells that can be drawn. A million steps are read in seconds: of most lines, one regular expression sees a part."""

from __future__ import annotations

import json
import math
import re
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.contract.events import EVALUATION, EventType

TYPE = re.compile(rb'\{"seq":\d+,"type":"([a-z.]+)"')
NUMBERS = re.compile(rb'"data":\{"step":(\d+),"total_steps":(\d+),"epoch":\d+,"loss":([^,]+),"learning_rate":([^,]+),')
UNFINISHED = "intermediary"
PREVIEW = f'"validation_type":"{UNFINISHED}"'.encode()
BASE_MODEL = "base_model"
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What a line that is no event of ours comes to; one such line costs itself and not the picture."""
EVALUATED = f'"code":"{EVALUATION}"'.encode()
TOLD = (EventType.PROGRESS, EventType.CHECKPOINT, EventType.IMAGE, EventType.NOTIFICATION)
PROGRESS, CHECKPOINT, IMAGE, NOTIFICATION = (kind.value.encode() for kind in TOLD)


@dataclass(frozen=True)
class ReportImage:
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
class JournalContents:
    """A run so far."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    losses: array[float] = field(default_factory=lambda: array("d"))
    """One a step; NaN where the loss was not finite."""
    learning_rates: array[float] = field(default_factory=lambda: array("d"))
    total_steps: int = 0
    evaluations: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Name of an evaluation loss -> (step that was measured, value); without the quarters of the schedule."""
    checkpoints: list[int] = field(default_factory=list)
    images: list[ReportImage] = field(default_factory=list)
    """In the order in which they were told."""


def read_contents(journal: Path) -> JournalContents:
    """Lines of no interest, damaged ones, and half a line at the end are passed over. Raises OSError where there is no journal."""
    contents = JournalContents()
    with journal.open("rb") as lines:
        for line in lines:
            kind = TYPE.match(line)
            if kind is not None and line.endswith(b"\n"):
                with suppress(*DAMAGE):
                    _take(contents, kind[1], line, journal.parent)
    return contents


def _take(contents: JournalContents, kind: bytes, line: bytes, folder: Path) -> None:
    """Add what a line tells, all of it or nothing. Raises one of DAMAGE."""
    if kind == PROGRESS:
        _add_progress(contents, line)
    elif kind == CHECKPOINT:
        _add_checkpoint(contents, line)
    elif kind == IMAGE and PREVIEW not in line:
        _add_images(contents, line, folder)
    elif kind == NOTIFICATION and EVALUATED in line:
        _add_evaluation(contents, line)


def _number(value: object) -> float:
    """NaN for whatever is no finite number."""
    try:
        number = float(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _add_progress(contents: JournalContents, line: bytes) -> None:
    if found := NUMBERS.search(line):
        step, total, loss, rate = found.groups()
    else:
        data = json.loads(line)["data"]
        step, total, loss, rate = (data.get(name) for name in ("step", "total_steps", "loss", "learning_rate"))
    at, of, value, speed = int(step), int(total or 0), _number(loss), _number(rate)
    contents.steps.append(at)
    contents.total_steps = of
    contents.losses.append(value)
    contents.learning_rates.append(speed)


def _add_evaluation(contents: JournalContents, line: bytes) -> None:
    """From the notification itself: events of progress repeat it at later steps, and nothing follows the last one."""
    details = json.loads(line)["data"]["details"]
    step, metrics = int(details["step"]), {name: _number(value) for name, value in details["metrics"].items() if name.count("/") == 1}
    for name, value in metrics.items():
        contents.evaluations.setdefault(name, []).append((step, value))


def _add_checkpoint(contents: JournalContents, line: bytes) -> None:
    contents.checkpoints.append(int(json.loads(line)["checkpoint"]["step"]))


def _add_images(contents: JournalContents, line: bytes, folder: Path) -> None:
    event = json.loads(line)
    data = event["data"]
    if data["validation_type"] == UNFINISHED:
        return
    width, height = data.get("resolution") or (0, 0)
    contents.images += [
        ReportImage(
            step=int(data["global_step"]),
            name=str(event.get("title", "")).rpartition(": ")[2],
            prompt=str(data.get("prompt") or event.get("body") or ""),
            size=(int(width), int(height)),
            file=folder / entry["file"],
            is_base=data["validation_type"] == BASE_MODEL,
        )
        for entry in (*event.get("images", ()), *event.get("videos", ()))
        if entry["file"]
    ]

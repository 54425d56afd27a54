"""The details of a run: the options that differ from what they usually are, and the end of its log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from environments.resolve.checks import effective_defaults
from trainer_engine.config.options import REGISTRY
from trainer_engine.contract.files import open_regular
from training.api import representations
from training.models import Job

SHOWN_LOG_BYTES = 16 * 1024
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
"""Colours and cursor movements of terminals, and control characters but tab and newline."""
LONGEST_VALUE = 300
UNKNOWN = object()


@dataclass(frozen=True)
class ChosenOption:
    """An option that differs from its default."""

    name: str
    value: str
    default: str
    help: str
    previous: str
    """Its value in the previous run of the environment, if that was another; else empty."""


def chosen_options(job: Job, previous: Job | None) -> list[ChosenOption]:
    """The options that differ from the default of the family, or from the previous run of the environment."""
    shown = representations.shown_options(job)
    before = representations.shown_options(previous) if previous else {}
    defaults = effective_defaults(shown)
    found = []
    for name, value in sorted(shown.items()):
        was = before.get(name, UNKNOWN) if previous else UNKNOWN
        has_changed = was is not UNKNOWN and was != value
        if value == defaults.get(name, UNKNOWN) and not has_changed:
            continue
        default = _text(defaults[name]) if name in defaults else "required"
        help = REGISTRY[name].help if name in REGISTRY else ""
        found.append(ChosenOption(name, _text(value), default, help, _text(was) if has_changed else ""))
    return found


def _text(value: object) -> str:
    if value in (None, "", [], {}):
        return "not set"
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def previous_run(job: Job) -> Job | None:
    """The run before this one from the same environment."""
    if not job.environment:
        return None
    return Job.objects.filter(environment=job.environment, number__lt=job.number).order_by("-number").first()


def log_tail(job: Job) -> str:
    """The last lines of what the engine printed, without control characters; empty if there is nothing."""
    try:
        with open_regular(job.folder.log) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - SHOWN_LOG_BYTES))
            text = stream.read(SHOWN_LOG_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
    text = text.partition("\n")[2] if size > SHOWN_LOG_BYTES else text
    # A progress bar overwrites its line; the last state of it is what a terminal shows.
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return CONTROL.sub("", "\n".join(lines)).strip("\n")

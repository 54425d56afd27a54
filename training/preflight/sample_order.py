"""Whether a checkpoint was saved under another rule for the order of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.resuming.identity import order_change
from trainer_engine.contract.errors import Problem

OPTION = "resume_from_checkpoint"


def order_problems(state: Mapping[str, Any], wanted: str) -> Iterator[Problem]:
    """What the engine says when it resumes. ``state``: ``training_state.json``; ``wanted``: the option's value."""
    changed = order_change(state)
    if changed:
        yield Problem.note(OPTION, "order_changed", changed, got=wanted)

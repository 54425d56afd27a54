"""What the options about checkpoints must keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.options.checkpointing import parse_size
from trainer_engine.contract.errors import Problem


def disk_threshold_is_a_size(values: Mapping[str, Any]) -> Iterator[Problem]:
    threshold = values["disk_low_threshold"]
    if not threshold:
        return
    try:
        parse_size(str(threshold))
    except ValueError as error:
        expected = "bytes, or a number with K, M, G or T: 20G"
        yield Problem.error("disk_low_threshold", "not_a_size", f"{error}.", got=threshold, expected=expected)


def rolling_checkpoints_are_due(values: Mapping[str, Any]) -> Iterator[Problem]:
    """One that is never due, because another always is, would be asked for in vain."""
    rolling, usual = values["checkpointing_rolling_steps"], values["checkpoint_step_interval"]
    if rolling and rolling % usual == 0:
        message = f"A rolling checkpoint every {rolling} steps is never saved: another one is, every {usual}."
        hint = f"use less than checkpoint_step_interval ({usual}), or 0"
        yield Problem.warning("checkpointing_rolling_steps", "never_due", message, got=rolling, hint=hint)


SAVING_RULES = (disk_threshold_is_a_size, rolling_checkpoints_are_due)

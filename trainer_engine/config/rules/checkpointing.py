"""Rules of checkpoints: their intervals, and free disk space."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.checkpointing import parse_size
from trainer_engine.config.options.hooks import DISK_LOW
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.contract.errors import Problem


def disk_threshold_is_a_size(values: Values) -> Iterator[Problem]:
    threshold = values["disk_low_threshold"]
    if not threshold:
        return
    try:
        parse_size(str(threshold))
    except ValueError as error:
        expected = "bytes, or a number with K, M, G or T: 20G"
        yield Problem.error("disk_low_threshold", "not_a_size", f"{error}.", got=threshold, expected=expected)


def rolling_checkpoints_are_due(values: Values) -> Iterator[Problem]:
    """Warns if every rolling checkpoint would fall on a step at which a regular one is saved instead."""
    rolling, usual = values["checkpointing_rolling_steps"], values["checkpoint_step_interval"]
    if rolling and rolling % usual == 0:
        message = f"Rolling checkpoints every {rolling} steps are never saved: a regular one is due at each of these steps, every {usual}."
        hint = f"use less than checkpoint_step_interval ({usual}), or 0"
        yield Problem.warning("checkpointing_rolling_steps", "never_due", message, got=rolling, hint=hint)


def low_disk_has_a_script(values: Values) -> Iterator[Problem]:
    script, action = values[DISK_LOW].strip(), values["disk_low_action"]
    if action == "script" and not script:
        hint = "name a program and its arguments: '/opt/hooks/tidy.sh {global_step}'"
        message = f"disk_low_action=script needs {DISK_LOW}."
        yield Problem.error(DISK_LOW, "missing", message, expected="a program and its arguments", hint=hint)
    if script and action != "script":
        message = f"{DISK_LOW} has no effect with disk_low_action={action}."
        yield Problem.note(DISK_LOW, "no_effect", message, got=values[DISK_LOW], hint="set disk_low_action=script")


RULES: tuple[Rule, ...] = (
    disk_threshold_is_a_size,
    rolling_checkpoints_are_due,
    low_disk_has_a_script,
)

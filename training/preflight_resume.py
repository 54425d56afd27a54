"""Whether the checkpoint that a run would go on from is there, and is one of such a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer_engine.contract.checkpoint_files import STATE_FILE, CheckpointInfo, list_checkpoints
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.families import FamilyCard
from trainer_engine.contract.identity import adapter_identity
from trainer_engine.contract.options import TrainingOptions
from trainer_engine.contract.remote_checkpoint import is_remote
from training.preflight_order import order_problems

OPTION = "resume_from_checkpoint"
LATEST = "latest"


def resume_problems(options: TrainingOptions, card: FamilyCard) -> Iterator[Problem]:
    """What the engine would refuse when it opens the checkpoint."""
    wanted = options.checkpointing.resume_from_checkpoint
    if not wanted or is_remote(wanted):
        return
    output_dir = Path(options.run.output_dir)
    chosen = _choose(list_checkpoints(output_dir), wanted)
    if chosen is None:
        if wanted != LATEST:
            message = f"There is no whole checkpoint {Path(wanted).name} in {output_dir}."
            expected = "latest, or the name of a checkpoint there"
            yield Problem.error(OPTION, "no_such_checkpoint", message, got=wanted, expected=expected)
        return
    state = _state_of(chosen)
    theirs = state.get("identity", {})
    differing = [
        f"{name} was {theirs.get(name)} and is {value}" for name, value in _identity(options, card).items() if theirs.get(name) != value
    ]
    if theirs and differing:
        message = f"{chosen.name} in {output_dir} belongs to another run: {'; '.join(differing)}."
        hint = "choose another output_dir, or send an empty resume_from_checkpoint for a fresh start"
        yield Problem.error(OPTION, "other_run", message, got=wanted, expected="a checkpoint of such a run", hint=hint)
    elif state:
        yield from order_problems(state, wanted)


def _choose(there: list[CheckpointInfo], wanted: str) -> CheckpointInfo | None:
    if wanted != LATEST:
        return next((one for one in there if one.name == Path(wanted).name), None)
    return max((one for one in there if one.verified), key=lambda one: one.step, default=None)


def _identity(options: TrainingOptions, card: FamilyCard) -> dict[str, Any]:
    """What must be the same, as far as it is known without the model."""
    short = options.precision.mixed_precision == "bf16" and options.optimizer.optimizer == "adamw_bf16"
    known = {
        "model_family": card.name,
        "model_type": options.model.model_type,
        "optimizer": options.optimizer.optimizer,
        "weights": "bfloat16" if short else "float32",
        "use_ema": options.run.use_ema,
        **adapter_identity(options),
    }
    return {**known, "prediction_type": options.model.prediction_type} if options.model.prediction_type else known


def _state_of(checkpoint: CheckpointInfo) -> dict[str, Any]:
    """Empty where the state cannot be read: the engine says what is wrong with the files."""
    try:
        state = json.loads((checkpoint.path / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and isinstance(state.get("identity", {}), dict) else {}

"""Which checkpoint a run would resume from, and whether it may, with the code that the engine uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.components import prediction_type
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.base_weights import base_weights, moved_sources
from trainer_engine.config.resuming.choice import MORE_TO_TRAIN, NoSuchCheckpoint, SavedRun, choose, refuse_other_run, without_base
from trainer_engine.config.resuming.identity import order_change, run_identity
from trainer_engine.config.resuming.remote_checkpoint import is_remote
from trainer_engine.contract.checkpoint_files import folders, step_of, verify_quickly
from trainer_engine.contract.errors import CheckpointUnusable, Problem

OPTION = "resume_from_checkpoint"


def find_saved_run(options: TrainingOptions, problems: list[Problem]) -> SavedRun | None:
    """The checkpoint that the run would resume from; None for a fresh start, an address, or after an error was added to ``problems``."""
    wanted, output_dir = options.checkpointing.resume_from_checkpoint, Path(options.run.output_dir)
    if is_remote(wanted):
        return None

    def passed_over(name: str, wrong: list[str]) -> None:
        message = f"{name} in {output_dir} does not verify and is not used: {' '.join(wrong[:3])}"
        problems.append(Problem.warning(OPTION, "checkpoint_broken", message, got=wanted))

    try:
        return choose(output_dir, wanted, on_bad=passed_over, check=verify_quickly)
    except CheckpointUnusable as error:
        problems[:] = [problem for problem in problems if problem.code != "checkpoint_broken"]
        code = "no_such_checkpoint" if isinstance(error, NoSuchCheckpoint) else error.code
        expected = "latest, the name of a checkpoint in output_dir, or the path of one"
        problems.append(Problem.error(OPTION, code, error.message, got=wanted, expected=expected, hint=error.hint))
        return None


def other_run_problems(saved: SavedRun, options: TrainingOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Whether the checkpoint belongs to another kind of run: model, optimizer, adapter or base weights. ``cache`` is the hub's cache."""
    wanted = options.checkpointing.resume_from_checkpoint
    base = base_weights(options.model, spec, cache)
    try:
        refuse_other_run(saved, run_identity(options, spec, prediction_type(options.model, spec, cache)), base)
    except CheckpointUnusable as error:
        yield Problem.error(OPTION, "other_run", error.message, got=wanted, expected="a checkpoint of such a run", hint=error.hint)
        return
    yield from order_problems(saved.state, wanted)
    if saved.base is None:
        yield Problem.note(OPTION, "base_not_compared", without_base(saved), got=wanted)
        return
    for moved in moved_sources(saved.base, base):
        yield Problem.note(OPTION, "base_moved", f"{moved}, with which {saved.folder.name} was trained.", got=wanted)


def progress_problems(saved: SavedRun, options: TrainingOptions, steps: int) -> Iterator[Problem]:
    """How many steps are left after the checkpoint. ``steps`` is the length of the run."""
    wanted, output_dir = options.checkpointing.resume_from_checkpoint, Path(options.run.output_dir)
    left = max(0, steps - saved.step)
    message = f"The run continues from {saved.folder.name}: {left} of {steps} steps left. The checkpoint is in {saved.folder.parent}."
    if left:
        yield Problem.note(OPTION, "goes_on", message, got=wanted)
    else:
        yield Problem.warning(OPTION, "already_finished", message, got=wanted, hint=MORE_TO_TRAIN)
    is_own = saved.is_of(output_dir)
    later = [folder.name for folder in folders(output_dir) if not is_own or step_of(folder.name) > saved.step]
    if later and left:
        named = ", ".join(later[:5]) + (", …" if len(later) > 5 else "")
        message = f"Later checkpoints in output_dir will be quarantined: {named}."
        yield Problem.note(OPTION, "will_be_set_aside", message, got=wanted)


OPTION = "resume_from_checkpoint"


def order_problems(state: Mapping[str, Any], wanted: str) -> Iterator[Problem]:
    """Whether the checkpoint used another order of samples. ``state`` is ``training_state.json``, ``wanted`` the option's value."""
    changed = order_change(state)
    if changed:
        yield Problem.note(OPTION, "order_changed", changed, got=wanted)

"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.contract.checkpoint_files import STATE_FILE, folders, read_manifest, verify
from trainer_engine.contract.errors import CheckpointUnusable

LATEST = "latest"
MOST_NAMED = 5


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint that verified."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    """``training_state.json``."""


def choose(output_dir: Path, wanted: str, *, on_bad: Callable[[str, list[str]], None]) -> SavedRun | None:
    """The checkpoint that ``resume_from_checkpoint`` asks for; None for a fresh start.

    ``latest`` walks back to the newest that verifies; ``on_bad`` hears (name, what is wrong) of each one that does not.
    Raises CheckpointUnusable where one is asked for by name and is missing or broken.
    """
    if not wanted:
        return None
    if wanted != LATEST:
        return _by_name(output_dir, Path(wanted).name, on_bad)
    for folder in folders(output_dir):
        problems = verify(folder)
        if not problems:
            return open_saved(folder)
        on_bad(folder.name, problems)
    return None


def _by_name(output_dir: Path, name: str, on_bad: Callable[[str, list[str]], None]) -> SavedRun:
    there = [folder.name for folder in folders(output_dir)]
    hint = f"there are: {', '.join(there)}" if there else f"there is no checkpoint in {output_dir}"
    if name not in there:
        raise CheckpointUnusable(f"There is no checkpoint {name!r} in {output_dir}.", hint=hint)
    problems = verify(output_dir / name)
    if problems:
        on_bad(name, problems)
        raise CheckpointUnusable(f"{name} does not verify: {' '.join(problems[:MOST_NAMED])}", hint=hint)
    return open_saved(output_dir / name)


def open_saved(folder: Path) -> SavedRun:
    """The state in a checkpoint's folder. Raises CheckpointUnusable."""
    try:
        state = json.loads((folder / STATE_FILE).read_bytes())
        if not isinstance(state, dict) or not isinstance(state.get("identity", {}), dict):
            raise ValueError("it is not an object with an identity")
        return SavedRun(folder, int(read_manifest(folder)["step"]), state)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointUnusable(f"{folder.name} holds no training state: {error}") from error


def refuse_other_run(saved: SavedRun, identity: Mapping[str, Any]) -> None:
    """Raises CheckpointUnusable where the checkpoint is of another model or optimizer."""
    theirs = saved.state.get("identity", {})
    differing = [f"{name} was {theirs.get(name)!r} and is {value!r}" for name, value in identity.items() if theirs.get(name) != value]
    if differing:
        raise CheckpointUnusable(
            f"{saved.folder.name} belongs to another run: {'; '.join(differing)}.",
            hint="choose another output_dir, or leave resume_from_checkpoint empty for a fresh start",
        )


def differences(
    saved: SavedRun, layout: Mapping[str, Any], old_samples: Mapping[str, Mapping[str, str]], samples: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What differs in batches and datasets, as sentences; the caller decides whether that may be."""
    theirs = saved.state.get("layout", {})
    differing = [f"{name} was {theirs.get(name)} and is {value}" for name, value in layout.items() if theirs.get(name) != value]
    for id in sorted({*old_samples, *samples}):
        differing += _dataset_difference(id, old_samples.get(id), samples.get(id))
    return differing


def _dataset_difference(id: str, old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> list[str]:
    if old is None or new is None:
        return [f"dataset {id} is {'new' if old is None else 'gone'}"]
    changes = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if old[name] != new[name]),
    }
    return [f"dataset {id}: {len(names)} {word} ({_named(names)})" for word, names in changes.items() if names]


def _named(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f", and {rest} more" if rest > 0 else "")

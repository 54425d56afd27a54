"""Chooses the checkpoint that a run resumes from, and refuses one that does not match. Standard library only.

``resume_from_checkpoint`` is a name (``checkpoint-500``, ``latest``) of a checkpoint in the run's ``output_dir``; the path of any folder;
or a URL, whose checkpoint was fetched into ``output_dir`` before. The engine uses these functions, and ``validate`` before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.config.resuming.base_weights import BaseWeights, base_differences, read_base
from trainer_engine.config.resuming.identity import identity_differences, named
from trainer_engine.config.resuming.remote_checkpoint import is_remote
from trainer_engine.contract.checkpoint_files import MANIFEST, SAMPLES_FILE, STATE_FILE, folders, read_manifest, verify
from trainer_engine.contract.errors import CheckpointUnusable, shown
from trainer_engine.contract.files import LARGEST_LIST_BYTES, read_small_json

LATEST = "latest"
MAX_LISTED = 5
NOTHING: Mapping[str, Any] = MappingProxyType({})
LARGEST_SAMPLES_BYTES = 1 << 30
"""Size limit of ``samples.json``, enough for tens of millions of samples."""
MORE_TO_TRAIN = "Raise max_train_steps or num_train_epochs, or leave resume_from_checkpoint empty to train from the start."
Samples = Mapping[str, Mapping[str, str]]
"""Dataset id -> name of each sample -> fingerprint of everything that decides how it is trained."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint that passed verification."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    """``training_state.json``."""

    @property
    def base(self) -> BaseWeights | None:
        """The base weights that it was trained with, or None for checkpoints of older versions, which do not record them."""
        return read_base(self.state.get("base"))

    def is_of(self, output_dir: Path) -> bool:
        """Whether it lies in the run's own output folder."""
        return self.folder.resolve().parent == output_dir.resolve()


class NoSuchCheckpoint(CheckpointUnusable):
    """The named checkpoint does not exist."""


def is_path(wanted: str) -> bool:
    """Whether ``resume_from_checkpoint`` is a path, and neither a name nor a URL."""
    return not is_remote(wanted) and ("/" in wanted or wanted.startswith("~"))


def choose(
    output_dir: Path, wanted: str, *, on_bad: Callable[[str, list[str]], None], check: Callable[[Path], list[str]] = verify
) -> SavedRun | None:
    """Returns the checkpoint that ``resume_from_checkpoint`` selects, or None for a fresh start.

    ``latest`` selects the newest one that passes verification. ``on_bad`` is called with the name and the problems of each one in
    ``output_dir`` that fails. ``check`` returns the problems of a checkpoint's files.
    Raises CheckpointUnusable if a checkpoint selected by name or path is missing or broken.
    """
    if not wanted:
        return None
    if wanted == LATEST:
        for folder in folders(output_dir):
            problems = check(folder)
            if not problems:
                return open_checkpoint(folder)
            on_bad(folder.name, problems)
        return None
    if is_path(wanted):
        path = Path(wanted).expanduser().resolve()
        if path.parent != output_dir.resolve():
            return _by_path(path, check)
        wanted = path.name
    return _by_name(output_dir, wanted.rstrip("/").rpartition("/")[2], on_bad, check)


def _by_path(folder: Path, check: Callable[[Path], list[str]]) -> SavedRun:
    inside = [found.name for found in folders(folder)]
    hint = f"use one of those in it: {', '.join(inside)}" if inside else "use the folder of a checkpoint, or a name in output_dir"
    if not folder.is_dir():
        raise NoSuchCheckpoint(f"There is no folder {folder} to resume from.", hint=hint)
    if not (folder / MANIFEST).is_file():
        raise NoSuchCheckpoint(f"The folder {folder} is not a checkpoint: it has no {MANIFEST}.", hint=hint)
    problems = check(folder)
    if problems:
        raise CheckpointUnusable(f"{folder} does not verify: {' '.join(problems[:MAX_LISTED])}", hint="choose another checkpoint")
    return open_checkpoint(folder)


def _by_name(output_dir: Path, name: str, on_bad: Callable[[str, list[str]], None], check: Callable[[Path], list[str]]) -> SavedRun:
    there = [folder.name for folder in folders(output_dir)]
    hint = f"there are: {', '.join(there)}" if there else f"there is no checkpoint in {output_dir}"
    if name not in there:
        raise NoSuchCheckpoint(f"There is no checkpoint {name!r} in {output_dir}.", hint=hint)
    problems = check(output_dir / name)
    if problems:
        on_bad(name, problems)
        raise CheckpointUnusable(f"{name} does not verify: {' '.join(problems[:MAX_LISTED])}", hint=hint)
    return open_checkpoint(output_dir / name)


def open_checkpoint(folder: Path) -> SavedRun:
    """Reads the training state from a folder whose files are verified. Raises CheckpointUnusable."""
    try:
        state = read_small_json(folder / STATE_FILE, LARGEST_LIST_BYTES)
        if not isinstance(state, dict) or not isinstance(state.get("identity", {}), dict):
            raise ValueError("it is not an object with an identity")
        return SavedRun(folder, int(read_manifest(folder)["step"]), state)
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{folder.name} has no usable training state: {error}") from error


def refuse_other_run(saved: SavedRun, identity: Mapping[str, Any], base: BaseWeights | None = None) -> None:
    """Raises CheckpointUnusable if the checkpoint has another model, optimizer or adapter, or other base weights."""
    theirs = saved.state.get("identity")
    differing = identity_differences(theirs if isinstance(theirs, dict) else {}, identity)
    if base is not None and saved.base is not None:
        differing += base_differences(saved.base, base)
    if differing:
        raise CheckpointUnusable(
            f"{saved.folder.name} in {saved.folder.parent} belongs to another run: {'; '.join(differing)}.",
            hint="restore these settings, or choose another output_dir, or leave resume_from_checkpoint empty for a fresh start"
            + ("; init_lora starts a new run from the weights of an adapter" if identity.get("model_type") == "lora" else ""),
        )


def without_base(saved: SavedRun) -> str:
    """Returns the message for a checkpoint of an older version, which does not record its base weights."""
    name = saved.folder.name
    return f"{name} was saved by an older version and does not record its base weights; they are not compared."


def data_differences(saved: SavedRun, layout: Mapping[str, Any], samples: Samples, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the differences in batches and datasets as texts; the caller decides whether to accept them. Raises CheckpointUnusable.

    ``settings``: dataset id -> the fields that decide how its samples are trained, to explain why samples have changed.
    """
    theirs = saved.state.get("settings")
    return differences(saved, layout, read_samples(saved), samples, theirs if isinstance(theirs, dict) else {}, settings)


def read_samples(saved: SavedRun) -> Samples:
    """Returns the samples that the checkpoint was trained on. Raises CheckpointUnusable."""
    try:
        document = read_small_json(saved.folder / SAMPLES_FILE, LARGEST_SAMPLES_BYTES)
        if not isinstance(document, dict) or not all(isinstance(one, dict) for one in document.values()):
            raise ValueError("it is not an object of datasets")
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{saved.folder.name} has no usable list of its samples: {error}") from error
    return document


def left_out_of(saved: SavedRun, set_id: str) -> Mapping[str, str]:
    """Returns the samples of a dataset that could not be decoded or encoded, with their fingerprints."""
    found = saved.state.get("left_out")
    left_out = found.get(set_id) if isinstance(found, dict) else None
    return left_out if isinstance(left_out, dict) else {}


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints of a sample match. The content hash is compared only if both have one."""
    if one == other:
        return True
    shape, _, content = one.partition(" ")
    other_shape, _, other_content = other.partition(" ")
    return shape == other_shape and (content == other_content or not content or not other_content)


def changed_data(saved: SavedRun, differing: list[str]) -> str:
    """Returns the message for a run that resumes although its data has changed."""
    return f"The data has changed since {saved.folder.name}: {'; '.join(differing)}. The order of samples starts anew."


def refuse_changed_data(saved: SavedRun, differing: list[str]) -> None:
    """Raises CheckpointUnusable if anything differs."""
    if differing:
        raise CheckpointUnusable(
            f"The data differs from that of {saved.folder.name}: {'; '.join(differing)}.",
            hint="restore the data, start a new run in another output_dir, or set i_know_what_i_am_doing to continue in a new order",
        )


def differences(
    saved: SavedRun,
    layout: Mapping[str, Any],
    old_samples: Samples,
    samples: Samples,
    old_settings: Mapping[str, Mapping[str, Any]] = NOTHING,
    settings: Mapping[str, Mapping[str, Any]] = NOTHING,
) -> list[str]:
    """Returns the differences like ``data_differences``, given the samples of the checkpoint."""
    found = saved.state.get("layout")
    theirs = found if isinstance(found, dict) else {}
    differing = [
        f"{name} was {shown(theirs.get(name))} and is {shown(value)}" for name, value in layout.items() if theirs.get(name) != value
    ]
    for id in sorted({*old_samples, *samples}):
        found = _dataset_difference(id, old_samples.get(id), samples.get(id))
        if found:
            differing += _settings_difference(id, old_settings.get(id, {}), settings.get(id, {}))
        differing += found
    return differing


def _settings_difference(id: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changed = [name for name in new if name in old and old[name] != new[name]]
    return [f"dataset {id}: {name} was {shown(old[name])} and is {shown(new[name])}" for name in changed]


def _dataset_difference(id: str, old: Mapping[str, str] | None, new: Mapping[str, str] | None) -> list[str]:
    if old is None or new is None:
        return [f"dataset {id} is {'new' if old is None else 'gone'}"]
    if old == new:
        return []
    changes = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if not is_same(old[name], new[name])),
    }
    return [f"dataset {id}: {len(names)} {word} ({named(names)})" for word, names in changes.items() if names]

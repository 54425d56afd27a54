"""Which checkpoint a run goes on from, and whether it may. The engine asks, and ``validate`` before it. Standard library only.

``resume_from_checkpoint`` is a name (``checkpoint-500``, ``latest``), which means a checkpoint of this run's ``output_dir``; a path, which
means that folder wherever it lies; or an address, whose checkpoint was fetched into ``output_dir`` before anything here is asked.
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
"""Of ``samples.json``: tens of millions of samples."""
MORE_TO_TRAIN = "Raise max_train_steps or num_train_epochs, or set resume_from_checkpoint empty to train anew."
Samples = Mapping[str, Mapping[str, str]]
"""Dataset id -> name of each sample -> a fingerprint of all that decides how it is trained."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint that verified."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    """``training_state.json``."""

    @property
    def base(self) -> BaseWeights | None:
        """The base weights that it was trained with; None for checkpoints of older versions, which do not say."""
        return read_base(self.state.get("base"))

    def is_of(self, output_dir: Path) -> bool:
        """Whether it lies in the run's own output folder."""
        return self.folder.resolve().parent == output_dir.resolve()


class NoSuchCheckpoint(CheckpointUnusable):
    """There is no checkpoint where one was named."""


def is_path(wanted: str) -> bool:
    """Whether ``resume_from_checkpoint`` is a path, and neither a name nor an address."""
    return not is_remote(wanted) and ("/" in wanted or wanted.startswith("~"))


def choose(
    output_dir: Path, wanted: str, *, on_bad: Callable[[str, list[str]], None], check: Callable[[Path], list[str]] = verify
) -> SavedRun | None:
    """The checkpoint that ``resume_from_checkpoint`` asks for; None for a fresh start.

    ``latest`` walks back to the newest that verifies; ``on_bad`` hears (name, what is wrong) of each one in ``output_dir`` that does not.
    ``check`` says what is wrong with a checkpoint's files.
    Raises CheckpointUnusable where one is asked for by name or path and is missing or broken.
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
    hint = f"give one of those in it: {', '.join(inside)}" if inside else "give the folder of a checkpoint, or a name in output_dir"
    if not folder.is_dir():
        raise NoSuchCheckpoint(f"There is no folder {folder} to go on from.", hint=hint)
    if not (folder / MANIFEST).is_file():
        raise NoSuchCheckpoint(f"The folder {folder} is no checkpoint: it holds no {MANIFEST}.", hint=hint)
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
    """What a folder with verified files says of its run. Raises CheckpointUnusable."""
    try:
        state = read_small_json(folder / STATE_FILE, LARGEST_LIST_BYTES)
        if not isinstance(state, dict) or not isinstance(state.get("identity", {}), dict):
            raise ValueError("it is not an object with an identity")
        return SavedRun(folder, int(read_manifest(folder)["step"]), state)
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{folder.name} holds no training state: {error}") from error


def refuse_other_run(saved: SavedRun, identity: Mapping[str, Any], base: BaseWeights | None = None) -> None:
    """Raises CheckpointUnusable where the checkpoint is of another model, optimizer or adapter, or of other base weights."""
    theirs = saved.state.get("identity")
    differing = identity_differences(theirs if isinstance(theirs, dict) else {}, identity)
    if base is not None and saved.base is not None:
        differing += base_differences(saved.base, base)
    if differing:
        raise CheckpointUnusable(
            f"{saved.folder.name} in {saved.folder.parent} belongs to another run: {'; '.join(differing)}.",
            hint="put it back as it was, or choose another output_dir, or leave resume_from_checkpoint empty for a fresh start"
            + ("; init_lora starts a new run from the weights of an adapter" if identity.get("model_type") == "lora" else ""),
        )


def without_base(saved: SavedRun) -> str:
    """What is said of a checkpoint that an older version saved."""
    name = saved.folder.name
    return f"{name} is of an older version and does not say which base weights it was trained with; they are not compared."


def data_differences(saved: SavedRun, layout: Mapping[str, Any], samples: Samples, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What differs in batches and datasets, as sentences; the caller decides whether that may be. Raises CheckpointUnusable.

    ``settings``: dataset id -> the fields that decide how its samples are trained, which say why samples have changed.
    """
    theirs = saved.state.get("settings")
    return differences(saved, layout, read_samples(saved), samples, theirs if isinstance(theirs, dict) else {}, settings)


def read_samples(saved: SavedRun) -> Samples:
    """What the checkpoint was trained on. Raises CheckpointUnusable."""
    try:
        document = read_small_json(saved.folder / SAMPLES_FILE, LARGEST_SAMPLES_BYTES)
        if not isinstance(document, dict) or not all(isinstance(one, dict) for one in document.values()):
            raise ValueError("it holds no datasets")
    except (OSError, ValueError) as error:
        raise CheckpointUnusable(f"{saved.folder.name} does not say which samples it was trained on: {error}") from error
    return document


def left_out_of(saved: SavedRun, set_id: str) -> Mapping[str, str]:
    """The samples of a set that the run had to leave out, and what they were: images that could not be decoded or encoded."""
    found = saved.state.get("left_out")
    left_out = found.get(set_id) if isinstance(found, dict) else None
    return left_out if isinstance(left_out, dict) else {}


def is_same(one: str, other: str) -> bool:
    """Whether two fingerprints of a sample say the same. What its files hold is compared where both say it."""
    shape, _, content = one.partition(" ")
    other_shape, _, other_content = other.partition(" ")
    return shape == other_shape and (content == other_content or not content or not other_content)


def changed_data(saved: SavedRun, differing: list[str]) -> str:
    """What is said where the run goes on all the same."""
    return f"The data has changed since {saved.folder.name}: {'; '.join(differing)}. The order of samples starts anew."


def refuse_changed_data(saved: SavedRun, differing: list[str]) -> None:
    """Raises CheckpointUnusable where something differs."""
    if differing:
        raise CheckpointUnusable(
            f"The data of {saved.folder.name} was another: {'; '.join(differing)}.",
            hint="put it back as it was, start afresh in another output_dir, or set i_know_what_i_am_doing to go on with the new order",
        )


def differences(
    saved: SavedRun,
    layout: Mapping[str, Any],
    old_samples: Samples,
    samples: Samples,
    old_settings: Mapping[str, Mapping[str, Any]] = NOTHING,
    settings: Mapping[str, Mapping[str, Any]] = NOTHING,
) -> list[str]:
    """As ``data_differences``, of samples that were read."""
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
    changes = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(name for name in old.keys() & new.keys() if not is_same(old[name], new[name])),
    }
    return [f"dataset {id}: {len(names)} {word} ({named(names)})" for word, names in changes.items() if names]

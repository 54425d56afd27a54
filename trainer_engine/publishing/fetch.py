"""A checkpoint from a store into the output folder: the manifest first, every file verified, renamed into place at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.config.resuming.choice import open_checkpoint, refuse_other_run
from trainer_engine.contract.atomic import sync_folder
from trainer_engine.contract.checkpoint_files import MANIFEST, check_manifest, checkpoint_name, foreign_files, read_manifest, verify
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.files import sha256_of
from trainer_engine.publishing.base import Moved, Store, StoreError
from trainer_engine.publishing.places import incoming_folder

NOTHING: Mapping[str, Any] = MappingProxyType({})
LARGEST_MANIFEST = 16 << 20
MOST_FILES = 10_000
MAX_LISTED = 5
SPARE_BYTES = 64 << 20


def fetch_checkpoint(
    store: Store,
    remote: str,
    output_dir: Path,
    expected: Mapping[str, str],
    progress: Callable[[int], Moved],
    identity: Mapping[str, Any] = NOTHING,
) -> str:
    """The name of the checkpoint, which lies whole in ``output_dir`` then. ``progress`` is told the bytes in all.

    ``expected`` is what its manifest must say, ``identity`` what its training state must agree on with the run.
    Files that an earlier try has brought are not fetched again. Raises StoreError: for a store that cannot be read, and for a checkpoint
    that is broken, of another run, larger than the disk, or that holds files which no checkpoint has.
    """
    content = store.read(f"{remote}/{MANIFEST}", LARGEST_MANIFEST)
    manifest = _checked(content, remote, expected)
    name = remote.rpartition("/")[2]
    if (output_dir / name).exists():
        _refuse_another(output_dir / name, manifest)
        return name
    incoming = incoming_folder(output_dir, name)
    _refuse_a_link(incoming, output_dir)
    _forget_another(incoming, content)
    left = {path: entry for path, entry in manifest["files"].items() if not _is_here(incoming / path, entry)}
    total = sum(entry["size"] for entry in left.values())
    _refuse_without_space(output_dir, total)
    moved = progress(total)
    for path, entry in left.items():
        _fetch_file(store, f"{remote}/{path}", incoming / path, entry, moved)
    _remove_strangers(incoming, {MANIFEST, *manifest["files"]})
    problems = verify(incoming)
    if problems:
        raise StoreError(f"{name} does not verify: {' '.join(problems[:3])}", hopeless=True)
    _refuse_another_run(incoming, identity)
    for folder in [path for path in incoming.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    incoming.replace(output_dir / name)
    sync_folder(output_dir)
    return name


def _checked(content: bytes, remote: str, expected: Mapping[str, str]) -> dict[str, Any]:
    """The manifest, of a checkpoint of such a run that has the name of its folder."""
    try:
        manifest = check_manifest(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{remote}/{MANIFEST} cannot be used: {error}", hopeless=True) from error
    name = checkpoint_name(manifest["step"])
    if remote.rpartition("/")[2] not in (name, checkpoint_name(manifest["step"], rolling=True)):
        raise StoreError(f"{remote} holds {name}, which is not what its address says.", hopeless=True)
    if len(manifest["files"]) > MOST_FILES:
        raise StoreError(f"{name} has {len(manifest['files'])} files; no checkpoint has so many.", hopeless=True)
    foreign = foreign_files(manifest["files"])
    if foreign:
        named = ", ".join(foreign[:MAX_LISTED]) + (f" and {len(foreign) - MAX_LISTED} more" if len(foreign) > MAX_LISTED else "")
        hint = "give the address of a checkpoint as it was saved; other files do not belong beside it"
        raise StoreError(f"{remote} lists files that no checkpoint has: {named}.", hint=hint, hopeless=True)
    differing = [f"{key} was {manifest.get(key)} and is {value}" for key, value in expected.items() if manifest.get(key) != value]
    if differing:
        raise StoreError(f"{remote} belongs to another run: {'; '.join(differing)}.", hint="give the address of another one", hopeless=True)
    return manifest


def _refuse_a_link(incoming: Path, output_dir: Path) -> None:
    """The hidden folder is this program's: one that leads elsewhere was put there by somebody else."""
    if Path(os.path.realpath(incoming)) != incoming_folder(Path(os.path.realpath(output_dir)), incoming.name):
        raise StoreError(f"{incoming} leads elsewhere.", hint="remove the link", hopeless=True)


def _refuse_another_run(incoming: Path, identity: Mapping[str, Any]) -> None:
    """What the run would refuse to go on from does not get a checkpoint's name; what was fetched of it goes."""
    try:
        saved = open_checkpoint(incoming)
        if identity and not saved.state.get("identity"):
            hint = "give the address of a checkpoint as it was saved"
            raise CheckpointUnusable(f"{incoming.name} does not say which run it is of.", hint=hint)
        refuse_other_run(saved, identity)
    except CheckpointUnusable as error:
        shutil.rmtree(incoming, ignore_errors=True)
        raise StoreError(error.message, hint=error.hint, hopeless=True) from error


def _refuse_another(there: Path, manifest: Mapping[str, Any]) -> None:
    """The one that is there may be the same: then there is nothing to fetch."""
    try:
        same = read_manifest(there)["files"] == manifest["files"]
    except (OSError, ValueError):
        same = False
    if not same:
        hint = f"resume from {there.name} itself, or choose another output_dir"
        raise StoreError(f"Another {there.name} lies in the output folder.", hint=hint, hopeless=True)


def _forget_another(incoming: Path, content: bytes) -> None:
    """What an earlier try has left is of use only where it was for the same manifest."""
    try:
        same = (incoming / MANIFEST).read_bytes() == content
    except OSError:
        same = False
    if not same:
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        (incoming / MANIFEST).write_bytes(content)


def _remove_strangers(incoming: Path, wanted: set[str]) -> None:
    """What broken tries and the hub's library have left between the files."""
    for path in [path for path in incoming.rglob("*") if path.is_file() and path.relative_to(incoming).as_posix() not in wanted]:
        path.unlink()
    for folder in sorted((path for path in incoming.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_here(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and sha256_of(path) == entry["sha256"]


def _refuse_without_space(output_dir: Path, total: int) -> None:
    free = shutil.disk_usage(output_dir).free
    if total + SPARE_BYTES > free:
        message = f"The checkpoint needs {total / 1e6:.0f} MB more, and {output_dir} has {free / 1e6:.0f} MB left."
        raise StoreError(message, hint="free some space", hopeless=True)


def _fetch_file(store: Store, remote: str, path: Path, entry: Mapping[str, Any], moved: Moved) -> None:
    """Under another name until it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    store.fetch(remote, part, entry["size"], moved)
    if part.stat().st_size != entry["size"]:
        raise StoreError(f"{remote} broke off after {part.stat().st_size} of {entry['size']} bytes.")
    if sha256_of(part) != entry["sha256"]:
        part.unlink()
        raise StoreError(f"{remote} is damaged: its hash is not the manifest's.", hint="choose another checkpoint", hopeless=True)
    part.replace(path)

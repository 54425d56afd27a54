"""Downloads a checkpoint: first its manifest, then its files, each verified; the folder gets its name at the end."""

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
from trainer_engine.publishing.base import Moved, Provider, ProviderError
from trainer_engine.publishing.staging import incoming_folder

NOTHING: Mapping[str, Any] = MappingProxyType({})
LARGEST_MANIFEST = 16 << 20
MOST_FILES = 10_000
MAX_LISTED = 5
SPARE_BYTES = 64 << 20


def fetch_checkpoint(
    provider: Provider,
    remote: str,
    output_dir: Path,
    expected: Mapping[str, str],
    progress: Callable[[int], Moved],
    identity: Mapping[str, Any] = NOTHING,
) -> str:
    """Download the checkpoint at ``remote`` into ``output_dir`` and return its name. Files of an earlier attempt are not downloaded again.

    ``progress`` is called with the size in bytes and returns the function that counts them. ``expected`` holds keys that the manifest must
    have, ``identity`` what the training state must have in common with the run. Raises ProviderError if the provider cannot be read, and
    if the checkpoint is damaged, belongs to another run, does not fit the disk, or has files that no checkpoint has.
    """
    content = provider.read(f"{remote}/{MANIFEST}", LARGEST_MANIFEST)
    manifest = _checked(content, remote, expected)
    name = remote.rpartition("/")[2]
    if (output_dir / name).exists():
        _refuse_another(output_dir / name, manifest)
        return name
    incoming = incoming_folder(output_dir, name)
    _refuse_a_link(incoming, output_dir)
    _discard_another(incoming, content)
    left = {path: entry for path, entry in manifest["files"].items() if not _is_here(incoming / path, entry)}
    total = sum(entry["size"] for entry in left.values())
    _refuse_without_space(output_dir, total)
    moved = progress(total)
    for path, entry in left.items():
        _fetch_file(provider, f"{remote}/{path}", incoming / path, entry, moved)
    _remove_other_files(incoming, {MANIFEST, *manifest["files"]})
    problems = verify(incoming)
    if problems:
        raise ProviderError(f"{name} does not verify: {' '.join(problems[:3])}", permanent=True)
    _refuse_another_run(incoming, identity)
    for folder in [path for path in incoming.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    incoming.replace(output_dir / name)
    sync_folder(output_dir)
    return name


def _checked(content: bytes, remote: str, expected: Mapping[str, str]) -> dict[str, Any]:
    """Parse the manifest and check that it fits the address and the run."""
    try:
        manifest = check_manifest(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"{remote}/{MANIFEST} cannot be used: {error}", permanent=True) from error
    name = checkpoint_name(manifest["step"])
    if remote.rpartition("/")[2] not in (name, checkpoint_name(manifest["step"], rolling=True)):
        raise ProviderError(f"{remote} holds {name}, which differs from its address.", permanent=True)
    if len(manifest["files"]) > MOST_FILES:
        raise ProviderError(f"{name} has {len(manifest['files'])} files, more than any checkpoint has.", permanent=True)
    foreign = foreign_files(manifest["files"])
    if foreign:
        named = ", ".join(foreign[:MAX_LISTED]) + (f" and {len(foreign) - MAX_LISTED} more" if len(foreign) > MAX_LISTED else "")
        hint = "give the address of a checkpoint as it was saved; other files do not belong to it"
        raise ProviderError(f"{remote} lists files that no checkpoint has: {named}.", hint=hint, permanent=True)
    differing = [f"{key} was {manifest.get(key)} and is {value}" for key, value in expected.items() if manifest.get(key) != value]
    if differing:
        raise ProviderError(
            f"{remote} belongs to another run: {'; '.join(differing)}.", hint="give the address of another one", permanent=True
        )
    return manifest


def _refuse_a_link(incoming: Path, output_dir: Path) -> None:
    """The hidden folder belongs to this program. A link in its place was created by somebody else."""
    if Path(os.path.realpath(incoming)) != incoming_folder(Path(os.path.realpath(output_dir)), incoming.name):
        raise ProviderError(f"{incoming} leads elsewhere.", hint="remove the link", permanent=True)


def _refuse_another_run(incoming: Path, identity: Mapping[str, Any]) -> None:
    """Delete the download and raise ProviderError if the run could not continue from the checkpoint."""
    try:
        saved = open_checkpoint(incoming)
        if identity and not saved.state.get("identity"):
            hint = "give the address of a checkpoint as it was saved"
            raise CheckpointUnusable(f"{incoming.name} does not say which run it belongs to.", hint=hint)
        refuse_other_run(saved, identity)
    except CheckpointUnusable as error:
        shutil.rmtree(incoming, ignore_errors=True)
        raise ProviderError(error.message, hint=error.hint, permanent=True) from error


def _refuse_another(there: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ProviderError if the existing checkpoint differs from the remote one; if it is the same, there is nothing to download."""
    try:
        same = read_manifest(there)["files"] == manifest["files"]
    except (OSError, ValueError):
        same = False
    if not same:
        hint = f"resume from {there.name} itself, or choose another output_dir"
        raise ProviderError(f"Another {there.name} lies in the output folder.", hint=hint, permanent=True)


def _discard_another(incoming: Path, content: bytes) -> None:
    """Delete the files of an earlier attempt if they belong to another manifest."""
    try:
        same = (incoming / MANIFEST).read_bytes() == content
    except OSError:
        same = False
    if not same:
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        (incoming / MANIFEST).write_bytes(content)


def _remove_other_files(incoming: Path, wanted: set[str]) -> None:
    """Delete files that failed attempts and the hub's library have left."""
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
        raise ProviderError(message, hint="free some space", permanent=True)


def _fetch_file(provider: Provider, remote: str, path: Path, entry: Mapping[str, Any], moved: Moved) -> None:
    """Download a file under a temporary name, verify it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    provider.fetch(remote, part, entry["size"], moved)
    if part.stat().st_size != entry["size"]:
        raise ProviderError(f"{remote} ended after {part.stat().st_size} of {entry['size']} bytes.")
    if sha256_of(part) != entry["sha256"]:
        part.unlink()
        raise ProviderError(f"{remote} is damaged: its hash differs from the manifest.", hint="choose another checkpoint", permanent=True)
    part.replace(path)

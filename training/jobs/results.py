"""The files that a run left: its checkpoints and results. Nothing else of ``output_dir`` is listed or opened.

A checkpoint's files are those of its manifest; results are those that the run's summary names, and adapters that were exported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from trainer_engine.contract.checkpoint_files import MANIFEST, NAME, read_manifest
from trainer_engine.contract.events import EventType
from trainer_engine.contract.files import open_regular
from training.models import Job

MOST_FILES = 10_000
RESULT_SUFFIXES = frozenset((".safetensors", ".json", ".txt", ".model", ".md", ".png", ".svg", ".gif", ".mp4", ".webp", ".jinja"))
"""Of the files that a run writes into its results."""
EXPORTED = "comfyui"
"""Folder of the output folder with adapters in the keys of ComfyUI."""


@dataclass(frozen=True)
class RunFile:
    """A file that a run wrote."""

    path: PurePosixPath
    """Relative to ``output_dir``."""
    size_bytes: int
    kind: str
    """``checkpoint`` or ``result``."""


def list_files(job: Job) -> list[RunFile]:
    """Returns the files of a run that exist, checkpoints first; at most ``MOST_FILES``."""
    root = Path(job.output_dir)
    found: list[RunFile] = []
    for kind, path in _named(job, root):
        size = _size_inside(root, path) if _is_text(path) else None
        if size is not None:
            found.append(RunFile(path, size, kind))
        if len(found) == MOST_FILES:
            break
    return found


def open_file(job: Job, name: str) -> BinaryIO | None:
    """Opens a file of the run by its path in ``list_files``; None if there is none."""
    root, wanted = Path(job.output_dir), PurePosixPath(name)
    candidates = _checkpoint_files(root, wanted.parts[0]) if _is_checkpoint(wanted) else _result_files(job, root)
    return open_inside(root / wanted, root) if wanted in candidates else None


def open_inside(path: Path, *roots: Path) -> BinaryIO | None:
    """Opens a regular file that lies in one of these folders, links followed; None if there is none."""
    try:
        real = os.path.realpath(path)
        stream = open_regular(real)
    except OSError:
        return None
    # NOTE: a link that was put there after realpath was followed by open, so the file that is open is judged.
    opened = _path_of(stream, real)
    if not any(opened.is_relative_to(os.path.realpath(root)) for root in roots):
        stream.close()
        return None
    return stream


def _path_of(stream: BinaryIO, opened: str) -> Path:
    """The real path of an open file where the system tells it (Linux); else the path under which it was opened."""
    try:
        return Path(f"/proc/self/fd/{stream.fileno()}").readlink()
    except OSError:
        return Path(opened)


def _is_checkpoint(path: PurePosixPath) -> bool:
    return bool(path.parts) and NAME.fullmatch(path.parts[0]) is not None


def _named(job: Job, root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    try:
        folders = sorted(entry.name for entry in os.scandir(root) if NAME.fullmatch(entry.name))
    except OSError:
        folders = []
    for folder in folders:
        yield from (("checkpoint", path) for path in _checkpoint_files(root, folder))
    yield from (("result", path) for path in _result_files(job, root))


def _checkpoint_files(root: Path, folder: str) -> Iterator[PurePosixPath]:
    """Yields the files of a checkpoint, the manifest first; nothing if it is not complete."""
    try:
        files = read_manifest(root / folder)["files"]
    except (OSError, ValueError):
        return
    yield from (PurePosixPath(folder, name) for name in (MANIFEST, *files))


def _result_files(job: Job, root: Path) -> Iterator[PurePosixPath]:
    """Yields the files below the results of the summary. Checkpoints are listed by their manifests."""
    summary = job.events.filter(type=EventType.SUMMARY).order_by("-index").first()
    data = summary.payload.get("data") if summary else None
    artefacts = data.get("artefacts") if isinstance(data, dict) else None
    paths = artefacts.values() if isinstance(artefacts, dict) else ()
    for path in sorted({Path(text) for text in paths if isinstance(text, str)}):
        if path.is_relative_to(root) and path != root and not _is_checkpoint(PurePosixPath(path.relative_to(root))):
            yield from (PurePosixPath(file.relative_to(root)) for file in _files_below(path) if file.suffix in RESULT_SUFFIXES)
    if (root / EXPORTED).is_dir():
        yield from (PurePosixPath(file.relative_to(root)) for file in _files_below(root / EXPORTED) if file.suffix == ".safetensors")


def _files_below(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):  # follows no link to a folder
        yield from (Path(folder, name) for name in sorted(names))


def _is_text(path: PurePosixPath) -> bool:
    """Whether a path can be sent as JSON; file systems hold names that cannot."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _size_inside(root: Path, path: PurePosixPath) -> int | None:
    """The size of a file whose real path lies in the output folder; None for others."""
    try:
        real = Path(os.path.realpath(root / path))
        return real.stat().st_size if real.is_relative_to(os.path.realpath(root)) and real.is_file() else None
    except OSError:
        return None

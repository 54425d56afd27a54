"""Where publishing keeps its own things: a hidden folder of the output folder. Files are staged as hard links, which cost no space."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer_engine.contract.checkpoint_files import read_manifest

HIDDEN_FOLDER = ".publishing"
LEDGER = "ledger.json"


def ledger_file(output_dir: Path) -> Path:
    return output_dir / HIDDEN_FOLDER / LEDGER


def incoming_folder(output_dir: Path, name: str) -> Path:
    return output_dir / HIDDEN_FOLDER / "incoming" / name


def staging_folder(output_dir: Path, staged: str) -> Path:
    return output_dir / HIDDEN_FOLDER / "staged" / staged


def stage(output_dir: Path, staged: str, files: Iterable[tuple[Path, str]]) -> None:
    """Link (path, name below the staged folder) of each file; a folder that is staged already stays.

    The files stay readable whatever becomes of the originals. Raises OSError.
    """
    target = staging_folder(output_dir, staged)
    if target.is_dir():
        return
    beside = target.with_name(f".{staged}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for path, name in files:
        place = beside / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:  # a file system without links
            shutil.copyfile(path, place)
    beside.replace(target)


def unstage_all_but(output_dir: Path, wanted: Iterable[str]) -> None:
    """Remove what no upload needs any more."""
    keep = set(wanted)
    root = staging_folder(output_dir, "x").parent
    for path in root.glob("*") if root.is_dir() else ():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def files_below(folder: Path, prefix: str = "") -> list[tuple[Path, str]]:
    """(path, name) of every file of a folder; hidden ones are left out."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [(path, path.relative_to(folder)) for path in found]
    return [(path, f"{prefix}{name.as_posix()}") for path, name in names if not any(part.startswith(".") for part in name.parts)]


def digest_of(checkpoint: Path) -> str:
    """Names the content of a checkpoint. Raises OSError and ValueError where it has no manifest."""
    files = {name: entry["sha256"] for name, entry in read_manifest(checkpoint)["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def joined_size(files: Iterable[tuple[Path, str]]) -> int:
    """Bytes of all of them."""
    return sum(path.stat().st_size for path, _ in files)

"""Collects the files to upload as hard links, which need no space, in a hidden folder of the output folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from trainer_engine.contract.checkpoint_files import read_manifest

HIDDEN_FOLDER = ".publishing"
LEDGER = "ledger.json"
ADAPTER_COMPANIONS = ("README.md", "lycoris_config.json")
"""Files in the folder of an adapter that belong to it."""
IMAGES = "validation_images"


def ledger_file(output_dir: Path) -> Path:
    return output_dir / HIDDEN_FOLDER / LEDGER


def incoming_folder(output_dir: Path, name: str) -> Path:
    return output_dir / HIDDEN_FOLDER / "incoming" / name


def staging_folder(output_dir: Path, staged: str) -> Path:
    return output_dir / HIDDEN_FOLDER / "staged" / staged


def stage(output_dir: Path, staged: str, files: Iterable[tuple[Path, str]]) -> None:
    """Create the staging folder ``staged`` with a hard link for each (path, name). An existing folder is left as it is.

    The links stay readable after the originals are deleted. Raises OSError.
    """
    target = staging_folder(output_dir, staged)
    if target.is_dir():
        return
    temporary = target.with_name(f".{staged}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path, name in files:
        place = temporary / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:  # a file system without links
            shutil.copyfile(path, place)
    temporary.replace(target)


def unstage_all_but(output_dir: Path, wanted: Iterable[str]) -> None:
    """Delete every staging folder that is not in ``wanted``."""
    keep = set(wanted)
    root = staging_folder(output_dir, "x").parent
    for path in root.glob("*") if root.is_dir() else ():
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)


def files_below(folder: Path, prefix: str = "") -> list[tuple[Path, str]]:
    """(path, name) of every file of a folder, except hidden files."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [(path, path.relative_to(folder)) for path in found]
    return [(path, f"{prefix}{name.as_posix()}") for path, name in names if not any(part.startswith(".") for part in name.parts)]


def digest_of(checkpoint: Path) -> str:
    """A hash of the content of a checkpoint. Raises OSError or ValueError if it has no valid manifest."""
    files = {name: entry["sha256"] for name, entry in read_manifest(checkpoint)["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def joined_size(files: Iterable[tuple[Path, str]]) -> int:
    """Total size of the files in bytes."""
    return sum(path.stat().st_size for path, _ in files)


def result_files(output_dir: Path, results: Mapping[str, str]) -> list[tuple[Path, str]]:
    """(path, name at the provider) of the files of a result.

    The first result is uploaded to the top level, so that a repository can be loaded by its name.
    """
    found: dict[str, Path] = {}
    for number, path in enumerate(output_dir / name for name in results.values()):
        prefix = "" if number == 0 else f"{path.relative_to(output_dir).as_posix()}/"
        if path.is_dir():
            found |= {name: file for file, name in files_below(path, prefix)}
        elif path.is_file():
            found |= {
                file.relative_to(output_dir).as_posix(): file
                for file in (path, *(path.parent / name for name in ADAPTER_COMPANIONS))
                if file.is_file()
            }
    found |= {path.relative_to(output_dir).as_posix(): path for path in _shown_in(found.get("README.md"), output_dir)}
    return [(path, name) for name, path in found.items()]


def _shown_in(card: Path | None, output_dir: Path) -> list[Path]:
    """The validation images that the model card shows."""
    text = card.read_text(encoding="utf-8") if card is not None else ""
    images = sorted((output_dir / IMAGES).glob("*")) if IMAGES in text else []
    return [path for path in images if quote(f"{IMAGES}/{path.name}") in text]

"""Which files are the result of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from trainer_engine.publishing.places import files_below

BESIDE = ("README.md", "lycoris_config.json")
"""What lies beside an adapter and belongs to it."""
PICTURES = "validation_images"


def result_files(output_dir: Path, results: Mapping[str, str]) -> list[tuple[Path, str]]:
    """(path, name at the store) of each: the first result stands at the top, so that a repository can be loaded by its name."""
    found: dict[str, Path] = {}
    for number, path in enumerate(output_dir / name for name in results.values()):
        prefix = "" if number == 0 else f"{path.relative_to(output_dir).as_posix()}/"
        if path.is_dir():
            found |= {name: file for file, name in files_below(path, prefix)}
        elif path.is_file():
            found |= {
                file.relative_to(output_dir).as_posix(): file for file in (path, *(path.parent / name for name in BESIDE)) if file.is_file()
            }
    found |= {path.relative_to(output_dir).as_posix(): path for path in _shown_in(found.get("README.md"), output_dir)}
    return [(path, name) for name, path in found.items()]


def _shown_in(spec: Path | None, output_dir: Path) -> list[Path]:
    """The pictures that the card shows."""
    text = spec.read_text(encoding="utf-8") if spec is not None else ""
    pictures = sorted((output_dir / PICTURES).glob("*")) if PICTURES in text else []
    return [path for path in pictures if quote(f"{PICTURES}/{path.name}") in text]

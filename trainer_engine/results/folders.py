"""Writes the results of a run: folders that appear atomically, and the model card of a pipeline."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer_engine.contract.atomic import sync_folder
from trainer_engine.results.pipeline_index import is_modular, loading_code

LINKED_SUFFIX = ".safetensors"
UNFINISHED = "tmp-"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when the block ends, synced to disk; nothing is left if it fails.

    Only one process writes a folder, so that the leftovers of a killed one are removed first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{UNFINISHED}"))
    staging.chmod(0o755)
    try:
        yield staging
        _sync_tree(staging)
        _take_the_place_of(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _take_the_place_of(folder: Path, staging: Path) -> None:
    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.replace(previous)
    staging.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)
    sync_folder(root)


def copy_part(source: Path, target: Path) -> None:
    """An unchanged component as it stands in its repository: weights as hard links where the file system allows, the rest copied."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            _link_or_copy(path.resolve(), target / path.name)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.suffix == LINKED_SUFFIX:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(
    *,
    head: Sequence[str],
    notices: Sequence[str],
    title: str,
    base_model: str,
    pipeline: str,
    module: str,
    dtype: str,
    facts: Mapping[str, object],
    drawable: bool,
) -> str:
    """The README.md of a pipeline. ``head`` is the metadata that the hub reads; ``module`` has the class of the pipeline."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    instead = (
        "`load_components` takes them from the base model if that is a repository of the hub."
        if is_modular(pipeline)
        else "load them from the base model and pass them to `from_pretrained`, "
        "or pass `prompt_embeds` and `prompt_attention_mask` when generating."
    )
    encoders = f"The text encoder and its tokenizer are {'included.' if drawable else f'NOT included: {instead}'}"
    return "\n".join(
        [
            *head,
            f"# A fine-tune of {title}",
            "",
            f"Every weight of the network was trained, starting from `{base_model}`. {encoders}",
            "",
            *notices,
            *lines,
            "",
            "```python",
            "import torch",
            f"from {module} import {pipeline}",
            "",
            loading_code(pipeline, "'path/to/this/folder'", dtype),
            "```",
            "",
        ]
    )

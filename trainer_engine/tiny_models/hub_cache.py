"""Places a model in a Hugging Face cache under the name of the real one."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any


def place_in_hub_cache(folder: Path, repo_id: str, hf_home: Path) -> Path:
    """Lay ``folder`` out as a downloaded snapshot of ``repo_id``, so that the id loads offline with ``HF_HOME=hf_home``.

    Returns the snapshot's folder. Weights lie in ``blobs`` under their sha256, as the hub's client keeps them.
    """
    repository = hf_home / "hub" / f"models--{repo_id.replace('/', '--')}"
    commit = hashlib.sha1(repo_id.encode(), usedforsecurity=False).hexdigest()
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(blob.resolve())
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    return snapshot


def write_pipeline_folder(folder: Path, pipeline: str, parts: dict[str, Any], **index: Any) -> None:
    """A diffusers pipeline of these components; ``index`` adds further entries to ``model_index.json``."""
    entries: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": version("diffusers")}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        entries[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    missing = {name: [None, None] for name, value in index.items() if value is None}
    entries |= {**index, **missing}
    (folder / "model_index.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

"""Places a model in a Hugging Face cache under the name of the real one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from trainer_engine.results.pipeline_index import pipeline_index


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
    """A pipeline of diffusers, modular or not, of these components; ``index`` adds further entries to the file that names them."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    present = {name: (type(part).__module__.partition(".")[0], type(part).__name__) for name, part in parts.items()}
    file, entries = pipeline_index(pipeline, present)
    entries |= {name: [None, None] if value is None else value for name, value in index.items()}
    (folder / file).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

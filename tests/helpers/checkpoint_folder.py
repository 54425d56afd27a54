"""Checkpoints without a run: the files, and a manifest that names them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FILES = {WEIGHTS: b"w" * 5000, "optimizer.safetensors": b"o" * 3000, "training_state.json": b"{}"}


def write_checkpoint(output_dir: Path, step: int, files: dict[str, bytes] | None = None, **facts: object) -> Path:
    """``checkpoint-<step>`` below ``output_dir``."""
    folder = output_dir / f"checkpoint-{step}"
    contents = FILES if files is None else files
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest_of(contents, step, **facts)))
    return folder


def manifest_of(files: dict[str, bytes], step: int, **facts: object) -> dict[str, object]:
    entries = {name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()}
    family = {"model_family": "pixart_sigma", "model_type": "full"}
    return {"version": 1, "name": f"checkpoint-{step}", "step": step, **family, "files": entries, **facts}

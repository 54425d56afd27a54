"""Writes the newest adapter of a run in the keys of ComfyUI, in a process of its own, because the web never loads torch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from environments.home import current_home
from trainer_engine.contract.files import is_file
from training.engine.process import passed_environment
from training.errors import TrainingRefused
from training.jobs.results import EXPORTED
from training.models import Job

ADAPTER = "pytorch_lora_weights.safetensors"
SECONDS = 300.0
TURN = threading.Lock()
"""One export at a time: each loads torch and a model's layout."""
LONGEST_REASON = 500


class NotExported(TrainingRefused):
    """The adapter could not be written in other keys."""

    status_code = 409


def newest_adapter(job: Job) -> Path | None:
    """The adapter file of the run's newest checkpoint that still exists; None without one, as for a full fine-tune."""
    for row in job.checkpoints.order_by("-step", "-pk")[:20]:
        path = Path(row.path) / ADAPTER
        if is_file(path):
            return path
    return None


def export_for_comfyui(job: Job) -> str:
    """Export the newest adapter; one that was exported since it was saved is left as it is. Returns its path in the output folder.

    Raises NotExported.
    """
    adapter = newest_adapter(job)
    if adapter is None:
        raise NotExported(f"Run {job.number} has no adapter to export.")
    root = Path(os.path.realpath(job.output_dir))
    name = f"{EXPORTED}/{job.environment or 'run'}-{adapter.parent.name}.safetensors"
    target = Path(os.path.realpath(root / name))
    refusal = current_home().place_rule.refusal(target, writing=True)
    if refusal is not None or not target.is_relative_to(root):
        raise NotExported(f"{root / name} {refusal.message if refusal else 'is a link that leads out of the output folder'}.")
    with TURN:
        if not _is_newer(target, adapter):
            _export(adapter, target)
    return name


def _is_newer(target: Path, adapter: Path) -> bool:
    """Whether an export was made of these weights. Another run may have saved a checkpoint of the same name in the same folder before."""
    return is_file(target) and target.stat().st_mtime_ns >= adapter.stat().st_mtime_ns


def _export(adapter: Path, target: Path) -> None:
    """Raises NotExported. An older export is removed first, because the program replaces no file."""
    command = [sys.executable, "-m", "trainer_engine.export", str(adapter), "--to", "comfyui", "--output", str(target)]
    try:
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        done = subprocess.run(
            command, env=passed_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotExported(f"The export took longer than {SECONDS:.0f} s.") from error
    except OSError as error:
        raise NotExported(f"{target.parent} cannot be written: {error.strerror or error}.") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotExported(f"The adapter was not exported: {said[-1][:LONGEST_REASON] if said else f'exit code {done.returncode}'}")

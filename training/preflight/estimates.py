"""Estimates the memory and disk that a run needs. Weights and optimizer state are counted; activations are modelled with an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.report import DatasetReport
from training.preflight.on_device import EstimatedRun
from training.preflight.step import average_bytes, step_memory
from training.preflight.weights import Tensors, numbers_in, state_bytes, trained_weights, weight_bytes

ERROR_SHARE = 0.35
"""Error of the modelled part in both directions, as a share of it."""
HELD_ON_CPU = 2.2
"""On a CPU the C library keeps freed blocks, so the process may grow to this multiple of the memory in use."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs on its device."""

    counted: int
    """Weights, gradients and optimizer state."""
    modelled: int
    """Activations."""
    slack: float = 1.0
    """Memory that the allocator may hold, as a multiple of the memory in use."""
    least: int | None = None
    """Activations if memory runs out and the engine takes smaller batches; None if it does not."""

    @property
    def middle(self) -> int:
        return self.counted + self.modelled

    @property
    def low(self) -> int:
        modelled = self.modelled if self.least is None else self.least
        return int(self.counted + modelled * (1 - ERROR_SHARE))

    @property
    def high(self) -> int:
        return int((self.counted + self.modelled) * (1 + ERROR_SHARE) * self.slack)

    @property
    def numbers(self) -> dict[str, int]:
        return {"bytes": self.middle, "low_bytes": self.low, "high_bytes": self.high}


def memory_numbers(understood: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers of the memory estimate in the ``understood`` part of a preflight report, without its text."""
    return {name: number for name, number in (understood.get("memory") or {}).items() if isinstance(number, int)}


def size(number: float) -> str:
    """Writes a number of bytes with a unit for the user."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def estimate_memory(
    options: TrainingOptions,
    parameters: int,
    report: DatasetReport,
    spec: FamilySpec,
    tensors: Tensors | None = None,
    *,
    on_cpu: bool = False,
) -> Memory:
    """``tensors``: shapes of all tensors of the network; without them everything is modelled from its number of ``parameters``."""
    held = step_memory(EstimatedRun(options=options, spec=spec, parameters=parameters, tensors=tensors), report)
    if on_cpu:  # what leaves the device stays in the same memory
        return Memory(held.counted + held.host, held.activations - held.freed, HELD_ON_CPU)
    return Memory(held.counted, held.activations - held.freed)


def estimate_disk(
    options: TrainingOptions, parameters: int, spec: FamilySpec, tensors: Tensors | None = None, *, steps: int, encoder_bytes: int
) -> dict[str, int]:
    """Returns the bytes of what a run keeps in ``output_dir``: one ``checkpoint``, all ``checkpoints`` and the ``pipeline``."""
    weights = trained_weights(options, spec, parameters, tensors)
    numbers = numbers_in(weights)
    checkpoint = numbers * (weight_bytes(options) + average_bytes(options)) + state_bytes(options, weights)
    chosen = options.checkpointing
    kept = _kept(steps // chosen.checkpoint_step_interval + 1, chosen.checkpoints_total_limit)
    if chosen.checkpointing_rolling_steps:
        kept += _kept(steps // chosen.checkpointing_rolling_steps, chosen.checkpoints_rolling_total_limit)
    has_encoders = options.model.model_type == "full" and chosen.save_text_encoder
    below = parameters if options.model.model_type == "lora" and any(one.is_made for one in spec.trained.values()) else 0
    pipeline = (numbers + below) * weight_bytes(options) + (encoder_bytes if has_encoders else 0)
    return {"checkpoint": checkpoint, "checkpoints": checkpoint * kept, "pipeline": pipeline}


def _kept(saved: int, limit: int) -> int:
    """Most checkpoints of one kind on the disk at once: the oldest is deleted after the new one is saved."""
    return min(saved, limit + 1) if limit > 0 else saved


def gpu_memory() -> int | None:
    """Returns the bytes of the smallest NVIDIA GPU; None if ``nvidia-smi`` does not report them."""
    try:
        return min(int(line) for line in _of_gpus("memory.total")) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def gpu_capability() -> tuple[int, int] | None:
    """Returns the compute capability of the oldest NVIDIA GPU; None if ``nvidia-smi`` does not report it."""
    try:
        major, minor = min(tuple(int(number) for number in line.split(".")) for line in _of_gpus("compute_cap"))
        return major, minor
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _of_gpus(what: str) -> list[str]:
    """One answer of ``nvidia-smi`` for each GPU. Raises OSError and SubprocessError; an empty list if the tool is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, timeout=5, check=True, text=True).stdout.split()

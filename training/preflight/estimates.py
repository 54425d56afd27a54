"""Estimates the memory and disk that a run needs. Weights and optimizer state are counted; activations are modelled with an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, compute_precision
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.report import DatasetReport
from training.engine.command_line import visible_gpus
from training.preflight.activations import activation_numbers
from training.preflight.on_device import EstimatedRun, OnDevice, relieved, spread
from training.preflight.weights import (
    Tensors,
    frozen_network_bytes,
    gradient_bytes,
    numbers_in,
    state_bytes,
    trained_weights,
    weight_bytes,
)

ERROR_SHARE = 0.35
"""Error of the modelled part in both directions, as a share of it."""
HELD_ON_CPU = 2.2
"""On a CPU the C library keeps freed blocks, so the process may grow to this multiple of the memory in use."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs on its device during a step."""

    counted: int
    """Weights, gradients and optimizer state."""
    modelled: int
    """Activations."""
    slack: float = 1.0
    """Memory that the allocator may hold, as a multiple of the memory in use."""

    @property
    def low(self) -> int:
        return int(self.counted + self.modelled * (1 - ERROR_SHARE))

    @property
    def high(self) -> int:
        return int((self.counted + self.modelled) * (1 + ERROR_SHARE) * self.slack)

    def as_dict(self) -> dict[str, Any]:
        middle = self.counted + self.modelled
        text = f"about {size(middle)} per device while training ({size(self.low)} to {size(self.high)})"
        return {"bytes": middle, "low_bytes": self.low, "high_bytes": self.high, "text": text}


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


def step_memory(run: EstimatedRun, report: DatasetReport) -> OnDevice:
    """Returns what a training step keeps on the device. ``report`` gives the sizes of its batches."""
    options, spec = run.options, run.spec
    weights = trained_weights(options, spec, run.parameters, run.tensors)
    numbers, is_full = numbers_in(weights), options.model.model_type == "full"
    flavour = options.model.model_flavour or spec.default_flavour
    each = int(compute_precision(options.precision.mixed_precision).weight_bytes)
    # A ControlNet keeps about as much as the half of the frozen network that needs no gradients would.
    of_network = (spec.beside.parameters.get(flavour, 0), spec.beside, None) if spec.beside else (run.parameters, spec, run.tensors)
    kept = activation_numbers(options, of_network[0], report, *of_network[1:])
    held = OnDevice(
        weights=numbers * weight_bytes(options),
        gradients=numbers * gradient_bytes(options),
        state=state_bytes(options, weights),
        average=numbers * _average_bytes(options),
        frozen=(0 if is_full else frozen_network_bytes(options, spec, run.parameters, run.tensors)) + _bytes_beside(options, spec, flavour),
        activations=each * kept.total,
    )
    held = spread(held, run, report.effective.processes)
    held = replace(held, freed=0 if _keeps_gradients(options, report) else _freed(held, each * kept.block))
    return relieved(held, run)


def _bytes_beside(options: TrainingOptions, spec: FamilySpec, flavour: str) -> int:
    """Bytes of the frozen network beside a ControlNet."""
    return frozen_network_bytes(options, spec.beside, spec.beside.parameters.get(flavour, 0), None) if spec.beside else 0


def _keeps_gradients(options: TrainingOptions, report: DatasetReport) -> bool:
    """Whether gradients live during the forward pass: those of earlier micro-batches, or the buckets that ranks exchange."""
    return options.run.gradient_accumulation_steps > 1 or report.effective.processes > 1


def _freed(held: OnDevice, block: int) -> int:
    """Bytes of activations that are freed while the gradients are computed, so that the two never need room at once."""
    return min(held.gradients, max(0, held.activations - block))


def _average_bytes(options: TrainingOptions) -> int:
    """Bytes that the average of the weights takes for one number; it is kept in float32."""
    return int(PRECISIONS["fp32"].weight_bytes) if options.run.use_ema else 0


def estimate_disk(
    options: TrainingOptions, parameters: int, spec: FamilySpec, tensors: Tensors | None = None, *, steps: int, encoder_bytes: int
) -> dict[str, int]:
    """Returns the bytes of what a run keeps in ``output_dir``: one ``checkpoint``, all ``checkpoints`` and the ``pipeline``."""
    weights = trained_weights(options, spec, parameters, tensors)
    numbers = numbers_in(weights)
    checkpoint = numbers * (weight_bytes(options) + _average_bytes(options)) + state_bytes(options, weights)
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


def check_memory(memory: Memory, processes: int, variables: Mapping[str, str]) -> list[Problem]:
    """Refuses a run that cannot fit even if the estimate is too high by its whole error."""
    if visible_gpus(variables):
        available = gpu_memory()
        needed = memory.low
    else:
        available = psutil.virtual_memory().total
        needed = memory.low * processes
    if available is None or needed <= available:
        return []
    message = f"The run needs at least {size(needed)} of memory, and this machine has {size(available)}."
    lean = ", ".join(row.name for row in OPTIMIZERS.values() if row.moments == 0 or row.is_factored)
    hint = f"lower train_batch_size or the resolution, or choose an optimizer that keeps little state: {lean}"
    return [Problem.error("train_batch_size", "memory_too_small", message, hint=hint)]


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

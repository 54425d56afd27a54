"""How much memory and disk a run needs. Weights and optimizer state are counted; activations are modelled, hence the error bar."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from trainer_engine.config.families import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.report import DatasetReport
from training.engine.command_line import visible_gpus
from training.preflight.activations import Tokens, kept_numbers

HIDDEN_PX = 1152
"""Width of the transformers that the activation model was fitted to."""
PARAMETERS_A_LAYER = 21_700_000
NUMBERS_A_WIDTH = 16
"""A layer holds about so many times the square of its width."""
ADAPTED_A_LAYER = 8
"""Matrices of a layer that a standard adapter is put on."""
LYCORIS_SHARE = 0.01
"""Of the base, what an adapter file such as the starting ones makes; others may be ten times as large."""
ERROR_SHARE = 0.35
"""Of the modelled part, either way."""
HELD_ON_CPU = 2.2
"""On a CPU the C library keeps freed blocks for later: the process may grow to so many times what is in use."""
PATCH = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while a step is taken."""

    counted: int
    """Weights, gradients, optimizer state: certain."""
    modelled: int
    """Activations."""
    slack: float = 1.0
    """What the allocator may hold beside what is in use, as a factor of the whole."""

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
    """The estimate in what the checks before a start understood, without its words."""
    return {name: number for name, number in (understood.get("memory") or {}).items() if isinstance(number, int)}


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def weight_bytes(options: TrainingOptions) -> int:
    """Bytes of one trained number."""
    return 2 if options.precision.mixed_precision == "bf16" and options.optimizer.optimizer == "adamw_bf16" else 4


def state_bytes(options: TrainingOptions) -> int:
    """Bytes of optimizer state for each trained number: two moments, and Kahan's compensation for bfloat16 weights."""
    each = weight_bytes(options)
    return 2 * each + (each if each == 2 else 0)


def trained_parameters(options: TrainingOptions, parameters: int) -> int:
    """How many numbers learn: all, or an adapter's. The rank of a layer's share is what the layer is wide."""
    if options.model.model_type == "full":
        return parameters
    if options.adapter.lora_type == "lycoris":
        return int(parameters * LYCORIS_SHARE)
    layers = max(1, math.ceil(parameters / PARAMETERS_A_LAYER))
    width = math.sqrt(parameters / layers / NUMBERS_A_WIDTH)
    return int(layers * ADAPTED_A_LAYER * 2 * width * options.adapter.lora_rank)


def frozen_bytes(options: TrainingOptions) -> float:
    """Bytes of one number of the base below an adapter, scales included."""
    quantised = {"int8-quanto": 1.01, "fp8-quanto": 1.01, "int4-quanto": 0.53, "int2-quanto": 0.28}
    precision = options.precision
    short = precision.mixed_precision != "no" and precision.base_model_default_dtype == "bf16"
    return quantised.get(precision.base_model_precision, 2 if short else 4)


def estimate_memory(
    options: TrainingOptions,
    parameters: int,
    report: DatasetReport,
    spec: FamilySpec,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    on_cpu: bool = False,
) -> Memory:
    """``shapes``: (out, in) of the network's linear layers by name; without them activations are modelled from its size alone."""
    slack = HELD_ON_CPU if on_cpu else 1.0
    each = weight_bytes(options)
    average = 4 if options.run.use_ema else 0
    learning = trained_parameters(options, parameters)
    frozen = 0 if options.model.model_type == "full" else parameters * frozen_bytes(options)
    counted = int(learning * (2 * each + state_bytes(options) + average) + frozen)
    cells = max((bucket.size[0] * bucket.size[1] for one in report.sets for bucket in one.counts), default=0)
    seen = cells * (1 + max((len(one.entry.conditioning_data) for one in report.sets), default=0))
    image_tokens = seen // (spec.latents.scale_factor_px * PATCH) ** 2
    batch = options.run.train_batch_size
    prompt_tokens = spec.tokens_of(options.model.model_flavour)
    sequence = Tokens(image_tokens * batch, prompt_tokens * batch if spec.prompts.joins_sequence else 0)
    computing = 4 if options.precision.mixed_precision == "no" else 2
    if shapes:
        return Memory(counted, kept_numbers(shapes, sequence, options, spec) * computing, slack)
    tokens = sequence.image + sequence.prompt
    layers = max(1, math.ceil(parameters / PARAMETERS_A_LAYER))
    width = min(HIDDEN_PX, max(16, int(math.sqrt(parameters / layers / 16))))
    kept = layers + 40 if options.model.gradient_checkpointing else layers * 34
    return Memory(counted, tokens * width * computing * kept, slack)


def estimate_disk(options: TrainingOptions, parameters: int, *, steps: int, encoder_bytes: int) -> dict[str, int]:
    """Bytes of what a run keeps in ``output_dir``, by kind."""
    average = 4 if options.run.use_ema else 0
    learning = trained_parameters(options, parameters)
    checkpoint = learning * (weight_bytes(options) + state_bytes(options) + average)
    chosen = options.checkpointing
    kept = _kept(steps // chosen.checkpoint_step_interval + 1, chosen.checkpoints_total_limit)
    if chosen.checkpointing_rolling_steps:
        kept += _kept(steps // chosen.checkpointing_rolling_steps, chosen.checkpoints_rolling_total_limit)
    is_full = options.model.model_type == "full"
    pipeline = learning * weight_bytes(options) + (encoder_bytes if is_full and options.checkpointing.save_text_encoder else 0)
    return {"checkpoint": checkpoint, "checkpoints": checkpoint * kept, "pipeline": pipeline}


def _kept(saved: int, limit: int) -> int:
    """Checkpoints of one kind that lie there at once: the oldest goes after the new one has come."""
    return min(saved, limit + 1) if limit > 0 else saved


def check_memory(memory: Memory, processes: int, variables: Mapping[str, str]) -> list[Problem]:
    """Refuses only what cannot fit even if the model errs to the low side."""
    if visible_gpus(variables):
        there = gpu_memory()
        needed = memory.low
    else:
        there = psutil.virtual_memory().total
        needed = memory.low * processes
    if there is None or needed <= there:
        return []
    message = f"The run needs at least {size(needed)} of memory, and there are {size(there)}."
    hint = "lower train_batch_size or the resolution; adamw_bf16 with mixed_precision=bf16 takes the least"
    return [Problem.error("train_batch_size", "memory_too_small", message, hint=hint)]


def gpu_memory() -> int | None:
    """Bytes of the smallest NVIDIA GPU; None where that cannot be found out."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=5, check=True, text=True).stdout
        return min(int(line) for line in answer.split()) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError):
        return None

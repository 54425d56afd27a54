"""Decides on which device and in which number types a run computes, and recognises that memory ran out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import LOADED, PRECISIONS, Precision, compute_precision, frozen_precision, trained_precision


def _dtype(precision: Precision) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, precision.library_name)
    return dtype


@dataclass(frozen=True)
class Devices:
    """The device and number types of a process. No other code looks at the hardware or the precision options."""

    device: torch.device
    weights: torch.dtype
    """Type of the trained weights, in memory and in files."""
    network: torch.dtype
    """Type of the network's own weights: ``weights`` if they are trained; frozen weights may have a shorter type."""
    compute: torch.dtype
    """Type of the arithmetic. If it differs from ``weights``, ``autocast`` converts."""
    base: torch.dtype | None
    """Type to which the base weights are rounded when they are loaded; None leaves them as they are, also for quantisation."""
    vae: torch.dtype | None
    """Type in which the autoencoder computes; None uses the type of its weights."""
    text: torch.dtype
    """Type in which the text encoders compute."""
    frozen: torch.dtype = torch.float32
    """Type of the frozen network beside a trained ControlNet."""
    notes: tuple[str, ...] = ()
    """Sentences that say what differs from the options, and why."""

    def autocast(self) -> AbstractContextManager[None]:
        """A context for forward passes of the trained network. Does nothing if weights and arithmetic have the same type."""
        if self.compute == self.weights:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def best_device() -> torch.device:
    """The first accelerator that PyTorch can use, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of an NVIDIA GPU; None for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.version.cuda else None


def resolve_devices(options: TrainingOptions, device: torch.device | None = None) -> Devices:
    """The devices of this process. ``device`` is the one that accelerate assigns; None selects ``best_device()``."""
    device = device or best_device()
    precision = options.precision
    weights = _dtype(trained_precision(options.optimizer.optimizer, precision.mixed_precision))
    loaded = precision.base_model_precision
    vae, text, notes = _encoder_types(options, device)
    return Devices(
        device=device,
        weights=weights,
        network=weights if options.model.model_type == "full" else _frozen_type(options),
        frozen=_frozen_type(options),
        compute=_dtype(compute_precision(precision.mixed_precision)),
        base=_dtype(PRECISIONS[loaded]) if loaded in LOADED else None,
        vae=vae,
        text=text,
        notes=notes,
    )


def prepare_arithmetic(options: TrainingOptions) -> None:
    """Sets what PyTorch keeps for the whole process: its threads, and whether it multiplies float32 matrices in TF32."""
    if options.distributed.torch_num_threads:
        torch.set_num_threads(options.distributed.torch_num_threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not options.precision.disable_tf32


def _frozen_type(options: TrainingOptions) -> torch.dtype:
    """Frozen weights have the type of the arithmetic, unless ``base_model_default_dtype`` is fp32."""
    return _dtype(frozen_precision(options.precision.mixed_precision, options.precision.base_model_default_dtype))


def _encoder_types(options: TrainingOptions, device: torch.device) -> tuple[torch.dtype | None, torch.dtype, tuple[str, ...]]:
    """(autoencoder, text encoders, notes).

    NOTE: on most CPUs, 16-bit types are many times slower than float32, and the caches are made only once: the encoders use float32
    there. T5 overflows in float16, so text encoders use bfloat16 with either 16-bit type.
    """
    wanted = options.precision.vae_dtype
    if device.type == "cpu":
        short = wanted in ("bf16", "fp16")
        note = f"The encoders compute in float32 on a CPU instead of vae_dtype={wanted}: {wanted} is many times slower there."
        return torch.float32, torch.float32, (note,) if short else ()
    text = torch.float32 if options.precision.mixed_precision == "no" else torch.bfloat16
    return None if wanted == "default" else _dtype(PRECISIONS[wanted]), text, ()


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out. PyTorch has an exception class for it on GPUs only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def out_of_memory_numbers(device: torch.device) -> str:
    """A sentence that says how full a GPU is; empty for other devices."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return f" {free / 1e9:.2f} of {total / 1e9:.2f} GB were free; the most that was in use is {peak / 1e9:.2f} GB."

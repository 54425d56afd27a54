"""Where a run computes, and in which number types."""

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
    """Resolved once a process; nothing else looks at the hardware or at the precision options."""

    device: torch.device
    weights: torch.dtype
    """Type in which the trained weights are stored and saved."""
    network: torch.dtype
    """Type of the network's own weights: ``weights`` where they are trained; frozen ones may be shorter."""
    compute: torch.dtype
    """Type of the arithmetic; where it differs from ``weights``, ``autocast`` converts."""
    base: torch.dtype | None
    """Type to which the base weights are rounded when they are loaded; None takes them as they are, also to quantise them."""
    vae: torch.dtype | None
    """Type in which the autoencoder computes; None takes the type of its weights."""
    text: torch.dtype
    """Type in which the text encoders compute."""
    notes: tuple[str, ...] = ()
    """What differs from the options, and why: sentences for a notification."""

    def autocast(self) -> AbstractContextManager[None]:
        """For forward passes of the trained network; does nothing where weights and arithmetic share a type."""
        if self.compute == self.weights:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def best_device() -> torch.device:
    """The first accelerator that this PyTorch can use, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_devices(options: TrainingOptions, device: torch.device | None = None) -> Devices:
    """``device``: where the process was told to compute (accelerate knows); None takes the best there is."""
    device = device or best_device()
    precision = options.precision
    weights = _dtype(trained_precision(options.optimizer.optimizer, precision.mixed_precision))
    loaded = precision.base_model_precision
    vae, text, notes = _encoder_types(options, device)
    return Devices(
        device=device,
        weights=weights,
        network=_network_type(options, weights),
        compute=_dtype(compute_precision(precision.mixed_precision)),
        base=_dtype(PRECISIONS[loaded]) if loaded in LOADED else None,
        vae=vae,
        text=text,
        notes=notes,
    )


def _network_type(options: TrainingOptions, weights: torch.dtype) -> torch.dtype:
    """Frozen weights are kept in the type of the arithmetic, unless ``base_model_default_dtype`` asks for float32."""
    precision = options.precision
    if options.model.model_type == "full":
        return weights
    return _dtype(frozen_precision(precision.mixed_precision, precision.base_model_default_dtype))


def _encoder_types(options: TrainingOptions, device: torch.device) -> tuple[torch.dtype | None, torch.dtype, tuple[str, ...]]:
    """(autoencoder, text encoders, notes).

    NOTE: short types are many times slower than float32 on most CPUs, and the caches are made once: there the encoders use float32.
    T5 overflows in float16, so text encoders use bfloat16 wherever the arithmetic is short.
    """
    wanted = options.precision.vae_dtype
    if device.type == "cpu":
        short = wanted in ("bf16", "fp16")
        note = f"The encoders compute in float32 on a CPU instead of vae_dtype={wanted}: {wanted} is many times slower there."
        return torch.float32, torch.float32, (note,) if short else ()
    text = torch.float32 if options.precision.mixed_precision == "no" else torch.bfloat16
    return None if wanted == "default" else _dtype(PRECISIONS[wanted]), text, ()

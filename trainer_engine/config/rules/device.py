"""Rules about the device of a run. Preflight asks them for the device it expects, the engine for the one it has."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, QUANTISED, compute_precision
from trainer_engine.contract.errors import Problem

WEIGHT_OPTIONS = ("base_model_precision", "text_encoder_1_precision", "text_encoder_2_precision")
GPU = "cuda"


def device_problems(options: TrainingOptions, device: str) -> Iterator[Problem]:
    """Yields an error for each option that a device of this type cannot serve. ``device``: a device type of torch, such as ``cpu``."""
    mixed_precision = options.precision.mixed_precision
    devices = compute_precision(mixed_precision).compute_devices
    if devices is not None and device not in devices:
        message = f"mixed_precision={mixed_precision} needs a GPU; this run computes on {device}."
        yield Problem.error("mixed_precision", "needs_gpu", message, got=mixed_precision, expected="no or bf16")
    chosen = {name: getattr(options.precision, name) for name in WEIGHT_OPTIONS}
    for name, precision in chosen.items():
        if precision in QUANTISED and device in PRECISIONS[precision].missing_on:
            others = [other for other in QUANTISED if device not in PRECISIONS[other].missing_on]
            message = f"A device of type {device} cannot hold {precision} weights."
            yield Problem.error(name, "lacked_by_device", message, got=precision, expected=f"one of {', '.join(others)}")
    optimizer = OPTIMIZERS[options.optimizer.optimizer]
    if optimizer.needs_gpu and device != GPU:
        message = f"optimizer={optimizer.name} needs a GPU; this run computes on {device}."
        yield Problem.error("optimizer", "needs_gpu", message, got=optimizer.name, expected="another optimizer")

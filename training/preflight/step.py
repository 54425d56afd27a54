"""What a training step keeps on its device."""

from __future__ import annotations

from dataclasses import replace

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.precisions import PRECISIONS, compute_precision
from trainer_engine.datasets.report import DatasetReport
from training.preflight.beside import bytes_beside, kept_with_beside
from training.preflight.on_device import EstimatedRun, OnDevice, relieved, spread
from training.preflight.weights import (
    frozen_network_bytes,
    gradient_bytes,
    numbers_in,
    state_bytes,
    trained_weights,
    weight_bytes,
    widened_numbers,
)


def step_memory(run: EstimatedRun, report: DatasetReport) -> OnDevice:
    """Returns what a training step keeps on the device. ``report`` gives the sizes of its batches."""
    options, spec = run.options, run.spec
    weights = trained_weights(options, spec, run.parameters, run.tensors)
    numbers, is_full = numbers_in(weights), options.model.model_type == "full"
    each = int(compute_precision(options.precision.mixed_precision).weight_bytes)
    kept = kept_with_beside(run, report)
    held = OnDevice(
        weights=numbers * weight_bytes(options),
        gradients=numbers * gradient_bytes(options),
        state=state_bytes(options, weights),
        average=numbers * average_bytes(options),
        frozen=(0 if is_full else frozen_network_bytes(options, spec, run.parameters, run.tensors))
        + bytes_beside(run)
        + each * run.assistant,
        activations=each * (kept.total + widened_numbers(options, run.tensors)),
    )
    own = kept.block_weights * gradient_bytes(options) if is_full else 0
    held = spread(held, run, report.effective.processes)
    held = replace(held, freed=0 if _keeps_gradients(options, report) else _freed(held, each * kept.block, own))
    return relieved(held, run)


def _keeps_gradients(options: TrainingOptions, report: DatasetReport) -> bool:
    """Whether gradients live during the forward pass: those of earlier micro-batches, or the buckets that ranks exchange."""
    return options.run.gradient_accumulation_steps > 1 or report.effective.processes > 1


def _freed(held: OnDevice, block: int, own: int) -> int:
    """Bytes of activations that are freed while the gradients are computed, so that the two never need room at once.

    ``block``: activations of the block that the backward pass reaches last. ``own``: its gradients, which are computed then.
    """
    return min(held.gradients, held.activations, max(0, held.activations - block + own))


def average_bytes(options: TrainingOptions) -> int:
    """Bytes that the average of the weights takes for one number; it is kept in float32."""
    return int(PRECISIONS["fp32"].weight_bytes) if options.run.use_ema else 0

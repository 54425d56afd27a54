"""What a training step keeps on its device, by what it is, and the options that keep some of it elsewhere.

An option that moves or frees memory is one function in ``RELIEFS``. It takes the bytes as they are without it and returns them as they are
with it; an option that only changes what a backward pass keeps belongs in ``activation_numbers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options import TrainingOptions
from training.preflight.streamed import streamed_share
from training.preflight.weights import Tensors, layer_count, trained_weights, weight_bytes

CAPTIONS, LATENTS = "captions", "latents"
"""What encoders make: of texts, and of images and clips."""


@dataclass(frozen=True, kw_only=True)
class EstimatedRun:
    """What is known of a run before it starts."""

    options: TrainingOptions
    spec: FamilySpec
    parameters: int
    """Weights of the trained components."""
    tensors: Tensors | None
    """Tensor -> shape of the trained components; None if it is not known."""
    parts: Mapping[str, Tensors] = field(default_factory=dict)
    """Subfolder of a pipeline -> tensor -> shape, of the frozen components that are known; empty for one that the base model lacks."""
    on_cpu: bool = False
    """Whether the run has no GPU: encoders then compute in float32."""
    first: frozenset[str] = frozenset()
    """What is encoded before the training: ``CAPTIONS``, ``LATENTS``."""
    meanwhile: frozenset[str] = frozenset()
    """What is encoded while training, so that its encoders stay on the device."""
    captions_at_once: int = 1
    """Captions that are encoded together before the training."""
    assistant: int = 0
    """Numbers in the file of the assistant adapter."""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Bytes at the largest moment of a training step. Everything but ``activations`` is counted from shapes."""

    weights: int = 0
    """Trained weights: the network, or the adapter on it."""
    gradients: int = 0
    state: int = 0
    """State of the optimizer."""
    average: int = 0
    """Average of the trained weights (``use_ema``)."""
    frozen: int = 0
    """Weights that are not trained: those under an adapter, with the scales of a quantised type, those beside a ControlNet, and those of
    an assistant adapter."""
    activations: int = 0
    """What the forward pass keeps for the backward pass."""
    freed: int = 0
    """Activations that are freed before as many bytes of gradients exist."""
    host: int = 0
    """Bytes that a relief moved to the memory of the host. They are no part of ``counted``."""

    @property
    def counted(self) -> int:
        return self.weights + self.gradients + self.state + self.average + self.frozen

    @property
    def total(self) -> int:
        return self.counted + self.activations - self.freed


Relief = Callable[[OnDevice, EstimatedRun], OnDevice]


def paged_state_leaves_the_device(held: OnDevice, run: EstimatedRun) -> OnDevice:
    """bitsandbytes' paged optimizers keep their state in memory that the driver moves to the host."""
    if not OPTIMIZERS[run.options.optimizer.optimizer].is_paged:
        return held
    return replace(held, state=0, host=held.host + held.state)


def average_leaves_the_device(held: OnDevice, run: EstimatedRun) -> OnDevice:
    return replace(held, average=0, host=held.host + held.average) if run.options.run.ema_on_host else held


def update_leaves_the_device(held: OnDevice, run: EstimatedRun) -> OnDevice:
    """The host then has copies of the trained weights and their gradients, too."""
    if run.options.optimizer.optimizer_cpu_offload_method == "none":
        return held
    return replace(held, state=0, host=held.host + held.state + held.weights + held.gradients)


def gradients_exist_one_at_a_time(held: OnDevice, run: EstimatedRun) -> OnDevice:
    optimizer = run.options.optimizer
    if not (optimizer.optimizer_release_gradients or optimizer.optimizer_offload_gradients):
        return held
    shapes = trained_weights(run.options, run.spec, run.parameters, run.tensors)
    largest = max(map(math.prod, shapes), default=0) * weight_bytes(run.options)
    return replace(held, gradients=min(held.gradients, largest))


def frozen_weights_wait_on_the_host(held: OnDevice, run: EstimatedRun) -> OnDevice:
    """What is copied at once has room on the device, twice where the next piece is copied while one is in use."""
    streamed = streamed_share(run.options.memory, run.parameters, run.tensors)
    if run.options.model.model_type == "full" or not streamed.share:
        return held
    pieces = 2 if run.options.memory.prefetches_network else 1
    moved = held.frozen * streamed.share
    stays = held.frozen - moved + min(moved, pieces * held.frozen * streamed.largest)
    return replace(held, frozen=int(stays), host=held.host + int(moved))


def spread(held: OnDevice, run: EstimatedRun, processes: int) -> OnDevice:
    """Returns what a process keeps if weights are spread over so many (FSDP), with the complete weights of what is gathered at once.

    That is two blocks, or the network. An adapter stays complete, and the weights below it are spread.
    """
    chosen = run.options.distributed
    if not chosen.fsdp_enable:
        return held
    is_full = run.options.model.model_type == "full"
    base, others = ("weights", ("gradients", "state", "average")) if is_full else ("frozen", ())
    of_base = getattr(held, base)
    frees = chosen.fsdp_reshard_after_forward and bool(chosen.wrapped_blocks(run.spec.repeated_blocks))
    gathered = int(of_base * min(1, 2 / layer_count(run.parameters))) if frees else of_base
    parts = {name: getattr(held, name) // processes for name in (base, *others)}
    if chosen.keeps_parts_on_host:
        return replace(held, **{**dict.fromkeys(parts, 0), base: gathered}, host=held.host + sum(parts.values()))
    return replace(held, **{**parts, base: parts[base] + gathered})


RELIEFS: tuple[Relief, ...] = (
    paged_state_leaves_the_device,
    average_leaves_the_device,
    update_leaves_the_device,
    gradients_exist_one_at_a_time,
    frozen_weights_wait_on_the_host,
)
"""Applied in this order, so that each sees what the ones before it left on the device."""


def relieved(held: OnDevice, run: EstimatedRun) -> OnDevice:
    """Returns what is left on the device with every option of ``RELIEFS``."""
    for relief in RELIEFS:
        held = relief(held, run)
    return replace(held, freed=min(held.freed, held.gradients))

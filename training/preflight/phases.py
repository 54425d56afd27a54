"""The memory of a run in each of its phases. Each phase frees what the next one does not need, so the largest is the peak of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.precisions import compute_precision
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.report import DatasetReport
from training.engine.command_line import visible_gpus
from training.preflight.activations import modelled_width, seen_pixels, token_px
from training.preflight.autoencoder import autoencoder_bytes, decoding_bytes, encoding_bytes
from training.preflight.estimates import HELD_ON_CPU, Memory, gpu_memory, size
from training.preflight.on_device import CAPTIONS, LATENTS, EstimatedRun, OnDevice
from training.preflight.step import step_memory
from training.preflight.text_encoders import text_encoder_memory
from training.preflight.tokens import BLOCK, prompt_tokens
from training.preflight.unet_activations import is_unet
from training.preflight.weights import frozen_network_bytes, split_layers

TRAINING, VALIDATION = "training", "validation"
LEAN = ", ".join(row.name for row in OPTIMIZERS.values() if row.moments == 0 or row.is_factored)
SAMPLED = 12.7
"""Numbers that live at the largest moment of a block, as a multiple of its tokens and its width; times the family's share."""
UNET_SAMPLED = 25
"""The same of a UNet, as a multiple of its positions at full resolution and of its first width; its skip connections are among them."""
HINTS: Mapping[str, tuple[str, str]] = {
    CAPTIONS: ("text_encoder_1_precision", "quantise the text encoders, or set group_offload_text_encoder"),
    LATENTS: ("vae_batch_size", "set vae_enable_tiling, or lower the resolution"),
    TRAINING: ("train_batch_size", f"lower train_batch_size or the resolution, or choose an optimizer that keeps little state: {LEAN}"),
    VALIDATION: ("validation_resolution", "lower validation_resolution, set vae_enable_tiling, or set validation_disable"),
}
"""Phase -> the option that a run which does not fit is refused for, and what helps."""
TITLES: Mapping[str, str] = {
    CAPTIONS: "Encoding captions",
    LATENTS: "Encoding images",
    TRAINING: "Training",
    VALIDATION: "Validation",
}


@dataclass(frozen=True)
class Phase:
    """What a run keeps on its device in one of its phases."""

    name: str
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.memory.numbers}


def phases(run: EstimatedRun, report: DatasetReport) -> Iterator[Phase]:
    """The phases in the order in which a run begins them. ``report`` gives the sizes of its images."""
    held = step_memory(run, report)
    texts, kept = text_encoder_memory(run, run.captions_at_once), _kept_encoders(run, report)
    if CAPTIONS in run.first:
        yield _phase(run, CAPTIONS, texts.weights + run.on_cpu * texts.host, texts.reading)
    if LATENTS in run.first:
        autoencoder = autoencoder_bytes(run)
        at_once, alone = (encoding_bytes(run, report, together=together) for together in (True, False))
        yield _phase(run, LATENTS, autoencoder, at_once, alone)
    stays = held.counted + run.on_cpu * held.host + kept.counted  # what leaves the device of a CPU stays in the same memory
    yield _phase(run, TRAINING, stays, held.activations - held.freed + kept.activations)
    if not run.options.validation.validation_disable:
        yield _validation(run, held, kept)


def peak_of(found: Sequence[Phase]) -> Phase:
    """The phase that needs the most."""
    return max(found, key=lambda phase: phase.memory.middle)


def memory_answer(found: Sequence[Phase]) -> dict[str, Any]:
    """The numbers for the API: those of the peak, and of each phase."""
    peak = peak_of(found)
    parts = ", ".join(f"{phase.name} {size(phase.memory.middle)}" for phase in found)
    low, high = size(peak.memory.low), size(peak.memory.high)
    text = f"about {size(peak.memory.middle)} per device at its peak, the {peak.name} ({low} to {high}); by phase: {parts}"
    return {**peak.memory.numbers, "decides": peak.name, "phases": [phase.as_dict() for phase in found], "text": text}


def memory_problems(found: Sequence[Phase], processes: int, variables: Mapping[str, str]) -> Iterator[Problem]:
    """Refuses phases that cannot fit even if their estimate is too high by its whole error. Training goes on after a failed validation."""
    on_gpu = visible_gpus(variables)
    available = gpu_memory() if on_gpu else psutil.virtual_memory().total
    for phase in found:
        needed = phase.memory.low * (1 if on_gpu else processes)
        if available is None or needed <= available:
            continue
        make, (option, hint) = Problem.warning if phase.name == VALIDATION else Problem.error, HINTS[phase.name]
        message = f"{TITLES[phase.name]} needs at least {size(needed)} of memory, and this machine has {size(available)}."
        yield make(option, "memory_too_small", message, hint=hint)


def _phase(run: EstimatedRun, name: str, counted: int, modelled: int, least: int | None = None) -> Phase:
    return Phase(name, Memory(counted, modelled, HELD_ON_CPU if run.on_cpu else 1.0, least))


def _kept_encoders(run: EstimatedRun, report: DatasetReport) -> OnDevice:
    """What encoders keep that encode while training, one caption or image at a time."""
    weights, lives = 0, 0
    if CAPTIONS in run.meanwhile:
        texts = text_encoder_memory(run, 1)
        weights, lives = weights + texts.weights + run.on_cpu * texts.host, max(lives, texts.reading)
    if LATENTS in run.meanwhile:
        weights, lives = weights + autoencoder_bytes(run), max(lives, encoding_bytes(run, report, together=False))
    return OnDevice(frozen=weights, activations=lives)


def _validation(run: EstimatedRun, held: OnDevice, kept: OnDevice) -> Phase:
    """Weights and state stay; there are no gradients. The average takes the place of the weights, which are copied meanwhile.

    A second network (``second_network_option``) is there as well, frozen.
    """
    copies = held.weights if run.options.run.use_ema and run.options.validation.ema_validation != "none" else 0
    autoencoder = 0 if LATENTS in run.meanwhile else autoencoder_bytes(run)
    counted = replace(held, gradients=0).counted + run.on_cpu * held.host + copies + autoencoder + kept.counted
    if run.spec.second_network_option and run.options.as_values()[run.spec.second_network_option]:
        counted += frozen_network_bytes(run.options, run.spec, run.parameters, run.tensors)
    each = int(compute_precision(run.options.precision.mixed_precision).weight_bytes)
    return _phase(run, VALIDATION, counted, max(each * _sampling_numbers(run), decoding_bytes(run)))


def _sampling_numbers(run: EstimatedRun) -> int:
    """What lives in a pass without gradients, for the largest image or clip of a validation; both prompts are in one batch."""
    validation, spec = run.options.validation, run.spec.beside or run.spec
    pixels = max((seen_pixels(size, spec) for size in validation.resolutions), default=0) * spec.latent_frames(validation.frames)
    cells = pixels // spec.latents.scale_factor_px**2
    samples = 2 if validation.validation_guidance > 1 else 1
    layers, _ = split_layers(run.tensors or {}, run.spec)
    if is_unet(layers):
        return samples * cells * UNET_SAMPLED * layers.get("conv_in", (0,))[0]
    prompt = prompt_tokens(run.options, spec) * spec.prompts.joins_sequence
    blocks = (min(shape[:2]) for name, shape in layers.items() if BLOCK.search(f"{name}."))
    width = next(blocks, None) or modelled_width(run.parameters)
    share = SAMPLED * spec.activation_share_of(run.options.model.model_flavour)
    return int(samples * (pixels // token_px(spec) ** 2 + prompt) * width * share)

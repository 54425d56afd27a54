"""Estimates the frozen network beside a ControlNet: its weights, and what it keeps for the gradients of the ControlNet."""

from __future__ import annotations

import math
import re

from trainer_engine.config.options import TrainingOptions
from trainer_engine.datasets.report import DatasetReport
from training.preflight.activations import Kept, activation_numbers
from training.preflight.on_device import EstimatedRun
from training.preflight.weights import Tensors, frozen_network_bytes

UNET_ENCODER = re.compile(r"^(?:conv_in|time_embedding|add_embedding|class_embedding|down_blocks|mid_block)\.")
"""The part of a UNet that a new ControlNet is a copy of. What it adds reaches the other part alone."""

KEPT_WITHOUT_ADAPTER = 0.6
"""What a transformer keeps without an adapter on it, as a share of what it keeps with one."""


def bytes_beside(run: EstimatedRun) -> int:
    """Bytes of the frozen network; 0 in a run without a ControlNet."""
    beside = run.spec.beside
    if beside is None:
        return 0
    tensors = _tensors(run)
    numbers = sum(map(math.prod, tensors.values())) if tensors else _published(run)
    return frozen_network_bytes(run.options, beside, numbers, tensors)


def kept_with_beside(run: EstimatedRun, report: DatasetReport) -> Kept:
    """What a step keeps, of the trained network and of the frozen one beside it."""
    options, spec, beside = run.options, run.spec, run.spec.beside
    if beside is None:
        return activation_numbers(options, run.parameters, report, spec, run.tensors)
    network = _tensors(run) or {}
    copied = {name: shape for name, shape in network.items() if UNET_ENCODER.match(name)} if _is_unet(network) else {}
    own = activation_numbers(options, run.parameters, report, spec, run.tensors or copied or None)
    plain, published = _frozen(options), _published(run)
    whole = activation_numbers(plain, published, report, beside, network or None)
    spared = activation_numbers(plain, published, report, beside, copied).total if copied else 0
    share = 1.0 if copied else KEPT_WITHOUT_ADAPTER
    passed = share * (whole.total - spared)
    if options.model.gradient_checkpointing and not copied:
        # One block of a transformer is recomputed at a time, and nothing of the frozen network is left when it is one of the ControlNet.
        return Kept(int(own.total + max(0, passed - own.block)), own.block, own.block_weights)
    return Kept(int(own.total + passed), own.block, own.block_weights)


def _tensors(run: EstimatedRun) -> Tensors | None:
    """Those of the frozen network; None if they are not known."""
    folders = [run.spec.components[name].folder for name in run.spec.networks_beside]
    return next((found for folder in folders if (found := run.parts.get(folder))), None)


def _published(run: EstimatedRun) -> int:
    beside = run.spec.beside or run.spec
    return beside.parameters.get(run.options.model.model_flavour or beside.default_flavour, 0)


def _is_unet(network: Tensors) -> bool:
    return any(name.startswith("down_blocks.") for name in network)


def _frozen(options: TrainingOptions) -> TrainingOptions:
    """The same options for a network whose weights are not trained."""
    model, adapter = options.model.model_copy(update={"model_type": "lora"}), options.adapter.model_copy(update={"lora_type": "standard"})
    return options.model_copy(update={"model": model, "adapter": adapter})

"""Keeps the state of training through work that happens between two steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from trainer_engine.runtime.sharding import devices_of_sharded, free_gathered


@contextmanager
def preserve_training_state(network: nn.Module) -> Iterator[None]:
    """Restores, when the block ends, what the block may change: the training mode of every module, ``requires_grad`` of every parameter,
    and the random states of Python, numpy and torch. Gradients are off in the block. Sharded weights that it gathered are freed."""
    modes = [(module, module.training) for module in network.modules()]
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # Only the network's own GPUs: reading the random state of another GPU allocates memory on it.
    devices = {parameter.device for parameter in network.parameters()} | devices_of_sharded(network)
    gpus = sorted(device.index for device in devices if device.type == "cuda")
    try:
        with torch.random.fork_rng(gpus), torch.no_grad():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        free_gathered(network)

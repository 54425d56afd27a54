"""Training goes on after a validation as if there had been none."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserve_training_state(network: nn.Module) -> Iterator[None]:
    """Put back when the block ends, however it ends: training mode of every module, what asks for gradients, and the random states of
    Python, numpy and torch. Nothing in the block is differentiated."""
    modes = [(module, module.training) for module in network.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    python, numpy = random.getstate(), np.random.get_state()
    # Only the network's own GPU: asking the others for their state would take memory on each.
    gpus = sorted({parameter.device.index for parameter in network.parameters() if parameter.device.type == "cuda"})
    try:
        with torch.random.fork_rng(gpus), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training
        for parameter, learns in learning:
            parameter.requires_grad_(learns)

"""How gradients become new weights: on the device, on the host, or each during the backward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer_engine.config.options.optimizer import OptimizerOptions
from trainer_engine.contract.errors import NonFiniteLoss
from trainer_engine.memory.transfers import Transfers, transfers_of
from trainer_engine.optim.gradient_sums import Float32Sums
from trainer_engine.optim.optimizers import build_optimizer, set_learning_rates

Groups = Sequence[Sequence[nn.Parameter]]
"""Trained parameters: those of the network, and those of trained text encoders."""


class Update:
    """Clips the gradients of a step and steps the optimizer."""

    def __init__(self, options: OptimizerOptions, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        """``parameters``: those that have the gradients at the end of the backward pass."""
        self.options = options
        self.optimizer = optimizer
        self.parameters = parameters
        self.sums: Float32Sums | None = None
        """Adds the gradients of micro-batches in float32; None if they are added in the type of the weights."""

    def begin(self, learning_rates: Sequence[float]) -> None:
        """Called before the first backward pass of a step. ``learning_rates``: one for each parameter group."""

    def norm(self) -> Tensor:
        """L2 norm of all gradients of the step together, on their device."""
        if self.sums is not None:
            self.sums.finish()
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def apply(self, norm: Tensor, learning_rates: Sequence[float]) -> None:
        """Updates the weights. ``norm``: what ``norm`` returned."""
        self._clip(norm)
        self._step(learning_rates)

    def _clip(self, norm: Tensor) -> None:
        limit = self.options.max_grad_norm
        if limit and self.options.grad_clip_method == "norm":
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        elif limit:
            torch.nn.utils.clip_grad_value_(self.parameters, limit)

    def _step(self, learning_rates: Sequence[float]) -> None:
        set_learning_rates(self.optimizer, learning_rates)
        self.optimizer.step()

    def skip(self, loss: float, norm: float) -> None:
        """Called in place of ``apply`` if the loss or a gradient is not finite. The weights stay as they are."""

    def clear(self) -> None:
        """Frees the gradients."""
        self.optimizer.zero_grad(set_to_none=True)


class HostUpdate(Update):
    """Updates copies of the trained weights in the memory of the host, where the state of the optimizer is, and copies the result back.

    The state is that of a run without it, so that a checkpoint continues either way.
    """

    def __init__(self, options: OptimizerOptions, groups: Groups, transfers: Transfers) -> None:
        self._transfers = transfers
        self._trained = [parameter for group in groups for parameter in group]
        self._copies = {parameter: nn.Parameter(self._on_host(parameter.detach())) for parameter in self._trained}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        """Memory of the gradients on the host, used again in every step."""
        transfers.finish()
        optimizer = build_optimizer(options, *[[self._copies[parameter] for parameter in group] for group in groups])
        super().__init__(options, optimizer, list(self._copies.values()) if options.optimizer_offload_gradients else self._trained)
        if options.optimizer_offload_gradients:
            for parameter in self._trained:
                parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def norm(self) -> Tensor:
        self._transfers.finish()
        return super().norm()

    def apply(self, norm: Tensor, learning_rates: Sequence[float]) -> None:
        self._clip(norm)
        if not self.options.optimizer_offload_gradients:
            for parameter in self._trained:
                self._take_gradient(parameter)
            self._transfers.finish()
        self._step(learning_rates)
        with torch.no_grad():
            for parameter, copy in self._copies.items():
                self._transfers.copy(copy.detach(), parameter.detach())()

    def clear(self) -> None:
        for parameter, copy in self._copies.items():
            parameter.grad = copy.grad = None

    def _on_host(self, tensor: Tensor, memory: Tensor | None = None, *, pinned: bool = True) -> Tensor:
        """A copy in the memory of the host. It is complete after ``finish``."""
        if memory is None:
            memory = self._transfers.host_bytes(tensor.nbytes, pinned=pinned).view(tensor.dtype).view(tensor.shape)
        self._transfers.copy(tensor.contiguous(), memory)
        return memory

    def _take_gradient(self, parameter: Tensor) -> None:
        """Moves a complete gradient. Those of further micro-batches are added on the host."""
        assert isinstance(parameter, nn.Parameter)
        gradient, copy = parameter.grad, self._copies[parameter]
        parameter.grad = None
        if gradient is None:
            return
        if copy.grad is None:
            copy.grad = self._gradients[parameter] = self._on_host(gradient, self._gradients.get(parameter))
            return
        arriving = self._on_host(gradient, pinned=False)
        self._transfers.finish()
        copy.grad.add_(arriving)


class ReleasedUpdate(Update):
    """Updates each weight as soon as its gradient is complete, and frees the gradient: at no time do all gradients exist.

    The norm of all gradients is only known afterwards, so that values can be clipped and norms cannot, and a gradient that is not finite
    has been used by then: the run ends.
    """

    def __init__(self, options: OptimizerOptions, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(options, optimizer, parameters)
        self._squares: list[Tensor] = []
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._release)

    def begin(self, learning_rates: Sequence[float]) -> None:
        set_learning_rates(self.optimizer, learning_rates)

    def norm(self) -> Tensor:
        squares, self._squares = torch.stack(self._squares), []
        return squares.sum().sqrt()

    def apply(self, norm: Tensor, learning_rates: Sequence[float]) -> None:
        """Nothing: the weights have moved."""

    def skip(self, loss: float, norm: float) -> None:
        what = "loss" if not math.isfinite(loss) else "gradient norm"
        message = f"The {what} of a step was not finite, and optimizer_release_gradients=true has applied its gradients already."
        raise NonFiniteLoss(message, hint="lower learning_rate, or use optimizer_release_gradients=false, which skips such a step")

    def _release(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._squares.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square())
        if self.options.max_grad_norm:
            torch.nn.utils.clip_grad_value_([parameter], self.options.max_grad_norm)
        optimizer: Any = self.optimizer  # one of optimi, whose steps may be of one weight
        optimizer.step(param=parameter)
        parameter.grad = None


def make_update(options: OptimizerOptions, groups: Groups, device: torch.device, *, micro_batches: int = 1) -> Update:
    """The update that the options name, over groups of trained parameters on their device. Raises InvalidOptions."""
    parameters = [parameter for group in groups for parameter in group]
    update: Update
    if options.optimizer_cpu_offload_method != "none":
        update = HostUpdate(options, groups, transfers_of(device))
    else:
        optimizer = build_optimizer(options, *groups)
        update = (ReleasedUpdate if options.optimizer_release_gradients else Update)(options, optimizer, parameters)
    if options.gradient_precision == "fp32" and micro_batches > 1:
        update.sums = Float32Sums(parameters)
    return update

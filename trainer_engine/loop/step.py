"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.families.base import Family
from trainer_engine.loop.state import StepOutcome
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.randomness import seed_network
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.updates import Update
from trainer_engine.runtime.devices import Devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.seeds import derived_seed

SMALLEST_SCALE = 1.0
"""Below this loss scale float16 overflows for good."""


@dataclass(kw_only=True)
class Step:
    """Runs forward and backward on each micro-batch, reduces gradients across ranks, clips them and steps the optimizer."""

    family: Family
    objective: Objective
    devices: Devices
    processes: Processes
    network: nn.Module
    """The network as it is called: compiled, wrapped for data parallelism, or bare."""
    update: Update
    schedules: Sequence[Schedule]
    """One for each parameter group of the optimizer: of the network, and of trained text encoders."""
    seed: int
    scaler: torch.amp.GradScaler

    def take(self, batches: StepBatches) -> StepOutcome:
        """Take one step. If the loss or a gradient is not finite, weights and optimizer state stay as they are."""
        learning_rates = [schedule.at(batches.step + 1) for schedule in self.schedules]
        self.update.begin(learning_rates)
        losses = torch.stack([self._pass(batches, number) for number in range(len(batches.passes))])
        losses = self.processes.sum(losses) / self.processes.count
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.update.optimizer)
        norm = self.update.norm()
        # NOTE: the only read from the device in a step. It has to stand before the optimizer, because what is not finite must not
        # reach the weights; the micro-batches of a step are queued without waiting.
        *pass_losses, grad_norm = torch.cat([losses, norm.reshape(1).to(losses)]).tolist()
        loss = sum(pass_losses) / len(pass_losses)
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self.update.apply(norm, learning_rates)
        else:
            self.update.skip(loss, grad_norm)
        overflowed = self._update_scale(finite, math.isfinite(loss))
        self.update.clear()
        return StepOutcome(
            loss,
            tuple(pass_losses),
            grad_norm,
            learning_rates[0],
            batches.samples,
            taken=finite,
            overflowed=overflowed,
            text_encoder_rate=learning_rates[1] if len(learning_rates) > 1 else None,
        )

    def _pass(self, batches: StepBatches, number: int) -> Tensor:
        """Forward and backward over one batch; the mean loss of its samples, float32 on the device."""
        is_last = number == len(batches.passes) - 1
        # Random numbers inside the network, such as dropout, follow from the step too, so that a resumed run repeats them.
        seed_network(derived_seed(self.seed, batches.step, number, self.processes.rank, "network"), self.devices.device)
        with nullcontext() if is_last else self.processes.without_exchange(self.network):
            loss = self.loss(batches.passes[number].to(self.devices.device))
            self.scaler.scale(loss / len(batches.passes)).backward()
        return loss.detach()

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the samples of a batch, float32."""
        noise = batch.noise if batch.input_noise is None else batch.input_noise
        noisy = self.objective.add_noise(batch.latents, noise, batch.timesteps)
        with self.devices.autocast():
            prediction = self.family.predict(self.network, batch.inputs(noisy))
        target = self.objective.target(batch.latents, batch.noise, batch.timesteps)
        return self.objective.loss(prediction, target, batch.timesteps, batch.loss_mask, batch.loss_weights).mean()

    def _update_scale(self, finite: bool, loss_is_finite: bool) -> bool:
        """Update the loss scale of float16; True if this step only found it too large."""
        if not self.scaler.is_enabled():
            return False
        self.scaler.update()
        return not finite and loss_is_finite and self.scaler.get_scale() >= SMALLEST_SCALE

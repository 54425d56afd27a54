"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer_engine.batches.batch import Batch
from trainer_engine.batches.loader import StepBatches
from trainer_engine.families.base import Family
from trainer_engine.families.common.token_routing import TokenRouter
from trainer_engine.families.inputs import StepInputs
from trainer_engine.loop.state import StepOutcome
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.randomness import seed_network
from trainer_engine.optim.lr_schedules import Schedule
from trainer_engine.optim.updates import Update
from trainer_engine.runtime.devices import Devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.seeds import derived_seed
from trainer_engine.runtime.sharding import whole

SMALLEST_SCALE = 1.0
"""Below this loss scale float16 overflows for good."""


def micro_batch_shares(batches: StepBatches) -> list[float]:
    """How many of each micro-batch would make up the step, by which its mean loss is divided: every sample of a step counts the same."""
    sizes = [len(batch.files) for batch in batches.passes]
    return [sum(sizes) / size for size in sizes]


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
    parent: Callable[[], AbstractContextManager[nn.Module]] | None = None
    """Gives the frozen base without its adapter, for batches that are trained toward it; None in a full fine-tune."""
    at_strength: Callable[[float], AbstractContextManager[None]] = lambda strength: nullcontext()
    """Scales the change of the adapter inside a block, for batches that are a side of a slider."""
    router: TokenRouter | None = None
    """Lets tokens skip blocks; None if all of them pass through all."""

    def take(self, batches: StepBatches) -> StepOutcome:
        """Take one step. If the loss or a gradient is not finite, weights and optimizer state stay as they are."""
        learning_rates = [schedule.at(batches.step + 1) for schedule in self.schedules]
        # An exchange of tokens gives up after minutes, and the first process may have been busy for longer between two steps.
        self.processes.group.meet()
        self.update.begin(learning_rates)
        losses = torch.stack([self._pass(batches, number) for number in range(len(batches.passes))])
        losses = self.processes.sum(losses) / self.processes.count
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.update.optimizer)
        norm = self.update.norm()
        # NOTE: the only read from the device in a step. It has to stand before the optimizer, because what is not finite must not
        # reach the weights; the micro-batches of a step are queued without waiting.
        *pass_losses, grad_norm = torch.cat([losses, whole(norm).reshape(1).to(losses)]).tolist()
        loss = sum(loss / share for loss, share in zip(pass_losses, micro_batch_shares(batches), strict=True))
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
        seed_network(derived_seed(self.seed, batches.step, number, self.processes.group.index, "network"), self.devices.device)
        skipping = self._routing(batches, number)
        strength = batches.passes[number].adapter_strength
        # Checkpointed blocks compute again in the backward pass, which therefore has the same strength.
        scaled = nullcontext() if strength == 1 else self.at_strength(strength)
        with nullcontext() if is_last else self.processes.without_exchange(self.network), skipping, scaled:
            loss = self.loss(batches.passes[number].to(self.devices.device))
            # Gradients are averaged over all processes; those of a group are parts of one, and have to be added instead.
            share = micro_batch_shares(batches)[number] / self.processes.group.size
            self.scaler.scale(loss / share).backward()
        return loss.detach()

    def _routing(self, batches: StepBatches, number: int) -> AbstractContextManager[None]:
        """Tokens skip blocks inside it. Which ones follows from the step: a resumed run repeats them."""
        if self.router is None:
            return nullcontext()
        batch, seed = batches.passes[number], derived_seed(self.seed, batches.step, number, self.processes.group.index, "routes")
        generator, tokens = torch.Generator().manual_seed(seed), self.family.token_count(batch.latents.shape[1:])
        return self.router.routing(generator, tokens, self.devices.device, batch.loss_mask)

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the samples of a batch, with what the family adds to it; float32."""
        noise = batch.noise if batch.input_noise is None else batch.input_noise
        inputs = batch.inputs(self.objective.add_noise(batch.latents, noise, batch.timesteps))
        if batch.toward_parent and self.parent is not None:
            target = self._parent_prediction(self.parent, inputs)
        else:
            target = self.objective.target(batch.latents, batch.noise, batch.timesteps)
        with self.devices.autocast():
            prediction = self.family.predict(self.network, inputs)
        loss = self.objective.loss(prediction, target, batch.timesteps, batch.loss_mask, batch.loss_weights).mean()
        penalty = self.family.penalty()
        return loss if penalty is None else loss + penalty.float()

    def _parent_prediction(self, parent: Callable[[], AbstractContextManager[nn.Module]], inputs: StepInputs) -> Tensor:
        """The prediction of the frozen base, float32 without a gradient.

        It comes before the prediction that is trained, whose activations are not in memory yet. It has an autocast of its own, since a
        weight that one converts without a gradient would be reused with a gradient.
        """
        with parent() as network, self.devices.autocast(), self.router.paused() if self.router else nullcontext():
            return self.family.predict(network, inputs).float()

    def _update_scale(self, finite: bool, loss_is_finite: bool) -> bool:
        """Update the loss scale of float16; True if this step only found it too large."""
        if not self.scaler.is_enabled():
            return False
        self.scaler.update()
        return not finite and loss_is_finite and self.scaler.get_scale() >= SMALLEST_SCALE

"""The loss of a network on held-out images, by numbers that depend on the images alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer_engine.batches.batch import Batch, BatchBuilder, captions_of, reference_choices
from trainer_engine.batches.sampler import Item
from trainer_engine.families.base import Family
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.losses import sample_means
from trainer_engine.objectives.randomness import sample_noise, seed_network
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.seeds import derived_seed

QUARTERS = 4
SEED = 0
"""Not the run's: runs with different seeds are to be compared."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Mean squared error between prediction and target of each image at each timestep, over the masked part if it has a mask.

    One image and one timestep at a time: the numbers do not depend on any batch size, nor on how many processes share the work.
    """

    family: Family
    objective: Objective
    processes: Processes
    network: nn.Module
    """The bare one, in evaluation mode and with the weights that are meant."""
    builder: BatchBuilder
    images: Sequence[Item]
    points: int
    """Timesteps of each image."""
    combine_references: bool = True
    """Whether an image is seen with its references of all conditioning sets, or with those of one, in turn over its timesteps."""

    def local_losses(self, on_image: Callable[[int, int], None], should_stop: Callable[[], bool]) -> Tensor | None:
        """(images, points) float32 on the device, zero for images that other processes report; None where it was stopped.

        Nothing waits for the device. Raises what reading a latent or the device's memory does. Changes the global random state.
        """
        losses = torch.zeros(len(self.images), self.points, device=self.family.devices.device)
        group = self.processes.together
        mine, stopped = range(group.index, len(self.images), group.count), group.agreed(should_stop)
        with torch.no_grad():
            for done, index in enumerate(mine):
                for point, batch in enumerate(self._batches(self.images[index])):
                    if stopped():
                        return None
                    losses[index, point] = self._loss(batch, self.images[index], point)
                on_image(done + 1, len(mine))
        return losses if group.is_first else losses.zero_()

    def _batches(self, item: Item) -> Iterator[Batch]:
        """One batch of one image for each timestep; its noise is made when the batch is asked for."""
        choices = reference_choices(item.sample, combined=self.combine_references)
        samples = [self.builder.build([item], [captions_of(item.sample, chosen)[0]], reference_sets=chosen) for chosen in choices]
        timesteps = self.objective.spread_timesteps(self.points)
        for point in range(self.points):
            sample = samples[point % len(samples)]
            noise = evaluation_noise(item.sample.name, point, sample.latents.shape[1:])
            yield sample.with_noise(noise, timesteps[point : point + 1])

    def _loss(self, batch: Batch, item: Item, point: int) -> Tensor:
        device = self.family.devices.device
        # Random numbers inside the network, such as dropout, are the same each time, too.
        seed_network(_seed(item.sample.name, point, "network"), device)
        batch = (batch.pinned() if device.type == "cuda" else batch).to(device)
        noisy = self.objective.add_noise(batch.latents, batch.noise, batch.timesteps)
        with self.family.devices.autocast():
            prediction = self.family.predict(self.network, batch.inputs(noisy))
        target = self.objective.target(batch.latents, batch.noise, batch.timesteps)
        return sample_means((prediction.float() - target.float()).square(), batch.loss_mask).mean()


def _seed(name: str, point: int, purpose: str) -> int:
    return derived_seed(SEED, os.fsencode(name).hex(), point, purpose)


def evaluation_noise(name: str, point: int, shape: Sequence[int]) -> Tensor:
    """(1, *shape) standard normal: of the image's name below its folder and the number of the timestep, and of nothing else."""
    return sample_noise([torch.Generator().manual_seed(_seed(name, point, "noise"))], shape)


def means(losses: Tensor, images: Sequence[Item], *, pooled: bool, label: str = "") -> dict[str, float | None]:
    """(images, points) -> ``eval_loss/<dataset>`` and its quarters; ``eval_loss/all`` where ``pooled``. ``label``: ``_ema``."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(images):
        groups.setdefault("all" if pooled else item.source, []).append(index)
    found: dict[str, float | None] = {}
    for name, members in groups.items():
        key = f"eval_loss{label}/{name}"
        found[key] = mean(losses[members])
        found.update({f"{key}/q{number + 1}": mean(losses[members][:, points]) for number, points in _quarters(losses.shape[1]).items()})
    return found


def _quarters(points: int) -> Mapping[int, list[int]]:
    """Quarter of the schedule, from data to noise -> the timesteps in it; of few timesteps some quarters have none."""
    found: dict[int, list[int]] = {}
    for point in range(points):
        found.setdefault(QUARTERS * (2 * point + 1) // (2 * points), []).append(point)
    return found


def mean(losses: Tensor) -> float | None:
    """None where it is not finite."""
    value = float(losses.double().mean())
    return value if math.isfinite(value) else None

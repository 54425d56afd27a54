"""From the samples of a global batch to the batch of one process, with every random number that training needs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer_engine.batches.batch import Batch, BatchBuilder, captions_of, reference_choices
from trainer_engine.batches.sampler import GlobalBatch, Item
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.randomness import channel_offsets, sample_generators, sample_noise
from trainer_engine.runtime.seeds import derived_seed


@dataclass(frozen=True)
class Share:
    """Which part of each global batch a process takes."""

    rank: int
    processes: int

    def of(self, batch: GlobalBatch) -> range:
        """Indices of this process's samples."""
        size = len(batch) // self.processes
        return range(self.rank * size, (self.rank + 1) * size)


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Builds the batches of training.

    Each random number follows from (seed, step, index of the sample over all micro-batches and processes of the step), so that it does
    not depend on which process takes the sample.
    """

    builder: BatchBuilder
    objective: Objective
    seed: int
    caption_dropout: float
    """Probability of the empty prompt."""
    share: Share
    noise: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    """Options of the noise: offsets and perturbation."""
    combine_references: bool = True
    """Whether samples come with their references of all conditioning sets, or with those of one set that is chosen for each batch."""
    mask_probability: float = 1.0
    """Probability that the loss of a sample is weighted by its mask."""
    parent_sets: frozenset[str] = frozenset()
    """Ids of the datasets on which an adapter is trained toward the prediction of the network without it."""

    adapter_strengths: Mapping[str, float] = field(default_factory=dict)
    """Id of a dataset that is a side of a slider -> strength of the adapter while it learns the set."""
    timestep_offsets: Mapping[str, float] = field(default_factory=dict)
    """Id of a dataset -> what its timesteps are moved by; 0 for those that are not here."""

    def collate(self, step: int, number: int, batch: GlobalBatch, before: int) -> Batch:
        """This process's part of micro-batch ``number`` of optimizer step ``step``, both from 0.

        ``before``: samples of the step's earlier micro-batches, over all processes.
        """
        mine = self.share.of(batch)
        indices = [before + place for place in mine]
        items = [batch[place] for place in mine]
        chosen = self._reference_sets(step, number, items)
        samples = self.builder.build(
            items,
            [self.caption(step, index, item, chosen) for index, item in zip(indices, items, strict=True)],
            reference_sets=chosen,
            generators=sample_generators(self.seed, step, indices, "condition"),
        )
        if samples.loss_mask is not None:
            samples = replace(samples, loss_mask=self._thinned(samples.loss_mask, step, indices))
        shape = samples.latents.shape[1:]
        noise = self._noise(step, indices, shape)
        return samples.with_noise(
            noise=noise,
            timesteps=self._timesteps(step, indices, self.builder.family.token_count(shape), items[0].source),
            input_noise=self._perturbed(noise, step, indices),
            toward_parent=items[0].source in self.parent_sets,
            adapter_strength=self.adapter_strengths.get(items[0].source, 1.0),
        )

    def _thinned(self, masks: Tensor, step: int, indices: Sequence[int]) -> Tensor:
        """The masks (B, 1, ...), each replaced by ones unless it is used."""
        dice = [random.Random(derived_seed(self.seed, step, index, "mask")).random() for index in indices]
        used = torch.tensor([one < self.mask_probability for one in dice]).view(-1, *[1] * (masks.dim() - 1))
        return torch.where(used, masks, 1.0)

    def _noise(self, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        noise = sample_noise(sample_generators(self.seed, step, indices, "noise"), shape)
        chosen = self.noise
        if not chosen.offset_noise:
            return noise
        generators = sample_generators(self.seed, step, indices, "offset")
        return noise + channel_offsets(generators, shape, scale=chosen.noise_offset, probability=chosen.noise_offset_probability)

    def _perturbed(self, noise: Tensor, step: int, indices: Sequence[int]) -> Tensor | None:
        """The noise in the input of the network: more of it while ``input_perturbation`` lasts."""
        steps, scale = self.noise.input_perturbation_steps, self.noise.input_perturbation
        scale *= max(0.0, 1 - step / steps) if steps else 1.0
        if not scale:
            return None
        return noise + scale * sample_noise(sample_generators(self.seed, step, indices, "perturbation"), noise.shape[1:])

    def _timesteps(self, step: int, indices: Sequence[int], token_count: int, source: str) -> Tensor:
        generators = sample_generators(self.seed, step, indices, "timestep")
        return self.objective.sample_timesteps(generators, token_count, self.timestep_offsets.get(source, 0.0))

    def _reference_sets(self, step: int, number: int, items: Sequence[Item]) -> Sequence[int]:
        """Positions of the conditioning sets in use. They follow from step and micro-batch."""
        choices = reference_choices(items[0].sample, combined=self.combine_references)
        return choices[random.Random(derived_seed(self.seed, step, number, "reference")).randrange(len(choices))]

    def timesteps(self, step: int, batch: GlobalBatch, before: int) -> list[float]:
        """Timesteps of all samples of a global batch, whichever process takes them, after ``before`` others of the step."""
        indices = range(before, before + len(batch))
        return [float(t) for t in self._timesteps(step, indices, self.builder.token_count(batch[0]), batch[0].source)]

    def caption(self, step: int, index: int, item: Item, reference_set: Sequence[int] = ()) -> str:
        """One of the captions of a sample with these references, or the empty prompt with the probability ``caption_dropout``."""
        dice = random.Random(derived_seed(self.seed, step, index, "caption"))
        if dice.random() < self.caption_dropout:
            return ""
        captions = captions_of(item.sample, reference_set)
        return captions[dice.randrange(len(captions))]

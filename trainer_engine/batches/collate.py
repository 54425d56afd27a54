"""From the samples of a global batch to the tensors of one process, with every random number that training needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer_engine.batches.sampler import GlobalBatch, Item
from trainer_engine.datasets.samples import Sample, reference_cache
from trainer_engine.families.base import PromptBatch, PromptEmbedding
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.randomness import derived_seed, sample_generators, sample_noise


@dataclass(frozen=True)
class Batch:
    """What one process takes in one pass. All tensors on the CPU until ``to``."""

    latents: Tensor
    """(B, C, h, w) float32."""
    noise: Tensor
    """(B, C, h, w) float32, standard normal."""
    timesteps: Tensor
    """(B,)"""
    prompts: PromptBatch
    files: tuple[str, ...]
    references: tuple[Tensor, ...] = ()
    """Latents (B, C, h_i, w_i) float32 of the images that the network looks at besides, one tensor a reference."""

    def pinned(self) -> Batch:
        """In memory that a GPU can copy from by itself."""
        prompts = {name: tensor.pin_memory() for name, tensor in self.prompts.items()}
        references = tuple(latents.pin_memory() for latents in self.references)
        return Batch(self.latents.pin_memory(), self.noise.pin_memory(), self.timesteps.pin_memory(), prompts, self.files, references)

    def to(self, device: torch.device) -> Batch:
        """On ``device``; from pinned memory the copy runs beside the computation."""
        prompts = {name: tensor.to(device, non_blocking=True) for name, tensor in self.prompts.items()}
        moved = [tensor.to(device, non_blocking=True) for tensor in (self.latents, self.noise, self.timesteps)]
        references = tuple(latents.to(device, non_blocking=True) for latents in self.references)
        return Batch(moved[0], moved[1], moved[2], prompts, self.files, references)


@dataclass(frozen=True)
class Share:
    """Which part of each global batch a process takes."""

    rank: int
    processes: int

    def of(self, batch: GlobalBatch) -> range:
        """Indices of this process's samples."""
        size = len(batch) // self.processes
        return range(self.rank * size, (self.rank + 1) * size)


@dataclass(frozen=True)
class Collator:
    """Random numbers belong to (seed, step, index of the sample over all passes and processes of the step), never to a process."""

    read_latents: Callable[[str, Sample], Tensor]
    """(dataset id, sample) -> (C, h, w)."""
    read_prompt: Callable[[str, str], PromptEmbedding]
    """(dataset id, caption) -> embedding."""
    collate_prompts: Callable[[Sequence[PromptEmbedding]], PromptBatch]
    objective: Objective
    seed: int
    caption_dropout: float
    share: Share
    combine_references: bool = True
    """Whether samples see their references of all conditioning sets, or those of one set, drawn once a batch."""
    sample_conditions: Callable[[Sequence[torch.Generator]], PromptBatch] = lambda generators: {}
    """What the family tells each sample at random."""

    def collate(self, step: int, number: int, batch: GlobalBatch) -> Batch:
        """This process's part of pass ``number`` of optimizer step ``step``, both from 0."""
        mine = self.share.of(batch)
        indices = [number * len(batch) + place for place in mine]
        items = [batch[place] for place in mine]
        latents = torch.stack([self.read_latents(item.source, item.sample) for item in items])
        prompts = [self.read_prompt(item.source, self.caption(step, index, item)) for index, item in zip(indices, items, strict=True)]
        return Batch(
            latents=latents,
            noise=sample_noise(sample_generators(self.seed, step, indices, "noise"), latents.shape[1:]),
            timesteps=self.objective.sample_timesteps(sample_generators(self.seed, step, indices, "timestep"), latents.shape[1:]),
            prompts=self.collate_prompts(prompts) | self.sample_conditions(sample_generators(self.seed, step, indices, "condition")),
            files=tuple(item.sample.path for item in items),
            references=self.references(step, number, items),
        )

    def references(self, step: int, number: int, items: Sequence[Item]) -> tuple[Tensor, ...]:
        """Latents (B, C, h_i, w_i), one tensor a conditioning set in use. Which one is in use follows from step and pass."""
        count = len(items[0].sample.references)
        chosen: Sequence[int] = range(count)
        if count > 1 and not self.combine_references:
            chosen = [random.Random(derived_seed(self.seed, step, number, "reference")).randrange(count)]
        return tuple(torch.stack([self._reference(item, place) for item in items]) for place in chosen)

    def _reference(self, item: Item, place: int) -> Tensor:
        set_id, sample = item.sample.references[place]
        return self.read_latents(reference_cache(item.source, set_id), sample)

    def timesteps(self, step: int, number: int, batch: GlobalBatch) -> list[float]:
        """Those of the whole global batch, whoever takes it."""
        indices = range(number * len(batch), (number + 1) * len(batch))
        generators = sample_generators(self.seed, step, indices, "timestep")
        shape = self.read_latents(batch[0].source, batch[0].sample).shape
        return [float(t) for t in self.objective.sample_timesteps(generators, shape)]

    def caption(self, step: int, index: int, item: Item) -> str:
        """One of the sample's captions, or the empty prompt as often as ``caption_dropout`` says."""
        dice = random.Random(derived_seed(self.seed, step, index, "caption"))
        if dice.random() < self.caption_dropout:
            return ""
        captions = item.sample.captions
        return captions[dice.randrange(len(captions))]

"""The tensors of one micro-batch, and the builder that reads them for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer_engine.batches.sampler import Item
from trainer_engine.datasets.samples import Sample, reference_cache
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, SampleFacts, StepInputs


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """Samples as a network sees them, before noise is added. All tensors on the CPU."""

    latents: Tensor
    """(B, C, ...) float32."""
    prompts: PromptBatch
    files: tuple[str, ...]
    """Location of each sample's file."""
    conditions: Conditions = field(default_factory=dict)
    references: tuple[Tensor, ...] = ()
    """Latents (B, C, ...) float32 of the reference images, one tensor a reference."""
    control: Tensor | None = None
    """The control images, as ``StepInputs.control``; None in runs without them."""
    loss_mask: Tensor | None = None
    """(B, 1, ...) in [0, 1], the part of the latents that the loss covers; None for all of it."""
    loss_weights: Tensor | None = None
    """(B,) factor of each sample's loss; None for 1."""

    def with_noise(
        self,
        noise: Tensor,
        timesteps: Tensor,
        input_noise: Tensor | None = None,
        *,
        toward_parent: bool = False,
        adapter_strength: float = 1.0,
    ) -> Batch:
        """The batch to train or evaluate on with this noise (B, C, ...) and these timesteps (B,)."""
        return Batch(
            **vars(self),
            noise=noise,
            timesteps=timesteps,
            input_noise=input_noise,
            toward_parent=toward_parent,
            adapter_strength=adapter_strength,
        )


@dataclass(frozen=True, kw_only=True)
class Batch(SampleBatch):
    """What one process takes in one micro-batch. All tensors on the CPU until ``to``."""

    noise: Tensor
    """(B, C, ...) float32, standard normal."""
    timesteps: Tensor
    """(B,)"""
    input_noise: Tensor | None = None
    """The noise in the input of the network, if it differs from the one that is learned (Ning et al., 2023, "Input Perturbation")."""
    toward_parent: bool = False
    """Whether an adapter is trained toward the prediction of the network without it, instead of the data."""
    adapter_strength: float = 1.0
    """Strength of the adapter in the prediction: that of a side of a slider, or 1."""

    def inputs(self, noisy_latents: Tensor) -> StepInputs:
        """Inputs of the network for these samples, with ``noisy_latents`` (B, C, ...) as x_t."""
        return StepInputs(
            noisy_latents=noisy_latents,
            timesteps=self.timesteps,
            prompts=self.prompts,
            conditions=self.conditions,
            references=self.references,
            control=self.control,
        )

    def pinned(self) -> Batch:
        """In page-locked memory, from which a GPU copies asynchronously."""
        return self._moved(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """On ``device``; from pinned memory the copy overlaps with the computation."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: _with_tensors_moved(value, move) for name, value in vars(self).items()})


def _with_tensors_moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A field of a batch with ``move`` applied to every tensor in it."""
    match value:
        case Tensor():
            return move(value)
        case dict():
            return {name: _with_tensors_moved(one, move) for name, one in value.items()}
        case tuple():
            return tuple(_with_tensors_moved(one, move) for one in value)
        case _:
            return value


def reference_choices(sample: Sample, *, combined: bool) -> list[tuple[int, ...]]:
    """Which of a sample's references are used together: positions of all of them, or of one at a time."""
    count = len(sample.references)
    return [tuple(range(count))] if combined or count < 2 else [(position,) for position in range(count)]


ReadMask = Callable[[str, Sample, tuple[int, int]], Tensor]


def captions_of(sample: Sample, reference_set: Sequence[int]) -> tuple[str, ...]:
    """The captions of a sample that is used with these of its references: those of its only reference, if that has some."""
    own = sample.references[reference_set[0]].sample.captions if len(reference_set) == 1 else ()
    return own or sample.captions


class BatchFamily(Protocol):
    """The methods of ``Family`` that make batches."""

    @property
    def prompts_see_references(self) -> bool: ...

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch: ...

    def token_count(self, latent_shape: Sequence[int]) -> int: ...

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions: ...


@dataclass(frozen=True, kw_only=True)
class BatchBuilder:
    """Reads samples from the caches and builds their batch. Holds no random state; safe to use from several threads."""

    family: BatchFamily
    read_latents: Callable[[str, Sample], Tensor]
    """(dataset id, sample) -> (C, ...)."""
    read_prompt: Callable[[str, str, tuple[Sample, ...]], PromptEmbedding]
    """(dataset id, caption, references that the text encoder looks at) -> embedding."""
    crop_seed: int
    """The seed that placed random crops when the latents were cached."""
    read_mask: ReadMask | None = None
    """(dataset id, sample, (h, w)) -> (1, h, w), for samples that have a mask."""
    read_control: Callable[[str, Sample], Tensor] | None = None
    """(``reference_cache`` of dataset and set, control image) -> what the run looks at of it; None in runs without control images."""
    read_conditions: Callable[[str, Sample], Conditions] | None = None
    """(dataset id, sample) -> cached inputs by name, without a batch dimension; None for families that cache none."""

    def build(
        self,
        items: Sequence[Item],
        captions: Sequence[str],
        *,
        reference_sets: Sequence[int],
        generators: Sequence[torch.Generator] | None = None,
    ) -> SampleBatch:
        """The batch of ``items`` with one caption each.

        ``reference_sets``: positions of the conditioning sets in use among the references of a sample. ``generators``: one a sample for
        the random conditions of the family; None gives their fixed values. Raises what reading a cache raises.
        """
        prompts = [self._prompt(item, caption, reference_sets) for item, caption in zip(items, captions, strict=True)]
        latents = torch.stack([self.read_latents(item.source, item.sample) for item in items])
        return SampleBatch(
            latents=latents,
            prompts=self.family.collate_prompts(prompts),
            files=tuple(item.sample.location for item in items),
            conditions=self._conditions(items, generators),
            **self._partners(items, reference_sets),
            loss_mask=self._masks(items, latents),
        )

    def _conditions(self, items: Sequence[Item], generators: Sequence[torch.Generator] | None) -> Conditions:
        """What follows from facts and chance, and what is cached with the latents."""
        facts = [SampleFacts.of(item.sample, self.crop_seed) for item in items]
        cached = [self.read_conditions(item.source, item.sample) for item in items] if self.read_conditions else [{}]
        stacked = {name: torch.stack([row[name] for row in cached]) for name in cached[0]}
        return {**self.family.conditions(facts, generators), **stacked}

    def _partners(self, items: Sequence[Item], reference_sets: Sequence[int]) -> dict[str, Any]:
        """The control images of a run that looks at them, or else the references."""
        if self.read_control is None:
            return {"references": tuple(torch.stack([self._reference(item, position) for item in items]) for position in reference_sets)}
        [position] = reference_sets
        pairs = [(item.source, item.sample.references[position]) for item in items]
        controls = [self.read_control(reference_cache(source, one.set), one.sample) for source, one in pairs]
        return {"control": torch.stack(controls)}

    def _masks(self, items: Sequence[Item], latents: Tensor) -> Tensor | None:
        """(B, 1, ..., h, w): the masks of samples of one dataset, the same for every frame of a clip; None without masks."""
        if self.read_mask is None or items[0].sample.mask is None:
            return None
        height, width = latents.shape[-2:]
        masks = torch.stack([self.read_mask(item.source, item.sample, (height, width)) for item in items])
        return masks.view(len(items), 1, *[1] * (latents.dim() - 4), height, width)

    def token_count(self, item: Item) -> int:
        """Tokens that the network makes of a sample."""
        return self.family.token_count(self.read_latents(item.source, item.sample).shape)

    def _prompt(self, item: Item, caption: str, reference_sets: Sequence[int]) -> PromptEmbedding:
        seen = reference_sets if self.family.prompts_see_references else ()
        return self.read_prompt(item.source, caption, tuple(item.sample.references[position].sample for position in seen))

    def _reference(self, item: Item, position: int) -> Tensor:
        set_id, sample = item.sample.references[position]
        return self.read_latents(reference_cache(item.source, set_id), sample)

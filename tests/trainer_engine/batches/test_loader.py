"""From samples to tensors: whose random numbers they are, and reading ahead."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_engine.batches.test_sampler import source
from trainer_engine.batches.batch import Batch, BatchBuilder
from trainer_engine.batches.collate import Collator, Share
from trainer_engine.batches.loader import Loader, samples_before
from trainer_engine.batches.sampler import BatchSizes, DataSource, Item, Sampler
from trainer_engine.config.datasets.fields import Gates
from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.samples import CropPlan, Reference, Sample
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.families.inputs import Conditions, PromptBatch, PromptEmbedding, SampleFacts
from trainer_engine.objectives.build import make_objective
from trainer_engine.objectives.diffusion import Epsilon


def latents_of(id: str, sample: Sample) -> Tensor:
    value = sum(map(ord, sample.name))
    return torch.full((4, 8, 8), float(value))


def embedding_of(id: str, caption: str, references: tuple[Sample, ...]) -> PromptEmbedding:
    return {"embeds": torch.tensor([float(len(caption) + sum(one.width for one in references))])}


class Stacking:
    """Stacks embeddings, and passes the size of each sample and a random guidance on to the network."""

    prompts_see_references = False

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        return {"embeds": torch.stack([prompt["embeds"] for prompt in prompts])}

    def token_count(self, latent_shape: Sequence[int]) -> int:
        return math.prod(latent_shape[1:])

    def conditions(self, samples: Sequence[SampleFacts], generators: Sequence[torch.Generator] | None = None) -> Conditions:
        facts = [[*one.original_size, *one.crop_corner, *one.target_size] for one in samples]
        guidance = torch.ones(len(samples)) if generators is None else torch.cat([torch.rand(1, generator=one) for one in generators])
        return {"time_ids": torch.tensor(facts), "guidance": guidance}


def builder(**changes: Any) -> BatchBuilder:
    values: dict[str, Any] = {"family": Stacking(), "read_latents": latents_of, "read_prompt": embedding_of, "crop_seed": 5}
    return BatchBuilder(**(values | changes))


def collator(rank: int = 0, processes: int = 1, **changes: Any) -> Collator:
    values = {
        "builder": builder(),
        "objective": Epsilon(torch.linspace(0.999, 0.001, 1000)),
        "seed": 5,
        "caption_dropout": 0.5,
        "share": Share(rank, processes),
    }
    return Collator(**(values | changes))


def loader(found: Collator, *, batch: int = 4, accumulation: int = 1, ahead: int = 0, sources: tuple[DataSource, ...] = ()) -> Loader:
    sampler = Sampler(sources or (source("a", (9, 7)),), BatchSizes(batch, accumulation), 5, by_size=True)
    return Loader(sampler, found, ahead=ahead, pin=False)


def same(one: Batch, other: Batch) -> bool:
    tensors = [(one.latents, other.latents), (one.noise, other.noise), (one.timesteps, other.timesteps)]
    tensors += [(one.prompts["embeds"], other.prompts["embeds"]), (one.conditions["guidance"], other.conditions["guidance"])]
    return one.files == other.files and all(torch.equal(*pair) for pair in tensors)


def test_a_batch_has_the_shapes_that_training_takes() -> None:
    batches = loader(collator()).load(0)
    (batch,) = batches.passes
    assert batch.latents.shape == batch.noise.shape == (4, 4, 8, 8)
    assert batch.timesteps.shape == (4,) and batch.prompts["embeds"].shape == (4, 1)
    assert len(batch.files) == batches.samples == 4


def test_two_processes_take_together_what_one_takes_alone() -> None:
    for step in range(6):
        (alone,) = loader(collator()).load(step).passes
        halves = [loader(collator(rank, 2)).load(step).passes[0] for rank in (0, 1)]
        assert alone.files == halves[0].files + halves[1].files
        for name in ("latents", "noise", "timesteps"):
            assert torch.equal(getattr(alone, name), torch.cat([getattr(half, name) for half in halves])), name
        assert torch.equal(alone.prompts["embeds"], torch.cat([half.prompts["embeds"] for half in halves]))
        assert torch.equal(alone.conditions["guidance"], torch.cat([half.conditions["guidance"] for half in halves]))


def test_sizes_and_crop_corner_of_each_sample_reach_the_network() -> None:
    crop = CropPlan("random", 1.0)
    sample = Sample(
        source=LocalSource("/nowhere"),
        name="a.png",
        size_bytes=1,
        version=1,
        width=400,
        height=300,
        resized=(160, 120),
        target=(64, 64),
        crop=crop,
        bucket="1",
        captions=("a cat",),
    )
    (left, top) = crop_window(sample, 5)
    assert 0 < left <= 96 and 0 < top <= 56
    built = builder().build([Item("a", sample)], ["a cat"], reference_sets=())
    assert built.conditions["time_ids"].tolist() == [[400, 300, left, top, 64, 64]]
    assert built.conditions["guidance"].tolist() == [1.0]


@pytest.mark.parametrize(("sees", "length"), [(False, 5), (True, 5 + 400)])
def test_a_prompt_sees_the_references_in_use_if_the_family_says_so(sees: bool, length: int) -> None:
    family = Stacking()
    family.prompts_see_references = sees
    crop = CropPlan("center", 1.0)
    small, large = (
        Sample(
            source=LocalSource("/nowhere"),
            name="a.png",
            size_bytes=1,
            version=1,
            width=width,
            height=300,
            resized=(64, 64),
            target=(64, 64),
            crop=crop,
            bucket="1",
            captions=("a cat",),
        )
        for width in (100, 400)
    )
    paired = small._replace(references=(Reference("one", small), Reference("two", large)))
    built = builder(family=family).build([Item("a", paired)], ["a cat"], reference_sets=(1,))
    assert built.prompts["embeds"].tolist() == [[length]]
    assert len(built.references) == 1


def test_every_tensor_of_a_batch_moves_with_it() -> None:
    (batch,) = loader(collator()).load(0).passes
    one = torch.ones(4)
    moved = replace(batch, references=(one,), loss_mask=one, loss_weights=one).to(torch.device("meta"))
    tensors = [moved.latents, moved.noise, moved.timesteps, moved.loss_mask, moved.loss_weights, *moved.references]
    tensors += [*moved.prompts.values(), *moved.conditions.values()]
    assert len(tensors) == 9 and all(tensor is not None and tensor.is_meta for tensor in tensors)
    assert moved.files == batch.files


def test_no_two_samples_of_a_step_get_the_same_noise() -> None:
    first, second = loader(collator(), accumulation=2).load(0).passes
    later = loader(collator(), accumulation=2).load(1).passes[0]
    noises = [tuple(noise.flatten()[:3].tolist()) for batch in (first, second, later) for noise in batch.noise]
    assert len(set(noises)) == len(noises)


def test_every_process_knows_the_timesteps_of_the_whole_batch() -> None:
    found = loader(collator(1, 2))
    (batch,) = found.load(3).passes
    timesteps = collator(0, 2).timesteps(3, found.sampler.step(3)[0], 0)
    assert timesteps[2:] == batch.timesteps.tolist()


@pytest.mark.parametrize(("chance", "low", "high"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 70, 130)])
def test_captions_are_dropped_as_often_as_asked(chance: float, low: int, high: int) -> None:
    found = collator(caption_dropout=chance)
    item = Sampler((source(),), BatchSizes(1, 1), 1, by_size=True).step(0)[0][0]
    dropped = sum(found.caption(step, 0, item) == "" for step in range(400))
    assert low <= dropped <= high


def test_each_of_several_captions_gets_its_turn() -> None:
    item = Sampler((source(),), BatchSizes(1, 1), 1, by_size=True).step(0)[0][0]
    item = Item(item.source, item.sample._replace(captions=("one", "two", "three")))
    captions = Counter(collator(caption_dropout=0.0).caption(step, 0, item) for step in range(300))
    assert set(captions) == {"one", "two", "three"} and min(captions.values()) > 60


@pytest.mark.parametrize("ahead", [1, 3, 50])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_reading_ahead_changes_nothing(ahead: int, accumulation: int) -> None:
    in_line = list(loader(collator(), accumulation=accumulation).steps(2, 12))
    threaded = list(loader(collator(), accumulation=accumulation, ahead=ahead).steps(2, 12))
    assert [batches.step for batches in threaded] == list(range(2, 12)) == [batches.step for batches in in_line]
    for left, right in zip(in_line, threaded, strict=True):
        assert all(same(one, other) for one, other in zip(left.passes, right.passes, strict=True))


def test_reading_ahead_stays_within_its_limit() -> None:
    read: list[str] = []

    def slow(id: str, sample: Sample) -> Tensor:
        read.append(sample.name)
        return latents_of(id, sample)

    steps = loader(collator(builder=builder(read_latents=slow)), batch=2, ahead=3).steps(0, 100)
    next(steps)
    time.sleep(0.2)
    assert len(read) <= 2 * (3 + 1)
    steps.close()


def test_an_error_of_reading_ahead_is_raised_when_its_batch_is_due() -> None:
    def broken(id: str, sample: Sample) -> Tensor:
        if len(seen) == 6:
            raise OSError("the disk is gone")
        seen.append(sample.name)
        return latents_of(id, sample)

    seen: list[str] = []
    steps = loader(collator(builder=builder(read_latents=broken)), batch=2, ahead=4).steps(0, 10)
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(steps)


def test_no_thread_is_left_when_the_run_ends_early() -> None:
    steps = loader(collator(), ahead=4).steps(0, 1000)
    next(steps)
    steps.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("batches") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def uneven_sources() -> tuple[DataSource, ...]:
    return source("a", (9, 7)), replace(source("b", (6,)), batch=2, gates=Gates(start_step=2))


def test_batches_of_different_sizes_share_no_random_number() -> None:
    batches = loader(collator(), accumulation=3, sources=uneven_sources()).load(1)
    sizes = [len(batch.files) for batch in batches.passes]
    assert sorted(set(sizes)) == [2, 4] and batches.samples == sum(sizes)
    noises = [noise for batch in batches.passes for noise in batch.noise]
    assert len({noise.sum().item() for noise in noises}) == len(noises)


def test_two_processes_take_together_what_one_takes_alone_of_each_size() -> None:
    for step in range(4):
        alone = loader(collator(), accumulation=3, sources=uneven_sources()).load(step).passes
        halves = [loader(collator(rank, 2), accumulation=3, sources=uneven_sources()).load(step).passes for rank in (0, 1)]
        for whole, first, second in zip(alone, *halves, strict=True):
            assert whole.files == first.files + second.files
            assert torch.equal(whole.noise, torch.cat([first.noise, second.noise]))


def test_samples_before_a_micro_batch_are_counted() -> None:
    plan = loader(collator(), accumulation=3, sources=uneven_sources()).sampler.step(1)
    assert samples_before(plan) == [0, len(plan[0]), len(plan[0]) + len(plan[1])]
    assert samples_before(()) == []


def test_the_timesteps_of_a_dataset_are_moved_by_its_offset_and_those_of_others_are_not() -> None:
    flow = make_objective("flow_matching", {}, ObjectiveOptions(flow_schedule_shift=0))
    sources = (source("a", (8,)), source("b", (8,)))
    usual = loader(collator(objective=flow), sources=sources)
    moved = loader(collator(objective=flow, timestep_offsets={"b": 1.5}), sources=sources)
    seen = set()
    for step in range(usual.sampler.steps_per_epoch):
        (one,), (other,) = usual.load(step).passes, moved.load(step).passes
        (batch,) = usual.sampler.step(step)
        seen.add(batch[0].source)
        offset = 1.5 if batch[0].source == "b" else 0.0
        torch.testing.assert_close(
            torch.logit(other.timesteps.double()), torch.logit(one.timesteps.double()) + offset, rtol=1e-4, atol=1e-4
        )
        assert same(one, other) is (offset == 0)
        assert moved.collator.timesteps(step, batch, 0) == other.timesteps.tolist()
    assert seen == {"a", "b"}

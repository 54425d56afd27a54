"""Which samples make up each step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_engine.batches.sampler import BatchSizes, DataSource, GlobalBatch, Sampler
from trainer_engine.config.datasets.fields import ALWAYS, Gates
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.local import LocalSource


def sample(name: str) -> Sample:
    return Sample(
        source=LocalSource("/data"),
        name=name,
        size_bytes=1,
        version=0,
        width=64,
        height=64,
        resized=(64, 64),
        target=(64, 64),
        crop=CropPlan("center", 1.0),
        bucket="1 (64x64)",
        captions=("a caption",),
    )


def source(id: str = "a", buckets: tuple[int, ...] = (5, 3), *, passes: int = 1, weight: float = 1.0, at_least: int = 0) -> DataSource:
    filled = tuple(tuple(sample(f"{id}-{number}-{index}.png") for index in range(count)) for number, count in enumerate(buckets))
    return DataSource(id, filled, passes - 1, weight, at_least)


def sampler(*sources: DataSource, batch: int = 2, accumulation: int = 1, seed: int = 1, by_size: bool = True) -> Sampler:
    return Sampler(sources, BatchSizes(batch, accumulation), seed, by_size=by_size)


def epoch(found: Sampler, number: int = 0) -> list[GlobalBatch]:
    steps = range(number * found.steps_per_epoch, (number + 1) * found.steps_per_epoch)
    return [batch for step in steps for batch in found.step(step)]


def bucket_of(batch: GlobalBatch) -> tuple[str, str]:
    (found,) = {(item.source, item.sample.name.split("-")[1]) for item in batch}
    return found


def counted(batches: list[GlobalBatch]) -> Counter[str]:
    return Counter(item.sample.name for batch in batches for item in batch)


@given(
    buckets=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    passes=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_in_an_epoch_every_sample_is_seen_as_often_as_asked(buckets: list[int], batch: int, passes: int, seed: int) -> None:
    found = sampler(source("a", tuple(buckets), passes=passes), batch=batch, seed=seed)
    seen = counted(epoch(found))
    assert len(seen) == sum(buckets)
    assert min(seen.values()) >= passes
    filled = sum(-(-count * passes // batch) * batch - count * passes for count in buckets)
    assert sum(seen.values()) == sum(buckets) * passes + filled


def test_a_batch_holds_one_bucket_of_one_dataset() -> None:
    for batch in epoch(sampler(source("a", (5, 3)), source("b", (4, 4)), batch=3)):
        assert len(batch) == 3
        bucket_of(batch)


def test_a_last_batch_is_filled_with_what_was_seen_of_its_bucket() -> None:
    batches = epoch(sampler(source("a", (5,)), batch=4))
    assert [len(batch) for batch in batches] == [4, 4]
    assert sorted(counted(batches).values()) == [1, 1, 2, 2, 2]


def test_a_bucket_smaller_than_a_batch_repeats_its_samples() -> None:
    (batch,) = epoch(sampler(source("a", (2,)), batch=5))
    assert sorted(counted([batch]).values()) == [2, 3]


def test_oversubscribed_buckets_give_as_many_as_asked() -> None:
    found = sampler(source("a", (2,), at_least=8), batch=4)
    assert found.batches_per_epoch == 2
    assert set(counted(epoch(found)).values()) == {4}


def test_an_epoch_ends_with_a_whole_step() -> None:
    found = sampler(source("a", (10,)), batch=2, accumulation=3)
    assert (found.batches_per_epoch, found.steps_per_epoch) == (5, 2)
    assert all(len(found.step(step)) == 3 for step in range(4))
    assert len(counted(epoch(found))) == 10
    assert [found.epoch_of(step) for step in range(5)] == [0, 0, 1, 1, 2]


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    forwards, backwards = sampler(source()), sampler(source())
    steps = range(3 * forwards.steps_per_epoch)
    there = {step: forwards.step(step) for step in steps}
    assert {step: backwards.step(step) for step in reversed(steps)} == there


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    found = sampler(source("a", (30,)))
    assert epoch(found, 0) != epoch(found, 1)
    assert epoch(found) != epoch(sampler(source("a", (30,)), seed=2))


def test_accumulation_takes_the_batches_in_the_same_order() -> None:
    one, two = sampler(source("a", (8, 8)), accumulation=1), sampler(source("a", (8, 8)), accumulation=2)
    assert epoch(one) == epoch(two)


def test_a_dataset_without_samples_is_no_dataset() -> None:
    assert sampler(source("a", (4,)), source("none", ())).batches_per_epoch == 2


GATES = st.sampled_from([ALWAYS, Gates(start_epoch=2), Gates(start_step=6), Gates(start_epoch=2, end_epoch=3), Gates(end_epoch=2)])


@given(
    others=st.lists(
        st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 3), GATES), max_size=3
    ),
    accumulation=st.just(1) | st.integers(2, 3),
    by_size=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_sets_with_batches_and_gates_of_their_own_are_seen_whole(
    others: list[tuple[list[int], int, int, Gates]], accumulation: int, by_size: bool
) -> None:
    """Buckets hold whole batches here, so that nothing but the last step of an epoch is filled up."""
    sets = [source("always", (4, 2), passes=2)]
    for number, (batches, size, passes, gates) in enumerate(others):
        one = source(f"set{number}", tuple(count * size for count in batches), passes=passes)
        sets.append(replace(one, batch=size, gates=gates))
    found = sampler(*sets, accumulation=accumulation, by_size=by_size)
    for epoch in range(4):
        start, length = found.timeline.start_of(epoch), found.timeline.length(epoch)
        batches = [batch for step in range(start, start + length) for batch in found.step(step)]
        wanted = sum(batch for one in found.timeline.sets if one.id in {batch[0].source for batch in batches} for batch in one.batches)
        assert 0 <= len(batches) - wanted < accumulation
        seen = counted(batches[:wanted])
        for one in sets:
            times = {seen[sample.name] for bucket in one.buckets for sample in bucket}
            assert times == {one.repeats + 1} or (times == {0} and one.gates != ALWAYS)
            assert all(len(batch) == (one.batch or 2) for batch in batches if batch[0].source == one.id)


def test_a_gated_step_is_the_same_whenever_it_is_asked_for() -> None:
    sets = (source("a", (9, 4)), replace(source("b", (6, 5)), gates=Gates(start_step=5, end_step=17), batch=3))
    forwards, backwards = sampler(*sets, accumulation=2), sampler(*sets, accumulation=2)
    there = {step: forwards.step(step) for step in range(40)}
    assert {step: backwards.step(step) for step in reversed(range(40))} == there


def test_a_gate_that_changes_nothing_changes_no_order() -> None:
    plain, gated = source("a", (9, 4)), replace(source("a", (9, 4)), gates=Gates(start_step=1, end_step=10**9), batch=2)
    assert epoch(sampler(plain, source("b", (5,)))) == epoch(sampler(gated, source("b", (5,))))

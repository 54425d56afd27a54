"""Epochs of a run whose sets begin and end while it goes on."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.helpers.models import options_with
from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.datasets.fields import ALWAYS, Gates
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.schedule import run_steps, schedule_problems, understood_length
from trainer_engine.datasets.timeline import TimedSet, Timeline


def timed(id: str, *batches: int, weight: float = 1.0, **gates: int) -> TimedSet:
    return TimedSet(id, batches, weight, Gates(**gates))


def timeline(*sets: TimedSet, accumulation: int = 1, seed: int = 3, by_size: bool = True) -> Timeline:
    return Timeline(sets, accumulation, seed, by_size)


def trained_in(found: Timeline, epoch: int) -> list[set[str]]:
    """For each step of an epoch, the sets that it takes batches from."""
    owners = [one.id for one in found.sets for _ in one.batches]
    buckets, size = [owners[bucket] for bucket in found.order(epoch)[0].tolist()], found.accumulation
    return [set(buckets[start : start + size]) for start in range(0, len(buckets), size)]


GATES = st.builds(
    Gates,
    start_epoch=st.integers(1, 4),
    start_step=st.integers(0, 40),
    end_epoch=st.sampled_from([0, 0, 4, 6]),
    end_step=st.sampled_from([0, 0, 25, 41, 60]),
).filter(lambda gates: not gates.end_step or gates.end_step >= gates.start_step)
SETS = st.lists(st.tuples(st.lists(st.integers(1, 7), min_size=1, max_size=3), GATES), max_size=3)
TIMELINES = st.builds(
    lambda first, others, **rest: Timeline(
        tuple(TimedSet(f"s{number}", tuple(batches), 1.0 + number, gates) for number, (batches, gates) in enumerate([first, *others])),
        **rest,
    ),
    first=st.tuples(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.sampled_from([ALWAYS, Gates(end_step=30), Gates(end_epoch=3)])),
    others=SETS,
    accumulation=st.integers(1, 4),
    seed=st.integers(0, 5),
    by_size=st.booleans(),
)


@given(found=TIMELINES)
@settings(max_examples=200, deadline=None)
def test_every_epoch_gives_each_batch_of_its_sets_once(found: Timeline) -> None:
    for epoch in range(min(8, found.epochs)):
        start, length = found.start_of(epoch), found.length(epoch)
        buckets, numbers = found.order(epoch)
        assert len(buckets) == len(numbers) == length * found.accumulation
        assert found.start_of(epoch + 1) == start + length
        given_batches = {(bucket, number) for bucket, number in zip(buckets.tolist(), numbers.tolist())}
        assert len(buckets) - len(given_batches) < found.accumulation
        places = [(one, bucket) for one in found.sets for bucket in range(len(one.batches))]
        for place, (one, bucket) in enumerate(places):
            seen = [number for where, number in given_batches if where == place]
            assert sorted(seen) == list(range(len(seen)))
            ends_here = one.gates.end_step and one.gates.end_step <= start + length
            if seen and not ends_here:
                assert len(seen) == one.batches[bucket]


@given(found=TIMELINES)
@settings(max_examples=200, deadline=None)
def test_no_step_takes_a_batch_of_a_set_that_is_closed(found: Timeline) -> None:
    gates = {one.id: one.gates for one in found.sets}
    for epoch in range(min(8, found.epochs)):
        for index, ids in enumerate(trained_in(found, epoch)):
            step = found.start_of(epoch) + index + 1
            assert ids and all(gates[id].has_epoch(epoch + 1) and gates[id].has_step(step) for id in ids)


@given(found=TIMELINES, step=st.integers(0, 90))
@settings(max_examples=200, deadline=None)
def test_a_step_lies_in_its_epoch(found: Timeline, step: int) -> None:
    assume(found.end is None or step < found.end)
    epoch = found.epoch_of(step)
    assert found.start_of(epoch) <= step < found.start_of(epoch + 1) == found.start_of(epoch) + found.length(epoch)
    passed = found.passed(step)
    assert epoch <= passed < epoch + 1 and found.steps_for(passed) == step
    assert found.passed(step + 1) > passed


@given(found=TIMELINES)
@settings(max_examples=100, deadline=None)
def test_a_run_ends_where_no_set_is_left(found: Timeline) -> None:
    if found.end is None:
        assert found.epochs == sys.maxsize
        return
    assert found.start_of(found.epochs) == found.start_of(found.epochs + 5) == found.end
    assert not any(one.gates.has_epoch(found.epochs + 1) and one.gates.has_step(found.end + 1) for one in found.sets)


def test_without_gates_all_epochs_have_one_length() -> None:
    found = timeline(timed("a", 5, 2), timed("b", 4), accumulation=3)
    assert [found.start_of(epoch) for epoch in range(4)] == [0, 4, 8, 12]
    assert (found.epoch_of(11), found.epoch_of(12), found.end, len(found.stretches)) == (2, 3, None, 1)
    assert found.start_of(10**9) == 4 * 10**9 and found.epoch_of(4 * 10**9) == 10**9


def test_a_set_that_begins_with_an_epoch_makes_the_later_ones_longer() -> None:
    found = timeline(timed("a", 4), timed("b", 6, start_epoch=3))
    assert [found.start_of(epoch) for epoch in range(5)] == [0, 4, 8, 18, 28]
    assert trained_in(found, 1) == [{"a"}] * 4 and set().union(*trained_in(found, 2)) == {"a", "b"}


def test_a_set_that_begins_within_an_epoch_is_seen_whole_in_it() -> None:
    found = timeline(timed("a", 10), timed("b", 5, start_step=7))
    order = trained_in(found, 0)
    assert len(order) == 15 and order[:6] == [{"a"}] * 6 and order.count({"b"}) == 5
    assert found.length(1) == 15


def test_a_set_that_ends_within_an_epoch_shortens_it() -> None:
    found = timeline(timed("a", 10), timed("b", 10, end_step=8))
    order = trained_in(found, 0)
    seen_of_b = order[:8].count({"b"})
    assert order.count({"b"}) == seen_of_b and order.count({"a"}) == 10 and len(order) == 10 + seen_of_b
    assert found.length(1) == 10


def test_the_last_step_is_filled_up_from_sets_that_are_still_trained_on() -> None:
    found = timeline(timed("a", 5), timed("b", 50, end_step=2), accumulation=4)
    order = trained_in(found, 0)
    assert order[0] | order[1] <= {"a", "b"} and all(step == {"a"} for step in order[2:])


def test_one_set_may_follow_the_other() -> None:
    found = timeline(timed("a", 4, end_epoch=2), timed("b", 3, start_epoch=3, end_epoch=4))
    assert [found.start_of(epoch) for epoch in range(6)] == [0, 4, 8, 11, 14, 14]
    assert (found.end, found.epochs) == (14, 4)


def test_the_epochs_of_a_long_run_are_found_without_counting_them() -> None:
    found = timeline(timed("a", 4), timed("b", 1, start_step=10**12, end_step=10**12 + 10**9))
    assert len(found.stretches) <= 5
    assert found.epoch_of(10**12 - 2) == (10**12 - 2) // 4


def entries(*sets: TimedSet) -> list[ImageSet]:
    return [
        ImageSet.model_validate(
            {"position": number, "id": one.id, "instance_data_dir": "/d", "start_epoch": one.gates.start_epoch}
            | {"start_step": one.gates.start_step}
        )
        for number, one in enumerate(sets)
    ]


def problems_of(found: Timeline, **options: Any) -> list[tuple[str, str, Level]]:
    chosen = options_with(**{"max_train_steps": 0, "num_train_epochs": 0, **options})
    return [(one.option, one.code, one.level) for one in schedule_problems(chosen, found, entries(*found.sets))]


def test_a_run_that_outlasts_its_sets_is_refused() -> None:
    found = timeline(timed("a", 4, end_epoch=2))
    refused = [("dataloader", "nothing_to_train", Level.ERROR)]
    assert problems_of(found, max_train_steps=8) == problems_of(found, num_train_epochs=2) == []
    assert problems_of(found, max_train_steps=9) == problems_of(found, num_train_epochs=3) == refused


def test_a_gap_between_two_sets_is_refused() -> None:
    found = timeline(timed("a", 4, end_step=6), timed("b", 4, start_step=9))
    assert found.end == 6 and problems_of(found, max_train_steps=20)[0][1] == "nothing_to_train"
    assert problems_of(timeline(timed("a", 4, end_step=6), timed("b", 4, start_step=7)), max_train_steps=20) == []


@pytest.mark.parametrize(
    ("gates", "field"),
    [({"start_epoch": 4}, "start_epoch"), ({"start_step": 13}, "start_step"), ({"start_epoch": 2, "end_step": 3}, "start_epoch")],
)
def test_a_set_that_never_begins_is_a_warning(gates: dict[str, int], field: str) -> None:
    found = timeline(timed("a", 4), timed("late", 4, **gates))
    warned = [(f"dataloader[1].{field}", "never_trained", Level.WARNING)]
    assert problems_of(found, max_train_steps=12) == problems_of(found, num_train_epochs=3) == warned


def test_a_set_that_begins_in_the_last_step_is_trained_on() -> None:
    assert problems_of(timeline(timed("a", 40), timed("late", 4, start_step=12)), max_train_steps=12) == []
    assert problems_of(timeline(timed("a", 4), timed("late", 4, start_epoch=3)), max_train_steps=9) == []


def test_epochs_of_a_run_are_summed_up() -> None:
    found = timeline(timed("a", 4), timed("b", 6, start_epoch=3))
    chosen = options_with(max_train_steps=0, num_train_epochs=4)
    assert run_steps(chosen, found) == 28
    understood = understood_length(chosen, found)
    assert (understood["steps"], understood["epochs"]) == (28, 4)
    assert understood["schedule"] == [
        {"first_epoch": 1, "last_epoch": 2, "first_step": 1, "steps_per_epoch": 4, "datasets": ["a"]},
        {"first_epoch": 3, "last_epoch": 4, "first_step": 9, "steps_per_epoch": 10, "datasets": ["a", "b"]},
    ]
    assert "schedule" not in understood_length(chosen, timeline(timed("a", 4)))


def test_parts_of_epochs_are_exact() -> None:
    found = timeline(timed("a", 3), timed("b", 4, start_epoch=2))
    assert [found.steps_for(Fraction(number, 2)) for number in range(5)] == [0, 2, 3, 7, 10]
    assert found.passed(5) == 1 + Fraction(2, 7)
    assert math.isclose(float(found.passed(17)), 3.0)

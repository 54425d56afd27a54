"""Whether every part of an epoch holds the mixture that was asked for."""

from __future__ import annotations

import math
import threading
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from tests.helpers.params import first_fast
from tests.trainer_engine.batches.test_sampler import bucket_of, counted, epoch, sampler, source
from trainer_engine.batches.order import EpochOrder, Epochs, SetBatches, _log, bucket_batches, interleave
from trainer_engine.batches.sampler import Sampler
from trainer_engine.datasets.shares import SetNumbers, shares

SEEDS = range(5)
DEVIATIONS = 4.5
"""Beyond this, a share of a fair draw falls once in 150,000 times."""
RECORDED_BY_SIZE = [0, 0, 2, 0, 2, 0, 1, 0, 2, 1, 0, 2]
RECORDED_UNIFORM = [0, 0, 2, 0, 0, 2, 1, 1, 2, 0, 2, 0]
RECORDED_SAMPLES = [[0, 4, 1, 3], [2, 4, 2, 0], [1, 3, 0, 2]]


def tenths(found: Sampler, key: tuple[str, str] | str) -> list[int]:
    """How many batches of a set, or of a bucket of a set, lie in each tenth of the first epoch."""
    return tenths_of([bucket_of(batch) for batch in epoch(found)], key)


def tenths_of(order: list[tuple[str, str]], key: tuple[str, str] | str) -> list[int]:
    is_it = [key in (one, one[0]) for one in order]
    edges = [round(part * len(order) / 10) for part in range(11)]
    return [sum(is_it[start:end]) for start, end in zip(edges, edges[1:])]


def assert_hypergeometric(counts: list[int], of: int, total: int) -> None:
    """Each count of a tenth is one of a draw of ``total / 10`` from ``total`` without replacement, of which ``of`` count."""
    share, taken = of / total, total / 10
    deviation = math.sqrt(taken * share * (1 - share) * (total - taken) / (total - 1))
    assert sum(counts) == of
    assert all(abs(count - taken * share) <= DEVIATIONS * deviation + 1 for count in counts), counts


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_set_is_spread_over_the_epoch_of_a_large_one(seed: int) -> None:
    found = sampler(source("small", (20,)), source("large", (200,)), batch=1, seed=seed)
    assert_hypergeometric(tenths(found, "small"), 20, 220)
    order = [bucket_of(batch)[0] for batch in epoch(found)]
    assert max(place for place, id in enumerate(order) if id == "small") > 165


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rare_bucket_is_spread_over_the_epoch(seed: int) -> None:
    assert_hypergeometric(tenths(sampler(source("a", (9_500, 500)), batch=1, seed=seed), ("a", "1")), 500, 10_000)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_fifty_buckets_of_all_sizes_are_spread_over_the_epoch(batch: int) -> None:
    sizes = tuple(7 * number + 1 for number in range(50))
    found = sampler(source("a", sizes), batch=batch)
    order = [bucket_of(batch) for batch in epoch(found)]
    for number, size in enumerate(sizes):
        assert_hypergeometric(tenths_of(order, ("a", str(number))), -(-size // batch), found.batches_per_epoch)


@pytest.mark.parametrize("seed", SEEDS)
def test_repeats_count_in_the_weight_of_a_set(seed: int) -> None:
    found = sampler(source("repeated", (20,), passes=10), source("large", (200,)), batch=1, seed=seed)
    assert_hypergeometric(tenths(found, "repeated"), 200, 400)


def test_each_pass_over_a_bucket_ends_before_the_next_begins() -> None:
    found = sampler(source("a", (30,), passes=3), source("b", (50,)), batch=5)
    names = [item.sample.name for batch in epoch(found) for item in batch if item.source == "a"]
    assert [len(set(names[start : start + 30])) for start in (0, 30, 60)] == [30, 30, 30]


@pytest.mark.parametrize("by_size", [True, False])
def test_probabilities_of_one_and_a_tenth_are_ten_to_one(by_size: bool) -> None:
    sets = (source("often", (5_000,)), source("seldom", (5_000,), weight=0.1))
    found = sampler(*sets, batch=1, by_size=by_size)
    firsts = Counter(bucket_of(found.step(step)[0])[0] for step in range(1_000))
    assert firsts["seldom"] == pytest.approx(1_000 / 11, abs=DEVIATIONS * math.sqrt(1_000 * 10 / 121) + 5)


def test_a_set_of_low_probability_is_seen_whole_in_an_epoch() -> None:
    found = sampler(source("often", (40,)), source("seldom", (30,), passes=2, weight=1e-3), batch=1)
    seen = counted(epoch(found))
    assert {seen[f"seldom-0-{number}.png"] for number in range(30)} == {2}
    assert [bucket_of(batch)[0] for batch in epoch(found)][-1] == "seldom"


def test_uniform_sampling_chooses_sets_by_probability_alone_while_both_last() -> None:
    found = sampler(source("small", (300,)), source("large", (10_000, 2_000)), batch=1, by_size=False)
    order = [bucket_of(batch) for batch in epoch(found)]
    firsts = Counter(order[:400])
    assert firsts["small", "0"] == pytest.approx(200, abs=DEVIATIONS * 10)
    assert firsts["large", "1"] == pytest.approx(200 / 6, abs=DEVIATIONS * 6)
    last = max(place for place, one in enumerate(order) if one[0] == "small")
    assert 480 <= last <= 760


@pytest.mark.parametrize("by_size", first_fast([True, False]))
def test_the_first_batches_have_the_share_that_validate_reports(by_size: bool) -> None:
    weights, batches = (1.0, 0.5, 4.0), (300, 50, 20)
    said = shares([SetNumbers(count, weight) for count, weight in zip(batches, weights)], by_size=by_size)
    sets = [source(name, (count,), weight=weight) for name, count, weight in zip("abc", batches, weights)]
    firsts = Counter(bucket_of(sampler(*sets, batch=1, seed=seed, by_size=by_size).step(0)[0])[0] for seed in range(1_500))
    for name, share in zip("abc", said):
        deviation = math.sqrt(share.at_start * (1 - share.at_start) / 1_500)
        assert firsts[name] / 1_500 == pytest.approx(share.at_start, abs=DEVIATIONS * deviation)


def test_shares_add_up_and_a_set_without_batches_has_none() -> None:
    said = shares([SetNumbers(30, 1.0), SetNumbers(0, 1.0), SetNumbers(10, 0.0)], by_size=True)
    assert [(one.at_start, one.of_epoch) for one in said] == [(1.0, 0.75), (0.0, 0.0), (0.0, 0.25)]


def test_the_same_order_is_made_on_every_machine() -> None:
    """Recorded once; another order here is another rule, and needs another ORDER_VERSION."""
    found = interleave([SetBatches((6, 2), 1.0, 5), SetBatches((4,), 0.3, 9)], by_size=True)
    assert found.tolist() == RECORDED_BY_SIZE
    found = interleave([SetBatches((6, 2), 1.0, 5), SetBatches((4,), 0.3, 9)], by_size=False)
    assert found.tolist() == RECORDED_UNIFORM
    assert bucket_batches(5, 12, 4, 3).tolist() == RECORDED_SAMPLES


def test_the_logarithm_is_that_of_the_library_to_the_last_digits() -> None:
    values = np.concatenate([np.random.default_rng(1).random(10_000), [2.0**-54, 0.5, np.nextafter(0.5, 0), 1.0]])
    np.testing.assert_allclose(_log(values), np.log(values), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("weights", [(1e300, 1e-300), (5e-324, 1.0)])
def test_the_most_unequal_probabilities_still_give_a_whole_epoch(weights: tuple[float, float]) -> None:
    for by_size in (True, False):
        found = sampler(source("a", (9,), weight=weights[0]), source("b", (9,), weight=weights[1]), by_size=by_size)
        assert len(counted(epoch(found))) == 18


def test_filling_up_takes_other_samples_than_those_of_the_batch() -> None:
    for seed in range(20):
        last = bucket_batches(9, 9, 4, seed)[-1].tolist()
        assert len(set(last)) == 4


def test_the_next_epoch_is_planned_before_it_is_asked_for_and_no_thread_stays() -> None:
    found = sampler(source("a", (4_000,)), batch=1)
    planned: list[int] = []
    plan = found._plan_epoch
    found._epochs._plan = lambda epoch: planned.append(epoch) or plan(epoch)
    found.step(100)
    assert planned == [0]
    found.step(2_000)
    found._epochs.plan(1)
    assert planned == [0, 1]
    ahead = found.step(4_000)
    for thread in threading.enumerate():
        if thread.name.startswith("order of an epoch"):
            thread.join(10)
            assert not thread.is_alive()
    assert ahead == sampler(source("a", (4_000,)), batch=1).step(4_000)


def planning_cost(*buckets: int) -> float:
    """Processor seconds of one plan, the least of three."""
    found = sampler(source("a", buckets), batch=4)
    taken = []
    for epoch_number in range(3):
        before = time.process_time()
        found._plan_epoch(epoch_number)
        taken.append(time.process_time() - before)
    return min(taken)


def test_planning_one_large_bucket_costs_about_what_fifty_small_ones_cost() -> None:
    """The cost is linear in the samples, not quadratic in the largest bucket: that would be fifty times as much."""
    assert planning_cost(30_000) < 8 * planning_cost(*[600] * 50)


def test_a_plan_takes_a_few_bytes_a_sample() -> None:
    found = sampler(source("a", (50_000,)), batch=4)
    tracemalloc.start()
    try:
        plan = found._plan_epoch(0).order
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(np.unique(plan.samples[0]), np.arange(50_000))
    assert kept < 50_000 * 12 and peak < 50_000 * 100


def empty_order() -> EpochOrder:
    return EpochOrder(np.zeros(0, np.int32), np.zeros(0, np.int32), ())


def test_an_epoch_that_many_threads_ask_for_is_planned_once() -> None:
    planned: list[int] = []
    start, orders = threading.Barrier(8), []

    def plan(epoch: int) -> EpochOrder:
        planned.append(epoch)
        return empty_order()

    epochs = Epochs(plan)

    def ask() -> None:
        start.wait()
        orders.append([epochs.plan(number) for number in (0, 1)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(planned) == [0, 1]
    assert len({id(order) for pair in orders for order in pair}) == 2


def test_an_epoch_that_cannot_be_planned_fails_when_it_is_used_and_not_before() -> None:
    def plan(epoch: int) -> EpochOrder:
        if epoch == 1:
            raise MemoryError("no room for the order")
        return empty_order()

    epochs = Epochs(plan)
    epochs.prepare(1)
    assert len(epochs.plan(0).buckets) == 0
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            epochs.plan(1)


@pytest.mark.parametrize("by_size", [True, False])
def test_a_step_is_the_same_for_threads_that_ask_in_any_order(by_size: bool) -> None:
    one, shared = (sampler(source("a", (9, 4)), source("b", (6,)), by_size=by_size) for _ in range(2))
    steps = [*range(4 * one.steps_per_epoch)]
    wanted, found = {step: one.step(step) for step in steps}, {}

    def read(mine: list[int]) -> None:
        for step in mine:
            found[step] = shared.step(step)

    threads = [threading.Thread(target=read, args=(steps[first::5][:: 1 if first % 2 else -1],)) for first in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted

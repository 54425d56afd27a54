"""How images are grouped into buckets, and how often those of short ones are repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.batches.order import bucket_batches
from trainer_engine.batches.sampler import DataSource
from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.buckets import Effective, bucket_key, count_buckets, fill_buckets, samples_seen, short_buckets
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.local import LocalSource


def sample(target: Size, name: str = "a.png") -> Sample:
    return Sample(LocalSource("/root"), name, 1, 1, *target, target, target, CropPlan("center", 1.0), bucket_key(target, 2), ("x",))


def check(sizes: dict[Size, int], effective: Effective, *, repeats: int = 0, oversubscribed: bool = False) -> Problem | None:
    entry = ImageSet.model_validate({"position": 3, "id": "cats", "instance_data_dir": "/root", "repeats": repeats})
    samples = [sample(size, f"{number}.png") for size, count in sizes.items() for number in range(count)]
    at_least = effective.samples if oversubscribed else 0
    counts = count_buckets(samples, fill_buckets(samples), repeats=repeats, rounding=2, at_least=at_least)
    return short_buckets(entry, counts, effective)


def test_samples_of_one_size_share_a_bucket() -> None:
    samples = [sample((64, 128)), sample((128, 64)), sample((64, 128))]
    assert fill_buckets(samples) == {"0.5 (64x128)": [0, 2], "2 (128x64)": [1]}


def test_two_sizes_of_one_rounded_aspect_are_kept_apart() -> None:
    assert bucket_key((1088, 960), 1) != bucket_key((1152, 1024), 1)


def test_buckets_are_ordered_by_aspect() -> None:
    assert list(fill_buckets([sample((128, 64)), sample((64, 64)), sample((64, 128))])) == ["0.5 (64x128)", "1 (64x64)", "2 (128x64)"]


def test_a_bucket_that_fills_a_batch_is_no_problem() -> None:
    assert check({(64, 64): 2}, Effective(2, 4, 1)) is None
    assert check({(64, 64): 1}, Effective(2, 1, 1), repeats=1) is None


def test_a_short_bucket_is_a_note_that_says_how_often_its_images_are_seen() -> None:
    problem = check({(64, 64): 9, (64, 128): 3}, Effective(4, 2, 1))
    assert problem is not None
    assert (problem.option, problem.code, problem.level) == ("dataloader[3].repeats", "bucket_too_small", Level.NOTE)
    assert "0.5 (64x128): 3 images, seen 1.33 times" in problem.message and "cats" in problem.message and "64x64" not in problem.message
    assert problem.expected == "at least 4 samples in every bucket (train_batch_size 4)"


def test_processes_count_too() -> None:
    problem = check({(64, 64): 3}, Effective(2, 1, 2))
    assert problem is not None and "train_batch_size 2 x num_processes 2 = 4" in problem.expected


def test_repeats_count_as_samples_of_a_bucket() -> None:
    problem = check({(64, 64): 1}, Effective(4, 1, 1), repeats=1)
    assert problem is not None and "1 image, seen 4 times" in problem.message


def test_the_most_repeated_bucket_is_named_first() -> None:
    problem = check({(64, 64): 3, (64, 128): 1, (128, 64): 2}, Effective(4, 1, 1))
    assert problem is not None
    assert [part.split(", seen")[0].split(": ")[-1] for part in problem.message.split("; ")] == ["1 image", "2 images", "3 images"]


def test_oversubscription_repeats_short_buckets_alone() -> None:
    samples = [sample((64, 64), str(number)) for number in range(9)] + [sample((64, 128))]
    counts = count_buckets(samples, fill_buckets(samples), repeats=0, rounding=2, at_least=4)
    assert {bucket.size: bucket.samples for bucket in counts} == {(64, 64): 9, (64, 128): 4}
    problem = check({(64, 64): 9, (64, 128): 1}, Effective(2, 2, 1), oversubscribed=True)
    assert problem is not None and "1 of 2 buckets" in problem.message and "1 image, seen 4 times" in problem.message


def test_many_short_buckets_are_counted_and_not_all_listed() -> None:
    problem = check({(64, 64 * height): 1 for height in range(1, 31)}, Effective(2, 1, 1))
    assert problem is not None
    assert "30 of 30 buckets" in problem.message and "and 18 more" in problem.message


@pytest.mark.parametrize(("images", "repeats", "at_least", "seen"), [(5, 0, 0, 5), (5, 2, 0, 15), (5, 0, 8, 8), (5, 2, 8, 15)])
def test_the_report_and_the_sampler_count_the_same_samples(images: int, repeats: int, at_least: int, seen: int) -> None:
    members = tuple(sample((64, 64), str(number)) for number in range(images))
    [bucket] = count_buckets(members, fill_buckets(members), repeats=repeats, rounding=2, at_least=at_least)
    source = DataSource("set", (members,), repeats, 1.0, at_least)
    assert samples_seen(images, repeats, at_least) == bucket.samples == source.seen(images) == seen


@pytest.mark.parametrize(("samples", "batch", "batches"), [(4, 2, 2), (5, 2, 3), (1, 8, 1)])
def test_the_last_batch_is_filled_up(samples: int, batch: int, batches: int) -> None:
    members = [sample((64, 64), str(number)) for number in range(samples)]
    [bucket] = count_buckets(members, fill_buckets(members), repeats=0, rounding=2, at_least=0)
    assert bucket.batches(batch) == batches


@given(
    images=st.integers(1, 40),
    batch=st.integers(1, 8),
    accumulation=st.integers(1, 4),
    processes=st.integers(1, 4),
    repeats=st.integers(0, 3),
)
def test_the_note_says_what_the_sampler_does(images: int, batch: int, accumulation: int, processes: int, repeats: int) -> None:
    effective = Effective(batch, accumulation, processes)
    problem = check({(64, 64): images}, effective, repeats=repeats)
    assert (problem is None) == (images * (repeats + 1) >= batch * processes)
    rows = bucket_batches(images, images * (repeats + 1), batch * processes, seed=1)
    seen = rows.size / images
    assert problem is None or f"seen {seen:.3g} times" in problem.message
    assert set(rows.ravel().tolist()) == set(range(images))

"""Sets whose images are cropped anew in each epoch: crops, buckets and the length of epochs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.batches.sampler import Sampler
from trainer_engine.batches.sources import data_source, make_sampler, trained_sets
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.buckets import fill_buckets
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.epoch_crops import EpochCrops
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.fitting import Fitter
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.samples import CropPlan, Reference, Sample
from trainer_engine.datasets.schedule import run_steps, understood_length
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.summary import summarise
from trainer_engine.datasets.timeline import CHANGING_EPOCHS, TimedSet, Timeline

ANEW: dict[str, Any] = {"crop": True, "vae_cache_clear_each_epoch": True}
ASPECTS: dict[str, Any] = {**ANEW, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 0.75, 1.0, 1.5, 2.0]}


def entry_of(**fields: Any) -> ImageSet:
    options = parse_options(tiny_options(Path("/nowhere")))
    [images, texts] = [{"id": "a", "type": "local", "instance_data_dir": "/data", **fields}, {"id": "t", "dataset_type": "text_embeds"}]
    dataloader, problems = parse_dataloader([images, texts], options)
    assert not [problem for problem in problems if problem.level is Level.ERROR]
    return dataloader.image_sets[0]


def crops_of(sizes: list[tuple[int, int]], **fields: Any) -> EpochCrops:
    """Images of these sizes in a set with these fields."""
    entry = entry_of(**fields)
    fitter = Fitter(entry, alignment=16, rounding=2)
    samples = []
    for number, size in enumerate(sizes):
        name = f"{number}.png"
        fitted = fitter.fit(size, name)
        where = {"source": LocalSource("/data"), "name": name, "size_bytes": 1, "version": 0, "width": size[0], "height": size[1]}
        how = {"resized": fitted.resized, "target": fitted.target, "crop": fitted.crop, "bucket": fitted.bucket, "captions": ("a",)}
        samples.append(Sample(**where, **how))  # type: ignore[arg-type]
    return EpochCrops(entry, fitter, samples)


def examined(place: Path, *, options: dict[str, Any] | None = None, **fields: Any) -> tuple[DatasetReport, TrainingOptions]:
    parsed = parse_options(tiny_options(place, resolution=256, **(options or {})))
    spec = find_spec(parsed.model.model_family)
    assert spec is not None
    dataloader, problems = parse_dataloader(tiny_datasets(place, **fields), parsed)
    report = examine(dataloader, parsed, spec)
    report.problems += problems
    return report, parsed


def sampler_of(report: DatasetReport, options: TrainingOptions) -> Sampler:
    return make_sampler([data_source(found, found.samples) for found in trained_sets(report)], options, processes=1)


@given(
    sizes=st.lists(st.tuples(st.integers(40, 400), st.integers(40, 400)), min_size=1, max_size=60),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    limit=st.sampled_from([None, 0.0, 0.3]),
    epoch=st.one_of(st.integers(0, 40), st.integers(CHANGING_EPOCHS - 2, CHANGING_EPOCHS + 3)),
)
@settings(max_examples=150, deadline=None)
def test_buckets_are_counted_without_looking_at_each_image(
    sizes: list[tuple[int, int]], weights: list[int], limit: float | None, epoch: int
) -> None:
    aspects = [{"aspect": 0.5 + 0.4 * number, "weight": weight / sum(weights)} for number, weight in enumerate(weights)]
    chosen = {"crop_aspect_buckets": aspects, "max_upscale_threshold": limit, "resolution": 128}
    crops = crops_of(sizes, **{**ASPECTS, **chosen})
    buckets = crops.buckets(epoch)
    assert crops.bucket_sizes(epoch) == tuple(map(len, buckets))
    moved = [crops.of(sample, epoch) for sample in crops.samples]
    assert buckets == list(fill_buckets(moved).values())
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(sizes)))


def test_an_image_gets_its_aspects_as_often_as_their_weights_say() -> None:
    weights = {0.5: 0.2, 1.0: 0.5, 2.0: 0.3}
    crops = crops_of(
        [(400, 400)] * 5, **{**ASPECTS, "crop_aspect_buckets": [{"aspect": one, "weight": each} for one, each in weights.items()]}
    )
    for sample in crops.samples:
        seen = Counter(crops.of(sample, epoch).crop.aspect for epoch in range(100))
        assert all(abs(seen[aspect] - 100 * weight) <= 3 for aspect, weight in weights.items())


def test_each_epoch_crops_at_a_new_place_and_repeats_itself() -> None:
    crops = crops_of([(400, 128)] * 3, **ANEW, resolution=128)
    for sample in crops.samples:
        places = [crop_window(crops.of(sample, epoch), 5) for epoch in range(30)]
        assert places == [crop_window(crops.of(sample, epoch), 5) for epoch in range(30)]
        assert len(set(places)) > 20 and all(0 <= left <= sample.resized[0] - 128 and top == 0 for left, top in places)
        assert places[0] == crop_window(sample, 5)
        assert places != [crop_window(crops.of(sample, epoch), 6) for epoch in range(30)]


def test_masks_and_strict_references_move_with_their_image_and_loose_ones_stay() -> None:
    crops = crops_of([(400, 300)], **ASPECTS)
    [image] = crops.samples
    strict = image._replace(name="strict.png", random_name=image.name)
    loose = image._replace(name="loose.png", target=(48, 32), resized=(48, 32), crop=CropPlan("center", 1.5))
    paired = image._replace(references=(Reference("strict", strict), Reference("loose", loose)), mask=Reference("mask", strict))
    for epoch in range(1, 8):
        moved = crops.of(paired, epoch)
        assert moved.mask is not None
        for one in (moved.references[0].sample, moved.mask.sample):
            assert (one.target, one.resized, crop_window(one, 3)) == (moved.target, moved.resized, crop_window(moved, 3))
        assert moved.references[1].sample == loose
        assert moved.bucket.endswith(" with 48x32") and f"({moved.target[0]}x{moved.target[1]})" in moved.bucket


def test_aspects_that_the_limits_of_a_set_exclude_are_never_chosen() -> None:
    crops = crops_of([(300, 300)] * 20, **ASPECTS, minimum_aspect_ratio=0.8)
    found = {crops.of(sample, epoch).crop.aspect for sample in crops.samples for epoch in range(20)}
    assert found == {1.0, 1.5, 2.0}
    assert not any(crops.fitter.fit((300, 300), sample.name).reason for sample in crops.samples)


def alternating(epoch: int) -> tuple[int, ...]:
    return (2, 1) if epoch % 3 else (4,)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_epochs_of_a_timeline_have_the_batches_of_their_buckets(accumulation: int) -> None:
    found = Timeline((TimedSet("a", (4,), 1.0, changing=alternating), TimedSet("b", (3,), 1.0)), accumulation, seed=1, by_size=True)
    for epoch in (*range(9), CHANGING_EPOCHS, CHANGING_EPOCHS + 5):
        wanted = sum(alternating(min(epoch, CHANGING_EPOCHS - 1))) + 3
        assert found.length(epoch) == -(-wanted // accumulation)
        start = found.start_of(epoch)
        assert found.epoch_of(start) == epoch and found.epoch_of(start + found.length(epoch) - 1) == epoch
    for epoch in range(5):
        buckets, numbers = found.order(epoch)
        given = list(zip(buckets.tolist(), numbers.tolist(), strict=True))[: sum(alternating(epoch)) + 3]
        assert Counter(bucket for bucket, _ in given) == Counter(dict(enumerate((*alternating(epoch), 3))))
        assert len(set(given)) == len(given) and len(buckets) == found.length(epoch) * accumulation
    assert found.end is None


def test_every_image_is_seen_once_in_each_epoch_with_its_crop(tmp_path: Path) -> None:
    report, options = examined(tmp_path, images=13, **ASPECTS)
    found = sampler_of(report, options)
    lengths = set()
    for epoch in range(6):
        steps = range(found.timeline.start_of(epoch), found.timeline.start_of(epoch + 1))
        lengths.add(len(steps))
        batches = [batch for step in steps for batch in found.step(step)]
        assert set(Counter(item.sample.name for batch in batches for item in batch)) == {sample.name for sample in report.sets[0].samples}
        assert all(item.sample.epoch == epoch for batch in batches for item in batch)
        assert all(len({item.sample.bucket for item in batch}) == 1 == len({item.sample.target for item in batch}) for batch in batches)
    assert len(lengths) > 1, "the test is of epochs of different lengths"
    assert report.timeline.stretches[:5] == found.timeline.stretches[:5]


def test_the_report_says_how_long_epochs_are(tmp_path: Path) -> None:
    report, options = examined(tmp_path, options={"max_train_steps": 0, "num_train_epochs": 7}, images=13, **ASPECTS)
    found = sampler_of(report, options)
    steps = run_steps(options, report.timeline)
    assert steps == sum(found.timeline.length(epoch) for epoch in range(7))
    understood = understood_length(options, report.timeline)
    parts: Any = understood["schedule"]
    counted = [(part["last_epoch"] - part["first_epoch"] + 1) * part["steps_per_epoch"] for part in parts]
    assert (understood["steps"], understood["epochs"]) == (steps, 7) and sum(counted) == steps
    [note] = [problem for problem in report.problems if problem.code == "new_crops"]
    lengths = [found.timeline.length(epoch) for epoch in range(7)]
    assert f"epochs have {min(lengths)} to {max(lengths)} steps" in note.message and note.level is Level.NOTE
    assert summarise(report)["steps_per_epoch"] == lengths[0]


def notes(problems: list[Problem]) -> list[str]:
    return [problem.code for problem in problems if problem.option.endswith("vae_cache_clear_each_epoch")]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"crop": True}, ["new_crops"]),
        ({"crop": True, "crop_style": "center", "crop_aspect": "random", "crop_aspect_buckets": [0.5, 2.0]}, ["new_crops"]),
        ({"crop": True, "crop_style": "center"}, ["no_effect"]),
        ({"crop": True, "crop_style": "corner", "crop_aspect": "closest", "crop_aspect_buckets": [0.5, 2.0]}, ["no_effect"]),
        ({"crop": False}, ["no_effect"]),
    ],
)
def test_validate_says_whether_crops_change(tmp_path: Path, fields: dict[str, Any], found: list[str]) -> None:
    report, options = examined(tmp_path, vae_cache_clear_each_epoch=True, **fields)
    assert notes(report.problems) == found
    [source] = sampler_of(report, options).sources
    assert (source.crops is not None) == (found == ["new_crops"])


def test_a_set_without_the_field_is_as_before(tmp_path: Path) -> None:
    report, options = examined(tmp_path, **{**ASPECTS, "vae_cache_clear_each_epoch": False})
    assert len(report.timeline.stretches) == 1 and "schedule" not in understood_length(options, report.timeline)
    assert report.sets[0].frequency == (1, 0, 1.0)
    assert all(item.sample.epoch == 0 for step in range(20) for batch in sampler_of(report, options).step(step) for item in batch)


def test_a_thousand_epochs_of_many_images_are_counted() -> None:
    crops = crops_of([(300 + number % 7, 200 + number % 11) for number in range(5_000)], **ASPECTS)
    sizes = [crops.bucket_sizes(epoch) for epoch in range(CHANGING_EPOCHS)]
    assert all(sum(one) == 5_000 for one in sizes) and len(set(sizes)) > 500

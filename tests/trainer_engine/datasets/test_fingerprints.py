"""A checkpoint records what its samples were; the fingerprint of one follows whatever decides how it is trained, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer_engine.batches.test_sampler import sample
from trainer_engine.config.resuming.choice import SavedRun, data_differences, is_same
from trainer_engine.contract.checkpoint_files import SAMPLES_FILE
from trainer_engine.datasets.samples import CropPlan, Reference, Sample, fingerprint
from trainer_engine.datasets.sources.local import LocalSource

ONE = sample("cat.png")._replace(references=(Reference("sketches", sample("cat-sketch.png")),))


def known(cache: str, one: Sample) -> str:
    return f"content of {one.name} in {cache}"


def of(one: Sample, *, frequency: tuple[object, ...] = (0, 1.0), content_of: Any = known) -> str:
    return fingerprint("set", one, frequency, content_of)


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 2},
        {"resized": (128, 64)},
        {"target": (64, 128)},
        {"crop": CropPlan("random", 1.0)},
        {"captions": ("another caption",)},
        {"captions": ("a caption", "a caption")},
        {"references": ()},
        {"references": (Reference("photos", sample("cat-sketch.png")),)},
        {"references": (Reference("sketches", sample("dog-sketch.png")),)},
    ],
    ids=str,
)
def test_a_fingerprint_follows_what_decides_how_a_sample_is_trained(change: dict[str, Any]) -> None:
    assert not is_same(of(ONE), of(ONE._replace(**change)))


@pytest.mark.parametrize(
    "change", [{"source": LocalSource("/elsewhere")}, {"version": 99}, {"remark": "a note"}, {"bucket": "renamed"}], ids=str
)
def test_a_fingerprint_survives_a_copy_of_the_data(change: dict[str, Any]) -> None:
    assert of(ONE) == of(ONE._replace(**change))


def test_a_fingerprint_follows_how_often_a_sample_is_seen() -> None:
    assert not is_same(of(ONE), of(ONE, frequency=(1, 1.0)))


def test_contents_are_compared_only_if_both_are_known() -> None:
    unknown, other = of(ONE, content_of=lambda *_: ""), of(ONE, content_of=lambda cache, one: "other bytes")
    assert is_same(of(ONE), unknown) and is_same(unknown, of(ONE)) and not is_same(of(ONE), other)


def test_a_reference_of_unknown_content_leaves_the_whole_sample_without_one() -> None:
    half = of(ONE, content_of=lambda cache, one: "" if "sketch" in one.name else known(cache, one))
    assert " " not in half and is_same(half, of(ONE))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"pictures": {"a.png": "1 x", "b.png": "2"}}, []),
        ({"pictures": {"a.png": "1", "b.png": "2 y"}}, []),
        ({"pictures": {"a.png": "1 z", "b.png": "2"}}, ["dataset pictures: 1 changed (a.png)"]),
        ({"pictures": {"a.png": "1 x", "c.png": "2"}}, ["dataset pictures: 1 added (c.png)", "dataset pictures: 1 removed (b.png)"]),
        ({"drawings": {}}, ["dataset drawings is new", "dataset pictures is gone"]),
    ],
)
def test_differences_name_the_samples(tmp_path: Any, now: dict[str, dict[str, str]], told: list[str]) -> None:
    (tmp_path / SAMPLES_FILE).write_text('{"pictures": {"a.png": "1 x", "b.png": "2"}}')
    assert data_differences(SavedRun(tmp_path, 5, {"layout": {}}), {}, now, {}) == told


def test_many_changed_samples_are_counted_and_the_changed_setting_is_named(tmp_path: Any) -> None:
    names = [f"{number:02}.png" for number in range(12)]
    (tmp_path / SAMPLES_FILE).write_text('{"pictures": {' + ", ".join(f'"{name}": "1"' for name in names) + "}}")
    saved = SavedRun(tmp_path, 5, {"layout": {"seed": 1}, "settings": {"pictures": {"repeats": 0, "crop": True}}})
    found = data_differences(saved, {"seed": 2}, {"pictures": dict.fromkeys(names, "2")}, {"pictures": {"repeats": 3, "crop": True}})
    assert found == [
        "seed was 1 and is 2",
        "dataset pictures: repeats was 0 and is 3",
        "dataset pictures: 12 changed (00.png, 01.png, 02.png, 03.png, 04.png, and 7 more)",
    ]

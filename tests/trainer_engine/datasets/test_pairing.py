"""Images and their references: found by name, of one size where that is asked for, and everything else reported at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.models import options_with
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport

SPEC = find_spec("flux")


def paint(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name) * 9 % 256, 80, 120)).save(path)


def document(place: Path, kind: str = "reference_strict", **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": "edits", "instance_data_dir": str(place / "edits"), "conditioning_data": ["refs"], "resolution": 64, "crop": True, **fields},
        {"id": "refs", "dataset_type": "conditioning", "conditioning_type": kind, "instance_data_dir": str(place / "refs")},
        {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "texts")},
    ]


def looked_at(place: Path, entries: list[dict[str, Any]], flavour: str = "kontext", **facts: Any) -> tuple[DatasetReport, list[Problem]]:
    """``facts``: of the family, in the place of its own."""
    options = parse_options(
        {
            "model_family": "flux",
            "model_flavour": flavour,
            "model_type": "lora",
            "output_dir": str(place / "out"),
            "data_backend_config": "d",
            "max_train_steps": 1,
            "train_batch_size": 1,
        }
    )
    dataloader, problems = parse_dataloader(entries, options)
    assert SPEC is not None
    report = examine(dataloader, options, replace(SPEC, **facts))
    return report, problems + report.problems


def reported(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is not Level.NOTE}


PAIRS = {"a.png": (96, 80), "sub/b.png": (96, 96)}


def test_matching_pairs_are_found_without_a_note(tmp_path: Path) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    report, problems = looked_at(tmp_path, document(tmp_path))
    assert reported(problems) == set()
    for sample in report.sets[0].samples:
        ((set_id, reference),) = sample.references
        assert (set_id, reference.name) == ("refs", sample.name)
        assert reference.source.place == str(tmp_path / "refs")
        assert (reference.resized, reference.target) == (sample.resized, sample.target)


def test_a_strict_reference_is_cut_out_where_its_image_is(tmp_path: Path) -> None:
    paint(tmp_path / "edits", {"a.png": (160, 96), "b.png": (160, 96)})
    paint(tmp_path / "refs", {"a.jpg": (160, 96), "b.png": (160, 96)})
    report, problems = looked_at(tmp_path, document(tmp_path, crop_style="random"))
    assert reported(problems) == set()
    for sample in report.sets[0].samples:
        assert crop_window(sample.references[0].sample, 3) == crop_window(sample, 3)
    assert {sample.references[0].sample.name for sample in report.sets[0].samples} == {"a.jpg", "b.png"}


def test_every_problem_of_pairs_is_reported_at_once(tmp_path: Path) -> None:
    paint(tmp_path / "edits", {"alone.png": (96, 96), "unlike.png": (96, 96), "good.png": (96, 96), "broken.png": (96, 96)})
    paint(tmp_path / "refs", {"unlike.png": (128, 96), "good.png": (96, 96), "nobody.png": (96, 96)})
    (tmp_path / "refs/broken.png").write_bytes(b"no picture")
    report, problems = looked_at(tmp_path, document(tmp_path))
    option = "dataloader[1].instance_data_dir"
    assert reported(problems) >= {
        (option, "missing_reference"),
        (option, "unlike_sizes"),
        (option, "broken_reference"),
        (option, "unused_reference"),
    }
    text = " ".join(problem.message for problem in problems)
    for word in ("alone.png", "unlike.png (96x96 and 128x96)", "broken.png", "nobody.png"):
        assert word in text
    assert [sample.name for sample in report.sets[0].samples] == ["good.png"]


def test_two_references_of_the_same_name_are_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "edits", {"two.webp": (96, 96), "exact.png": (96, 96), "torn.png": (96, 96)})
    paint(tmp_path / "refs", {"two.png": (96, 96), "two.jpg": (96, 96), "exact.png": (96, 96)})
    (tmp_path / "refs/torn.jpg").write_bytes(b"no picture")
    report, problems = looked_at(tmp_path, document(tmp_path))
    option = "dataloader[1].instance_data_dir"
    assert reported(problems) == {(option, "several_references"), (option, "broken_reference")}
    text = " ".join(problem.message for problem in problems)
    assert "two.webp (two.jpg, two.png)" in text and "torn.jpg" in text
    assert [sample.name for sample in report.sets[0].samples] == ["exact.png"]


def test_loose_references_have_sizes_of_their_own_which_keep_buckets_apart(tmp_path: Path) -> None:
    paint(tmp_path / "edits", dict.fromkeys(("a.png", "b.png", "c.png"), (96, 96)))
    paint(tmp_path / "refs", {"a.png": (192, 96), "b.png": (192, 96), "c.png": (96, 96)})
    report, problems = looked_at(tmp_path, document(tmp_path, "reference_loose", resolution=128))
    assert reported(problems) == set()
    by_bucket: dict[str, set[tuple[int, int]]] = {}
    for sample in report.sets[0].samples:
        by_bucket.setdefault(sample.bucket, set()).add(sample.references[0].sample.target)
    assert len(by_bucket) == 2
    assert all(len(sizes) == 1 for sizes in by_bucket.values())
    assert {sample.target for sample in report.sets[0].samples} == {(128, 128)}


def test_a_flavour_that_edits_needs_references_and_another_takes_none(tmp_path: Path) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    plain = [{name: value for name, value in document(tmp_path)[0].items() if name != "conditioning_data"}, document(tmp_path)[2]]
    _, problems = looked_at(tmp_path, plain)
    assert ("dataloader[0].conditioning_data", "references_needed") in reported(problems)
    _, problems = looked_at(tmp_path, document(tmp_path), "dev")
    assert ("dataloader[0].conditioning_data", "no_references") in reported(problems)


@pytest.mark.parametrize(("kind", "fits"), [("reference_strict", True), ("controlnet", True), ("reference_loose", False)])
def test_a_network_that_sees_references_in_the_place_of_images_takes_those_of_their_size_alone(
    kind: str, fits: bool, tmp_path: Path
) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    _, problems = looked_at(tmp_path, document(tmp_path, kind), references_in_place=True)
    assert reported(problems) == (set() if fits else {("dataloader[0].conditioning_data", "reference_of_any_size")})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({0: {"conditioning_data": ["nowhere"]}}, ("dataloader[0].conditioning_data", "unknown_reference")),
        ({0: {"conditioning_data": 3}}, ("dataloader[0].conditioning_data", "not_a_list")),
        ({0: {"conditioning_data": None}}, ("dataloader[1].id", "not_linked")),
        ({1: {"conditioning_type": None}}, ("dataloader[1].conditioning_type", "missing")),
        ({1: {"instance_data_dir": "/nowhere"}}, ("dataloader[1].instance_data_dir", "missing_folder")),
        ({1: {"source_dataset_id": "texts"}}, ("dataloader[1].source_dataset_id", "unknown_reference")),
        ({1: {"repeats": 3}}, ("dataloader[1].repeats", "not_for_type")),
    ],
)
def test_wrong_entries_are_named(changes: dict[int, dict[str, Any]], wanted: tuple[str, str], tmp_path: Path) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    entries = document(tmp_path)
    for number, fields in changes.items():
        entries[number] |= fields
    _, problems = looked_at(tmp_path, entries)
    assert wanted in reported(problems)


def test_an_entry_with_a_conditioning_type_is_a_set_of_references(tmp_path: Path) -> None:
    entries = document(tmp_path)
    entries[1]["dataset_type"] = "image"
    dataloader, _ = parse_dataloader(entries, {"model_family": "flux", "output_dir": "o"})
    assert [entry.id for entry in dataloader.reference_sets] == ["refs"]
    again, problems = parse_dataloader(dataloader.as_document(), {"model_family": "flux", "output_dir": "o"})
    assert again == dataloader
    assert not [problem for problem in problems if problem.level is Level.ERROR]


def test_sizes_of_the_references_set_give_way_with_a_note(tmp_path: Path) -> None:
    entries = document(tmp_path)
    entries[1] |= {"resolution": 128}
    _, problems = parse_dataloader(entries, {"model_family": "flux", "output_dir": "o"})
    (problem,) = [problem for problem in problems if problem.code == "follows_partner"]
    assert (problem.option, problem.level) == ("dataloader[1].resolution", Level.NOTE)


@pytest.mark.parametrize("kind", ["reference_strict", "reference_loose", "controlnet"])
def test_a_conditioning_set_may_have_captions_of_its_own(kind: str, tmp_path: Path) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    entries = document(tmp_path, kind)
    entries[1] |= {"caption_strategy": "instanceprompt", "instance_prompt": ["make it blue", "blue"]}
    report, problems = looked_at(tmp_path, entries)
    assert reported(problems) == set()
    for sample in report.sets[0].samples:
        assert sample.captions != ("make it blue", "blue")
        assert sample.references[0].sample.captions == ("make it blue", "blue")


@pytest.mark.parametrize("strategy", ["textfile", "filename", "parquet", None])
def test_other_captions_of_a_conditioning_set_are_a_note(strategy: str | None, tmp_path: Path) -> None:
    paint(tmp_path / "edits", PAIRS)
    paint(tmp_path / "refs", PAIRS)
    entries = document(tmp_path)
    entries[1] |= {"caption_strategy": strategy, "instance_prompt": "blue"}
    report, problems = looked_at(tmp_path, entries)
    assert reported(problems) == set()
    noted = {problem.option for problem in problems if problem.code == "no_effect"}
    assert noted == {"dataloader[1].instance_prompt", *(["dataloader[1].caption_strategy"] if strategy else [])}
    assert all(sample.references[0].sample.captions == () for sample in report.sets[0].samples)


def test_captions_of_a_conditioning_set_need_their_text(tmp_path: Path) -> None:
    entries = document(tmp_path)
    entries[1] |= {"caption_strategy": "instanceprompt"}
    _, problems = looked_at(tmp_path, entries)
    assert ("dataloader[1].instance_prompt", "missing") in reported(problems)


def test_a_network_that_takes_references_looks_at_control_images_of_the_size_of_their_image(tmp_path: Path) -> None:
    paint(tmp_path / "edits", {"a.png": (160, 96)})
    paint(tmp_path / "refs", {"a.png": (160, 96)})
    report, problems = looked_at(tmp_path, document(tmp_path, "controlnet", crop_style="random"))
    assert reported(problems) == set()
    [sample] = report.sets[0].samples
    assert crop_window(sample.references[0].sample, 3) == crop_window(sample, 3)
    _, refused = looked_at(tmp_path, document(tmp_path, "controlnet"), flavour="dev")
    assert ("dataloader[0].conditioning_data", "needs_controlnet") in reported(refused)


@pytest.mark.parametrize(("number", "code"), [(10, None), (11, "too_many_references")])
def test_more_references_than_the_model_sees_are_refused(tmp_path: Path, number: int, code: str | None) -> None:
    spec = find_spec("flux3")
    assert spec is not None and spec.most_references == 10
    edits, kind, texts = document(tmp_path)
    paint(tmp_path / "edits", {"a.png": (96, 96)})
    paint(tmp_path / "refs", {"a.png": (96, 96)})
    sets = [{**kind, "id": f"refs{one}"} for one in range(number)]
    options = options_with(model_family="flux3", model_flavour="klein", output_dir=str(tmp_path / "out"))
    entries = [{**edits, "conditioning_data": [one["id"] for one in sets]}, *sets, texts]
    dataloader, problems = parse_dataloader(entries, options)
    found = [one for one in (*problems, *examine(dataloader, options, spec).problems) if one.level is Level.ERROR]
    assert [one.code for one in found] == ([code] if code else [])
    assert not found or (found[0].got == "11" and "FLUX.3 sees at most 10" in found[0].message)

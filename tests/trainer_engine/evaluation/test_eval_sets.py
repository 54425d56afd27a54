"""Which images a run evaluates on, and which captions it lends to the validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.models import options_with
from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import SetReport
from trainer_engine.evaluation.eval_sets import MOST_GENERATED, evaluated_sets, lent_prompts


def sets_of(place: Path, *names: str, **options: Any) -> tuple[list[SetReport], Any]:
    chosen = options_with(output_dir=str(place / "output"), **options)
    usual = {"resolution": 64, "resolution_type": "pixel"}
    entries = [{"id": name, "dataset_type": "eval", "instance_data_dir": str(place / name), **usual} for name in names]
    generate_images(place / "trained", count=1)
    dataloader, _ = parse_dataloader([{"id": "trained", "instance_data_dir": str(place / "trained"), **usual}, *entries], chosen)
    spec = find_spec("pixart_sigma")
    assert spec is not None
    return evaluated_sets(examine(dataloader, chosen, spec), chosen), chosen


def test_an_evaluation_takes_the_first_images_by_name_of_the_sets_in_use(tmp_path: Path) -> None:
    names = sorted(path.name for path in generate_images(tmp_path / "one", count=5))
    generate_images(tmp_path / "two", count=2)
    both, _ = sets_of(tmp_path, "one", "two", num_eval_images=3)
    assert [[sample.name for sample in found.samples] for found in both][0] == names[:3]
    assert [len(found.samples) for found in both] == [3, 2]
    chosen, _ = sets_of(tmp_path, "one", "two", eval_dataset_id="two")
    assert [found.entry.id for found in chosen] == ["two"]


def test_captions_become_prompts_named_after_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    for below, stem in (("", "validation"), ("a", "x y")):
        [picture] = generate_images(folder / below, count=1)
        picture.rename(folder / below / f"{stem}.png")
    sets, options = sets_of(tmp_path, "one", num_eval_images=100)
    prompts = lent_prompts(sets, options)
    assert [prompt.shortname for prompt in prompts] == ["x_y", "validation"]
    assert prompts[0].text == "x y"


def test_the_number_of_caption_prompts_is_bounded_and_zero_without_validation(tmp_path: Path) -> None:
    generate_images(tmp_path / "one", count=MOST_GENERATED + 2)
    sets, options = sets_of(tmp_path, "one", num_eval_images=100)
    assert (len(sets[0].samples), len(lent_prompts(sets, options))) == (MOST_GENERATED + 2, MOST_GENERATED)
    assert lent_prompts(sets, options_with(validation_disable=True)) == ()

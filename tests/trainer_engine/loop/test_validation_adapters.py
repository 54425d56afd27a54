"""Whole runs whose validations draw with an adapter that was trained before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.params import first_fast
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here
from tests.trainer_engine.adapters.test_validation_adapter import standard_file
from tests.trainer_engine.loop.test_validation import DRAWING, KINDS, assert_same_training, failing, steps_drawn
from trainer_engine.contract.errors import ExitCode, InvalidOptions
from trainer_engine.contract.events import ErrorEvent, ImageEvent, ProgressEvent

QUICK: dict[str, Any] = {"max_train_steps": 2, "learning_rate": 1e-2}
OFTEN: dict[str, Any] = {**DRAWING, "disable_benchmark": False, "validation_on_startup": True, "validation_step_interval": 1}
HOSTS = (
    "full with an average",
    "full, schedule-free",
    "standard",
    "dora",
    "lokr",
    "standard on a quantised base",
    "lokr on a quantised base",
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standard_file(tmp_path_factory.mktemp("trained-before"))


def names_drawn(run: HereRun) -> list[str]:
    return [Path(event.images[0].file).name for event in run.heard.of(ImageEvent)]


def image(run: HereRun, name: str) -> bytes:
    return (run.output_dir / "validation_images" / name).read_bytes()


@pytest.mark.parametrize("kind", first_fast(HOSTS))
def test_training_is_the_same_with_a_validation_adapter_and_without(kind: str, adapter: Path, tmp_path: Path) -> None:
    options = {**KINDS[kind](tmp_path), **QUICK}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **options)
    validation_adapters = {
        "validation_adapter_path": str(adapter),
        "validation_adapter_mode": "comparison",
        "validation_adapter_name": "style",
    }
    drawn = train_here(tmp_path, output_dir=str(tmp_path / "drawn"), **options, **OFTEN, **validation_adapters)
    assert_same_training(plain, drawn)
    assert not drawn.heard.of(ErrorEvent)
    assert image(drawn, "step_2_validation_0_64x64.png") != image(drawn, "step_2_validation_style_0_64x64.png")


@pytest.mark.parametrize("kind", ["full with an average", "lokr"])
def test_a_generation_that_fails_leaves_no_validation_adapter_in_training(
    kind: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**KINDS[kind](tmp_path), **QUICK}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **options)
    failing(monkeypatch, 1, torch.OutOfMemoryError("Tried to allocate 20.00 GiB"))
    drawing = {**DRAWING, "validation_step_interval": 1, "validation_adapter_path": str(adapter)}
    run = train_here(tmp_path, output_dir=str(tmp_path / "failing"), **options, **drawing)
    assert [event.code for event in run.heard.of(ErrorEvent)] == ["validation_out_of_memory"]
    assert 1 not in steps_drawn(run) and 2 in steps_drawn(run)
    assert_same_training(plain, run)


def test_files_and_events_name_the_validation_adapter(adapter: Path, tmp_path: Path) -> None:
    validation_adapters = {
        "validation_adapter_path": str(adapter),
        "validation_adapter_mode": "comparison",
        "validation_adapter_name": "my style",
    }
    run = train_here(tmp_path, **{**QUICK, **OFTEN, **validation_adapters, "max_train_steps": 1, "use_ema": True})
    names = ["", "_my_style", "_ema", "_ema_my_style"]
    startup = ["_startup", "_startup_my_style", "_ema", "_ema_my_style"]
    assert names_drawn(run) == [
        "step_0_validation_0_64x64.png",
        *(f"step_0_validation{name}_0_64x64.png" for name in startup),
        *(f"step_1_validation{name}_0_64x64.png" for name in names),
    ]
    assert run.heard.of(ImageEvent)[-1].title == "Validation (step 2/2): validation_ema_my style"
    totals = {event.total for event in run.heard.events if getattr(event, "total", None) in (2, 8)}
    assert totals == {2, 8}  # the base model's image, and four of two steps


def test_several_validation_adapters_are_used_in_turn(adapter: Path, tmp_path: Path) -> None:
    half = {"path": str(adapter), "strength": 0.5}
    runs = [{"name": "whole", "path": str(adapter)}, {"name": "two halves", "adapters": [half, half]}, {"label": "half", **half}]
    options = {**QUICK, **DRAWING, "validation_adapter_mode": "comparison", "validation_adapter_config": json.dumps(runs)}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **QUICK)
    run = train_here(tmp_path, output_dir=str(tmp_path / "several"), **options)
    names = [f"step_2_validation{label}_0_64x64.png" for label in ("", "_whole", "_two_halves", "_half")]
    assert names_drawn(run) == names
    without, whole, halves, half_of_it = (np.asarray(Image.open(run.output_dir / "validation_images" / name)).astype(int) for name in names)
    assert np.abs(whole - halves).max() <= 1
    assert min(np.abs(whole - half_of_it).max(), np.abs(half_of_it - without).max()) > 8
    assert_same_training(plain, run)


def test_all_validation_adapters_that_do_not_fit_are_reported_together(adapter: Path, tmp_path: Path) -> None:
    runs = [{"path": str(tmp_path / "a.safetensors")}, {"path": str(adapter)}, {"path": str(tmp_path / "b.safetensors")}]
    with pytest.raises(InvalidOptions) as refused:
        train_here(tmp_path, **QUICK, **DRAWING, validation_adapter_config=json.dumps(runs))
    assert [problem.option for problem in refused.value.problems] == [f"validation_adapter_config[{index}].path" for index in (0, 2)]


def test_a_single_validation_adapter_is_in_every_image_but_those_of_the_base_model(adapter: Path, tmp_path: Path) -> None:
    options = {**QUICK, **DRAWING, "disable_benchmark": False}
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **options)
    run = train_here(tmp_path, output_dir=str(tmp_path / "with"), **options, validation_adapter_path=str(adapter))
    assert names_drawn(run) == ["step_0_validation_0_64x64.png", "step_2_validation_visitor_0_64x64.png"]
    assert image(run, "step_0_validation_0_64x64.png") == image(plain, "step_0_validation_0_64x64.png")
    assert image(run, "step_2_validation_visitor_0_64x64.png") != image(plain, "step_2_validation_0_64x64.png")


@pytest.mark.parametrize("off", [{"validation_adapter_mode": "none"}, {"validation_disable": True}])
def test_an_unused_validation_adapter_is_not_read(off: dict[str, Any], tmp_path: Path) -> None:
    run = train_here(tmp_path, **{**QUICK, **DRAWING, "validation_adapter_path": str(tmp_path / "nowhere.safetensors"), **off})
    assert run.code is ExitCode.COMPLETED
    assert names_drawn(run) == ([] if "validation_disable" in off else ["step_2_validation_0_64x64.png"])


def test_a_validation_adapter_that_does_not_fit_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    steps: list[int] = []
    with pytest.raises(InvalidOptions, match="validation_adapter_path"):
        train_here(tmp_path, on_step=steps.append, **QUICK, **DRAWING, validation_adapter_path=str(tmp_path / "nowhere.safetensors"))
    assert steps == [0]  # what is asked before anything is loaded


def test_the_card_of_a_result_shows_no_image_of_another_adapter(adapter: Path, tmp_path: Path) -> None:
    validation_adapters = {"validation_adapter_path": str(adapter), "validation_adapter_mode": "comparison"}
    run = train_here(tmp_path, **{**KINDS["standard"](tmp_path), **QUICK, **OFTEN, **validation_adapters})
    spec = (run.output_dir / "README.md").read_text()
    assert "step_2_validation_0_64x64" in spec and "visitor" not in spec


@pytest.mark.slow
def test_two_processes_generate_with_a_validation_adapter_what_one_does(adapter: Path, tmp_path: Path) -> None:
    validation_adapters = {
        "validation_adapter_path": str(adapter),
        "validation_adapter_mode": "comparison",
        "validation_adapter_name": "style",
    }
    library = json.dumps({"plain": "a red circle", "dog": "a dog"})
    options = {**KINDS["standard"](tmp_path), **QUICK, **DRAWING, **validation_adapters, "lora_dropout": 0, "user_prompt_library": library}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), **options)
    run = run_of_ranks(tmp_path, **options)
    told = [Path(entry.extra["images"][0]["file"]).name for entry in run.of_type("validation.image")]
    assert sorted(told) == sorted(names_drawn(alone)) and len(told) == 12  # two weights, without and with
    assert len(alone.heard.of(ProgressEvent)) == 2

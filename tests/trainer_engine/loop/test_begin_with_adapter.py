"""Runs that begin with an adapter: the step that they count on from, and the average that they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checked_runs import checked
from tests.helpers.models import options_with
from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.adapters.base import ADAPTER_FILE
from trainer_engine.config.parse import check_options
from trainer_engine.contract.checkpoint_files import EMA_TENSORS, list_checkpoints
from trainer_engine.contract.errors import DatasetUnusable, InvalidOptions, Level
from trainer_engine.contract.events import ProgressEvent

LORA: dict[str, Any] = {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.0, "learning_rate": 1e-2, "lr_scheduler": "cosine"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of three steps with an average; its datasets lie beside it."""
    place = tmp_path_factory.mktemp("first")
    train_here(place, output_dir=str(place / "output"), **LORA, max_train_steps=3, use_ema=True)
    return place / "output"


def begun(first: Path, name: str, **options: Any) -> HereRun:
    place, more = first.parent, {"init_lora": str(first / ADAPTER_FILE), "init_lora_step": 3, "max_train_steps": 6}
    return train_here(place, output_dir=str(place / name), **{**LORA, **more, **options})


def test_a_run_counts_on_from_the_step_and_resumes_exactly(first: Path) -> None:
    whole = begun(first, "whole")
    assert [event.step for event in whole.heard.of(ProgressEvent)] == [4, 5, 6] and whole.step == 6
    begun(first, "stopped", stop_after=4)
    resumed = begun(first, "stopped")
    assert [event.step for event in resumed.heard.of(ProgressEvent)] == [5, 6]
    assert resumed.files() == whole.files()


def test_steps_have_the_rates_and_losses_of_a_run_that_was_never_interrupted(first: Path) -> None:
    """With an optimizer that keeps no state, a run that counts on is the rest of the run that it begins with."""
    place, plain = first.parent, {"optimizer": "torch-sgd", "max_train_steps": 6, "output_dir": str(first.parent / "sgd")}
    straight = train_here(place, **{**LORA, **plain})
    half = train_here(place, **{**LORA, **plain, "output_dir": str(place / "half")}, stop_after=3)
    adapter = str(list_checkpoints(half.output_dir)[0].path / ADAPTER_FILE)
    rest = begun(first, "rest", optimizer="torch-sgd", init_lora=adapter)
    numbers = [[(event.step, event.loss, event.learning_rate) for event in run.heard.of(ProgressEvent)] for run in (straight, rest)]
    assert numbers[0][3:] == numbers[1]
    assert straight.files()[ADAPTER_FILE] == rest.files()[ADAPTER_FILE]


def average_of(run: HereRun) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run.output_dir)[0].path / EMA_TENSORS)


def test_the_average_begins_with_the_average_of_the_other_run(first: Path) -> None:
    usual = {"use_ema": True, "ema_decay": 0.5, "max_train_steps": 4}
    other = str(first / "ema" / ADAPTER_FILE)
    with_average = begun(first, "average", **usual, init_lora_ema=other)
    without = begun(first, "no-average", **usual)
    assert with_average.files()[ADAPTER_FILE] == without.files()[ADAPTER_FILE]  # the trained weights are the same
    old = {key: value.float() for key, value in load_file(other).items()}
    trained = {key: value.float() for key, value in load_file(with_average.output_dir / ADAPTER_FILE).items()}
    result = load_file(with_average.output_dir / "ema" / ADAPTER_FILE)
    for key, value in result.items():
        assert torch.allclose(value.float(), 0.5 * old[key] + 0.5 * trained[key], atol=1e-6), key
    assert any(not one.equal(average_of(without)[name]) for name, one in average_of(with_average).items())


def test_the_average_of_a_run_that_began_with_one_resumes_exactly(first: Path) -> None:
    usual = {"use_ema": True, "init_lora_ema": str(first / "ema")}
    whole = begun(first, "whole-average", **usual)
    begun(first, "stopped-average", **usual, stop_after=5)
    assert begun(first, "stopped-average", **usual).files() == whole.files()


def test_an_average_of_another_form_is_refused_by_validate_and_engine(first: Path, tmp_path: Path) -> None:
    other = train_here(tmp_path, **{**LORA, "lora_rank": 4}, max_train_steps=1).output_dir / ADAPTER_FILE
    options = {"use_ema": True, "init_lora_ema": str(other)}
    with pytest.raises(InvalidOptions) as raised:
        begun(first, "refused", **options)
    (problem,) = raised.value.problems
    report = checked(tmp_path, **{**LORA, **options, "init_lora": str(first / ADAPTER_FILE), "max_train_steps": 6})
    (same,) = [found for found in report.errors if found.option == "init_lora_ema"]
    assert problem.option == same.option == "init_lora_ema" and problem.message == same.message


def test_an_epoch_that_ends_before_the_step_is_refused(first: Path) -> None:
    with pytest.raises(DatasetUnusable, match="init_lora_step=50 leaves none"):
        begun(first, "over", init_lora_step=50, max_train_steps=0, num_train_epochs=1)


def found(**values: Any) -> set[tuple[str, str, Level]]:
    given = {**options_with(**LORA).as_values(), "max_train_steps": 6, "num_train_epochs": 0, **values}
    return {(problem.option, problem.code, problem.level) for problem in check_options(given)[1]}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"init_lora_step": 3}, ("init_lora_step", "needs_init_lora", Level.ERROR)),
        ({"init_lora": "/a", "init_lora_step": 6}, ("init_lora_step", "nothing_to_train", Level.ERROR)),
        ({"init_lora": "/a", "init_lora_step": -1}, ("init_lora_step", "out_of_range", Level.ERROR)),
        ({"init_lora_ema": "/a", "use_ema": True}, ("init_lora_ema", "needs_init_lora", Level.ERROR)),
        ({"init_lora": "/a", "init_lora_ema": "/b"}, ("init_lora_ema", "needs_use_ema", Level.ERROR)),
        (
            {"init_lora": "/a", "init_lora_ema": "/b", "use_ema": True, "ema_warmup_steps": 2},
            ("init_lora_ema", "no_effect", Level.NOTE),
        ),
        ({"model_type": "full", "init_lora_step": 3}, ("init_lora_step", "no_adapter", Level.NOTE)),
    ],
)
def test_validate_names_a_beginning_that_lacks_something(values: dict[str, Any], problem: Any) -> None:
    assert problem in found(**values)


def test_validate_accepts_a_beginning_that_lacks_nothing() -> None:
    chosen = {"init_lora": "/a", "init_lora_step": 5, "init_lora_ema": "/b", "use_ema": True, "ema_warmup_steps": 5}
    assert not {option for option, _, _ in found(**chosen) if option.startswith("init_lora")}
    assert not {option for option, _, _ in found(init_lora="/a", init_lora_step=0) if option.startswith("init_lora")}

"""What the engine would refuse is refused before: types, arguments of the optimizer, another run's checkpoint, pictures among images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.models import options_with
from tests.training.api.test_reads import write_checkpoint
from tests.training.conftest import Training
from trainer_engine.config.rules.device import device_problems
from training.preflight.base_model import HubSettings, check_access
from training.preflight.run import examine_run, expected_device

IDENTITY = {"model_family": "pixart_sigma", "model_type": "full", "optimizer": "adamw_bf16", "weights": "float32", "use_ema": False}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def codes(training: Training, variables: dict[str, str] = NO_GPU, **changes: Any) -> list[tuple[str, str]]:
    home = Home(training.home)
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    report = examine_run(resolve_run(home, {}, {**form, **{f"--{name}": value for name, value in changes.items()}}), home, variables)
    return [(problem.option, problem.code) for problem in report.errors]


def test_half_precision_needs_a_gpu(training: Training) -> None:
    assert codes(training, mixed_precision="fp16") == [("mixed_precision", "needs_gpu")]
    assert codes(training, {"CUDA_VISIBLE_DEVICES": "0"}, mixed_precision="fp16") == []
    assert codes(training, mixed_precision="bf16") == []


@pytest.mark.parametrize("optimizer", ["adamw_bf16", "optimi-adamw", "torch-adamw"])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("weight_decai=1", "unknown_argument"),
        ("weight_decay=heavy", "bad_argument"),
        ("eps=-1", "bad_argument"),
        ("eps=true", "bad_argument"),
        ("foreach=3", "bad_argument"),
        ("weight_decay=0,eps=1e-7,foreach=false", None),
    ],
)
def test_arguments_that_an_optimizer_does_not_take_are_named(training: Training, optimizer: str, text: str, code: str | None) -> None:
    expected = [("optimizer_config", code)] if code else []
    assert codes(training, optimizer=optimizer, optimizer_config=text) == expected


@pytest.mark.parametrize(("algorithm", "once", "found"), [("full", True, True), ("full", False, False), ("lokr", True, False)])
def test_an_adapter_that_copies_weights_is_refused_where_one_process_reads_them(
    training: Training, algorithm: str, once: bool, found: bool
) -> None:
    document = {"algo": algorithm, "multiplier": 1, "linear_dim": 4, "linear_alpha": 1}
    (training.home / "config" / "adapter.json").write_text(json.dumps(document))
    spread = {"num_processes": 2, "fsdp_enable": True, "fsdp_cpu_ram_efficient_loading": once}
    adapter = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": "config/adapter.json"}
    errors = codes(training, **spread, **adapter)
    assert (("lycoris_config.algo", "needs_own_weights") in errors) is found
    assert {option for option, _ in errors} <= {"lycoris_config.algo"}


def test_pictures_of_the_run_may_not_lie_among_the_images(training: Training) -> None:
    assert codes(training, output_dir="pictures") == [("output_dir", "among_images")]
    assert codes(training, output_dir="pictures/deeper/run") == [("output_dir", "among_images")]
    assert codes(training, output_dir="pictures-of-the-run") == []


@pytest.mark.parametrize("wanted", ["latest", "checkpoint-20"])
def test_a_checkpoint_of_another_run_is_refused_with_what_differs(training: Training, wanted: str) -> None:
    folder = write_checkpoint(training.home / "output" / "run", 20)
    remember(folder, IDENTITY)
    assert codes(training, resume_from_checkpoint=wanted) == [("resume_from_checkpoint", "data_changed")]
    assert codes(training, resume_from_checkpoint=wanted, i_know_what_i_am_doing="true") == []
    assert codes(training, resume_from_checkpoint=wanted, optimizer="torch-adamw") == [("resume_from_checkpoint", "other_run")]
    assert codes(training, resume_from_checkpoint=wanted, use_ema="true") == [("resume_from_checkpoint", "other_run")]
    assert codes(training, resume_from_checkpoint=wanted, mixed_precision="bf16") == [("resume_from_checkpoint", "other_run")]
    assert codes(training, resume_from_checkpoint="", optimizer="torch-adamw") == []


def test_the_refusal_says_what_it_was_and_what_it_is(training: Training) -> None:
    remember(write_checkpoint(training.home / "output" / "run", 20), {**IDENTITY, "optimizer": "torch-adamw", "prediction_type": "epsilon"})
    answer = training.post("/start", {**training.form, "--prediction_type": "v_prediction"})
    assert answer.status_code == 422
    (problem,) = answer.json()["problems"]
    assert "optimizer was torch-adamw and is adamw_bf16" in problem["message"]
    assert "prediction_type was epsilon and is v_prediction" in problem["message"]
    assert "output_dir" in problem["hint"]


def test_a_state_that_cannot_be_read_is_refused_as_the_engine_does_it(training: Training) -> None:
    folder = write_checkpoint(training.home / "output" / "run", 20)
    for text in ("", "[]", "{"):
        (folder / "training_state.json").write_text(text)
        assert codes(training) == [("resume_from_checkpoint", "checkpoint_unusable")]


def remember(folder: Path, identity: dict[str, Any]) -> None:
    (folder / "training_state.json").write_text(json.dumps({"identity": identity}))
    (folder / "samples.json").write_text("{}")


def test_a_quantised_type_that_the_device_lacks_is_refused() -> None:
    options = options_with(model_family="flux", model_type="lora", base_model_precision="fp8-quanto", text_encoder_1_precision="fp8-quanto")
    assert {(problem.option, problem.code) for problem in device_problems(options, "mps")} == {
        ("base_model_precision", "lacked_by_device"),
        ("text_encoder_1_precision", "lacked_by_device"),
    }
    assert list(device_problems(options, "cpu")) == []


def test_preflight_expects_the_device_that_the_engine_chooses() -> None:
    assert expected_device({"CUDA_VISIBLE_DEVICES": "0"}) == "cuda"
    assert expected_device({"CUDA_VISIBLE_DEVICES": ""}, "linux") == "cpu"
    assert expected_device({"CUDA_VISIBLE_DEVICES": ""}, "darwin") == "mps"


@pytest.mark.parametrize(
    "revision", ["a b", "\n", "x" * 5_000, "é", "/dev/zero", "../../../../../../../dev/zero", "a/../../b", "?x", "#y", "%00"]
)
def test_an_odd_revision_of_a_repository_is_a_problem_of_its_own(revision: str, tmp_path: Path) -> None:
    for offline in (True, False):
        hub = HubSettings(cache=tmp_path, endpoint="http://127.0.0.1:9", token="", is_offline=offline)
        found = check_access("pretrained_model_name_or_path", "owner/name", revision, hub)
        assert found is not None and found.code in ("model_not_cached", "hub_not_reached")

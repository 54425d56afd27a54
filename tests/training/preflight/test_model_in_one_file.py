"""A base model in one file is checked before a run as one in a folder is."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from environments.paths import Home
from environments.resolve.checks import check_config
from environments.resolve.run import resolve_run
from tests.helpers.models import tiny_model
from tests.helpers.one_file import SD1, SDXL, write_one_file
from tests.training.conftest import Training
from training.preflight.run import examine_run

BASE, CONFIG = "pretrained_model_name_or_path", "pretrained_config_name_or_path"


def examined(training: Training, **values: Any) -> Any:
    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    home = Home(training.home)
    return examine_run(resolve_run(home, {}, {**form, "model_family": "sd1x", **values}), home)


def codes(report: Any, option: str) -> set[str]:
    return {problem.code for problem in report.problems if problem.option == option}


@pytest.fixture
def model(training: Training) -> Path:
    """``models/sd1x.safetensors`` in the home, and ``models/configuration`` without weights."""
    folder = training.home / "models"
    shutil.copytree(tiny_model("sd1x"), folder / "configuration", ignore=shutil.ignore_patterns("*.safetensors"))
    return write_one_file(tiny_model("sd1x"), folder / "sd1x.safetensors", SD1)


def test_a_run_of_a_file_in_the_home_is_understood_as_that_of_the_folder(training: Training, model: Path) -> None:
    one = examined(training, **{BASE: "models/sd1x.safetensors", CONFIG: "models/configuration"})
    shutil.copytree(tiny_model("sd1x"), training.home / "models/folder")
    other = examined(training, **{BASE: "models/folder"})
    assert not one.errors, one.errors
    assert one.understood["model"] == {**other.understood["model"], "weights": str(model)}
    training_step = [[phase for phase in found.understood["memory"]["phases"] if phase["name"] == "training"] for found in (one, other)]
    assert training_step[0] == training_step[1] and len(training_step[0]) == 1


def test_targets_and_ranks_are_compared_with_the_layers_in_the_file(training: Training, model: Path) -> None:
    adapter = {"model_type": "lora", "lora_rank": "128", BASE: "models/sd1x.safetensors", CONFIG: "models/configuration"}
    assert "rank_too_large" in codes(examined(training, **adapter), "lora_rank")
    report = examined(training, **{**adapter, "lora_rank": "2", "peft_lora_target_modules": '["no_such_layer"]'})
    assert "nothing_matched" in codes(report, "peft_lora_target_modules")


def test_the_file_of_another_family_is_refused_by_its_name(training: Training, model: Path) -> None:
    write_one_file(tiny_model("sdxl"), model.with_name("xl.safetensors"), SDXL)
    report = examined(training, **{BASE: "models/xl.safetensors", CONFIG: "models/configuration"})
    (found,) = [problem for problem in report.errors if problem.option == BASE]
    assert found.message == "xl.safetensors is a Stable Diffusion XL checkpoint; this run trains Stable Diffusion 1."
    assert found.hint.startswith("set model_family=sdxl")


def test_a_file_without_the_configuration_of_its_flavour_needs_the_hub(
    training: Training, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(training.home / "hf"))
    assert codes(examined(training, **{BASE: "models/sd1x.safetensors"}), CONFIG) == {"model_not_cached"}


def test_paths_of_files_keep_the_rules_of_folders(training: Training, model: Path) -> None:
    for option in (BASE, "pretrained_vae_model_name_or_path", "pretrained_unet_model_name_or_path"):
        assert codes(examined(training, **{option: "/etc/model.safetensors"}), option) == {"outside_roots"}
    (training.home / "models/link.safetensors").symlink_to("/etc/passwd")
    assert "outside_roots" in codes(examined(training, **{BASE: "models/link.safetensors"}), BASE)
    assert codes(examined(training, **{BASE: "models/none.safetensors"}), BASE) == {"not_found"}
    assert codes(examined(training, **{BASE: "models/configuration", CONFIG: "models/sd1x.safetensors"}), CONFIG) >= {"not_a_folder"}


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_a_pickle_is_refused_before_it_is_opened(name: str, training: Training) -> None:
    path = training.home / name
    path.write_bytes(pickle.dumps({}))
    report = examined(training, **{BASE: name})
    (found,) = [problem for problem in report.errors if problem.option == BASE]
    assert found.code == "unsafe_model" and "is a pickle" in found.message
    stored = check_config({"model_family": "sd1x", BASE: f"./{name}"}, Home(training.home))
    assert "unsafe_model" in {problem.code for problem in stored.errors}


def test_a_renamed_pickle_is_refused_by_its_first_bytes(training: Training) -> None:
    (training.home / "model.safetensors").write_bytes(pickle.dumps({"weights": list(range(100))}))
    assert "not_safetensors" in codes(examined(training, **{BASE: "model.safetensors"}), BASE)


def test_an_adapter_in_place_of_the_base_model_is_named(training: Training) -> None:
    save_file({"unet.down.to_q.lora_A.weight": torch.zeros(4, 8)}, training.home / "lora.safetensors")
    report = examined(training, **{BASE: "lora.safetensors"})
    (found,) = [problem for problem in report.errors if problem.option == BASE]
    assert "lora.safetensors is an adapter" in found.message and "init_lora" in found.hint


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_text_encoders_in_the_file_count_as_those_of_the_folder(training: Training, model: Path, model_type: str) -> None:
    usual = {"model_type": model_type, "lora_rank": "2", "train_text_encoder": "true"}
    file = examined(training, **usual, **{BASE: str(model), CONFIG: str(model.parent / "configuration")})
    folder = examined(training, **usual, **{BASE: str(tiny_model("sd1x"))})
    assert file.errors == folder.errors == []
    assert file.understood["model"]["parameters"] == folder.understood["model"]["parameters"]
    assert file.understood["disk"]["checkpoint_bytes"] == folder.understood["disk"]["checkpoint_bytes"]

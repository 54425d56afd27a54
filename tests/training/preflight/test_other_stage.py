"""Problems of the second network of validation images before a start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.models import options_with, tiny_model, tiny_pixart
from tests.training.conftest import Training
from trainer_engine.config.families import specs
from trainer_engine.config.part_fit import unfit_stage
from trainer_engine.config.stages import other_stage
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.common.stages import other_network
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from training.preflight.base_model import HubSettings
from training.preflight.disk_uses import other_stage_download

OPTION = "pixart_validation_stage2_model"
STAGE = {
    "--pixart_validation_pipeline_mode": "full-pipeline",
    "--validation_disable": "false",
    "--refiner_training": "true",
    "--refiner_training_invert_schedule": "true",
    "--pretrained_model_name_or_path": str(tiny_pixart()),
}


def reported(training: Training, path: str | Path) -> list[str]:
    """Codes of what is reported of the other network."""
    answer = training.post("/validate", {**training.form, **STAGE, f"--{OPTION}": str(path)}).json()
    problems = [one for key in ("problems", "warnings", "notes") for one in answer.get(key) or [] if isinstance(one, dict)]
    return [one["code"] for one in problems if one["option"] == OPTION]


def copied(training: Training, name: str) -> Path:
    return Path(shutil.copytree(tiny_model("pixart_sigma", seed=5), training.home / name))


def test_the_other_network_in_a_folder_is_accepted_without_a_problem(training: Training) -> None:
    assert reported(training, copied(training, "second")) == [] and reported(training, "second") == ["path_taken"]


def test_a_folder_that_is_no_model_is_refused(training: Training) -> None:
    assert reported(training, training.home / "nowhere") == ["not_found"]
    (training.home / "empty").mkdir()
    assert reported(training, training.home / "empty") == ["not_a_model"]
    bare = copied(training, "bare")
    shutil.rmtree(bare / "transformer")
    assert reported(training, bare) == ["not_a_model"]


def test_a_network_of_another_prediction_or_with_a_pickle_is_refused(training: Training) -> None:
    velocity = copied(training, "velocity")
    config = velocity / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    assert reported(training, velocity) == ["other_prediction"]
    pickled = copied(training, "pickled")
    weights = pickled / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert reported(training, pickled) == ["unsafe_model"]


@pytest.mark.parametrize("other", ["flux", "sdxl"])
def test_the_network_of_another_family_is_refused_and_by_the_engine_in_the_same_words(training: Training, other: str) -> None:
    foreign = copied(training, "foreign")
    network = "unet" if other == "sdxl" else "transformer"
    shutil.rmtree(foreign / "transformer")
    shutil.copytree(tiny_model(other) / network, foreign / "transformer")
    assert reported(training, foreign) == ["other_model"]
    values = {name.lstrip("-"): value for name, value in STAGE.items()}
    options = options_with(**values, **{OPTION: str(foreign)})
    stage, spec = other_stage(options, specs()["pixart_sigma"]), specs()["pixart_sigma"]
    assert stage is not None
    [problem] = unfit_stage(stage, spec, training.home / "hub")
    with pytest.raises(InvalidOptions) as refused:
        other_network(load_family(options, resolve_devices(options, torch.device("cpu"))), stage)
    assert list(refused.value.problems) == [problem] and problem.option == OPTION


def test_a_text_encoder_that_does_not_fit_the_other_network_is_refused(training: Training) -> None:
    narrow = copied(training, "narrow")
    config = narrow / "text_encoder/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "d_model": 48}))
    assert reported(training, narrow) == ["other_width"]


def test_a_place_that_the_server_keeps_closed_is_refused(training: Training) -> None:
    assert reported(training, "/etc") == ["outside_roots"]


def test_the_download_of_the_other_network_takes_place_on_the_disk(tmp_path: Path) -> None:
    hub, spec = HubSettings.of({"HF_HOME": str(tmp_path)}), specs()["pixart_sigma"]

    def uses(hub: HubSettings, **values: str) -> list[tuple[str, int]]:
        options = options_with(**{name.lstrip("-"): value for name, value in STAGE.items()}, **values)
        return [(use.option, use.bytes) for use in other_stage_download(options, spec, hub)]

    assert uses(hub) == [(OPTION, 2 * spec.parameters["900M-1024-v0.7-stage2"])]
    assert uses(hub, **{OPTION: str(tiny_pixart())}) == []
    assert uses(HubSettings.of({"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})) == []
    place_in_hub_cache(tiny_pixart(), spec.flavours["900M-1024-v0.7-stage2"], tmp_path)
    assert uses(hub) == []

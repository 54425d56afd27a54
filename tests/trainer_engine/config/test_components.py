"""Where each component of a base model comes from, for the engine and for the checks before a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from tests.helpers.models import options_with, tiny_model
from trainer_engine.config.components import BASE, NETWORKS, T5, VAE, component_source, find_component, model_sources, noise_schedule
from trainer_engine.config.families import specs
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import check_options
from trainer_engine.config.resuming.base_weights import base_differences, base_weights
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.weights.loading import PartFinder

NO_CACHE = Path("no-cache")
FAMILIES = sorted(specs())


def options_of(family: str, **values: Any) -> TrainingOptions:
    values = {"pretrained_model_name_or_path": str(tiny_model(family)), **values}
    return options_with(model_family=family, **values)


def copied(family: str, place: Path, **how: Any) -> Path:
    return Path(shutil.copytree(tiny_model(family, **how), place))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_and_the_identity_find_every_component_in_the_same_folder(family: str, tmp_path: Path) -> None:
    vae, network = copied(family, tmp_path / "vae"), copied(family, tmp_path / "network")
    folder = next(iter(specs()[family].trained.values())).folder
    option, _ = NETWORKS[folder]
    encoder = {T5: str(copied(family, tmp_path / "t5"))} if specs()[family].prompts.t5_folder == "text_encoder" else {}
    options = options_of(family, **{VAE: str(vae), option: str(network), **encoder})
    parts = family_of(options).parts
    for name in specs()[family].base_folders:
        found = find_component(component_source(options.model, specs()[family], name), NO_CACHE)
        assert found is not None and parts.find(name).folder == found.folder, name
    assert parts.find(folder).folder == network / folder and parts.find("vae").folder == vae / "vae"


@pytest.mark.parametrize("family", [name for name in FAMILIES if not specs()[name].prompts.t5_folder])
def test_a_t5_encoder_of_a_family_without_one_counts_nowhere(family: str) -> None:
    options, spec = options_of(family, **{T5: "/somewhere/t5"}), specs()[family]
    assert model_sources(options.model, spec) == {BASE: str(tiny_model(family))}
    assert base_weights(options.model, spec, NO_CACHE) == base_weights(options_of(family).model, spec, NO_CACHE)
    _, problems = check_options(options.as_values())
    assert [problem.code for problem in problems if problem.option == T5] == ["no_effect"]


@pytest.mark.parametrize("bare", [False, True])
def test_a_run_trains_the_unet_that_an_option_names(bare: bool, tmp_path: Path) -> None:
    other = copied("sd1x", tmp_path / "other", seed=5)
    source = {"pretrained_unet_model_name_or_path": str(other / "unet" if bare else other)}
    base, replaced = options_of("sd1x"), options_of("sd1x", **source)
    ours, theirs = (family_of(one).load_network().state_dict() for one in (replaced, options_of("sd1x", **{BASE: str(other)})))
    assert all(ours[name].equal(weight) for name, weight in theirs.items())
    spec = specs()["sd1x"]
    (difference,) = base_differences(base_weights(base.model, spec, NO_CACHE), base_weights(replaced.model, spec, NO_CACHE))
    assert difference.startswith("base model (unet) was")


def family_of(options: TrainingOptions) -> Any:
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def test_a_network_in_another_subfolder_is_found(tmp_path: Path) -> None:
    other = copied("sd1x", tmp_path / "other")
    (other / "unet").rename(other / "unet_ema")
    source = {"pretrained_unet_model_name_or_path": str(other), "pretrained_unet_subfolder": "unet_ema"}
    assert family_of(options_of("sd1x", **source)).parts.find("unet").folder == other / "unet_ema"
    with pytest.raises(ModelUnavailable, match=f"{other} has no folder unet"):
        family_of(options_of("sd1x", pretrained_unet_model_name_or_path=str(other))).parts.find("unet")


@pytest.mark.parametrize("name", ["../other", "/etc", "", ".hidden", "a//b", "a/../b", "a/"])
def test_a_subfolder_cannot_leave_its_source(name: str) -> None:
    given = {**options_of("sd1x").as_values(), "pretrained_unet_model_name_or_path": "/models/x", "pretrained_unet_subfolder": name}
    _, problems = check_options(given)
    assert "pretrained_unet_subfolder" in {problem.option for problem in problems if problem.level.value == "error"}


def test_the_network_of_another_kind_of_family_is_noted() -> None:
    given = {**options_of("sd1x").as_values(), "pretrained_transformer_model_name_or_path": "a/model"}
    _, problems = check_options(given)
    (found,) = [problem for problem in problems if problem.option == "pretrained_transformer_model_name_or_path"]
    assert found.code == "no_effect" and "no transformer" in found.message


def test_a_schedule_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    model = copied("sd1x", tmp_path / "model")
    options, spec = options_of("sd1x", **{BASE: str(model)}), specs()["sd1x"]
    assert noise_schedule(options.model, spec, NO_CACHE)["prediction_type"] == "epsilon"
    (model / "scheduler/scheduler_config.json").write_text("{")
    assert noise_schedule(options.model, spec, NO_CACHE) == {}


def test_a_schedule_that_the_family_states_is_looked_for_in_no_folder(tmp_path: Path) -> None:
    stated = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}
    spec = replace(specs()["flux2"], schedule=MappingProxyType(stated))
    options = options_with(model_family="flux2", pretrained_model_name_or_path=str(tmp_path / "nothing"))
    assert set(specs()["flux2"].base_folders) - set(spec.base_folders) == {"scheduler"}
    assert dict(noise_schedule(options.model, spec, tmp_path)) == PartFinder(options.model, spec).scheduler_config() == stated

"""Every family's card says what its network, its options and its adapter file bear out."""

from __future__ import annotations

import importlib
import inspect
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.models import BEYOND_THE_FORMAT, tiny_model
from trainer_engine.config.families import FORMAT_FAMILIES, find_spec, specs
from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.precision import QUANTISED
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.config.resuming.base_weights import base_weights, component_digest
from trainer_engine.config.rules.validation import OF_SOME_FAMILIES
from trainer_engine.config.skipped_layers import OPTION as SKIPPED
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.base import Family
from trainer_engine.families.load import family_class, load_family
from trainer_engine.runtime.devices import resolve_devices
from training.preflight.adapter import of_class

SPECS = list(specs().values())
every_family = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
every_flavour = pytest.mark.parametrize(
    ("spec", "flavour"), [(spec, flavour) for spec in SPECS for flavour in spec.flavours], ids=lambda value: getattr(value, "name", value)
)


def family_of(spec: FamilySpec, **values: Any) -> Family:
    usual = {"model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1, "mixed_precision": "no"}
    model = str(tiny_model(spec.name))
    options = parse_options({**usual, "model_family": spec.name, "pretrained_model_name_or_path": model, **values})
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def network_of(spec: FamilySpec) -> nn.Module:
    return family_of(spec).load_network()


def test_discovery_finds_families() -> None:
    assert len(SPECS) >= 2


@every_family
def test_names_are_those_of_the_format_and_lead_back(spec: FamilySpec) -> None:
    assert spec.name in FORMAT_FAMILIES | BEYOND_THE_FORMAT
    assert all(find_spec(name) is spec for name in (spec.name, spec.name.upper(), *spec.aliases))
    assert spec.default_flavour in spec.flavours
    assert spec.title
    assert spec.description.endswith(".")


@every_family
def test_an_unknown_flavour_is_a_problem_with_any_other_options(spec: FamilySpec) -> None:
    """The rules of a family see the values of configurations that others refuse."""
    usual = {"model_family": spec.name, "model_flavour": "no-such-flavour", "data_backend_config": "x.json", "output_dir": "x"}
    others: list[dict[str, Any]] = [{}, {SKIPPED: "[1]"}, {"controlnet": True}, {"control": True}, {"train_text_encoder": True}]
    for model_type in ("full", "lora"):
        for more in others:
            _, problems = check_options({**usual, "model_type": model_type, "max_train_steps": 1, **more})
            assert "model_flavour" in {problem.option for problem in problems}


@every_family
def test_flavours_are_repositories_with_a_known_size(spec: FamilySpec) -> None:
    assert all(repository.count("/") == 1 for repository in spec.flavours.values())
    assert set(spec.parameters) == set(spec.flavours)
    for flavours in (spec.takes_references, spec.needs_references, spec.flavour_defaults):
        assert set(flavours) <= set(spec.flavours)
    assert spec.needs_references <= spec.takes_references


@every_flavour
def test_the_defaults_of_a_flavour_are_options_with_right_values(spec: FamilySpec, flavour: str) -> None:
    defaults = spec.defaults_of(flavour)
    assert set(defaults) <= set(REGISTRY)
    given = {"model_family": spec.name, "model_flavour": flavour, "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    for model_type in spec.model_types:
        options, problems = check_options({**given, "model_type": model_type})
        assert options is not None, problems
        assert {name: options.as_values()[name] for name in defaults} == dict(defaults)


@every_family
def test_samplers_are_those_that_the_family_makes(spec: FamilySpec) -> None:
    parts = importlib.import_module(f"trainer_engine.families.{spec.name}.components")
    assert spec.sampling.samplers == tuple(parts.SAMPLERS)
    assert set(spec.sampling.samplers) <= set(REGISTRY["validation_noise_scheduler"].choices)
    assert spec.sampling.options <= {*OF_SOME_FAMILIES, SKIPPED}


@every_family
def test_the_objective_is_what_the_weights_are_trained_for(spec: FamilySpec) -> None:
    assert spec.objective in spec.prediction_types
    assert family_of(spec).prediction_type == spec.objective


@every_family
def test_numbers_are_those_of_the_model(spec: FamilySpec) -> None:
    family = family_of(spec)
    latents = family.encode_images(torch.zeros(1, 3, spec.latents.alignment_px, 2 * spec.latents.alignment_px))
    edge = spec.latents.alignment_px // spec.latents.scale_factor_px
    assert (*latents.shape[:2], *latents.shape[-2:]) == (1, spec.latents.channels, edge, 2 * edge)
    assert len(spec.prompts.text_encoders) == len(spec.prompts.text_encoder_folders)
    assert all((tiny_model(spec.name) / folder).is_dir() for folder in spec.prompts.text_encoder_folders)
    assert all(len(next(iter(prompt.values()))) <= spec.prompts.token_limit for prompt in family.encode_prompts(["a " * 2000]))


@every_family
def test_previews_have_one_decoder_and_clips_the_lengths_of_the_autoencoder(spec: FamilySpec) -> None:
    family = family_of(spec)
    assert spec.latents.has_previews
    assert spec.latents.previews_in_full == (not spec.latents.preview_decoder)
    assert not spec.latents.previews_in_full or type(family).preview is not Family.preview
    pipeline = family.make_pipeline(network_of(spec))
    stride = getattr(pipeline, "vae_scale_factor_temporal", None)
    assert (spec.sampling.clips.stride if spec.sampling.clips else None) == stride


@every_family
def test_the_starting_adapter_file_is_right_and_finds_its_modules(spec: FamilySpec) -> None:
    config, problems = parse_lycoris(spec.adapters.lycoris_start, spec)
    assert config is not None
    assert problems == []
    present = {type(module).__name__ for module in network_of(spec).modules()}
    assert set(config.preset["target_module"]) <= present
    assert set(config.preset["module_algo_map"]) <= set(config.preset["target_module"])


@every_family
def test_validate_finds_the_layers_of_the_starting_adapter_file_by_their_names(spec: FamilySpec) -> None:
    network, classes = network_of(spec), spec.adapters.lycoris_start["apply_preset"]["target_module"]
    parts = [(name, part) for name, part in network.named_modules() if type(part).__name__ in classes]
    inside = {f"{name}.{inner}" for name, part in parts for inner, layer in part.named_modules() if isinstance(layer, nn.Linear)}
    layers = {name: tuple(layer.weight.shape) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    assert {name for cls in classes for name in of_class(cls, layers)} == inside


@every_family
def test_class_names_exist_in_the_network(spec: FamilySpec) -> None:
    present = {type(module).__name__ for module in network_of(spec).modules()}
    assert spec.adapters.module_classes
    assert set(spec.adapters.module_classes) <= present
    assert {new for classes in spec.adapters.class_aliases.values() for new in classes} <= set(spec.adapters.module_classes)


@every_family
def test_the_default_target_of_standard_adapters_matches_linear_layers(spec: FamilySpec) -> None:
    linear = [name for name, module in network_of(spec).named_modules() if isinstance(module, nn.Linear)]
    assert spec.adapters.default_lora_target in spec.adapters.lora_targets
    for ending in spec.adapters.lora_targets[spec.adapters.default_lora_target]:
        assert any(name.endswith(f".{ending}") for name in linear), ending
    if spec.adapters.lora_target_option:
        assert set(REGISTRY[spec.adapters.lora_target_option].choices) >= set(spec.adapters.lora_targets)


@every_family
def test_quantised_types_are_known(spec: FamilySpec) -> None:
    assert set(spec.adapters.base_precisions) <= set(QUANTISED)


@every_family
def test_the_folder_holds_what_a_family_needs(spec: FamilySpec) -> None:
    package = f"trainer_engine.families.{spec.name}"
    assert importlib.import_module(f"{package}.spec").SPEC is spec
    family = importlib.import_module(f"{package}.family").FAMILY
    assert issubclass(family, Family)
    assert not inspect.isabstract(family)
    assert family.spec is spec
    assert family.__doc__
    assert all(spec.adapters.lora_targets.values())


@every_family
def test_the_components_that_a_checkpoint_is_compared_by_are_those_that_are_loaded(spec: FamilySpec, tmp_path: Path) -> None:
    other = str(tiny_model(spec.name, seed=1))
    replaced = {"pretrained_vae_model_name_or_path": other, "pretrained_t5_model_name_or_path": t5_alone(spec, tmp_path / "t5")}
    for more in ({}, replaced):
        family = family_of(spec, **more)
        found = base_weights(family.options.model, spec, tmp_path)
        wanted = {name: component_digest(family.parts.find(name).folder) for name in spec.base_folders}
        assert {name: component.digest for name, component in found.items()} == wanted and all(wanted.values())


def t5_alone(spec: FamilySpec, place: Path) -> str:
    """A folder with the T5 of a family's small model, as repositories of T5 have it; the model itself for a family without T5."""
    own = tiny_model(spec.name)
    t5 = spec.prompts.t5_folder
    for folder in (t5, tokenizer_of(t5)) if t5 else ():
        shutil.copytree(own / folder, place / folder.rstrip("_23"), dirs_exist_ok=True)
    return str(place if t5 else own)


def test_a_class_that_does_not_implement_the_interface_is_refused_with_what_is_missing() -> None:
    class Half(Family):
        spec = SPECS[0]

    for found, message in ((None, "no FAMILY"), (Half, "Half does not implement .*encode_images.*predict")):
        module = ModuleType("family")
        setattr(module, "FAMILY", found)
        with pytest.raises(ModelUnavailable, match=message) as refused:
            family_class(SPECS[0], module)
        assert SPECS[0].name in refused.value.message

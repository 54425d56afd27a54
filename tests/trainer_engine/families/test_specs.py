"""Every family's card says what its network, its options and its adapter file bear out."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.models import tiny_model
from trainer_engine.config.families import FORMAT_FAMILIES, FamilyCard, cards, find_card
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.precision import QUANTISED
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.config.resuming.base_weights import base_weights, component_digest
from trainer_engine.config.rules.validation import OF_SOME_FAMILIES
from trainer_engine.families.base import Family, load_family
from trainer_engine.runtime.devices import resolve_devices

CARDS = list(cards().values())
every_family = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
every_flavour = pytest.mark.parametrize(
    ("card", "flavour"), [(card, flavour) for card in CARDS for flavour in card.flavours], ids=lambda value: getattr(value, "name", value)
)


def family_of(card: FamilyCard, **values: Any) -> Family:
    usual = {"model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1, "mixed_precision": "no"}
    model = str(tiny_model(card.name))
    options = parse_options({**usual, "model_family": card.name, "pretrained_model_name_or_path": model, **values})
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def network_of(card: FamilyCard) -> nn.Module:
    return family_of(card).load_denoiser()


def test_there_are_families() -> None:
    assert len(CARDS) >= 2


@every_family
def test_names_are_those_of_the_format_and_lead_back(card: FamilyCard) -> None:
    assert card.name in FORMAT_FAMILIES
    assert all(find_card(name) is card for name in (card.name, card.name.upper(), *card.aliases))
    assert card.default_flavour in card.flavours
    assert card.title
    assert card.description.endswith(".")


@every_family
def test_flavours_are_repositories_with_a_known_size(card: FamilyCard) -> None:
    assert all(repository.count("/") == 1 for repository in card.flavours.values())
    assert set(card.parameters) == set(card.flavours)
    for flavours in (card.takes_references, card.needs_references, card.flavour_defaults):
        assert set(flavours) <= set(card.flavours)
    assert card.needs_references <= card.takes_references


@every_flavour
def test_the_defaults_of_a_flavour_are_options_with_right_values(card: FamilyCard, flavour: str) -> None:
    defaults = card.defaults_of(flavour)
    assert set(defaults) <= set(REGISTRY)
    given = {"model_family": card.name, "model_flavour": flavour, "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    for model_type in card.model_types:
        options, problems = check_options({**given, "model_type": model_type})
        assert options is not None, problems
        assert {name: options.as_values()[name] for name in defaults} == dict(defaults)


@every_family
def test_samplers_are_those_that_the_family_makes(card: FamilyCard) -> None:
    parts = importlib.import_module(f"trainer_engine.families.{card.name}.components")
    assert card.samplers == tuple(parts.SAMPLERS)
    assert set(card.samplers) <= set(REGISTRY["validation_noise_scheduler"].choices)
    assert card.drawing_options <= set(OF_SOME_FAMILIES)


@every_family
def test_the_objective_is_what_the_weights_are_trained_for(card: FamilyCard) -> None:
    assert card.objective in card.prediction_types
    assert family_of(card).prediction_type == card.objective


@every_family
def test_numbers_are_those_of_the_model(card: FamilyCard) -> None:
    family = family_of(card)
    latents = family.encode_images(torch.zeros(1, 3, card.alignment_px, 2 * card.alignment_px))
    edge = card.alignment_px // card.vae_scale_factor
    assert latents.shape == (1, card.latent_channels, edge, 2 * edge)
    assert len(card.text_encoders) == len(card.text_encoder_folders)
    assert all((tiny_model(card.name) / folder).is_dir() for folder in card.text_encoder_folders)
    assert all(len(next(iter(prompt.values()))) <= card.token_limit for prompt in family.encode_prompts(["a " * 2000]))


@every_family
def test_the_starting_adapter_file_is_right_and_finds_its_modules(card: FamilyCard) -> None:
    config, problems = parse_lycoris(card.lycoris_start, card)
    assert config is not None
    assert problems == []
    present = {type(module).__name__ for module in network_of(card).modules()}
    assert set(config.preset["target_module"]) <= present
    assert set(config.preset["module_algo_map"]) <= set(config.preset["target_module"])


@every_family
def test_class_names_exist_in_the_network(card: FamilyCard) -> None:
    present = {type(module).__name__ for module in network_of(card).modules()}
    assert card.module_classes
    assert set(card.module_classes) <= present
    assert {new for classes in card.class_aliases.values() for new in classes} <= set(card.module_classes)


@every_family
def test_the_default_target_of_standard_adapters_matches_linear_layers(card: FamilyCard) -> None:
    linear = [name for name, module in network_of(card).named_modules() if isinstance(module, nn.Linear)]
    assert card.default_lora_target in card.lora_targets
    for ending in card.lora_targets[card.default_lora_target]:
        assert any(name.endswith(f".{ending}") for name in linear), ending
    if card.lora_target_option:
        assert set(REGISTRY[card.lora_target_option].choices) == set(card.lora_targets)


@every_family
def test_quantised_types_are_known(card: FamilyCard) -> None:
    assert set(card.base_precisions) <= set(QUANTISED)


@every_family
def test_the_folder_holds_what_a_family_needs(card: FamilyCard) -> None:
    package = f"trainer_engine.families.{card.name}"
    assert importlib.import_module(f"{package}.spec").CARD is card
    family = importlib.import_module(f"{package}.family").FAMILY
    assert issubclass(family, Family)
    assert not inspect.isabstract(family)
    assert family.card is card
    assert family.__doc__
    assert all(card.lora_targets.values())


@every_family
def test_the_components_that_a_checkpoint_is_compared_by_are_those_that_are_loaded(card: FamilyCard, tmp_path: Path) -> None:
    own, other = str(tiny_model(card.name)), str(tiny_model(card.name, seed=1))
    replaced = {"pretrained_vae_model_name_or_path": other, "pretrained_t5_model_name_or_path": own}
    for more in ({}, replaced):
        family = family_of(card, **more)
        found = base_weights(family.options.model, card, tmp_path)
        wanted = {name: component_digest(family.parts.find(name).folder) for name in card.components}
        assert {name: component.digest for name, component in found.items()} == wanted and all(wanted.values())
    assert card.network_folder == family.denoiser_folder

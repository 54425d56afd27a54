"""Options of trained text encoders: what is refused and noted, and the facts of a run that trains them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.adapters.keys import keys_by_module
from trainer_engine.config.families import specs
from trainer_engine.config.family_parts import Role
from trainer_engine.config.parse import check_options
from trainer_engine.config.resuming.identity import identity_differences, run_identity
from trainer_engine.contract.errors import Level, Problem

CLIP = sorted(name for name, spec in specs().items() if spec.trainable_text_encoders)
OTHERS = sorted(specs().keys() - set(CLIP))
GIVEN = {"data_backend_config": "sets.json", "output_dir": "output", "max_train_steps": 1, "num_train_epochs": 0}


def problems_of(family: str = "sdxl", **values: Any) -> list[Problem]:
    given = {**GIVEN, "model_family": family, "model_type": "full", "train_text_encoder": True, **values}
    _, problems = check_options(given)
    return [one for one in problems if "text_encoder" in one.option]


def test_the_families_with_clip_alone_declare_text_encoders() -> None:
    assert CLIP == ["sd1x", "sd2x", "sdxl"]


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_refuse_to_train_their_text_encoder(family: str) -> None:
    (problem,) = problems_of(family, model_type=specs()[family].model_types[0])
    assert (problem.level, problem.option, problem.code) == (Level.ERROR, "train_text_encoder", "not_for_family")
    assert problem.got == "True" and problem.expected == "false" and problem.hint.endswith("sd1x, sd2x, sdxl")
    assert not problems_of(family, model_type=specs()[family].model_types[0], train_text_encoder=False)


@pytest.mark.parametrize("family", CLIP)
@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_full_training_and_standard_adapters_are_accepted(family: str, model_type: str) -> None:
    assert problems_of(family, model_type=model_type, text_encoder_lr=1e-6) == []


def test_lycoris_is_refused_with_what_to_use_instead() -> None:
    (problem,) = problems_of(model_type="lora", lora_type="lycoris")
    assert (problem.option, problem.code) == ("train_text_encoder", "not_for_lycoris")
    assert problem.hint == "use lora_type=standard or model_type=full"


def test_every_quantised_text_encoder_is_named() -> None:
    quantised = {"text_encoder_1_precision": "int8-quanto", "text_encoder_2_precision": "int8-quanto"}
    found = problems_of(model_type="lora", **quantised)
    assert [(one.option, one.code, one.expected) for one in found] == [(name, "cannot_be_trained", "no_change") for name in quantised]
    assert [(one.option, one.code) for one in problems_of("sd1x", model_type="lora", **quantised)] == [
        ("text_encoder_2_precision", "no_effect"),
        ("text_encoder_1_precision", "cannot_be_trained"),
    ]
    assert problems_of(model_type="lora", train_text_encoder=False, **quantised) == []


@pytest.mark.parametrize(("family", "count"), [("sana", 1), ("sdxl", 2), ("sd3", 3), ("hidream", 4)])
def test_the_number_type_of_a_text_encoder_that_is_not_there_has_no_effect(family: str, count: int) -> None:
    chosen = {f"text_encoder_{number}_precision": "int8-quanto" for number in (1, 2, 3, 4)}
    found = problems_of(family, model_type="lora", train_text_encoder=False, **chosen)
    assert [(one.option, one.code, one.level) for one in found] == [(name, "no_effect", Level.NOTE) for name in list(chosen)[count:]]


def test_a_rate_without_trained_text_encoders_is_noted() -> None:
    (problem,) = problems_of(train_text_encoder=False, text_encoder_lr=1e-6)
    assert (problem.level, problem.option, problem.code) == (Level.NOTE, "text_encoder_lr", "no_effect")


@pytest.mark.parametrize("rate", ["0", "-1", "2", "fast"])
def test_a_rate_outside_its_bounds_is_refused(rate: str) -> None:
    (problem,) = problems_of(text_encoder_lr=rate)
    assert problem.level is Level.ERROR and problem.option == "text_encoder_lr"


def test_an_optimizer_that_finds_its_rate_takes_no_second_one() -> None:
    prodigy = {"optimizer": "prodigy", "learning_rate": 1.0}
    (problem,) = problems_of(text_encoder_lr=0.5, **prodigy)
    assert (problem.option, problem.code) == ("text_encoder_lr", "one_rate")
    assert problems_of(text_encoder_lr=1.0, **prodigy) == problems_of(**prodigy) == []


def test_the_rate_of_text_encoders_is_that_of_the_network_unless_it_is_set() -> None:
    assert options_with(learning_rate=1e-3).optimizer.text_encoder_rate == 1e-3
    assert options_with(learning_rate=1e-3, text_encoder_lr=1e-5).optimizer.text_encoder_rate == 1e-5


def test_the_facts_of_a_run_have_the_text_encoders_among_its_trained_components() -> None:
    spec = specs()["sdxl"]
    run = spec.for_run(train_text_encoder=True)
    assert spec.for_run(train_text_encoder=False) is spec and list(spec.trained) == ["unet"]
    assert list(run.trained) == ["unet", "text_encoder", "text_encoder_2"] and list(run.trained_text_encoders) == list(run.trained)[1:]
    assert run.components["text_encoder"].role is Role.TRAINED and run.components["vae"].role is Role.FROZEN
    assert run.parameters["base-1.0"] - spec.parameters["base-1.0"] == 123_060_480 + 694_659_840
    assert specs()["flux"].for_run(train_text_encoder=True) is specs()["flux"]


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("unet.conv_in.lora_A.weight", "unet.conv_in"),
        ("lora_unet_conv_in.lora_down.weight", "unet.conv_in"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text_encoder.encoder.layers.0.self_attn.q_proj"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text_encoder.encoder.layers.0.self_attn.q_proj"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "text_encoder.encoder.layers.0.self_attn.q_proj"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"),
    ],
)
def test_keys_of_every_program_lead_to_the_module(key: str, module: str) -> None:
    modules = {
        "unet.conv_in",
        "text_encoder.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    }
    found, strangers = keys_by_module([key], modules, specs()["sdxl"].for_run(train_text_encoder=True).key_prefixes)
    assert list(found) == [module] and strangers == []


def test_a_checkpoint_that_does_not_record_the_option_had_frozen_text_encoders() -> None:
    spec = specs()["sd1x"]
    frozen, trained = (
        run_identity(options_with(model_family="sd1x", train_text_encoder=value), spec, "epsilon") for value in (False, True)
    )
    older = {name: value for name, value in frozen.items() if name != "train_text_encoder"}
    assert identity_differences(older, frozen) == identity_differences(trained, trained) == []
    assert identity_differences(older, trained) == ["train_text_encoder was False and is True"]
    assert identity_differences(trained, frozen) == ["train_text_encoder was True and is False"]

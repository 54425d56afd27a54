"""What is reported of options of validation images that a family does not understand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from trainer_engine.config.adapters.validation_adapter import hub_file, label_of
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
PIXART, FLUX = "pixart_sigma", "flux"


def reported(family: str, **values: Any) -> list[tuple[str, str, str]]:
    """(option, code, level) of everything that is said about these values."""
    _, problems = check_options({**GIVEN, "model_family": family, **values})
    return [(problem.option, problem.code, problem.level.value) for problem in problems if problem.option in values]


@pytest.mark.parametrize(
    ("family", "values", "said"),
    [
        (FLUX, {"validation_noise_scheduler": "ddim"}, ("validation_noise_scheduler", "not_for_family", "error")),
        (FLUX, {"validation_noise_scheduler": "unipc"}, None),
        (PIXART, {"validation_noise_scheduler": "ddim"}, None),
        (PIXART, {"validation_guidance_real": 2.0}, ("validation_guidance_real", "not_for_family", "error")),
        (PIXART, {"validation_guidance_real": 1.0}, None),
        (FLUX, {"validation_guidance_real": 2.0}, None),
        (FLUX, {"validation_guidance_rescale": 0.7}, ("validation_guidance_rescale", "not_for_family", "error")),
        (PIXART, {"validation_guidance_rescale": 0.7}, ("validation_guidance_rescale", "not_for_family", "error")),
        (PIXART, {"validation_no_cfg_until_timestep": 3}, ("validation_no_cfg_until_timestep", "no_effect", "note")),
        (FLUX, {"validation_no_cfg_until_timestep": 3}, ("validation_no_cfg_until_timestep", "no_effect", "note")),
        (FLUX, {"inference_scheduler_timestep_spacing": "leading"}, ("inference_scheduler_timestep_spacing", "no_effect", "note")),
        (PIXART, {"inference_scheduler_timestep_spacing": "leading"}, None),
        (PIXART, {"validation_resolution": "72x64"}, ("validation_resolution", "not_for_family", "error")),
        (FLUX, {"validation_resolution": "128,80x96"}, None),
        (PIXART, {"validation_image_quality": 50}, ("validation_image_quality", "no_effect", "note")),
        (PIXART, {"validation_epoch_interval": 0}, ("validation_epoch_interval", "out_of_range", "error")),
        (PIXART, {"validate_after_step": -1}, ("validate_after_step", "out_of_range", "error")),
        (PIXART, {"validation_preview": True}, None),
        ("wan", {"validation_preview": True}, None),
        (PIXART, {"validation_image_format": "bmp"}, ("validation_image_format", "not_a_choice", "error")),
    ],
)
def test_a_value_without_effect_or_support_is_reported(family: str, values: dict[str, Any], said: tuple[str, str, str] | None) -> None:
    assert reported(family, **values) == ([said] if said else [])


def test_previews_of_a_family_without_any_decoder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wan = specs()["wan"]
    bare = replace(wan, latents=replace(wan.latents, previews_in_full=False))
    monkeypatch.setattr("trainer_engine.config.rules.validation.find_spec", lambda name: bare)
    assert reported("wan", validation_preview=True) == [("validation_preview", "no_decoder", "error")]


def test_values_that_come_together_are_looked_at_together() -> None:
    assert reported(FLUX, validation_no_cfg_until_timestep=3, validation_guidance_real=2.0) == []
    late = reported(FLUX, validation_no_cfg_until_timestep=4, validation_guidance_real=2.0, validation_num_inference_steps=4)
    assert late == [("validation_no_cfg_until_timestep", "no_effect", "note")]
    assert reported(PIXART, validation_image_quality=50, validation_image_format="webp") == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"path": "owner/name"}, []),
        ({"path": "owner/name:style.safetensors", "strength": -0.5, "mode": "comparison", "name": "my style"}, []),
        ({"path": "owner/name", "strength": 0}, [("strength", "out_of_range", "error")]),
        (
            {"strength": 0, "mode": "comparison"},
            [("strength", "out_of_range", "error"), ("mode", "missing_path", "error"), ("strength", "no_effect", "note")],
        ),
        ({"mode": "both"}, [("mode", "not_a_choice", "error")]),
        ({"mode": "none"}, []),
        ({"name": "style", "strength": 2}, [("name", "no_effect", "note"), ("strength", "no_effect", "note")]),
        ({"path": "owner/name", "mode": "none"}, [("path", "no_effect", "note")]),
        ({"path": "owner/name:style.ckpt"}, [("path", "not_safetensors", "error")]),
        ({"path": "owner/name", "name": "a/b"}, [("name", "unsafe_name", "error")]),
        ({"path": "owner/name:a|b.safetensors"}, [("path", "unsafe_name", "error")]),
        ({"path": "owner/ema"}, [("path", "reserved_name", "error")]),
        ({"path": "owner/name", "name": "Startup"}, [("name", "reserved_name", "error")]),
    ],
)
def test_a_validation_adapter_is_checked_before_a_start(values: dict[str, Any], said: list[tuple[str, str, str]]) -> None:
    found = reported(PIXART, **{f"validation_adapter_{name}": value for name, value in values.items()})
    assert sorted(found) == sorted((f"validation_adapter_{option}", code, level) for option, code, level in said)


@pytest.mark.parametrize("beside", [{"validation_disable": True}, {"validation_method": "external-script"}])
def test_a_validation_adapter_without_effect_gets_a_note(beside: dict[str, Any]) -> None:
    assert ("validation_adapter_path", "no_effect", "note") in reported(PIXART, validation_adapter_path="owner/name", **beside)


ONE, TWO = {"path": "owner/one"}, {"name": "two", "path": "owner/two", "strength": -0.5}


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([ONE, TWO], {}),
        ({"runs": [ONE]}, {}),
        ([{"label": "both", "adapters": [{"path": "owner/one"}, {"path": "owner/two", "strength": 2}]}], {}),
        ([], {"": "empty"}),
        ({"runs": [ONE], "mode": "x"}, {".mode": "unknown_key"}),
        (["owner/one"], {"": "not_an_object"}),
        ([ONE, {**TWO, "strength": 0}], {"[1].strength": "out_of_range"}),
        ([{**ONE, "strength": "1"}, {**TWO, "strength": True}], {"[0].strength": "wrong_type", "[1].strength": "wrong_type"}),
        ([{**ONE, "strength": 10**400}], {"[0].strength": "wrong_type"}),
        ([ONE, {"path": "other/one"}], {"[1].name": "same_name"}),
        ([TWO, {**TWO, "name": "TWO"}], {"[1].name": "same_name"}),
        ([{"name": "x"}], {"[0].path": "one_of_two"}),
        ([{**TWO, "adapters": [ONE]}], {"[0].path": "one_of_two"}),
        ([{"name": "x", "strength": 1, "adapters": [ONE]}], {"[0].strength": "one_of_two"}),
        ([{"adapters": [ONE, ONE]}], {"[0].name": "missing"}),
        ([{"name": "x", "adapters": []}], {"[0].adapters": "empty"}),
        ([{"name": "x", "adapters": None}], {"[0].adapters": "not_an_object"}),
        (
            [{"name": "x", "adapters": [ONE, {"path": 3, "strength": 0}]}],
            {"[0].adapters[1].path": "wrong_type", "[0].adapters[1].strength": "out_of_range"},
        ),
        ([{**TWO, "label": "x"}], {"[0].name": "one_of_two"}),
        ([{**TWO, "name": 3}], {"[0].name": "wrong_type"}),
        ([{**TWO, "name": "a/b"}], {"[0].name": "unsafe_name"}),
        ([{"path": "owner/ema"}], {"[0].path": "reserved_name"}),
        ([{"path": "owner/one:x.bin", "name": "x", "seed": 3}], {"[0].path": "not_safetensors", "[0].seed": "unknown_key"}),
        ([{"path": f"owner/n{number}"} for number in range(17)], {"": "too_many"}),
    ],
)
def test_problems_of_adapter_runs_name_their_place(runs: Any, said: dict[str, str]) -> None:
    _, problems = check_options({**GIVEN, "model_family": PIXART, "validation_adapter_config": json.dumps(runs)})
    found = {one.option: one.code for one in problems if one.option.startswith("validation_adapter")}
    assert found == {f"validation_adapter_config{place}": code for place, code in said.items()}


def test_a_single_adapter_and_several_exclude_each_other() -> None:
    both = reported(PIXART, validation_adapter_config=json.dumps([TWO]), validation_adapter_path="owner/name")
    assert both == [("validation_adapter_config", "one_of_two", "error")]
    assert reported(PIXART, validation_adapter_config=json.dumps([TWO]), validation_adapter_mode="none") == [
        ("validation_adapter_config", "no_effect", "note")
    ]
    assert reported(PIXART, validation_adapter_config="[{", validation_adapter_mode="comparison") == [
        ("validation_adapter_config", "not_json", "error")
    ]


def test_images_of_a_validation_adapter_have_unique_names() -> None:
    library = json.dumps({"fox": "a fox", "fox_style": "a fox in another style"})
    values = {"user_prompt_library": library, "validation_adapter_path": "owner/style"}
    assert reported(PIXART, **values) == [("user_prompt_library", "same_file_name", "error")]
    assert reported(PIXART, **values, validation_adapter_name="other") == []
    averaged = {**values, "user_prompt_library": json.dumps({"fox": "a fox", "fox_ema_style": "a"}), "use_ema": True}
    assert reported(PIXART, **averaged) == [("user_prompt_library", "same_file_name", "error")]


@pytest.mark.parametrize(
    ("path", "repository", "file", "label"),
    [
        ("owner/name", "owner/name", "pytorch_lora_weights.safetensors", "name"),
        ("owner/name:sub/style v2.safetensors", "owner/name", "sub/style v2.safetensors", "style v2"),
        ("/models/night.safetensors", None, None, "night"),
        ("/models/night/pytorch_lora_weights.safetensors", None, None, "night"),
        ("models/night.safetensors", None, None, "night"),
        ("/models/night.v1", None, None, "night.v1"),
        ("../models/night", None, None, "night"),
    ],
)
def test_an_address_gives_the_file_and_label_of_an_adapter(path: str, repository: str | None, file: str | None, label: str) -> None:
    there = hub_file(path)
    assert (there.repository, there.file) == (repository, file) if there else repository is None
    assert label_of(path, None) == label and label_of(path, "mine") == "mine"

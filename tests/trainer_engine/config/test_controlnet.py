"""ControlNets in the options and in the datasets: what is refused, what is noted, and the facts of a run that trains one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.components import component_source, model_sources, spec_of_run
from trainer_engine.config.controlnet import ControlNetSetting, custom_config
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.family_parts import Role
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.parse import check_options
from trainer_engine.config.resuming.identity import identity_differences, run_identity
from trainer_engine.contract.errors import Level, Problem

ABLE = sorted(name for name, spec in specs().items() if spec.controlnet)
GIVEN: dict[str, Any] = {"data_backend_config": "sets.json", "output_dir": "output", "max_train_steps": 1, "num_train_epochs": 0}
IMAGES: dict[str, Any] = {"id": "cats", "instance_data_dir": "/data/cats"}
CONTROLS: dict[str, Any] = {"id": "edges", "instance_data_dir": "/data/edges", "conditioning_type": "controlnet"}


def problems_of(family: str = "sd1x", **values: Any) -> list[Problem]:
    given = {**GIVEN, "model_family": family, "model_type": "full", "controlnet": True, **values}
    return check_options(given)[1]


def codes(problems: list[Problem], level: Level = Level.ERROR) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is level}


def datasets(*entries: dict[str, Any], **options: Any) -> tuple[Dataloader, list[Problem]]:
    return parse_dataloader(list(entries), {**GIVEN, "model_family": "sd1x", "model_type": "full", "controlnet": True, **options})


def spec_with(family: str, **values: Any) -> FamilySpec:
    return spec_of_run(options_with(model_family=family, controlnet=True, **values).model, specs()[family])


@pytest.mark.parametrize("family", ABLE)
def test_families_with_a_controlnet_accept_it(family: str) -> None:
    flavour = next(iter(specs()[family].controlnet.parameters))  # type: ignore[union-attr]
    assert codes(problems_of(family, model_flavour=flavour)) == set()


@pytest.mark.parametrize("family", sorted(specs().keys() - set(ABLE)))
def test_other_families_refuse_it_with_the_reason(family: str) -> None:
    problems = problems_of(family, model_type=specs()[family].model_types[0])
    (problem,) = [one for one in problems if one.option == "controlnet"]
    assert problem.code == "not_for_family" and "diffusers library has no ControlNet" in problem.message
    assert all(name in problem.hint for name in ABLE)


def test_a_refiner_has_no_controlnet() -> None:
    assert ("controlnet", "not_for_flavour") in codes(problems_of("sdxl", model_flavour="refiner-1.0"))


def test_an_adapter_that_exists_needs_the_controlnet_below_it() -> None:
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard"}
    assert codes(problems_of(**options)) == set()
    begun = {**options, "init_lora": "/adapter.safetensors"}
    assert ("controlnet_model_name_or_path", "missing_path") in codes(problems_of(**begun))
    assert codes(problems_of(**begun, controlnet_model_name_or_path="someone/controlnet")) == set()


def test_a_new_controlnet_has_nothing_that_an_adapter_could_preserve() -> None:
    entries = [{**IMAGES, "conditioning_data": ["edges"], "is_regularisation_data": True}, CONTROLS]
    _, problems = datasets(*entries, model_type="lora")
    assert ("dataloader[0].is_regularisation_data", "nothing_to_preserve") in codes(problems)
    _, problems = datasets(*entries, model_type="lora", controlnet_model_name_or_path="someone/controlnet")
    assert codes(problems) == set()


def test_the_frozen_network_may_be_quantised_beside_a_whole_controlnet() -> None:
    assert codes(problems_of(base_model_precision="int8-quanto")) == set()
    alone = problems_of(base_model_precision="int8-quanto", controlnet=False)
    assert ("base_model_precision", "cannot_be_trained") in codes(alone)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"train_text_encoder": True}, ("train_text_encoder", "not_with_controlnet")),
        ({"model_type": "lora", "lora_format": "comfyui"}, ("lora_format", "not_with_controlnet")),
        ({"musubi_blocks_to_swap": 2}, ("musubi_blocks_to_swap", "not_with_controlnet")),
        ({"validation_using_datasets": False}, ("validation_using_datasets", "no_control")),
        ({"controlnet_custom_config": "{"}, ("controlnet_custom_config", "not_json")),
        ({"controlnet_custom_config": "[1]"}, ("controlnet_custom_config", "not_an_object")),
        ({"controlnet_custom_config": '{"layers": 3}'}, ("controlnet_custom_config.layers", "unknown_field")),
        (
            {"controlnet_custom_config": '{"conditioning_embedding_out_channels": [16, 32]}'},
            ("controlnet_custom_config.conditioning_embedding_out_channels", "out_of_range"),
        ),
    ],
)
def test_what_a_controlnet_cannot_have_is_refused(values: dict[str, Any], refused: tuple[str, str]) -> None:
    assert refused in codes(problems_of(**values))


def test_options_without_an_effect_are_noted() -> None:
    off = problems_of(controlnet=False, controlnet_model_name_or_path="someone/controlnet", controlnet_custom_config="{}")
    wanted = {("controlnet_model_name_or_path", "no_effect"), ("controlnet_custom_config", "no_effect")}
    assert wanted <= codes(off, Level.NOTE)
    assert ("validation_guidance_rescale", "no_effect") in codes(problems_of(validation_guidance_rescale=0.5), Level.NOTE)


def test_control_images_may_be_inputs_of_validations() -> None:
    shown: dict[str, Any] = {"validation_using_datasets": True, "validation_stitch_input_location": "left", "validation_guidance": 5}
    assert codes(problems_of(**shown)) == set()
    named = problems_of(validation_using_datasets=False, validation_input='[{"path": "/edges.png", "prompt": "a house"}]')
    assert codes(named) == set()
    assert ("validation_using_datasets", "not_for_family") in codes(problems_of(controlnet=False, **shown))


def test_settings_hold_values_in_their_range_only() -> None:
    number, numbers, word = (
        ControlNetSetting(least=1, most=4),
        ControlNetSetting(least=1, most=4, count=2),
        ControlNetSetting(words=("rgb",)),
    )
    assert number.holds(1) and not number.holds(5) and not number.holds(True) and not number.holds("1")
    assert numbers.holds([1, 4]) and not numbers.holds([1]) and not numbers.holds([1, 9]) and not numbers.holds(1)
    assert word.holds("rgb") and not word.holds("bgr")
    assert (number.expected, word.expected) == ("a whole number from 1 to 4", "one of rgb")


def test_the_custom_config_of_every_family_refuses_what_it_does_not_know() -> None:
    for family in ABLE:
        spec = specs()[family].controlnet
        assert spec is not None
        assert custom_config('{"trust_remote_code": true}', spec)[1]
        assert custom_config(None, spec) == ({}, [])


@pytest.mark.parametrize("family", ABLE)
def test_a_run_trains_the_controlnet_and_freezes_the_network(family: str) -> None:
    plain, spec = specs()[family], spec_with(family)
    assert list(spec.trained) == ["controlnet"] and spec.networks_beside == (plain.network,)
    assert spec.components[plain.network].role is Role.BESIDE and spec.steers is plain.controlnet and plain.steers is None
    assert "controlnet" not in spec.base_folders and plain.components[plain.network].folder in spec.base_folders
    assert spec.parameters == plain.controlnet.parameters  # type: ignore[union-attr]
    named = spec_with(family, controlnet_model_name_or_path="someone/controlnet")
    assert "controlnet" in named.base_folders


def test_the_weights_of_a_controlnet_come_from_their_own_option() -> None:
    model = options_with(model_family="sd1x", controlnet=True, controlnet_model_name_or_path="someone/controlnet").model
    spec = spec_of_run(model, specs()["sd1x"])
    source = component_source(model, spec, "controlnet")
    assert (source.option, source.name, source.is_bare) == ("controlnet_model_name_or_path", "someone/controlnet", True)
    assert model_sources(model, spec)["controlnet_model_name_or_path"] == "someone/controlnet"


def test_the_network_beside_a_controlnet_may_come_from_its_own_option() -> None:
    model = options_with(model_family="sd1x", controlnet=True, pretrained_unet_model_name_or_path="/models/unet").model
    assert component_source(model, spec_of_run(model, specs()["sd1x"]), "unet").name == "/models/unet"


def test_a_checkpoint_of_a_controlnet_belongs_to_another_run() -> None:
    ours, plain = (
        run_identity(options_with(model_family="sd1x", controlnet=chosen), specs()["sd1x"], "epsilon") for chosen in (True, False)
    )
    older = {name: value for name, value in plain.items() if name != "controlnet"}
    assert identity_differences(older, plain) == []
    assert any("controlnet" in one for one in identity_differences(older, ours))


def test_a_set_of_control_images_is_paired_with_its_images() -> None:
    found, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, CONTROLS)
    assert codes(problems) == set()
    [controls] = found.references_of(found.image_sets[0])
    assert controls.conditioning_type == "controlnet" and controls.noun == "control image" and not controls.is_mask


def test_generated_references_become_control_images_and_masks_stay_masks() -> None:
    made = [{"type": "canny"}, {"type": "random_masks", "conditioning_type": "mask"}]
    found, problems = datasets({**IMAGES, "conditioning": made})
    assert codes(problems) == set()
    assert [one.conditioning_type for one in found.reference_sets] == ["controlnet", "mask"]
    again, problems = datasets(*found.as_document())
    assert codes(problems) == set() and again.reference_sets == found.reference_sets


def test_an_image_set_without_control_images_is_refused() -> None:
    _, problems = datasets(IMAGES)
    assert ("dataloader[0].conditioning_data", "control_needed") in codes(problems)


def test_references_are_no_control_images() -> None:
    _, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, {**CONTROLS, "conditioning_type": "reference_loose"})
    assert ("dataloader[0].conditioning_data", "not_control_images") in codes(problems)


def test_control_images_need_a_run_that_trains_a_controlnet() -> None:
    _, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, CONTROLS, controlnet=False)
    assert ("dataloader[0].conditioning_data", "needs_controlnet") in codes(problems)


def test_several_sets_of_control_images_take_turns() -> None:
    entries = [{**IMAGES, "conditioning_data": ["edges"], "conditioning": [{"type": "canny"}]}, CONTROLS]
    _, together = datasets(*entries, conditioning_multidataset_sampling="combined")
    assert ("dataloader[0].conditioning_data", "several_controls") in codes(together)
    _, in_turn = datasets(*entries, conditioning_multidataset_sampling="random")
    assert codes(in_turn) == set()


def test_a_conditioning_set_of_such_a_run_holds_control_images_unless_it_says_otherwise() -> None:
    silent = {"id": "edges", "dataset_type": "conditioning", "instance_data_dir": "/data/edges"}
    found, problems = datasets({**IMAGES, "conditioning_data": "edges"}, silent)
    assert codes(problems) == set() and found.reference_sets[0].conditioning_type == "controlnet"
    again, problems = datasets(*found.as_document())
    assert codes(problems) == set() and again.reference_sets == found.reference_sets
    _, problems = datasets({**IMAGES, "conditioning_data": "edges"}, silent, controlnet=False)
    assert ("dataloader[1].conditioning_type", "missing") in codes(problems)


@pytest.mark.parametrize(("family", "flavour", "looks"), [("flux", "kontext", True), ("flux", "dev", False), ("flux", None, False)])
def test_control_images_without_a_controlnet_need_a_network_that_takes_references(family: str, flavour: str | None, looks: bool) -> None:
    entries = [{**IMAGES, "conditioning": {"type": "canny", "conditioning_type": "controlnet", "captions": ["a cat"]}}]
    found, problems = datasets(*entries, controlnet=False, model_family=family, model_flavour=flavour, model_type="lora")
    wanted = set() if looks else {("dataloader[0].conditioning_data", "needs_controlnet")}
    assert codes(problems) == wanted
    assert found.reference_sets[0].captions == ("a cat",)


@pytest.mark.parametrize("family", ["omnigen", "kandinsky5-video", "flux2"])
def test_it_is_not_known_what_a_network_that_is_not_here_looks_at(family: str) -> None:
    _, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, CONTROLS, controlnet=False, model_family=family)
    assert codes(problems) == set()

"""The option control in options and datasets: what is refused, what is noted, and the facts of a run that widens its network."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.control import sees_control_images, width_problem
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.options.docs import page
from trainer_engine.config.parse import check_options
from trainer_engine.config.resuming.identity import adapter_targets, identity_differences, run_identity
from trainer_engine.contract.errors import Level, Problem

ABLE = sorted(name for name, spec in specs().items() if spec.control)
FLAVOURS = {name: next(iter(specs()[name].control.parameters)) for name in ABLE}  # type: ignore[union-attr]
GIVEN: dict[str, Any] = {"data_backend_config": "sets.json", "output_dir": "output", "max_train_steps": 1, "num_train_epochs": 0}
LORA: dict[str, Any] = {"model_type": "lora", "lora_type": "standard"}
IMAGES: dict[str, Any] = {"id": "cats", "instance_data_dir": "/data/cats"}
CONTROLS: dict[str, Any] = {"id": "edges", "instance_data_dir": "/data/edges", "conditioning_type": "controlnet"}


def problems_of(family: str = "flux", **values: Any) -> list[Problem]:
    flavour = {"model_flavour": FLAVOURS[family]} if family in FLAVOURS else {}
    return check_options({**GIVEN, **LORA, "model_family": family, "control": True, **flavour, **values})[1]


def codes(problems: list[Problem], level: Level = Level.ERROR) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is level}


def datasets(*entries: dict[str, Any], **options: Any) -> tuple[Dataloader, list[Problem]]:
    values = {**GIVEN, **LORA, "model_family": "flux", "model_flavour": "dev", "control": True, **options}
    return parse_dataloader(list(entries), values)


def test_flux_takes_control_images() -> None:
    assert "flux" in ABLE


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", ABLE)
def test_families_that_can_be_widened_accept_it(family: str, kind: str) -> None:
    assert codes(problems_of(family, model_type=kind)) == set()


@pytest.mark.parametrize("family", sorted(specs().keys() - set(ABLE)))
def test_other_families_refuse_it_and_name_those_that_can(family: str) -> None:
    (problem,) = [one for one in problems_of(family) if one.option == "control"]
    assert (problem.code, problem.expected) == ("not_for_family", "false")
    assert all(name in problem.hint for name in ABLE)
    assert ("controlnet=true" in problem.hint) == (specs()[family].controlnet is not None)


def test_stable_diffusion_3_follows_control_images_with_a_controlnet_alone() -> None:
    """The configuration format has the option for Flux.1 and PixArt Sigma."""
    assert set(ABLE) == {"flux", "pixart_sigma"}
    (refused,) = [one for one in problems_of("sd3") if one.option == "control"]
    assert refused.got == "True" and "Stable Diffusion 3.5" in refused.message
    assert codes(problems_of("sd3", control=False, controlnet=True)) == set()


def test_a_flavour_that_edits_references_refuses_it() -> None:
    (problem,) = [one for one in problems_of(model_flavour="kontext") if one.option == "control"]
    assert problem.code == "not_for_flavour" and "dev" in problem.expected


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"controlnet": True}, ("control", "not_with_controlnet")),
        ({"lora_type": "lycoris", "lycoris_config": "lokr.json"}, ("lora_type", "not_with_control")),
        ({"use_dora": True}, ("use_dora", "not_with_control")),
        ({"family": "pixart_sigma", "lora_format": "comfyui"}, ("lora_format", "not_with_control")),
        ({"validation_using_datasets": False}, ("validation_using_datasets", "no_control")),
    ],
)
def test_what_control_cannot_have_is_refused(values: dict[str, Any], refused: tuple[str, str]) -> None:
    (problem,) = [one for one in problems_of(**values) if (one.option, one.code) == refused]
    assert problem.level is Level.ERROR and problem.expected and problem.message.endswith(".")


def test_every_problem_is_reported_at_once() -> None:
    chosen: dict[str, Any] = {"controlnet": True, "lora_format": "comfyui", "use_dora": True, "validation_using_datasets": False}
    found = codes(problems_of("pixart_sigma", **chosen))
    assert {option for option, _ in found} >= {"control", "lora_format", "use_dora", "validation_using_datasets"}


def test_comfyui_takes_adapters_of_networks_that_it_widens() -> None:
    assert codes(problems_of(lora_format="comfyui")) == set()


def test_options_of_adapters_do_not_matter_in_a_full_run() -> None:
    assert codes(problems_of(model_type="full", lora_type="lycoris", use_dora=True)) == set()


def test_guidance_that_the_pipeline_lacks_is_noted() -> None:
    assert ("validation_guidance_real", "no_effect") in codes(problems_of(validation_guidance_real=4.0), Level.NOTE)
    assert codes(problems_of(validation_guidance_real=4.0, validation_disable=True), Level.NOTE).isdisjoint(
        {("validation_guidance_real", "no_effect")}
    )


def test_control_images_may_be_inputs_of_validations() -> None:
    assert codes(problems_of(validation_using_datasets=True, validation_stitch_input_location="left")) == set()
    named = problems_of(validation_using_datasets=False, validation_input='[{"path": "/edges.png", "prompt": "a house"}]')
    assert codes(named) == set()
    assert ("validation_using_datasets", "not_for_family") in codes(problems_of(control=False, validation_using_datasets=True))


@pytest.mark.parametrize(("controlnet", "control", "looks"), [(False, False, False), (True, False, True), (False, True, True)])
def test_either_option_makes_a_run_look_at_control_images(controlnet: bool, control: bool, looks: bool) -> None:
    assert sees_control_images({"controlnet": controlnet, "control": control}) is looks
    assert options_with(model_family="flux", controlnet=controlnet, control=control).model.sees_control is looks


@pytest.mark.parametrize("family", ABLE)
def test_a_run_trains_the_widened_network(family: str) -> None:
    plain, flavour = specs()[family], FLAVOURS[family]
    assert plain.control is not None and plain.widened is None and not plain.sees_control
    spec = spec_of_run(options_with(model_family=family, model_flavour=flavour, control=True).model, plain)
    assert spec.widened is plain.control and spec.sees_control and not spec.sees_control_pixels
    assert list(spec.trained) == list(plain.trained) and spec.steers is None and spec.networks_beside == ()
    assert spec.parameters[flavour] > plain.parameters[flavour]


def test_a_network_of_a_controlnet_is_not_widened() -> None:
    spec = spec_of_run(options_with(model_family="flux", model_flavour="dev", controlnet=True).model, specs()["flux"])
    assert spec.widened is None and spec.sees_control and spec.steers is not None


@pytest.mark.parametrize("values", [{}, {"peft_lora_target_modules": '["to_q"]'}, {"slider_lora_target": True}])
@pytest.mark.parametrize("family", ABLE)
def test_an_adapter_is_always_on_the_widened_layer(family: str, values: dict[str, Any]) -> None:
    spec = specs()[family]
    ours, plain = (
        adapter_targets(options_with(model_family=family, model_flavour=FLAVOURS[family], control=chosen, **LORA, **values), spec)
        for chosen in (True, False)
    )
    assert spec.control is not None and ours == (*plain, spec.control.input_layer)


def test_a_checkpoint_with_control_belongs_to_another_run() -> None:
    ours, plain = (run_identity(options_with(model_family="flux", control=chosen), specs()["flux"], None) for chosen in (True, False))
    older = {name: value for name, value in plain.items() if name != "control"}
    assert identity_differences(older, plain) == []
    (difference,) = identity_differences(older, ours)
    assert difference.startswith("control was")


def test_the_shapes_of_the_widened_network_are_those_that_are_trained() -> None:
    control = specs()["flux"].control
    assert control is not None
    plain = {"x_embedder.weight": (3072, 64), "x_embedder.bias": (3072,), "proj_out.weight": (64, 3072)}
    wide = {**plain, "x_embedder.weight": (3072, 128)}
    assert control.widened(plain) == wide and control.widened(wide) == wide
    assert control.widened({"proj_out.weight": (64, 3072)}) == {"proj_out.weight": (64, 3072)}


@pytest.mark.parametrize(
    ("channels", "with_control", "code"),
    [
        (64, False, None),
        (64, True, None),
        (128, True, None),
        (128, False, "needs_control"),
        (384, True, "other_width"),
        (384, False, "other_width"),
    ],
)
def test_base_weights_have_the_width_that_a_run_needs(channels: int, with_control: bool, code: str | None) -> None:
    control = specs()["flux"].control
    assert control is not None
    problem = width_problem("pretrained_model_name_or_path", "someone/model", channels, control, with_control=with_control)
    assert (problem.code if problem else None) == code
    assert problem is None or ("someone/model" in problem.message and problem.expected)


def test_a_set_of_control_images_is_paired_with_its_images() -> None:
    found, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, CONTROLS)
    assert codes(problems) == set()
    assert [one.conditioning_type for one in found.references_of(found.image_sets[0])] == ["controlnet"]


def test_generated_references_and_silent_sets_become_control_images() -> None:
    found, problems = datasets({**IMAGES, "conditioning": [{"type": "canny"}]})
    assert codes(problems) == set() and [one.conditioning_type for one in found.reference_sets] == ["controlnet"]
    silent = {"id": "edges", "dataset_type": "conditioning", "instance_data_dir": "/data/edges"}
    found, problems = datasets({**IMAGES, "conditioning_data": "edges"}, silent)
    assert codes(problems) == set() and found.reference_sets[0].conditioning_type == "controlnet"


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([IMAGES], "control_needed"),
        ([{**IMAGES, "conditioning_data": ["edges"]}, {**CONTROLS, "conditioning_type": "reference_loose"}], "not_control_images"),
        ([{**IMAGES, "conditioning_data": ["edges"], "conditioning": [{"type": "canny"}]}, CONTROLS], "several_controls"),
    ],
)
def test_datasets_without_one_control_image_for_each_image_are_refused(entries: list[dict[str, Any]], code: str) -> None:
    _, problems = datasets(*entries, conditioning_multidataset_sampling="combined")
    (problem,) = [one for one in problems if one.code == code]
    assert problem.option == "dataloader[0].conditioning_data" and "control" in problem.message
    assert "a ControlNet" not in problem.message and "controlnet=true" not in problem.message


def test_an_adapter_may_preserve_the_predictions_of_the_plain_network() -> None:
    _, problems = datasets({**IMAGES, "conditioning_data": ["edges"], "is_regularisation_data": True}, CONTROLS)
    assert codes(problems) == set()


def test_control_images_of_other_runs_are_refused_with_both_options_named() -> None:
    _, problems = datasets({**IMAGES, "conditioning_data": ["edges"]}, CONTROLS, control=False)
    (problem,) = [one for one in problems if one.code == "needs_controlnet"]
    assert "control=true" in problem.expected and "controlnet=true" in problem.expected


def test_the_documentation_lists_the_families_that_can() -> None:
    (line,) = [line for line in page().splitlines() if line.startswith("With `control`:")]
    assert all(f"`{name}`" in line for name in ABLE)

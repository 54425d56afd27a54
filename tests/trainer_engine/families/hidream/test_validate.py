"""What ``validate`` says of HiDream-I1: images that are too large, distilled weights, embeddings, text encoders and options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checked_runs import checked
from tests.helpers.models import options_with, tiny_model, tiny_of
from trainer_engine.config.datasets.sizes import caption_bytes, stores_padding
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.config.part_fit import unfit_encoders
from trainer_engine.config.rules.noise_schedule import DISTILLED
from trainer_engine.config.text_states import stated_layers, stated_width
from trainer_engine.contract.errors import Level, ModelUnavailable, Problem
from trainer_engine.datasets import geometry
from trainer_engine.families.hidream.family import HiDream
from trainer_engine.families.hidream.spec import FULL, LLAMA, SPEC, states_read
from training.preflight.activations import seen_pixels
from training.preflight.cache_stock import DiskUse, embedding_notes
from training.preflight.model_files import weights_problems

CANVAS = 1024 * 1024
GIVEN: dict[str, Any] = {"model_family": "hidream", "model_type": "lora", "data_backend_config": "sets.json", "output_dir": "output"}
BALANCE, WEIGHT = "hidream_use_load_balancing_loss", "hidream_load_balancing_loss_weight"


def problems_of(**values: Any) -> list[Problem]:
    return check_options({**GIVEN, "max_train_steps": 1, "num_train_epochs": 0, **values})[1]


@pytest.mark.parametrize("aspect", [0.4, 0.56, 0.67, 0.75, 1.0, 1.33, 1.5, 1.78, 2.5])
def test_images_of_every_aspect_fit_into_the_canvas(aspect: float) -> None:
    width, height = geometry.target_size(aspect, 1024, "pixel_area", 64, CANVAS)
    usual = geometry.target_size(aspect, 1024, "pixel_area", 64)
    assert width * height <= CANVAS and width % 64 == height % 64 == 0
    assert usual == (width, height) or (usual[0] * usual[1] > CANVAS and sum(usual) - width - height in (64, 128))


def test_a_size_without_a_canvas_stays_as_it_is() -> None:
    assert geometry.within((4096, 2048), 64, 0) == (4096, 2048)
    assert geometry.within((1280, 832), 64, CANVAS) == (1216, 832)
    assert geometry.within((832, 1280), 64, CANVAS) == (832, 1216)
    assert geometry.within((64, 64), 64, 1) == (64, 64)


@pytest.mark.parametrize(("size", "refused"), [("1024x1024", False), ("1216x832", False), ("1280x832", True), ("1536x1536", True)])
def test_validation_images_beyond_the_canvas_are_refused(size: str, refused: bool) -> None:
    found = [problem for problem in problems_of(validation_resolution=size) if problem.option == "validation_resolution"]
    assert [(problem.level, problem.code) for problem in found] == [(Level.ERROR, "beyond_canvas")] * refused
    assert "beyond_canvas" not in {problem.code for problem in problems_of(model_family="flux", validation_resolution=size)}


def test_an_oblong_image_costs_as_much_as_the_whole_canvas() -> None:
    assert seen_pixels((512, 512), SPEC) == 512 * 512
    assert seen_pixels((512, 768), SPEC) == seen_pixels((768, 512), SPEC) == CANVAS
    assert seen_pixels((512, 768), specs()["flux"]) == 512 * 768


def test_a_caption_takes_the_states_of_all_layers_with_their_padding() -> None:
    assert caption_bytes(SPEC, tokens=5) == caption_bytes(SPEC) == ((32 + 1) * 4096 * 128 + 2048) * 2
    assert caption_bytes(SPEC, limit=64) == ((32 + 1) * 4096 * 64 + 2048) * 2
    assert stores_padding(SPEC, {"t5_padding": "zero"}), "those of Llama are stored all the same"
    use = DiskUse("cache_dir", Path("/cache"), "text embeddings", 300 * caption_bytes(SPEC), 0)
    [note] = embedding_notes([use], options_with(model_family="hidream", pretrained_model_name_or_path=str(tiny_model("hidream"))), SPEC)
    assert note.code == "large_embeddings" and "text_cache_disable=true" in note.hint and "t5_padding" not in note.hint


@pytest.mark.parametrize(
    "values",
    [
        {"model_flavour": "dev"},
        {"model_flavour": "fast"},
        {"pretrained_model_name_or_path": "HiDream-ai/HiDream-I1-Dev"},
        {"pretrained_transformer_model_name_or_path": "/models/hidream_i1_fast_bf16.safetensors"},
    ],
)
def test_distilled_weights_are_recognised_by_flavour_and_name(tmp_path: Path, values: dict[str, Any]) -> None:
    options = options_with(**{"model_family": "hidream", "model_type": "lora", "pretrained_model_name_or_path": None, **values})
    [problem] = weights_problems(options, SPEC, tmp_path)
    assert problem.code == DISTILLED and f"train {FULL}" in problem.hint


def test_weights_with_the_schedule_of_distilled_ones_are_recognised(tmp_path: Path) -> None:
    assert SPEC.distillation is not None
    marks = {"flavour": "full", "name": "mine", "network": {}, "scheduler": {"_class_name": "FlowMatchLCMScheduler"}}
    assert "FlowMatchLCMScheduler" in SPEC.distillation.reason(**marks)
    assert SPEC.distillation.reason(**{**marks, "name": FULL, "scheduler": {"_class_name": "UniPCMultistepScheduler"}}) == ""
    options = options_with(model_family="hidream", pretrained_model_name_or_path=str(tiny_model("hidream")))
    assert list(weights_problems(options, SPEC, tmp_path)) == []


def test_a_llama_with_fewer_layers_than_the_blocks_read_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    for folder in ("transformer", "text_encoder_4", "scheduler"):
        (model / folder).mkdir(parents=True)
    network = {"llama_layers": [0, 1, 31, 31], "caption_channels": [4096, 4096]}
    (model / "transformer/config.json").write_text(json.dumps(network))
    (model / "text_encoder_4/config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 28}))
    options = options_with(model_family="hidream", pretrained_model_name_or_path=str(model)).model
    [problem] = unfit_encoders(options, SPEC, tmp_path)
    assert (problem.code, problem.got) == ("too_few_layers", "28") and problem.expected == "num_hidden_layers of 32 or more"


@pytest.mark.parametrize("listed", [None, [], ["0"], "0"])
def test_a_network_that_lists_no_layers_of_llama_is_refused_by_validate_and_by_the_engine(tmp_path: Path, listed: Any) -> None:
    model = Path(shutil.copytree(tiny_model("hidream"), tmp_path / "model"))
    config = model / "transformer/config.json"
    changed = {**json.loads(config.read_text()), "llama_layers": listed}
    config.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    report = checked(tmp_path, model_family="hidream", model_type="lora", model=str(model))
    assert [(problem.option, problem.code) for problem in report.errors] == [("pretrained_model_name_or_path", "bad_layers")]
    with pytest.raises(ModelUnavailable, match="llama_layers"):
        tiny_of(HiDream, model).encode_prompts(["a cat"])


def test_what_a_network_lists_is_read_as_states_and_widths() -> None:
    assert states_read({"llama_layers": [0, 31, 2, 31]}) == (1, 3, 32) and states_read({}) == ()
    assert stated_layers({"layers": [1, "2"]}, "layers") == stated_layers({"layers": "12"}, "layers") == stated_layers({}, "") == ()
    wide = {"widths": [8, 16], "width": 4}
    assert [stated_width(wide, key) for key in ("width", "widths.0", "widths.1", "widths.2", "widths", "other")] == [
        4,
        8,
        16,
        None,
        None,
        None,
    ]


def test_llama_comes_from_a_repository_of_its_own() -> None:
    assert SPEC.companion == LLAMA and "meta-llama" not in SPEC.flavours.values()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, []),
        ({BALANCE: True, WEIGHT: 0.1}, []),
        ({WEIGHT: 1e-5}, [(WEIGHT, "no_effect")]),
        ({BALANCE: True, WEIGHT: 0}, [(BALANCE, "no_effect")]),
        ({BALANCE: True, WEIGHT: 2}, [(WEIGHT, "out_of_range")]),
        ({BALANCE: True, WEIGHT: -1}, [(WEIGHT, "out_of_range")]),
    ],
)
def test_the_balance_of_experts_needs_both_options(values: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert [(problem.option, problem.code) for problem in problems_of(**values) if problem.option in (BALANCE, WEIGHT)] == found

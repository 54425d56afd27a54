"""The file that names the components of a pipeline, as diffusers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AnimaModularPipeline, AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler

from trainer_engine.config.hub import HubSettings
from trainer_engine.results.folders import model_card
from trainer_engine.results.pipeline_index import is_modular, loading_code, pipeline_index
from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from training.preflight.base_model import check_access

VAE = {"vae": ("diffusers", "AutoencoderKLQwenImage")}
ENCODER = {"text_encoder": ("transformers", "Qwen3Model")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A modular pipeline with two of its components."""
    folder = tmp_path_factory.mktemp("modular") / "pipeline"
    vae = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=1)
    write_pipeline_folder(folder, "AnimaModularPipeline", {"vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    return folder


def test_only_pipelines_of_blocks_are_modular() -> None:
    assert is_modular("AnimaModularPipeline") and is_modular("Flux3ModularPipeline")
    assert not is_modular("QwenImagePipeline") and not is_modular("NoSuchPipeline")


def test_a_plain_pipeline_keeps_its_layout() -> None:
    name, index = pipeline_index("QwenImagePipeline", VAE, ENCODER, {"some_setting": 1}, home="me/mine", base_model="a/base")
    assert name == "model_index.json"
    assert {key: value for key, value in index.items() if key != "_diffusers_version"} == {
        "_class_name": "QwenImagePipeline",
        "some_setting": 1,
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "text_encoder": [None, None],
    }


def test_a_modular_index_says_where_each_component_is() -> None:
    name, index = pipeline_index("AnimaModularPipeline", VAE, ENCODER, home="me/mine", base_model="a/base")
    assert name == "modular_model_index.json" and index["_blocks_class_name"] == "AnimaAutoBlocks"
    assert index["vae"][:2] == ["diffusers", "AutoencoderKLQwenImage"]
    assert index["vae"][2]["pretrained_model_name_or_path"] == "me/mine" and index["vae"][2]["subfolder"] == "vae"
    assert index["text_encoder"][2]["pretrained_model_name_or_path"] == "a/base"


def test_a_modular_index_names_no_folder_of_this_machine() -> None:
    _, index = pipeline_index("AnimaModularPipeline", VAE, ENCODER, base_model="/home/me/secret/base")
    assert "/home/me" not in json.dumps(index)
    assert index["text_encoder"][2]["pretrained_model_name_or_path"] is None


def test_diffusers_loads_a_modular_folder_from_where_it_lies(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    folder.rename(moved)
    try:
        pipeline = AnimaModularPipeline.from_pretrained(str(moved))
        pipeline.load_components()
    finally:
        moved.rename(folder)
    assert type(pipeline.vae) is AutoencoderKLQwenImage and pipeline.vae.config.base_dim == 4
    assert pipeline.scheduler.config.shift == 3.0 and pipeline.text_encoder is None


def test_the_code_of_a_card_loads_a_modular_folder(folder: Path) -> None:
    code = loading_code("AnimaModularPipeline", json.dumps(str(folder)), "bfloat16")
    scope: dict[str, Any] = {}
    exec(f"import torch\nfrom diffusers import AnimaModularPipeline\n{code}", scope)
    assert str(scope["pipeline"].vae.dtype) == "torch.bfloat16"
    assert (
        loading_code("QwenImagePipeline", "'x'", "float32")
        == "pipeline = QwenImagePipeline.from_pretrained('x', torch_dtype=torch.float32)"
    )


@pytest.mark.parametrize(("pipeline", "said"), [("AnimaModularPipeline", "`load_components` takes"), ("QwenImagePipeline", "pass them to")])
def test_a_card_says_where_a_left_out_text_encoder_comes_from(pipeline: str, said: str) -> None:
    facts = {"head": (), "notices": (), "title": "A Model", "base_model": "a/base", "module": "diffusers", "dtype": "float32", "facts": {}}
    assert said in model_card(pipeline=pipeline, drawable=False, **facts)  # type: ignore[arg-type]
    assert said not in model_card(pipeline=pipeline, drawable=True, **facts)  # type: ignore[arg-type]


def test_the_preflight_takes_a_modular_folder_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    hub = HubSettings.of({"HF_HOME": str(tmp_path)})
    problem = check_access("x", str(tmp_path / "model"), None, hub)
    assert problem is not None and problem.code == "not_a_model"
    (tmp_path / "model/modular_model_index.json").write_text("{}")
    assert check_access("x", str(tmp_path / "model"), None, hub) is None

"""Depth maps equal those of transformers' own pipeline, train a network, and their model is checked before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, DPTConfig, DPTForDepthEstimation, pipeline
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from tests.trainer_engine.families.flux.test_generated_references import edits
from tests.trainer_engine.families.flux.test_kontext import adapter, kontext
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.generators import depth
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.weights.depth_model import _loaded

NAME = "some-org/depth"
OPTIONS = {"model_family": "flux", "model_flavour": "kontext", "model_type": "lora", "output_dir": "/out"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DPT of 84 thousand parameters in the cache of the hub."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    neck = {"backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    folder = tmp_path / "dpt"
    DPTForDepthEstimation(DPTConfig(image_size=32, patch_size=16, is_hybrid=False, **small, **neck)).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 32, "width": 32}, ensure_multiple_of=16).save_pretrained(folder)
    snapshot = place_in_hub_cache(folder, NAME, tmp_path / "home")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
    _loaded.cache_clear()
    return snapshot


def picture() -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((96, 64), Image.Resampling.BICUBIC)


def test_a_map_is_what_the_pipeline_of_the_library_estimates(model: Path) -> None:
    found = depth.make(picture(), depth.DepthFields(model_name=NAME), 0)
    theirs = pipeline(
        "depth-estimation",
        model=DPTForDepthEstimation.from_pretrained(model),
        image_processor=AutoImageProcessor.from_pretrained(model),
        device="cpu",
    )
    estimated: Any = theirs(picture())
    wanted = np.asarray(estimated["depth"], dtype=int)
    levels = np.asarray(found, dtype=int)
    assert found.size == (96, 64) and (levels == levels[..., :1]).all()
    assert np.abs(levels[..., 0] - wanted).max() <= 1
    assert (levels.min(), levels.max()) == (0, 255)
    for size in ((37, 53), (16, 16), (3, 200)):
        plane = depth.make(Image.new("RGB", size, (10, 200, 90)), depth.DepthFields(model_name=NAME), 0)
        assert plane.size == size and plane.mode == "RGB"


def test_a_run_trains_on_generated_depth_and_makes_each_map_once(model: Path, tmp_path: Path) -> None:
    datasets = edits(tmp_path, {"type": "depth_midas", "model_name": NAME})
    shared = {"cache_dir": str(tmp_path / "cache"), "max_train_steps": 1}
    first = kontext(tmp_path, datasets, output_dir=str(tmp_path / "one"), **shared)
    maps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/conditioning_data").rglob("*.png")}
    second = kontext(tmp_path, datasets, output_dir=str(tmp_path / "two"), **shared)
    assert adapter(first) == adapter(second)
    assert len(maps) == 4 and maps == {path: path.stat().st_mtime_ns for path in maps}


def test_a_missing_model_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="some-org/other"):
        depth.make(picture(), depth.DepthFields(model_name="some-org/other"), 0)


@pytest.mark.parametrize("name", ["/etc", "../secrets/model", "model", "owner/..", "./owner/name", "owner/name/more", ""])
def test_a_model_is_a_repository_and_never_a_path(name: str) -> None:
    entry = {"id": "cats", "type": "local", "instance_data_dir": "/data/cats", "conditioning": [{"type": "depth", "model_name": name}]}
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": "/cache/text"}
    _, problems = parse_dataloader([entry, texts], OPTIONS)
    assert "dataloader[0].conditioning[0].model_name" in {problem.option for problem in problems}


def test_repositories_of_datasets_and_of_generators_are_known() -> None:
    local = {"id": "cats", "type": "local", "instance_data_dir": "/data/cats", "conditioning": [{"type": "depth"}, {"type": "canny"}]}
    captions = {"caption_strategy": "instanceprompt", "instance_prompt": "x"}
    rows = {"id": "rows", "type": "huggingface", "dataset_name": "some-org/rows", **captions}
    folder = {**rows, "id": "folder", "dataset_name": "/data/rows"}
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": "/cache/text"}
    found, _ = parse_dataloader([local, rows, folder, texts], OPTIONS)
    assert found.generating_models == {"dataloader[0].conditioning[0].model_name": depth.MODEL}
    assert found.repositories == {"dataloader[1].dataset_name": "some-org/rows", **found.generating_models}

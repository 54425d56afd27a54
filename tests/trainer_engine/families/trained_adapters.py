"""Trained adapters of the micro models, and what the networks with them compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.helpers.family_folders import stated
from tests.helpers.models import tiny_model, undistilled
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.adapter_facts import AdapterFacts
from trainer_engine.config.families import specs

ADAPTERS: Mapping[str, AdapterFacts] = MappingProxyType(stated("network", "ADAPTERS"))
"""Family -> what the module ``network`` of its folder of tests states."""
RESULT = "pytorch_lora_weights.safetensors"


def trained(place: Path, family: str, **options: Any) -> Path:
    """The folder with the adapter of a run of two steps."""
    usual = {"model_type": "lora", "lora_rank": 4, "lora_alpha": 2, "learning_rate": 0.05, "max_train_steps": 2}
    chosen = {**usual, **undistilled(family), **options}
    run = train_here(place, model_family=family, model=str(tiny_model(family)), **chosen)
    assert run.code == 0
    return run.output_dir


def pipeline_of(family: str) -> Any:
    """The micro model in the pipeline of diffusers that its index names."""
    folder, opens = tiny_model(family), ADAPTERS[family].open_pipeline
    if opens is not None:
        return opens(folder)
    (index,) = folder.glob("*model_index.json")
    pipeline = getattr(diffusers, json.loads(index.read_text())["_class_name"]).from_pretrained(folder)
    if isinstance(pipeline, diffusers.ModularPipeline):
        pipeline.load_components(["transformer"], dtype=torch.float32)
    return pipeline


def prefix_of(family: str) -> str:
    """What the keys of its network begin with in the files of diffusers."""
    spec = specs()[family]
    return spec.components[spec.network].state_dict_prefix


def network_in(pipeline: Any) -> nn.Module:
    network: nn.Module = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    return network.eval()


@torch.no_grad()
def output_of(family: str, network: nn.Module) -> Tensor:
    """What the family's micro network computes of fixed inputs."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    return ADAPTERS[family].output(network, draw(2, 77, ADAPTERS[family].prompt_width), draw)

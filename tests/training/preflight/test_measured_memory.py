"""The estimate of a step is within 10 % of the bytes of all tensors that live in it, for every kind of run that a CPU can train.

The models are small, and wide enough that layers, not vectors of one sample, hold the memory. Bytes are counted by operator: neither the
allocator nor the libraries take part in them.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, WanTransformer3DModel

from tests.bench.adapters import assembled, datasets
from tests.helpers.live_bytes import LiveBytes, tensors_of
from tests.helpers.pictures import generate_images
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.examine import examine
from training.preflight.network import count_parameters, network_tensors
from training.preflight.on_device import EstimatedRun
from training.preflight.step import step_memory

TOLERANCE = 0.10
EDGE = 128
WIDER: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "sd1x": ("unet", UNet2DConditionModel, {"block_out_channels": (64, 128)}),
    "wan": ("transformer", WanTransformer3DModel, {"num_attention_heads": 8, "attention_head_dim": 24, "ffn_dim": 768, "num_layers": 4}),
}
"""Family -> what makes its smallest model wide enough."""
LOKR = {"algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_alpha": 1, "factor": 8}
ATTENTION = {"flux": "FluxAttention", "pixart_sigma": "Attention"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("measured")
    generate_images(place / "images", count=8, size=(2 * EDGE, 2 * EDGE))
    for family in ("flux", "pixart_sigma"):
        importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(place / family, size="demo")
        document = {**LOKR, "apply_preset": {"target_module": [ATTENTION[family], "FeedForward"]}}
        (place / f"{family}.json").write_text(json.dumps(document))
    for family, (folder, network, changes) in WIDER.items():
        importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(place / family)
        config = {**network.load_config(place / family / folder), **changes}
        shutil.rmtree(place / family / folder)
        with torch.random.fork_rng(devices=[]):
            network.from_config(config).save_pretrained(place / family / folder)
    return place


def measured_and_estimated(place: Path, family: str, values: dict[str, Any]) -> tuple[int, int]:
    name = f"run-{len(list(place.iterdir()))}"
    usual = {
        "model_family": family,
        "model_type": "lora",
        "pretrained_model_name_or_path": str(place / family),
        "data_backend_config": "none.json",
        "output_dir": str(place / name),
        "cache_dir": str(place / f"cache-{family}"),
        "max_train_steps": 2,
        "num_train_epochs": 0,
        "train_batch_size": 4,
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "dataloader_prefetch": False,
        "resolution": EDGE,
        "validation_disable": True,
        "resume_from_checkpoint": "",
        "lora_dropout": 0,
    }
    if values.get("lora_type") == "lycoris":
        values = {**values, "lycoris_config": str(place / f"{family}.json")}
    options = parse_options({**usual, **({"lora_rank": 16} if "lycoris_config" not in values else {}), **values})
    trainer = assembled(place, options)
    with LiveBytes(tensors_of(trainer.step.network)) as live:
        trainer.fit()
    spec, tensors = find_spec(family), network_tensors(options.model, find_spec(family), place)  # type: ignore[arg-type]
    assert spec is not None and tensors is not None
    run = EstimatedRun(options=options, spec=spec, parameters=count_parameters(tensors), tensors=tensors)
    return live.peak, step_memory(run, examine(datasets(place, options), options, spec)).total


BASES = ("no_change", "int8-quanto", "int8-torchao")
ROWS: list[tuple[str, dict[str, Any]]] = [
    *((family, {"base_model_precision": base}) for family in ("flux", "pixart_sigma", "sd1x", "wan") for base in BASES),
    *(("flux", {"base_model_precision": base}) for base in ("int4-quanto", "int8dq-torchao", "fp8wo-torchao", "nf4-bnb", "fp8-native")),
    *(("flux", {"base_model_precision": base}) for base in ("uint4-sdnq", "int6-sdnq", "uint2-sdnq")),
    *((family, {"model_type": "full"}) for family in ("pixart_sigma", "sd1x", "wan")),
    *((family, {"lora_type": "lycoris", "base_model_precision": base}) for family in ("flux", "pixart_sigma") for base in BASES),
    ("pixart_sigma", {"model_type": "full", "gradient_accumulation_steps": 2}),
    ("pixart_sigma", {"model_type": "full", "optimizer": "torch-sgd"}),
    ("flux", {"lora_rank": 64}),
]


def title(row: tuple[str, dict[str, Any]]) -> str:
    return " ".join([row[0], *(str(value) for value in row[1].values())])


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_the_estimate_is_what_a_step_holds(row: tuple[str, dict[str, Any]], place: Path) -> None:
    measured, estimated = measured_and_estimated(place, *row)
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_the_estimate_is_what_a_step_with_gradient_checkpointing_holds(row: tuple[str, dict[str, Any]], place: Path) -> None:
    family, values = row
    measured, estimated = measured_and_estimated(place, family, {**values, "gradient_checkpointing": True})
    assert estimated == pytest.approx(measured, rel=TOLERANCE)

"""The estimate of a step is within 10 % of the bytes of all tensors that live in it, for every kind of run that a CPU can train.

The models are small, and wide enough that layers, not vectors of one sample, hold the memory. Bytes are counted by operator: neither the
allocator nor the libraries take part in them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.measured_steps import EDGE, make_wide, measured_and_estimated, measured_options
from tests.helpers.models import options_with
from tests.helpers.params import first_fast, slow
from tests.helpers.pictures import generate_images
from trainer_engine.config.families import specs
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from training.preflight.network import network_tensors

TOLERANCE = 0.10
LOKR = {"algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_alpha": 1, "factor": 8}
STEERED = ("sd1x", "pixart_sigma", "flux", "sd3")
"""Families whose ControlNet is measured."""
SKIPPED = {"tread_config": '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]}'}
"""Half the tokens skip the middle blocks."""
CONTROLNET = {"model_type": "full", "controlnet": True}
ATTENTION = {"flux": "FluxAttention", "pixart_sigma": "Attention"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("measured")
    generate_images(place / "images", count=8, size=(2 * EDGE, 2 * EDGE))
    for family in ("flux", "pixart_sigma"):
        importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(place / family, size="demo")
        document = {**LOKR, "apply_preset": {"target_module": [ATTENTION[family], "FeedForward"]}}
        (place / f"{family}.json").write_text(json.dumps(document))
        make_assistant(place, family)
    for family in ("sd1x", "sd3", "wan"):
        make_wide(family, place / family)
    for family in STEERED:
        options = options_with(model_family=family, pretrained_model_name_or_path=str(place / family), controlnet=True)
        network: Any = load_family(options, resolve_devices(options, torch.device("cpu"))).load_network()
        network.save_pretrained(place / f"{family}-controlnet")
    return place


def make_assistant(place: Path, family: str) -> None:
    """An adapter of random numbers on every layer that makes queries."""
    options = options_with(model_family=family, pretrained_model_name_or_path=str(place / family))
    tensors = network_tensors(options.model, specs()[family], place) or {}
    layers = {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name.endswith("to_q.weight")}
    sides = {f"transformer.{name}.lora_A.weight": torch.randn(64, shape[1]) for name, shape in layers.items()}
    sides |= {f"transformer.{name}.lora_B.weight": torch.randn(shape[0], 64) for name, shape in layers.items()}
    save_file(sides, place / f"{family}-assistant.safetensors")


def numbers_of(adapter: str | None) -> int:
    """Numbers in an adapter file; 0 for none."""
    return sum(tensor.numel() for tensor in load_file(adapter).values()) if adapter else 0


def estimate_beside_measured(place: Path, family: str, values: dict[str, Any]) -> tuple[int, int]:
    if values.get("lora_type") == "lycoris":
        values = {**values, "lycoris_config": str(place / f"{family}.json")}
    if values.get("controlnet"):
        values = {**values, "controlnet_model_name_or_path": str(place / f"{family}-controlnet")}
    if "assistant_lora_path" in values:
        values = {**values, "assistant_lora_path": str(place / f"{family}-assistant.safetensors")}
    if "lycoris_config" not in values:
        values = {"lora_rank": 16, **values}
    return measured_and_estimated(place, measured_options(place, family, values), assistant=numbers_of(values.get("assistant_lora_path")))


ROWS: list[tuple[str, dict[str, Any]]] = [
    ("pixart_sigma", {"model_type": "full"}),
    ("flux", {"lora_type": "lycoris"}),
    ("wan", {"model_type": "full"}),
    ("sd1x", {"model_type": "full"}),
    ("pixart_sigma", {"lora_type": "lycoris"}),
    ("pixart_sigma", {"model_type": "full", "gradient_accumulation_steps": 2}),
    ("pixart_sigma", {"model_type": "full", "optimizer": "torch-sgd"}),
    *((family, SKIPPED) for family in ("flux", "pixart_sigma")),
    ("flux", {"assistant_lora_path": "assistant"}),
    *((family, CONTROLNET) for family in STEERED),
    ("pixart_sigma", {"control": True}),
]
"""The rows of ``docs/memory.md`` are in ``test_measured_rows.py``."""
MORE: list[tuple[str, dict[str, Any]]] = [
    ("flux", {"lora_rank": 64}),
    ("wan", SKIPPED),
    ("pixart_sigma", {"model_type": "full", **SKIPPED}),
    ("flux", {"control": True}),
    ("flux", {"base_model_precision": "int4-quanto"}),
    *(("flux", {"base_model_precision": base}) for base in ("int8dq-torchao", "fp8-native", "int6-sdnq", "uint2-sdnq")),
    *(
        (family, {"lora_type": "lycoris", "base_model_precision": base})
        for family in ("flux", "pixart_sigma")
        for base in ("int8-quanto", "int8-torchao")
    ),
]
RECOMPUTED = [("flux", CONTROLNET)]
"""The rows that are measured with gradient checkpointing by the fast tests."""


def title(row: tuple[str, dict[str, Any]]) -> str:
    return " ".join([row[0], *(f"{name}={value}" for name, value in row[1].items())])


@pytest.mark.parametrize("row", [*first_fast(ROWS, 3), *slow(MORE)], ids=title)
def test_the_estimate_is_what_a_step_holds(row: tuple[str, dict[str, Any]], place: Path) -> None:
    measured, estimated = estimate_beside_measured(place, *row)
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("row", [*RECOMPUTED, *slow(row for row in ROWS + MORE if row not in RECOMPUTED)], ids=title)
def test_the_estimate_is_what_a_step_with_gradient_checkpointing_holds(row: tuple[str, dict[str, Any]], place: Path) -> None:
    family, values = row
    measured, estimated = estimate_beside_measured(place, family, {**values, "gradient_checkpointing": True})
    assert estimated == pytest.approx(measured, rel=TOLERANCE)

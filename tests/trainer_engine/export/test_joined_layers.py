"""Layers that ComfyUI has as one: its file changes their rows exactly as the adapter changes each of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer_engine.export.test_command import ALGORITHMS, bare_network, lycoris_file, module_names
from trainer_engine.config.adapters.other_names import JointLayer, ModuleKeys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.adapter_file import AdapterTensors, read_adapter
from trainer_engine.export.conversion import to_comfyui
from trainer_engine.export.merging import merged_weights

ROWS = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
LAYER = JointLayer(name=r"\1.qkv", stem=r"(.*)\.attn1\.", parts=("to_q", "to_k", "to_v"), shares=(1, 1, 1))
KEYS = ModuleKeys("transformer.", joint=(LAYER,))
BLOCK = "transformer_blocks.0."
JOINED = f"diffusion_model.{BLOCK}qkv."


def adapter_of(place: Path, name: str) -> AdapterTensors:
    return read_adapter(lycoris_file(place, **ALGORITHMS[name])[0], module_names())


def change_of(adapter: AdapterTensors, row: str) -> Tensor:
    """What the adapter adds to the weights of a layer, read off its answers."""
    network = bare_network()
    base = network.state_dict()[f"{BLOCK}{row}.weight"].clone()
    return merged_weights(network, adapter)[f"{BLOCK}{row}.weight"] - base


def change_in(tensors: dict[str, Tensor]) -> Tensor:
    """What a program adds to the joined weights."""
    if f"{JOINED}diff" in tensors:
        return tensors[f"{JOINED}diff"]
    down, up = tensors[f"{JOINED}lora_A.weight"], tensors[f"{JOINED}lora_B.weight"]
    return up @ down * (tensors[f"{JOINED}alpha"] / len(down))


@pytest.mark.parametrize(("name", "is_lora"), [("lora", True), ("loha", False), ("lokr", False), ("lokr full matrix", False)])
def test_the_rows_change_as_the_layers_do(name: str, is_lora: bool, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, name)
    tensors = to_comfyui(adapter, {"": KEYS})
    assert (f"{JOINED}lora_A.weight" in tensors) is is_lora
    assert not any("attn1.to_q" in key or "attn1.to_k" in key for key in tensors)
    assert any(key.startswith(f"transformer.{BLOCK}attn1.to_out.0.") for key in tensors), "a layer of its own"
    torch.testing.assert_close(change_in(tensors), torch.cat([change_of(adapter, row) for row in ROWS]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "lokr"])
def test_layers_without_an_adapter_stay_as_they_are(name: str, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, name)
    only = {module: parts for module, parts in adapter.modules.items() if not module.endswith("attn1.to_k")}
    partial = dataclasses.replace(adapter, modules=only)
    with pytest.raises(ModelUnavailable, match="attn1.to_k is not known"):
        to_comfyui(partial, {"": KEYS})
    outputs = {module: bare_network().get_submodule(module).weight.shape[0] for module in adapter.modules}
    found = change_in(to_comfyui(partial, {"": KEYS}, outputs=outputs))
    size = outputs[f"{BLOCK}attn1.to_k"]
    assert not found[size : 2 * size].any()
    wanted = torch.cat([change_of(adapter, row) for row in (ROWS[0], ROWS[2])])
    torch.testing.assert_close(torch.cat([found[:size], found[2 * size :]]), wanted, rtol=1e-4, atol=1e-5)


def test_a_component_behind_a_prefix_keeps_it(tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path, "lora")
    inside = dataclasses.replace(adapter, modules={f"transformer.{name}": parts for name, parts in adapter.modules.items()})
    assert to_comfyui(inside, {"transformer.": KEYS, "text_encoder.": ModuleKeys("te.")}).keys() == to_comfyui(adapter, {"": KEYS}).keys()


def test_a_weight_decomposed_adapter_is_not_joined(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="dora_scale"):
        to_comfyui(adapter_of(tmp_path, "dora"), {"": KEYS})

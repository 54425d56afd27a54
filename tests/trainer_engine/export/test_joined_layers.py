"""Adapters on layers that ComfyUI has as one: one LoRA makes the same change, and what no file can hold is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.models import fixed
from trainer_engine.config.adapters.other_names import JoinedLayers, ModuleKeys
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.export.adapter_file import AdapterTensors
from trainer_engine.export.conversion import to_comfyui

JOIN = JoinedLayers(parts=(r"(b\.\d+)\.to_q", r"(b\.\d+)\.to_k", r"(b\.\d+)\.to_v"), whole=r"\1.qkv")
OUT, INTO = 6, 4


def lora(rank: int, alpha: float | None, seed: int) -> dict[str, Tensor]:
    found = {"lora_A.weight": fixed(rank, INTO, seed=seed), "lora_B.weight": fixed(OUT, rank, seed=seed + 1)}
    return found if alpha is None else {**found, "alpha": torch.tensor(alpha)}


def converted(modules: dict[str, dict[str, Tensor]], *, takes_alpha: bool = True, kind: str = "lora") -> dict[str, Tensor]:
    adapter = AdapterTensors(path=Path("a"), kind=kind, is_lycoris=False, modules=modules, metadata={}, prefixes={"": ""})
    return to_comfyui(adapter, {"": ModuleKeys("diffusion_model.", joins=(JOIN,), takes_alpha=takes_alpha)})


def change(tensors: dict[str, Any]) -> Tensor:
    rank = len(tensors["lora_A.weight"])
    change: Tensor = tensors["lora_B.weight"] @ tensors["lora_A.weight"] * float(tensors.get("alpha", rank)) / rank
    return change


def of_layer(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(f"diffusion_model.{layer}."): one for key, one in tensors.items() if key.startswith(f"diffusion_model.{layer}.")
    }


@pytest.mark.parametrize("takes_alpha", [True, False])
@pytest.mark.parametrize("parts", ["qkv", "qv", "k"])
def test_one_lora_makes_the_change_of_all_of_them(parts: str, takes_alpha: bool) -> None:
    """Ranks and scales may differ; the rows of a layer without an adapter stay as they are."""
    ranks, alphas = {"q": 2, "k": 3, "v": 2}, {"q": 1.0, "k": 6.0, "v": None}
    modules = {f"b.0.to_{part}": lora(ranks[part], alphas[part], ord(part)) for part in parts} | {"b.0.other": lora(2, 1.0, 9)}
    found = converted(modules, takes_alpha=takes_alpha)
    assert {key.partition(".lora_")[0].removesuffix(".alpha") for key in found} == {"diffusion_model.b.0.qkv", "diffusion_model.b.0.other"}
    joined = of_layer(found, "b.0.qkv")
    assert len(joined["lora_A.weight"]) == sum(ranks[part] for part in parts)
    assert ("alpha" in joined) == takes_alpha
    wanted = torch.cat([change(modules[f"b.0.to_{part}"]) if part in parts else torch.zeros(OUT, INTO) for part in "qkv"])
    torch.testing.assert_close(change(joined), wanted, rtol=1e-6, atol=1e-6)


def test_layers_of_each_block_are_joined_on_their_own() -> None:
    modules = {f"b.{block}.to_{part}": lora(2, 2.0, 10 * block + ord(part)) for block in (0, 1) for part in "qkv"}
    found = converted(modules)
    for block in (0, 1):
        wanted = torch.cat([change(modules[f"b.{block}.to_{part}"]) for part in "qkv"])
        torch.testing.assert_close(change(of_layer(found, f"b.{block}.qkv")), wanted, rtol=1e-6, atol=1e-6)


def test_magnitudes_are_joined_if_every_part_has_them() -> None:
    modules = {f"b.0.to_{part}": {**lora(2, 2.0, ord(part)), "lora_magnitude_vector": fixed(OUT, seed=ord(part) + 5)} for part in "qkv"}
    magnitudes = of_layer(converted(modules), "b.0.qkv")["dora_scale"]
    assert torch.equal(magnitudes[:, 0], torch.cat([modules[f"b.0.to_{part}"]["lora_magnitude_vector"] for part in "qkv"]))
    del modules["b.0.to_k"]
    with pytest.raises(ModelUnavailable, match="DoRA"):
        converted(modules)


def test_an_adapter_that_is_no_lora_is_refused_on_such_layers_alone() -> None:
    factors = {"lokr_w1": fixed(2, 2, seed=1), "lokr_w2": fixed(3, 2, seed=2)}
    assert converted({"b.0.other": factors}, kind="lokr")
    with pytest.raises(ModelUnavailable, match="ComfyUI has them as one layer"):
        converted({"b.0.to_q": factors}, kind="lokr")

"""Adapters train on a base that any library quantised: as on its rounded weights, and resumed as if they had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model

from tests.helpers.models import fixed, tiny_family, tiny_pixart
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.adapters.test_numerics import STILL, our_loss, their_loss
from tests.trainer_engine.adapters.test_runs import LOKR, lycoris
from trainer_engine.adapters.build import make_trainable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.weights.quantised.layer import QuantisedLinear

STATIC = ["int8-torchao", "fp8wo-torchao", "nf4-bnb", "fp8-native", "uint4-sdnq"]
"""One type of each library and storage that leaves the inputs of layers as they are."""
TYPES = [*STATIC, "int8dq-torchao"]


def on_base(preset: str, **values: Any) -> Any:
    return make_trainable(tiny_family(**{**STILL, **values}, base_model_precision=preset, gradient_checkpointing=False), None)


@pytest.mark.parametrize("preset", STATIC)
def test_loss_and_gradients_equal_those_of_diffusers_on_the_rounded_weights(preset: str) -> None:
    ours = on_base(preset)
    theirs = PixArtTransformer2DModel.from_pretrained(tiny_pixart(), subfolder="transformer").requires_grad_(False).train()
    rounded = {name.replace(".base_layer", ""): layer for name, layer in ours.network.named_modules() if isinstance(layer, QuantisedLinear)}
    assert len(rounded) > 20
    for name, layer in rounded.items():
        theirs.get_submodule(name).weight.copy_(layer.weight)  # type: ignore[operator,union-attr]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), theirs)
    others = [parameter for name, parameter in theirs.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(ours.parameters, others, strict=True)):
            one.copy_(fixed(*one.shape, seed=number) * 0.1)
            other.copy_(one)
    mine, wanted = our_loss(tiny_family(), ours.network), their_loss(theirs)
    assert mine.item() == pytest.approx(wanted.item(), rel=1e-6)
    mine.backward()
    wanted.backward()
    for one, other in zip(ours.parameters, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("via", ["accelerator", "cpu", "pipeline"])
def test_the_place_of_quantisation_does_not_change_the_weights(via: str) -> None:
    one, other = on_base("int8-torchao").network, on_base("int8-torchao", quantize_via=via).network
    for mine, theirs in zip(one.modules(), other.modules(), strict=True):
        if isinstance(mine, QuantisedLinear):
            assert torch.equal(mine.weight, theirs.weight)


@pytest.mark.parametrize("preset", TYPES)
@pytest.mark.parametrize("kind", ["standard", "lycoris"])
def test_only_the_adapter_learns(kind: str, preset: str, tmp_path: Path) -> None:
    values = lycoris(tmp_path, **LOKR) if kind == "lycoris" else STILL
    trainable = make_trainable(tiny_family(**values, base_model_precision=preset), None)
    held = [layer for layer in trainable.network.modules() if isinstance(layer, QuantisedLinear)]
    before, start = [layer.weight.clone() for layer in held], [parameter.detach().clone() for parameter in trainable.parameters]
    our_loss(tiny_family(), trainable.network).backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters)
    torch.optim.AdamW(trainable.parameters, lr=0.1).step()
    assert held and all(torch.equal(layer.weight, one) for layer, one in zip(held, before, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(start, trainable.parameters, strict=True))
    assert {parameter.dtype for parameter in trainable.parameters} == {torch.float32}


@pytest.mark.parametrize("preset", ["int8-torchao", "int8-quanto"])
def test_lycoris_computes_beside_quantised_layers(preset: str, tmp_path: Path) -> None:
    """It would otherwise add the adapter to the dequantised weights of each layer, and keep the sums for the backward pass."""
    trainable = make_trainable(tiny_family(**lycoris(tmp_path, **LOKR), base_model_precision=preset), None)
    assert trainable.net.loras and all(lora.bypass_mode and lora.is_quant for lora in trainable.net.loras)


@pytest.mark.parametrize("preset", first_fast(list(TYPES), 3))
@pytest.mark.parametrize("kind", first_fast(["standard", "lycoris"]))
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, preset: str, tmp_path: Path) -> None:
    values = {**(lycoris(tmp_path, **LOKR) if kind == "lycoris" else STILL), "base_model_precision": preset}
    assert_resumes_exactly(tmp_path, **values)


def test_a_run_resumes_with_random_rounding_and_an_average(tmp_path: Path) -> None:
    values = {**STILL, "base_model_precision": "uint4-sdnq", "sdnq_use_stochastic_rounding": True, "use_ema": True}
    assert_resumes_exactly(tmp_path, **values)


@pytest.mark.parametrize("precision", ["int8-torchao", "nf4-bnb", "uint4-sdnq", "fp8-native"])
def test_text_encoders_are_quantised_and_their_embeddings_have_addresses_of_their_own(precision: str, tmp_path: Path) -> None:
    exact, rounded = tiny_family(), tiny_family(text_encoder_1_precision=precision)
    (one,), (other,) = exact.encode_prompts(["a cat"]), rounded.encode_prompts(["a cat"])
    assert not torch.equal(one["embeds"], other["embeds"])
    assert float((one["embeds"] - other["embeds"]).norm() / one["embeds"].norm()) < 0.5
    hashes = FileHashes(tmp_path / "hashes")
    assert exact.text_fingerprint(hashes) != rounded.text_fingerprint(hashes)

"""Quantised bases are frozen, and adapters on them learn what the library alone would learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from optimum.quanto import QTensor, freeze, qint4, qint8, quantize
from peft import LoraConfig, inject_adapter_in_model

from tests.helpers.models import fixed, options_with, tiny_family, tiny_pixart
from tests.helpers.params import compiled_slow
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.adapters.test_numerics import STILL, our_loss, their_loss
from tests.trainer_engine.adapters.test_runs import LOKR, lycoris
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import InvalidOptions

TYPES = {"int8-quanto": qint8, "int4-quanto": qint4}


def adapter(preset: str, **values: Any) -> Any:
    return make_trainable(tiny_family(**{**STILL, **values}, base_model_precision=preset, gradient_checkpointing=False), None)


@pytest.mark.parametrize("preset", compiled_slow(TYPES))
@pytest.mark.parametrize("via", ["accelerator", "cpu"])
def test_loss_and_gradients_equal_those_of_quanto_and_peft(preset: str, via: str) -> None:
    ours = adapter(preset, quantize_via=via)
    theirs = PixArtTransformer2DModel.from_pretrained(tiny_pixart(), subfolder="transformer").requires_grad_(False).train()
    quantize(theirs, weights=TYPES[preset])
    freeze(theirs)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), theirs)
    others = [parameter for parameter in theirs.parameters() if parameter.requires_grad and not isinstance(parameter, QTensor)]
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
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("preset", "tolerance"), [("int8-quanto", 0.01), pytest.param("int4-quanto", 0.15, marks=pytest.mark.slow)])
def test_quantised_base_computes_nearly_the_same_as_the_exact_one(preset: str, tolerance: float) -> None:
    with torch.no_grad():
        exact, rounded = our_loss(tiny_family(), tiny_family().load_network()), our_loss(tiny_family(), adapter(preset).network)
    assert rounded.item() != exact.item()
    assert rounded.item() == pytest.approx(exact.item(), rel=tolerance)


@pytest.mark.parametrize("kind", ["standard", "lycoris"])
def test_only_the_adapter_is_trained_and_the_base_stays_bit_for_bit(kind: str, tmp_path: Path) -> None:
    values = lycoris(tmp_path, **LOKR) if kind == "lycoris" else STILL
    trainable = make_trainable(tiny_family(**values, base_model_precision="int8-quanto"), None)

    def base() -> list[torch.Tensor]:
        frozen = [parameter for parameter in trainable.network.parameters() if not parameter.requires_grad]
        return [part.clone() for tensor in frozen for part in ((tensor._data, tensor._scale) if isinstance(tensor, QTensor) else (tensor,))]

    before, start = base(), [parameter.detach().clone() for parameter in trainable.parameters]
    assert any(isinstance(parameter, QTensor) for parameter in trainable.network.parameters())
    our_loss(tiny_family(), trainable.network).backward()
    assert all(parameter.grad is not None for parameter in trainable.parameters)
    torch.optim.AdamW(trainable.parameters, lr=0.1).step()
    assert all(torch.equal(one, other) for one, other in zip(before, base(), strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(start, trainable.parameters, strict=True))


@pytest.mark.parametrize("kind", ["standard", "lycoris"])
def test_resumed_run_on_a_quantised_base_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    values = {**(lycoris(tmp_path, **LOKR) if kind == "lycoris" else STILL), "base_model_precision": "int8-quanto"}
    assert_resumes_exactly(tmp_path, **values)


def test_embeddings_of_quantised_text_encoders_have_their_own_addresses() -> None:
    exact, rounded = tiny_family(), tiny_family(text_encoder_1_precision="int8-quanto")
    (one,), (other,) = exact.encode_prompts(["a cat"]), rounded.encode_prompts(["a cat"])
    assert not torch.equal(one["embeds"], other["embeds"])
    assert torch.allclose(one["embeds"], other["embeds"], atol=0.2)


@pytest.mark.parametrize(
    ("values", "option", "code"),
    [
        ({"model_type": "full", "base_model_precision": "int8-quanto"}, "base_model_precision", "cannot_be_trained"),
        ({**STILL, "base_model_precision": "fp8-quanto"}, "base_model_precision", "not_for_family"),
        ({**STILL, "base_model_precision": "int8-quanto", "use_dora": True}, "use_dora", "needs_exact_weights"),
    ],
)
def test_invalid_quantisation_is_a_problem(values: dict[str, Any], option: str, code: str) -> None:
    with pytest.raises(InvalidOptions) as refused:
        options_with(**values)
    assert (option, code) in {(problem.option, problem.code) for problem in refused.value.problems}

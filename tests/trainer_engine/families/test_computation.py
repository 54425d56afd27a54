"""Other ways of computing a network's layers give the numbers of the usual one, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor2_0, SanaLinearAttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn

from tests.helpers.gradients import FAMILIES, LORA, one_pass, step_inputs, tiny, trainable_of, usual_pass
from tests.helpers.models import UNETS, tiny_model
from tests.helpers.params import first_fast, often
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.config.attention import MECHANISMS, AttentionMechanism
from trainer_engine.config.families import specs
from trainer_engine.families.common.computation import DispatchedProcessor, chunk_feed_forward, sampling_attention, use_backend
from trainer_engine.memory.recompute import is_feed_forward

WITHOUT_MASKS = tuple(name for name in FAMILIES if not specs()[name].prompts.mask or specs()[name].prompts.mask_option)


def processors(network: nn.Module) -> list[Any]:
    """Those that compute the scores of pairs of tokens, which linear attention does not."""
    found = [module.processor for module in network.modules() if getattr(module, "processor", None) is not None]
    return [processor for processor in found if type(processor) is not SanaLinearAttnProcessor2_0]


def count_backends(monkeypatch: pytest.MonkeyPatch, name: AttentionBackendName) -> list[int]:
    """The batch of every call of a backend from now on."""
    calls: list[int] = []
    compute = _AttentionBackendRegistry._backends[name]

    def counted(query: Tensor, **kwargs: Any) -> Tensor:
        calls.append(len(query))
        output: Tensor = compute(query=query, **kwargs)
        return output

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
    return calls


@pytest.mark.parametrize("name", often(FAMILIES))
@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("mechanism", first_fast(["native", "native-math"]))
def test_pytorchs_own_attention_equals_the_usual_one(name: str, kind: dict[str, Any], mechanism: str) -> None:
    chosen = tiny(name, attention_mechanism=mechanism, **kind)
    trainable = trainable_of(chosen)
    backends = {processor._attention_backend for processor in processors(trainable.network)}
    assert backends == {MECHANISMS[mechanism].backend}
    assert one_pass(chosen, trainable).is_close_to(usual_pass(name, **kind))


@pytest.mark.parametrize("name", often(WITHOUT_MASKS))
def test_flash_attention_of_the_cpu_equals_the_usual_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_backends(monkeypatch, AttentionBackendName._NATIVE_FLASH)
    usual, chosen = tiny(name), tiny(name, attention_mechanism="native-flash")
    wanted = one_pass(usual, trainable_of(usual))
    assert not calls
    assert one_pass(chosen, trainable_of(chosen)).is_close_to(wanted) and calls


@pytest.mark.parametrize("name", often(FAMILIES))
def test_flex_attention_predicts_what_the_usual_one_does(name: str) -> None:
    assert_flex_predicts_the_same(name)


def test_flex_attention_hides_padding_like_the_usual_one() -> None:
    assert_flex_predicts_the_same("flux", flux_attention_masked_training=True)


@torch.no_grad()
def assert_flex_predicts_the_same(name: str, **values: Any) -> None:
    """On a CPU it has no backward pass."""
    family = tiny(name, **values)
    network, inputs = family.load_network(), step_inputs(family)
    wanted = family.predict(network, inputs)
    use_backend(network, MECHANISMS["flex"])
    assert torch.allclose(family.predict(network, inputs), wanted, atol=1e-5)


@pytest.mark.parametrize("mechanism", ["native", "native-math"])
def test_masks_of_padding_count_with_every_mechanism_that_takes_them(mechanism: str) -> None:
    values = {"flux_attention_masked_training": True}
    usual, chosen = tiny("flux", **values), tiny("flux", attention_mechanism=mechanism, **values)
    wanted = one_pass(usual, trainable_of(usual))
    assert one_pass(chosen, trainable_of(chosen)).is_close_to(wanted)
    plain = tiny("flux")
    assert not one_pass(plain, trainable_of(plain)).is_close_to(wanted)


def test_a_mechanism_of_one_network_is_no_default_of_the_process() -> None:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    tiny("flux", attention_mechanism="native-math").load_network()
    assert _AttentionBackendRegistry.get_active_backend()[0] == before


@pytest.mark.parametrize("name", ["flux", "sdxl"])
def test_a_mechanism_without_a_backward_pass_only_generates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The math of PyTorch stands for a kernel that the machine lacks."""
    row = AttentionMechanism(name="sageattention", backend="_native_math", trains=False)
    monkeypatch.setattr("trainer_engine.families.common.computation.MECHANISMS", {**MECHANISMS, "sageattention": row})
    calls = count_backends(monkeypatch, AttentionBackendName._NATIVE_MATH)
    family = tiny(name, attention_mechanism="sageattention")
    network, inputs = family.load_network(), step_inputs(family)
    before = processors(network)
    family.predict(network, inputs)
    assert not calls
    with sampling_attention(network, family.options), torch.no_grad():
        family.predict(network, inputs)
    in_block = len(calls)
    family.predict(network, inputs)
    assert in_block and len(calls) == in_block
    assert [type(one) for one in processors(network)] == [type(one) for one in before]
    assert {getattr(one, "_attention_backend", None) for one in processors(network)} == {None}


@pytest.mark.parametrize("name", UNETS)
def test_sliced_attention_equals_the_usual_one(name: str) -> None:
    sliced = tiny(name, unet_attention_slice=True)
    trainable = trainable_of(sliced)
    assert SlicedAttnProcessor in {type(one) for one in processors(trainable.network)}
    assert one_pass(sliced, trainable).is_close_to(usual_pass(name))


def test_the_usual_attention_is_left_to_the_library() -> None:
    assert {type(one) for one in processors(tiny("sdxl").load_network())} == {AttnProcessor2_0}
    chosen = tiny("sdxl", attention_mechanism="native").load_network()
    assert {type(one) for one in processors(chosen)} == {DispatchedProcessor}


@pytest.mark.parametrize("name", often(name for name in FAMILIES if specs()[name].has_feed_forward))
@pytest.mark.parametrize("kind", [{}, LORA, {"gradient_checkpointing": True}], ids=["full", "lora", "checkpointed"])
def test_feed_forward_layers_in_chunks_equal_complete_ones(name: str, kind: dict[str, Any]) -> None:
    chunked = tiny(name, enable_chunked_feed_forward=True, feed_forward_chunk_size=5, **kind)
    trainable = trainable_of(chunked)
    lengths: list[int] = []
    for module in trainable.network.modules():
        if is_feed_forward(module):
            first = next(one for one in module.modules() if isinstance(one, nn.Linear))
            first.register_forward_pre_hook(lambda _module, args: lengths.append(max(args[0].shape[:-1])))
    found = one_pass(chunked, trainable)
    assert lengths and max(lengths) <= 5
    assert found.is_close_to(usual_pass(name, **kind))


class SquaringFeedForward(nn.Module):
    """Counts the tokens and samples of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
        self.seen: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(tuple(tokens.shape[:-1]))
        return tokens.square()


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((2, 12, 4), [(2, 5), (2, 5), (2, 2)]),
        ((12, 2, 4), [(5, 2), (5, 2), (2, 2)]),
        ((12, 4), [(5,), (5,), (2,)]),
        ((2, 5, 4), [(2, 5)]),
    ],
)
def test_tokens_are_computed_in_chunks_whichever_axis_they_are_on(shape: tuple[int, ...], chunks: list[tuple[int, ...]]) -> None:
    layer = SquaringFeedForward()
    chunk_feed_forward(layer, 5)
    tokens = torch.arange(float(torch.Size(shape).numel())).view(shape)
    assert torch.equal(layer(tokens), tokens.square())
    assert layer.seen == chunks


@pytest.mark.parametrize("name", [name for name in FAMILIES if not specs()[name].has_feed_forward])
def test_layers_that_see_the_neighbours_of_a_token_are_not_computed_in_chunks(name: str) -> None:
    usual, chunked = tiny(name), tiny(name, enable_chunked_feed_forward=True, feed_forward_chunk_size=5)
    assert torch.equal(one_pass(chunked, trainable_of(chunked)).prediction, one_pass(usual, trainable_of(usual)).prediction)


def test_feed_forward_layers_in_chunks_equal_those_of_the_library() -> None:
    family = tiny("sd1x", enable_chunked_feed_forward=True, feed_forward_chunk_size=24)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tiny_model("sd1x"), subfolder="unet")
    for module in theirs.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(chunk_size=24, dim=1)
    inputs = step_inputs(family, height=8, width=12)
    with torch.no_grad():
        ours = family.predict(family.load_network(), inputs)
        wanted = theirs(inputs.noisy_latents, inputs.timesteps, encoder_hidden_states=family_prompts(family, inputs)).sample
    assert torch.allclose(ours, wanted, atol=1e-6)


def family_prompts(family: Any, inputs: Any) -> Tensor:
    embeds: Tensor = family.network_prompts(None, inputs.prompts)["embeds"]
    return embeds


@pytest.mark.parametrize(
    "values",
    first_fast(
        [
            {"fuse_qkv_projections": True, **LORA},
            {"attention_mechanism": "native-math"},
            {"enable_chunked_feed_forward": True, "feed_forward_chunk_size": 7},
            {"fuse_qkv_projections": True},
        ]
    ),
    ids=["fused-lora", "attention", "chunks", "fused-full"],
)
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, values: dict[str, Any]) -> None:
    usual = {"model_family": "sd1x", "model": str(tiny_model("sd1x")), "max_train_steps": 4, **values}
    assert_resumes_exactly(tmp_path, **usual)

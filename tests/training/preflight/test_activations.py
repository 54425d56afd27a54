"""The estimate of a transformer's activations follows its layers, the sequence and gradient checkpointing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.preflight.activations import AROUND, BESIDE, BORDER, KEPT, RECOMPUTED, kept_numbers, token_px
from training.preflight.adapter import of_class
from training.preflight.adapter_inputs import own_inputs
from training.preflight.recomputed import SPLIT_RECOMPUTED
from training.preflight.tokens import Tokens, convolved, in_sequence, modulated, passed, prompt_tokens, routed_tokens, sees_tokens
from training.preflight.weights import widened_numbers

SHAPES = {
    "blocks.0.attn.to_q": (8, 8),
    "blocks.0.attn.add_q_proj": (8, 8),
    "blocks.0.norm1.linear": (48, 8),
    "single_blocks.0.proj_mlp": (32, 8),
    "proj_out": (4, 8),
}


PIXART, FLUX = specs()["pixart_sigma"], specs()["flux"]


def kept(tokens: Tokens, spec: FamilySpec = PIXART, **values: Any) -> int:
    return kept_numbers(SHAPES, tokens, options_with(**{"gradient_checkpointing": False, "lora_dropout": 0.0, **values}), spec).total


def test_the_estimate_counts_for_each_layer_the_tokens_that_it_sees() -> None:
    tokens = Tokens(image=10, prompt=4)
    wanted = 16 * 10 + 16 * 4 + 40 * 14
    assert kept(tokens) == pytest.approx(KEPT["full", ""] * wanted, abs=3)
    assert kept(tokens, model_type="lora") == pytest.approx(KEPT["standard", ""] * wanted, abs=3)
    quantised = kept(tokens, model_type="lora", base_model_precision="int8-quanto")
    assert quantised == pytest.approx(KEPT["standard", "quanto"] * wanted, abs=3)


def test_samples_that_pass_alone_recompute_a_block_of_one_at_a_time() -> None:
    options = options_with(gradient_checkpointing=True)
    together, alone = (kept_numbers(SHAPES, Tokens(image=40, prompt=16, passes=passes), options, PIXART) for passes in (1, 4))
    around = AROUND * 3 / 4 * 8 * 56  # what three more passes keep around their blocks of width 8
    assert alone.total == pytest.approx(together.total - 3 / 4 * together.block + around, abs=6)
    last = together.block / 4
    assert alone.block == pytest.approx(last + 3 / 4 * (alone.total - last), abs=6), "three samples wait when all gradients exist"
    plain = [kept(Tokens(image=40, prompt=16, passes=passes)) for passes in (1, 4)]
    assert plain[1] - plain[0] == pytest.approx(around, abs=3), "without checkpoints each keeps everything"


def test_a_family_multiplies_the_estimate_by_its_share() -> None:
    assert kept(Tokens(100, 40), FLUX) == pytest.approx(FLUX.activation_share * kept(Tokens(100, 40)), abs=3)


def test_layers_of_qwen_image_count_for_the_side_that_they_are_on() -> None:
    spec, block = specs()["qwen_image"], "transformer_blocks.0."
    shapes = {f"{block}attn.to_q": (8, 8), f"{block}img_mlp.net.2": (8, 32), f"{block}txt_mlp.net.2": (8, 32), f"{block}txt_mod.1": (48, 8)}
    found = kept_numbers(shapes, Tokens(image=10, prompt=4), options_with(gradient_checkpointing=False), spec).total
    assert found == pytest.approx(spec.activation_share * KEPT["full", ""] * (16 * 10 + 40 * 10 + 40 * 4), abs=3)


def test_layers_that_join_the_states_of_a_text_encoder_count_for_each_state_and_are_not_recomputed() -> None:
    spec, sequence = specs()["qwen_image"], Tokens(image=10, prompt=4, stacked=3)
    shapes = {
        "text_fusion.layerwise_blocks.0.attn.to_q": (8, 8),
        "text_fusion.refiner_blocks.0.attn.to_q": (8, 8),
        "transformer_blocks.0.attn.to_q": (8, 8),
    }
    share = spec.activation_share * KEPT["full", ""]
    found = kept_numbers(shapes, sequence, options_with(gradient_checkpointing=False), spec).total
    assert found == pytest.approx(share * 16 * (3 * 4 + 4 + (10 + 4)), abs=3)
    fusion = {name: shape for name, shape in shapes.items() if name.startswith("text_fusion")}
    kept = [kept_numbers(fusion, sequence, options_with(gradient_checkpointing=chosen), spec).total for chosen in (False, True)]
    assert kept[0] == kept[1] > 0


def test_masks_of_pairs_grow_with_the_square_of_the_sequence_of_a_sample() -> None:
    masked = replace(PIXART, prompts=replace(PIXART.prompts, masks_pairs=True))
    for samples in (1, 2):
        tokens = Tokens(image=10 * samples, prompt=4 * samples, samples=samples)
        blocks = 2 * samples * 14**2
        assert kept(tokens, masked) == pytest.approx(kept(tokens) + blocks, abs=1)
        recomputed = {"gradient_checkpointing": True}
        of_one = RECOMPUTED["full", ""] * blocks / 2
        assert kept(tokens, masked, **recomputed) == pytest.approx(kept(tokens, **recomputed) + of_one, abs=1)


def test_a_flavour_may_have_shorter_prompts() -> None:
    assert [FLUX.tokens_of(flavour) for flavour in (None, "dev", "schnell")] == [512, 512, 256]
    assert PIXART.tokens_of(None) == PIXART.prompts.token_limit


def test_twice_the_tokens_double_the_estimate() -> None:
    assert kept(Tokens(20, 8)) == pytest.approx(2 * kept(Tokens(10, 4)), abs=1)


def test_gradient_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    tokens = Tokens(10, 4)
    wanted = BORDER * (8 + 8) * 14 + RECOMPUTED["full", ""] * KEPT["full", ""] * 40 * 14
    assert kept(tokens, gradient_checkpointing=True) == pytest.approx(wanted, abs=1)


def test_layers_of_other_libraries_than_quanto_keep_no_inputs() -> None:
    tokens, adapter = Tokens(image=100, prompt=40), {"model_type": "lora"}
    assert kept(tokens, **adapter, base_model_precision="int8-torchao") == kept(tokens, **adapter)
    assert kept(tokens, **adapter, base_model_precision="int8-quanto") > kept(tokens, **adapter)


def test_prompts_that_only_cross_attention_sees_count_in_its_keys_and_values() -> None:
    shapes = {"blocks.0.attn2.to_q": (8, 8), "blocks.0.attn2.to_k": (8, 8), "blocks.0.ffn.net.0.proj": (32, 8)}
    options = options_with(gradient_checkpointing=False)
    apart = kept_numbers(shapes, Tokens(10, 100, joined=False), options, PIXART)
    assert apart.total == pytest.approx(KEPT["full", ""] * (16 * 10 + 40 * 10) + (2 + 3) * 8 * 100, abs=1), (
        "and gradients of the prompt's states"
    )


def test_lycoris_counts_the_sums_of_weights_unless_it_is_computed_beside_the_layers(tmp_path: Path) -> None:
    def counted(**document: Any) -> int:
        path = tmp_path / "adapter.json"
        path.write_text(json.dumps({"algo": "lokr", "apply_preset": {"target_module": ["Attention"]}, **document}))
        options = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}
        return kept(Tokens(image=10, prompt=4), **options)

    wanted = 16 * 10 + 16 * 4 + 40 * 14
    weights = 8 * 8 + 8 * 8 + 32 * 8
    assert counted() == pytest.approx(KEPT["lycoris", ""] * wanted + weights, abs=3)
    beside = BESIDE * (16 * 10 + 16 * 4) + KEPT["standard", ""] * 40 * 14
    assert counted(bypass_mode=True) == pytest.approx(beside, abs=3)


def test_blocks_that_tokens_skip_compute_the_others_and_the_whole_prompt() -> None:
    routes = '{"routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]}'
    blocks = [f"single_transformer_blocks.{number}" for number in (10, 2, 1, 0)] + ["transformer_blocks.0", "transformer_blocks.1"]
    options = options_with(model_family="flux", tread_config=routes)
    routed = routed_tokens(blocks, Tokens(100, 40), options, FLUX)
    inner = ["transformer_blocks.1", *(f"single_transformer_blocks.{number}" for number in (0, 1, 2))]
    assert routed == dict.fromkeys(inner, Tokens(50, 40)), "all but the first and the last, which is number 10"
    assert routed_tokens(blocks, Tokens(100, 40), options_with(model_family="flux"), FLUX) == {}


def test_a_token_stands_for_as_many_pixels_as_the_network_makes_it_of() -> None:
    assert {name: token_px(spec) for name, spec in specs().items() if name in ("flux", "flux2", "wan", "sd1x")} == {
        "flux": 16,
        "flux2": 16,
        "wan": 16,
        "sd1x": 16,
    }


def test_the_sequence_of_stable_diffusion_3_has_the_tokens_of_clip_as_well() -> None:
    assert prompt_tokens(options_with(), specs()["sd3"]) == 77 + 154
    assert prompt_tokens(options_with(tokenizer_max_length=100), specs()["sd3"]) == 77 + 100
    assert prompt_tokens(options_with(), PIXART) == PIXART.prompts.token_limit


def test_blocks_that_refine_one_side_see_its_tokens_alone() -> None:
    tokens = Tokens(image=100, prompt=40)
    sides = {"noise_refiner.0.feed_forward.w1": 100, "context_refiner.0.feed_forward.w1": 40, "layers.0.feed_forward.w1": 140}
    for layer, wanted in sides.items():
        assert in_sequence({layer: 1.0}, tokens) == wanted, layer
        assert sees_tokens(layer), layer
    assert not sees_tokens("layers.0.adaLN_modulation.0")
    assert not sees_tokens("x_embedder")


def test_blocks_of_the_image_of_its_references_and_of_the_prompt_see_their_tokens_alone() -> None:
    tokens = Tokens(image=100, prompt=40, references=30)
    sides = {"mode_blocks.image": 70, "mode_blocks.image_cond": 30, "txt_mode_blocks": 40, "single_transformer_blocks": 140}
    for block, wanted in sides.items():
        layer = f"{block}.1.attn.to_q"
        assert passed({layer: 2.0}, tokens) == 2 * wanted, layer
        assert sees_tokens(layer), layer
    assert [modulated(f"early_stream_modulations.{side}.linear", tokens) for side in ("image", "image_cond", "txt")] == [70, 30, 40]
    assert modulated("single_stream_modulation.linear", tokens) == modulated("proj_out", tokens) == 0


def test_shifts_and_scales_of_each_token_are_kept_outside_of_the_blocks() -> None:
    shapes = {"single_transformer_blocks.0.attn.to_q": (8, 8)}
    found = [
        kept_numbers({**shapes, **more}, Tokens(100, 40), options_with(), PIXART).total
        for more in ({}, {"single_stream_modulations.txt.linear": (24, 8)})
    ]
    assert found[1] - found[0] == 24 * 40


def test_parts_of_an_output_that_are_views_have_gradients_as_large_as_all_of_it() -> None:
    options = options_with(gradient_checkpointing=True, model_type="lora", lora_dropout=0.0)
    joined, apart = ({f"single_transformer_blocks.0.attn.{name}": (90, 10)} for name in ("to_qkv_mlp_proj", "to_q"))
    found = [kept_numbers(shapes, Tokens(100, 40), options, specs()["flux2"]).total for shapes in (joined, apart)]
    assert found[0] - BORDER * 10 * 140 == pytest.approx(SPLIT_RECOMPUTED * 90 * 140, abs=1)
    assert found[1] < found[0] / 2


def test_the_largest_quantised_weight_of_a_block_is_widened() -> None:
    tensors = {"blocks.0.ff.net.0.proj.weight": (40, 10), "blocks.0.norm1.linear.weight": (600, 10), "proj_out.weight": (900, 10)}
    wanted = {"no_change": 0, "int8-quanto": 0, "int8-torchao": 400, "nf4-bnb": 400, "uint4-sdnq": 800}
    for base, numbers in wanted.items():
        assert widened_numbers(options_with(model_type="lora", base_model_precision=base), tensors) == numbers, base
    assert widened_numbers(options_with(model_type="lora", base_model_precision="int8-torchao"), None) == 0


def test_a_block_that_the_backward_pass_reaches_last_has_no_gradients_yet() -> None:
    found = kept_numbers(SHAPES, Tokens(10, 4), options_with(gradient_checkpointing=True), PIXART)
    assert found.block_weights == min(8 * 8 + 8 * 8, 32 * 8)


def added(tokens: Tokens = Tokens(10, 4), **values: Any) -> float:
    """What options of a standard adapter on the queries and the result of attention add to what is kept."""
    shapes = {"blocks.0.attn1.to_q": (8, 8), "blocks.0.attn1.to_out.0": (8, 8), "blocks.0.ffn.net.0.proj": (32, 8)}
    usual = {"model_type": "lora", "gradient_checkpointing": False, "lora_dropout": 0.0}
    plain, other = (kept_numbers(shapes, tokens, options_with(**chosen), specs()["flux"]).total for chosen in (usual, {**usual, **values}))
    return other - plain


def test_dropout_keeps_the_inputs_of_each_adapted_layer_and_a_mask() -> None:
    assert added(lora_dropout=0.1) == 0, "the targets of Flux have other names"
    targets = {"peft_lora_target_modules": '["to_q", "to_out.0"]'}
    queries, result = 8 * (1 + 1 / 4 - 1), 8 * (1 + 1 / 4)
    assert added(**targets, lora_dropout=0.1) == pytest.approx(14 * (queries + result), abs=1)
    lycoris = options_with(model_type="lora", lora_type="lycoris", lycoris_config="none.json", lora_dropout=0.1)
    assert own_inputs({"blocks.0.attn1.to_q": (8, 8)}, lycoris, PIXART) == {}, "it is an option of standard adapters"


def test_an_adapter_in_a_longer_type_than_the_arithmetic_keeps_copies_in_its_own() -> None:
    short = {"mixed_precision": "bf16", "peft_lora_target_modules": '["to_q", "to_out.0"]'}
    found = [added(**short, optimizer=optimizer) for optimizer in ("torch-adamw", "adamw_bf16")]
    assert found == [pytest.approx(14 * 8 * (2 - 1 + 2), abs=1), 0]
    dropped = added(**short, optimizer="torch-adamw", lora_dropout=0.1)
    assert dropped == pytest.approx(14 * 8 * (2.5 - 1 + 2.5), abs=1)


def test_convolutions_in_blocks_keep_their_inputs_and_what_activation_functions_see() -> None:
    shapes = {
        "blocks.0.attn1.to_q": (8, 8),
        "blocks.0.ff.conv_inverted": (40, 8, 1, 1),
        "blocks.0.ff.conv_depth": (40, 1, 3, 3),
        "blocks.0.ff.conv_point": (8, 20, 1, 1),
        "patch_embed.proj": (8, 4, 2, 2),
    }
    kept = {"blocks.0.ff.conv_inverted": 8 + 40, "blocks.0.ff.conv_depth": 40 + 40 + 20, "blocks.0.ff.conv_point": 20}
    assert convolved(shapes) == kept
    linear = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    options, tokens = options_with(gradient_checkpointing=False), Tokens(100, 0, joined=False)
    totals = [
        kept_numbers(chosen, tokens, options, PIXART).total for chosen in (linear, {**linear, **{name: shapes[name] for name in kept}})
    ]
    assert totals[1] - totals[0] == 100 * sum(kept.values())


def test_norms_that_are_computed_in_float32_count_in_short_types_alone() -> None:
    spec, tokens = specs()["z_image"], Tokens(100, 40)
    shapes = {"layers.0.attention.to_q": (8, 8), "layers.0.feed_forward.w1": (32, 8)}

    def total(precision: str, *, checkpointing: bool = False) -> float:
        options = options_with(mixed_precision=precision, gradient_checkpointing=checkpointing)
        return kept_numbers(shapes, tokens, options, spec).total

    whole, recomputed = spec.short_shares
    assert total("bf16") == pytest.approx(whole * total("no"), rel=0.01)
    border = BORDER * 8 * 140
    assert total("bf16", checkpointing=True) - border == pytest.approx(recomputed * (total("no", checkpointing=True) - border), rel=0.01)


def test_the_layers_of_attention_and_of_feed_forward_parts_are_known_by_their_names() -> None:
    attention = ["layers.0.self_attention.to_q", "layers.1.attention.to_out.0", "transformer_blocks.2.attn1.to_k"]
    feed_forward = ["layers.0.mlp.up_proj", "layers.1.feed_forward.w1", "transformer_blocks.2.ff.net.2"]
    others = ["t_embedder.mlp.0", "adaLN_modulation.1", "x_embedder.proj"]
    shapes = dict.fromkeys((*attention, *feed_forward, *others), (8, 8))
    assert list(of_class("SelfAttention", shapes)) == attention
    assert list(of_class("GatedFeedForward", shapes)) == feed_forward

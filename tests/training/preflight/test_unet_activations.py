"""The estimate of a UNet's activations agrees with the tensors that autograd really saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from training.preflight.network import network_tensors
from training.preflight.unet_activations import Layers, UnetInputs, is_unet, kept_by_unet, unet_numbers

PROMPT_WIDTH, PROMPT_TOKENS = 48, 20
TOLERANCE = 0.05
"""The estimate leaves out time embeddings and the normalisers of attention and norms, which are small."""


def sd_like() -> UNet2DConditionModel:
    """Four levels and convolutional projections, as Stable Diffusion 1."""
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), cross_attention_dim=PROMPT_WIDTH, attention_head_dim=8, norm_num_groups=8
    )


def sdxl_like() -> UNet2DConditionModel:
    """Three levels, linear projections and several transformer blocks in a row, as SDXL."""
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 128),
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=(2, 4, 8),
        norm_num_groups=8,
        transformer_layers_per_block=(1, 2, 4),
        use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


class SavedTensors:
    """Adds up the storages of the tensors that autograd saves, weights left out; each storage counts once."""

    def __init__(self, network: nn.Module) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
        self._alive: list[Tensor] = []
        self._bytes: dict[int, int] = {}

    @property
    def numbers(self) -> int:
        return sum(self._bytes.values()) // 4

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._alive.append(tensor)
            self._bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.add, lambda tensor: tensor)


def forward(network: nn.Module, saved: SavedTensors, batch: int = 1, height: int = 32, width: int = 32) -> None:
    with saved.hooks():
        network(torch.randn(batch, 4, height, width), torch.zeros(batch), torch.randn(batch, PROMPT_TOKENS, PROMPT_WIDTH))


def layers_of(network: nn.Module, folder: Path) -> Layers:
    """Read from the saved files, as preflight does it."""
    network.save_pretrained(folder / "unet")
    options = options_with(model_family="sd1x", pretrained_model_name_or_path=str(folder))
    tensors = network_tensors(options.model, specs()["sd1x"], Path("no-cache")) or {}
    return {name.removesuffix(".weight"): shape for name, shape in tensors.items() if len(shape) > 1}


@pytest.mark.parametrize("make", [sd_like, sdxl_like])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (2, 40, 24)])
def test_a_full_unet_keeps_what_the_estimate_says(
    make: Callable[[], nn.Module], batch: int, height: int, width: int, tmp_path: Path
) -> None:
    network = make().train()
    saved = SavedTensors(network)
    forward(network, saved, batch, height, width)
    inputs = UnetInputs(batch * height * width, batch * PROMPT_TOKENS)
    estimate = unet_numbers(layers_of(network, tmp_path), inputs, options_with(gradient_checkpointing=False))
    assert estimate == pytest.approx(saved.numbers, rel=TOLERANCE)


@pytest.mark.parametrize("make", [sd_like, sdxl_like])
def test_gradient_checkpointing_keeps_one_unit_and_what_came_before_it(make: Callable[[], Any], tmp_path: Path) -> None:
    network = make().train()
    saved, most = SavedTensors(network), 0

    def recomputed(unit: Callable[..., Any], *inputs: Any) -> Any:
        nonlocal most
        alone = SavedTensors(network)
        with alone.hooks():
            unit(*inputs)
        result = checkpoint(unit, *inputs, use_reentrant=False)
        most = max(most, saved.numbers + alone.numbers)
        return result

    network.enable_gradient_checkpointing(recomputed)
    forward(network, saved)
    estimate = unet_numbers(layers_of(network, tmp_path), UnetInputs(32 * 32, PROMPT_TOKENS), options_with(gradient_checkpointing=True))
    assert estimate == pytest.approx(max(most, saved.numbers), rel=2 * TOLERANCE)


@pytest.mark.parametrize("make", [sd_like, sdxl_like])
def test_an_adapter_keeps_less_than_full_training(make: Callable[[], Any], tmp_path: Path) -> None:
    network = make().train()
    layers = layers_of(network, tmp_path)
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    saved = SavedTensors(network)
    forward(network, saved)
    options = options_with(model_type="lora", gradient_checkpointing=False, lora_dropout=0.0)
    estimate = kept_by_unet(layers, UnetInputs(32 * 32, PROMPT_TOKENS), options, specs()["pixart_sigma"])
    assert estimate == pytest.approx(saved.numbers, rel=2 * TOLERANCE)


def test_dropout_keeps_an_input_and_a_mask_of_each_adapted_layer() -> None:
    layers: Layers = {"down_blocks.0.resnets.0.conv1": (8, 8, 3, 3), "mid_block.attentions.0.to_k": (8, 6)}
    without, with_dropout = (
        kept_by_unet(
            layers,
            UnetInputs(32 * 32, PROMPT_TOKENS),
            options_with(model_type="lora", gradient_checkpointing=False, lora_dropout=chance),
            specs()["sdxl"],
        )
        for chance in (0.0, 0.1)
    )
    assert with_dropout - without == pytest.approx(32 * 32 * 6 * (1 + 1 / 4), abs=2), "float32, and one byte of the mask for each number"


@pytest.mark.parametrize(("kernel", "shape"), [("linear", (8, 8)), ("convolution", (8, 8, 1, 1))])
def test_a_frozen_linear_projection_keeps_no_input_where_units_are_recomputed(kernel: str, shape: tuple[int, ...]) -> None:
    inputs, name = UnetInputs(cells=100, prompt_tokens=0), "down_blocks.0.attentions.0.proj_out"
    layers: Layers = {"down_blocks.0.resnets.0.conv1": (8, 8, 3, 3), name: shape, "conv_out": (8, 8, 3, 3)}
    others = {one: layers[one] for one in layers if one != name}

    def kept(**values: Any) -> int:
        options = options_with(gradient_checkpointing=True, lora_dropout=0.0, **values)
        return kept_by_unet(layers, inputs, options, specs()["sdxl"]) - kept_by_unet(others, inputs, options, specs()["sdxl"])

    adapted = {"model_type": "lora", "peft_lora_target_modules": '["proj_out"]'}
    whole = int(100 * 8 * specs()["sdxl"].activation_share)
    assert (kept(model_type="lora"), kept(**adapted), kept(model_type="full")) == pytest.approx(
        (0 if kernel == "linear" else whole, whole, whole), abs=1
    )


def test_a_transformer_is_no_unet() -> None:
    assert not is_unet({"pos_embed.proj": (8, 4, 2, 2), "transformer_blocks.0.attn1.to_q": (8, 8)})
    assert is_unet({"down_blocks.0.resnets.0.conv1": (8, 8, 3, 3)})


def test_a_controlnet_keeps_what_it_makes_of_the_pixels_of_its_image() -> None:
    first, halved, last = (f"controlnet_cond_embedding.{name}" for name in ("conv_in", "blocks.1", "conv_out"))
    layers: Layers = {first: (16, 3, 3, 3), last: (64, 256, 3, 3)}
    layers = {**layers, **{f"controlnet_cond_embedding.blocks.{number}": (32, 32, 3, 3) for number in range(6)}}
    options = options_with(gradient_checkpointing=False)

    def kept(*names: str) -> int:
        others = {name: (0, 0, 3, 3) for name in layers if name not in names}
        return unet_numbers({**others, **{name: layers[name] for name in names}}, UnetInputs(cells=100, prompt_tokens=0), options)

    assert kept(first) == 2 * 16 * 100 * 64, "each cell of the latents stands for 8 x 8 pixels"
    assert kept(halved) == 2 * 32 * 100 * 16
    assert kept(last) == 0

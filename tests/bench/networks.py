"""The trained networks of the UNet, video and newer image families: architecture, inputs, and how diffusers alone calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    Flux3Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer_engine.batches.batch import Batch
from trainer_engine.families.anima.network import fit_for_images
from trainer_engine.families.ideogram.network import ShortStates
from trainer_engine.objectives.build import FLOW_MATCHING

Architecture = Mapping[str, Any]
Call = Callable[[Callable[..., Any], Tensor, Batch], Tensor]
"""(network, noisy latents, batch) -> prediction, by the network's own arguments."""
CLIP_TOKENS, T5_TOKENS, LONG_TOKENS = 77, 154, 512
PILE_TOKENS = GLM_TOKENS = 256
WINDOW_TOKENS = 480
"""Tokens of a long prompt in its window, which is a multiple of 80."""
TIME_IDS = 6
TIMESTEPS = 1000


class CosmosOfImages(CosmosTransformer3DModel):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The network of Anima, which computes without torchvision."""

    def __init__(self, **architecture: Any) -> None:
        super().__init__(**architecture)
        fit_for_images(self)


LATENT_CHANNELS: Mapping[type[nn.Module], int] = MappingProxyType(
    {
        UNet2DConditionModel: 4,
        WanTransformer3DModel: 16,
        ZImageTransformer2DModel: 16,
        SD3Transformer2DModel: 16,
        ErnieImageTransformer2DModel: 128,
        Flux2Transformer2DModel: 128,
        Flux3Transformer2DModel: 128,
        QwenImageTransformer2DModel: 16,
        FluxTransformer2DModel: 16,
        CosmosOfImages: 16,
        PixArtTransformer2DModel: 4,
        ShortStates: 128,
        Krea2Transformer2DModel: 16,
        Lumina2Transformer2DModel: 16,
        ChromaTransformer2DModel: 16,
        QwenImage21Transformer2DModel: 64,
        HiDreamImageTransformer2DModel: 16,
        SanaTransformer2DModel: 32,
        AuraFlowTransformer2DModel: 4,
    }
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """The trained network of a family."""

    family: str
    title: str
    make: type[nn.Module]
    architecture: Architecture
    """That of the published weights."""
    narrow: Architecture
    """Changes that keep the depth, at a width where operators cost more than their arithmetic."""
    schedule: Mapping[str, Any]
    text: Callable[[Architecture], Mapping[str, tuple[int, ...]]]
    """Shape of each tensor of a prompt, without the batch."""
    call: Call
    has_time_ids: bool = False
    is_ragged: bool = False
    """Whether a batch has a tensor for each prompt."""
    reads_numbers: bool = False
    """Whether a pass reads numbers of its inputs, which tensors without memory have none of."""
    reads_masks: bool = False
    """Whether these numbers follow from masks alone."""
    has_autocast: bool = False
    """Whether a pass enters a context of autocast, which the meta device has none of."""

    @property
    def is_flow(self) -> bool:
        return self.schedule.get("prediction_type") == FLOW_MATCHING

    def latent_shape(self, edge: int) -> tuple[int, ...]:
        """(C, ...) of a square image."""
        frames = (1,) if self.make is WanTransformer3DModel else ()
        return (LATENT_CHANNELS[self.make], *frames, edge, edge)


def call_unet(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(noisy, batch.timesteps, encoder_hidden_states=batch.prompts["embeds"], return_dict=False)[0]
    return prediction


def call_sdxl(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(
        noisy,
        batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        added_cond_kwargs={"text_embeds": batch.prompts["pooled"], "time_ids": batch.conditions["time_ids"]},
        return_dict=False,
    )[0]
    return prediction


def call_wan(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(
        hidden_states=noisy, timestep=batch.timesteps * TIMESTEPS, encoder_hidden_states=batch.prompts["embeds"], return_dict=False
    )[0]
    return prediction


def call_z_image(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    images = list(noisy.unsqueeze(2).unbind())
    outputs = network(images, 1 - batch.timesteps, list(batch.prompts.values()), return_dict=False)[0]
    return -torch.stack(outputs).squeeze(2)


def call_sd3(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prompts = batch.prompts
    joint = torch.cat([pad(prompts["clip"], (0, prompts["embeds"].shape[-1] - prompts["clip"].shape[-1])), prompts["embeds"]], dim=1)
    output: Tensor = network(noisy, joint, prompts["pooled"], batch.timesteps * TIMESTEPS, return_dict=False)[0]
    return output


def call_flux2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=grid(1, 1, embeds.shape[1]).to(noisy.device),
        img_ids=grid(height, width, 1).to(noisy.device),
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(len(noisy), -1, height, width)


def call_flux3(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds, scale = batch.prompts["embeds"], noisy.new_full((4,), 0.5)
    output: Tensor = network(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=grid(1, 1, embeds.shape[1]).to(noisy.device),
        img_ids=grid(height, width, 1).to(noisy.device) * scale,
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(len(noisy), -1, height, width)


def call_qwen_image(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, channels, height, width = noisy.shape
    squares = noisy.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    output: Tensor = network(
        hidden_states=squares.reshape(count, -1, 4 * channels),
        timestep=batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        img_shapes=[[(1, height // 2, width // 2)]] * count,
        return_dict=False,
    )[0]
    return output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


def call_anima(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        hidden_states=noisy.unsqueeze(2),
        timestep=batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        padding_mask=noisy.new_zeros(1, 1, *noisy.shape[-2:]),
        return_dict=False,
    )[0]
    return output.squeeze(2)


def call_krea2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, channels, height, width = noisy.shape
    squares = noisy.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=squares.reshape(count, -1, 4 * channels),
        encoder_hidden_states=embeds,
        timestep=batch.timesteps,
        position_ids=Krea2Pipeline.prepare_position_ids(embeds.shape[1], height // 2, width // 2, noisy.device),
        return_dict=False,
    )[0]
    return output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


def call_ideogram(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, _, height, width = noisy.shape
    embeds = batch.prompts["embeds"]
    text = embeds.shape[1]
    tokens = noisy.flatten(2).transpose(1, 2)
    places, roles = ideogram_places(text, height, width, noisy.device)
    output: Tensor = network(
        hidden_states=tokens,
        timestep=1 - batch.timesteps,
        encoder_hidden_states=embeds,
        position_ids=places.expand(count, -1, -1),
        segment_ids=None,
        indicator=roles.expand(count, -1),
        return_dict=False,
    )[0]
    return -output[:, text:].transpose(1, 2).reshape(noisy.shape)


@cache
def ideogram_places(text: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (text + height x width, 3) and roles of the tokens of a prompt and of an image."""
    words, image = torch.arange(text)[:, None].expand(-1, 3), torch.cartesian_prod(*map(torch.arange, (1, height, width))) + 65_536
    roles = torch.cat([torch.full((text,), 3), torch.full((height * width,), 2)])
    return torch.cat([words, image]).to(device), roles.to(device)


def call_lumina2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    embeds = torch.stack(list(batch.prompts.values()))
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=noisy.device)
    output: Tensor = network(noisy, 1 - batch.timesteps, embeds, mask, return_dict=False)[0]
    return -output


def call_auraflow(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(noisy, batch.prompts["embeds"], batch.timesteps, return_dict=False)[0]
    return output


def call_ernie(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    embeds = batch.prompts["embeds"]
    lengths = torch.full((len(embeds),), embeds.shape[1], device=noisy.device)
    output: Tensor = network(noisy, batch.timesteps * TIMESTEPS, embeds, lengths, return_dict=False)[0]
    return output


@cache
def grid(height: int, width: int, length: int) -> Tensor:
    """(height x width x length, 4) positions of Flux.2."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(length))


DENOISING = MappingProxyType({"num_train_timesteps": TIMESTEPS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
SHIFTED = MappingProxyType({"num_train_timesteps": TIMESTEPS, "shift": 3.0, "prediction_type": FLOW_MATCHING})
SD1X = Network(
    family="sd1x",
    title="Stable Diffusion 1",
    make=UNet2DConditionModel,
    architecture=MappingProxyType({"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
    narrow=MappingProxyType(
        {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2}
    ),
    schedule=DENOISING,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["cross_attention_dim"])},
    call=call_unet,
)
SDXL = Network(
    family="sdxl",
    title="Stable Diffusion XL",
    make=UNet2DConditionModel,
    architecture=MappingProxyType(
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }
    ),
    narrow=MappingProxyType(
        {
            "block_out_channels": (8, 16, 32),
            "norm_num_groups": 4,
            "attention_head_dim": (1, 2, 4),
            "cross_attention_dim": 16,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        }
    ),
    schedule=DENOISING,
    text=lambda architecture: {
        "embeds": (CLIP_TOKENS, architecture["cross_attention_dim"]),
        "pooled": (architecture["projection_class_embeddings_input_dim"] - TIME_IDS * architecture["addition_time_embed_dim"],),
    },
    call=call_sdxl,
    has_time_ids=True,
)
KOLORS = Network(
    family="kolors",
    title="Kolors",
    make=UNet2DConditionModel,
    architecture=MappingProxyType(
        {
            **SDXL.architecture,
            "encoder_hid_dim": 4096,
            "encoder_hid_dim_type": "text_proj",
            "projection_class_embeddings_input_dim": 5632,
        }
    ),
    narrow=MappingProxyType({**SDXL.narrow, "encoder_hid_dim": 16}),
    schedule=MappingProxyType({**DENOISING, "num_train_timesteps": 1100, "beta_end": 0.014}),
    text=lambda architecture: {
        "embeds": (GLM_TOKENS, architecture["encoder_hid_dim"]),
        "pooled": (architecture["encoder_hid_dim"],),
    },
    call=call_sdxl,
    has_time_ids=True,
)
WAN = Network(
    family="wan",
    title="Wan 2.1 1.3B",
    make=WanTransformer3DModel,
    architecture=MappingProxyType({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096}),
    narrow=MappingProxyType({"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16, "freq_dim": 16}),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (LONG_TOKENS, architecture["text_dim"])},
    call=call_wan,
)


Z_IMAGE = Network(
    family="z_image",
    title="Z-Image",
    make=ZImageTransformer2DModel,
    architecture=MappingProxyType({"n_layers": 30, "cap_feat_dim": 2560}),
    narrow=MappingProxyType({"dim": 48, "n_heads": 3, "n_kv_heads": 3, "axes_dims": [4, 6, 6], "cap_feat_dim": 16}),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["cap_feat_dim"])},
    call=call_z_image,
    is_ragged=True,
)
SD3 = Network(
    family="sd3",
    title="Stable Diffusion 3.5 medium",
    make=SD3Transformer2DModel,
    architecture=MappingProxyType(
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        }
    ),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "caption_projection_dim": 16,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 96,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (T5_TOKENS, architecture["joint_attention_dim"]),
        "clip": (CLIP_TOKENS, architecture["joint_attention_dim"] // 2),
        "pooled": (architecture["pooled_projection_dim"],),
    },
    call=call_sd3,
)
FLUX2 = Network(
    family="flux2",
    title="Flux.2 klein 9B",
    make=Flux2Transformer2DModel,
    architecture=MappingProxyType(
        {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12_288, "guidance_embeds": False}
    ),
    narrow=MappingProxyType(
        {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 16}
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (LONG_TOKENS, architecture["joint_attention_dim"])},
    call=call_flux2,
)
FLUX3 = Network(
    family="flux3",
    title="FLUX.3 klein",
    make=Flux3Transformer2DModel,
    architecture=MappingProxyType({"num_layers": 5, "num_single_layers": 28, "num_attention_heads": 24, "joint_attention_dim": 20_480}),
    narrow=MappingProxyType(
        {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 16}
    ),
    schedule=MappingProxyType({**SHIFTED, "shift": 6.93}),
    text=lambda architecture: {"embeds": (WINDOW_TOKENS, architecture["joint_attention_dim"])},
    call=call_flux3,
)


QWEN_IMAGE = Network(
    family="qwen_image",
    title="Qwen-Image",
    make=QwenImageTransformer2DModel,
    architecture=MappingProxyType({"num_layers": 60, "joint_attention_dim": 3584}),
    narrow=MappingProxyType({"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 16}),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["joint_attention_dim"])},
    call=call_qwen_image,
)


ANIMA = Network(
    family="anima",
    title="Anima",
    make=CosmosOfImages,
    architecture=MappingProxyType(
        {"num_attention_heads": 16, "text_embed_dim": 1024, "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None}
    ),
    narrow=MappingProxyType({"num_attention_heads": 2, "attention_head_dim": 18, "adaln_lora_dim": 8, "text_embed_dim": 16}),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (LONG_TOKENS, architecture["text_embed_dim"])},
    call=call_anima,
)


KREA2 = Network(
    family="krea2",
    title="Krea 2",
    make=Krea2Transformer2DModel,
    architecture=MappingProxyType({"num_layers": 28, "num_text_layers": 12, "text_hidden_dim": 2560}),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "attention_head_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "intermediate_size": 48,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 16,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 24,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["num_text_layers"], architecture["text_hidden_dim"])},
    call=call_krea2,
)


IDEOGRAM = Network(
    family="ideogram",
    title="Ideogram 4",
    make=ShortStates,
    architecture=MappingProxyType({"num_layers": 34, "llm_features_dim": 53_248}),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "mrope_section": (4, 2, 2),
            "intermediate_size": 48,
            "adaln_dim": 16,
            "llm_features_dim": 16,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["llm_features_dim"])},
    call=call_ideogram,
    has_autocast=True,
)


LUMINA2 = Network(
    family="lumina2",
    title="Lumina-Image 2.0",
    make=Lumina2Transformer2DModel,
    architecture=MappingProxyType({"cap_feat_dim": 2304}),
    narrow=MappingProxyType(
        {
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "axes_dim_rope": (4, 2, 2),
            "cap_feat_dim": 16,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["cap_feat_dim"])},
    call=call_lumina2,
    is_ragged=True,
    reads_numbers=True,
    reads_masks=True,
)


AURAFLOW = Network(
    family="auraflow",
    title="AuraFlow",
    make=AuraFlowTransformer2DModel,
    architecture=MappingProxyType({"joint_attention_dim": 2048, "pos_embed_max_size": 9216}),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "caption_projection_dim": 32,
            "joint_attention_dim": 16,
            "pos_embed_max_size": 256,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (PILE_TOKENS, architecture["joint_attention_dim"])},
    call=call_auraflow,
)


ERNIE = Network(
    family="ernie",
    title="ERNIE-Image",
    make=ErnieImageTransformer2DModel,
    architecture=MappingProxyType(
        {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12_288, "text_in_dim": 3072}
    ),
    narrow=MappingProxyType(
        {"hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 48, "rope_axes_dim": (4, 6, 6), "text_in_dim": 16}
    ),
    schedule=MappingProxyType({**SHIFTED, "shift": 4.0}),
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["text_in_dim"])},
    call=call_ernie,
    has_autocast=True,
)


def make_network(network: Network, architecture: Architecture, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, the same ones each time, made on the device in their own type: float32 first would need twice the memory."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            made: nn.Module = network.make(**architecture)
            return made
        finally:
            torch.set_default_dtype(before)


def parameters_of(network: Network) -> int:
    """Parameters of the published weights."""
    made = make_network(network, network.architecture, torch.device("meta"), torch.bfloat16)
    return sum(parameter.numel() for parameter in made.parameters())

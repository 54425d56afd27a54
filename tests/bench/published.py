"""The architecture of every flavour, as the configurations of the published repositories state it.

``python -m tests.bench.published`` writes the shapes of their tensors into ``shapes.json`` of each family, which estimates are made from.
Facts of ``config.json`` of each repository; what a repository leaves out is the default of the class in diffusers.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from diffusers import (
    ChromaTransformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImage21Transformer2DModel,
    SanaTransformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor

from tests.bench.gpu_flux import FLUX as FLUX_DEV
from tests.bench.gpu_pixart import NOISE, PIXART_900M
from tests.bench.networks import (
    ANIMA,
    AURAFLOW,
    CLIP_TOKENS,
    DENOISING,
    ERNIE,
    FLUX2,
    FLUX3,
    IDEOGRAM,
    KOLORS,
    KREA2,
    LONG_TOKENS,
    LUMINA2,
    QWEN_IMAGE,
    SD1X,
    SD3,
    SDXL,
    SHIFTED,
    TIMESTEPS,
    WAN,
    Z_IMAGE,
    Architecture,
    Network,
    call_unet,
    make_network,
)
from trainer_engine.batches.batch import Batch
from trainer_engine.config.families import family_folder, specs
from training.preflight.published_shapes import FILE

PIXART_TOKENS = SANA_TOKENS = 300
HIDREAM_TOKENS = 128


def call_flux(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, channels, height, width = noisy.shape
    squares = noisy.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=squares.reshape(count, -1, 4 * channels),
        timestep=batch.timesteps,
        guidance=torch.ones_like(batch.timesteps),
        pooled_projections=batch.prompts["pooled"],
        encoder_hidden_states=embeds,
        txt_ids=noisy.new_zeros(embeds.shape[1], 3),
        img_ids=positions(height // 2, width // 2).to(noisy),
        return_dict=False,
    )[0]
    return output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


def call_chroma(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, channels, height, width = noisy.shape
    squares = noisy.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    tokens, embeds = squares.reshape(count, -1, 4 * channels), batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=tokens,
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=noisy.new_zeros(embeds.shape[1], 3),
        img_ids=positions(height // 2, width // 2).to(noisy),
        attention_mask=torch.cat([batch.prompts["mask"].to(noisy), noisy.new_ones(tokens.shape[:2])], dim=1),
        return_dict=False,
    )[0]
    return output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


def call_qwen_image_21(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    """Each sample alone."""
    height, width = noisy.shape[-2:]
    found = []
    for row in range(len(noisy)):
        slots = batch.prompts[f"slots.{row}"].bool()
        output: Tensor = network(
            hidden_states=noisy[row : row + 1].flatten(2).transpose(1, 2),
            encoder_hidden_states=batch.prompts[f"embeds.{row}"][None],
            timestep=batch.timesteps[row : row + 1],
            img_shapes=[[(1, height, width)]],
            img_mask=torch.cat([slots, slots.new_ones(height * width // 4)])[None],
            return_dict=False,
        )[0]
        found.append(output[:, -height * width :].transpose(1, 2).reshape(1, -1, height, width))
    return torch.cat(found)


def call_hidream(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    """In training mode the network returns the tokens of squares of 2 x 2 cells, otherwise an image."""
    count, channels, height, width = noisy.shape
    output: Tensor = network(
        noisy,
        batch.timesteps * 1000,
        encoder_hidden_states_t5=batch.prompts["embeds"],
        encoder_hidden_states_llama3=batch.prompts["llama"].transpose(0, 1),
        pooled_embeds=batch.prompts["pooled"],
        return_dict=False,
    )[0]
    if output.shape == noisy.shape:
        return -output
    squares = output.view(count, channels, height // 2, width // 2, 2, 2)
    return -squares.transpose(3, 4).reshape(noisy.shape)


@cache
def positions(height: int, width: int) -> Tensor:
    """(height x width, 3) positions of Flux.1."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width))


def call_pixart(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        noisy,
        encoder_hidden_states=batch.prompts["embeds"],
        encoder_attention_mask=batch.prompts["mask"],
        timestep=batch.timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return output[:, : noisy.shape[1]]


def call_sana(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        noisy,
        encoder_hidden_states=batch.prompts["embeds"],
        encoder_attention_mask=batch.prompts["mask"],
        timestep=batch.timesteps * TIMESTEPS,
        return_dict=False,
    )[0]
    return output


SD2X = Network(
    family="sd2x",
    title="Stable Diffusion 2",
    make=UNet2DConditionModel,
    architecture=MappingProxyType(
        {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
    ),
    narrow=MappingProxyType(
        {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": (1, 2, 4, 4)}
    ),
    schedule=MappingProxyType({**DENOISING, "prediction_type": "epsilon"}),
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["cross_attention_dim"])},
    call=call_unet,
)
FLUX = Network(
    family="flux",
    title="Flux.1",
    make=FluxTransformer2DModel,
    architecture=FLUX_DEV,
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (LONG_TOKENS, architecture["joint_attention_dim"]),
        "pooled": (architecture["pooled_projection_dim"],),
        "mask": (LONG_TOKENS,),
    },
    call=call_flux,
)
PIXART = Network(
    family="pixart_sigma",
    title="PixArt Sigma 900M",
    make=PixArtTransformer2DModel,
    architecture=PIXART_900M,
    narrow=MappingProxyType({"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16}),
    schedule=MappingProxyType(NOISE),
    text=lambda architecture: {"embeds": (PIXART_TOKENS, architecture["caption_channels"]), "mask": (PIXART_TOKENS,)},
    call=call_pixart,
)
CHROMA = Network(
    family="chroma",
    title="Chroma",
    make=ChromaTransformer2DModel,
    architecture=MappingProxyType({"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096}),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "joint_attention_dim": 16,
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 24,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (LONG_TOKENS, architecture["joint_attention_dim"]), "mask": (LONG_TOKENS,)},
    call=call_chroma,
)
QWEN_IMAGE_21 = Network(
    family="qwen_image_21",
    title="Qwen-Image 2.1",
    make=QwenImage21Transformer2DModel,
    architecture=MappingProxyType({"num_layers": 32, "context_in_dim": 4096}),
    narrow=MappingProxyType({"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "context_in_dim": 16}),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (CLIP_TOKENS, architecture["context_in_dim"]), "slots": (CLIP_TOKENS,)},
    call=call_qwen_image_21,
    is_ragged=True,
    reads_numbers=True,
    reads_masks=True,
)
HIDREAM_LAYERS = (*range(32), *[31] * 16)
HIDREAM = Network(
    family="hidream",
    title="HiDream-I1",
    make=HiDreamImageTransformer2DModel,
    architecture=MappingProxyType(
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "caption_channels": (4096, 4096),
            "axes_dims_rope": (64, 32, 32),
            "llama_layers": HIDREAM_LAYERS,
        }
    ),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": (8, 4, 4),
            "caption_channels": (16, 16),
            "text_emb_dim": 16,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (HIDREAM_TOKENS, architecture["caption_channels"][0]),
        "llama": (len(set(architecture["llama_layers"])), HIDREAM_TOKENS, architecture["caption_channels"][1]),
        "pooled": (architecture["text_emb_dim"],),
    },
    call=call_hidream,
    reads_numbers=True,
)
SANA = Network(
    family="sana",
    title="Sana 1.5 4.8B",
    make=SanaTransformer2DModel,
    architecture=MappingProxyType({"num_layers": 60, "qk_norm": "rms_norm_across_heads", "caption_channels": 2304}),
    narrow=MappingProxyType(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        }
    ),
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (SANA_TOKENS, architecture["caption_channels"]), "mask": (SANA_TOKENS,)},
    call=call_sana,
)
NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        one.family: one
        for one in (
            *(ANIMA, AURAFLOW, CHROMA, ERNIE, FLUX, FLUX2, FLUX3, HIDREAM, IDEOGRAM, KOLORS, KREA2, LUMINA2, PIXART, QWEN_IMAGE),
            *(QWEN_IMAGE_21, SANA, SD1X, SD2X, SD3, SDXL, WAN, Z_IMAGE),
        )
    }
)
"""The network of every family, with the architecture of its default flavour."""
PIXART_600M = MappingProxyType({"num_layers": 28})
REFINER = MappingProxyType(
    {
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    }
)
SANA_10 = MappingProxyType({"num_layers": 20, "qk_norm": None})
SANA_600M = MappingProxyType(
    {
        **SANA_10,
        "num_layers": 28,
        "num_attention_heads": 36,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
    }
)
WAN_14B = MappingProxyType({"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13_824})
WAN_I2V = MappingProxyType({**WAN_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120})
KLEIN_4B = MappingProxyType({"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7_680})
WITHOUT_GUIDANCE = MappingProxyType({"guidance_embeds": False})
OTHERS: Mapping[str, Mapping[str, Architecture]] = MappingProxyType(
    {
        "auraflow": dict.fromkeys(("v0.2", "v0.1"), {"pos_embed_max_size": 4096}),
        "flux": dict.fromkeys(("schnell", "libreflux"), WITHOUT_GUIDANCE),
        "flux2": {
            "dev": {
                "num_layers": 8,
                "num_single_layers": 48,
                "num_attention_heads": 48,
                "joint_attention_dim": 15_360,
                "guidance_embeds": True,
            },
            **dict.fromkeys(("klein-4b", "klein-4b-distilled"), KLEIN_4B),
        },
        "flux3": {"klein-distilled": {"flow_map": True}},
        "pixart_sigma": {
            "600M-512": {**PIXART_600M, "sample_size": 64},
            "600M-1024": PIXART_600M,
            "600M-2048": {**PIXART_600M, "sample_size": 256},
        },
        "qwen_image": {"edit-v3": {"zero_cond_t": True}},
        "sana": {
            "sana1.5-1.6b-1024": {"num_layers": 20},
            "sana1.0-1.6b-2048": {**SANA_10, "sample_size": 64, "interpolation_scale": 1.0},
            "sana1.0-1.6b-1024": SANA_10,
            "sana1.0-600m-1024": SANA_600M,
            "sana1.0-600m-512": {**SANA_600M, "sample_size": 16},
        },
        "sd3": {
            "large": {
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "pos_embed_max_size": 192,
                "dual_attention_layers": (),
            }
        },
        "sdxl": dict.fromkeys(("refiner-1.0", "refiner-0.9"), REFINER),
        "wan": {"t2v-480p-14b-2.1": WAN_14B, **dict.fromkeys(("i2v-14b-2.1", "i2v-14b-2.1-720p"), WAN_I2V)},
    }
)
"""Family -> flavour -> what differs from the default flavour's architecture."""


def architecture_of(family: str, flavour: str) -> Architecture:
    """The arguments of the network's class."""
    return {**NETWORKS[family].architecture, **OTHERS.get(family, {}).get(flavour, {})}


def published() -> Iterator[tuple[str, str]]:
    """(Family, flavour) of each different architecture, the family's default first."""
    for family, spec in specs().items():
        others = [flavour for flavour in spec.flavours if flavour in OTHERS.get(family, {})]
        first = {repr(sorted(architecture_of(family, flavour).items())): flavour for flavour in reversed(others)}
        yield family, spec.default_flavour
        yield from ((family, flavour) for flavour in others if flavour in first.values())


def published_network(family: str, flavour: str) -> torch.nn.Module:
    """The network at its real size, on the meta device; one for all flavours that have the same."""
    differs = flavour in OTHERS.get(family, {})
    same = next((one for one in OTHERS.get(family, {}) if architecture_of(family, one) == architecture_of(family, flavour)), "")
    return _made(family, same if differs else specs()[family].default_flavour)


@cache
def _made(family: str, flavour: str) -> torch.nn.Module:
    return make_network(NETWORKS[family], architecture_of(family, flavour), torch.device("meta"), torch.bfloat16)


def shapes_of(family: str, flavour: str) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape of a published network."""
    return {name: tuple(tensor.shape) for name, tensor in published_network(family, flavour).state_dict().items()}


def document(family: str) -> list[dict[str, Any]]:
    """What ``shapes.json`` of a family holds: the flavours that have the same shapes, and these."""
    groups: dict[str, list[str]] = defaultdict(list)
    for flavour in specs()[family].flavours:
        names: dict[str, list[str]] = defaultdict(list)
        for name, shape in shapes_of(family, flavour).items():
            names["x".join(map(str, shape))].append(name)
        tensors = {shape: starred(found) for shape, found in sorted(names.items())}
        groups[json.dumps(tensors)].append(flavour)
    return [{"flavours": flavours, "tensors": json.loads(tensors)} for tensors, flavours in groups.items()]


def written(family: str) -> list[dict[str, Any]]:
    """``document`` as it lies in the family's folder, without making a network."""
    found: list[dict[str, Any]] = json.loads((family_folder(family) / FILE).read_text())
    return found


def starred(names: Collection[str]) -> list[str]:
    """The names, with ``*19`` for the numbers 0 to 18 where all of them are there."""
    found = set(names)
    for place in reversed(range(max(name.count(".") for name in names) + 1)):
        numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for parts in (name.split(".") for name in found):
            if place < len(parts) and parts[place].isdigit():
                numbers[".".join(parts[:place]), ".".join(parts[place + 1 :])].append(int(parts[place]))
        for (before, after), counted in numbers.items():
            if len(counted) > 1 and sorted(counted) == list(range(len(counted))):
                found -= {f"{before}.{number}.{after}" for number in counted}
                found.add(f"{before}.*{len(counted)}.{after}")
    return sorted(found)


if __name__ == "__main__":
    for name in NETWORKS:
        (family_folder(name) / FILE).write_text(json.dumps(document(name), indent=1) + "\n")

"""Writes a pipeline of Stable Diffusion as one file, with the keys of the original code: the inverse of what diffusers converts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
CLIP_OUTER = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
SDXL = {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."}
REFINER = {"text_encoder_2": "conditioner.embedders.0.model."}
SD1 = {"text_encoder": "cond_stage_model.transformer."}
SD2 = {"text_encoder": "cond_stage_model.model."}


def write_one_file(
    pipeline: Path, path: Path, encoders: Mapping[str, str], *, metadata: Mapping[str, str] | None = None, **more: Tensor
) -> Path:
    """``encoders``: folder of a text encoder -> prefix of its keys. ``more`` are further tensors."""
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in original_unet(pipeline / "unet").items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in original_vae(pipeline / "vae").items()}
    for folder, prefix in encoders.items():
        convert = original_open_clip if prefix.endswith(".model.") else original_clip
        tensors |= {prefix + key: tensor for key, tensor in convert(pipeline / folder).items()}
    save_file({**tensors, **more}, path, {"format": "pt", **(metadata or {})})
    return path


def original_unet(folder: Path) -> Tensors:
    layers = json.loads((folder / "config.json").read_text())["layers_per_block"]
    return _with_places({_unet_name(key, layers): tensor for key, tensor in _weights(folder).items()})


def _unet_name(name: str, layers: int) -> str:
    module, _, tensor = name.rpartition(".")
    if module in UNET_OUTER:
        return f"{UNET_OUTER[module]}.{tensor}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", module):
        number = 2 * int(match[2]) if match[1] == "resnets" else 1
        return f"middle_block.{number}.{RESIDUAL.get(match[3], match[3])}.{tensor}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", module)
    assert match, name
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = block * (layers + 1) + (side == "down")
    group = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{group}.{first + layers}.0.op.{tensor}"
    if kind == "upsamplers":
        return f"{group}.{first + layers}.UP.conv.{tensor}"
    place = f"0.{RESIDUAL.get(rest, rest)}" if kind == "resnets" else f"1.{rest}"
    return f"{group}.{first + index}.{place}.{tensor}"


def _with_places(tensors: Tensors) -> Tensors:
    """An upsampling convolution is the last module of its block: the second after attention, else the first."""
    found = {}
    for key, tensor in tensors.items():
        block = key.partition(".UP.")[0]
        place = 2 if any(other.startswith(f"{block}.1.") for other in tensors) else 1
        found[key.replace(".UP.", f".{place}.")] = tensor
    return found


def original_vae(folder: Path) -> Tensors:
    tensors = _weights(folder)
    blocks = len(json.loads((folder / "config.json").read_text())["up_block_types"])
    found = {}
    for key, tensor in tensors.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{blocks - 1 - int(match[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{blocks - 1 - int(match[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            side, _, module = name.partition(".mid_block.attentions.0.")
            plain, _, kind = module.rpartition(".")
            name = f"{side}.mid.attn_1.{VAE_ATTENTION[plain]}.{kind}"
            tensor = tensor[..., None, None] if tensor.dim() == 2 else tensor
        found[name] = tensor.contiguous()
    return found


def original_clip(folder: Path) -> Tensors:
    """The transformer of the first CLIP keeps its names in transformers."""
    return {key if key.startswith("text_") else f"text_model.{key}": tensor for key, tensor in _weights(folder).items()}


def original_open_clip(folder: Path) -> Tensors:
    tensors = {key.removeprefix("text_model."): tensor for key, tensor in _weights(folder).items()}
    found = {CLIP_OUTER[key]: tensor for key, tensor in tensors.items() if key in CLIP_OUTER}
    if "text_projection.weight" in tensors:
        found["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    for key, tensor in tensors.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
            block, module, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
            if module in CLIP_LAYER:
                found[f"{block}.{CLIP_LAYER[module]}.{kind}"] = tensor
            elif module.endswith("q_proj"):
                parts = [tensors[key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found


def _weights(folder: Path) -> Tensors:
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}

"""Small models that are wide enough to measure, and the memory of their steps beside the estimate."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
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
    Ideogram4Transformer2DModel,
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

from tests.bench.adapters import assembled, datasets
from tests.helpers.live_bytes import LiveBytes, tensors_of
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.examine import examine
from trainer_engine.loop.trainer import Trainer
from training.preflight.network import component_tensors, count_parameters, network_tensors
from training.preflight.on_device import EstimatedRun
from training.preflight.step import step_memory

EDGE = 128
"""Edge of the images, in pixels."""
UNET = (UNet2DConditionModel, {"block_out_channels": (64, 128)})
HEADS = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4}
ROTARY = {"axes_dims_rope": (8, 12, 12)}
WIDER: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "anima": (CosmosTransformer3DModel, {**HEADS, "adaln_lora_dim": 32}),
    "auraflow": (
        AuraFlowTransformer2DModel,
        {
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "caption_projection_dim": 128,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 6,
        },
    ),
    "chroma": (ChromaTransformer2DModel, {**HEADS, **ROTARY, "num_single_layers": 4}),
    "ernie": (
        ErnieImageTransformer2DModel,
        {"hidden_size": 128, "num_attention_heads": 4, "rope_axes_dim": (8, 12, 12), "num_layers": 4, "ffn_hidden_size": 384},
    ),
    "flux": (FluxTransformer2DModel, {**HEADS, **ROTARY, "num_single_layers": 4}),
    "flux2": (Flux2Transformer2DModel, {**HEADS, "axes_dims_rope": (8, 8, 8, 8), "num_single_layers": 4}),
    "flux3": (Flux3Transformer2DModel, {**HEADS, "axes_dims_rope": (8, 8, 8, 8), "num_single_layers": 6, "num_layers": 2}),
    "hidream": (HiDreamImageTransformer2DModel, {**HEADS, **ROTARY, "num_single_layers": 4, "llama_layers": [0, 1, 2, 2, 2, 2, 2, 2]}),
    "ideogram": (Ideogram4Transformer2DModel, {**HEADS, "mrope_section": (8, 4, 4), "intermediate_size": 344, "adaln_dim": 32}),
    "krea2": (Krea2Transformer2DModel, {**HEADS, **ROTARY, "num_key_value_heads": 1, "intermediate_size": 344}),
    "lumina2": (
        Lumina2Transformer2DModel,
        {"hidden_size": 128, "num_attention_heads": 4, "axes_dim_rope": (8, 12, 12), "num_layers": 6},
    ),
    "pixart_sigma": (PixArtTransformer2DModel, {**HEADS, "num_attention_heads": 6, "cross_attention_dim": 192, "num_layers": 6}),
    "qwen_image": (QwenImageTransformer2DModel, {**HEADS, **ROTARY}),
    "qwen_image_21": (QwenImage21Transformer2DModel, {**HEADS, **ROTARY}),
    "sana": (
        SanaTransformer2DModel,
        {**HEADS, "num_attention_heads": 6, "num_cross_attention_heads": 6, "cross_attention_head_dim": 32, "cross_attention_dim": 192},
    ),
    **dict.fromkeys(("kolors", "sd1x", "sd2x", "sdxl"), UNET),
    "sd3": (SD3Transformer2DModel, {**HEADS, "caption_projection_dim": 128}),
    "wan": (WanTransformer3DModel, {"num_attention_heads": 8, "attention_head_dim": 24, "ffn_dim": 768, "num_layers": 4}),
    "z_image": (ZImageTransformer2DModel, {"dim": 128, "n_heads": 4, "n_kv_heads": 4, "axes_dims": (8, 12, 12), "n_layers": 6}),
}
"""Family -> class of its network, and what makes the smallest one wide enough that layers, not vectors of one sample, hold the memory."""
UNPADDED: Mapping[str, int] = {
    **dict.fromkeys(("ernie", "flux3", "ideogram", "krea2", "lumina2", "qwen_image", "qwen_image_21"), 1),
    "z_image": 32,
}
"""Families whose sequence is as long as the caption -> the multiple that it is padded to. The estimate is that of the longest caption."""
ALONE = {"z_image": {"model_flavour": "base"}}
"""Options with which a family needs no adapter of its publisher."""


def make_wide(family: str, folder: Path) -> None:
    """Writes a small pipeline with a wider network into ``folder``."""
    importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(folder)
    network, changes = WIDER[family]
    part = folder / ("unet" if network is UNet2DConditionModel else "transformer")
    config = {**network.load_config(part), **changes}
    shutil.rmtree(part)
    with torch.random.fork_rng(devices=[]):
        network.from_config(config).save_pretrained(part)


def measured_options(place: Path, family: str, values: Mapping[str, Any]) -> TrainingOptions:
    """The options of two steps of a family's model in ``place``, in a run folder of their own."""
    usual = {
        "model_family": family,
        "model_type": "lora",
        "pretrained_model_name_or_path": str(place / family),
        "data_backend_config": "none.json",
        "output_dir": str(place / f"run-{len(list(place.iterdir()))}"),
        "cache_dir": str(place / f"cache-{family}"),
        "max_train_steps": 2,
        "num_train_epochs": 0,
        "train_batch_size": 4,
        "optimizer": "torch-adamw",
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "dataloader_prefetch": False,
        "resolution": EDGE,
        "validation_disable": True,
        "resume_from_checkpoint": "",
        "lora_dropout": 0,
    }
    return parse_options({**usual, **ALONE.get(family, {}), **values})


def measured_and_estimated(place: Path, options: TrainingOptions, *, assistant: int = 0) -> tuple[int, int]:
    """Bytes of the tensors that live at once in two steps of a run, and the estimate.

    On a CPU, what leaves the device stays in the same memory. ``assistant``: numbers in the file of the assistant adapter.
    """
    trainer = assembled(place, options)
    spec = _with_captions_of(trainer, spec_of_run(options.model, specs()[options.model.model_family]))
    networks = (trainer.step.network, *trainer.step.family.beside.values())
    with LiveBytes([tensor for network in networks for tensor in tensors_of(network)]) as live:
        trainer.fit()
    tensors = network_tensors(options.model, spec, place)
    assert tensors is not None
    folders = [spec.components[name].folder for name in spec.networks_beside]
    parts = {folder: component_tensors(options.model, spec, folder, place) or {} for folder in folders}
    run = EstimatedRun(options=options, spec=spec, parameters=count_parameters(tensors), tensors=tensors, parts=parts, assistant=assistant)
    held = step_memory(run, examine(datasets(place, options), options, spec))
    return live.peak, held.total + held.host


def _with_captions_of(trainer: Trainer, spec: FamilySpec) -> FamilySpec:
    """The family as if the longest caption of the run were the longest of all."""
    multiple = UNPADDED.get(spec.name)
    if multiple is None:
        return spec
    # (B, T, ...), or (T, D) for each prompt; where states are stacked, (B, T, layers, D)
    states = {name: one for name, one in trainer.loader.load(0).passes[0].prompts.items() if name.startswith("embeds")}
    tokens = max(one.shape[1 if name == "embeds" else 0] for name, one in states.items())
    stacked = max(one.shape[2] if one.ndim > 3 else 1 for one in states.values())
    return replace(spec, prompts=replace(spec.prompts, token_limit=-(-tokens // multiple) * multiple, stacked_layers=stacked))

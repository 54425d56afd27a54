"""The network of Kandinsky 5 for images: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Kandinsky5Transformer3DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, TIMESTEPS, Network
from tests.trainer_engine.families.adapter_facts import TIMES, AdapterFacts, Draw
from tests.trainer_engine.families.kandinsky5_image.models import pipeline_in
from trainer_engine.batches.batch import Batch
from trainer_engine.families.kandinsky5_image.spec import EDITS, SPEC

POOLED_WIDTH = 32


def called(network: Callable[..., Any], latents: Tensor, prompt: Tensor, pooled: Tensor, time: Tensor) -> Tensor:
    """One sample: latents (C, h, w), states of the prompt (T, D) and (P,), time (1,) up to 1000 -> (1, C, h, w)."""
    height, width = latents.shape[-2:]
    output: Tensor = network(
        latents.permute(1, 2, 0)[None, None],
        prompt[None],
        time,
        pooled[None],
        [torch.arange(size, device=latents.device) for size in (1, height // 2, width // 2)],
        torch.arange(len(prompt), device=latents.device),
        return_dict=False,
    )
    return output[:, 0].permute(0, 3, 1, 2)


def call_kandinsky(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    """Each sample alone."""
    given, times = batch.prompts, batch.timesteps * TIMESTEPS
    rows = range(len(noisy))
    return torch.cat([called(network, noisy[row], given[f"embeds.{row}"], given[f"pooled.{row}"], times[row : row + 1]) for row in rows])


def output_of_kandinsky(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    return called(network, draw(16, 8, 12), prompt[0, :9], draw(POOLED_WIDTH), torch.tensor(TIMES[:1]))


NETWORK = Network(
    family=SPEC.name,
    title="Kandinsky 5 Image Lite",
    make=Kandinsky5Transformer3DModel,
    architecture={
        "in_visual_dim": 16,
        "out_visual_dim": 16,
        "in_text_dim": 3584,
        "in_text_dim2": 768,
        "time_dim": 512,
        "model_dim": 2560,
        "ff_dim": 10_240,
        "num_text_blocks": 2,
        "num_visual_blocks": 50,
        "axes_dims": (32, 48, 48),
    },
    others=dict.fromkeys(sorted(EDITS), {"visual_cond": True}),
    narrow={"model_dim": 32, "ff_dim": 48, "time_dim": 24, "axes_dims": (4, 6, 6), "in_text_dim": 16, "in_text_dim2": 16},
    shallow={"num_text_blocks": 1, "num_visual_blocks": 1},
    deeper={"num_text_blocks": 2, "num_visual_blocks": 3},
    wider={"model_dim": 64, "ff_dim": 256, "axes_dims": (4, 6, 6), "num_visual_blocks": 4},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["in_text_dim"]), "pooled": (architecture["in_text_dim2"],)},
    call=call_kandinsky,
    is_ragged=True,
    padded_to=1,
)
ADAPTERS = AdapterFacts(
    output=output_of_kandinsky,
    comfyui=r"""transformer\.(
        text_transformer_blocks\.\d+\.(self_attention\.(to_(query|key|value)|out_layer)|feed_forward\.(in|out)_layer|text_modulation\.out_layer)
        |visual_transformer_blocks\.\d+\.(
            (self|cross)_attention\.(to_(query|key|value)|out_layer)|feed_forward\.(in|out)_layer|visual_modulation\.out_layer)
        |(time|text|pooled_text|visual)_embeddings\.(in|out)_layer|out_layer\.(modulation\.)?out_layer)""",
    open_pipeline=pipeline_in,
)

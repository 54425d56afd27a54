"""The network of Z-Image: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, Network
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.z_image.spec import SPEC


def call_z_image(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    images = list(noisy.unsqueeze(2).unbind())
    outputs = network(images, 1 - batch.timesteps, list(batch.prompts.values()), return_dict=False)[0]
    return -torch.stack(outputs).squeeze(2)


def output_of_z_image(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    images, prompts = draw(2, 16, 1, 4, 6), [prompt[0], prompt[1, :20]]
    output: Tensor = torch.stack(network(list(images), torch.tensor(SIGMAS), prompts, return_dict=False)[0])
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Z-Image",
    make=ZImageTransformer2DModel,
    architecture={"n_layers": 30, "cap_feat_dim": 2560},
    narrow={"dim": 48, "n_heads": 3, "n_kv_heads": 3, "axes_dims": [4, 6, 6], "cap_feat_dim": 16},
    shallow={"n_layers": 1},
    deeper={"n_layers": 3},
    wider={"dim": 128, "n_heads": 4, "n_kv_heads": 4, "axes_dims": (8, 12, 12), "n_layers": 6},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["cap_feat_dim"])},
    call=call_z_image,
    is_ragged=True,
    padded_to=32,
)
ADAPTERS = AdapterFacts(
    output=output_of_z_image,
    comfyui=r"""diffusion_model\.(
        (layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)
        |all_x_embedder\.2-1|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|cap_embedder\.1|t_embedder\.mlp\.[02])""",
)

"""FLUX.3 by the blocks of diffusers alone: what the family is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep, Flux3VaeEncoderStep
from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoBlocks
from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import Flux3DistilledAutoBlocks
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from tests.helpers.models import tiny_model
from trainer_engine.families.flux3.spec import BASE, DISTILLED

SCALE = 0.5


class Reader:
    """What the blocks use of a processor: torchvision, which the whole of it needs, is not installed here."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
        self.apply_chat_template = self.tokenizer.apply_chat_template


def folder_of(flavour: str) -> Path:
    return tiny_model("flux3") if flavour == BASE else tiny_model("flux3", flavour=flavour)


@cache
def text_encoder() -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(folder_of(BASE) / "text_encoder").eval()


def prompt_states(prompt: str, limit: int = 8192) -> Tensor:
    """(1, T, D) in the window of the prompt."""
    with torch.no_grad():
        return Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(
            text_encoder(),
            Reader(folder_of(BASE)),
            prompt,
            max_sequence_length=limit,
        )


def image_latents(vae: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 128, H/16, W/16)."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    with torch.no_grad():
        return (Flux3VaeEncoderStep._patchify_latents(vae.encode(pixels).latent_dist.mode()) - mean) / deviation


def velocity(network: Any, noisy: Tensor, sigma: Tensor, prompt: Tensor, references: Sequence[Tensor] = ()) -> Tensor:
    """(1, C, h, w) of one sample, whose prompt is alone in its window."""
    height, width = noisy.shape[-2:]
    tokens = [one.flatten(2).transpose(1, 2) for one in references]
    places = [_prepare_image_ids(*one.shape[-2:], SCALE, l_coord=-(1 + index)) for index, one in enumerate(references)]
    output = network(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        encoder_hidden_states=prompt,
        timestep=sigma,
        img_ids=_prepare_image_ids(height, width, SCALE),
        txt_ids=Flux3TextRoPEInputsStep._prepare_text_ids(prompt),
        image_cond_hidden_states=torch.cat(tokens, dim=1) if tokens else None,
        image_cond_ids=torch.cat(places) if places else None,
        target_timestep=sigma if network.config.flow_map else None,
        return_dict=False,
    )[0]
    return output.view(1, height, width, -1).permute(0, 3, 1, 2)


def flow_loss(
    network: Flux3Transformer2DModel,
    latents: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    prompts: Sequence[Tensor],
    references: Sequence[Tensor] = (),
) -> Tensor:
    """The mean loss of a batch, computed one sample after the other."""
    losses = []
    for row, prompt in enumerate(prompts):
        one = slice(row, row + 1)
        noisy = (1 - sigmas[row]) * latents[one] + sigmas[row] * noise[one]
        output = velocity(network, noisy, sigmas[one], prompt, [reference[one] for reference in references])
        losses.append(mse_loss(output, noise[one] - latents[one]))
    return torch.stack(losses).mean()


ORIGINAL = (
    (".attn.to_q.", ".q_proj."),
    (".attn.to_k.", ".k_proj."),
    (".attn.to_v.", ".v_proj."),
    (".attn.to_out.0.", ".attn_out."),
    (".attn.norm_q.weight", ".norm.query_norm.scale"),
    (".attn.norm_k.weight", ".norm.key_norm.scale"),
    (".ff.linear_in.", ".mlp_in."),
    (".ff.linear_out.", ".mlp_out."),
    ("x_embedders.", "emb_in."),
    ("context_embedder.", "txt_in."),
    ("timestep_embedder.linear_1.", "time_in.in_layer."),
    ("timestep_embedder.linear_2.", "time_in.out_layer."),
    ("proj_out.", "final_layer.image.linear."),
    ("norm_out.linear.", "final_layer.image.adaLN_modulation.1."),
    ("single_transformer_blocks.", "single_blocks."),
)


def original_state(network: Flux3Transformer2DModel) -> dict[str, Tensor]:
    """The weights under the names of the publisher's code, with the shift before the scale in the last layer."""
    found = {}
    for name, weight in network.state_dict().items():
        if name == "norm_out.linear.weight":
            weight = torch.cat(weight.chunk(2)[::-1])
        if name.startswith("mode_blocks."):
            name = f"content_{name}"
        if "_stream_modulations." in name:
            name = name.replace(".linear.", ".lin.")
        for ours, theirs in ORIGINAL:
            name = name.replace(ours, theirs)
        found[name] = weight.contiguous()
    return found


def pipeline_of(flavour: str, vae: Any = None) -> Any:
    """The whole pipeline without the model that rewrites prompts. ``vae``: the autoencoder to use."""
    folder = folder_of(flavour)
    blocks = Flux3DistilledAutoBlocks() if flavour == DISTILLED else Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipeline = blocks.init_pipeline(str(folder))
    pipeline.load_components(["transformer", "vae"])
    pipeline.update_components(text_encoder=text_encoder(), tokenizer=Reader(folder), **({"vae": vae} if vae is not None else {}))
    pipeline.transformer.eval()
    return pipeline

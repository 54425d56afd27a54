"""Adapters of the families load in diffusers with the same output, and have the keys that ComfyUI and kohya's tools know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.checked_runs import checked
from tests.helpers.models import tiny_model
from tests.helpers.params import often
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.qwen_image_21 import models as qwen_image_21
from trainer_engine.config.families import find_spec

UNETS = ("kolors", "sd1x", "sd2x", "sdxl")
WITH_SIZES = ("kolors", "sdxl")
PIPELINES = {
    "sd1x": "StableDiffusionPipeline",
    "sd2x": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "flux": "FluxPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "wan": "WanPipeline",
    "z_image": "ZImagePipeline",
    "flux2": "Flux2KleinPipeline",
    "flux3": "Flux3ModularPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "qwen_image": "QwenImagePipeline",
    "anima": "AnimaModularPipeline",
    "krea2": "Krea2Pipeline",
    "lumina2": "Lumina2Pipeline",
    "chroma": "ChromaPipeline",
    "qwen_image_21": "QwenImage21Pipeline",
    "hidream": "HiDreamImagePipeline",
    "ideogram": "Ideogram4Pipeline",
    "sana": "SanaPipeline",
    "auraflow": "AuraFlowPipeline",
    "kolors": "KolorsPipeline",
    "ernie": "ErnieImagePipeline",
}
UNDISTILLED = {"z_image": {"model_flavour": "base"}}
CONVOLUTIONS = '["to_q", "to_v", "conv1", "conv_shortcut", "downsamplers.0.conv"]'
RESULT = "pytorch_lora_weights.safetensors"


def trained(place: Path, family: str, **options: Any) -> Path:
    """The folder with the adapter of a run of two steps."""
    usual = {"model_type": "lora", "lora_rank": 4, "lora_alpha": 2, "learning_rate": 0.05, "max_train_steps": 2}
    chosen = {**usual, **UNDISTILLED.get(family, {}), **options}
    run = train_here(place, model_family=family, model=str(tiny_model(family)), **chosen)
    assert run.code == 0
    return run.output_dir


def pipeline_of(family: str) -> Any:
    if family == "qwen_image_21":
        return qwen_image_21.pipeline_in(tiny_model(family))
    pipeline = getattr(diffusers, PIPELINES[family]).from_pretrained(tiny_model(family))
    if isinstance(pipeline, diffusers.ModularPipeline):
        pipeline.load_components(["transformer"], dtype=torch.float32)
    return pipeline


def network_in(pipeline: Any) -> nn.Module:
    network: nn.Module = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    return network.eval()


@torch.no_grad()
def output_of(family: str, network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randn(2, 77, 64 if family == "sdxl" else 32, generator=generator)
    if family == "wan":
        latents = torch.randn(2, 16, 1, 4, 6, generator=generator)
        return network(latents, torch.tensor([300.0, 700.0]), prompt, return_dict=False)[0]
    if family == "z_image":
        images, prompts = torch.randn(2, 16, 1, 4, 6, generator=generator), [prompt[0], prompt[1, :20]]
        return torch.stack(network(list(images), torch.tensor([0.3, 0.7]), prompts, return_dict=False)[0])
    if family == "flux2":
        tokens, prompts = torch.randn(2, 12, 128, generator=generator), torch.randn(2, 8, 96, generator=generator)
        places = torch.arange(20)[:, None].expand(-1, 4)
        given = {"timestep": torch.tensor([0.3, 0.7]), "txt_ids": places[:8], "img_ids": places[8:], "return_dict": False}
        return network(tokens, prompts, **given)[0]
    if family == "flux":
        tokens, prompts = torch.randn(2, 6, network.config.in_channels, generator=generator), prompt[:, :9]
        width = network.config.pooled_projection_dim
        given = {"txt_ids": torch.zeros(9, 3), "img_ids": torch.arange(6)[:, None].expand(-1, 3).float(), "return_dict": False}
        given |= {"timestep": torch.tensor([0.3, 0.7]), "pooled_projections": torch.randn(2, width, generator=generator)}
        given["guidance"] = torch.tensor([1.0, 1.0]) if network.config.guidance_embeds else None
        return network(hidden_states=tokens, encoder_hidden_states=prompts, **given)[0]
    if family == "pixart_sigma":
        given = {"encoder_hidden_states": prompt, "timestep": torch.tensor([300, 700]), "return_dict": False}
        sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return network(torch.randn(2, 4, 8, 8, generator=generator), **given, **sizes)[0]
    if family == "flux3":
        tokens, prompts = torch.randn(2, 12, 128, generator=generator), torch.randn(2, 8, 256, generator=generator)
        beside, places = torch.randn(2, 4, 128, generator=generator), torch.arange(24)[:, None].expand(-1, 4)
        given = {"timestep": torch.tensor([0.3, 0.7]), "txt_ids": places[:8], "img_ids": places[8:20], "return_dict": False}
        return network(tokens, prompts, image_cond_hidden_states=beside, image_cond_ids=places[20:], **given)[0]
    if family == "chroma":
        tokens, mask = torch.randn(2, 6, 64, generator=generator), torch.cat([torch.ones(1, 11), torch.zeros(1, 4)], dim=1).repeat(2, 1)
        given = {"txt_ids": torch.zeros(9, 3), "img_ids": torch.arange(18.0).view(6, 3), "attention_mask": mask, "return_dict": False}
        return network(tokens, prompt[:, :9], timestep=torch.tensor([0.3, 0.7]), **given)[0]
    if family == "qwen_image":
        tokens, shapes = torch.randn(2, 6, 64, generator=generator), [[(1, 2, 3)]] * 2
        return network(tokens, prompt[:, :9], timestep=torch.tensor([0.3, 0.7]), img_shapes=shapes, return_dict=False)[0]
    if family == "anima":
        latents, given = torch.randn(2, 16, 1, 4, 6, generator=generator), {"padding_mask": torch.zeros(1, 1, 32, 48), "return_dict": False}
        return network(latents, torch.tensor([0.3, 0.7]), prompt, **given)[0]
    if family == "krea2":
        tokens, states = torch.randn(2, 6, 64, generator=generator), torch.randn(2, 9, 3, 32, generator=generator)
        places = diffusers.Krea2Pipeline.prepare_position_ids(9, 2, 3, "cpu")
        return network(tokens, states, torch.tensor([0.3, 0.7]), places, return_dict=False)[0]
    if family == "lumina2":
        latents, mask = torch.randn(2, 16, 4, 6, generator=generator), torch.arange(9)[None] < torch.tensor([[9], [7]])
        return network(latents, torch.tensor([0.3, 0.7]), prompt[:, :9], mask, return_dict=False)[0]
    if family == "ernie":
        latents, given = torch.randn(2, 128, 4, 6, generator=generator), {"text_lens": torch.tensor([9, 7]), "return_dict": False}
        return network(latents, torch.tensor([300.0, 700.0]), prompt[:, :9], **given)[0]
    if family == "qwen_image_21":
        tokens, slots = torch.randn(1, 24, 64, generator=generator), torch.arange(15)[None] > 8
        given = {"timestep": torch.tensor([0.3]), "img_shapes": [[(1, 4, 6)]], "img_mask": slots, "return_dict": False}
        return network(tokens, prompt[:1, :9], **given)[0]
    if family == "hidream":
        states = {"encoder_hidden_states_t5": torch.randn(2, 9, 24, generator=generator), "pooled_embeds": prompt[:, 0]}
        states |= {"encoder_hidden_states_llama3": torch.randn(3, 2, 9, 32, generator=generator), "return_dict": False}
        return network(torch.randn(2, 16, 8, 8, generator=generator), torch.tensor([300.0, 700.0]), **states)[0]
    if family == "ideogram":
        states, places = torch.randn(2, 9, 416, generator=generator), torch.arange(45).view(15, 3).expand(2, -1, -1)
        roles = torch.tensor([3] * 9 + [2] * 6).expand(2, -1)
        given = {"position_ids": places, "segment_ids": torch.ones_like(roles), "indicator": roles, "return_dict": False}
        joined = torch.cat([states, torch.zeros(2, 6, 416)], dim=1)
        return network(torch.randn(2, 15, 128, generator=generator), torch.tensor([0.3, 0.7]), joined, **given)[0][:, 9:]
    if family == "sd3":
        latents, joint = torch.randn(2, 16, 8, 8, generator=generator), torch.randn(2, 12, 80, generator=generator)
        return network(latents, joint, torch.randn(2, 64, generator=generator), torch.tensor([300.0, 700.0]), return_dict=False)[0]
    if family == "sana":
        given = {
            "timestep": torch.tensor([300.0, 700.0]),
            "encoder_attention_mask": torch.arange(77).expand(2, -1) < 9,
            "return_dict": False,
        }
        return network(torch.randn(2, 32, 4, 6, generator=generator), prompt, **given)[0]
    if family == "auraflow":
        latents = torch.randn(2, 4, 4, 6, generator=generator)
        return network(latents, prompt[:, :9], torch.tensor([0.3, 0.7]), return_dict=False)[0]
    added = {"text_embeds": torch.randn(2, 32, generator=generator), "time_ids": torch.full((2, 6), 64.0)} if family in WITH_SIZES else None
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return network(latents, torch.tensor([300, 700]), encoder_hidden_states=prompt, added_cond_kwargs=added, return_dict=False)[0]


def merged_by_hand(family: str, tensors: dict[str, Tensor], prefix: str, scale: float) -> nn.Module:
    """The base network with ``scale`` times up @ down added to each weight, without any library for adapters."""
    network = network_in(pipeline_of(family))
    modules = dict(network.named_modules())
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        name = key.removeprefix(prefix).removesuffix(".lora_A.weight")
        down, up = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        weight = modules[name].weight
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return network


@pytest.mark.parametrize("family", often(family for family in PIPELINES if family != "pixart_sigma"))
@pytest.mark.parametrize("targets", [None, CONVOLUTIONS], ids=["usual", "convolutions"])
def test_an_adapter_loads_in_diffusers_with_the_same_output(tmp_path: Path, family: str, targets: str | None) -> None:
    if targets and family not in UNETS:
        pytest.skip("the network has no such convolutions")
    folder = trained(tmp_path, family, **({"peft_lora_target_modules": targets} if targets else {}))
    tensors = load_file(folder / RESULT)
    prefix = "unet." if family in UNETS else "transformer."
    assert all(key.startswith(prefix) for key in tensors)
    pipeline = pipeline_of(family)
    base = output_of(family, network_in(pipeline))
    pipeline.load_lora_weights(folder, weight_name=RESULT)
    adapted = output_of(family, network_in(pipeline))
    assert not torch.allclose(adapted, base, atol=1e-3)
    assert torch.allclose(adapted, output_of(family, merged_by_hand(family, tensors, prefix, scale=0.5)), atol=1e-4)


@pytest.mark.parametrize("family", UNETS)
def test_an_adapter_of_a_unet_has_flat_keys_for_comfyui_and_kohya(tmp_path: Path, family: str) -> None:
    plain = trained(tmp_path / "plain", family, peft_lora_target_modules=CONVOLUTIONS)
    flat = trained(tmp_path / "flat", family, peft_lora_target_modules=CONVOLUTIONS, lora_format="comfyui")
    pipeline = pipeline_of(family)
    # The rule of both programs: the names of the layers in diffusers with underscores, behind lora_unet_.
    known = {f"lora_unet_{name.replace('.', '_')}" for name, _ in network_in(pipeline).named_modules()}
    tensors = load_file(flat / RESULT)
    assert {key.partition(".")[2] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {key.partition(".")[0] for key in tensors} <= known
    assert len(tensors) // 3 == len(load_file(plain / RESULT)) // 2
    assert all(tensor.item() == 2 for key, tensor in tensors.items() if key.endswith("alpha"))


@pytest.mark.parametrize("family", ["sd1x", "sdxl"])
def test_an_adapter_with_flat_keys_starts_a_run(tmp_path: Path, family: str) -> None:
    flat = trained(tmp_path / "flat", family, lora_format="comfyui")
    again = trained(tmp_path / "again", family, init_lora=str(flat / RESULT), learning_rate=1e-12, max_train_steps=1)
    first, second = load_file(flat / RESULT), load_file(again / RESULT)
    names = [key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in second if key.endswith(".lora_A.weight")]
    for name in names:
        flat_key, key = f"lora_unet_{name.replace('.', '_')}.lora_down.weight", f"unet.{name}.lora_A.weight"
        assert torch.allclose(first[flat_key], second[key], atol=1e-6)


@pytest.mark.parametrize("family", often(PIPELINES))
def test_a_lycoris_adapter_trains_and_resumes_to_the_same_bytes_and_validate_takes_it_to_start_from(tmp_path: Path, family: str) -> None:
    spec = find_spec(family)
    assert spec is not None
    config = tmp_path / "lycoris.json"
    config.write_text(json.dumps(dict(spec.adapters.lycoris_start) | {"factor": 4}, default=dict))
    usual = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(config), "max_train_steps": 4}
    chosen = {**usual, **UNDISTILLED.get(family, {})}
    straight = assert_resumes_exactly(tmp_path, model_family=family, model=str(tiny_model(family)), **chosen)
    again = {"pretrained_model_name_or_path": str(tiny_model(family)), "init_lora": str(straight.output_dir / RESULT)}
    assert checked(tmp_path, model_family=family, **chosen, **again).errors == []

"""The files of Krea 2: adapters for diffusers and ComfyUI, networks in one file, and how distilled weights are recognised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.models import options_with, tiny_model, tiny_of
from tests.helpers.tiny_run import train_here
from trainer_engine.config.rules.noise_schedule import DISTILLED
from trainer_engine.families.krea2.family import Krea2
from trainer_engine.families.krea2.spec import RAW, SPEC, TURBO
from training.preflight.model_files import weights_problems

TRANSFORMER = "pretrained_transformer_model_name_or_path"
RESULT = "pytorch_lora_weights.safetensors"
EVERY_LAYER = [
    *("to_q", "to_k", "to_v", "to_gate", "to_out.0", "ff.gate", "ff.up", "ff.down", "img_in", "time_mod_proj", "final_layer.linear"),
    *("time_embed.linear_1", "time_embed.linear_2", "txt_in.linear_1", "txt_in.linear_2", "text_fusion.projector"),
]
ORIGINAL = {
    "transformer_blocks.": "blocks.",
    "text_fusion.": "txtfusion.",
    "img_in.": "first.",
    "time_embed.linear_1.": "tmlp.0.",
    "time_embed.linear_2.": "tmlp.2.",
    "time_mod_proj.": "tproj.1.",
    "txt_in.norm.weight": "txtmlp.0.scale",
    "txt_in.linear_1.": "txtmlp.1.",
    "txt_in.linear_2.": "txtmlp.3.",
    "final_layer.linear.": "last.linear.",
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
}
"""Beginning of the names in diffusers -> that of the published code."""
ORIGINAL_IN_BLOCKS = {
    ".attn.to_q.": ".attn.wq.",
    ".attn.to_k.": ".attn.wk.",
    ".attn.to_v.": ".attn.wv.",
    ".attn.to_out.0.": ".attn.wo.",
    ".attn.to_gate.": ".attn.gate.",
    ".attn.norm_q.weight": ".attn.qknorm.qnorm.scale",
    ".attn.norm_k.weight": ".attn.qknorm.knorm.scale",
    ".ff.": ".mlp.",
    ".norm1.weight": ".prenorm.scale",
    ".norm2.weight": ".postnorm.scale",
    ".scale_shift_table": ".mod.lin",
}


def original_name(name: str) -> str:
    """The name of a tensor in the published code."""
    start = next(start for start in ORIGINAL if name.startswith(start))
    name = ORIGINAL[start] + name.removeprefix(start)
    for ours, theirs in ORIGINAL_IN_BLOCKS.items():
        name = name.replace(ours, theirs)
    return name


def original_tensors(weights: Path) -> dict[str, Tensor]:
    """A network as the published code keeps it: the six vectors of a block's modulation are one."""
    flat = {name: one.flatten() if re.match(r"transformer_blocks.*_table$", name) else one for name, one in load_file(weights).items()}
    return {original_name(name): tensor for name, tensor in flat.items()}


@pytest.mark.parametrize(("names", "prefix"), [("diffusers", ""), ("original", ""), ("original", "model.diffusion_model.")])
def test_a_network_in_one_file_is_loaded_under_the_names_of_both_programs(tmp_path: Path, names: str, prefix: str) -> None:
    (weights,) = (tiny_model("krea2", seed=3) / "transformer").glob("*.safetensors")
    tensors = original_tensors(weights) if names == "original" else load_file(weights)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "network.safetensors")
    family = tiny_of(Krea2, tiny_model("krea2"), **{TRANSFORMER: str(tmp_path / "network.safetensors")})
    ours, theirs = family.load_network().state_dict(), load_file(weights)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())


def known_to_comfyui(network: torch.nn.Module) -> set[str]:
    """The names that ComfyUI maps to layers of Krea 2: those of its linear layers in diffusers, behind ``transformer.``."""
    return {f"transformer.{name}" for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}


def test_an_adapter_on_every_layer_has_keys_that_comfyui_and_diffusers_know(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"model_family": "krea2", "model_type": "lora", "max_train_steps": 2, "lora_rank": 1, "lora_alpha": 2}
    targets = str(EVERY_LAYER).replace("'", '"')
    usual |= {"model": str(tiny_model("krea2")), "learning_rate": 0.05, "peft_lora_target_modules": targets}
    plain, comfyui = (train_here(tmp_path / form, **usual, lora_format=form).output_dir for form in ("diffusers", "comfyui"))
    pipeline = Krea2Pipeline.from_pretrained(tiny_model("krea2"))
    known = known_to_comfyui(pipeline.transformer)
    tensors = load_file(comfyui / RESULT)
    parts = {key.rpartition(".lora_")[0] or key.removesuffix(".alpha") for key in tensors}
    assert parts == known and len(tensors) == 3 * len(known)
    assert load_file(plain / RESULT).keys() == {key for key in tensors if not key.endswith(".alpha")}
    pipeline.load_lora_weights(plain, weight_name=RESULT)
    loaded = {name.removesuffix(".lora_A") for name, _ in pipeline.transformer.named_modules() if name.endswith(".lora_A")}
    assert {f"transformer.{name}" for name in loaded} == known


def test_the_published_network_has_two_hundred_and_sixty_four_such_layers() -> None:
    with torch.device("meta"):
        network = Krea2Transformer2DModel()
    known = known_to_comfyui(network)
    assert len(known) == 264
    assert all(name.endswith(tuple(EVERY_LAYER)) for name in known)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"model_flavour": "turbo", "pretrained_model_name_or_path": None}, "model_flavour"),
        ({"pretrained_model_name_or_path": TURBO}, "pretrained_model_name_or_path"),
        ({"pretrained_model_name_or_path": "someone/Krea-2-Turbo-Diffusers"}, "pretrained_model_name_or_path"),
        ({TRANSFORMER: "/models/krea2_turbo_bf16.safetensors"}, TRANSFORMER),
    ],
)
def test_distilled_weights_are_recognised_by_flavour_and_name(tmp_path: Path, values: dict[str, Any], option: str) -> None:
    options = options_with(model_family="krea2", model_type="lora", **{"pretrained_model_name_or_path": RAW, **values})
    [problem] = weights_problems(options, SPEC, tmp_path)
    assert (problem.code, problem.option) == (DISTILLED, option)
    assert f"train {RAW}; an adapter that is trained there can be used with distilled weights too" in problem.hint


def test_distilled_weights_are_recognised_by_the_index_of_their_pipeline(tmp_path: Path) -> None:
    for flavour in SPEC.flavours:
        place = str(tiny_model("krea2", flavour=flavour))
        found = list(weights_problems(options_with(model_family="krea2", pretrained_model_name_or_path=place), SPEC, tmp_path))
        assert [one.code for one in found] == [DISTILLED] * (flavour == "turbo")
        family = tiny_of(Krea2, place)  # the sampler follows the weights, whatever the options say
        assert family.parts.settings["is_distilled"] == (flavour == "turbo")

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
from trainer_engine.config.adapters.keys import keys_by_module
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


@pytest.fixture(scope="module")
def trained_everywhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The options of a run with an adapter on every layer, and its result."""
    targets = str(EVERY_LAYER).replace("'", '"')
    options: dict[str, Any] = {"model_family": "krea2", "model_type": "lora", "max_train_steps": 2, "lora_rank": 1, "lora_alpha": 1}
    options |= {"model": str(tiny_model("krea2")), "learning_rate": 0.05, "peft_lora_target_modules": targets}
    return options, train_here(tmp_path_factory.mktemp("everywhere"), **options).output_dir / RESULT


def known_to_comfyui(network: torch.nn.Module) -> set[str]:
    """The names that ComfyUI maps to layers of Krea 2: those of its linear layers in diffusers, behind ``transformer.``."""
    return {f"transformer.{name}" for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}


def test_an_adapter_on_every_layer_has_keys_that_comfyui_and_diffusers_know(
    tmp_path: Path, trained_everywhere: tuple[dict[str, Any], Path]
) -> None:
    options, plain = trained_everywhere
    tensors = load_file(train_here(tmp_path, **options, lora_format="comfyui").output_dir / RESULT)
    pipeline = Krea2Pipeline.from_pretrained(tiny_model("krea2"))
    known = known_to_comfyui(pipeline.transformer)
    assert {key.rpartition(".lora_")[0] for key in tensors} == known and len(tensors) == 2 * len(known)
    assert load_file(plain).keys() == tensors.keys()
    pipeline.load_lora_weights(plain.parent, weight_name=RESULT)
    loaded = {name.removesuffix(".lora_A") for name, _ in pipeline.transformer.named_modules() if name.endswith(".lora_A")}
    assert {f"transformer.{name}" for name in loaded} == known


def in_original_names(tensors: dict[str, Tensor], *, with_dots: bool) -> dict[str, Tensor]:
    """An adapter as programs with the published code write it: behind ``diffusion_model.``, or in the keys of kohya."""
    found = {}
    for key, tensor in tensors.items():
        layer, _, part = key.removeprefix("transformer.").partition(".lora_")
        name = original_name(f"{layer}.").removesuffix(".")
        kohya = f"lora_unet_{name.replace('.', '_')}.lora_{'down' if part == 'A.weight' else 'up'}.weight"
        found[f"diffusion_model.{name}.lora_{part}" if with_dots else kohya] = tensor.contiguous()
    return found


@pytest.mark.parametrize("with_dots", [True, False], ids=["ComfyUI", "kohya"])
def test_an_adapter_in_the_names_of_the_published_code_starts_a_run(
    tmp_path: Path, trained_everywhere: tuple[dict[str, Any], Path], with_dots: bool
) -> None:
    options, path = trained_everywhere
    tensors = load_file(path)
    save_file(in_original_names(tensors, with_dots=with_dots), tmp_path / "other.safetensors")
    again = {**options, "init_lora": str(tmp_path / "other.safetensors"), "learning_rate": 1e-12, "max_train_steps": 1}
    found = load_file(train_here(tmp_path, **again).output_dir / RESULT)
    assert found.keys() == tensors.keys()
    assert all(torch.allclose(found[key], tensor, atol=1e-6) for key, tensor in tensors.items())


def test_diffusers_reads_the_same_layers_from_an_adapter_in_those_names(trained_everywhere: tuple[dict[str, Any], Path]) -> None:
    tensors = load_file(trained_everywhere[1])
    theirs = Krea2Pipeline.lora_state_dict(in_original_names(tensors, with_dots=True))
    assert theirs.keys() == tensors.keys() and all(theirs[key].equal(tensor) for key, tensor in tensors.items())


def test_every_layer_of_the_published_network_is_found_by_each_of_its_names() -> None:
    with torch.device("meta"):
        network = Krea2Transformer2DModel()
    layers = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    ours = {f"transformer.{layer}.lora_{part}.weight": torch.zeros(1) for layer in layers for part in ("A", "B")}
    for tensors in (ours, *(in_original_names(ours, with_dots=with_dots) for with_dots in (True, False))):
        modules, strangers = keys_by_module(tensors, [name for name, _ in network.named_modules()], SPEC.key_prefixes)
        assert sorted(modules) == sorted(layers) and strangers == []
        assert all(len(parts) == 2 for parts in modules.values())


def test_an_adapter_of_another_network_is_not_read_by_those_names() -> None:
    others = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2"]
    modules, strangers = keys_by_module(["diffusion_model.blocks.0.attn.wq.lora_A.weight"], others, SPEC.key_prefixes)
    assert modules == {} and len(strangers) == 1


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

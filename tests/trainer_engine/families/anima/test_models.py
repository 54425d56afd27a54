"""What models of Anima may lie in: files for ComfyUI, folders without a part, previews and distilled weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AnimaModularPipeline
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3Model

from tests.helpers.models import tiny_model, tiny_of
from tests.helpers.tiny_run import train_here
from trainer_engine.config.adapters.other_names import renamed
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import ModelUnavailable, Problem
from trainer_engine.export.__main__ import main
from trainer_engine.families.anima.family import Anima
from trainer_engine.families.anima.spec import CONDITIONER, NAMES, SPEC, T5_TOKENIZER


def tiny_anima(**values: Any) -> Anima:
    """The micro model on the CPU."""
    return tiny_of(Anima, tiny_model("anima"), **values)


ORIGINAL = (
    (r"transformer_blocks", "blocks"),
    (r"norm1\.linear_(\d)", r"adaln_modulation_self_attn.\1"),
    (r"norm2\.linear_(\d)", r"adaln_modulation_cross_attn.\1"),
    (r"norm3\.linear_(\d)", r"adaln_modulation_mlp.\1"),
    (r"attn([12])\.to_out\.0", r"attn\1.output_proj"),
    (r"attn([12])\.to_([qkv])", r"attn\1.\2_proj"),
    (r"attn([12])\.norm_([qk])", r"attn\1.\2_norm"),
    (r"attn1", "self_attn"),
    (r"attn2", "cross_attn"),
    (r"ff\.net\.0\.proj", "mlp.layer1"),
    (r"ff\.net\.2", "mlp.layer2"),
    (r"patch_embed\.proj", "x_embedder.proj.1"),
    (r"time_embed\.t_embedder", "t_embedder.1"),
    (r"time_embed\.norm", "t_embedding_norm"),
    (r"norm_out\.linear_(\d)", r"final_layer.adaln_modulation.\1"),
    (r"proj_out", "final_layer.linear"),
)
"""(Part of a name in diffusers, the same in the original code), in the order in which they are replaced."""


def original_name(name: str) -> str:
    """The name of a layer or a tensor of the network in ComfyUI."""
    for ours, other in ORIGINAL:
        name = re.sub(ours, other, name)
    return name


@pytest.mark.parametrize("prefix", ["net.", ""])
def test_the_network_of_a_file_for_comfyui_is_trained_with_the_conditioner_of_the_base_model(tmp_path: Path, prefix: str) -> None:
    (weights,) = (tiny_model("anima") / "transformer").glob("*.safetensors")
    conditioner = load_file(tiny_model("anima") / CONDITIONER / "diffusion_pytorch_model.safetensors")
    file = {f"{prefix}{original_name(name)}": tensor + 1 for name, tensor in load_file(weights).items()}
    assert f"{prefix}blocks.1.adaln_modulation_cross_attn.2.weight" in file and f"{prefix}t_embedder.1.linear_2.weight" in file
    save_file({**file, **{f"{prefix}llm_adapter.{name}": one + 1 for name, one in conditioner.items()}}, tmp_path / "anima.safetensors")
    family = tiny_anima(pretrained_transformer_model_name_or_path=str(tmp_path / "anima.safetensors"))
    ours, usual = family.load_network().state_dict(), tiny_anima().load_network().state_dict()
    assert ours.keys() == usual.keys() and all(ours[name].equal(weight + 1) for name, weight in usual.items())
    kept = family.parts.load_conditioner(None).state_dict()
    assert all(kept[name].equal(weight) for name, weight in conditioner.items())


def test_the_names_for_comfyui_are_those_by_which_its_files_are_read() -> None:
    layers = [name for name, module in tiny_anima().load_network().named_modules() if isinstance(module, torch.nn.Linear)]
    assert [renamed(layer, NAMES) for layer in layers] == [original_name(layer) for layer in layers]


def copy_without(tmp_path: Path, *names: str) -> Path:
    """The micro model without some of its folders."""
    return Path(shutil.copytree(tiny_model("anima"), tmp_path / "model", ignore=shutil.ignore_patterns(*names)))


@pytest.mark.parametrize("name", [CONDITIONER, T5_TOKENIZER, "tokenizer"])
def test_a_model_without_a_part_that_reads_prompts_is_refused_by_the_name_of_the_part(tmp_path: Path, name: str) -> None:
    family = tiny_of(Anima, copy_without(tmp_path, name))
    with pytest.raises(ModelUnavailable, match=f"has no folder {name}"):
        family.encode_prompts(["a"])
    assert name in SPEC.base_folders


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    model = copy_without(tmp_path, "text_encoder")
    wider = Qwen3Config(vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    Qwen3Model(wider).save_pretrained(model / "text_encoder")
    with pytest.raises(ModelUnavailable, match="text_conditioner of .* takes 32 numbers .* makes 64"):
        tiny_of(Anima, model).encode_prompts(["a"])


def problems(**values: Any) -> list[Problem]:
    usual = {"data_backend_config": "sets.json", "output_dir": "out", "max_train_steps": 1, "num_train_epochs": 0}
    return check_options({"model_family": "anima", "model_type": "lora", **usual, **values})[1]


@pytest.mark.parametrize("flavour", SPEC.other_flavours)
def test_previews_of_the_model_are_refused_by_name(flavour: str) -> None:
    (problem,) = [one for one in problems(model_flavour=flavour) if one.option == "model_flavour"]
    assert problem.code == "not_available" and "base-v1.0" in problem.expected


def test_distilled_weights_are_recognised_by_their_name() -> None:
    spec = SPEC.distillation
    assert spec is not None and spec.base == SPEC.repository(None)
    assert "turbo" in spec.reason(flavour=None, name="/models/anima-turbo-v1.1.safetensors", scheduler={}, network={})
    assert not spec.reason(flavour=None, name=SPEC.repository(None), scheduler={}, network={})


def test_an_adapter_is_merged_into_a_pipeline_that_loads_as_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = {"model_family": "anima", "model": str(tiny_model("anima")), "model_type": "lora", "lora_rank": 4, "max_train_steps": 1}
    run = train_here(tmp_path / "run", **usual, learning_rate=0.05)
    card = (run.output_dir / "README.md").read_text()
    assert "AnimaModularPipeline.from_pretrained" in card and "pipeline.load_components(dtype=torch.float32)" in card
    assert main([str(run.output_dir), "--to", "merged", "--output", str(tmp_path / "merged")]) == 0
    assert "from_pretrained and load_components" in capsys.readouterr().out
    pipeline = AnimaModularPipeline.from_pretrained(str(tmp_path / "merged"))
    pipeline.load_components(dtype=torch.float32)
    merged, base = pipeline.transformer.state_dict(), tiny_anima().load_network().state_dict()
    changed = {name for name, weight in base.items() if not merged[name].equal(weight)}
    assert changed == {name for name in base if re.search(r"attn[12]\.(to_[qkv]|to_out\.0)\.weight", name)}

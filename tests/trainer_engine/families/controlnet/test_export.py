"""An adapter on a ControlNet is exported for the ControlNet, whatever its file calls its layers, and never merged into the network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from safetensors import safe_open
from torch import Tensor

from tests.trainer_engine.families.controlnet.runs import controlled_run
from tests.trainer_engine.families.controlnet.test_unets import awake, steered
from trainer_engine.config.families import specs
from trainer_engine.export.__main__ import ADAPTER, main

TRAINED: dict[str, Any] = {"model_type": "lora", "max_train_steps": 1, "learning_rate": 0.05, "lr_warmup_steps": 0}


def lora_options(_: Path) -> dict[str, Any]:
    return {**TRAINED, "lora_type": "standard", "lora_rank": 2}


def lokr_options(place: Path) -> dict[str, Any]:
    (place / "lokr.json").write_text(json.dumps({**specs()["sd1x"].adapters.lycoris_start, "factor": 2}))
    return {**TRAINED, "lora_type": "lycoris", "lycoris_config": str(place / "lokr.json")}


@torch.no_grad()
def answer(controlnet: ControlNetModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    latents, control = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 3, 64, 64, generator=generator)
    states = torch.randn(1, 5, controlnet.config["cross_attention_dim"], generator=generator)
    found = controlnet.eval()(latents, 400, states, control)
    return [*found.down_block_res_samples, found.mid_block_res_sample]


def differ(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((first - second).abs().max()) for first, second in zip(one, other, strict=True))


def exported(run: Any, form: str, output: Path, *more: str) -> Path:
    assert main([str(run.output_dir), "--to", form, "--output", str(output), *more]) == 0
    return output


def stored_controlnet(place: Path) -> Path:
    """Weights of a ControlNet of which every layer has an effect."""
    network: Any = awake(steered("sd1x").load_network())
    network.save_pretrained(place / "mine")
    return place / "mine"


def test_an_exported_lora_and_the_merged_controlnet_compute_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = stored_controlnet(tmp_path)
    run = controlled_run(tmp_path, **lora_options(tmp_path), controlnet_model_name_or_path=str(mine))
    merged = ControlNetModel.from_pretrained(exported(run, "merged", tmp_path / "merged"))
    assert "ControlNetModel.from_pretrained" in capsys.readouterr().out
    exported(run, "diffusers", tmp_path / "adapter.safetensors")
    theirs = ControlNetModel.from_pretrained(mine)
    plain = answer(theirs)
    exec(capsys.readouterr().out.partition("as follows\n")[2], {"pipeline": SimpleNamespace(controlnet=theirs)})
    assert differ(answer(theirs), plain) > 1e-3
    assert differ(answer(theirs), answer(merged)) < 2e-5
    assert not (tmp_path / "merged" / "unet").exists() and (tmp_path / "merged" / "README.md").is_file()


def test_a_lokr_on_a_new_controlnet_is_merged_into_the_trained_controlnet(tmp_path: Path) -> None:
    """Its keys name no component: they fit the network as well, into which it was merged without a word."""
    run = controlled_run(tmp_path, **lokr_options(tmp_path))
    with safe_open(run.output_dir / ADAPTER, framework="pt") as file:
        assert not any("controlnet" in key for key in file.keys()) and file.metadata()["controlnet"] == "controlnet"  # noqa: SIM118
    merged = ControlNetModel.from_pretrained(exported(run, "merged", tmp_path / "merged"))
    below = ControlNetModel.from_pretrained(run.output_dir / "controlnet").state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, below[name])}
    assert changed and all(".attentions." in name for name in changed), "the new layers are those that were trained"


@pytest.mark.parametrize("options", [lora_options, lokr_options])
def test_weights_that_are_not_beside_the_adapter_are_asked_for(options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = controlled_run(tmp_path, **options(tmp_path))
    shutil.move(run.output_dir / "controlnet", tmp_path / "elsewhere")
    assert main([str(run.output_dir), "--to", "merged", "--output", str(tmp_path / "merged")]) != 0
    assert "name them with --controlnet" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    exported(run, "merged", tmp_path / "merged", "--controlnet", str(tmp_path / "elsewhere"))
    assert (tmp_path / "merged" / "config.json").is_file()


def test_comfyui_gets_the_merged_controlnet_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = controlled_run(tmp_path, **lora_options(tmp_path))
    assert main([str(run.output_dir), "--to", "comfyui", "--output", str(tmp_path / "out.safetensors")]) != 0
    assert "--to merged" in capsys.readouterr().err

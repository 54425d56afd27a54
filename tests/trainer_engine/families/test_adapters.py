"""Adapters of the families load in diffusers with the same output, and have the keys that ComfyUI and kohya's tools know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.checked_runs import checked
from tests.helpers.models import UNETS, tiny_model, undistilled
from tests.helpers.params import first_fast, often
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.trained_adapters import ADAPTERS, RESULT, network_in, output_of, pipeline_of, prefix_of, trained
from trainer_engine.config.families import find_spec

CONVOLUTIONS = '["to_q", "to_v", "conv1", "conv_shortcut", "downsamplers.0.conv"]'


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


@pytest.mark.parametrize("family", often(family for family, facts in ADAPTERS.items() if facts.loads_in_diffusers))
@pytest.mark.parametrize("targets", first_fast([None, CONVOLUTIONS]), ids=["usual", "convolutions"])
def test_an_adapter_loads_in_diffusers_with_the_same_output(tmp_path: Path, family: str, targets: str | None) -> None:
    if targets and family not in UNETS:
        pytest.skip("the network has no such convolutions")
    folder = trained(tmp_path, family, **({"peft_lora_target_modules": targets} if targets else {}))
    tensors = load_file(folder / RESULT)
    prefix = prefix_of(family)
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


@pytest.mark.parametrize("family", often(ADAPTERS))
def test_a_lycoris_adapter_trains_and_resumes_to_the_same_bytes_and_validate_takes_it_to_start_from(tmp_path: Path, family: str) -> None:
    spec = find_spec(family)
    assert spec is not None
    config = tmp_path / "lycoris.json"
    config.write_text(json.dumps(dict(spec.adapters.lycoris_start) | {"factor": 4}, default=dict))
    usual = {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(config), "max_train_steps": 4}
    chosen = {**usual, **undistilled(family)}
    straight = assert_resumes_exactly(tmp_path, model_family=family, model=str(tiny_model(family)), **chosen)
    again = {"pretrained_model_name_or_path": str(tiny_model(family)), "init_lora": str(straight.output_dir / RESULT)}
    assert checked(tmp_path, model_family=family, **chosen, **again).errors == []

"""The ControlNets of UNets: the loss and every gradient beside a reference that uses diffusers alone, and how new ones are made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import options_with, tiny_model
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.base import Family
from trainer_engine.families.common.unet import UNetFamily
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

PROMPTS = ["A red circle on blue glass ", "two small stars"]
TIMESTEPS = torch.tensor([3, 821])
SAMPLES = [
    SampleFacts(original_size=(640, 480), crop_corner=(16, 8), target_size=(128, 64)),
    SampleFacts(original_size=(100, 300), crop_corner=(0, 40), target_size=(128, 64)),
]
FAMILIES = ("sd1x", "sd2x", "sdxl")


def steered(name: str, **values: Any) -> Family:
    """The micro model of a family in a run that trains a ControlNet."""
    options = options_with(model_family=name, pretrained_model_name_or_path=str(tiny_model(name)), controlnet=True, **values)
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def awake(network: nn.Module) -> nn.Module:
    """With small numbers in the layers that begin with zeros, so that every layer has an effect."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


def fixed_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    latents, noise = (torch.randn(2, 4, 8, 16, generator=generator) for _ in range(2))
    return latents, noise, torch.rand(2, 3, 64, 128, generator=generator)


def our_loss(family: Family, network: nn.Module) -> Tensor:
    latents, noise, control = fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(latents, noise, TIMESTEPS),
        timesteps=TIMESTEPS,
        prompts=family.collate_prompts(family.encode_prompts(PROMPTS)),
        conditions=family.conditions(SAMPLES),
        control=control,
    )
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_inputs(family: Family) -> dict[str, Any]:
    """What diffusers' networks take of the prompts; how they are encoded is tested with each family."""
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    times = [[480.0, 640.0, 8.0, 16.0, 64.0, 128.0], [300.0, 100.0, 40.0, 0.0, 64.0, 128.0]]
    added = {"text_embeds": batch["pooled"], "time_ids": torch.tensor(times)} if "pooled" in batch else None
    return {"encoder_hidden_states": batch["embeds"], "added_cond_kwargs": added}


def their_loss(folder: Path, controlnet: ControlNetModel, prediction_type: str, inputs: Mapping[str, Any]) -> Tensor:
    latents, noise, control = fixed_batch()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", prediction_type=prediction_type)
    noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
    down, middle = controlnet(noisy, TIMESTEPS, controlnet_cond=control, return_dict=False, **inputs)
    output = unet(noisy, TIMESTEPS, down_block_additional_residuals=down, mid_block_additional_residual=middle, **inputs).sample
    return mse_loss(output, noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_equal_those_of_diffusers(name: str, gradient_checkpointing: bool, tmp_path: Path) -> None:
    family = steered(name, gradient_checkpointing=gradient_checkpointing)
    network = awake(family.load_network())
    family.save_component("controlnet", network, tmp_path)
    theirs = ControlNetModel.from_pretrained(tmp_path).train()

    loss = our_loss(family, network)
    wanted = their_loss(tiny_model(name), theirs, family.prediction_type, their_inputs(family))

    assert_same_gradients(loss, network, wanted, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_controlnet_copies_the_network_and_changes_nothing_yet(name: str) -> None:
    family = steered(name)
    network = cast("ControlNetModel", family.load_network())
    unet = UNet2DConditionModel.from_pretrained(tiny_model(name) / "unet")
    for key, tensor in network.down_blocks.state_dict().items():
        assert torch.equal(tensor, unet.down_blocks.state_dict()[key]), key
    plain = load_family(
        options_with(model_family=name, pretrained_model_name_or_path=str(tiny_model(name))),
        resolve_devices(family.options, torch.device("cpu")),
    )
    assert torch.equal(our_loss(family, network), our_loss(plain, plain.load_network()))


def test_the_new_layers_of_a_controlnet_follow_from_the_seed() -> None:
    first, again, other = (cast("Any", steered("sd1x", seed=seed).load_network()) for seed in (1, 1, 2))
    weight = first.controlnet_cond_embedding.conv_in.weight
    assert torch.equal(weight, again.controlnet_cond_embedding.conv_in.weight)
    assert not torch.equal(weight, other.controlnet_cond_embedding.conv_in.weight)


def test_the_custom_config_decides_how_a_new_controlnet_is_made() -> None:
    network: Any = steered("sd1x", controlnet_custom_config='{"conditioning_embedding_out_channels": [8, 8, 16, 16]}').load_network()
    assert network.config.conditioning_embedding_out_channels == [8, 8, 16, 16]


def test_only_the_controlnet_is_trained_and_the_network_beside_it_stays_frozen() -> None:
    family = steered("sd1x")
    trainable = make_trainable(family, None)
    assert isinstance(trainable.network, ControlNetModel)
    assert all(parameter.requires_grad for parameter in trainable.network.parameters())
    assert not any(parameter.requires_grad for parameter in family.beside["unet"].parameters())


def test_the_network_beside_a_controlnet_is_quantised_and_the_controlnet_is_not() -> None:
    family = steered("sd1x", base_model_precision="int8-quanto")
    network = awake(family.load_network())
    kinds = {type(module).__name__ for module in family.beside["unet"].modules()}
    assert kinds != {type(module).__name__ for module in UNet2DConditionModel.from_pretrained(tiny_model("sd1x") / "unet").modules()}
    our_loss(family, network).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("subfolder", ["", "controlnet"])
def test_a_controlnet_begins_with_weights_of_its_own(subfolder: str, tmp_path: Path) -> None:
    network: Any = awake(steered("sd1x").load_network())
    network.save_pretrained(tmp_path / subfolder)
    found = steered("sd1x", controlnet_model_name_or_path=str(tmp_path)).load_network()
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), network.parameters(), strict=True))


def test_weights_of_another_kind_or_of_another_network_are_refused(tmp_path: Path) -> None:
    cast("Any", steered("sdxl").load_network()).save_pretrained(tmp_path / "sdxl")
    for folder in (tiny_model("sd1x") / "unet", tmp_path / "sdxl"):
        with pytest.raises(InvalidOptions) as refused:
            steered("sd1x", controlnet_model_name_or_path=str(folder)).load_network()
        assert [problem.code for problem in refused.value.problems] == ["other_model"]


def test_an_adapter_on_a_controlnet_gets_all_gradients(tmp_path: Path) -> None:
    cast("Any", awake(steered("sdxl").load_network())).save_pretrained(tmp_path / "mine")
    family = steered("sdxl", model_type="lora", lora_type="standard", lora_rank=2, controlnet_model_name_or_path=str(tmp_path / "mine"))
    trainable = make_trainable(family, None)
    our_loss(family, trainable.network).backward()
    assert trainable.parameters and all(parameter.grad is not None for parameter in trainable.parameters)
    trainable.write_result(tmp_path / "out", 1)
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_every_family_with_a_controlnet_names_classes_of_diffusers() -> None:
    diffusers = importlib.import_module("diffusers")
    for name in FAMILIES:
        spec = steered(name).spec.steers
        assert spec is not None and hasattr(diffusers, spec.class_name) and hasattr(diffusers, spec.pipeline)
        assert isinstance(steered(name), UNetFamily)

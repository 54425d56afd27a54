"""The loss and every gradient of Stable Diffusion 1 and 2, beside a reference that uses diffusers alone."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import tiny_model
from tests.trainer_engine.families.stable_diffusion.models import tiny_sd
from trainer_engine.adapters.build import make_trainable
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["A red circle on blue glass ", "", "two small stars, three moons and a very bright sun behind the mountain"]
TIMESTEPS = torch.tensor([3, 421, 987])
CASES = [("sd1x", "epsilon"), ("sd1x", "v_prediction"), ("sd2x", "v_prediction")]


def fixed_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    latents, noise = (torch.randn(3, 4, 8, 16, generator=generator) for _ in range(2))
    return latents, noise


def our_loss(family: Family, network: nn.Module) -> Tensor:
    latents, noise = fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_loss(family: str, network: UNet2DConditionModel, prediction_type: str) -> Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model(family))
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction_type)
    latents, noise = fixed_batch()
    output = network(scheduler.add_noise(latents, noise, TIMESTEPS), TIMESTEPS, encoder_hidden_states=embeds).sample
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS)
    return mse_loss(output, target)


def their_network(family: str) -> UNet2DConditionModel:
    network: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(tiny_model(family), subfolder="unet").train()
    return network


def assert_same(ours: Tensor, mine: list[nn.Parameter], theirs: Tensor, others: list[nn.Parameter]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert len(mine) == len(others) > 0
    for one, other in zip(mine, others, strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "prediction_type"), CASES)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(family: str, prediction_type: str, gradient_checkpointing: bool) -> None:
    ours = tiny_sd(family, prediction_type=prediction_type, gradient_checkpointing=gradient_checkpointing)
    network, theirs = ours.load_network(), their_network(family)
    wanted = their_loss(family, theirs, prediction_type)
    assert_same(our_loss(ours, network), list(network.parameters()), wanted, list(theirs.parameters()))


@pytest.mark.parametrize("targets", ["", '["to_q", "to_v", "conv1", "conv_shortcut", "downsamplers.0.conv"]'])
def test_gradients_of_an_adapter_equal_those_of_peft(targets: str) -> None:
    from peft import LoraConfig

    chosen = {"peft_lora_target_modules": targets} if targets else {}
    family = tiny_sd(model_type="lora", lora_rank=4, lora_dropout=0, **chosen)
    trainable, theirs = make_trainable(family, None), their_network("sd1x").requires_grad_(False)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.adapter_targets("unet"))))
    others = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(trainable.parameters, others, strict=True)):
            one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
            other.copy_(one)
    assert_same(our_loss(family, trainable.network), trainable.parameters, their_loss("sd1x", theirs, "epsilon"), others)

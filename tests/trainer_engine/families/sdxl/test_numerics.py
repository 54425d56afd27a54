"""The loss and every gradient of Stable Diffusion XL, beside a reference that uses diffusers alone, and runs of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.sdxl.test_family import tiny_sdxl
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["A red circle on blue glass ", "two small stars"]
TIMESTEPS = torch.tensor([3, 821])
SAMPLES = [
    SampleFacts(original_size=(640, 480), crop_corner=(16, 8), target_size=(128, 64)),
    SampleFacts(original_size=(100, 300), crop_corner=(0, 40), target_size=(128, 64)),
]
TIME_IDS = [[480.0, 640.0, 8.0, 16.0, 64.0, 128.0], [300.0, 100.0, 40.0, 0.0, 64.0, 128.0]]


def fixed_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    latents, noise = (torch.randn(2, 4, 8, 16, generator=generator) for _ in range(2))
    return latents, noise


def test_time_ids_are_heights_before_widths_and_the_top_before_the_left() -> None:
    assert tiny_sdxl().conditions(SAMPLES)["time_ids"].tolist() == TIME_IDS


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(prediction_type: str, gradient_checkpointing: bool) -> None:
    family = tiny_sdxl(prediction_type=prediction_type, gradient_checkpointing=gradient_checkpointing)
    network, (latents, noise) = family.load_network(), fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts, conditions=family.conditions(SAMPLES))
    loss = objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_model("sdxl"))
    theirs: UNet2DConditionModel = pipeline.unet.train()
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction_type)
    added = {"text_embeds": pooled, "time_ids": torch.tensor(TIME_IDS)}
    output = theirs(scheduler.add_noise(latents, noise, TIMESTEPS), TIMESTEPS, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS)
    wanted = mse_loss(output, target)

    assert_same_gradients(loss, network, wanted, theirs)


def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path) -> None:
    straight = assert_resumes_exactly(tmp_path, model_family="sdxl", model=str(tiny_model("sdxl")))
    result = StableDiffusionXLPipeline.from_pretrained(straight.output_dir / "pipeline", add_watermarker=False)
    assert result("a cat", width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)

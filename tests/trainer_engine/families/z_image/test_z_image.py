"""Z-Image beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.z_image.family import ZImage
from trainer_engine.families.z_image.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_z_image(**values: Any) -> ZImage:
    """The micro model on the CPU."""
    return tiny_of(ZImage, tiny_model("z_image"), **{"model_flavour": "base", **values})


def their_prompts(prompts: list[str]) -> list[Tensor]:
    pipeline = ZImagePipeline.from_pretrained(tiny_model("z_image"))
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return embeds


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding() -> None:
    ours = tiny_z_image().encode_prompts(PROMPTS)
    for one, other in zip(ours, their_prompts(PROMPTS), strict=True):
        assert torch.equal(one["embeds"], other)
    assert len({len(one["embeds"]) for one in ours}) == len(PROMPTS)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_z_image().encode_prompts(["a " * 2000])
    assert len(ours["embeds"]) == SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], their_prompts(["a " * 2000])[0])


def test_latents_are_shifted_and_scaled() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("z_image"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    latents = tiny_z_image().encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_z_image(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = ZImageTransformer2DModel.from_pretrained(tiny_model("z_image"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()
    sigma = SIGMAS.view(-1, 1, 1, 1)
    theirs_noisy = (1 - sigma) * latents + sigma * noise
    outputs = theirs([one[:, None] for one in theirs_noisy], (1000 - SIGMAS * 1000) / 1000, their_prompts(PROMPTS), return_dict=False)[0]
    wanted = mse_loss(-torch.stack([one[:, 0] for one in outputs]), noise - latents)
    assert_same_gradients(loss, network, wanted, theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one() -> None:
    family = tiny_z_image()
    network = family.load_network().eval()
    embeddings = family.encode_prompts(PROMPTS)
    noisy = fixed(3, 16, 8, 8, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 0.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_z_image()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(ZImagePipeline.from_pretrained(tiny_model("z_image"), scheduler=pipeline.scheduler))
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    latents = theirs("a red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).images
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(steps[-1].latents, latents)
    assert ours.tobytes() == wanted.tobytes()


def test_a_turbo_flavour_is_trained_beside_its_assistant_and_samples_without_guidance() -> None:
    for flavour, version in (("turbo", "v1"), ("turbo-ostris-v2", "v2")):
        defaults = SPEC.defaults_of(flavour)
        assert (
            defaults["assistant_lora_path"] == f"ostris/zimage_turbo_training_adapter:zimage_turbo_training_adapter_{version}.safetensors"
        )
        assert (defaults["validation_guidance"], defaults["validation_num_inference_steps"]) == (0.0, 8)
    assert "assistant_lora_path" not in {**SPEC.defaults_of("base"), **SPEC.defaults_of("ostris-de-turbo")}


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "z_image", "model_flavour": "base", "model": str(tiny_model("z_image")), "max_train_steps": 4}
    usual |= {"model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = ZImagePipeline.from_pretrained(straight.output_dir / "pipeline")
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)

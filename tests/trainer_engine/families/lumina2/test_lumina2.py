"""Lumina-Image 2.0 beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, Lumina2Pipeline, Lumina2Transformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.lumina2.family import Lumina2
from trainer_engine.families.lumina2.prompts import INSTRUCTION
from trainer_engine.families.lumina2.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_lumina2(**values: Any) -> Lumina2:
    """The micro model on the CPU."""
    return tiny_of(Lumina2, tiny_model("lumina2"), **values)


def their_pipeline(**parts: Any) -> Lumina2Pipeline:
    pipeline = Lumina2Pipeline.from_pretrained(tiny_model("lumina2"), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_prompts() -> tuple[Tensor, Tensor]:
    """Embeddings (3, 256, D) and masks of ``PROMPTS``, the empty one as the pipeline has it for classifier-free guidance."""
    written = [prompt for prompt in PROMPTS if prompt]
    with torch.no_grad():
        embeds, masks, nothing, none_of_it = their_pipeline().encode_prompt(written)
    order = [0, len(written), 1]
    return torch.cat([embeds, nothing[:1]])[order], torch.cat([masks, none_of_it[:1]])[order]


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding() -> None:
    ours = tiny_lumina2().encode_prompts(PROMPTS)
    for one, embeds, mask in zip(ours, *their_prompts(), strict=True):
        assert torch.equal(one["embeds"], embeds[: int(mask.sum())])
    assert len(ours[0]["embeds"]) > len(ours[1]["embeds"]) == 1, "nothing but the mark of the beginning"


def test_the_instruction_is_that_of_the_pipeline() -> None:
    assert their_pipeline().system_prompt == INSTRUCTION


def test_a_negative_prompt_has_no_instruction_as_in_the_pipeline() -> None:
    family = tiny_lumina2()
    (ours, positive) = family.encode_prompts([family.negative_text("blue"), "blue"])
    with torch.no_grad():
        _, _, theirs, mask = their_pipeline().encode_prompt(["a", "a"], negative_prompt=["blue", "a"])
    assert torch.equal(ours["embeds"], theirs[0, : int(mask[0].sum())])
    assert len(positive["embeds"]) > len(ours["embeds"])
    assert family.negative_text("") == "", "the prompt of caption dropout is that of an image without a negative prompt"


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_lumina2().encode_prompts(["a " * 2000])
    with torch.no_grad():
        (theirs,) = their_pipeline().encode_prompt("a " * 2000, do_classifier_free_guidance=False)[0]
    assert len(ours["embeds"]) == SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], theirs)


def test_latents_are_shifted_and_scaled() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("lumina2"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    latents = tiny_lumina2().encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted, atol=1e-5)


def their_loss(network: Lumina2Transformer2DModel, latents: Tensor, noise: Tensor) -> Tensor:
    """Of ``PROMPTS`` at ``SIGMAS``, by diffusers alone."""
    sigma = SIGMAS.view(-1, 1, 1, 1)
    embeds, mask = their_prompts()
    output = network(
        hidden_states=(1 - sigma) * latents + sigma * noise,
        timestep=1 - SIGMAS * 1000 / 1000,
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    return mse_loss(-output, noise - latents)


def our_loss(family: Lumina2, network: Any, latents: Tensor, noise: Tensor) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_lumina2(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = Lumina2Transformer2DModel.from_pretrained(tiny_model("lumina2"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    loss, wanted = our_loss(family, network, latents, noise), their_loss(theirs, latents, noise)
    assert_same_gradients(loss, network, wanted, theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one() -> None:
    family = tiny_lumina2()
    network = family.load_network().eval()
    embeddings = family.encode_prompts(PROMPTS)
    noisy = fixed(3, 16, 8, 8, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 1.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_lumina2()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", family.negative_text("blue")])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(their_pipeline(scheduler=pipeline.scheduler))
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    latents = theirs("a red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).images
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(steps[-1].latents, latents)
    assert ours.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "lumina2", "model": str(tiny_model("lumina2")), "max_train_steps": 4}
    usual |= {"model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = Lumina2Pipeline.from_pretrained(straight.output_dir / "pipeline")
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)

"""Prompts, images and results of Stable Diffusion 1 and 2, beside the pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from tests.helpers.models import laid_out_alike, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.stable_diffusion.models import tiny_sd
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest, SamplerStep

PROMPTS = ["A red circle on blue glass ", "", "star " * 200]
FAMILIES = ["sd1x", "sd2x"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_prompts_equal_those_of_the_pipeline(family: str, skip: int) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model(family))
    # The pipeline asks for a submodule that transformers 5 has merged into the encoder.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    with torch.no_grad():
        wanted, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False, clip_skip=skip or None)
    for ours, theirs in zip(tiny_sd(family, clip_skip=skip).encode_prompts(PROMPTS), wanted, strict=True):
        assert ours["embeds"].shape == (77, 32)
        assert torch.allclose(ours["embeds"], theirs, atol=1e-5)


def test_a_clip_skip_beyond_the_encoder_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="clip_skip=3"):
        tiny_sd(clip_skip=3).encode_prompts([""])


def test_another_clip_skip_is_another_address_of_prompts(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    assert tiny_sd(clip_skip=1).text_fingerprint(hashes) != tiny_sd().text_fingerprint(hashes)
    assert tiny_sd(clip_skip=1).image_fingerprint(hashes) == tiny_sd().image_fingerprint(hashes)


def test_latents_are_the_scaled_mode_of_the_autoencoder() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("sd1x") / "vae")
    pixels = torch.rand(2, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    assert torch.allclose(tiny_sd().encode_images(pixels), wanted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", [None, "ddim", "euler"])
def test_an_image_equals_that_of_the_pipeline(family: str, sampler: str | None) -> None:
    ours = tiny_sd(family)
    network = ours.load_network().eval()
    prompt, negative = ours.encode_prompts(["a red circle", "blue"])
    pipeline, steps = ours.make_pipeline(network, sampler=sampler, spacing="trailing"), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=4, guidance=5.0, seed=3, guidance_rescale=0.7)
    image = ours.generate(pipeline, request, on_step=steps.append)
    theirs = StableDiffusionPipeline.from_pretrained(tiny_model(family), scheduler=pipeline.scheduler, safety_checker=None)
    laid_out_alike(theirs)
    wanted = theirs(
        "a red circle",
        negative_prompt="blue",
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert image.size == (96, 64)
    assert [step.number for step in steps] == [1, 2, 3, 4] and steps[0].latents.shape == (1, 4, 8, 12)
    assert image.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_fine_tune_leaves_a_pipeline_that_generates(family: str, tmp_path: Path) -> None:
    model = str(tiny_model(family))
    run = train_here(tmp_path, model_family=family, model=model, max_train_steps=2, validation_guidance_rescale=0)
    assert run.code == 0 and run.step == 2
    pipeline = StableDiffusionPipeline.from_pretrained(run.output_dir / "pipeline", safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == tiny_sd(family).prediction_type
    assert pipeline("a cat", width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(family: str, tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, model_family=family, model=str(tiny_model(family)))


def test_a_rescaled_schedule_reaches_validation_images_and_the_result(tmp_path: Path) -> None:
    model, chosen = str(tiny_model("sd2x")), {"rescale_betas_zero_snr": True}
    scheduler = tiny_sd("sd2x", **chosen).make_pipeline(tiny_sd("sd2x").load_network(), sampler="ddim").scheduler
    assert scheduler.config.rescale_betas_zero_snr and scheduler.config.timestep_spacing == "trailing"
    run = train_here(tmp_path, model_family="sd2x", model=model, max_train_steps=1, **chosen)
    saved = StableDiffusionPipeline.from_pretrained(run.output_dir / "pipeline", safety_checker=None).scheduler.config
    assert saved.rescale_betas_zero_snr and saved.timestep_spacing == "trailing"

"""Prompts, images and results of Stable Diffusion XL, beside the pipeline of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.helpers.models import laid_out_alike, tiny_model, tiny_of
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.sdxl.family import StableDiffusionXL

PROMPTS = ["A red circle on blue glass ", "", "star " * 200]


def tiny_sdxl(**values: Any) -> StableDiffusionXL:
    """The micro model on the CPU."""
    model = str(values.pop("model", None) or tiny_model("sdxl"))
    return tiny_of(StableDiffusionXL, model, **values)


@pytest.mark.parametrize("skip", [0, 1])
def test_prompts_equal_those_of_the_pipeline(skip: int) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_model("sdxl"))
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False, clip_skip=skip or None)
    for ours, embed, summary in zip(tiny_sdxl(clip_skip=skip).encode_prompts(PROMPTS), embeds, pooled, strict=True):
        assert torch.allclose(ours["embeds"], embed, atol=1e-5)
        assert torch.allclose(ours["pooled"], summary, atol=1e-5)


@pytest.mark.parametrize("sampler", [None, "ddim"])
def test_an_image_equals_that_of_the_pipeline(sampler: str | None) -> None:
    ours = tiny_sdxl()
    network = ours.load_network().eval()
    prompt, negative = ours.encode_prompts(["a red circle", "blue"])
    pipeline = ours.make_pipeline(network, sampler=sampler)
    image = ours.generate(pipeline, GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=4, guidance=5.0, seed=3))
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_model("sdxl"), scheduler=pipeline.scheduler, add_watermarker=False)
    laid_out_alike(theirs)
    wanted = theirs(
        "a red circle",
        negative_prompt="blue",
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert image.size == (96, 64)
    assert image.tobytes() == wanted.tobytes()

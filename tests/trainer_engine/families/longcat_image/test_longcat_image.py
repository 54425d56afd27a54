"""LongCat-Image beside diffusers: prompts, latents, losses, gradients, samplers, images and the result of a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.longcat_image.models import PROMPTS, bare_network, folder_of, our_loss, their_loss, tiny_longcat
from tests.trainer_engine.families.longcat_image.network import pipeline_in
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.longcat_image.prompts import numbers_of
from trainer_engine.families.longcat_image.spec import DEV, FINAL, SPEC

LIMIT = SPEC.prompts.token_limit


def their_pipeline() -> Any:
    return pipeline_in(folder_of(FINAL))


@cache
def their_prompts(*prompts: str) -> Tensor:
    """Embeddings (B, T, D) of prompts."""
    with torch.no_grad():
        embeds: Tensor = their_pipeline().encode_prompt(list(prompts))[0]
    return embeds


def test_prompts_equal_those_of_the_pipeline_with_their_padding() -> None:
    ours, theirs = tiny_longcat().encode_prompts(PROMPTS), their_prompts(*PROMPTS)
    assert theirs.shape[1:] == (LIMIT, 32)
    assert all(torch.equal(one["embeds"], other) for one, other in zip(ours, theirs, strict=True))


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_longcat().encode_prompts(["a " * 400])
    assert torch.equal(ours["embeds"], their_prompts("a " * 400)[0])


def test_the_states_of_the_padding_depend_on_the_prompt_and_count() -> None:
    one, other = (prompt["embeds"] for prompt in tiny_longcat().encode_prompts(["a cat", "a dog"]))
    assert not torch.allclose(one[-1], other[-1], atol=1e-4)
    network, latents, noise = bare_network(), fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    losses = [their_loss(network, latents, noise, torch.stack([embeds] * 3)) for embeds in (one, torch.cat([one[:5], 0 * one[5:]]))]
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-3)


def test_what_stands_in_quotation_marks_has_a_token_for_each_letter_and_nothing_else_has() -> None:
    """The micro model's tokens are single bytes in any case, so that a tokenizer of words shows it."""

    class Words:
        def __call__(self, text: str, **_: Any) -> dict[str, list[str]]:
            return {"input_ids": [text]}

    wanted = {
        'it writes "Hi 猫" twice': ["it writes ", '"', "H", "i", " ", "猫", '"', " twice"],
        "‘ab’ and “c”": ["‘", "a", "b", "’", " and ", "“", "c", "”"],
        "isn't it 'so'": ["isn't it ", "'", "s", "o", "'"],
        "I don't think it's Tom's": ["I don't think it's Tom's"],
        "it's \"Joe's\"": ["it's ", '"', "J", "o", "e", "'", "s", '"'],
        "": [],
    }
    assert {text: numbers_of(Words(), text) for text in wanted} == wanted  # type: ignore[arg-type]


def test_latents_are_scaled_as_the_pipeline_takes_them() -> None:
    vae = AutoencoderKL.from_pretrained(folder_of(FINAL), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    latents = tiny_longcat().encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12) and vae.config.shift_factor != 0
    assert torch.allclose(latents, wanted, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_longcat(gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), bare_network().train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    embeds = family.collate_prompts(family.encode_prompts(PROMPTS))["embeds"]
    loss, wanted = our_loss(family, network, latents, noise, embeds), their_loss(theirs, latents, noise, their_prompts(*PROMPTS))
    assert_same_gradients(loss, network, wanted, theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 1.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(sampler: str | None, guidance: float) -> None:
    family = tiny_longcat()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(their_pipeline())
    theirs.scheduler = pipeline.scheduler
    wanted = theirs(
        "a red circle",
        negative_prompt="blue",
        height=96,
        width=64,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        enable_prompt_rewrite=False,
    ).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, 12, 8)}
    assert ours.tobytes() == wanted.tobytes() == family.preview(steps[-1].latents).tobytes()
    assert "step" not in vars(pipeline.scheduler) and not network._forward_hooks


def test_a_stop_in_a_step_ends_the_image_and_leaves_the_pipeline_as_it_was() -> None:
    family = tiny_longcat()
    (prompt,) = family.encode_prompts(["a red circle"])
    pipeline = family.make_pipeline(family.load_network().eval())

    def stop(step: SamplerStep) -> None:
        raise KeyboardInterrupt(step.number)

    with pytest.raises(KeyboardInterrupt, match="1"):
        request = GenerationRequest(prompt=prompt, negative=prompt, width=32, height=32, steps=3, guidance=1.0, seed=5)
        family.generate(pipeline, request, on_step=stop)
    assert "step" not in vars(pipeline.scheduler)


def test_dev_reads_prompts_as_the_default_flavour_does() -> None:
    assert tiny_longcat(DEV).pipeline_name == tiny_longcat().pipeline_name == "LongCatImagePipeline"
    assert tiny_longcat(DEV).text.task == tiny_longcat().text.task


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "longcat_image", "model": str(folder_of(FINAL)), "max_train_steps": 4}
    usual |= {"model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        saved = straight.output_dir / "pipeline"
        assert {path.name for path in saved.iterdir()} >= {"text_processor", "tokenizer", "text_encoder", "vae", "scheduler"}
        image = pipeline_in(saved)("a cat", height=32, width=32, num_inference_steps=2, enable_prompt_rewrite=False).images[0]
        assert image.size == (32, 32)

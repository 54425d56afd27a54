"""Kandinsky 5 for images beside diffusers: prompts, latents, losses, gradients, samplers, images and the result of a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, Kandinsky5Transformer3DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.kandinsky5_image.models import NAME, PROMPTS, SIGMAS, pipeline_in, tiny_kandinsky
from tests.trainer_engine.families.kandinsky5_image.network import called
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.kandinsky5_image.family import Kandinsky5Image
from trainer_engine.families.kandinsky5_image.spec import SPEC
from trainer_engine.families.kandinsky5_image.tiny import SHIFT
from trainer_engine.objectives.build import make_objective

CPU = torch.device("cpu")


@cache
def their_prompts() -> tuple[tuple[Tensor, Tensor], ...]:
    """States (T, D) and pooled states (P,) of each of ``PROMPTS``, read alone."""
    pipeline = pipeline_in(tiny_model(NAME))
    with torch.no_grad():
        found = [pipeline.encode_prompt(prompt, device=CPU) for prompt in PROMPTS]
    return tuple((states[0], pooled[0]) for states, pooled, _ in found)


def test_prompts_equal_those_of_the_pipeline_and_have_no_padding() -> None:
    ours = tiny_kandinsky().encode_prompts(PROMPTS)
    assert len({len(one["embeds"]) for one in ours}) == 3
    for one, (states, pooled) in zip(ours, their_prompts(), strict=True):
        assert torch.equal(one["embeds"], states) and torch.equal(one["pooled"], pooled)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_kandinsky().encode_prompts(["a " * 2000])
    with torch.no_grad():
        states, pooled, _ = pipeline_in(tiny_model(NAME)).encode_prompt("a " * 2000, device=CPU)
    assert len(ours["embeds"]) <= SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], states[0]) and torch.equal(ours["pooled"], pooled[0])


def test_latents_are_scaled_without_the_shift_of_the_autoencoder_as_the_pipeline_takes_them() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model(NAME), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    latents = tiny_kandinsky().encode_images(pixels)
    assert vae.config.shift_factor > 0.1 and latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted, atol=1e-5)


def test_latents_that_flux_made_with_the_same_autoencoder_are_not_taken_from_a_cache(tmp_path: Path) -> None:
    hashes, model = FileHashes(tmp_path / "hashes.jsonl"), str(tiny_model(NAME))
    flux = tiny_of(Flux, tiny_model("flux"), pretrained_vae_model_name_or_path=model)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert not torch.allclose(tiny_kandinsky().encode_images(pixels), flux.encode_images(pixels), atol=1e-3)
    assert tiny_kandinsky().image_fingerprint(hashes) != flux.image_fingerprint(hashes)


def their_loss(network: Kandinsky5Transformer3DModel, latents: Tensor, noise: Tensor) -> Tensor:
    """Of ``PROMPTS`` at ``SIGMAS``, by diffusers alone, one after another."""
    sigma = SIGMAS.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * latents + sigma * noise
    rows = zip(noisy, their_prompts(), 1000 * SIGMAS, strict=True)
    return mse_loss(torch.cat([called(network, one, *prompt, time[None]) for one, prompt, time in rows]), noise - latents)


def our_loss(family: Kandinsky5Image, network: Any, latents: Tensor, noise: Tensor) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_kandinsky(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = Kandinsky5Transformer3DModel.from_pretrained(tiny_model(NAME), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    loss, wanted = our_loss(family, network, latents, noise), their_loss(theirs, latents, noise)
    assert_same_gradients(loss, network, wanted, theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one_bit_for_bit() -> None:
    family = tiny_kandinsky()
    network = family.load_network().eval()
    embeddings, noisy = family.encode_prompts(PROMPTS), fixed(3, 16, 8, 8, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.equal(together[row : row + 1], prediction(slice(row, row + 1)))


@pytest.mark.parametrize("base", ["no_change", "fp32"])
def test_weights_have_one_type_and_the_angles_of_positions_are_not_rounded(base: str) -> None:
    """diffusers keeps modulations in float32; a network that it converts as a whole has rounded angles."""
    family = tiny_kandinsky(model_type="lora", mixed_precision="bf16", base_model_precision=base)
    network: Any = family.load_network()
    assert {one.dtype for one in network.parameters()} == {torch.bfloat16}
    tables = dict(network.named_buffers())
    assert len(tables) == 4 and {one.dtype for one in tables.values()} == {torch.float32}
    theirs = Kandinsky5Transformer3DModel.from_pretrained(tiny_model(NAME), subfolder="transformer")
    assert all(torch.equal(tables[name], one) for name, one in theirs.named_buffers())


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 3.5), (None, 1.0), ("euler", 3.5), ("unipc", 3.5), ("dpm++", 3.5)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(sampler: str | None, guidance: float) -> None:
    family = tiny_kandinsky()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(pipeline_in(tiny_model(NAME), scheduler=pipeline.scheduler))
    theirs.resolutions = [(64, 96)]
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    latents = theirs("a red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).image
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).image[0]
    assert isinstance(ours, Image.Image) and ours.size == (64, 96)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(steps[-1].latents, latents[:, 0].permute(0, 3, 1, 2))
    assert ours.tobytes() == wanted.tobytes() == family.preview(steps[-1].latents).tobytes()


def test_the_sampler_takes_the_steps_of_the_pipeline_which_are_the_same_for_images_of_every_size() -> None:
    family = tiny_kandinsky()
    pipeline = family.make_pipeline(family.load_network().eval())
    (prompt,) = family.encode_prompts(["a red circle"])
    wanted = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    wanted.set_timesteps(4)
    for width, height in ((32, 32), (64, 96)):
        request = GenerationRequest(prompt=prompt, negative=prompt, width=width, height=height, steps=4, guidance=1.0, seed=5)
        assert family.generate(pipeline, request).size == (width, height)
        assert torch.equal(pipeline.scheduler.sigmas, wanted.sigmas)


def test_a_token_of_the_network_is_a_square_of_four_cells() -> None:
    """A shift by the size of the image counts these (``flow_schedule_auto_shift``)."""
    family, lengths = tiny_kandinsky(), set[int]()
    network: Any = family.load_network()
    for block in network.visual_transformer_blocks:
        block.register_forward_pre_hook(lambda _, args: lengths.add(args[0].shape[1]))
    noisy = fixed(1, 16, 8, 12, seed=1)
    with torch.no_grad():
        prompts = family.collate_prompts(family.encode_prompts(["a cat"]))
        family.predict(network, StepInputs(noisy_latents=noisy, timesteps=torch.ones(1), prompts=prompts))
    assert lengths == {family.token_count(noisy.shape[1:])} == {24}


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": NAME, "model": str(tiny_model(NAME)), "max_train_steps": 4, "model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline")
        pipeline.resolutions = [(32, 32)]
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).image[0].size == (32, 32)

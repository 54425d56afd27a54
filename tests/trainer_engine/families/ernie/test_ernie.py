"""ERNIE-Image beside diffusers: prompts, latents, losses, gradients, samplers, images and the result of a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, ErnieImagePipeline, ErnieImageTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.ernie.family import Ernie
from trainer_engine.families.ernie.spec import SPEC
from trainer_engine.families.ernie.tiny import SHIFT
from trainer_engine.families.flux2.family import Flux2
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_ernie(**values: Any) -> Ernie:
    """The micro model on the CPU."""
    return tiny_of(Ernie, tiny_model("ernie"), **values)


def their_pipeline(**parts: Any) -> ErnieImagePipeline:
    pipeline = ErnieImagePipeline.from_pretrained(tiny_model("ernie"), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def their_prompts() -> tuple[Tensor, ...]:
    """Embeddings (T, D) of ``PROMPTS``."""
    return tuple(their_pipeline().encode_prompt(PROMPTS, torch.device("cpu")))


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding() -> None:
    ours = tiny_ernie().encode_prompts(PROMPTS)
    assert [len(one["embeds"]) for one in ours] == [len(prompt) + 1 for prompt in PROMPTS], "a token for each letter, and one before them"
    assert all(torch.equal(one["embeds"], embeds) for one, embeds in zip(ours, their_prompts(), strict=True))


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_ernie().encode_prompts(["a " * 2000])
    theirs = their_pipeline()
    theirs.tokenizer.model_max_length = SPEC.prompts.token_limit  # as the published one has it
    (wanted,) = theirs.encode_prompt("a " * 2000, torch.device("cpu"))
    assert len(ours["embeds"]) == SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], wanted)


def test_a_tokenizer_without_a_mark_of_the_beginning_reads_an_empty_prompt_as_the_pipeline_does() -> None:
    family, theirs = tiny_ernie(), their_pipeline()
    _, tokenizer = family.text.parts()
    for one in (tokenizer, theirs.tokenizer):
        one.backend_tokenizer.post_processor = None
    (ours,) = family.encode_prompts([""])
    assert torch.equal(ours["embeds"], theirs.encode_prompt("", torch.device("cpu"))[0])


def test_latents_are_shuffled_and_normalised_as_the_pipeline_takes_them() -> None:
    vae = AutoencoderKLFlux2.from_pretrained(tiny_model("ernie"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        squares = ErnieImagePipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
    mean, deviation = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var.view(1, -1, 1, 1) + 1e-5).sqrt()
    latents = tiny_ernie().encode_images(pixels)
    assert latents.shape == (2, 128, 4, 6)
    assert torch.allclose(latents, (squares - mean) / deviation, rtol=1e-4, atol=1e-4)


def test_latents_that_flux2_made_with_the_same_autoencoder_are_not_taken_from_a_cache(tmp_path: Path) -> None:
    hashes, vae = FileHashes(tmp_path / "hashes.jsonl"), str(tiny_model("ernie"))
    flux2 = tiny_of(Flux2, tiny_model("flux2"), pretrained_vae_model_name_or_path=vae)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert not torch.allclose(tiny_ernie().encode_images(pixels), flux2.encode_images(pixels), rtol=1e-3)
    assert tiny_ernie().image_fingerprint(hashes) != flux2.image_fingerprint(hashes)


def their_loss(network: ErnieImageTransformer2DModel, latents: Tensor, noise: Tensor) -> Tensor:
    """Of ``PROMPTS`` at ``SIGMAS``, by diffusers alone."""
    sigma = SIGMAS.view(-1, 1, 1, 1)
    states, lengths = ErnieImagePipeline._pad_text(list(their_prompts()), torch.device("cpu"), torch.float32, network.config.text_in_dim)
    noisy = (1 - sigma) * latents + sigma * noise
    output = network(noisy, SIGMAS * 1000, text_bth=states, text_lens=lengths, return_dict=False)[0]
    return mse_loss(output, noise - latents)


def our_loss(family: Ernie, network: Any, latents: Tensor, noise: Tensor) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_ernie(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = ErnieImageTransformer2DModel.from_pretrained(tiny_model("ernie"), subfolder="transformer").train()
    latents, noise = fixed(3, 128, 4, 5, seed=1), fixed(3, 128, 4, 5, seed=2)
    loss, wanted = our_loss(family, network, latents, noise), their_loss(theirs, latents, noise)
    assert_same_gradients(loss, network, wanted, theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one() -> None:
    family = tiny_ernie()
    network = family.load_network().eval()
    embeddings = family.encode_prompts(PROMPTS)
    noisy = fixed(3, 128, 4, 4, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 1.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(sampler: str | None, guidance: float) -> None:
    family = tiny_ernie()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
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
    assert ours.tobytes() == wanted.tobytes() == family.preview(steps[-1].latents).tobytes()


def test_the_sampler_takes_the_steps_of_the_pipeline_which_are_the_same_for_images_of_every_size() -> None:
    """The shift is the number that the scheduler of the base model states. No size of an image is counted for it."""
    family, theirs = tiny_ernie(), their_pipeline()
    pipeline = family.make_pipeline(family.load_network().eval())
    (prompt,) = family.encode_prompts(["a red circle"])
    even = torch.linspace(1, 0, 5)
    wanted = SHIFT * even / (1 + (SHIFT - 1) * even)
    for width, height in ((32, 32), (64, 96)):
        request = GenerationRequest(prompt=prompt, negative=prompt, width=width, height=height, steps=4, guidance=1.0, seed=5)
        family.generate(pipeline, request)
        theirs("a red circle", width=width, height=height, num_inference_steps=4, guidance_scale=1.0, output_type="latent")
        assert torch.equal(pipeline.scheduler.sigmas, theirs.scheduler.sigmas)
        torch.testing.assert_close(pipeline.scheduler.sigmas, wanted, rtol=1e-6, atol=0)


def test_a_token_of_the_network_is_a_cell_of_the_latents() -> None:
    """A shift by the size of the image counts these (``flow_schedule_auto_shift``)."""
    family, lengths = tiny_ernie(), set[int]()
    network: Any = family.load_network()
    prompts = family.collate_prompts(family.encode_prompts(["a cat"]))
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, args: lengths.add(len(args[0]) - prompts["embeds"].shape[1]))
    noisy = fixed(1, 128, 4, 6, seed=1)
    with torch.no_grad():
        family.predict(network, StepInputs(noisy_latents=noisy, timesteps=torch.ones(1), prompts=prompts))
    assert lengths == {family.token_count(noisy.shape[1:])} == {24}


@torch.no_grad()
def test_blocks_with_one_row_of_modulations_predict_what_those_of_diffusers_do_bit_for_bit() -> None:
    network: Any = tiny_ernie().load_network().eval()
    theirs = ErnieImageTransformer2DModel.from_pretrained(tiny_model("ernie"), subfolder="transformer").eval()
    rows = list[int]()
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, args: rows.extend(len(one) for one in args[2]))
    given = {"text_bth": torch.stack(their_prompts()[:1] * 2), "text_lens": torch.tensor([13, 9]), "return_dict": False}
    noisy, times = fixed(2, 128, 4, 6, seed=1), torch.tensor([300.0, 700.0])
    assert torch.equal(network(noisy, times, **given)[0], theirs(noisy, times, **given)[0])
    assert rows == [1] * 6 * 2


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "ernie", "model": str(tiny_model("ernie")), "max_train_steps": 4}
    usual |= {"model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = ErnieImagePipeline.from_pretrained(straight.output_dir / "pipeline")
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)

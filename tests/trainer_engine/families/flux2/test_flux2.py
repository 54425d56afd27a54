"""Flux.2 beside diffusers: prompts, latents, losses, gradients, images with references and the result of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.adapter_gradients import LORA, assert_adapter_is_its_definition
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.params import first_fast, first_rows_fast
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.adapters.build import make_trainable
from trainer_engine.families.flux2.family import Flux2
from trainer_engine.families.flux2.spec import DISTILLED, FLAVOURS, SPEC
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
both = pytest.mark.parametrize("flavour", ["klein-9b", "dev"])


def folder_of(flavour: str) -> Path:
    return tiny_model("flux2") if flavour == "klein-9b" else tiny_model("flux2", flavour=flavour)


def tiny_flux2(flavour: str, **values: Any) -> Flux2:
    """The micro model of a flavour on the CPU."""
    return tiny_of(Flux2, folder_of(flavour), **{"model_flavour": flavour, **values})


def pipeline_of(flavour: str, **parts: Any) -> Any:
    return (Flux2Pipeline if flavour == "dev" else Flux2KleinPipeline).from_pretrained(folder_of(flavour), **parts)


def their_prompts(flavour: str, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        embeds, _ = pipeline_of(flavour).encode_prompt(prompts)
    return embeds


@both
def test_prompts_equal_those_of_the_pipeline_with_their_padding(flavour: str) -> None:
    ours = tiny_flux2(flavour).encode_prompts(PROMPTS)
    theirs = their_prompts(flavour, PROMPTS)
    assert theirs.shape[1:] == (512, 96)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["embeds"], other)


def test_latents_are_shuffled_and_normalised_as_in_the_pipeline() -> None:
    vae = AutoencoderKLFlux2.from_pretrained(folder_of("klein-9b"), subfolder="vae").eval()
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pipeline = pipeline_of("klein-9b")
    with torch.no_grad():
        wanted = pipeline._encode_vae_image(pixels, generator=None)
    family = tiny_flux2("klein-9b")
    latents = family.encode_images(pixels)
    assert latents.shape == (2, 128, 4, 6)
    assert torch.allclose(latents, wanted, atol=1e-5)
    raw = torch.nn.functional.pixel_shuffle(
        latents * (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt() + vae.bn.running_mean.view(1, -1, 1, 1), 2
    )
    with torch.no_grad():
        decoded = vae.decode(raw, return_dict=False)[0]
    assert torch.allclose(family.autoencoder.decode(latents), decoded, atol=1e-4)


def bare_network(flavour: str) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel.from_pretrained(folder_of(flavour), subfolder="transformer").train()


def losses(family: Flux2, flavour: str, references: int, network: nn.Module, theirs: nn.Module) -> tuple[Tensor, Tensor]:
    """Ours, and that of diffusers alone, of three prompts with as many references each."""
    latents, noise = fixed(3, 128, 4, 5, seed=1), fixed(3, 128, 4, 5, seed=2)
    beside = [fixed(3, 128, 3 + number, 4, seed=7 + number) for number in range(references)]
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts, references=tuple(beside)))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma, pipeline = SIGMAS.view(-1, 1, 1, 1), Flux2KleinPipeline
    tokens = pipeline._pack_latents((1 - sigma) * latents + sigma * noise)
    positions = pipeline._prepare_latent_ids(latents)[0]
    if beside:
        tokens = torch.cat([tokens, *map(pipeline._pack_latents, beside)], dim=1)
        positions = torch.cat([positions, pipeline._prepare_image_ids([one[:1] for one in beside])[0]])
    embeds = their_prompts(flavour, PROMPTS)
    output = theirs(
        hidden_states=tokens,
        timestep=SIGMAS,
        guidance=torch.ones(3) if flavour == "dev" else None,
        encoder_hidden_states=embeds,
        txt_ids=pipeline._prepare_text_ids(embeds)[0],
        img_ids=positions,
        return_dict=False,
    )[0]
    return loss, mse_loss(output[:, :20].transpose(1, 2).reshape(3, 128, 4, 5), noise - latents)


@both
@pytest.mark.parametrize("references", [0, 2])
def test_loss_and_every_gradient_equal_those_of_diffusers(flavour: str, references: int) -> None:
    family, theirs = tiny_flux2(flavour, gradient_checkpointing=bool(references)), bare_network(flavour)
    network = family.load_network()
    loss, wanted = losses(family, flavour, references, network, theirs)
    assert_same_gradients(loss, network, wanted, theirs)


@pytest.mark.parametrize("flavour", first_fast(["klein-9b", "dev"]))
def test_an_adapter_has_the_loss_and_gradients_of_its_definition_with_references(flavour: str) -> None:
    family = tiny_flux2(flavour, **LORA)
    assert_adapter_is_its_definition(make_trainable(family, None), bare_network(flavour), partial(losses, family, flavour, 2))


@both
@pytest.mark.parametrize(("sampler", "with_references"), [(None, False), (None, True), ("unipc", False), ("dpm++", False)])
def test_images_equal_those_of_the_pipeline(flavour: str, sampler: str | None, with_references: bool) -> None:
    family = tiny_flux2(flavour)
    network = family.load_network().eval()
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((64, 80), (96, 64))] if with_references else []
    theirs = laid_out_alike(pipeline_of(flavour))
    references = tuple(
        family.encode_images(theirs.image_processor.preprocess(one, height=one.height, width=one.width))[0] for one in pictures
    )
    prompt, negative = family.encode_prompts(["a red circle", ""])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=3.0, seed=5, references=references)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs.scheduler = pipeline.scheduler
    wanted = theirs(
        image=pictures or None,
        prompt="a red circle",
        height=96,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 128, 6, 4)}
    assert isinstance(ours, Image.Image)
    assert ours.tobytes() == wanted.tobytes()


@pytest.mark.slow
def test_the_guidance_of_klein_is_classifier_free_and_that_of_distilled_weights_is_none() -> None:
    prompts = ["a red circle", "blue"]

    def image(flavour: str, guidance: float) -> Any:
        family = tiny_flux2(flavour, pretrained_model_name_or_path=str(folder_of("klein-9b")))
        prompt, negative = family.encode_prompts(prompts)
        request = GenerationRequest(prompt=prompt, negative=negative, width=32, height=32, steps=2, guidance=guidance, seed=5)
        return np.asarray(family.generate(family.make_pipeline(family.load_network().eval()), request))

    assert not np.array_equal(image("klein-9b", 1.0), image("klein-9b", 4.0))
    assert np.array_equal(image("klein-9b-distilled", 1.0), image("klein-9b-distilled", 4.0))


def test_distilled_repositories_are_recognised_by_flavour_and_by_name() -> None:
    facts = SPEC.distillation
    assert facts is not None
    for flavour, repository in FLAVOURS.items():
        by_flavour = facts.reason(flavour=flavour, name=repository, scheduler={}, network={})
        by_name = facts.reason(flavour="klein-9b", name=repository, scheduler={}, network={})
        assert bool(by_flavour) == bool(by_name) == (flavour in DISTILLED)


@pytest.mark.parametrize(("flavour", "model_type"), first_rows_fast([("klein-9b", "full"), ("klein-9b", "lora"), ("dev", "full")]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, flavour: str, model_type: str) -> None:
    usual = {"model_family": "flux2", "model_flavour": flavour, "model": str(folder_of(flavour)), "max_train_steps": 4}
    usual |= {"model_type": model_type, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = diffusers.DiffusionPipeline.from_pretrained(straight.output_dir / "pipeline")
        assert type(pipeline).__name__ == ("Flux2Pipeline" if flavour == "dev" else "Flux2KleinPipeline")
        assert pipeline(prompt="a cat", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)

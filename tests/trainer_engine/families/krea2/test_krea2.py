"""Krea 2 beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, Krea2Pipeline, Krea2Transformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.krea2.family import Krea2
from trainer_engine.families.krea2.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_krea2(flavour: str = "raw", **values: Any) -> Krea2:
    """The micro model on the CPU."""
    return tiny_of(Krea2, tiny_model("krea2", flavour=flavour), model_flavour=flavour, **values)


def pipeline_of(flavour: str) -> Any:
    """The pipeline of diffusers, whose prompts are rounded as the caches store them."""
    pipeline = Krea2Pipeline.from_pretrained(tiny_model("krea2", flavour=flavour))
    pipeline.set_progress_bar_config(disable=True)
    exact = pipeline.get_text_hidden_states

    def rounded(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        states, mask = exact(*args, **kwargs)
        return states.bfloat16().float(), mask

    pipeline.get_text_hidden_states = rounded
    return pipeline


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pipeline_of("raw")


@pytest.fixture(scope="module")
def ours() -> Krea2:
    return tiny_krea2()


def test_latents_are_those_of_a_clip_of_one_frame_normalised_by_channel(ours: Krea2) -> None:
    vae = AutoencoderKLQwenImage.from_pretrained(tiny_model("krea2", flavour="raw"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        wanted = (vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / deviation
    latents = ours.encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted[:, :, 0], atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(theirs: Any, gradient_checkpointing: bool) -> None:
    """The pipeline pads each prompt to 512 tokens, before the end of the conversation; a batch here is as long as its longest prompt."""
    family = tiny_krea2(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    bare = Krea2Transformer2DModel.from_pretrained(tiny_model("krea2", flavour="raw"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma = SIGMAS.view(-1, 1, 1, 1)
    with torch.no_grad():
        embeds, mask = theirs.encode_prompt(PROMPTS)
    tokens = bare(
        hidden_states=theirs._pack_latents((1 - sigma) * latents + sigma * noise, 3, 16, 8, 10),
        encoder_hidden_states=embeds,
        timestep=SIGMAS,
        position_ids=theirs.prepare_position_ids(embeds.shape[1], 4, 5, "cpu"),
        encoder_attention_mask=mask,
        return_dict=False,
    )[0]
    wanted = mse_loss(theirs._unpack_latents(tokens, 64, 80)[:, :, 0], noise - latents)
    assert batch["embeds"].shape[1] < embeds.shape[1]
    assert_same_gradients(loss, network, wanted, bare)


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction(ours: Krea2) -> None:
    network: Any = ours.load_network().eval()
    batch = ours.collate_prompts(ours.encode_prompts(PROMPTS))
    noisy = fixed(3, 16, 8, 12, seed=3)
    inputs = StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch)
    right, length = ours.predict(network, inputs), batch["embeds"].shape[1]

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return ours.predict(network, inputs)
        finally:
            hook.remove()

    numbered = torch.arange(length)[:, None].expand(-1, 3)
    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "padding is attended to": lambda given: {"encoder_attention_mask": None},
        "time counts to 1000": lambda given: {"timestep": given["timestep"] * 1000},
        "rows and columns are swapped": lambda given: {"position_ids": given["position_ids"][:, [0, 2, 1]]},
        "prompts have positions": lambda given: {"position_ids": torch.cat([numbered, given["position_ids"][length:]])},
        "layers are in the wrong order": lambda given: {"encoder_hidden_states": given["encoder_hidden_states"].flip(2)},
        "cells are not put together in squares": lambda given: {"hidden_states": noisy.flatten(2).reshape(given["hidden_states"].shape)},
    }
    assert torch.equal(with_arguments(lambda given: {}), right)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-3), name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one(ours: Krea2) -> None:
    network = ours.load_network().eval()
    embeddings = ours.encode_prompts(PROMPTS)
    noisy = fixed(3, 16, 8, 8, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = ours.collate_prompts(embeddings[rows])
        return ours.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("flavour", "sampler", "guidance"),
    [
        ("raw", None, 4.5),
        ("turbo", None, 0.0),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("raw", "unipc", 4.5), ("raw", "dpm++", 4.5), ("turbo", "euler", 2.0))),
    ],
)
def test_images_equal_those_of_the_pipeline_bit_for_bit(theirs: Any, flavour: str, sampler: str | None, guidance: float) -> None:
    family, pipe = tiny_krea2(flavour), theirs if flavour == "raw" else pipeline_of(flavour)
    network = family.load_network().eval()
    prompt, negative = (family.encode_prompts([text])[0] for text in ("a red circle", "blue"))
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    image = family.generate(pipeline, request, on_step=steps.append)
    pipe.scheduler = pipeline.scheduler
    given = {"guidance_scale": guidance, "height": 96, "width": 64, "num_inference_steps": 3}
    wanted = pipe("a red circle", negative_prompt="blue", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, 12, 8)}
    assert np.array_equal(np.asarray(image), np.asarray(wanted))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(image))


def test_the_schedule_bends_with_the_size_of_the_image_and_that_of_turbo_does_not(ours: Krea2) -> None:
    objective: Any = make_objective(ours.prediction_type, ours.scheduler_config(), ours.options.objective)
    shifts = [objective.shift_of(ours.token_count((16, edge, edge))) for edge in (32, 128, 160)]
    assert shifts == pytest.approx([np.exp(0.5), np.exp(0.5 + 0.65 * (4096 - 256) / (6400 - 256)), np.exp(1.15)])
    turbo = tiny_krea2("turbo")
    fixed_shift: Any = make_objective(turbo.prediction_type, turbo.scheduler_config(), turbo.options.objective)
    assert [fixed_shift.shift_of(tokens) for tokens in (256, 4096)] == pytest.approx([np.exp(1.15)] * 2, rel=1e-3)


def test_the_published_network_has_the_layers_and_the_size_that_the_spec_states() -> None:
    with torch.device("meta"):
        network = Krea2Transformer2DModel()
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == (28 + 4) * len(targets)
    assert sum(one.numel() for one in network.parameters()) == SPEC.parameters[SPEC.default_flavour]
    assert network.config.num_text_layers == SPEC.prompts.stacked_layers
    assert network.config.num_text_layers * network.config.text_hidden_dim == SPEC.prompts.width


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    model = str(tiny_model("krea2", flavour="raw"))
    usual = {"model_family": "krea2", "model": model, "max_train_steps": 4, "train_batch_size": 2, "model_type": model_type}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = Krea2Pipeline.from_pretrained(straight.output_dir / "pipeline")
        assert (pipeline.text_encoder_select_layers, pipeline.config.is_distilled) == ((1, 2, 3), False)
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.slow
def test_the_image_of_a_validation_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 2}
    shown |= {"validation_disable": False, "validation_resolution": "64x96", "max_train_steps": 1, "model_type": "lora"}
    run = train_here(tmp_path, model_family="krea2", model=str(tiny_model("krea2", flavour="raw")), **shown)
    sizes = {Image.open(path).size for path in (run.output_dir / "validation_images").glob("*.png")}
    assert sizes == {(64, 96)}

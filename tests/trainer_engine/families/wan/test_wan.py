"""Wan beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from trainer_engine.config.skipped_layers import SkippedLayers
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.wan.family import Wan
from trainer_engine.families.wan.spec import SPEC, shifts_of
from trainer_engine.objectives.build import make_objective

PROMPTS = ["A red circle  on &amp; blue glass ", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_wan(**values: Any) -> Wan:
    """The micro model on the CPU."""
    return tiny_of(Wan, tiny_model("wan"), **values)


def their_prompts(prompts: list[str]) -> Tensor:
    pipeline = WanPipeline.from_pretrained(tiny_model("wan"))
    with torch.no_grad():
        embeds, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)
    return embeds


def test_the_shift_of_a_flavour_follows_the_size_in_its_name() -> None:
    shifts = shifts_of(["t2v-480p-1.3b-2.1", "t2v-480p-14b-2.1", "i2v-14b-2.1-720p", "i2v-14b-2.1"])
    assert [defaults["flow_schedule_shift"] for defaults in shifts.values()] == [3.0, 3.0, 5.0, 3.0]
    found = {flavour: SPEC.defaults_of(flavour)["flow_schedule_shift"] for flavour in SPEC.flavours}
    assert found == {**dict.fromkeys(SPEC.flavours, 3.0), "i2v-14b-2.1-720p": 5.0}
    assert tiny_wan(flow_schedule_shift=5).options.objective.flow_schedule_shift == 5


def test_prompts_equal_those_of_the_pipeline() -> None:
    family = tiny_wan()
    ours = family.collate_prompts(family.encode_prompts(PROMPTS))["embeds"]
    assert ours.shape == (3, 512, 32)
    assert torch.allclose(ours, their_prompts(PROMPTS), atol=1e-5)


def test_an_image_is_a_clip_of_one_frame_with_normalized_latents() -> None:
    vae = AutoencoderKLWan.from_pretrained(tiny_model("wan"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        wanted = (vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / deviation
    latents = tiny_wan().encode_images(pixels)
    assert latents.shape == (2, 16, 1, 8, 12)
    assert torch.allclose(latents, wanted, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_loss_and_every_gradient_equal_those_of_diffusers(frames: int, gradient_checkpointing: bool) -> None:
    family = tiny_wan(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = WanTransformer3DModel.from_pretrained(tiny_model("wan"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, frames, 4, 6, seed=1), fixed(3, 16, frames, 4, 6, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()
    sigma = SIGMAS.view(-1, 1, 1, 1, 1)
    output = theirs((1 - sigma) * latents + sigma * noise, SIGMAS * 1000, their_prompts(PROMPTS), return_dict=False)[0]
    wanted = mse_loss(output, noise - latents)
    assert_same_gradients(loss, network, wanted, theirs)


@pytest.mark.parametrize(("sampler", "frames"), [(None, 1), ("euler", 1), (None, 5), ("euler", 9), ("dpm++", 5)])
def test_images_and_clips_equal_those_of_the_pipeline(sampler: str | None, frames: int) -> None:
    family = tiny_wan()
    network = family.load_network().eval()
    (prompt,), (negative,) = (family.encode_prompts([text]) for text in ("a red circle", "blue"))
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=32, steps=3, guidance=4.0, seed=5, frames=frames)
    picture = family.generate(pipeline, request, on_step=steps.append)
    ours = [picture] if isinstance(picture, Image.Image) else picture
    theirs = WanPipeline.from_pretrained(tiny_model("wan"), scheduler=pipeline.scheduler)
    wanted = theirs(
        "a red circle",
        negative_prompt="blue",
        height=32,
        width=64,
        num_frames=frames,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pil",
    ).frames[0]
    assert isinstance(picture, Image.Image) == (frames == 1)
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, (frames - 1) // 4 + 1, 4, 8)}
    assert len(ours) == len(wanted) == frames
    for one, other in zip(ours, wanted, strict=True):
        assert one.tobytes() == other.tobytes()


def guided_latents(skips: bool, *, layer: int = 1) -> Tensor:
    """The latents of a guided image by diffusers' network and sampler alone, the third of four steps perhaps without a block."""
    network = WanTransformer3DModel.from_pretrained(tiny_model("wan"), subfolder="transformer").eval()
    shorter = deepcopy(network)
    del shorter.blocks[layer]
    prompt, negative = their_prompts(["a red circle", "blue"]).split(1)
    scheduler = WanPipeline.from_pretrained(tiny_model("wan")).scheduler
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 16, 1, 4, 8, generator=torch.Generator().manual_seed(5))
    for step, timestep in enumerate(scheduler.timesteps):
        unguided = shorter if skips and step == 2 else network
        with torch.no_grad():
            with_prompt = network(latents, timestep.expand(1), prompt, return_dict=False)[0]
            without = unguided(latents, timestep.expand(1), negative, return_dict=False)[0]
        latents = scheduler.step(without + 4.0 * (with_prompt - without), timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(("layers", "layer"), [(None, 0), ((0,), 0), ((1,), 1)])
def test_the_unguided_prediction_leaves_out_blocks_in_its_part_of_the_steps(layers: tuple[int, ...] | None, layer: int) -> None:
    family, steps = tiny_wan(), list[SamplerStep]()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    skipped = SkippedLayers(layers, start=0.25, stop=0.75) if layers else None
    request = GenerationRequest(
        prompt=prompt, negative=negative, width=64, height=32, steps=4, guidance=4.0, seed=5, skipped_layers=skipped
    )
    family.generate(family.make_pipeline(network), request, on_step=steps.append)
    wanted = guided_latents(bool(layers), layer=layer)
    assert torch.allclose(steps[-1].latents, wanted, rtol=1e-4, atol=1e-5)
    assert layers is None or not torch.allclose(wanted, guided_latents(False), rtol=1e-2, atol=1e-2)


def test_blocks_are_as_before_after_an_image_that_was_stopped() -> None:
    family = tiny_wan()
    network: Any = family.load_network().eval()
    network.blocks[1].forward = replaced = network.blocks[1].forward
    (prompt,) = family.encode_prompts(["a red circle"])
    request = GenerationRequest(
        prompt=prompt, negative=prompt, width=64, height=32, steps=2, guidance=4.0, seed=5, skipped_layers=SkippedLayers((0, 1), 0.0, 1.0)
    )

    def stop(_: SamplerStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        family.generate(family.make_pipeline(network), request, on_step=stop)
    assert "forward" not in network.blocks[0].__dict__ and network.blocks[1].__dict__["forward"] is replaced
    assert not network._forward_pre_hooks


def test_a_run_shows_images_without_blocks_and_refuses_blocks_that_are_not_there(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 4}
    shown |= {"validation_disable": False, "validation_resolution": "64x64", "validation_disable_unconditional": True}
    shown |= {"validation_guidance_skip_layers_start": 0.0, "validation_guidance_skip_layers_stop": 1.0, "max_train_steps": 1}
    model, images = str(tiny_model("wan")), {}
    for name, layers in (("all", None), ("fewer", [1])):
        run = train_here(tmp_path / name, model_family="wan", model=model, validation_guidance_skip_layers=layers, **shown)
        images[name] = [path.read_bytes() for path in sorted((run.output_dir / "validation_images").glob("*.png"))]
    assert len(images["all"]) == len(images["fewer"]) > 0 and images["all"] != images["fewer"]
    with pytest.raises(InvalidOptions, match="2 blocks"):
        train_here(tmp_path / "outside", model_family="wan", model=model, validation_guidance_skip_layers=[2], **shown)


def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path) -> None:
    straight = assert_resumes_exactly(tmp_path, model_family="wan", model=str(tiny_model("wan")))
    result = WanPipeline.from_pretrained(straight.output_dir / "pipeline")
    assert len(result("a cat", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="pil").frames[0]) == 5

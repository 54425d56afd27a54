"""Wan image-to-video beside diffusers: the first frame, losses, gradients and clips."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.clips import moving_square
from tests.helpers.gradients import LORA, assert_same_gradients, one_pass, tiny, trainable_of
from tests.helpers.models import tiny_model
from tests.trainer_engine.families.wan.test_wan import SIGMAS, fixed
from trainer_engine.caches.decoding import pixels_of
from trainer_engine.config.one_file.contents import file_problem
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.wan.family import Wan
from trainer_engine.families.wan.first_frame import EMBEDDING, LATENTS, fitted, masked, picture_of, with_blank_frames
from trainer_engine.families.wan.spec import SPEC
from trainer_engine.objectives.build import make_objective

FLAVOUR = "i2v-14b-2.1"
PROMPTS = ["A red circle on blue glass", "", "two small stars, three moons and a very bright sun behind the mountain"]
FRAMES = [pixels_of(frame) for frame in moving_square(9, (64, 32))]


def model() -> str:
    return str(tiny_model("wan", animates=True))


def animating(**values: Any) -> Wan:
    """The micro model of image-to-video on the CPU."""
    family = tiny("wan", model=model(), model_flavour=FLAVOUR, **values)
    assert isinstance(family, Wan)
    return family


def pipeline() -> WanImageToVideoPipeline:
    found = WanImageToVideoPipeline.from_pretrained(model())
    found.set_progress_bar_config(disable=True)
    return found


def clip_of(frames: int) -> Tensor:
    """(1, 3, T, H, W)"""
    return torch.stack(FRAMES[:frames], dim=1)[None]


@torch.no_grad()
def their_condition(theirs: WanImageToVideoPipeline, image: Image.Image, frames: int) -> Tensor:
    """(1, 20, f, h, w): the mask and the latents that the pipeline puts beside the noise."""
    pixels = theirs.video_processor.preprocess(image, height=image.height, width=image.width)
    return theirs.prepare_latents(pixels, 1, 16, image.height, image.width, frames, torch.float32, torch.device("cpu"))[1]


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_frame_is_encoded_and_masked_as_in_the_pipeline(frames: int) -> None:
    theirs, image = pipeline(), picture_of(FRAMES[0])
    found = animating().encode_conditions(clip_of(frames) if frames > 1 else FRAMES[0][None])
    wanted = their_condition(theirs, image, frames)
    assert found[LATENTS].shape == (1, 16, (frames - 1) // 4 + 1, 4, 8)
    assert torch.allclose(masked(found[LATENTS]), wanted, atol=1e-5, rtol=1e-6)
    with torch.no_grad():
        assert torch.equal(found[EMBEDDING], theirs.encode_image(image, torch.device("cpu")))


def test_what_follows_the_first_frame_changes_nothing_of_it() -> None:
    clip, other = clip_of(5), clip_of(5)
    other[:, :, 1:] = 0.3
    family = animating()
    one, two = family.encode_conditions(clip), family.encode_conditions(other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(with_blank_frames(clip)[:, :, 0], clip[:, :, 0]) and not with_blank_frames(clip)[:, :, 1:].any()
    shown = family.encode_conditions(torch.cat([clip, clip.flip(-1)]))
    assert torch.allclose(shown[LATENTS][:1], one[LATENTS], atol=1e-5)
    assert not torch.allclose(shown[EMBEDDING][0], shown[EMBEDDING][1], atol=1e-3), "a mirrored frame looks different"


def test_pixels_become_the_picture_that_they_were_made_of() -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(picture_of(pixels_of(picture))), np.asarray(picture))


def test_threads_that_encode_at_once_get_what_each_gets_alone() -> None:
    """diffusers keeps the last frames of every layer in the model: batches are prepared while validations generate."""
    family, lengths = animating(), (1, 5, 9)
    alone = {frames: family.encode_images(clip_of(frames)) for frames in lengths}
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            made = list(pool.map(lambda frames: family.encode_images(clip_of(frames)), lengths))
            assert all(torch.equal(one, alone[frames]) for one, frames in zip(made, lengths, strict=True))
            both = list(pool.map(lambda frames: family.encode_conditions(clip_of(frames)), lengths))
            assert all(one["first_frame_latents"].isfinite().all() for one in both if "first_frame_latents" in one)


def test_exact_encoding_is_float32_and_leaves_the_type_as_it_was() -> None:
    family = animating()
    encoder, _ = family.frames.parts
    encoder.to(torch.float64)
    found = family.frames.encode(FRAMES[0][None], exact=True)
    assert found.dtype == torch.float32 and encoder.dtype == torch.float64
    family.free_encoders()
    assert family.frames.parts[0].dtype == torch.float32, "it is loaded anew"


def test_an_image_of_another_shape_is_cropped_in_the_middle_instead_of_stretched() -> None:
    image = Image.new("RGB", (96, 32), (10, 10, 10))
    image.paste((250, 250, 250), (32, 0, 64, 32))
    assert fitted(image, 32, 32).getextrema() == ((250, 250),) * 3
    assert fitted(image, 96, 32) is image


def test_the_image_encoder_is_part_of_the_address_and_others_keep_theirs(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "hashes.jsonl")
    plain, given = tiny("wan"), animating()
    assert "first frame" in given.image_fingerprint(hashes) and "first frame" not in plain.image_fingerprint(hashes)
    assert (plain.caches_conditions, given.caches_conditions) == (False, True)
    assert set(given.spec.components) - set(plain.spec.components) == {"image_encoder", "image_processor"}


def inputs_of(family: Wan, noisy: Tensor, conditions: dict[str, Tensor]) -> StepInputs:
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    return StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts, conditions=conditions)


def loss_of(family: Wan, network: nn.Module, latents: Tensor, noise: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prediction = family.predict(network, inputs_of(family, objective.add_noise(latents, noise, SIGMAS), conditions))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


def their_loss(network: nn.Module, latents: Tensor, noise: Tensor, frames: int, images: list[Image.Image]) -> Tensor:
    """The loss by diffusers alone: the pipeline makes the inputs, its network the prediction."""
    theirs, sigma = pipeline(), SIGMAS.view(-1, 1, 1, 1, 1)
    with torch.no_grad():
        embeds, _ = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=512)
        seen = torch.cat([theirs.encode_image(image, torch.device("cpu")) for image in images])
    condition = torch.cat([their_condition(theirs, image, frames) for image in images])
    given = torch.cat([(1 - sigma) * latents + sigma * noise, condition], dim=1)
    output = network(given, SIGMAS * 1000, embeds, seen, return_dict=False)[0]
    return mse_loss(output, noise - latents)


def batch_of(frames: int) -> tuple[Tensor, Tensor, Tensor, list[Image.Image]]:
    """(latents, noise, pixels, first frames) of three clips."""
    cells = (frames - 1) // 4 + 1
    rows = [clip_of(frames), clip_of(frames).flip(-1), clip_of(frames).flip(-2)]
    images = [picture_of(row[0, :, 0]) for row in rows]
    return fixed(3, 16, cells, 4, 8, seed=1), fixed(3, 16, cells, 4, 8, seed=2), torch.cat(rows), images


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("frames", [1, 9])
def test_loss_and_every_gradient_equal_those_of_diffusers(frames: int, gradient_checkpointing: bool) -> None:
    family = animating(gradient_checkpointing=gradient_checkpointing)
    latents, noise, pixels, images = batch_of(frames)
    network = family.load_network()
    theirs = WanTransformer3DModel.from_pretrained(model(), subfolder="transformer").train()
    loss = loss_of(family, network, latents, noise, family.encode_conditions(pixels))
    assert_same_gradients(loss, network, their_loss(theirs, latents, noise, frames, images), theirs)


def test_loss_and_gradients_of_an_adapter_equal_those_of_diffusers() -> None:
    family = animating(model_type="lora", lora_rank=2, lora_alpha=2, lora_init_type="gaussian", lora_dropout=0)
    latents, noise, pixels, images = batch_of(5)
    ours = trainable_of(family)
    theirs = WanTransformer3DModel.from_pretrained(model(), subfolder="transformer").train().requires_grad_(False)
    theirs.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    named = {name.replace(".default", ""): one for name, one in theirs.named_parameters() if "lora_" in name}
    adapter = {name.replace(".default", ""): one for name, one in ours.named_parameters}
    assert len(named) == len(adapter) > 0
    matched = {name: next(one for key, one in adapter.items() if key.endswith(name)) for name in named}
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(matched[name])
    loss = loss_of(family, ours.network, latents, noise, family.encode_conditions(pixels))
    wanted = their_loss(theirs, latents, noise, 5, images)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    for name, parameter in named.items():
        assert parameter.grad is not None and matched[name].grad is not None
        assert torch.allclose(matched[name].grad, parameter.grad, rtol=1e-4, atol=1e-6), name


def test_the_network_looks_at_the_frame_its_mask_and_what_the_encoder_sees() -> None:
    family = animating()
    network = family.load_network().eval()
    latents, _, pixels, _ = batch_of(5)
    given = family.encode_conditions(pixels)
    with torch.no_grad():
        usual = family.predict(network, inputs_of(family, latents, given))
        for name in given:
            other = family.predict(network, inputs_of(family, latents, {**given, name: 3 * given[name].flip(-1)}))
            assert float((usual - other).abs().max()) > 1e-4, name


@pytest.mark.parametrize(("sampler", "frames"), [(None, 5), ("euler", 9), (None, 1)])
def test_clips_equal_those_of_the_pipeline_bit_for_bit(sampler: str | None, frames: int) -> None:
    family, steps = animating(), list[SamplerStep]()
    network, image = family.load_network().eval(), picture_of(FRAMES[2])
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    made = family.make_pipeline(network, sampler=sampler)
    asked: dict[str, Any] = {"width": 64, "height": 32, "steps": 3, "guidance": 4.0, "seed": 5, "frames": frames}
    picture = family.generate(made, GenerationRequest(prompt=prompt, negative=negative, first_frame=image, **asked), on_step=steps.append)
    theirs = WanImageToVideoPipeline.from_pretrained(model(), scheduler=made.scheduler)
    given: dict[str, Any] = {"prompt": "a red circle", "negative_prompt": "blue", "height": 32, "width": 64, "num_frames": frames}
    given |= {"num_inference_steps": 3, "guidance_scale": 4.0}
    wanted = theirs(image, **given, generator=torch.Generator().manual_seed(5), output_type="latent").frames
    assert torch.equal(steps[-1].latents, wanted)
    frames_wanted = theirs(image, **given, generator=torch.Generator().manual_seed(5), output_type="pil").frames[0]
    ours = [picture] if isinstance(picture, Image.Image) else picture
    assert len(ours) == len(frames_wanted) == frames
    for one, other in zip(ours, frames_wanted, strict=True):
        assert one.tobytes() == other.tobytes()


def test_encoders_keep_their_type_under_autocast() -> None:
    family, image = animating(), picture_of(FRAMES[0])
    made = family.make_pipeline(family.load_network().eval())
    pixels = FRAMES[0][None]
    prepared = (pixels, 1, 16, 32, 64, 5, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(1))
    seen, (_, condition) = made.encode_image(image), made.prepare_latents(*prepared)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made.encode_image(image), seen)
        assert torch.equal(made.prepare_latents(*prepared)[1], condition)


@pytest.mark.parametrize("kind", [{}, {**LORA, "lora_rank": 2}], ids=["full", "lora"])
def test_fused_projections_of_the_frame_equal_those_that_are_computed_one_by_one(kind: dict[str, Any]) -> None:
    latents, _, pixels, _ = batch_of(5)
    usual, fused = animating(**kind), animating(fuse_qkv_projections=True, **kind)
    plain, joined = trainable_of(usual), trainable_of(fused)
    inputs = inputs_of(usual, latents, usual.encode_conditions(pixels))
    assert one_pass(fused, joined, inputs=inputs).is_close_to(one_pass(usual, plain, inputs=inputs), rtol=1e-6, atol=1e-6)


def test_another_first_frame_gives_another_clip() -> None:
    family = animating()
    made, (prompt, negative) = family.make_pipeline(family.load_network().eval()), family.encode_prompts(["a red circle", ""])
    latents: list[Tensor] = []
    for image in (picture_of(FRAMES[0]), picture_of(FRAMES[0].flip(-1))):
        request = GenerationRequest(
            prompt=prompt, negative=negative, width=64, height=32, steps=1, guidance=4.0, seed=5, frames=5, first_frame=image
        )
        family.generate(made, request, on_step=lambda taken: latents.append(taken.latents))
    assert not torch.allclose(latents[0], latents[1], atol=1e-3)


def test_the_network_in_one_file_is_told_from_that_of_text_to_video(tmp_path: Path) -> None:
    option = "pretrained_transformer_model_name_or_path"
    for animates in (True, False):
        (weights,) = (tiny_model("wan", animates=animates) / "transformer").glob("*.safetensors")
        save_file({key: tensor + 1 for key, tensor in load_file(weights).items()}, tmp_path / f"{animates}.safetensors")
    ours = animating(**{option: str(tmp_path / "True.safetensors")}).load_network().state_dict()
    theirs = animating().load_network().state_dict()
    assert all(ours[name].equal(weight + 1) for name, weight in theirs.items())
    problem = file_problem(option, tmp_path / "False.safetensors", SPEC, FLAVOUR)
    assert problem is not None and "is the network of Wan text-to-video" in problem.message
    with pytest.raises(ModelUnavailable, match="this run trains Wan image-to-video"):
        animating(**{option: str(tmp_path / "False.safetensors")}).load_network()
    with pytest.raises(ModelUnavailable, match="this run trains Wan text-to-video"):
        tiny("wan", **{option: str(tmp_path / "True.safetensors")}).load_network()

"""Qwen-Image 2.1 with reference images, beside the pipeline of diffusers: prompts that see them, losses, images and runs."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.adapter_gradients import LORA, assert_adapter_is_its_definition
from tests.helpers.checked_runs import checked
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.references import picture, pixels_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.trainer_engine.families.qwen_image_21.models import NAME, SIGMAS, pipeline_in, tiny_qwen
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.qwen_image_21.family import QwenImage21
from trainer_engine.families.qwen_image_21.spec import SPEC
from trainer_engine.objectives.build import make_objective

IMAGES = [picture(1), picture(2, (96, 32))]
TEXTS = ["make it red", "put it beside the second one", "b"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pipeline_in(tiny_model(NAME))


@torch.no_grad()
def their_prompt(pipeline: Any, prompt: str, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Embeddings (1, T, D), and which tokens are of images (1, T)."""
    embeds, mask, slots = pipeline.encode_prompt(prompt, image=images)
    assert mask is None
    return embeds, slots


@pytest.mark.parametrize("count", [1, 2])
def test_prompts_see_references_as_in_the_pipeline(count: int, theirs: Any) -> None:
    family, images = tiny_qwen(), IMAGES[:count]
    (ours,) = family.encode_prompts(["make it red"], [[pixels_of(image) for image in images]])
    embeds, slots = their_prompt(theirs, "make it red", images)
    assert torch.equal(ours["slots"], slots[0]) and torch.allclose(ours["embeds"], embeds[0][~slots[0]], atol=1e-6)
    states = family.collate_prompts([ours])["embeds.0"]
    assert states.shape == embeds[0].shape and not states[slots[0]].any(), "the network puts latents there"
    assert int(ours["slots"].sum()) == [4, 7][count - 1], "a token for each 32 x 32 pixels"
    (changed,) = family.encode_prompts(["make it red"], [[pixels_of(picture(7, image.size)) for image in images]])
    assert not torch.allclose(changed["embeds"], ours["embeds"], atol=1e-3)


def test_prompts_of_a_batch_may_see_different_references() -> None:
    family = tiny_qwen()
    seen = [[pixels_of(IMAGES[0])], [pixels_of(one) for one in IMAGES], []]
    together = family.encode_prompts(TEXTS, seen)
    for text, own, found in zip(TEXTS, seen, together, strict=True):
        (alone,) = family.encode_prompts([text], [own])
        assert alone.keys() == found.keys() and all(torch.equal(alone[name], found[name]) for name in alone)
    assert "slots" not in together[2]


def test_a_long_prompt_loses_its_end_and_no_part_of_a_reference() -> None:
    (found,) = tiny_qwen().encode_prompts(["a" * 3000], [[pixels_of(IMAGES[0])]])
    assert int(found["slots"].sum()) == 4
    assert len(found["slots"]) == SPEC.prompts.token_limit + len("<image1>") + 2 + 4
    assert len(found["embeds"]) == len(found["slots"]) - 4


def bare_network() -> QwenImage21Transformer2DModel:
    return QwenImage21Transformer2DModel.from_pretrained(tiny_model(NAME), subfolder="transformer").train()


def losses(family: QwenImage21, theirs: Any, network: nn.Module, bare: nn.Module) -> tuple[Tensor, Tensor]:
    """Ours, and that of diffusers alone, of three prompts with two references each."""
    latents, noise = fixed(3, 64, 4, 6, seed=1), fixed(3, 64, 4, 6, seed=2)
    beside = [fixed(3, 64, 4, 4, seed=3), fixed(3, 64, 2, 6, seed=4)]
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    seen = [pixels_of(image) for image in IMAGES]
    inputs = StepInputs(
        noisy_latents=objective.add_noise(latents, noise, SIGMAS),
        timesteps=SIGMAS,
        prompts=family.collate_prompts(family.encode_prompts(TEXTS, [seen] * 3)),
        references=tuple(beside),
    )
    loss = objective.loss(family.predict(network, inputs), objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    found, noisy = [], torch.lerp(latents, noise, SIGMAS.view(-1, 1, 1, 1))
    for row, text in enumerate(TEXTS):
        embeds, slots = their_prompt(theirs, text, IMAGES)
        images = [one[row : row + 1] for one in (*beside, noisy)]
        tokens = bare(
            hidden_states=torch.cat([QwenImage21Pipeline._pack_latents(one, 1, 64, *one.shape[-2:]) for one in images], dim=1),
            encoder_hidden_states=embeds,
            timestep=SIGMAS[row : row + 1],
            img_shapes=[[(1, 4, 4), (1, 2, 6), (1, 4, 6)]],
            img_mask=torch.cat([slots, slots.new_ones(1, 6)], dim=1),
            return_dict=False,
        )[0][:, -24:]
        found.append(QwenImage21Pipeline._unpack_latents(tokens, 64, 96, 16)[:, :, 0])
    return loss, mse_loss(torch.cat(found), noise - latents)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers_with_references(theirs: Any, gradient_checkpointing: bool) -> None:
    family, bare = tiny_qwen(gradient_checkpointing=gradient_checkpointing), bare_network()
    network = family.load_network()
    loss, wanted = losses(family, theirs, network, bare)
    assert_same_gradients(loss, network, wanted, bare)


def test_an_adapter_has_the_loss_and_gradients_of_its_definition_with_references(theirs: Any) -> None:
    family = tiny_qwen(**LORA)
    assert_adapter_is_its_definition(make_trainable(family, None), bare_network(), partial(losses, family, theirs))


@torch.no_grad()
def test_a_reference_does_not_see_the_image_or_the_noise_level() -> None:
    """The trap of block-causal attention: each block of an image sees itself and what is before it, at time 0."""
    family = tiny_qwen()
    network: Any = family.load_network().eval()
    states: list[Tensor] = []
    network.transformer_blocks[-1].register_forward_hook(lambda _module, _args, output: states.append(output))
    prompts = family.collate_prompts(family.encode_prompts(["a"], [[pixels_of(image) for image in IMAGES]]))
    references = (fixed(1, 64, 4, 4, seed=3), fixed(1, 64, 2, 6, seed=4))
    other = (references[0], fixed(1, 64, 2, 6, seed=9))
    for seen, sigma, seed in ((references, 0.2, 1), (references, 0.9, 2), (other, 0.2, 1)):
        noisy = fixed(1, 64, 4, 6, seed=seed)
        family.predict(network, StepInputs(noisy_latents=noisy, timesteps=torch.tensor([sigma]), prompts=prompts, references=seen))
    before = states[0].shape[1] - 24
    slots = prompts["slots.0"].nonzero()[:, 0]
    first_ends = int(slots[3]) + 1 + 3 * 4  # four tokens of the network for each of its four
    assert torch.equal(states[0][:, :before], states[1][:, :before])
    assert torch.equal(states[0][:, :first_ends], states[2][:, :first_ends]), "the first does not see the second"
    assert not torch.allclose(states[0][:, first_ends:], states[2][:, first_ends:], atol=1e-3)


@pytest.mark.parametrize(("count", "guidance"), [(1, 1.0), (2, 3.0)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(count: int, guidance: float, theirs: Any) -> None:
    family, images = tiny_qwen(), [picture(1), picture(2)][:count]
    pixels = [pixels_of(image) for image in images]
    prompt, negative = (family.encode_prompts([text], [pixels])[0] for text in ("make it red", "blue"))
    shown = [theirs.image_processor.preprocess(image.convert("RGBA"))[:, :3] for image in images]  # laid out as there: kernels round so
    references = tuple(family.encode_images(one)[0] for one in shown)
    network = family.load_network().eval()
    request = GenerationRequest(
        prompt=prompt, negative=negative, width=64, height=96, steps=2, guidance=guidance, seed=5, references=references
    )
    ours = family.generate(family.make_pipeline(network), request)
    wanted = theirs(
        image=images,
        prompt="make it red",
        negative_prompt="blue" if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=96,
        width=64,
        num_inference_steps=2,
        output_resolution=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert not network._forward_hooks and not network._forward_pre_hooks


def datasets(place: Path, size: tuple[int, int] = (64, 64)) -> list[dict[str, Any]]:
    generate_images(place / "pictures", count=4, size=(64, 64))
    generate_images(place / "references", count=4, size=size)
    pictures = {"id": "pictures", "instance_data_dir": str(place / "pictures"), "cache_dir_vae": str(place / "c1")}
    seen = {"id": "seen", "conditioning_type": "reference_loose", "instance_data_dir": str(place / "references")}
    texts = {"id": "texts", "dataset_type": "text_embeds", "cache_dir": str(place / "c3")}
    return [{**pictures, "conditioning_data": ["seen"]}, {**seen, "cache_dir_vae": str(place / "c2")}, texts]


def test_a_run_with_references_resumes_exactly(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"model_family": NAME, "model": str(tiny_model(NAME)), "max_train_steps": 4, "train_batch_size": 2}
    assert_resumes_exactly(tmp_path, **usual, model_type="lora", datasets=datasets(tmp_path))


def test_references_are_taken_and_not_needed(tmp_path: Path) -> None:
    assert set(SPEC.takes_references) == set(SPEC.flavours) and not SPEC.needs_references
    for sets in (datasets(tmp_path), datasets(tmp_path)[2:] + [{**datasets(tmp_path)[0], "conditioning_data": []}]):
        found = checked(tmp_path, datasets=sets, model_family=NAME, model=str(tiny_model(NAME)), resolution=64)
        assert not found.errors, [str(problem) for problem in found.errors]


def test_validate_names_what_to_train_in_place_of_distilled_weights(tmp_path: Path) -> None:
    folders = {flavour: tiny_model(NAME, flavour=flavour) for flavour in SPEC.flavours}
    for flavour, folder, reason in (
        ("v2.1", folders["v2.1"], ""),
        ("v2.1-turbo", folders["v2.1"], "the flavour v2.1-turbo"),
        ("v2.1", folders["v2.1-turbo"], "sample_sigmas"),
    ):
        found = checked(tmp_path, model_family=NAME, model_flavour=flavour, model=str(folder), resolution=64)
        named = [problem for problem in found.problems if problem.code == "distilled_weights"]
        assert len(named) == bool(reason) and not found.errors
        assert all(reason in problem.message and SPEC.flavours["v2.1"] in problem.hint for problem in named)


def test_a_pipeline_folder_without_its_processor_is_named(tmp_path: Path) -> None:
    shutil.copytree(tiny_model(NAME), tmp_path / "model", ignore=shutil.ignore_patterns("processor"))
    with pytest.raises(ModelUnavailable, match="no folder processor"):
        tiny_qwen(pretrained_model_name_or_path=str(tmp_path / "model")).encode_prompts(["a"])


def test_validate_refuses_image_sizes_that_are_no_multiple_of_two_tokens(tmp_path: Path) -> None:
    found = checked(tmp_path, model_family=NAME, model=str(tiny_model(NAME)), resolution=64, validation_resolution="80x96")
    assert [(problem.option, problem.code) for problem in found.errors] == [("validation_resolution", "not_for_family")]

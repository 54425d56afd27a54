"""Validation images of Stable Diffusion XL by both networks, beside the two pipelines of diffusers."""

from __future__ import annotations

import gc
import io
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import nn

from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.trainer_engine.families.sdxl.test_family import tiny_sdxl
from tests.trainer_engine.families.sdxl.test_refiner import FLAVOUR, SCORE, refiner_folder
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.sdxl.family import StableDiffusionXL
from trainer_engine.validation.generate import render

MODE = "sdxl_validation_pipeline_mode"
FIRST, SECOND = "sdxl_validation_stage1_model", "sdxl_validation_stage2_model"
TEXT, NEGATIVE, STEPS, SPLIT = "a red circle", "blue", 5, 0.6
SHARE = {"refiner_training_strength": 1 - SPLIT, MODE: "full-pipeline", "validation_disable": False, "data_aesthetic_score": SCORE}


def base_folder() -> Path:
    return tiny_model("sdxl")


def other_base() -> Path:
    return tiny_model("sdxl", seed=7)


def trained_base(**values: Any) -> StableDiffusionXL:
    """A run of the base, whose images the refiner finishes."""
    return tiny_sdxl(**{**SHARE, SECOND: str(refiner_folder()), **values})


def trained_refiner(**values: Any) -> StableDiffusionXL:
    """A run of the refiner, whose images the base begins."""
    return tiny_sdxl(**{**SHARE, "model": refiner_folder(), "model_flavour": FLAVOUR, FIRST: str(base_folder()), **values})


def trained_pair(*, first: bool) -> StableDiffusionXL:
    """A run of one of two networks that were made from the base."""
    part = {"refiner_training": True, "refiner_training_invert_schedule": first}
    own, other = (base_folder(), {SECOND: str(other_base())}) if first else (other_base(), {FIRST: str(base_folder())})
    return tiny_sdxl(**{**SHARE, **part, **other, "model": own})


def our_image(family: StableDiffusionXL, sampler: str | None, taken: list[SamplerStep] | None = None) -> np.ndarray[Any, Any]:
    prompt, negative = (family.encode_prompts([text])[0] for text in (TEXT, NEGATIVE))  # in one batch they would be rounded otherwise
    words = {"text": TEXT, "negative_text": NEGATIVE}
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=STEPS, guidance=5.0, seed=3, **words)
    pipeline = family.make_pipeline(family.load_network().eval(), sampler=sampler, spacing="trailing")
    return np.asarray(family.generate(pipeline, request, on_step=None if taken is None else taken.append))


def prompts_of(family: StableDiffusionXL) -> dict[str, torch.Tensor]:
    """The prompts as arguments of a pipeline; other tests compare them with those of diffusers."""
    with torch.no_grad():
        prompt, negative = (family.encode_prompts([text])[0] for text in (TEXT, NEGATIVE))
    return family.pipeline_prompts(family.collate_prompts([prompt, negative]))


def their_image(first: Path, second: Path, sampler: str | None, schedule: Path) -> np.ndarray[Any, Any]:
    """What the two pipelines of diffusers make, with one random generator and the sampler of the trained network."""
    begins = StableDiffusionXLPipeline.from_pretrained(first, add_watermarker=False)
    ends = StableDiffusionXLImg2ImgPipeline.from_pretrained(second, add_watermarker=False)
    is_refiner = second == refiner_folder()
    assert ends.config.requires_aesthetics_score is is_refiner
    ends.vae.to(memory_format=torch.channels_last)
    for pipeline in (begins, ends):
        pipeline.scheduler = tiny_sdxl(model=schedule).parts.make_scheduler("epsilon", sampler, "trailing")
    generator, usual = torch.Generator().manual_seed(3), {"num_inference_steps": STEPS, "guidance_scale": 5.0}
    latents = begins(
        **prompts_of(tiny_sdxl(model=first)),
        **usual,
        width=96,
        height=64,
        denoising_end=SPLIT,
        generator=generator,
        output_type="latent",
    ).images
    refiner = {"model": second, "model_flavour": FLAVOUR} if is_refiner else {"model": second}
    image = ends(
        **prompts_of(tiny_sdxl(**refiner)),
        **usual,
        image=latents,
        denoising_start=SPLIT,
        aesthetic_score=SCORE,
        generator=generator,
    ).images[0]
    return np.asarray(image)


@pytest.mark.parametrize("sampler", first_fast([None, "ddim", "euler-a", "unipc"]))
def test_an_image_equals_that_of_the_base_and_the_refiner_whichever_is_trained(sampler: str | None) -> None:
    wanted = their_image(base_folder(), refiner_folder(), sampler, base_folder())
    taken: list[SamplerStep] = []
    for family in (trained_base(), trained_refiner()):
        taken.clear()
        assert np.array_equal(our_image(family, sampler, taken), wanted)
        assert [step.number for step in taken] == [1, 2, 3, 4, 5]
        assert [step.timestep for step in taken] == sorted((step.timestep for step in taken), reverse=True)
    alone = our_image(tiny_sdxl(), sampler)
    assert not np.array_equal(alone, wanted)


@pytest.mark.slow
def test_an_image_equals_that_of_two_networks_of_the_base_whichever_is_trained() -> None:
    wanted = their_image(base_folder(), other_base(), "ddim", base_folder())
    assert np.array_equal(our_image(trained_pair(first=True), "ddim"), wanted)
    assert np.array_equal(our_image(trained_pair(first=False), "ddim"), wanted)
    assert not np.array_equal(wanted, their_image(base_folder(), refiner_folder(), "ddim", base_folder()))


@pytest.mark.parametrize(("steps", "split"), [(2, 0.9), (2, 0.1)])
def test_a_stage_that_no_sampler_step_falls_to_leaves_the_image_to_the_other(steps: int, split: float) -> None:
    """Trailing timesteps of two steps are 999 and 499."""
    family = trained_base(refiner_training_strength=round(1 - split, 1))
    prompt, negative = family.encode_prompts([TEXT, NEGATIVE])
    words = {"text": TEXT, "negative_text": NEGATIVE}
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=64, steps=steps, guidance=5.0, seed=3, **words)
    taken: list[SamplerStep] = []
    network = family.load_network().eval()
    image = family.generate(family.make_pipeline(network, sampler="ddim", spacing="trailing"), request, on_step=taken.append)
    assert [step.number for step in taken] == [1, 2]
    if split == 0.9:
        alone = tiny_sdxl(data_aesthetic_score=SCORE)
        wanted = alone.generate(alone.make_pipeline(alone.load_network().eval(), sampler="ddim", spacing="trailing"), request)
        assert np.array_equal(np.asarray(image), np.asarray(wanted))


def rendered(family: StableDiffusionXL, place: Path, network: nn.Module | None = None) -> list[bytes]:
    """The files of a validation."""
    images = render(
        family,
        network or family.load_network(),
        lambda text: family.encode_prompts([text])[0],
        family.options,
        3,
    )
    assert {image.path.parent for image in images} == {place / "validation_images"}
    return [image.path.read_bytes() for image in images]


VALIDATION = {
    "validation_prompt": TEXT,
    "validation_negative_prompt": NEGATIVE,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 3,
    "validation_noise_scheduler": "ddim",
}


def test_a_validation_lets_go_of_the_other_network_and_encodes_its_prompts_once(tmp_path: Path) -> None:
    refiner = Path(shutil.copytree(refiner_folder(), tmp_path / "refiner"))
    family = trained_base(output_dir=str(tmp_path), **VALIDATION, **{SECOND: str(refiner)})
    network = family.load_network()
    assert family.other is not None
    watched: list[weakref.ref[nn.Module]] = []
    loaded = family.other.network
    gc.collect()
    gc.disable()
    try:
        watched.append(weakref.ref(loaded()))
        first = rendered(family, tmp_path, network)
        assert watched[0]() is None
        (refiner / "text_encoder_2/model.safetensors").unlink()
        assert rendered(family, tmp_path, network) == first and len(first) == 2
    finally:
        gc.enable()


def test_the_other_network_is_placed_at_once_in_a_run_that_spreads_its_own(tmp_path: Path) -> None:
    """Only the trained network is spread over processes; nothing would move this one to its device."""
    family = trained_base(
        output_dir=str(tmp_path), fsdp_enable=True, optimizer="torch-adamw", **VALIDATION, **{SECOND: str(refiner_folder())}
    )
    assert family.options.distributed.fsdp_enable and family.other is not None
    assert not family.other.family.options.distributed.fsdp_enable


def test_prompts_of_the_other_network_leave_the_autoencoder_of_the_run_alone() -> None:
    """A run that encodes its images while it trains keeps the autoencoder."""
    family = trained_base()
    family.keeps_encoders, model = True, family.vae()
    family.expect_prompts([TEXT, NEGATIVE])
    assert family.vae() is model
    family.make_pipeline(family.load_network())
    family.release_encoders()
    assert family.vae() is model


def test_a_base_whose_text_encoders_are_trained_hands_over_to_a_refiner_with_its_own(tmp_path: Path) -> None:
    frozen, live = (trained_base(output_dir=str(tmp_path), **VALIDATION, train_text_encoder=value) for value in (False, True))
    one = rendered(frozen, tmp_path)
    other = rendered(live, tmp_path)
    for ours, theirs in zip(one, other, strict=True):
        pixels = [np.asarray(Image.open(io.BytesIO(content)), dtype=int) for content in (ours, theirs)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_the_result_of_a_run_is_the_pipeline_of_the_trained_network(tmp_path: Path) -> None:
    for family, name in ((trained_pair(first=False), "StableDiffusionXLPipeline"), (trained_base(), "StableDiffusionXLPipeline")):
        network = family.load_network()
        family.make_pipeline(network)
        family.save_pipeline(tmp_path / "pipeline", network)
        assert json.loads((tmp_path / "pipeline/model_index.json").read_text())["_class_name"] == name


def changed_refiner(place: Path, folder: str, **settings: Any) -> Path:
    """A copy of the refiner with other settings in the configuration of one component."""
    copy = Path(shutil.copytree(refiner_folder(), place))
    path = next((copy / folder).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return copy


def test_a_run_without_its_other_network_ends_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="There is no folder"):
        trained_base(**{SECOND: str(tmp_path / "nowhere")}).load_network()
    bare = Path(shutil.copytree(refiner_folder(), tmp_path / "bare", ignore=shutil.ignore_patterns("unet")))
    with pytest.raises(ModelUnavailable, match="has no folder unet"):
        trained_base(**{SECOND: str(bare)}).load_network()
    with pytest.raises(InvalidOptions) as refused:
        trained_base(**{SECOND: str(changed_refiner(tmp_path / "short", "scheduler", num_train_timesteps=500))}).load_network()
    assert [(problem.option, problem.code) for problem in refused.value.problems] == [(SECOND, "other_schedule")]


def test_the_other_network_predicts_what_it_was_trained_for(tmp_path: Path) -> None:
    velocity = changed_refiner(tmp_path / "velocity", "scheduler", prediction_type="v_prediction")
    one, other = trained_base(), trained_base(**{SECOND: str(velocity)})
    pipelines = [family.make_pipeline(family.load_network(), sampler="ddim") for family in (one, other)]
    assert [(both.own.scheduler.config.prediction_type, both.other.scheduler.config.prediction_type) for both in pipelines] == [
        ("epsilon", "epsilon"),
        ("epsilon", "v_prediction"),
    ]

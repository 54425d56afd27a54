"""The refiner of Stable Diffusion XL, beside diffusers alone: one text encoder, five time ids, and the pipeline that changes an image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import options_with, tiny_model
from tests.helpers.one_file import REFINER, SDXL, write_one_file
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.sdxl.test_family import tiny_sdxl
from tests.trainer_engine.families.sdxl.test_numerics import PROMPTS, SAMPLES, TIMESTEPS, fixed_batch
from trainer_engine.config.components import BASE, CONFIG
from trainer_engine.config.families import specs
from trainer_engine.config.one_file.contents import file_problem, network_problem
from trainer_engine.config.parse import check_options
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.sdxl.family import StableDiffusionXL
from trainer_engine.objectives.build import make_objective

FLAVOUR = "refiner-1.0"
SCORE = 5.5
TIME_IDS = [[480.0, 640.0, 8.0, 16.0, SCORE], [300.0, 100.0, 40.0, 0.0, SCORE]]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def refiner_folder() -> Path:
    return tiny_model("sdxl", refiner=True)


def tiny_refiner(**values: Any) -> StableDiffusionXL:
    return tiny_sdxl(**{"model": refiner_folder(), "model_flavour": FLAVOUR, "data_aesthetic_score": SCORE, **values})


def their_pipeline(folder: Path, **parts: Any) -> StableDiffusionXLImg2ImgPipeline:
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, add_watermarker=False, **parts)
    pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def refined_grey(pipeline: StableDiffusionXLImg2ImgPipeline) -> np.ndarray[Any, Any]:
    """What a refiner makes of grey latents on which nothing but noise is left."""
    made = pipeline(
        "a red circle",
        negative_prompt="blue",
        image=torch.zeros(1, 4, 8, 12),
        strength=1.0,
        num_inference_steps=4,
        guidance_scale=5.0,
        aesthetic_score=SCORE,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    return np.asarray(made, dtype=int)


def our_image(family: StableDiffusionXL, network: Any) -> np.ndarray[Any, Any]:
    (prompt,), (negative,) = (family.encode_prompts([text]) for text in ("a red circle", "blue"))
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=4, guidance=5.0, seed=3)
    return np.asarray(family.generate(family.make_pipeline(network.eval()), request), dtype=int)


def test_the_last_time_id_is_the_aesthetic_score() -> None:
    assert tiny_refiner().conditions(SAMPLES)["time_ids"].tolist() == TIME_IDS


@pytest.mark.parametrize("skip", [0, 1])
def test_prompts_equal_those_of_the_pipeline(skip: int) -> None:
    pipeline, skipped = their_pipeline(refiner_folder()), skip or None
    with torch.no_grad():
        wanted = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False, clip_skip=skipped)
    for ours, embed, pooled in zip(tiny_refiner(clip_skip=skip).encode_prompts(PROMPTS), wanted[0], wanted[2], strict=True):
        assert torch.allclose(ours["embeds"], embed, atol=1e-5) and torch.allclose(ours["pooled"], pooled, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_and_every_gradient_equal_those_of_diffusers(prediction_type: str) -> None:
    family = tiny_refiner(prediction_type=prediction_type)
    network, (latents, noise) = family.load_network(), fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts, conditions=family.conditions(SAMPLES))
    loss = objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()

    pipeline = their_pipeline(refiner_folder())
    theirs = pipeline.unet.train()
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction_type)
    added = {"text_embeds": pooled, "time_ids": torch.tensor(TIME_IDS)}
    output = theirs(scheduler.add_noise(latents, noise, TIMESTEPS), TIMESTEPS, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
    wanted = mse_loss(output, noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS))

    assert_same_gradients(loss, network, wanted, theirs)


def test_a_validation_image_equals_that_of_the_pipeline_from_noise() -> None:
    family = tiny_refiner()
    image = our_image(family, family.load_network())
    assert image.shape == (64, 96, 3)
    assert np.array_equal(image, refined_grey(their_pipeline(refiner_folder())))
    other = tiny_refiner(data_aesthetic_score=0.0)
    assert np.abs(our_image(other, other.load_network()) - image).max() > 0


def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one_and_loads(tmp_path: Path) -> None:
    usual = {"model_family": "sdxl", "model": str(refiner_folder()), "model_flavour": FLAVOUR, "max_train_steps": 4}
    straight = assert_resumes_exactly(tmp_path, **usual)
    folder = straight.output_dir / "pipeline"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLImg2ImgPipeline" and index["requires_aesthetics_score"] is True
    assert not (folder / "text_encoder").exists() and not (folder / "tokenizer").exists()
    assert refined_grey(their_pipeline(folder)).shape == (64, 96, 3)


def test_an_adapter_of_a_run_changes_the_pipeline_of_diffusers(tmp_path: Path) -> None:
    usual = {"model_family": "sdxl", "model": str(refiner_folder()), "model_flavour": FLAVOUR, "learning_rate": 0.1}
    run = train_here(tmp_path, **usual, model_type="lora", lora_rank=2, max_train_steps=3)
    pipeline = their_pipeline(refiner_folder())
    before = refined_grey(pipeline)
    pipeline.load_lora_weights(list_checkpoints(run.output_dir)[0].path, weight_name="pytorch_lora_weights.safetensors")
    assert np.abs(refined_grey(pipeline) - before).max() > 0


def test_a_refiner_in_one_file_is_the_refiner(tmp_path: Path) -> None:
    bare = Path(shutil.copytree(refiner_folder(), tmp_path / "configuration", ignore=shutil.ignore_patterns("*.safetensors")))
    path = write_one_file(refiner_folder(), tmp_path / "refiner.safetensors", REFINER)
    one, other = tiny_refiner(model=path, **{CONFIG: str(bare)}), tiny_refiner()
    ours, theirs = one.load_network().state_dict(), other.load_network().state_dict()
    assert all(ours[name].equal(weight) for name, weight in theirs.items())
    for mine, their in zip(one.encode_prompts(PROMPTS), other.encode_prompts(PROMPTS), strict=True):
        assert mine["embeds"].equal(their["embeds"]) and mine["pooled"].equal(their["pooled"])


def test_the_file_of_the_other_flavour_is_named(tmp_path: Path) -> None:
    spec = specs()["sdxl"]
    refiner = write_one_file(refiner_folder(), tmp_path / "refiner.safetensors", REFINER)
    base = write_one_file(tiny_model("sdxl"), tmp_path / "base.safetensors", SDXL)
    assert file_problem(BASE, refiner, spec, FLAVOUR) is None and file_problem(BASE, base, spec, None) is None
    one, other = file_problem(BASE, refiner, spec, None), file_problem(BASE, base, spec, FLAVOUR)
    assert one is not None and other is not None
    assert one.message == "refiner.safetensors is a Stable Diffusion XL refiner checkpoint; this run trains Stable Diffusion XL."
    assert other.message == "base.safetensors is a Stable Diffusion XL checkpoint; this run trains Stable Diffusion XL refiner."
    assert one.hint == f"set model_flavour={FLAVOUR}" and other.hint == "leave model_flavour out"


@pytest.mark.parametrize(("width", "flavour", "title"), [(1280, None, "Stable Diffusion XL refiner"), (768, FLAVOUR, "Stable Diffusion 1")])
def test_the_network_of_another_model_in_a_folder_is_named(width: int, flavour: str | None, title: str) -> None:
    found = network_problem(BASE, "/models/x", {ATTENTION: (64, width)}, specs()["sdxl"], flavour)
    assert found is not None and f"/models/x holds the network of {title}; this run trains" in found.message
    assert network_problem(BASE, "/models/x", {ATTENTION: (64, 1280)}, specs()["sdxl"], FLAVOUR) is None


def test_the_engine_refuses_the_network_of_another_model_in_a_folder(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("sdxl"), tmp_path / "model"))
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, ATTENTION: torch.zeros(64, 768)}, weights)
    with pytest.raises(ModelUnavailable, match="holds the network of Stable Diffusion 1; this run trains Stable Diffusion XL"):
        tiny_sdxl(model=folder).load_network()


def notes(**values: Any) -> dict[str, str]:
    given = {**options_with(model_family="sdxl").as_values(), **values}
    return {problem.option: problem.code for problem in check_options(given)[1]}


def test_the_score_is_noted_where_it_does_nothing_and_bounded() -> None:
    assert notes(data_aesthetic_score=5.0)["data_aesthetic_score"] == "no_effect"
    assert "data_aesthetic_score" not in notes(data_aesthetic_score=5.0, model_flavour=FLAVOUR)
    assert notes(data_aesthetic_score=11, model_flavour=FLAVOUR)["data_aesthetic_score"] == "out_of_range"


def test_validate_notes_what_the_images_of_a_refiner_show() -> None:
    with_images = {"model_flavour": FLAVOUR, "validation_prompt": "a cat", "validation_disable": False}
    assert notes(**with_images)["validation_disable"] == "begins_with_noise"
    assert "validation_disable" not in notes(**{**with_images, "validation_prompt": ""})
    assert "validation_disable" not in notes(**{**with_images, "validation_disable": True})


def test_validate_refuses_to_train_the_text_encoder_of_a_refiner() -> None:
    assert notes(model_flavour=FLAVOUR, train_text_encoder=True)["train_text_encoder"] == "not_for_flavour"
    assert "train_text_encoder" not in notes(train_text_encoder=True)

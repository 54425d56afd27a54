"""Kolors beside diffusers: prompts, losses, gradients, images and the result of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, KolorsPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.checked_runs import checked
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.kolors.components import SAMPLERS
from trainer_engine.families.kolors.family import Kolors
from trainer_engine.families.kolors.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, 三个月亮 </s> <|user|> and a very bright sun behind the mountain"]
TIMESTEPS = torch.tensor([3, 821, 1099])
"""The last one is that of the schedule, beyond those of other models."""
SAMPLES = [
    SampleFacts(original_size=(640, 480), crop_corner=(16, 8), target_size=(128, 64)),
    SampleFacts(original_size=(100, 300), crop_corner=(0, 40), target_size=(128, 64)),
    SampleFacts(original_size=(128, 64), crop_corner=(0, 0), target_size=(128, 64)),
]
TIME_IDS = [[480.0, 640.0, 8.0, 16.0, 64.0, 128.0], [300.0, 100.0, 40.0, 0.0, 64.0, 128.0], [64.0, 128.0, 0.0, 0.0, 64.0, 128.0]]


def tiny_kolors(**values: Any) -> Kolors:
    """The micro model on the CPU."""
    return tiny_of(Kolors, tiny_model("kolors"), **values)


def their_pipeline(**parts: Any) -> KolorsPipeline:
    pipeline = KolorsPipeline.from_pretrained(tiny_model("kolors"), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_prompts(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (B, 256, D) and pooled prompts (B, D)."""
    with torch.no_grad():
        embeds, _, pooled, _ = their_pipeline().encode_prompt(prompts, do_classifier_free_guidance=False)
    return embeds, pooled


# ---- prompts ----


def test_prompts_equal_those_of_the_pipeline_with_their_padding() -> None:
    embeds, pooled = their_prompts(PROMPTS)
    for ours, theirs, summary in zip(tiny_kolors().encode_prompts(PROMPTS), embeds, pooled, strict=True):
        assert torch.equal(ours["embeds"], theirs) and torch.equal(ours["pooled"], summary)
    assert embeds.shape == (3, SPEC.prompts.token_limit, 32) and pooled.shape == (3, 32)


def test_a_prompt_alone_is_read_as_beside_others() -> None:
    family = tiny_kolors()
    together = family.encode_prompts(PROMPTS)
    for prompt, beside in zip(PROMPTS, together, strict=True):
        (alone,) = family.encode_prompts([prompt])
        assert all(torch.allclose(alone[name], beside[name], atol=1e-5) for name in ("embeds", "pooled"))


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_kolors().encode_prompts(["star circle " * 300])
    embeds, pooled = their_prompts(["star circle " * 300])
    assert torch.equal(ours["embeds"], embeds[0]) and torch.equal(ours["pooled"], pooled[0])


def test_the_negative_prompt_and_the_empty_one_are_read_as_every_other() -> None:
    family = tiny_kolors()
    for text, given in (("blue", "blue"), ("", None)):
        with torch.no_grad():
            _, negative, _, pooled = their_pipeline().encode_prompt("a red circle", negative_prompt=given)
        (ours,) = family.encode_prompts([family.negative_text(text)])
        assert torch.equal(ours["embeds"], negative[0]) and torch.equal(ours["pooled"], pooled[0])


def test_states_of_padding_follow_from_the_prompt() -> None:
    first, second, _ = tiny_kolors().encode_prompts(PROMPTS)
    assert not torch.allclose(first["embeds"][0], second["embeds"][0], atol=1e-3), "so that they are stored with each prompt"


@pytest.mark.parametrize("values", [{"ramtorch_text_encoder": True}, {"text_encoder_1_precision": "int8-quanto"}], ids=["host", "int8"])
def test_a_text_encoder_on_the_host_or_in_8_bits_reads_the_same(values: dict[str, Any]) -> None:
    exact, found = tiny_kolors().encode_prompts(PROMPTS), tiny_kolors(**values).encode_prompts(PROMPTS)
    for one, other in zip(exact, found, strict=True):
        for name in ("embeds", "pooled"):
            error = (one[name] - other[name]).norm() / one[name].norm()
            assert 0 < error < 0.05 if "text_encoder_1_precision" in values else error == 0, name


def test_code_that_the_published_files_name_is_not_asked_for(tmp_path: Path) -> None:
    folder = tiny_model("kolors")
    assert "auto_map" in json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert "auto_map" in json.loads((folder / "text_encoder" / "config.json").read_text())
    usual = {"model_family": "kolors", "model_type": "lora", "pretrained_model_name_or_path": str(folder)}
    assert checked(tmp_path, **usual).errors == []


# ---- the network ----


def our_loss(family: Kolors, network: Any, latents: Tensor, noise: Tensor) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts, conditions=family.conditions(SAMPLES))
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_loss(network: UNet2DConditionModel, latents: Tensor, noise: Tensor, prediction_type: str = "epsilon") -> Tensor:
    """Of ``PROMPTS`` at ``TIMESTEPS``, by diffusers alone."""
    config = EulerDiscreteScheduler.load_config(tiny_model("kolors"), subfolder="scheduler")
    scheduler = DDPMScheduler.from_config(config, prediction_type=prediction_type)
    embeds, pooled = their_prompts(PROMPTS)
    added = {"text_embeds": pooled, "time_ids": torch.tensor(TIME_IDS)}
    noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
    output = network(noisy, TIMESTEPS, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
    return mse_loss(output, noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS))


def their_network() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(tiny_model("kolors"), subfolder="unet").train()


def batch() -> tuple[Tensor, Tensor]:
    return fixed(3, 4, 8, 16, seed=1), fixed(3, 4, 8, 16, seed=2)


def test_time_ids_are_those_of_stable_diffusion_xl() -> None:
    assert tiny_kolors().conditions(SAMPLES)["time_ids"].tolist() == TIME_IDS


@pytest.mark.parametrize(("prediction_type", "gradient_checkpointing"), [("epsilon", False), ("epsilon", True), ("v_prediction", False)])
def test_loss_and_every_gradient_equal_those_of_diffusers(prediction_type: str, gradient_checkpointing: bool) -> None:
    family = tiny_kolors(prediction_type=prediction_type, gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), their_network()
    assert_same_gradients(our_loss(family, network, *batch()), network, their_loss(theirs, *batch(), prediction_type), theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


def test_timesteps_are_sampled_and_evaluated_on_the_whole_schedule() -> None:
    family = tiny_kolors()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2000)]
    sampled = objective.sample_timesteps(generators, 1)
    assert int(sampled.max()) > 1050
    assert objective.spread_timesteps(11).tolist() == [50 + 100 * place for place in range(11)]


# ---- images and the result ----


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("sampler", [None, "euler"])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_kolors()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=4, guidance=guidance, seed=3)
    ours = family.generate(pipeline, request, on_step=steps.append)
    wanted = image_of(laid_out_alike(their_pipeline()), guidance)
    assert isinstance(ours, Image.Image) and ours.size == (96, 64)
    assert [step.number for step in steps] == [1, 2, 3, 4]
    assert ours.tobytes() == wanted.tobytes()


def image_of(pipeline: KolorsPipeline, guidance: float, steps: int = 4) -> Image.Image:
    given: Mapping[str, Any] = {"negative_prompt": "blue", "width": 96, "height": 64}
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": torch.Generator().manual_seed(3)}
    image: Image.Image = pipeline("a red circle", **given, **settings).images[0]
    return image


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "euler"])
def test_every_sampler_has_the_schedule_of_the_base_model(sampler: str) -> None:
    family = tiny_kolors()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline = family.make_pipeline(family.load_network().eval(), sampler=sampler)
    own = EulerDiscreteScheduler.load_config(tiny_model("kolors"), subfolder="scheduler")
    shared = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "timestep_spacing", "steps_offset")
    assert {name: pipeline.scheduler.config[name] for name in shared} == {name: own[name] for name in shared}
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=3, guidance=5.0, seed=3)
    theirs = laid_out_alike(their_pipeline(scheduler=type(pipeline.scheduler).from_config(pipeline.scheduler.config)))
    assert family.generate(pipeline, request).tobytes() == image_of(theirs, 5.0, 3).tobytes()


@pytest.mark.parametrize("model_type", first_fast(["full", "lora"]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "kolors", "model": str(tiny_model("kolors")), "max_train_steps": 4, "model_type": model_type}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        result = KolorsPipeline.from_pretrained(straight.output_dir / "pipeline")
        assert result("a cat", width=64, height=64, num_inference_steps=2).images[0].size == (64, 64)

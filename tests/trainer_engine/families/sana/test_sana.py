"""Sana beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.checked_runs import checked
from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.sana.family import Sana
from trainer_engine.families.sana.prompts import published_instruction
from trainer_engine.families.sana.spec import SPEC
from trainer_engine.objectives.build import make_objective

PROMPTS = ["A red circle ", "Two small stars, three moons and a very bright sun behind the mountain"]
LONG = "a bird over the sea " * 80
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_sana(**values: Any) -> Sana:
    """The micro model on the CPU."""
    return tiny_of(Sana, tiny_model("sana"), **values)


def their_prompts(prompts: list[str], *, instruction: str | None = None, negative: bool = False) -> tuple[Tensor, Tensor]:
    """(states, mask) of the pipeline, padded to the limit, behind its own instruction or another one."""
    pipeline = SanaPipeline.from_pretrained(tiny_model("sana"))
    read = {"complex_human_instruction": [instruction or published_instruction()], "do_classifier_free_guidance": negative}
    with torch.no_grad():
        found = pipeline.encode_prompt(list(prompts), negative_prompt=list(prompts) if negative else "", **read)
    return (found[2], found[3]) if negative else (found[0], found[1])


def assert_same_prompts(family: Sana, texts: list[str], states: Tensor, mask: Tensor) -> None:
    """The stored states of ``texts`` are those of the real tokens, and a batch is masked alike."""
    found = family.encode_prompts(texts)
    assert [len(one["embeds"]) for one in found] == mask.sum(dim=1).tolist()
    for one, other, real in zip(found, states, mask.bool(), strict=True):
        assert torch.equal(one["embeds"], other[real])
    assert torch.equal(family.collate_prompts(found)["mask"], mask)


def test_prompts_equal_those_of_the_pipeline_behind_the_instruction() -> None:
    assert_same_prompts(tiny_sana(), [*PROMPTS, LONG], *their_prompts([*PROMPTS, LONG]))


def test_another_instruction_is_read_before_prompts_and_changes_their_addresses() -> None:
    instruction = "Paint this: "
    family = tiny_sana(sana_complex_human_instruction=instruction)
    assert_same_prompts(family, PROMPTS, *their_prompts(PROMPTS, instruction=instruction))
    assert not torch.equal(family.encode_prompts(PROMPTS)[0]["embeds"], tiny_sana().encode_prompts(PROMPTS)[0]["embeds"])


def test_negative_prompts_and_the_empty_one_are_read_without_the_instruction() -> None:
    family, texts = tiny_sana(), [*PROMPTS, LONG, ""]
    assert_same_prompts(family, [family.negative_text(text) for text in texts], *their_prompts(texts, negative=True))
    assert family.negative_text("") == "", "the prompt of caption dropout is that of an image without a negative prompt"
    both = family.encode_prompts([PROMPTS[0], family.negative_text(PROMPTS[0]), PROMPTS[1]])
    assert not torch.equal(both[0]["embeds"], both[1]["embeds"])
    assert torch.equal(both[2]["embeds"], family.encode_prompts(PROMPTS)[1]["embeds"])


def test_latents_are_scaled() -> None:
    vae = AutoencoderDC.from_pretrained(tiny_model("sana"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent * vae.config.scaling_factor
        shown = vae.decode(wanted / vae.config.scaling_factor).sample
    family = tiny_sana()
    latents = family.encode_images(pixels)
    assert latents.shape == (2, 32, 2, 3)
    assert torch.allclose(latents, wanted, atol=1e-5)
    assert torch.allclose(family.autoencoder.decode(latents), shown, atol=1e-5)
    assert family.preview(latents[:1]).size == (96, 64)


def loss_of(family: Sana, network: nn.Module) -> Tensor:
    latents, noise = fixed(3, 32, 4, 5, seed=1), fixed(3, 32, 4, 5, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts([*PROMPTS, ""]))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


def their_loss(network: nn.Module) -> Tensor:
    """Written with diffusers alone. The small network has a ``timestep_scale`` of 0.5."""
    latents, noise, sigma = fixed(3, 32, 4, 5, seed=1), fixed(3, 32, 4, 5, seed=2), SIGMAS.view(-1, 1, 1, 1)
    (prompts, mask), (empty, of_empty) = their_prompts(PROMPTS), their_prompts([""], negative=True)
    given = {"encoder_hidden_states": torch.cat([prompts, empty]), "encoder_attention_mask": torch.cat([mask, of_empty])}
    output = network((1 - sigma) * latents + sigma * noise, timestep=500 * SIGMAS, return_dict=False, **given)[0]
    return mse_loss(output, noise - latents)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_sana(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs = SanaTransformer2DModel.from_pretrained(tiny_model("sana"), subfolder="transformer").train()
    assert_same_gradients(loss_of(family, network), network, their_loss(theirs), theirs)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.5), (None, 1.0), ("euler", 4.5), ("unipc", 4.5), ("dpm++", 4.5)])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_sana()
    network = family.load_network().eval()
    prompt, negative = family.encode_prompts(["A red circle", family.negative_text("Blue")])
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(SanaPipeline.from_pretrained(tiny_model("sana"), scheduler=pipeline.scheduler))
    given = {"negative_prompt": "Blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    given |= {"use_resolution_binning": False}
    latents = theirs("A red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).images
    wanted = theirs("A red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(steps[-1].latents, latents)
    assert ours.tobytes() == wanted.tobytes()


def test_every_sampler_has_the_shift_of_the_base_model() -> None:
    parts = tiny_sana().parts
    own, euler, unipc, solver = (parts.make_scheduler(sampler).config for sampler in (None, "euler", "unipc", "dpm++"))
    assert (own.flow_shift, euler.shift, unipc.flow_shift, solver.flow_shift) == (3.0, 3.0, 3.0, 3.0)
    assert all(one.use_flow_sigmas and one.prediction_type == "flow_prediction" for one in (own, unipc, solver))


def test_sana_sprint_is_refused_by_validate_and_by_the_engine(tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model("sana"), tmp_path / "sprint"))
    config = model / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "guidance_embeds": True}))
    report = checked(tmp_path, model_family="sana", pretrained_model_name_or_path=str(model), model_type="full")
    assert [(problem.option, problem.code) for problem in report.errors] == [("pretrained_model_name_or_path", "other_model")]
    assert "Sana Sprint" in report.errors[0].message
    with pytest.raises(ModelUnavailable, match="Sana Sprint"):
        tiny_of(Sana, model).load_network()


def test_a_long_instruction_is_refused_and_float16_of_the_autoencoder_is_warned_of(tmp_path: Path) -> None:
    usual = {"model_family": "sana", "pretrained_model_name_or_path": str(tiny_model("sana")), "model_type": "full"}
    long = checked(tmp_path, sana_complex_human_instruction="word " * 1000, **usual)
    assert [(problem.option, problem.code) for problem in long.errors] == [("sana_complex_human_instruction", "too_long")]
    short = checked(tmp_path, vae_dtype="fp16", **usual)
    assert short.errors == [] and ("vae_dtype", "poor_precision") in {(one.option, one.code) for one in short.warnings}
    assert SPEC.defaults_of(None)["vae_dtype"] == "fp32"


def test_the_autoencoder_of_another_family_is_refused(tmp_path: Path) -> None:
    family = tiny_sana(pretrained_vae_model_name_or_path=str(tiny_model("pixart_sigma")))
    with pytest.raises(ModelUnavailable):
        family.encode_images(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "sana", "model": str(tiny_model("sana")), "max_train_steps": 4, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, model_type=model_type, **usual)
    if model_type == "full":
        pipeline = SanaPipeline.from_pretrained(straight.output_dir / "pipeline")
        given = {"height": 64, "width": 64, "num_inference_steps": 2, "use_resolution_binning": False}
        assert pipeline("a cat", **given).images[0].size == (64, 64)

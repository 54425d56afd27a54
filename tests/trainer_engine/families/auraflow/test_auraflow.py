"""AuraFlow beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL
from diffusers.models.attention_processor import AuraFlowAttnProcessor2_0
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.families.auraflow.attention import DispatchedAttention
from trainer_engine.families.auraflow.family import AuraFlow
from trainer_engine.families.auraflow.spec import SPEC
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
LATENTS, NOISE = fixed(3, 4, 8, 10, seed=1), fixed(3, 4, 8, 10, seed=2)


def tiny_auraflow(**values: Any) -> AuraFlow:
    """The micro model on the CPU."""
    return tiny_of(AuraFlow, tiny_model("auraflow"), **values)


def their_pipeline(**parts: Any) -> AuraFlowPipeline:
    pipeline = AuraFlowPipeline.from_pretrained(tiny_model("auraflow"), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def their_prompts(*prompts: str, limit: int = 256) -> tuple[Tensor, Tensor]:
    """Embeddings (B, ``limit``, D) and masks (B, ``limit`` x D)."""
    with torch.no_grad():
        embeds, mask, *_ = their_pipeline().encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=limit)
    return embeds, mask


def their_network() -> AuraFlowTransformer2DModel:
    return AuraFlowTransformer2DModel.from_pretrained(tiny_model("auraflow"), subfolder="transformer").train()


# ---- prompts and latents ----


def test_prompts_equal_those_of_the_pipeline_with_zeros_for_their_padding() -> None:
    family = tiny_auraflow()
    ours, (embeds, mask) = family.encode_prompts(PROMPTS), their_prompts(*PROMPTS)
    assert torch.equal(family.collate_prompts(ours)["embeds"], embeds)
    assert [one["embeds"].numel() for one in ours] == mask.sum(dim=1).tolist()
    assert len(ours[0]["embeds"]) > len(ours[1]["embeds"]) == 1, "nothing but the mark of the end"
    assert not embeds[0, len(ours[0]["embeds"]) :].any()


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does() -> None:
    (ours,) = tiny_auraflow().encode_prompts(["a " * 2000])
    assert len(ours["embeds"]) == SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], their_prompts("a " * 2000)[0][0])


@pytest.mark.parametrize(("values", "limit"), [({"model_flavour": "pony"}, 768), ({"tokenizer_max_length": 40}, 40)])
def test_prompts_of_another_length_are_those_that_the_pipeline_is_asked_for(values: dict[str, Any], limit: int) -> None:
    family = tiny_auraflow(**values)
    assert torch.equal(family.collate_prompts(family.encode_prompts(PROMPTS))["embeds"], their_prompts(*PROMPTS, limit=limit)[0])


def test_latents_are_scaled() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("auraflow"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    latents = tiny_auraflow().encode_images(pixels)
    assert latents.shape == (2, 4, 8, 12)
    assert torch.allclose(latents, wanted, atol=1e-5)


# ---- losses and gradients ----


def their_loss(network: AuraFlowTransformer2DModel) -> Tensor:
    """Of ``PROMPTS`` at ``SIGMAS``, by diffusers alone."""
    sigma = SIGMAS.view(-1, 1, 1, 1)
    output = network(
        (1 - sigma) * LATENTS + sigma * NOISE,
        encoder_hidden_states=their_prompts(*PROMPTS)[0],
        timestep=SIGMAS * 1000 / 1000,
        return_dict=False,
    )[0]
    return mse_loss(output, NOISE - LATENTS)


def our_loss(family: AuraFlow, network: Any) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(LATENTS, NOISE, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    family = tiny_auraflow(gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), their_network()
    assert_same_gradients(our_loss(family, network), network, their_loss(theirs), theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_attention_is_that_of_diffusers_bit_for_bit() -> None:
    family = tiny_auraflow()
    network: Any = family.load_network().eval()
    ours = our_loss(family, network)
    for module in network.modules():
        if hasattr(module, "set_processor"):
            assert type(module.processor) is DispatchedAttention
            module.set_processor(AuraFlowAttnProcessor2_0())
    assert torch.equal(ours, our_loss(family, network))


@torch.no_grad()
def test_the_network_sees_how_much_padding_there_is_and_not_where() -> None:
    """So it has to get as much as the pipeline gives it, and a tokenizer may pad on either side."""
    network, (embeds, _) = their_network().eval(), their_prompts("a red circle")

    def prediction(states: Tensor) -> Tensor:
        output: Tensor = network(LATENTS[:1], states, SIGMAS[:1], return_dict=False)[0]
        return output

    wanted, real = prediction(embeds), int(embeds[0].any(dim=1).sum())
    assert torch.allclose(prediction(torch.cat([embeds[:, real:], embeds[:, :real]], dim=1)), wanted, atol=1e-5)
    assert not torch.allclose(prediction(embeds[:, :real]), wanted, atol=1e-2)


# ---- images ----


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 3.5), (None, 1.0), ("euler", 3.5), ("unipc", 3.5), ("dpm++", 3.5)])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_auraflow()
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(family.load_network().eval(), sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs = laid_out_alike(their_pipeline(scheduler=pipeline.scheduler))
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    latents = theirs("a red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).images
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(steps[-1].latents, latents)
    assert ours.tobytes() == wanted.tobytes()


def test_the_sampler_has_the_shift_of_the_base_model() -> None:
    family = tiny_auraflow()
    network = family.load_network()
    for sampler, key in ((None, "shift"), ("euler", "shift"), ("unipc", "flow_shift"), ("dpm++", "flow_shift")):
        assert family.make_pipeline(network, sampler=sampler).scheduler.config[key] == 1.73 == SPEC.defaults["flow_schedule_shift"]


# ---- runs ----


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "auraflow", "model": str(tiny_model("auraflow")), "max_train_steps": 4}
    straight = assert_resumes_exactly(tmp_path, **usual, model_type=model_type, train_batch_size=2)
    if model_type == "full":
        pipeline = AuraFlowPipeline.from_pretrained(straight.output_dir / "pipeline")
        assert isinstance(pipeline.transformer, AuraFlowTransformer2DModel)
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)

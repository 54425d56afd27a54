"""The loss and every gradient, beside a reference that uses diffusers alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional
from diffusers import DDPMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor, nn

from tests.helpers.models import tiny_family, tiny_pixart
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding, StepInputs
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.build import make_objective

PROMPTS = ["A red circle on blue glass ", "", "two small stars, three moons and a very bright sun behind the mountain"]
TIMESTEPS = torch.tensor([3, 421, 987])


def fixed_batch(height: int = 8, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    return tuple(torch.randn(3, 4, height, width, generator=generator) for _ in range(2))


def our_loss(family: Family, network: nn.Module, objective: Objective, prompts: list[PromptEmbedding]) -> Tensor:
    latents, noise = fixed_batch()
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=family.collate_prompts(prompts))
    prediction = family.predict(network, inputs)
    return objective.loss(prediction, objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def reference(prediction_type: str, dtype: torch.dtype) -> tuple[Tensor, PixArtTransformer2DModel]:
    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    embeds, mask, _, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    scheduler = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    network, (latents, noise) = pipeline.transformer.to(dtype).train(), fixed_batch()
    output = network(
        scheduler.add_noise(latents, noise, TIMESTEPS).to(dtype),
        encoder_hidden_states=embeds.to(dtype),
        encoder_attention_mask=mask,
        timestep=TIMESTEPS,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS)
    loss = functional.mse_loss(output[:, :4], target.to(dtype))
    loss.backward()
    return loss, network


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers_alone(prediction_type: str, gradient_checkpointing: bool) -> None:
    family = tiny_family(prediction_type=prediction_type, gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    loss = our_loss(family, network, objective, family.encode_prompts(PROMPTS))
    loss.backward()
    wanted, their_network = reference(prediction_type, torch.float32)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in their_network.named_parameters()}
    assert len(gradients) == len(list(network.named_parameters())) > 40
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6), name


def test_loss_and_gradients_are_near_those_computed_in_float64() -> None:
    family = tiny_family()
    network = family.load_network()
    objective = make_objective("epsilon", family.scheduler_config(), family.options.objective)
    loss = our_loss(family, network, objective, family.encode_prompts(PROMPTS))
    loss.backward()
    wanted, their_network = reference("epsilon", torch.float64)
    ours = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]).double()
    theirs = torch.cat([parameter.grad.flatten() for parameter in their_network.parameters() if parameter.grad is not None])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@torch.no_grad()
def test_embeddings_equal_those_of_the_pipeline() -> None:
    pipeline = PixArtSigmaPipeline.from_pretrained(tiny_pixart())
    embeds, mask, _, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    for ours, theirs, kept in zip(tiny_family().encode_prompts(PROMPTS), embeds, mask, strict=True):
        # Not bit for bit: weights that two libraries loaded lie in memory in two ways, and kernels round by that.
        assert torch.allclose(ours["embeds"], theirs[: int(kept.sum())], atol=1e-5)


def test_padding_changes_nothing() -> None:
    family, compiled = tiny_family(), tiny_family(dynamo_backend="inductor")
    prompts = family.encode_prompts(PROMPTS)
    short, full = family.collate_prompts(prompts), compiled.collate_prompts(prompts)
    assert short["embeds"].shape[1] == 32
    assert full["embeds"].shape[1] == 300
    network, (latents, _) = family.load_network(), fixed_batch()
    with torch.no_grad():
        predictions = [
            family.predict(network, StepInputs(noisy_latents=latents, timesteps=TIMESTEPS, prompts=batch)) for batch in (short, full)
        ]
    assert torch.allclose(*predictions, atol=1e-6)


def test_the_loss_falls_on_a_repeated_batch() -> None:
    family = tiny_family()
    network, prompts = family.load_network(), family.encode_prompts(PROMPTS)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = our_loss(family, network, objective, prompts)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]

"""Loss and gradients equal those of diffusers alone on the same batch, noise and timesteps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import fixed, laid_out_alike, tiny_model
from tests.trainer_engine.families.flux.models import tiny_flux
from trainer_engine.adapters.build import make_trainable
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

SIGMAS = torch.tensor([0.25, 0.9])


LATENTS, NOISE = fixed(2, 16, 8, 12, seed=1), fixed(2, 16, 8, 12, seed=2)
REFERENCES = (fixed(2, 16, 8, 12, seed=3), fixed(2, 16, 12, 8, seed=4))
PROMPTS = [
    {"embeds": fixed(512, 32, seed=5 + number), "pooled": fixed(32, seed=7 + number), "mask": (torch.arange(512) < 20 + number).long()}
    for number in range(2)
]


def our_loss(family: Flux, network: nn.Module, references: tuple[Tensor, ...] = ()) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(LATENTS, NOISE, SIGMAS)
    prompts = family.collate_prompts(PROMPTS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts, references=references))
    return objective.loss(prediction, objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()


def their_packed(latents: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


def their_loss(network: FluxTransformer2DModel, references: tuple[Tensor, ...] = (), **kwargs: Any) -> Tensor:
    noisy = SIGMAS.view(-1, 1, 1, 1) * NOISE + (1 - SIGMAS.view(-1, 1, 1, 1)) * LATENTS
    images = (noisy, *references)
    ids = [FluxPipeline._prepare_latent_image_ids(2, one.shape[2] // 2, one.shape[3] // 2, "cpu", torch.float32) for one in images]
    for number, one in enumerate(ids):
        one[..., 0] = number
    output = network(
        hidden_states=torch.cat([their_packed(image) for image in images], dim=1),
        timestep=SIGMAS,
        guidance=torch.full((2,), 1.0) if network.config.guidance_embeds else None,
        pooled_projections=torch.stack([prompt["pooled"] for prompt in PROMPTS]),
        encoder_hidden_states=torch.stack([prompt["embeds"] for prompt in PROMPTS]),
        txt_ids=torch.zeros(512, 3),
        img_ids=torch.cat(ids),
        return_dict=False,
        **kwargs,
    )[0]
    tokens = their_packed(noisy).shape[1]
    return mse_loss(output[:, :tokens], their_packed(NOISE - LATENTS))


def their_network(flavour: str) -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(tiny_model("flux", flavour=flavour), subfolder="transformer").train()


def assert_same(ours: Tensor, mine: list[nn.Parameter], theirs: Tensor, others: list[nn.Parameter]) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert len(mine) == len(others) > 0
    for one, other in zip(mine, others, strict=True):
        if other.grad is None:
            assert one.grad is None
        else:
            assert one.grad is not None
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("flavour", "references"), [("dev", ()), ("schnell", ()), ("kontext", REFERENCES[:1]), ("kontext", REFERENCES)])
def test_loss_and_every_gradient_equal_those_of_diffusers(flavour: str, references: tuple[Tensor, ...]) -> None:
    family = tiny_flux(flavour)
    ours, theirs = family.load_network(), their_network(flavour)
    assert_same(our_loss(family, ours, references), list(ours.parameters()), their_loss(theirs, references), list(theirs.parameters()))


@pytest.mark.parametrize("flavour", ["dev", "kontext"])
def test_an_adapters_gradients_equal_those_of_peft(flavour: str) -> None:
    from peft import LoraConfig

    references = REFERENCES[:1] if flavour == "kontext" else ()
    family = tiny_flux(flavour, model_type="lora", lora_rank=4, lora_dropout=0)
    trainable, theirs = make_trainable(family, None), their_network(flavour).requires_grad_(False)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.adapter_targets("transformer"))))
    others = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(trainable.parameters, others, strict=True)):
            one.copy_(fixed(*one.shape, seed=number))
            other.copy_(one)
    assert_same(our_loss(family, trainable.network, references), trainable.parameters, their_loss(theirs, references), others)


def test_masked_attention_sees_no_padding() -> None:
    family, ours, theirs = tiny_flux(flux_attention_masked_training=True), tiny_flux().load_network(), their_network("dev")
    prompts = torch.stack([prompt["mask"] for prompt in PROMPTS])
    seen = torch.cat([prompts.bool(), torch.ones(2, 24, dtype=torch.bool)], dim=1)[:, None, None]
    wanted = their_loss(theirs, joint_attention_kwargs={"attention_mask": seen})
    assert_same(our_loss(family, ours), list(ours.parameters()), wanted, list(theirs.parameters()))
    with torch.no_grad():
        assert not torch.isclose(our_loss(family, ours), our_loss(tiny_flux(), ours), rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for wanted in (False, True):
        family = tiny_flux(gradient_checkpointing=wanted)
        network = family.load_network()
        our_loss(family, network).backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_generating_with_one_reference_equals_the_pipeline_of_diffusers() -> None:
    from trainer_engine.families.generation import GenerationRequest

    family, network = tiny_flux("kontext"), tiny_flux("kontext").load_network().eval()
    reference, prompt = REFERENCES[0][:1], PROMPTS[0]
    drawing = GenerationRequest(
        prompt=prompt, negative=prompt, width=96, height=64, steps=3, guidance=2.5, seed=11, references=(reference[0],)
    )
    ours = family.generate(family.make_pipeline(network), drawing)
    theirs = laid_out_alike(FluxKontextPipeline.from_pretrained(tiny_model("flux", flavour="kontext")))
    wanted = theirs(
        image=reference,
        prompt_embeds=prompt["embeds"][None],
        pooled_prompt_embeds=prompt["pooled"][None],
        width=96,
        height=64,
        max_area=96 * 64,
        _auto_resize=False,
        num_inference_steps=3,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(11),
    ).images[0]
    assert isinstance(ours, Image.Image) and ours.tobytes() == wanted.tobytes()


def test_padding_that_is_left_out_changes_no_bit_of_a_masked_loss_or_its_gradients() -> None:
    """The output, too, of a prompt that is read with the states of its padding."""
    family = tiny_flux(flux_attention_masked_training=True)
    whole = tiny_flux().encode_prompts(["a red cat", ""])
    cut = family.encode_prompts(["a red cat", ""])
    found = []
    for prompts in (whole, cut):
        network = family.load_network()
        batch = family.collate_prompts(prompts)
        assert batch["embeds"].shape == (2, 512, 32)
        inputs = StepInputs(noisy_latents=LATENTS, timesteps=torch.tensor([0.3, 0.7]), prompts=batch)
        loss = mse_loss(family.predict(network, inputs), NOISE)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)])
    assert len(found[0]) > 20 and all(torch.equal(one, other) for one, other in zip(*found, strict=True))

"""FLUX.3 beside the blocks of diffusers: prompts in their windows, latents, losses, gradients, and the mistakes that change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux3Transformer2DModel
from torch import Tensor

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_of
from tests.trainer_engine.families.flux3.their_blocks import flow_loss, folder_of, image_latents, prompt_states, velocity
from trainer_engine.adapters.build import make_trainable
from trainer_engine.families.flux3.family import Flux3
from trainer_engine.families.flux3.spec import BASE, DISTILLED, SPEC
from trainer_engine.families.flux3.windows import WINDOW, in_windows, window_of
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

MIXED = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain " * 2]
ALIKE = ["a red circle", "", "blue"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


def tiny_flux3(flavour: str = BASE, **values: Any) -> Flux3:
    """The micro model of a flavour on the CPU."""
    return tiny_of(Flux3, folder_of(flavour), **{"model_flavour": flavour, **values})


@pytest.fixture(scope="module")
def encoder() -> Flux3:
    return tiny_flux3()


def templated(length: int) -> str:
    """A prompt that the chat template makes ``length`` tokens of; the tokens of the small tokenizer are bytes."""
    return "a" * (length - 19)


@pytest.mark.parametrize("length", [20, 79, 80, 81, 160, 200])
def test_a_prompt_in_its_window_is_what_the_pipeline_makes_of_it(encoder: Flux3, length: int) -> None:
    (ours,) = encoder.encode_prompts([templated(length)])
    theirs = prompt_states(templated(length))
    assert len(ours["embeds"]) == length + (length % WINDOW > 0), "one token of padding is stored for all of them"
    batch = encoder.collate_prompts([ours])
    assert set(batch) == {"embeds"} and theirs.shape[1] == window_of(length, 8192) == -(-length // 80) * 80
    assert torch.equal(batch["embeds"][:, : length + 1], theirs[:, : length + 1])
    assert torch.allclose(batch["embeds"], theirs, rtol=1e-6, atol=1e-6)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does(encoder: Flux3) -> None:
    encoder.text.token_limit = 90  # no multiple of the window, as 8,192 is none
    try:
        for length in (89, 90, 300):
            (ours,) = encoder.encode_prompts([templated(length)])
            batch = in_windows([ours["embeds"]], 90)["embeds"]
            assert batch.shape[1] == 90
            assert torch.allclose(batch, prompt_states(templated(length), limit=90), rtol=1e-6, atol=1e-6)
    finally:
        encoder.text.token_limit = SPEC.prompts.token_limit


def test_the_window_of_any_number_of_stored_tokens_is_that_of_the_prompt() -> None:
    for limit in (8192, 90):
        for length in range(1, limit + 1):
            window = min(-(-length // 80) * 80, limit)
            assert window_of(min(length + 1, window), limit) == window


def test_latents_are_shuffled_and_normalised_as_by_the_blocks(encoder: Flux3) -> None:
    vae = AutoencoderKLFlux2.from_pretrained(folder_of(BASE), subfolder="vae").eval()
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = encoder.encode_images(pixels)
    assert latents.shape == (2, 128, 4, 6)
    assert torch.allclose(latents, image_latents(vae, pixels), atol=1e-5)


def our_loss(family: Flux3, network: Any, latents: Tensor, noise: Tensor, texts: list[str], references: tuple[Tensor, ...]) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(texts))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts, references=references))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


def batch_of(references: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    beside = tuple(fixed(3, 128, 3 + number, 4, seed=7 + number) for number in range(references))
    return fixed(3, 128, 4, 5, seed=1), fixed(3, 128, 4, 5, seed=2), beside


@pytest.mark.parametrize("texts", [ALIKE, MIXED], ids=["equal windows", "different windows"])
@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("recomputes", [False, True])
def test_loss_and_every_gradient_equal_those_of_samples_that_diffusers_computes_alone(
    texts: list[str], references: int, recomputes: bool
) -> None:
    family = tiny_flux3(gradient_checkpointing=recomputes)
    network = family.load_network()
    theirs = Flux3Transformer2DModel.from_pretrained(folder_of(BASE), subfolder="transformer").train()
    latents, noise, beside = batch_of(references)
    loss = our_loss(family, network, latents, noise, texts, beside)
    wanted = flow_loss(theirs, latents, noise, SIGMAS, [prompt_states(text) for text in texts], beside)
    of_references = [one for name, one in network.named_parameters() if "image_cond" in name]
    assert of_references and family.may_skip
    assert_same_gradients(loss, network, wanted, theirs, [] if references else of_references)


def test_the_flow_map_of_distilled_weights_is_trained_as_the_velocity_at_its_noise_level() -> None:
    family = tiny_flux3(DISTILLED)
    network = family.load_network()
    theirs = Flux3Transformer2DModel.from_pretrained(folder_of(DISTILLED), subfolder="transformer").train()
    latents, noise, beside = batch_of(1)
    loss = our_loss(family, network, latents, noise, MIXED, beside)
    wanted = flow_loss(theirs, latents, noise, SIGMAS, [prompt_states(text) for text in MIXED], beside)
    assert_same_gradients(loss, network, wanted, theirs)


def test_the_gradients_of_an_adapter_equal_those_of_an_adapter_of_diffusers() -> None:
    from peft import LoraConfig

    family = tiny_flux3(model_type="lora", lora_rank=4, lora_alpha=4, lora_dropout=0, gradient_checkpointing=False)
    ours = make_trainable(family, None)
    theirs = Flux3Transformer2DModel.from_pretrained(folder_of(BASE), subfolder="transformer").train().requires_grad_(False)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    found, others = (
        {name.replace(".default", ""): one for name, one in pairs} for pairs in (ours.named_parameters, theirs.named_parameters())
    )
    mine = {name.removeprefix("base_model.model."): one for name, one in found.items()}
    added = {name: one for name, one in others.items() if "lora_" in name}
    assert mine.keys() == added.keys() and len(mine) == 2 * 4 * 8
    with torch.no_grad():
        for number, name in enumerate(sorted(mine)):
            mine[name].copy_(fixed(*mine[name].shape, seed=number) * 0.05)
            added[name].copy_(mine[name])
    latents, noise, beside = batch_of(1)
    loss = our_loss(family, ours.network, latents, noise, MIXED, beside)
    wanted = flow_loss(theirs, latents, noise, SIGMAS, [prompt_states(text) for text in MIXED], beside)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    for name, one in mine.items():
        gradient, other = one.grad, added[name].grad
        assert gradient is not None and other is not None
        assert torch.allclose(gradient, other, rtol=1e-4, atol=1e-6), name


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction() -> None:
    family = tiny_flux3()
    network: Any = family.load_network().eval()
    noisy, _, beside = batch_of(1)
    right = torch.cat(
        [velocity(network, noisy[[row]], SIGMAS[[row]], prompt_states(text), [beside[0][[row]]]) for row, text in enumerate(MIXED)]
    )
    batch = family.collate_prompts(family.encode_prompts(MIXED))
    real = [len(one["embeds"]) - 1 for one in family.encode_prompts(MIXED)]

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch, references=beside))
        finally:
            hook.remove()

    def without_padding(given: dict[str, Any]) -> dict[str, Any]:
        places = given["txt_ids"].clone()
        for row, length in enumerate(real):
            places[length:, 4 + row] = 1
        return {"txt_ids": places}

    plain, image_place = slice(None, 4), torch.tensor([1, 1, 1, 0, 0, 0, 0])
    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "the windows of longer prompts are attended to": lambda given: {
            name: given[name][:, plain] for name in ("txt_ids", "img_ids", "image_cond_ids")
        },
        "padding is hidden": without_padding,
        "time counts to 1000": lambda given: {"timestep": given["timestep"] * 1000},
        "positions of images are not scaled": lambda given: {"img_ids": given["img_ids"] * torch.tensor([1, 2, 2, 1, 0, 0, 0])},
        "references have the place of the image": lambda given: {"image_cond_ids": given["image_cond_ids"] * image_place},
        "references are noisy tokens of the image": lambda given: {
            "hidden_states": torch.cat([given["hidden_states"], given["image_cond_hidden_states"]], dim=1),
            "img_ids": torch.cat([given["img_ids"], given["image_cond_ids"]]),
            "image_cond_hidden_states": None,
            "image_cond_ids": None,
        },
    }
    assert torch.allclose(with_arguments(lambda given: {}), right, rtol=1e-6, atol=1e-6)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-3), name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one(encoder: Flux3) -> None:
    network = encoder.load_network().eval()
    embeddings, (noisy, _, _) = encoder.encode_prompts(MIXED), batch_of(0)

    def prediction(rows: slice) -> Tensor:
        batch = encoder.collate_prompts(embeddings[rows])
        return encoder.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), rtol=1e-5, atol=1e-6)


def test_states_in_bfloat16_take_half_the_room_and_differ_by_their_rounding(encoder: Flux3) -> None:
    exact = encoder.encode_prompts(MIXED)
    for one in exact:
        states = one["embeds"]
        error = (states.bfloat16().float() - states).abs()
        assert float((error / states.abs().clamp(min=1e-30)).max()) <= 2**-8
        assert states.bfloat16().numel() * 2 == states.numel() * 2 == len(states) * 8 * 32 * 2


def test_the_layers_of_the_published_network_are_those_that_adapters_name_and_the_specification_counts() -> None:
    with torch.device("meta"):
        networks = {flavour: Flux3Transformer2DModel(flow_map=flavour == DISTILLED) for flavour in SPEC.flavours}
    assert {name: sum(one.numel() for one in network.parameters()) for name, network in networks.items()} == SPEC.parameters
    names = [name for name, module in networks[BASE].named_modules() if isinstance(module, torch.nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == (3 * 5 + 28) * len(targets)
    assert networks[BASE].config.joint_attention_dim == SPEC.prompts.width

"""Ideogram 4 beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, Ideogram4Pipeline, Ideogram4Transformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.ideogram.family import Ideogram4
from trainer_engine.families.ideogram.prompts import as_caption
from trainer_engine.families.ideogram.spec import SPEC, TEXT_LAYERS, TEXT_WIDTH
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
SECOND = {"ideogram_load_unconditional_transformer": True}


def tiny_ideogram(**values: Any) -> Ideogram4:
    """The micro model on the CPU."""
    return tiny_of(Ideogram4, tiny_model("ideogram"), **values)


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipeline = Ideogram4Pipeline.from_pretrained(tiny_model("ideogram"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours() -> Ideogram4:
    return tiny_ideogram()


def their_inputs(theirs: Any, texts: list[str], rows: int, columns: int) -> tuple[Tensor, ...]:
    """(states, positions, segments, roles) of a batch that the pipeline pads on the left, to the longest of the captions."""
    longest = max(token_count(theirs, text) for text in texts)
    with torch.no_grad():
        found: tuple[Tensor, ...] = theirs.encode_prompt(texts, rows, columns, longest, torch.device("cpu"))
    return found


def token_count(theirs: Any, text: str) -> int:
    chat = theirs.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": text}]}], add_generation_prompt=True, tokenize=False
    )
    return len(theirs.tokenizer(chat, add_special_tokens=False)["input_ids"])


def their_latents(vae: Any, pixels: Tensor) -> Tensor:
    """What the decoding of the pipeline undoes: tokens of (row, column, channel), normalised with statistics in this order."""
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode()
    batch, channels, height, width = mode.shape
    tokens = mode.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, 4 * channels)
    tokens = (tokens - vae.bn.running_mean) / torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    return tokens.transpose(1, 2).reshape(batch, 4 * channels, height // 2, width // 2)


def test_prompts_equal_those_of_the_pipeline_rounded_to_bfloat16(theirs: Any, ours: Ideogram4) -> None:
    captions = [as_caption(text) for text in PROMPTS]
    for text, caption, found in zip(PROMPTS, captions, ours.encode_prompts(PROMPTS), strict=True):
        length = token_count(theirs, caption)
        wanted = their_inputs(theirs, [caption], 1, 1)[0][0, :length]
        assert found["embeds"].shape == (length, len(TEXT_LAYERS) * 32) and found["embeds"].dtype == torch.bfloat16
        assert torch.equal(found["embeds"], wanted.bfloat16()), text
        padded = theirs.encode_prompt(caption, 1, 1, length + 7, torch.device("cpu"))[0][0, 7:-1]
        assert torch.allclose(padded, wanted, rtol=1e-4, atol=1e-5), "the padding of the pipeline changes nothing"


def test_a_prompt_beyond_the_limit_is_cut_off(ours: Ideogram4) -> None:
    ours.text.token_limit = 30
    try:
        long, short = (found["embeds"] for found in ours.encode_prompts(["many words " * 9, "a"]))
    finally:
        ours.text.token_limit = SPEC.prompts.token_limit
    assert len(long) == len(short) == 30


def test_latents_are_squares_of_cells_in_the_order_of_the_pipeline(theirs: Any, ours: Ideogram4) -> None:
    vae = AutoencoderKLFlux2.from_pretrained(tiny_model("ideogram"), subfolder="vae").eval()
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = ours.encode_images(pixels)
    assert latents.shape == (2, 128, 4, 6)
    assert torch.allclose(latents, their_latents(vae, pixels), atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(theirs: Any, gradient_checkpointing: bool) -> None:
    """The pipeline pads prompts on the left and a batch here on the right: no place depends on it."""
    family = tiny_ideogram(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    bare = Ideogram4Transformer2DModel.from_pretrained(tiny_model("ideogram"), subfolder="transformer").train()
    latents, noise = fixed(3, 128, 3, 5, seed=1), fixed(3, 128, 3, 5, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.objective_options)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()
    states, places, segments, roles = their_inputs(theirs, [as_caption(text) for text in PROMPTS], 3, 5)
    tokens, wanted_tokens = (one.flatten(2).transpose(1, 2) for one in (noisy, latents - noise))
    text = states.shape[1] - 15
    output = bare(
        hidden_states=torch.cat([torch.zeros(3, text, 128), tokens], dim=1),
        timestep=1 - SIGMAS,
        encoder_hidden_states=states.bfloat16().float(),
        position_ids=places,
        segment_ids=segments,
        indicator=roles,
        return_dict=False,
    )[0][:, text:]
    assert_same_gradients(loss, network, mse_loss(output, wanted_tokens), bare)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one(ours: Ideogram4) -> None:
    network = ours.load_network().eval()
    embeddings, noisy = ours.encode_prompts(PROMPTS), fixed(3, 128, 4, 4, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = ours.collate_prompts(embeddings[rows])
        return ours.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


def rounded(theirs: Any, patch: pytest.MonkeyPatch) -> None:
    """The pipeline with states that are rounded as caches store them."""
    exact = theirs.encode_prompt

    def encode(**given: Any) -> tuple[Tensor, ...]:
        states, *places = exact(**given)
        return states.bfloat16().float(), *places

    patch.setattr(theirs, "encode_prompt", encode)


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_an_image_equals_that_of_the_pipeline_bit_for_bit(theirs: Any, guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny_ideogram(**SECOND)
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    pipeline, steps = family.make_pipeline(family.load_network().eval()), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    image = family.generate(pipeline, request, on_step=steps.append)
    rounded(theirs, monkeypatch)
    given: dict[str, Any] = {"height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance, "guidance_schedule": None}
    caption = as_caption("a red circle")
    wanted = theirs(caption, max_sequence_length=token_count(theirs, caption), generator=torch.Generator().manual_seed(5), **given).images[
        0
    ]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 128, 6, 4)}
    assert np.array_equal(np.asarray(image), np.asarray(wanted))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(image))


def test_without_the_second_network_the_trained_one_predicts_for_the_negative_prompt(ours: Ideogram4) -> None:
    prompt, negative = ours.encode_prompts(["a red circle", "blue"])
    network = ours.load_network().eval()
    pipeline = ours.make_pipeline(network)

    def image(other: Any, guidance: float) -> Any:
        request = GenerationRequest(prompt=prompt, negative=other, width=32, height=32, steps=2, guidance=guidance, seed=5)
        return np.asarray(ours.generate(pipeline, request))

    assert np.array_equal(image(negative, 1.0), image(prompt, 1.0)), "1 is no guidance"
    assert np.array_equal(image(prompt, 7.0), image(prompt, 1.0)), "the same prompt on both sides leaves nothing to guide by"
    assert not np.array_equal(image(negative, 7.0), image(prompt, 7.0))


def test_the_second_network_leaves_the_memory_with_the_encoders() -> None:
    family = tiny_ideogram(**SECOND)
    network = family.load_network()
    second = family.make_pipeline(network).unconditional_transformer
    assert isinstance(second, Ideogram4Transformer2DModel) and second is family.make_pipeline(network).unconditional_transformer
    weights, trained = second.input_proj.weight, network.get_parameter("input_proj.weight")
    assert not weights.requires_grad and not torch.equal(weights, trained)
    family.release_encoders()
    assert family.make_pipeline(network).unconditional_transformer is not second


def timesteps_of(family: Ideogram4, tokens: int) -> Tensor:
    objective: Any = make_objective(family.prediction_type, family.scheduler_config(), family.objective_options)
    return objective.sample_timesteps([torch.Generator().manual_seed(number) for number in range(400)], tokens)


def test_timesteps_have_the_distribution_that_the_sampler_of_the_pipeline_is_spaced_by() -> None:
    """logit(sigma) is normal: its mean is mu and half the logarithm of the pixels over those of 512 x 512."""
    normal = torch.stack([torch.randn((), generator=torch.Generator().manual_seed(number), dtype=torch.float64) for number in range(400)])
    for values, mean, deviation in (
        ({}, 0.0, 1.5),
        ({"ideogram_schedule_mu": 0.5, "ideogram_schedule_std": 0.8}, 0.5, 0.8),
    ):
        family = tiny_ideogram(**values)
        for edge in (512, 1024, 2048):
            wanted = mean + 0.5 * math.log(edge**2 / 512**2) + deviation * normal
            found = timesteps_of(family, family.token_count((128, edge // 16, edge // 16)))
            assert torch.allclose(torch.logit(found.double()), wanted, atol=2e-3)


def test_the_published_network_has_the_layers_and_the_size_that_the_spec_states() -> None:
    with torch.device("meta"):
        network = Ideogram4Transformer2DModel()
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == 34 * len(targets)
    assert sum(one.numel() for one in network.parameters()) == SPEC.parameters[SPEC.default_flavour]
    assert network.config.llm_features_dim == SPEC.prompts.width == len(TEXT_LAYERS) * TEXT_WIDTH


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    model = str(tiny_model("ideogram"))
    usual = {"model_family": "ideogram", "model": model, "max_train_steps": 4, "train_batch_size": 2, "model_type": model_type}
    straight = assert_resumes_exactly(tmp_path, **usual)
    if model_type == "full":
        pipeline = Ideogram4Pipeline.from_pretrained(straight.output_dir / "pipeline")
        own, base = (one.unconditional_transformer.state_dict() for one in (pipeline, Ideogram4Pipeline.from_pretrained(model)))
        assert all(torch.equal(own[name], base[name]) for name in base)
        how = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0, "guidance_schedule": None}
        assert pipeline("a cat", max_sequence_length=64, **how).images[0].size == (32, 32)


@pytest.mark.slow
def test_the_image_of_a_validation_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 2}
    shown |= {"validation_disable": False, "validation_resolution": "64x96", "max_train_steps": 1, "model_type": "lora", **SECOND}
    run = train_here(tmp_path, model_family="ideogram", model=str(tiny_model("ideogram")), **shown)
    sizes = {Image.open(path).size for path in (run.output_dir / "validation_images").glob("*.png")}
    assert sizes == {(64, 96)}


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("", ""),
        (" \n", ""),
        ('{"b": 1,\n "a": "ü"}', '{"b":1,"a":"ü"}'),
        ("[1]", None),
        ("{broken", None),
        ("a  cat\nthat sleeps", None),
    ],
)
def test_a_text_that_is_no_json_object_becomes_a_caption(text: str, caption: str | None) -> None:
    found = as_caption(text)
    assert as_caption(found) == found and "\n" not in found
    if caption is not None:
        assert found == caption
        return
    document = json.loads(found)
    words = " ".join(text.split())
    assert list(document) == ["high_level_description", "compositional_deconstruction"]
    assert document["high_level_description"] == words
    assert document["compositional_deconstruction"]["elements"] == [{"type": "obj", "desc": words}]


def test_texts_are_read_as_they_are_if_asked(theirs: Any) -> None:
    family = tiny_ideogram(ideogram_auto_json=False)
    (found,) = family.encode_prompts(["a cat"])
    assert torch.equal(found["embeds"], their_inputs(theirs, ["a cat"], 1, 1)[0][0, :-1].bfloat16())

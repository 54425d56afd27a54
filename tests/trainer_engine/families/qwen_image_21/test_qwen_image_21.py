"""Qwen-Image 2.1 beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from tests.trainer_engine.families.qwen_image_21.models import NAME, PROMPTS, SIGMAS, pipeline_in, tiny_qwen
from trainer_engine.config.families import find_spec
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.qwen_image_21.prompts import TASK
from trainer_engine.families.qwen_image_21.spec import SPEC, TURBO_SIGMAS
from trainer_engine.objectives.build import make_objective


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pipeline_in(tiny_model(NAME))


@torch.no_grad()
def their_prompt(pipeline: Any, prompt: str) -> Tensor:
    """(1, T, D)"""
    embeds, mask, slots = pipeline.encode_prompt(prompt)
    assert mask is None and not slots.any()
    return embeds


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding(theirs: Any) -> None:
    stored = tiny_qwen().encode_prompts(PROMPTS)
    with torch.no_grad():
        embeds, mask, _ = theirs.encode_prompt(PROMPTS)
    assert len({len(one["embeds"]) for one in stored}) == len(PROMPTS)
    for ours, wanted, real in zip(stored, embeds, mask.bool(), strict=True):
        assert ours.keys() == {"embeds"} and torch.equal(ours["embeds"], wanted[real])


def test_a_prompt_does_not_depend_on_the_others_that_are_read_with_it(theirs: Any) -> None:
    family = tiny_qwen()
    for prompt, beside_others in zip(PROMPTS, family.encode_prompts(PROMPTS), strict=True):
        (alone,) = family.encode_prompts([prompt])
        assert torch.allclose(alone["embeds"], beside_others["embeds"], atol=1e-5)
        assert torch.equal(alone["embeds"], their_prompt(theirs, prompt)[0])


def test_the_states_are_those_before_the_last_norm() -> None:
    """The trap: transformers 5 puts the normalised states into ``hidden_states[-1]``."""
    family = tiny_qwen()
    (ours,) = family.encode_prompts(["blue"])
    encoder = Qwen3VLForConditionalGeneration.from_pretrained(tiny_model(NAME) / "text_encoder").eval()
    _, tokenizer = family.text.parts()
    tokens = tokenizer(TASK + "<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    with torch.no_grad():
        normalised = encoder(**tokens, output_hidden_states=True).hidden_states[-1][0, len(tokenizer(TASK).input_ids) :]
        assert torch.allclose(encoder.model.language_model.norm(ours["embeds"]), normalised, atol=1e-5)
    assert ours["embeds"].shape == normalised.shape and not torch.allclose(ours["embeds"], normalised, atol=1e-2)


def test_a_prompt_beyond_the_limit_is_cut_off() -> None:
    (ours,) = tiny_qwen().encode_prompts(["a " * 2000])
    assert len(ours["embeds"]) == SPEC.prompts.token_limit


def test_latents_are_those_of_an_opaque_image_normalised_by_channel() -> None:
    vae: Any = AutoencoderKLQwenImage21.from_pretrained(tiny_model(NAME), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(values).view(1, 64, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        encoded = vae.encode(torch.cat([pixels, torch.ones(2, 1, 64, 96)], dim=1)[:, :, None]).latent_dist.mode()
    wanted = (encoded - mean) / deviation
    family = tiny_qwen()
    latents = family.encode_images(pixels)
    assert latents.shape == (2, 64, 4, 6) and torch.allclose(latents, wanted[:, :, 0], atol=1e-5)
    with torch.no_grad():
        decoded = vae.decode(wanted * deviation + mean, return_dict=False)[0][:, :, 0]
    assert decoded.shape == (2, 4, 64, 96) and torch.allclose(family.autoencoder.decode(latents), decoded, atol=1e-5)


def our_loss(family: Any, network: Any, latents: Tensor, noise: Tensor, prompts: list[str]) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(latents, noise, SIGMAS),
        timesteps=SIGMAS,
        prompts=family.collate_prompts(family.encode_prompts(prompts)),
    )
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, SIGMAS), SIGMAS).mean()


def their_velocity(network: Any, noisy: Tensor, sigma: Tensor, embeds: Tensor) -> Tensor:
    """As the pipeline calls the network for one prompt, by its own functions for tokens."""
    _, _, height, width = noisy.shape
    slots = torch.zeros(1, embeds.shape[1] + height * width // 4, dtype=torch.bool)
    slots[:, embeds.shape[1] :] = True
    tokens = network(
        hidden_states=QwenImage21Pipeline._pack_latents(noisy.contiguous(), 1, 64, height, width),
        encoder_hidden_states=embeds,
        timestep=sigma * 1000 / 1000,
        img_shapes=[[(1, height, width)]],
        img_mask=slots,
        return_dict=False,
    )[0][:, -height * width :]
    return QwenImage21Pipeline._unpack_latents(tokens, height * 16, width * 16, 16)[:, :, 0]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(theirs: Any, gradient_checkpointing: bool) -> None:
    family = tiny_qwen(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    bare = QwenImage21Transformer2DModel.from_pretrained(tiny_model(NAME), subfolder="transformer").train()
    latents, noise = fixed(3, 64, 4, 6, seed=1), fixed(3, 64, 4, 6, seed=2)
    loss = our_loss(family, network, latents, noise, PROMPTS)
    noisy = torch.lerp(latents, noise, SIGMAS.view(-1, 1, 1, 1))
    rows = zip(noisy.split(1), SIGMAS.split(1), PROMPTS, strict=True)
    found = torch.cat([their_velocity(bare, one, sigma, their_prompt(theirs, prompt)) for one, sigma, prompt in rows])
    assert_same_gradients(loss, network, mse_loss(found, noise - latents), bare)


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one() -> None:
    """The trap: in a padded batch the place of the image moves, and with it every prediction but that of the longest prompt."""
    family = tiny_qwen()
    network: Any = family.load_network().eval()
    embeddings, noisy = family.encode_prompts(PROMPTS), fixed(3, 64, 4, 6, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.equal(together[row : row + 1], prediction(slice(row, row + 1)))
    embeds = embeddings[0]["embeds"]
    padded = torch.cat([embeds, torch.zeros(9, embeds.shape[1])])[None]
    slots = torch.cat([torch.zeros(padded.shape[1]), torch.ones(6)])[None].bool()
    given = {"hidden_states": noisy[:1].flatten(2).transpose(1, 2), "encoder_hidden_states": padded, "timestep": SIGMAS[:1]}
    given |= {"img_shapes": [[(1, 4, 6)]], "img_mask": slots, "return_dict": False}
    moved = network(**given, encoder_hidden_states_mask=torch.arange(padded.shape[1])[None] < len(embeds))[0][:, -24:]
    assert not torch.allclose(moved.transpose(1, 2).view(1, 64, 4, 6), together[:1], atol=1e-4)


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction() -> None:
    family = tiny_qwen()
    network: Any = family.load_network().eval()
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = fixed(3, 64, 4, 6, seed=3)
    right = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))
        finally:
            hook.remove()

    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "time counts to 1000": lambda given: {"timestep": given["timestep"] * 1000},
        "rows and columns are swapped": lambda given: {"img_shapes": [[(1, 6, 4)]]},
        "cells are packed in squares": lambda given: {
            "hidden_states": noisy.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2).transpose(1, 2)[: len(given["timestep"])]
        },
    }
    assert torch.equal(with_arguments(lambda given: {}), right)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-4), name


@torch.no_grad()
def test_text_is_modulated_at_time_zero_and_does_not_see_what_is_behind_it() -> None:
    """The traps: without ``causal_condition`` the prompt knows the noise level; with full attention it sees the image."""
    family = tiny_qwen()
    network: Any = family.load_network().eval()
    states: list[Tensor] = []
    network.transformer_blocks[-1].register_forward_hook(lambda _module, _args, output: states.append(output))
    batch = family.collate_prompts(family.encode_prompts(["a red circle"]))
    length = len(batch["embeds.0"])
    for seed, sigma in ((3, 0.2), (4, 0.9)):
        noisy = fixed(1, 64, 4, 6, seed=seed)
        family.predict(network, StepInputs(noisy_latents=noisy, timesteps=torch.tensor([sigma]), prompts=batch))
    assert torch.equal(states[0][:, :length], states[1][:, :length])
    assert not torch.allclose(states[0][:, length:], states[1][:, length:], atol=1e-3)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 1.0), (None, 4.0), ("euler", 1.0), ("unipc", 1.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(theirs: Any, sampler: str | None, guidance: float) -> None:
    family = tiny_qwen()
    network = family.load_network().eval()
    prompt, negative = (family.encode_prompts([text])[0] for text in ("a red circle", "blue"))
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs.scheduler = pipeline.scheduler
    wanted = theirs(
        "a red circle",
        negative_prompt="blue" if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=96,
        width=64,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert [step.number for step in steps] == [1, 2, 3] and {step.latents.shape for step in steps} == {(1, 64, 6, 4)}
    assert wanted.mode == "RGBA" and np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(ours))
    assert not network._forward_pre_hooks


def test_an_image_that_is_opaque_has_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = tiny_qwen().autoencoder
    for opacity, mode in ((1.0, "RGB"), (0.5, "RGBA")):
        pixels = torch.cat([torch.zeros(1, 3, 32, 32), torch.full((1, 1, 32, 32), opacity)], dim=1)
        monkeypatch.setattr(autoencoder, "decode", lambda _, pixels=pixels: pixels)
        assert autoencoder.picture(torch.zeros(1, 64, 2, 2)).mode == mode


def test_the_distilled_flavour_samples_at_its_own_noise_levels(tmp_path: Path) -> None:
    folder = tiny_model(NAME, flavour="v2.1-turbo")
    family = tiny_qwen(model_flavour="v2.1-turbo", pretrained_model_name_or_path=str(folder))
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    network = family.load_network().eval()
    usual: dict[str, Any] = {"width": 64, "height": 64, "guidance": 1.0, "seed": 5}
    ours = family.generate(family.make_pipeline(network), GenerationRequest(prompt=prompt, negative=negative, steps=8, **usual))
    wanted = pipeline_in(folder)("a red circle", height=64, width=64, generator=torch.Generator().manual_seed(5)).images[0]
    assert np.array_equal(np.asarray(ours), np.asarray(wanted)) and len(TURBO_SIGMAS) == 8
    steps: list[SamplerStep] = []
    few = GenerationRequest(prompt=prompt, negative=negative, steps=3, **usual)
    family.generate(family.make_pipeline(network), few, on_step=steps.append)
    assert len(steps) == 3, "another number of steps is that of the schedule"


def test_the_published_networks_have_the_numbers_and_layers_that_the_spec_states() -> None:
    with torch.device("meta"):
        network, vae = QwenImage21Transformer2DModel(), AutoencoderKLQwenImage21()
        text = {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
        text |= {"intermediate_size": 12288, "vocab_size": 151936}
        vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096, "patch_size": 16}
        vision |= {"deepstack_visual_indexes": [8, 16, 24], "num_position_embeddings": 2304}
        encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)).model
    numbers = [sum(one.numel() for one in module.parameters()) for module in (network, vae, encoder)]
    assert numbers == [SPEC.parameters["v2.1"], SPEC.latents.autoencoder.parameters, *SPEC.prompts.encoder_parameters]
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == 32 * len(targets)
    assert {type(module).__name__ for module in network.modules()} >= set(SPEC.adapters.module_classes)


def test_the_schedule_bends_with_the_size_of_the_image_as_in_the_pipeline() -> None:
    family = tiny_qwen()
    objective: Any = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    shifts = [objective.shift_of(family.token_count((64, edge, edge))) for edge in (16, 64)]
    assert shifts == pytest.approx([np.exp(0.5), np.exp(0.5 + 0.4 * (4096 - 256) / (8192 - 256))])


def test_a_file_of_comfyui_with_joined_layers_is_loaded(tmp_path: Path) -> None:
    weights = load_file(tiny_model(NAME) / "transformer" / "diffusion_pytorch_model.safetensors")
    joined = {key: tensor + 1 for key, tensor in weights.items() if "gate_layer" not in key and ".img_mlp.proj" not in key}
    for key in (key for key in weights if "gate_layer" in key):
        both = [weights[name] + 1 for name in (key, key.replace("gate_layer", "proj"))]
        joined[key.replace("gate_layer", "gate_up")] = torch.cat(both)
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in joined.items()}, tmp_path / "network.safetensors")
    ours = tiny_qwen(pretrained_transformer_model_name_or_path=str(tmp_path / "network.safetensors")).load_network().state_dict()
    assert ours.keys() == weights.keys() and all(torch.equal(ours[name], tensor + 1) for name, tensor in weights.items())


@pytest.mark.parametrize("alias", ["qwen_image_21", "Qwen-Image-2.1", "qwen_image_2_1", "qwenimage21"])
def test_the_family_is_found_by_the_names_that_people_write(alias: str) -> None:
    assert find_spec(alias) is SPEC


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual: dict[str, Any] = {"model_family": NAME, "model": str(tiny_model(NAME)), "max_train_steps": 4, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual, model_type=model_type)
    if model_type == "full":
        pipeline = pipeline_in(straight.output_dir / "pipeline")
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)


def test_validation_images_and_previews_may_be_transparent(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 2}
    shown |= {"validation_disable": False, "validation_resolution": "64x96", "validation_preview": True, "max_train_steps": 1}
    for format, mode in (("png", "RGBA"), ("jpeg", "RGB")):
        chosen = {**shown, "validation_image_format": format, "output_dir": str(tmp_path / format)}
        run = train_here(tmp_path, model_family=NAME, model=str(tiny_model(NAME)), model_type="full", **chosen)
        images = [Image.open(path) for path in (run.output_dir / "validation_images").glob("*.*")]
        assert {(image.size, image.mode) for image in images} == {((64, 96), mode)}

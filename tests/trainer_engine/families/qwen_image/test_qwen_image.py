"""Qwen-Image beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import options_with, tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import train_here
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.qwen_image.family import QwenImage
from trainer_engine.families.qwen_image.prompts import DESCRIBE
from trainer_engine.families.qwen_image.spec import SPEC
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
LAST_MLP = "transformer_blocks.59.txt_mlp"
LIMIT = SPEC.prompts.token_limit


def tiny_qwen(**values: Any) -> QwenImage:
    """The micro model on the CPU."""
    options = options_with(**{"model_family": "qwen_image", "pretrained_model_name_or_path": str(tiny_model("qwen_image")), **values})
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert isinstance(family, QwenImage)
    return family


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipeline = QwenImagePipeline.from_pretrained(tiny_model("qwen_image"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def their_prompts(pipeline: Any, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    embeds, mask = pipeline.encode_prompt(prompts)
    return embeds, mask


def fixed(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding(theirs: Any) -> None:
    family = tiny_qwen()
    stored = family.encode_prompts(PROMPTS)
    embeds, mask = their_prompts(theirs, PROMPTS)
    assert mask is not None and len({len(one["embeds"]) for one in stored}) == len(PROMPTS)
    batch = family.collate_prompts(stored)
    assert torch.equal(batch["embeds"], embeds) and torch.equal(batch["mask"], mask.bool())


def test_a_batch_has_a_mask_only_if_something_is_padded(theirs: Any) -> None:
    family = tiny_qwen()
    for prompts in (["a cat"], ["a cat", "a dog"]):
        batch = family.collate_prompts(family.encode_prompts(prompts))
        embeds, mask = their_prompts(theirs, prompts)
        assert batch.keys() == {"embeds"} and mask is None
        assert torch.equal(batch["embeds"], embeds)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does(theirs: Any) -> None:
    (ours,) = tiny_qwen().encode_prompts(["a " * 2000])
    assert len(ours["embeds"]) == LIMIT
    assert torch.equal(ours["embeds"], their_prompts(theirs, ["a " * 2000])[0][0])


def test_the_states_of_a_prompt_do_not_depend_on_the_side_that_its_tokenizer_pads() -> None:
    family = tiny_qwen()
    usual = family.encode_prompts(PROMPTS)
    _, tokenizer = family.text.parts()
    tokenizer.padding_side = "left"
    for one, other in zip(usual, family.encode_prompts(PROMPTS), strict=True):
        assert torch.equal(one["embeds"], other["embeds"])


def test_the_beginning_of_the_conversation_is_left_out() -> None:
    family = tiny_qwen()
    _, tokenizer = family.text.parts()
    (ours,) = family.encode_prompts(["blue"])
    conversation = "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    conversation += "relationships of the objects and background:<|im_end|>\n<|im_start|>user\nblue<|im_end|>\n<|im_start|>assistant\n"
    assert len(ours["embeds"]) == len(tokenizer(conversation).input_ids) - DESCRIBE.tokens


def test_latents_are_those_of_a_clip_of_one_frame_normalised_by_channel(theirs: Any) -> None:
    vae = AutoencoderKLQwenImage.from_pretrained(tiny_model("qwen_image"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(values).view(1, 16, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    assert mean.abs().min() > 0 and (deviation - 1).abs().min() > 0
    with torch.no_grad():
        wanted = (vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / deviation
    family = tiny_qwen()
    latents = family.encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted[:, :, 0], atol=1e-5)
    with torch.no_grad():
        decoded = vae.decode(wanted * deviation + mean, return_dict=False)[0][:, :, 0]
    assert torch.allclose(family.autoencoder.decode(latents), decoded, atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS, ["a cat", "a dog", "a fox"]], ids=["padded", "equally long"])
def test_loss_and_every_gradient_equal_those_of_diffusers(theirs: Any, prompts: list[str], gradient_checkpointing: bool) -> None:
    family = tiny_qwen(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    bare = QwenImageTransformer2DModel.from_pretrained(tiny_model("qwen_image"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    batch = family.collate_prompts(family.encode_prompts(prompts))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma = SIGMAS.view(-1, 1, 1, 1)
    embeds, mask = their_prompts(theirs, prompts)
    tokens = bare(
        hidden_states=QwenImagePipeline._pack_latents((1 - sigma) * latents + sigma * noise, 3, 16, 8, 10),
        timestep=SIGMAS * 1000 / 1000,
        encoder_hidden_states=embeds,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, 4, 5)]] * 3,
        return_dict=False,
    )[0]
    wanted = mse_loss(QwenImagePipeline._unpack_latents(tokens, 64, 80, 8)[:, :, 0], noise - latents)
    unread = family.unread_parameters(network)
    assert len(unread) == 2 + 4
    assert_same_gradients(loss, network, wanted, bare, unread)


def test_its_network_is_named_where_another_family_is_trained() -> None:
    network = {"pretrained_transformer_model_name_or_path": str(tiny_model("qwen_image"))}
    options = options_with(model_family="flux", pretrained_model_name_or_path=str(tiny_model("flux")), **network)
    with pytest.raises(ModelUnavailable, match=r"holds a QwenImageTransformer2DModel, which is not the network of Flux\.1"):
        load_family(options, resolve_devices(options, torch.device("cpu"))).load_network()


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction() -> None:
    family = tiny_qwen()
    network: Any = family.load_network().eval()
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = fixed(3, 16, 8, 12, seed=3)
    right = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))
        finally:
            hook.remove()

    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "padding is attended to": lambda given: {"encoder_hidden_states_mask": None},
        "time counts to 1000": lambda given: {"timestep": given["timestep"] * 1000},
        "rows and columns are swapped": lambda given: {"img_shapes": [[(1, 6, 4)]] * 3},
        "cells are not put together in squares": lambda given: {"hidden_states": noisy.flatten(2).reshape(given["hidden_states"].shape)},
    }
    assert torch.equal(with_arguments(lambda given: {}), right)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-3), name


def test_the_layers_of_the_published_network_are_those_that_adapters_and_training_name() -> None:
    with torch.device("meta"):
        network = QwenImageTransformer2DModel(num_layers=60, joint_attention_dim=3584)
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == 60 * len(targets)
    unread = {id(parameter) for parameter in tiny_qwen().unread_parameters(network)}
    found = {name for name, parameter in network.named_parameters() if id(parameter) in unread}
    assert found == {name for name, _ in network.named_parameters() if name.startswith(("transformer_blocks.59.attn.to_add_out", LAST_MLP))}
    assert len(found) == 6 and sum(one.numel() for one in network.parameters()) == SPEC.parameters[SPEC.default_flavour]


@torch.no_grad()
def test_a_prompt_predicts_the_same_beside_a_longer_one() -> None:
    family = tiny_qwen()
    network = family.load_network().eval()
    embeddings = family.encode_prompts(PROMPTS)
    noisy = fixed(3, 16, 8, 8, seed=3)

    def prediction(rows: slice) -> Tensor:
        batch = family.collate_prompts(embeddings[rows])
        return family.predict(network, StepInputs(noisy_latents=noisy[rows], timesteps=SIGMAS[rows], prompts=batch))

    together = prediction(slice(None))
    for row in range(3):
        assert torch.allclose(together[row : row + 1], prediction(slice(row, row + 1)), atol=1e-5)


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 1.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
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
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, 12, 8)}
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(ours))


def test_the_schedule_of_the_base_model_ends_where_it_says_and_bends_with_the_size() -> None:
    family = tiny_qwen(flow_schedule_shift=0, flow_schedule_auto_shift=True)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    shifts = [objective.shift_of(family.token_count((16, edge, edge))) for edge in (32, 128)]  # type: ignore[attr-defined]
    assert shifts == pytest.approx([np.exp(0.5), np.exp(0.5 + 0.4 * (4096 - 256) / (8192 - 256))])
    scheduler: Any = family.parts.make_scheduler()
    scheduler.set_timesteps(4, mu=0.7)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.02)
    assert tiny_qwen().options.objective.flow_schedule_shift == SPEC.defaults["flow_schedule_shift"]


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "qwen_image", "model": str(tiny_model("qwen_image")), "max_train_steps": 4, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual, model_type=model_type)
    if model_type == "full":
        pipeline = QwenImagePipeline.from_pretrained(straight.output_dir / "pipeline")
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0].size == (32, 32)


def test_an_adapter_in_the_keys_of_comfyui_names_layers_of_its_network_and_loads_in_diffusers(tmp_path: Path, theirs: Any) -> None:
    usual: dict[str, Any] = {
        "model_family": "qwen_image",
        "model": str(tiny_model("qwen_image")),
        "model_type": "lora",
        "max_train_steps": 2,
    }
    targets = '["to_q", "to_add_out", "img_mod.1", "txt_mlp.net.2", "img_in", "proj_out", "norm_out.linear"]'
    usual |= {"max_train_steps": 2, "lora_rank": 4, "lora_alpha": 2, "learning_rate": 0.05, "peft_lora_target_modules": targets}
    run = train_here(tmp_path, **usual, lora_format="comfyui")
    path = run.output_dir / "pytorch_lora_weights.safetensors"
    tensors = load_file(path)
    # The rule of ComfyUI: the network has the names of diffusers, behind diffusion_model.
    layers = {key.removeprefix("diffusion_model.").removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    modules = dict(theirs.transformer.named_modules())
    assert len(layers) == 2 * 4 + 3 and layers <= set(modules)
    assert len(tensors) == 3 * len(layers) and all(key.startswith("diffusion_model.") for key in tensors)
    theirs.load_lora_weights(path.parent, weight_name=path.name)
    loaded = {name for name, _ in theirs.transformer.named_modules() if name.endswith(".lora_A")}
    theirs.unload_lora_weights()
    assert loaded == {f"{layer}.lora_A" for layer in layers}


def test_the_image_of_a_validation_is_one_of_the_result(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_step_interval": 1, "validation_prompt": "a red circle", "validation_num_inference_steps": 2}
    shown |= {"validation_disable": False, "validation_resolution": "64x96", "max_train_steps": 1, "model_type": "full"}
    run = train_here(tmp_path, model_family="qwen_image", model=str(tiny_model("qwen_image")), **shown)
    sizes = {Image.open(path).size for path in (run.output_dir / "validation_images").glob("*.png")}
    assert sizes == {(64, 96)}

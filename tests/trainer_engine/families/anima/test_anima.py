"""Anima beside the modular blocks of diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimaModularPipeline, AnimaTextConditioner, AutoencoderKLQwenImage, ClassifierFreeGuidance, CosmosTransformer3DModel
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep, encode_vae_image
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import Qwen3Config, Qwen3Model

from tests.helpers.gradients import LORA, assert_same_gradients, trainable_of
from tests.helpers.models import fixed, tiny_model, tiny_of
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.anima.family import Anima
from trainer_engine.families.anima.spec import CONDITIONER, SPEC, T5_TOKENIZER
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
PUBLISHED: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "num_layers": 28,
    "text_embed_dim": 1024,
    "rope_scale": (1.0, 4.0, 4.0),
    "extra_pos_embed_type": None,
}
"""The configuration of the published network, without what is the default of its class."""


def tiny_anima(**values: Any) -> Anima:
    """The micro model on the CPU."""
    return tiny_of(Anima, tiny_model("anima"), **values)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The published pipeline. Loading the family's network has given diffusers what it takes of torchvision."""
    tiny_anima().load_network()
    pipeline = AnimaModularPipeline.from_pretrained(str(tiny_model("anima")))
    pipeline.load_components(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def their_prompts(pipeline: Any, prompts: list[str]) -> Tensor:
    """The states that the blocks of the pipeline give the network."""
    found = AnimaTextEncoderStep.encode_prompt(pipeline, list(prompts), prepare_unconditional_embeds=False)
    names = ("qwen_prompt_embeds", "qwen_attention_mask", "t5_input_ids", "t5_attention_mask")
    types = {"device": torch.device("cpu"), "conditioning_dtype": torch.float32, "output_dtype": torch.float32}
    return AnimaTextConditioningStep._condition_prompt_embeds(pipeline, **{name: found[name] for name in names}, **types)


def test_prompts_equal_those_of_the_pipeline_and_are_stored_without_padding(theirs: Any) -> None:
    family = tiny_anima()
    stored = family.encode_prompts(PROMPTS)
    assert len({len(one["embeds"]) for one in stored}) == len(PROMPTS) and len(stored[1]["embeds"]) == 1
    embeds = family.collate_prompts(stored)["embeds"]
    assert embeds.shape == (3, 512, 32) and torch.equal(embeds, their_prompts(theirs, PROMPTS))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_alone_equals_that_of_the_pipeline(theirs: Any, prompt: str) -> None:
    family = tiny_anima()
    embeds = family.collate_prompts(family.encode_prompts([prompt]))["embeds"]
    assert embeds.isfinite().all() and torch.equal(embeds, their_prompts(theirs, [prompt]))


def test_a_prompt_does_not_depend_on_those_beside_it() -> None:
    family = tiny_anima()
    for one, prompt in zip(family.encode_prompts(PROMPTS), PROMPTS, strict=True):
        assert torch.allclose(one["embeds"], family.encode_prompts([prompt])[0]["embeds"], atol=1e-6)


def test_a_prompt_beyond_the_limit_is_cut_off_as_the_pipeline_does(theirs: Any) -> None:
    (ours,) = tiny_anima().encode_prompts(["a " * 2000])
    assert len(ours["embeds"]) == SPEC.prompts.token_limit
    assert torch.equal(ours["embeds"], their_prompts(theirs, ["a " * 2000])[0])


def test_both_tokenizers_and_the_conditioner_are_part_of_the_address_of_an_embedding(tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "index")
    family = tiny_anima()
    usual = family.text_fingerprint(hashes)
    for name in ("text_encoder", "tokenizer", CONDITIONER, T5_TOKENIZER):
        changed = tiny_anima()
        changed.parts._found[name] = family.parts.find("scheduler")
        assert changed.text_fingerprint(hashes) != usual, name


def test_latents_are_those_of_the_pipeline(theirs: Any) -> None:
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = encode_vae_image(pixels, theirs.vae, torch.Generator(), torch.device("cpu"), torch.float32)
    latents = tiny_anima().encode_images(pixels)
    assert isinstance(theirs.vae, AutoencoderKLQwenImage) and latents.shape == (2, 16, 8, 12)
    assert torch.allclose(latents, wanted[:, :, 0], atol=1e-5)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(theirs: Any, gradient_checkpointing: bool) -> None:
    family = tiny_anima(gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    bare = CosmosTransformer3DModel.from_pretrained(tiny_model("anima"), subfolder="transformer").train()
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, SIGMAS)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=batch))
    loss = objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()

    sigma = SIGMAS.view(-1, 1, 1, 1)
    output = bare(
        hidden_states=((1 - sigma) * latents + sigma * noise)[:, :, None],
        timestep=SIGMAS * 1000 / theirs.scheduler.config.num_train_timesteps,
        encoder_hidden_states=their_prompts(theirs, PROMPTS),
        padding_mask=torch.zeros(1, 1, 64, 80),
        return_dict=False,
    )[0]
    assert_same_gradients(loss, network, mse_loss(output[:, :, 0], noise - latents), bare)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


def test_loss_and_every_gradient_of_an_adapter_equal_those_of_diffusers(theirs: Any) -> None:
    family = tiny_anima(**LORA)
    trainable = trainable_of(family)
    latents, noise = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    noisy = objective.add_noise(latents, noise, SIGMAS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=family.collate_prompts(family.encode_prompts(PROMPTS)))
    loss = objective.loss(family.predict(trainable.network, inputs), objective.target(latents, noise, SIGMAS), SIGMAS).mean()
    loss.backward()

    bare = CosmosTransformer3DModel.from_pretrained(tiny_model("anima"), subfolder="transformer").train()
    rank, alpha = family.options.adapter.lora_rank, family.options.adapter.lora_alpha
    bare.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=r".*\.attn[12]\.(to_[qkv]|to_out\.0)"))
    ours, wanted = ({key.partition(".lora_")[::2]: one for key, one in found} for found in (trainable.named_parameters, layers_of(bare)))
    assert ours.keys() == wanted.keys() and len(ours) == 2 * 2 * 8
    with torch.no_grad():
        for key, one in wanted.items():
            one.copy_(ours[key])
    sigma = SIGMAS.view(-1, 1, 1, 1)
    output = bare(
        hidden_states=((1 - sigma) * latents + sigma * noise)[:, :, None],
        timestep=SIGMAS,
        encoder_hidden_states=their_prompts(theirs, PROMPTS),
        padding_mask=torch.zeros(1, 1, 64, 80),
        return_dict=False,
    )[0]
    other = mse_loss(output[:, :, 0], noise - latents)
    other.backward()
    assert loss.item() == pytest.approx(other.item(), rel=1e-6)
    for key, one in wanted.items():
        gradient = ours[key].grad
        assert gradient is not None and one.grad is not None and one.grad.abs().sum() > 0, key
        assert torch.allclose(gradient, one.grad, rtol=1e-4, atol=1e-6), key


def layers_of(network: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """The matrices of an adapter that diffusers has added."""
    return [(name, parameter) for name, parameter in network.named_parameters() if ".lora_" in name]


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction() -> None:
    family = tiny_anima()
    network: Any = family.load_network().eval()
    batch = family.collate_prompts(family.encode_prompts(PROMPTS))
    inputs = StepInputs(noisy_latents=fixed(3, 16, 8, 12, seed=3), timesteps=SIGMAS, prompts=batch)
    right = family.predict(network, inputs)

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return family.predict(network, inputs)
        finally:
            hook.remove()

    is_filled = batch["embeds"].abs().sum(dim=-1) > 0
    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "states that a prompt lacks are left out": lambda given: {"encoder_hidden_states": given["encoder_hidden_states"][:, :80]},
        "states that a prompt lacks are hidden": lambda given: {"attention_mask": is_filled},
        "time counts to 1000": lambda given: {"timestep": given["timestep"] * 1000},
        "the whole image is padding": lambda given: {"padding_mask": given["padding_mask"] + 1},
    }
    assert torch.equal(with_arguments(lambda given: {}), right)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-4), name


def test_the_layers_of_the_published_network_are_those_that_adapters_and_estimates_name() -> None:
    with torch.device("meta"):
        network = CosmosTransformer3DModel(**PUBLISHED)
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    targets = SPEC.adapters.lora_targets[SPEC.adapters.default_lora_target]
    assert sum(name.endswith(targets) for name in names) == 28 * len(targets)
    assert sum(one.numel() for one in network.parameters()) == SPEC.parameters[SPEC.default_flavour]


def test_what_reads_prompts_has_the_size_that_estimates_state() -> None:
    with torch.device("meta"):
        conditioner = AnimaTextConditioner()
        encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=151_936,
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
            )
        )
    counted = [sum(one.numel() for one in module.parameters()) for module in (conditioner, encoder)]
    assert SPEC.prompts.encoder_parameters == (sum(counted),)
    assert conditioner.config.min_sequence_length == SPEC.prompts.token_limit and conditioner.config.target_dim == SPEC.prompts.width


@torch.no_grad()
def test_an_edge_beyond_2048_pixels_has_places_for_all_of_its_tokens() -> None:
    family = tiny_anima()
    network = family.load_network().eval()
    batch = family.collate_prompts(family.encode_prompts(PROMPTS[:1]))
    noisy = fixed(1, 16, 2, 260, seed=3)
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS[:1], prompts=batch))
    assert prediction.shape == noisy.shape and prediction.isfinite().all()


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 4.0), (None, 1.0), ("euler", 4.0), ("unipc", 4.0), ("dpm++", 4.0)])
def test_images_equal_those_of_the_pipeline_bit_for_bit(theirs: Any, sampler: str | None, guidance: float) -> None:
    family = tiny_anima()
    network = family.load_network().eval()
    prompt, negative = (family.encode_prompts([text])[0] for text in ("a red circle", "blue"))
    pipeline, steps = family.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=64, height=96, steps=3, guidance=guidance, seed=5)
    ours = family.generate(pipeline, request, on_step=steps.append)
    theirs.update_components(scheduler=pipeline.scheduler, guider=ClassifierFreeGuidance(guidance_scale=guidance))
    wanted = theirs(
        prompt="a red circle",
        negative_prompt="blue",
        height=96,
        width=64,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(5),
        output="images",
    )[0]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, 12, 8)}
    assert np.array_equal(np.asarray(ours), np.asarray(wanted))
    assert np.array_equal(np.asarray(family.preview(steps[-1].latents)), np.asarray(ours))


def test_an_exception_while_an_image_is_made_passes_through() -> None:
    family = tiny_anima()
    prompt = family.encode_prompts(["a"])[0]
    request = GenerationRequest(prompt=prompt, negative=prompt, width=32, height=32, steps=9, guidance=1.0, seed=5)
    seen = list[int]()

    def stop(step: SamplerStep) -> None:
        seen.append(step.number)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        family.generate(family.make_pipeline(family.load_network().eval()), request, on_step=stop)
    assert seen == [1]


def test_the_schedule_of_training_and_of_the_sampler_is_shifted_by_three() -> None:
    family = tiny_anima()
    assert family.options.objective.flow_schedule_shift == family.scheduler_config()["shift"] == 3.0
    scheduler: Any = family.parts.make_scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.75, 0.0])


@pytest.mark.parametrize("model_type", ["full", "lora"])
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "anima", "model": str(tiny_model("anima")), "max_train_steps": 4, "train_batch_size": 2}
    straight = assert_resumes_exactly(tmp_path, **usual, model_type=model_type)
    if model_type == "full":
        result, base = straight.output_dir / "pipeline", tiny_model("anima")
        pipeline = AnimaModularPipeline.from_pretrained(str(result))
        pipeline.load_components(dtype=torch.float32)
        (image,) = pipeline(prompt="a cat", height=32, width=32, num_inference_steps=2, output="images")
        assert image.size == (32, 32) and pipeline.transformer.config.concat_padding_mask
        same = [f"{CONDITIONER}/diffusion_pytorch_model.safetensors", f"{T5_TOKENIZER}/tokenizer.json"]
        assert all((result / name).read_bytes() == (base / name).read_bytes() for name in same)

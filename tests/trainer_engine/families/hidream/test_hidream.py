"""HiDream-I1 beside diffusers: prompts, latents, losses, gradients, images and the result of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model, tiny_of
from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.adapters.build import make_trainable
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.hidream.family import HiDream, layers_of
from trainer_engine.families.hidream.prompts import network_prompts
from trainer_engine.families.hidream.spec import SPEC
from trainer_engine.families.inputs import STORED, StepInputs
from trainer_engine.objectives.build import make_objective

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
SIZES = pytest.mark.parametrize("size", [(8, 8), (8, 12)], ids=["square", "oblong"])


def tiny_hidream(**values: Any) -> HiDream:
    """The micro model on the CPU."""
    return tiny_of(HiDream, tiny_model("hidream"), **values)


@pytest.fixture(scope="module")
def ours() -> HiDream:
    return tiny_hidream()


@pytest.fixture(scope="module")
def theirs() -> HiDreamImagePipeline:
    return their_pipeline()


def their_pipeline() -> HiDreamImagePipeline:
    """The pipeline of diffusers. Its prompts are rounded as the caches store them, and its autoencoder has the same memory layout."""
    pipeline = HiDreamImagePipeline.from_pretrained(tiny_model("hidream"))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.to(memory_format=torch.channels_last)
    exact = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **kwargs: tuple(one if one is None else one.to(STORED).float() for one in exact(*args, **kwargs))
    return pipeline


def their_prompts(pipeline: HiDreamImagePipeline, prompts: list[str] = PROMPTS) -> dict[str, Tensor]:
    """As the network takes them."""
    with torch.no_grad():
        t5, _, llama, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": llama, "pooled_embeds": pooled}


def their_network() -> HiDreamImageTransformer2DModel:
    return HiDreamImageTransformer2DModel.from_pretrained(tiny_model("hidream"), subfolder="transformer").train()


def noised(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and their mixture."""
    latents, noise = fixed(3, 16, height, width, seed=1), fixed(3, 16, height, width, seed=2)
    sigma = SIGMAS.view(-1, 1, 1, 1)
    return latents, noise, (1 - sigma) * latents + sigma * noise


def their_loss(network: HiDreamImageTransformer2DModel, prompts: dict[str, Tensor], height: int, width: int) -> Tensor:
    """In training mode the network returns tokens (B, C, S, 4) instead of an image, those of its padding last."""
    latents, noise, noisy = noised(height, width)
    tokens = network(noisy, SIGMAS * 1000, **prompts, return_dict=False)[0]
    velocity = (noise - latents).reshape(3, 16, height // 2, 2, width // 2, 2).transpose(3, 4).reshape(3, 16, -1, 4)
    return mse_loss(-tokens[:, :, : velocity.shape[2]], velocity)


def our_loss(family: HiDream, network: torch.nn.Module, height: int, width: int) -> Tensor:
    latents, noise, noisy = noised(height, width)
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    assert torch.equal(objective.add_noise(latents, noise, SIGMAS), noisy)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    prediction = family.predict(network, StepInputs(noisy_latents=noisy, timesteps=SIGMAS, prompts=prompts))
    return objective.loss(prediction, objective.target(latents, noise, SIGMAS), SIGMAS).mean()


# ---- prompts and latents ----


def test_prompts_equal_those_of_the_pipeline_with_their_padding(ours: HiDream, theirs: HiDreamImagePipeline) -> None:
    prompts = [*PROMPTS, "a " * 500]
    wanted = their_prompts(theirs, prompts)
    found = ours.encode_prompts(prompts)
    given = network_prompts(ours.collate_prompts(found), ours.parts.llama_layers, torch.device("cpu"), torch.float32)
    assert torch.equal(given["encoder_hidden_states_t5"], wanted["encoder_hidden_states_t5"])
    assert torch.equal(given["pooled_embeds"], wanted["pooled_embeds"])
    read = HiDreamImageTransformer2DModel.load_config(tiny_model("hidream") / "transformer")["llama_layers"]
    for layer in read:
        assert torch.equal(given["encoder_hidden_states_llama3"][layer], wanted["encoder_hidden_states_llama3"][layer])
    assert {name: tuple(one.shape) for name, one in found[0].items()} == {"embeds": (128, 24), "llama": (2, 128, 32), "pooled": (32,)}
    assert {one.dtype for one in found[0].values()} == {STORED}


def test_a_shorter_limit_of_tokens_is_that_of_all_text_encoders(theirs: HiDreamImagePipeline) -> None:
    (found,) = tiny_hidream(tokenizer_max_length=16).encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        t5, _, llama, _, pooled, _ = theirs.encode_prompt(PROMPTS[:1], do_classifier_free_guidance=False, max_sequence_length=16)
    assert torch.equal(found["embeds"].float(), t5[0]) and torch.equal(found["pooled"].float(), pooled[0])
    assert torch.equal(found["llama"].float(), llama[[0, 2], 0])


def test_states_of_t5s_padding_may_be_zeros(ours: HiDream) -> None:
    (usual,), (zeroed,) = ours.encode_prompts(PROMPTS[:1]), tiny_hidream(t5_padding="zero").encode_prompts(PROMPTS[:1])
    length = int(zeroed["embeds"].any(dim=1).sum())
    assert 2 < length < 10 and torch.equal(zeroed["embeds"][:length], usual["embeds"][:length])
    assert usual["embeds"][length:].any(dim=1).all() and torch.equal(zeroed["llama"], usual["llama"])


def test_latents_are_shifted_and_scaled(ours: HiDream) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("hidream"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    latents = ours.encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12) and torch.allclose(latents, wanted, atol=1e-5)


# ---- losses and gradients ----


@SIZES
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(
    theirs: HiDreamImagePipeline, size: tuple[int, int], gradient_checkpointing: bool
) -> None:
    check_loss_and_gradients(theirs, size, gradient_checkpointing=gradient_checkpointing)


def check_loss_and_gradients(theirs: HiDreamImagePipeline, size: tuple[int, int], *, gradient_checkpointing: bool) -> None:
    family = tiny_hidream(gradient_checkpointing=gradient_checkpointing)
    network, bare = family.load_network(), their_network()
    assert_same_gradients(our_loss(family, network, *size), network, their_loss(bare, their_prompts(theirs), *size), bare)
    experts = [one for name, one in network.named_parameters() if ".experts." in name]
    assert len(experts) == 3 * 4 * 3 and sum(bool(one.grad.any()) for one in experts if one.grad is not None) > 24


def test_the_gradients_of_an_adapter_equal_those_of_diffusers(theirs: HiDreamImagePipeline) -> None:
    """An adapter whose second matrix is zero has the loss of the base, and its gradient follows from that of the layer."""
    family = tiny_hidream(model_type="lora", lora_rank=2, lora_dropout=0)
    trainable, bare = make_trainable(family, None), their_network()
    loss, wanted = our_loss(family, trainable.network, 8, 12), their_loss(bare, their_prompts(theirs), 8, 12)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    loss.backward()
    wanted.backward()
    layers, weights = dict(bare.named_parameters()), dict(trainable.named_parameters)
    seconds = [name for name in weights if "lora_B" in name]
    assert len(seconds) == 3 * 4
    for name in seconds:
        first, layer = (
            weights[name.replace("lora_B", "lora_A")],
            layers[name.partition(".lora_B")[0].removeprefix("base_model.model.") + ".weight"],
        )
        scale = family.options.adapter.lora_alpha / 2 if family.options.adapter.lora_alpha else 1.0
        assert weights[name].grad is not None and layer.grad is not None
        assert torch.allclose(weights[name].grad, scale * layer.grad @ first.detach().T, rtol=1e-4, atol=1e-6), name


@SIZES
@torch.no_grad()
def test_a_network_in_evaluation_mode_predicts_the_same(ours: HiDream, size: tuple[int, int]) -> None:
    """It returns images, and computes the experts in another way."""
    network = ours.load_network()
    inputs = StepInputs(noisy_latents=noised(*size)[2], timesteps=SIGMAS, prompts=ours.collate_prompts(ours.encode_prompts(PROMPTS)))
    trained = ours.predict(network, inputs)
    assert trained.shape == (3, 16, *size)
    assert torch.allclose(ours.predict(network.eval(), inputs), trained, atol=1e-5)


def test_a_network_that_was_kept_for_generation_has_gradients_through_its_experts() -> None:
    """The example of diffusers for HiDream-I1 trains with ``force_inference_output``, with which its experts are computed without."""
    check_gradients_of_experts()


def check_gradients_of_experts() -> None:
    stopped = HiDreamImageTransformer2DModel.from_pretrained(tiny_model("hidream"), subfolder="transformer", force_inference_output=True)
    with TemporaryDirectory() as place:
        stopped.save_pretrained(place)
        family = tiny_hidream(pretrained_transformer_model_name_or_path=place)
        network = family.load_network()
        prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    output = network(
        noised(8, 8)[2], SIGMAS, **network_prompts(prompts, layers_of(network), torch.device("cpu"), torch.float32), return_dict=False
    )[0]
    output.square().mean().backward()
    found = {name for name, one in network.named_parameters() if ".experts." in name and one.grad is not None and one.grad.any()}
    assert len(found) > 24 and network.config["force_inference_output"] is False


@torch.no_grad()
def test_each_of_the_known_mistakes_changes_the_prediction(ours: HiDream) -> None:
    network: Any = ours.load_network().eval()
    prompts = ours.collate_prompts(ours.encode_prompts(PROMPTS))
    inputs = StepInputs(noisy_latents=noised(8, 12)[2], timesteps=SIGMAS, prompts=prompts)
    right = ours.predict(network, inputs)

    def with_arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Tensor:
        hook = network.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **change(kwargs)}), with_kwargs=True)
        try:
            return ours.predict(network, inputs)
        finally:
            hook.remove()

    t5, llama = "encoder_hidden_states_t5", "encoder_hidden_states_llama3"
    mistakes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "time counts to 1": lambda given: {"timesteps": given["timesteps"] / 1000},
        "time runs backwards": lambda given: {"timesteps": 1000 - given["timesteps"]},
        "the layers of Llama are in the wrong order": lambda given: {llama: given[llama].flip(0)},
        "one layer of Llama stands for all": lambda given: {llama: given[llama][-1:].expand_as(given[llama])},
        "padding is left out": lambda given: {t5: given[t5][:, :20]},
        "both CLIPs are swapped": lambda given: {"pooled_embeds": given["pooled_embeds"].roll(16, 1)},
    }
    assert torch.equal(with_arguments(lambda given: {}), right)
    for name, change in mistakes.items():
        assert not torch.allclose(with_arguments(change), right, atol=1e-3), name


# ---- how evenly the experts are used ----


def gates(network: torch.nn.Module) -> list[tuple[Tensor, torch.nn.Module]]:
    return [(module.weight, module) for name, module in network.named_modules() if name.endswith(".gate")]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_balance_of_experts_is_what_the_gates_of_diffusers_compute_and_drop(
    theirs: HiDreamImagePipeline, gradient_checkpointing: bool
) -> None:
    family = tiny_hidream(
        hidream_use_load_balancing_loss=True, hidream_load_balancing_loss_weight=0.3, gradient_checkpointing=gradient_checkpointing
    )
    network, bare = family.load_network(), their_network()
    loss = our_loss(family, network, 8, 8)
    penalty = family.penalty()
    assert penalty is not None and family.penalty() is None

    dropped: list[Tensor] = []
    for _, gate in gates(bare):
        gate.register_forward_hook(lambda _, __, output: dropped.append(output[2]))
        assert gate.alpha == 0.01
    wanted = their_loss(bare, their_prompts(theirs), 8, 8)
    assert len(dropped) == 3
    added = torch.stack(dropped).sum() * 30
    assert penalty.item() == pytest.approx(added.item(), rel=1e-6) and penalty.item() > 0.9
    assert_same_gradients(loss + penalty, network, wanted + added, bare)


def test_a_step_adds_the_balance_to_its_loss_and_an_evaluation_does_not() -> None:
    plain, balanced = tiny_hidream(), tiny_hidream(hidream_use_load_balancing_loss=True)
    loss = our_loss(plain, plain.load_network(), 8, 8)
    assert plain.penalty() is None
    network = balanced.load_network()
    assert our_loss(balanced, network, 8, 8).item() == pytest.approx(loss.item(), rel=1e-6)
    with torch.no_grad():
        our_loss(balanced, network.eval(), 8, 8)
    assert balanced.penalty() is None


# ---- images ----


@pytest.mark.parametrize(
    ("sampler", "guidance", "size"),
    [
        (None, 5.0, (96, 96)),
        (None, 1.0, (64, 144)),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("euler", 5.0, (144, 64)), ("dpm++", 5.0, (96, 96)))),
    ],
)
def test_images_equal_those_of_the_pipeline_bit_for_bit(
    ours: HiDream, theirs: HiDreamImagePipeline, sampler: str | None, guidance: float, size: tuple[int, int]
) -> None:
    width, height = size
    network = ours.load_network().eval()
    prompt, negative = (ours.encode_prompts([text])[0] for text in ("a red circle", "blue"))
    pipeline, steps = ours.make_pipeline(network, sampler=sampler), list[SamplerStep]()
    request = GenerationRequest(prompt=prompt, negative=negative, width=width, height=height, steps=3, guidance=guidance, seed=5)
    image = ours.generate(pipeline, request, on_step=steps.append)
    theirs.scheduler, theirs.default_sample_size = type(pipeline.scheduler).from_config(pipeline.scheduler.config), 12
    given = {"guidance_scale": guidance, "height": height, "width": width, "num_inference_steps": 3}
    wanted = theirs("a red circle", negative_prompt="blue", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert [step.number for step in steps] == [1, 2, 3]
    assert {step.latents.shape for step in steps} == {(1, 16, height // 8, width // 8)}
    assert image.size == size and np.array_equal(np.asarray(image), np.asarray(wanted))


def test_an_image_has_the_size_that_was_asked_for(ours: HiDream) -> None:
    """The pipeline of diffusers enlarges each to the area of 1024 x 1024."""
    network = ours.load_network().eval()
    prompt = ours.encode_prompts(["a red circle"])[0]
    pipeline = ours.make_pipeline(network)
    for size in ((64, 64), (112, 80), (128, 48)):
        request = GenerationRequest(prompt=prompt, negative=prompt, width=size[0], height=size[1], steps=1, guidance=1.0, seed=5)
        assert ours.generate(pipeline, request).size == size


def test_samplers_share_the_shift_of_the_published_schedule(ours: HiDream) -> None:
    config = ours.scheduler_config()
    assert (config["_class_name"], config["flow_shift"]) == ("UniPCMultistepScheduler", 3.0)
    assert ours.parts.make_scheduler("euler").config.shift == 3.0
    assert [ours.parts.make_scheduler(name).config.flow_shift for name in (None, "unipc", "dpm++")] == [3.0] * 3


# ---- the published network and a run ----


def test_the_published_network_has_the_layers_and_the_size_that_the_spec_states() -> None:
    layers = [*range(32), *[31] * 16]
    with torch.device("meta"):
        network = HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=16, caption_channels=[4096, 4096], axes_dims_rope=(64, 32, 32), llama_layers=layers
        )
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sum(name.endswith(SPEC.adapters.lora_targets["attention"]) for name in names) == (16 + 32) * 4
    assert not any(name.endswith("to_out.0") for name in names)
    assert sum(one.numel() for one in network.parameters()) == SPEC.parameters["full"]
    assert network.max_seq * 16 * 16 == SPEC.latents.canvas_px
    assert len(set(layers)) == SPEC.prompts.stacked_layers


@pytest.mark.parametrize("model_type", first_fast(["full", "lora"]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    more: dict[str, Any] = {"lora_type": "standard"} if model_type == "lora" else {}
    options = {"model": str(tiny_model("hidream")), "model_type": model_type, "max_train_steps": 4, **more}
    run = assert_resumes_exactly(tmp_path, model_family="hidream", hidream_use_load_balancing_loss=True, **options)
    if model_type == "lora":
        pipeline = HiDreamImagePipeline.from_pretrained(tiny_model("hidream"))
        pipeline.load_lora_weights(run.output_dir, weight_name="pytorch_lora_weights.safetensors")
        assert any("lora_A" in name for name, _ in pipeline.transformer.named_modules())
    else:
        whole = HiDreamImagePipeline.from_pretrained(run.output_dir / "pipeline")
        start = HiDreamImageTransformer2DModel.from_pretrained(tiny_model("hidream"), subfolder="transformer")
        moved = zip(whole.transformer.parameters(), start.parameters(), strict=True)
        assert not all(torch.equal(one, other) for one, other in moved)
        assert type(whole.scheduler).__name__ == "UniPCMultistepScheduler" and whole.scheduler.config.flow_shift == 3.0

"""Chroma beside diffusers: prompts, masks, losses, gradients, images, timesteps and the result of a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, tiny_model, tiny_of
from tests.helpers.params import first_fast
from tests.helpers.pictures import levels_apart
from tests.helpers.resuming import assert_resumes_exactly
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.one_file.contents import contents_of
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level, ModelUnavailable
from trainer_engine.families.chroma.family import Chroma
from trainer_engine.families.chroma.masks import attention_mask
from trainer_engine.families.chroma.spec import DENSITIES, SPEC
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective
from trainer_engine.weights.one_file import _converted

PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])
LATENTS, NOISE = fixed(3, 16, 8, 10, seed=1), fixed(3, 16, 8, 10, seed=2)
NOISY = (1 - SIGMAS.view(-1, 1, 1, 1)) * LATENTS + SIGMAS.view(-1, 1, 1, 1) * NOISE
IMAGE_TOKENS = 20


def tiny_chroma(**values: Any) -> Chroma:
    """The micro model on the CPU."""
    return tiny_of(Chroma, tiny_model("chroma"), **values)


@cache
def their_pipeline() -> ChromaPipeline:
    pipeline = ChromaPipeline.from_pretrained(tiny_model("chroma"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def their_prompts(*prompts: str) -> tuple[Tensor, Tensor]:
    """Embeddings and masks, as the pipeline makes them."""
    with torch.no_grad():
        embeds, _, mask, *_ = their_pipeline().encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return embeds, mask


def their_network() -> ChromaTransformer2DModel:
    return ChromaTransformer2DModel.from_pretrained(tiny_model("chroma"), subfolder="transformer").train()


def their_packed(latents: Tensor) -> Tensor:
    return ChromaPipeline._pack_latents(latents, *latents.shape)


def their_output(network: ChromaTransformer2DModel, mask: Tensor | None = None) -> Tensor:
    """As the pipeline calls the network. ``mask``: another one than the pipeline's."""
    embeds, own = their_prompts(*PROMPTS)
    output: Tensor = network(
        hidden_states=their_packed(NOISY),
        timestep=SIGMAS * 1000 / 1000,
        encoder_hidden_states=embeds,
        txt_ids=torch.zeros(embeds.shape[1], 3),
        img_ids=ChromaPipeline._prepare_latent_image_ids(3, 4, 5, "cpu", torch.float32),
        attention_mask=ChromaPipeline._prepare_attention_mask(None, 3, IMAGE_TOKENS, torch.float32, own) if mask is None else mask,
        return_dict=False,
    )[0]
    return output


def their_loss(network: ChromaTransformer2DModel) -> Tensor:
    return mse_loss(their_output(network), their_packed(NOISE - LATENTS))


def our_prediction(family: Chroma, network: torch.nn.Module) -> Tensor:
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    return family.predict(network, StepInputs(noisy_latents=NOISY, timesteps=SIGMAS, prompts=prompts))


def our_loss(family: Chroma, network: torch.nn.Module) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    assert torch.equal(objective.add_noise(LATENTS, NOISE, SIGMAS), NOISY)
    return objective.loss(our_prediction(family, network), objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()


# ---- prompts and latents ----


def test_prompts_equal_those_of_the_pipeline_with_their_padding() -> None:
    ours = tiny_chroma().encode_prompts([*PROMPTS, "a " * 2000])
    embeds, mask = their_prompts(*PROMPTS, "a " * 2000)
    assert torch.equal(torch.stack([one["embeds"] for one in ours]), embeds)
    assert torch.equal(torch.stack([one["mask"] for one in ours]).float(), mask)
    assert [len(one["embeds"]) for one in ours] == [SPEC.prompts.token_limit] * 4


def test_the_mask_shows_one_token_of_padding() -> None:
    family = tiny_chroma()
    (prompt,) = family.encode_prompts(["a red circle"])
    tokens = family.parts.load_tokenizer()(["a red circle"]).input_ids[0]
    assert prompt["mask"].tolist() == [1] * (len(tokens) + 1) + [0] * (SPEC.prompts.token_limit - len(tokens) - 1)
    (longest,) = family.encode_prompts(["a " * 2000])
    assert longest["mask"].all()


def test_a_shorter_limit_of_tokens_is_that_of_the_pipeline() -> None:
    (ours,) = tiny_chroma(tokenizer_max_length=16).encode_prompts(PROMPTS[:1])
    with torch.no_grad():
        embeds, mask = their_pipeline()._get_t5_prompt_embeds(PROMPTS[0], max_sequence_length=16)
    assert torch.equal(ours["embeds"], embeds[0]) and torch.equal(ours["mask"].float(), mask[0])


def test_states_of_padding_may_be_zeros_and_are_then_not_stored() -> None:
    plain, zero = tiny_chroma(), tiny_chroma(t5_padding="zero")
    whole, cut = (family.collate_prompts(family.encode_prompts(PROMPTS)) for family in (plain, zero))
    assert torch.equal(whole["mask"], cut["mask"])
    assert torch.equal(cut["embeds"], whole["embeds"] * whole["mask"][..., None]) and not torch.equal(cut["embeds"], whole["embeds"])
    assert max(len(one["embeds"]) for one in zero.encode_prompts(PROMPTS)) < 64


def test_latents_are_shifted_and_scaled() -> None:
    vae = AutoencoderKL.from_pretrained(tiny_model("chroma"), subfolder="vae")
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        wanted = (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    latents = tiny_chroma().encode_images(pixels)
    assert latents.shape == (2, 16, 8, 12) and torch.allclose(latents, wanted, atol=1e-5)


# ---- losses and gradients ----


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(gradient_checkpointing: bool) -> None:
    """Those of a network without gradient checkpointing, as it generates."""
    family = tiny_chroma(gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), their_network()
    assert_same_gradients(our_loss(family, network), network, their_loss(theirs), theirs)
    for name, one in network.named_parameters():
        assert one.grad is not None and one.grad.abs().sum() > 0, name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_an_adapters_gradients_equal_those_of_peft(gradient_checkpointing: bool) -> None:
    from peft import LoraConfig

    family = tiny_chroma(model_type="lora", lora_rank=4, lora_dropout=0, gradient_checkpointing=gradient_checkpointing)
    trainable, theirs = make_trainable(family, None), their_network().requires_grad_(False)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(family.adapter_targets("transformer"))))
    others = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(trainable.parameters, others, strict=True)):
            one.copy_(fixed(*one.shape, seed=number))
            other.copy_(one)
    ours, wanted = our_loss(family, trainable.network), their_loss(theirs)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    ours.backward()
    wanted.backward()
    for one, other in zip(trainable.parameters, others, strict=True):
        assert one.grad is not None and other.grad is not None and torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_mask_lowers_the_scores_of_padding_and_does_not_hide_it() -> None:
    """Masks of truth values, none, and the tokenizer's own mask all give other predictions than the network of the pipeline."""
    family, theirs = tiny_chroma(), their_network()
    ours = their_packed(our_prediction(family, family.load_network()))
    _, seen = their_prompts(*PROMPTS)
    image = torch.ones(3, IMAGE_TOKENS)
    numbers = torch.cat([seen, image], dim=1)
    assert torch.allclose(ours, their_output(theirs, numbers), atol=1e-6)
    assert torch.equal(attention_mask(seen, IMAGE_TOKENS), numbers)
    real = torch.stack([mask * (torch.arange(len(mask)) < mask.sum() - 1) for mask in seen])
    for other in (numbers.bool(), torch.ones_like(numbers), torch.zeros_like(numbers), torch.cat([real, image], dim=1)):
        assert not torch.allclose(ours, their_output(theirs, other), atol=1e-4)


def test_diffusers_drops_the_mask_of_single_blocks_with_gradient_checkpointing() -> None:
    """If this fails, diffusers passes it, and ``MaskOfSingleBlocks`` can go."""
    theirs = their_network()
    wanted = their_loss(theirs)
    theirs.enable_gradient_checkpointing()
    assert not torch.isclose(their_loss(theirs), wanted, rtol=1e-6)


def test_a_pass_between_forward_and_backward_leaves_the_mask_of_the_first() -> None:
    """Recomputed blocks take the mask of their own pass."""
    family = tiny_chroma(gradient_checkpointing=True)
    network, theirs = family.load_network(), their_network()
    loss = our_loss(family, network)
    with torch.no_grad():
        prompts = family.collate_prompts(family.encode_prompts(["a " * 2000]))
        family.predict(network, StepInputs(noisy_latents=LATENTS[:1], timesteps=SIGMAS[:1], prompts=prompts))
    assert_same_gradients(loss, network, their_loss(theirs), theirs)


@pytest.mark.parametrize("values", [{"gradient_checkpointing_interval": 2}, {"gradient_checkpointing_backend": "unsloth"}])
def test_other_ways_of_checkpointing_keep_the_mask(values: dict[str, Any]) -> None:
    family = tiny_chroma(gradient_checkpointing=True, **values)
    network, theirs = family.load_network(), their_network()
    assert_same_gradients(our_loss(family, network), network, their_loss(theirs), theirs)


# ---- timesteps ----


def test_timesteps_have_the_density_of_the_publishers_trainer_and_no_shift() -> None:
    """Beside a logit-normal one, the ends of the schedule get several times as many, and no part is left out."""
    family = tiny_chroma()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    generators = [torch.Generator().manual_seed(number) for number in range(20_000)]
    few, many = (objective.sample_timesteps(generators, tokens) for tokens in (256, 4096))
    counts = torch.histc(torch.cat([few, many]), bins=20, min=0, max=1) / 40_000
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    area = (2 * edges - 7.7 * (edges - 0.5) ** 3 / 3).diff()
    assert torch.allclose(counts, (area / area.sum()).float(), atol=0.006)
    assert few.mean().item() == pytest.approx(many.mean().item(), abs=0.01) == pytest.approx(0.5, abs=0.01)
    usual = make_objective(family.prediction_type, {}, tiny_chroma(flow_cubic_schedule_weights="").options.objective)
    logit_normal = usual.sample_timesteps([torch.Generator().manual_seed(number) for number in range(4000)], 256)
    assert counts[0] > 3 * (logit_normal < 0.05).float().mean()


def test_the_densities_give_way_to_another_distribution_and_to_a_shift() -> None:
    assert SPEC.defaults["flow_schedule_shift"] == 0 and len(DENSITIES) == 11
    uniform = tiny_chroma(flow_use_uniform_schedule=True)
    shifted = tiny_chroma(flow_schedule_shift=3)
    means = []
    for family in (uniform, shifted):
        objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
        sampled = objective.sample_timesteps([torch.Generator().manual_seed(number) for number in range(4000)], 256)
        means.append((sampled.mean().item(), (sampled < 0.05).float().mean().item()))
    assert means[0] == (pytest.approx(0.5, abs=0.02), pytest.approx(0.05, abs=0.015))
    assert means[1][0] > 0.65


# ---- images ----


def requested(family: Chroma, **how: Any) -> GenerationRequest:
    prompt, negative = family.encode_prompts(["a red circle", "blue"])
    return GenerationRequest(**{"prompt": prompt, "negative": negative, "width": 64, "height": 96, "steps": 3, "seed": 5, **how})


@pytest.mark.parametrize(("sampler", "guidance"), [(None, 3.0), (None, 1.0), ("euler", 3.0), ("unipc", 3.0), ("dpm++", 3.0)])
def test_images_equal_those_of_the_pipeline(sampler: str | None, guidance: float) -> None:
    family = tiny_chroma()
    pipeline, steps = family.make_pipeline(family.load_network().eval(), sampler=sampler), list[SamplerStep]()
    ours = family.generate(pipeline, requested(family, guidance=guidance), on_step=steps.append)
    theirs = laid_out_alike(ChromaPipeline.from_pretrained(tiny_model("chroma"), scheduler=pipeline.scheduler))
    given = {"negative_prompt": "blue", "height": 96, "width": 64, "num_inference_steps": 3, "guidance_scale": guidance}
    latents = theirs("a red circle", generator=torch.Generator().manual_seed(5), output_type="latent", **given).images
    wanted = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).images[0]
    assert isinstance(ours, Image.Image)
    assert [step.number for step in steps] == [1, 2, 3]
    assert torch.equal(their_packed(steps[-1].latents), latents)
    assert ours.tobytes() == wanted.tobytes()


def test_real_guidance_takes_the_place_of_guidance_after_the_steps_without_it() -> None:
    family = tiny_chroma()
    pipeline = family.make_pipeline(family.load_network().eval())
    three, one, late, never, real = (
        family.generate(pipeline, requested(family, **how))
        for how in (
            {"guidance": 3.0},
            {"guidance": 1.0},
            {"guidance": 1.0, "true_guidance": 3.0, "unguided_steps": 1},
            {"guidance": 5.0, "true_guidance": 3.0, "unguided_steps": 3},
            {"guidance": 5.0, "true_guidance": 3.0},
        )
    )
    assert real.tobytes() == three.tobytes()
    assert levels_apart(never, one) <= 1 < levels_apart(three, one)  # a difference of 1 is added and taken away again
    assert levels_apart(late, one) > 1 < levels_apart(late, three)


# ---- runs ----


@pytest.mark.parametrize("model_type", first_fast(["full", "lora"]))
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path, model_type: str) -> None:
    usual = {"model_family": "chroma", "model": str(tiny_model("chroma")), "max_train_steps": 4}
    straight = assert_resumes_exactly(tmp_path, **usual, model_type=model_type, train_batch_size=2, gradient_checkpointing=True)
    if model_type == "full":
        pipeline = ChromaPipeline.from_pretrained(straight.output_dir / "pipeline")
        assert isinstance(pipeline.transformer, ChromaTransformer2DModel)
        assert pipeline("a cat", height=32, width=32, num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)


# ---- what validate says ----


def found(**values: Any) -> dict[str, tuple[str, Level]]:
    usual = {"model_family": "chroma", "model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
    return {problem.option: (problem.code, problem.level) for problem in check_options({**usual, **values})[1]}


def test_a_shipped_configuration_of_the_format_has_no_problem() -> None:
    assert found(flow_schedule_shift=3, flux_lora_target="all", validation_guidance_real=3.0, validation_no_cfg_until_timestep=1) == {}


def test_another_distribution_may_be_asked_for_beside_the_densities_of_the_family() -> None:
    for name in ("flow_use_uniform_schedule", "flow_use_beta_schedule", "flux_fast_schedule"):
        assert found(**{name: True}) == {}
    own = found(flow_use_uniform_schedule=True, flow_cubic_schedule_weights="[1, 2]")
    assert own == {"flow_cubic_schedule_weights": ("two_schedules", Level.ERROR)}
    assert found(flow_sigmoid_scale=2.0) == {"flow_sigmoid_scale": ("no_effect", Level.NOTE)}
    assert found(flow_sigmoid_scale=2.0, flow_cubic_schedule_weights="") == {}


def test_options_of_a_network_that_it_has_not_are_named() -> None:
    assert found(flux_lora_target="controlnet") == {"flux_lora_target": ("not_for_family", Level.ERROR)}
    assert found(flux_guidance_value=3.5) == {"flux_guidance_value": ("other_family", Level.NOTE)}
    assert found(flux_attention_masked_training=True) == {"flux_attention_masked_training": ("other_family", Level.NOTE)}
    assert found(controlnet=True)["controlnet"][1] is Level.ERROR and found(control=True)["control"][1] is Level.ERROR
    assert found(attention_mechanism="native-flash")["attention_mechanism"][1] is Level.ERROR


@pytest.mark.parametrize("name", ["lodestones/Chroma1-Flash", "models/Chroma1-HD-Flash", "me/chroma-turbo"])
def test_distilled_weights_are_recognised(name: str) -> None:
    assert SPEC.distillation is not None and SPEC.distillation.base == SPEC.flavours["base"]
    assert SPEC.distillation.reason(flavour="base", name=name, scheduler={}, network={})
    assert SPEC.distillation.reason(flavour="flash", name="", scheduler={}, network={})
    for flavour in ("base", "hd"):
        assert not SPEC.distillation.reason(flavour=flavour, name=SPEC.flavours[flavour], scheduler={}, network={})


# ---- the published weights ----


def test_the_published_network_has_the_layers_and_the_size_that_the_spec_states() -> None:
    with torch.device("meta"):
        network = ChromaTransformer2DModel()
    names = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sum(parameter.numel() for parameter in network.parameters()) == SPEC.parameters["base"]
    for target, endings in SPEC.adapters.lora_targets.items():
        for ending in endings:
            assert any(name == ending or name.endswith(f".{ending}") for name in names), f"{target}: {ending}"
    blocks = [name for name in names if "transformer_blocks." in name]
    assert all(name.endswith(SPEC.adapters.lora_targets["ai-toolkit"]) for name in blocks)


def test_a_file_in_the_layout_of_the_publisher_fills_every_weight() -> None:
    """Its keys, at the published size without memory."""
    width, wide, shapes = 3072, 12288, dict[str, tuple[int, ...]]()

    def layer(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    for name, outputs, inputs in (("img_in", width, 64), ("txt_in", width, 4096), ("final_layer.linear", 64, width)):
        layer(name, outputs, inputs)
    layer("distilled_guidance_layer.in_proj", 5120, 64)
    layer("distilled_guidance_layer.out_proj", width, 5120)
    for number in range(5):
        layer(f"distilled_guidance_layer.layers.{number}.in_layer", 5120, 5120)
        layer(f"distilled_guidance_layer.layers.{number}.out_layer", 5120, 5120)
        shapes[f"distilled_guidance_layer.norms.{number}.scale"] = (5120,)
    of_a_side = (("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.0", wide, width), ("mlp.2", width, wide))
    for side in (f"double_blocks.{number}.{side}" for number in range(19) for side in ("img", "txt")):
        for name, outputs, inputs in of_a_side:
            layer(f"{side}_{name}", outputs, inputs)
        shapes.update({f"{side}_attn.norm.{kind}_norm.scale": (128,) for kind in ("query", "key")})
    for block in (f"single_blocks.{number}" for number in range(38)):
        layer(f"{block}.linear1", 3 * width + wide, width)
        layer(f"{block}.linear2", width, width + wide)
        shapes.update({f"{block}.norm.{kind}_norm.scale": (128,) for kind in ("query", "key")})
    assert contents_of(shapes).family == "chroma"
    with torch.device("meta"):
        wanted = {name: weight.shape for name, weight in ChromaTransformer2DModel().state_dict().items()}
        tensors = {f"model.diffusion_model.{name}": torch.empty(shape) for name, shape in shapes.items()}
    converted = _converted(ChromaTransformer2DModel, tensors, {})
    assert {name: weight.shape for name, weight in converted.items()} == wanted


def test_networks_of_flux_and_chroma_are_refused_in_each_others_runs() -> None:
    source = "pretrained_transformer_model_name_or_path"
    with pytest.raises(ModelUnavailable, match="holds a FluxTransformer2DModel, which is not the network of Chroma"):
        tiny_chroma(**{source: str(tiny_model("flux"))}).load_network()
    with pytest.raises(ModelUnavailable, match=r"holds a ChromaTransformer2DModel, which is not the network of Flux\.1"):
        tiny_of(Flux, tiny_model("flux"), **{source: str(tiny_model("chroma"))}).load_network()


def test_flash_samples_in_few_steps_without_guidance() -> None:
    chosen = ("resolution", "validation_guidance", "validation_num_inference_steps")
    found = {flavour: [SPEC.defaults_of(flavour)[name] for name in chosen] for flavour in SPEC.flavours}
    assert found == {"base": [512, 3.0, 28], "hd": [1024, 3.0, 28], "flash": [512, 1.0, 8]}

"""The ControlNet of Stable Diffusion 3.5: the loss and every gradient beside a reference that uses diffusers alone, and runs of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel, StableDiffusion3ControlNetPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, laid_out_alike, options_with, tiny_model
from tests.helpers.pictures import levels_apart
from tests.helpers.tiny_run import run_of_ranks
from tests.trainer_engine.config.test_controlnet import codes, problems_of
from tests.trainer_engine.families.controlnet.runs import controlled_datasets, controlled_run
from tests.trainer_engine.families.controlnet.test_unets import awake
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import InvalidOptions, Level
from trainer_engine.contract.events import ImageEvent
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.sd3.controlnet import controlnet_of
from trainer_engine.families.sd3.family import StableDiffusion3
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

PROMPTS = ["a red circle", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.2, 0.9])
LATENTS, NOISE, PIXELS = fixed(2, 16, 8, 10, seed=1), fixed(2, 16, 8, 10, seed=2), fixed(2, 3, 64, 80, seed=3).clamp(-1, 1)
WEIGHTS = "diffusion_pytorch_model.safetensors"
LIMIT = 154


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model with a transformer of five blocks, so that a ControlNet has two."""
    place = tmp_path_factory.mktemp("sd3") / "deep"
    shutil.copytree(tiny_model("sd3"), place)
    config = json.loads((place / "transformer" / "config.json").read_text())
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        cast("Any", SD3Transformer2DModel.from_config({**config, "num_layers": 5})).save_pretrained(place / "transformer")
    return place


def family_of(base: Path, **values: Any) -> StableDiffusion3:
    options = options_with(model_family="sd3", pretrained_model_name_or_path=str(base), **{"controlnet": True, **values})
    return cast("StableDiffusion3", load_family(options, resolve_devices(options, torch.device("cpu"))))


def stored(base: Path, place: Path, **changes: Any) -> Path:
    """Weights of a ControlNet of which every layer has an effect, made by diffusers alone with other arguments."""
    transformer: Any = SD3Transformer2DModel.from_pretrained(base / "transformer")
    config = {**transformer.config, "num_layers": 2, **changes}
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        awake(SD3ControlNetModel.from_config(config)).save_pretrained(place)  # type: ignore[operator]
    return place


def our_loss(family: StableDiffusion3, network: Any) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(LATENTS, NOISE, SIGMAS),
        timesteps=SIGMAS,
        prompts=family.collate_prompts(family.encode_prompts(PROMPTS)),
        control=family.encode_images(PIXELS),
    )
    return objective.loss(family.predict(network, inputs), objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()


@torch.no_grad()
def their_prompts(base: Path, controlnet: SD3ControlNetModel) -> tuple[Tensor, Tensor]:
    pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(base, controlnet=controlnet)
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=LIMIT)
    return embeds, pooled


def their_loss(base: Path, controlnet: Any) -> Tensor:
    """As ``StableDiffusion3ControlNetPipeline`` calls the two networks, with the most likely latents of the control images."""
    transformer = SD3Transformer2DModel.from_pretrained(base / "transformer").requires_grad_(False)
    vae: Any = AutoencoderKL.from_pretrained(base / "vae")
    embeds, pooled = their_prompts(base, controlnet)
    without = controlnet.config.force_zeros_for_pooled_projection
    with torch.no_grad():
        control = (vae.encode(PIXELS).latent_dist.mode() - (0 if without else vae.config.shift_factor)) * vae.config.scaling_factor
    sigma = SIGMAS.view(-1, 1, 1, 1)
    shared = {"hidden_states": (1 - sigma) * LATENTS + sigma * NOISE, "encoder_hidden_states": embeds, "timestep": SIGMAS * 1000}
    seen = torch.zeros_like(pooled) if without else pooled
    samples = controlnet(**shared, pooled_projections=seen, controlnet_cond=control, return_dict=False)[0]
    output = transformer(**shared, pooled_projections=pooled, block_controlnet_hidden_states=samples, return_dict=False)[0]
    return mse_loss(output, NOISE - LATENTS)


@pytest.mark.parametrize(("without_pooled", "gradient_checkpointing"), [(True, False), (False, False), (True, True)])
def test_loss_and_every_gradient_equal_those_of_diffusers(
    base: Path, without_pooled: bool, gradient_checkpointing: bool, tmp_path: Path
) -> None:
    mine = stored(base, tmp_path / "mine", force_zeros_for_pooled_projection=without_pooled)
    family = family_of(base, controlnet_model_name_or_path=str(mine), gradient_checkpointing=gradient_checkpointing)
    network = family.load_network()
    theirs: Any = SD3ControlNetModel.from_pretrained(mine).train()
    assert len(theirs.transformer_blocks) == 2
    assert_same_gradients(our_loss(family, network), network, their_loss(base, theirs), theirs, unread=family.unread_parameters(network))


def test_control_latents_with_the_shift_of_the_autoencoder_give_another_loss(base: Path, tmp_path: Path) -> None:
    """The trap: cached latents are shifted, and the pipeline shifts those of a control image only if the ControlNet sees the prompt."""
    family = family_of(base, controlnet_model_name_or_path=str(stored(base, tmp_path / "mine")))
    network = family.load_network()
    right = our_loss(family, network).item()
    family.__dict__["_vae_shift"] = 0.0
    assert abs(our_loss(family, network).item() - right) > 1e-5 * right


def test_a_new_controlnet_copies_the_first_blocks_and_changes_nothing_yet(base: Path) -> None:
    family, plain = family_of(base), family_of(base, controlnet=False)
    network: Any = family.load_network()
    transformer: Any = plain.load_network()
    assert len(network.transformer_blocks) == 2 and network.config.extra_conditioning_channels == 0
    assert network.config.force_zeros_for_pooled_projection, "as the ControlNets of other tools"
    for ours, theirs in zip(network.transformer_blocks, transformer.transformer_blocks, strict=False):
        assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(our_loss(family, network), our_loss(plain, transformer))


def test_a_new_controlnet_has_as_many_blocks_as_it_is_given(base: Path) -> None:
    network: Any = family_of(base, controlnet_custom_config='{"num_layers": 1}').load_network()
    assert len(network.transformer_blocks) == 1
    transformer: Any = SD3Transformer2DModel.from_pretrained(base / "transformer")
    with pytest.raises(InvalidOptions) as refused:
        controlnet_of(transformer, num_layers=3)
    assert refused.value.problems[0].code == "too_many"
    controlnet_of(transformer, num_layers=1)
    assert transformer.config.num_layers == 5


@pytest.mark.parametrize(("flavour", "layers", "code"), [("medium", 12, ""), ("medium", 13, "too_many"), ("large", 19, "")])
def test_validation_refuses_layers_that_the_transformer_does_not_read(flavour: str, layers: int, code: str) -> None:
    problems = problems_of("sd3", model_flavour=flavour, controlnet_custom_config=json.dumps({"num_layers": layers}))
    assert codes(problems) == ({("controlnet_custom_config.num_layers", code)} if code else set())


@pytest.mark.parametrize("layers", [1, 2, 4, 7])
def test_layers_that_reach_no_prediction_are_not_trained(layers: int, base: Path, tmp_path: Path) -> None:
    """Processes would wait for their gradients. A ControlNet with as many layers as its transformer has some that are not read."""
    family = family_of(base, controlnet_model_name_or_path=str(stored(base, tmp_path / "mine", num_layers=layers)))
    network = make_trainable(family, None).network
    our_loss(family, network).backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    theirs: Any = SD3ControlNetModel.from_pretrained(tmp_path / "mine").train()
    their_loss(base, theirs).backward()
    assert without == {name for name, parameter in theirs.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize(
    "changes", [{"extra_conditioning_channels": 1}, {"use_pos_embed": False, "joint_attention_dim": None}, {"pooled_projection_dim": 8}]
)
def test_controlnets_of_another_kind_are_refused(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    mine = stored(base, tmp_path / "mine", **changes)
    with pytest.raises(InvalidOptions) as refused:
        family_of(base, controlnet_model_name_or_path=str(mine)).load_network()
    (problem,) = refused.value.problems
    assert problem.code == "other_model" and next(iter(changes)) in problem.message


@pytest.mark.parametrize("without_pooled", [True, False])
def test_an_image_equals_that_of_the_pipeline(without_pooled: bool, base: Path, tmp_path: Path) -> None:
    mine = stored(base, tmp_path / "mine", force_zeros_for_pooled_projection=without_pooled)
    family = family_of(base, controlnet_model_name_or_path=str(mine))
    (prompt,), (negative,) = (family.encode_prompts([text]) for text in ("a red circle", "blue"))
    state, control = torch.get_rng_state(), Image.effect_noise((96, 64), 90).convert("RGB")
    pipeline = family.make_pipeline(family.load_network().eval())
    sizes: dict[str, Any] = {"height": 64, "width": 96}
    request = GenerationRequest(prompt=prompt, negative=negative, steps=3, guidance=4.0, seed=5, control=control, **sizes)
    ours = family.generate(pipeline, request)
    assert torch.equal(torch.get_rng_state(), state), "the pipeline samples the latents of the control image from the global state"
    theirs = laid_out_alike(StableDiffusion3ControlNetPipeline.from_pretrained(base, controlnet=SD3ControlNetModel.from_pretrained(mine)))
    given: dict[str, Any] = {"negative_prompt": "blue", "num_inference_steps": 3, "guidance_scale": 4.0, "max_sequence_length": LIMIT}
    with torch.random.fork_rng([]):
        generator = torch.Generator().manual_seed(5)
        torch.manual_seed(5)
        wanted = theirs("a red circle", control_image=control, generator=generator, **sizes, **given).images[0]
    assert ours.tobytes() == wanted.tobytes()
    other = family.generate(pipeline, GenerationRequest(**{**request.__dict__, "control": Image.new("RGB", (96, 64))}))
    assert levels_apart(ours, other) > 1, "it follows the control image"


@pytest.mark.parametrize("flavour", ["medium", "large"])
def test_the_number_of_weights_is_that_of_the_published_transformer(flavour: str) -> None:
    heads, blocks, dual = {"medium": (24, 24, tuple(range(13))), "large": (38, 38, ())}[flavour]
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            num_layers=blocks,
            num_attention_heads=heads,
            caption_projection_dim=64 * heads,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
            joint_attention_dim=4096,
        )
        made = SD3ControlNetModel.from_config({**transformer.config, "num_layers": 12})
    spec = specs()["sd3"]
    assert spec.controlnet is not None
    assert sum(one.numel() for one in transformer.parameters()) == spec.parameters[flavour]
    assert sum(one.numel() for one in cast("Any", made).parameters()) == spec.controlnet.parameters[flavour]


def test_options_that_its_pipeline_has_not_are_noted() -> None:
    problems = problems_of("sd3", validation_guidance_skip_layers="[7]")
    assert ("validation_guidance_skip_layers", "no_effect") in codes(problems, Level.NOTE) and not codes(problems)


def test_an_adapter_on_a_new_controlnet_trains_the_layers_that_have_no_copy(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2}
    names = make_trainable(family_of(base, **options), None).names
    whole = {name for name in names if "lora" not in name}
    assert {name.split(".")[0] for name in whole} == {"controlnet_blocks", "pos_embed_input"}
    run = controlled_run(tmp_path, "sd3", learning_rate=1e-2, max_train_steps=3, **options)
    below: Any = SD3ControlNetModel.from_pretrained(run.output_dir / "controlnet")
    assert below.pos_embed_input.proj.weight.any() and below.controlnet_blocks[0].weight.any()
    assert all(key.startswith("controlnet.") for key in load_file(run.output_dir / "pytorch_lora_weights.safetensors"))


def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_disable": False, "validation_step_interval": 4, "validation_num_inference_steps": 2}
    options: dict[str, Any] = {"validation_resolution": "64x64", "validation_guidance": 2.0, "num_eval_images": 1}
    straight = controlled_run(tmp_path / "straight", "sd3", **shown, **options)
    controlled_run(tmp_path / "resumed", "sd3", stop_after=2, validation_disable=True)
    resumed = controlled_run(tmp_path / "resumed", "sd3", resume_from_checkpoint="latest")
    one, other = ((run.output_dir / "controlnet" / WEIGHTS).read_bytes() for run in (straight, resumed))
    assert one == other
    assert straight.heard.of(ImageEvent)
    code = (straight.output_dir / "controlnet" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(straight.output_dir / "controlnet")), found)
    assert isinstance(found["pipeline"], StableDiffusion3ControlNetPipeline)
    given: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
    assert found["pipeline"]("a cat", control_image=Image.new("RGB", (64, 64)), **given).images[0].size == (64, 64)


@pytest.mark.slow
def test_two_ranks_train_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"max_train_steps": 2, "caption_dropout_probability": 0.0, "learning_rate": 1e-3, "lr_warmup_steps": 0}
    alone = controlled_run(tmp_path / "alone", "sd3", **quiet, train_batch_size=2)
    place, model = tmp_path / "shared", {"model_family": "sd3", "model": str(tiny_model("sd3")), "controlnet": True}
    run = run_of_ranks(place, datasets=controlled_datasets(place), **model, **quiet)
    result, wanted = (load_file(one.output_dir / "controlnet" / WEIGHTS) for one in (run, alone))
    assert result.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(result[key], tensor, rtol=1e-3, atol=1e-5)

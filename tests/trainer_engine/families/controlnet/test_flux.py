"""The ControlNet of Flux.1: the loss and every gradient beside a reference that uses diffusers alone, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import fixed, tiny_model
from tests.trainer_engine.config.test_controlnet import codes, problems_of
from tests.trainer_engine.families.controlnet.runs import controlled_run
from tests.trainer_engine.families.controlnet.test_unets import awake
from tests.trainer_engine.families.flux.models import tiny_flux
from tests.trainer_engine.families.flux.test_numerics import LATENTS, NOISE, PROMPTS, SIGMAS
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import ImageEvent
from trainer_engine.families.common.latent_squares import pack, positions, unpack
from trainer_engine.families.flux.components import controlnet_of
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

CONTROL = fixed(2, 16, 8, 12, seed=9)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def their_loss(controlnet: FluxControlNetModel, folder: Path, guidance: float | None) -> Tensor:
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer").requires_grad_(False)
    noisy = torch.lerp(LATENTS, NOISE, SIGMAS.view(-1, 1, 1, 1))
    shared = {
        "hidden_states": pack(noisy),
        "timestep": SIGMAS,
        "guidance": None if guidance is None else torch.full((2,), guidance),
        "pooled_projections": torch.stack([prompt["pooled"] for prompt in PROMPTS]),
        "encoder_hidden_states": torch.stack([prompt["embeds"] for prompt in PROMPTS]),
        "txt_ids": torch.zeros(PROMPTS[0]["embeds"].shape[0], 3),
        "img_ids": positions(8, 12),
        "return_dict": False,
    }
    double, single = controlnet(**shared, controlnet_cond=pack(CONTROL))
    output = transformer(**shared, controlnet_block_samples=double, controlnet_single_block_samples=single)[0]
    return mse_loss(unpack(output, 8, 12), NOISE - LATENTS)


@pytest.mark.parametrize("flavour", ["dev", "schnell"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_diffusers(flavour: str, gradient_checkpointing: bool, tmp_path: Path) -> None:
    family = tiny_flux(flavour, controlnet=True, gradient_checkpointing=gradient_checkpointing, flux_guidance_value=2.0)
    network = awake(family.load_network())
    family.save_component("controlnet", network, tmp_path)
    theirs = FluxControlNetModel.from_pretrained(tmp_path).train()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(LATENTS, NOISE, SIGMAS),
        timesteps=SIGMAS,
        prompts=family.collate_prompts(PROMPTS),
        control=CONTROL,
    )

    loss = objective.loss(family.predict(network, inputs), objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()
    wanted = their_loss(theirs, tiny_model("flux", flavour=flavour), 2.0 if flavour == "dev" else None)

    assert_same_gradients(loss, network, wanted, theirs)


def test_a_new_controlnet_has_as_many_blocks_as_it_is_given() -> None:
    network: Any = tiny_flux(controlnet=True, controlnet_custom_config='{"num_layers": 1, "num_single_layers": 1}').load_network()
    assert (len(network.transformer_blocks), len(network.single_transformer_blocks)) == (1, 1)
    transformer = FluxTransformer2DModel.from_pretrained(tiny_model("flux", flavour="dev") / "transformer")
    with pytest.raises(InvalidOptions) as refused:
        controlnet_of(transformer, num_layers=19)
    assert refused.value.problems[0].code == "too_many"


def test_an_adapter_may_change_the_layers_that_only_a_controlnet_has(tmp_path: Path) -> None:
    start: Any = awake(tiny_flux(controlnet=True).load_network())
    start.save_pretrained(tmp_path / "mine")
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "flux_lora_target": "controlnet"}
    family = tiny_flux(controlnet=True, controlnet_model_name_or_path=str(tmp_path / "mine"), **options)
    names = make_trainable(family, None).names
    assert any("controlnet_x_embedder" in name for name in names) and any("controlnet_blocks.0" in name for name in names)


@pytest.mark.slow
def test_an_adapter_on_a_new_controlnet_reaches_every_layer_that_has_no_copy(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "learning_rate": 1e-2, "max_train_steps": 3}
    run = controlled_run(tmp_path, "flux", model_flavour="dev", **options)
    below: Any = FluxControlNetModel.from_pretrained(run.output_dir / "controlnet")
    assert below.controlnet_x_embedder.weight.any() and all(layer.weight.any() for layer in below.controlnet_blocks)
    reached = controlled_run(tmp_path / "other", "flux", model_flavour="dev", flux_lora_target="controlnet", **options)
    tensors = load_file(reached.output_dir / "pytorch_lora_weights.safetensors")
    assert tensors["controlnet.controlnet_blocks.0.lora_B.weight"].any()
    untouched: Any = FluxControlNetModel.from_pretrained(reached.output_dir / "controlnet")
    assert not untouched.controlnet_blocks[0].weight.any()


def test_layers_of_a_controlnet_and_masks_of_prompts_are_refused_where_there_are_none() -> None:
    options: dict[str, Any] = {"model_flavour": "dev", "model_type": "lora", "lora_type": "standard"}
    alone = problems_of("flux", controlnet=False, flux_lora_target="controlnet", **options)
    assert ("flux_lora_target", "needs_controlnet") in codes(alone)
    zeros = problems_of("flux", flux_lora_target="controlnet", use_dora=True, **options)
    assert ("use_dora", "not_with_zeros") in codes(zeros)
    masked = problems_of("flux", model_flavour="dev", flux_attention_masked_training=True)
    assert ("flux_attention_masked_training", "not_with_controlnet") in codes(masked)
    assert ("controlnet", "not_for_flavour") in codes(problems_of("flux", model_flavour="kontext"))


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_disable": False, "validation_step_interval": 4, "validation_num_inference_steps": 2}
    options: dict[str, Any] = {
        "model_flavour": "dev",
        "validation_resolution": "64x64",
        "validation_guidance_real": 2.0,
        "num_eval_images": 1,
    }
    straight = controlled_run(tmp_path / "straight", "flux", **shown, **options)
    controlled_run(tmp_path / "resumed", "flux", stop_after=2, validation_disable=True, model_flavour="dev")
    resumed = controlled_run(tmp_path / "resumed", "flux", resume_from_checkpoint="latest", model_flavour="dev")
    one, other = ((run.output_dir / "controlnet" / WEIGHTS).read_bytes() for run in (straight, resumed))
    assert one == other
    assert straight.heard.of(ImageEvent)
    controlnet = FluxControlNetModel.from_pretrained(straight.output_dir / "controlnet")
    pipeline = FluxControlNetPipeline.from_pretrained(tiny_model("flux", flavour="dev"), controlnet=controlnet)
    arguments: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
    assert pipeline("a cat", control_image=Image.new("RGB", (64, 64)), **arguments).images[0].size == (64, 64)

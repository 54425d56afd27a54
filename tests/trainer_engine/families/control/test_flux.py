"""Flux.1 with control images: numbers beside diffusers alone, and what base weights of each width become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import laid_out_alike, tiny_model
from tests.trainer_engine.families.flux.models import tiny_flux
from tests.trainer_engine.families.flux.test_numerics import LATENTS, NOISE, PROMPTS, SIGMAS, fixed, their_packed
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.flux.family import Flux
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.objectives.build import make_objective

CONTROL = fixed(2, 16, 8, 12, seed=9)
LORA: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 4, "lora_dropout": 0.0}
EDGES = Image.fromarray(np.random.default_rng(3).integers(0, 255, (72, 48, 3), dtype=np.uint8))


def controlled(flavour: str = "dev", **values: Any) -> Flux:
    return tiny_flux(flavour, control=True, **values)


def wide_model(place: Path, factor: int = 2, flavour: str = "dev") -> Path:
    """The small model with a first layer that sees ``factor`` images, and weights in all of it."""
    theirs = padded(their_plain(flavour), factor)
    nn.init.normal_(theirs.x_embedder.weight, std=0.1, generator=torch.Generator().manual_seed(4))
    folder = place / "wide"
    folder.mkdir()
    for part in tiny_model("flux", flavour=flavour).iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "transformer").unlink()
    theirs.save_pretrained(folder / "transformer")
    return folder


def their_plain(flavour: str = "dev") -> FluxTransformer2DModel:
    network: FluxTransformer2DModel = FluxTransformer2DModel.from_pretrained(tiny_model("flux", flavour=flavour) / "transformer")
    return network


def padded(plain: FluxTransformer2DModel, factor: int = 2) -> FluxTransformer2DModel:
    """A network that sees ``factor`` images, made by diffusers from its configuration, with the weights of one that sees one."""
    made: Any = FluxTransformer2DModel.from_config({**plain.config, "in_channels": 64 * factor, "out_channels": 64})
    state = plain.state_dict()
    state["x_embedder.weight"] = torch.cat([state["x_embedder.weight"], torch.zeros(32, 64 * (factor - 1))], dim=1)
    made.load_state_dict(state)
    return made  # type: ignore[no-any-return]


def our_loss(family: Flux, network: nn.Module) -> Tensor:
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(LATENTS, NOISE, SIGMAS),
        timesteps=SIGMAS,
        prompts=family.collate_prompts(PROMPTS),
        control=CONTROL,
    )
    return objective.loss(family.predict(network, inputs), objective.target(LATENTS, NOISE, SIGMAS), SIGMAS).mean()


def their_prediction(network: FluxTransformer2DModel) -> Tensor:
    """The output for noisy latents whose channels are followed by those of the control image."""
    noisy = SIGMAS.view(-1, 1, 1, 1) * NOISE + (1 - SIGMAS.view(-1, 1, 1, 1)) * LATENTS
    output: Tensor = network(
        hidden_states=torch.cat([their_packed(noisy), their_packed(CONTROL)], dim=2),
        timestep=SIGMAS,
        guidance=torch.ones(2) if network.config.guidance_embeds else None,
        pooled_projections=torch.stack([prompt["pooled"] for prompt in PROMPTS]),
        encoder_hidden_states=torch.stack([prompt["embeds"] for prompt in PROMPTS]),
        txt_ids=torch.zeros(512, 3),
        img_ids=FluxControlPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
        return_dict=False,
    )[0]
    return output


def their_loss(network: FluxTransformer2DModel) -> Tensor:
    return mse_loss(their_prediction(network), their_packed(NOISE - LATENTS))


def assert_same(ours: Tensor, mine: dict[str, nn.Parameter], theirs: Tensor, others: dict[str, nn.Parameter]) -> None:
    """Losses and the gradients of parameters of the same names agree."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert mine.keys() == others.keys() and mine
    for name, one in mine.items():
        wanted = others[name].grad
        assert (one.grad is None) == (wanted is None), name
        assert one.grad is None or torch.allclose(one.grad, wanted, rtol=1e-4, atol=1e-6), name  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("flavour", ["dev", "schnell"])
def test_loss_and_every_gradient_of_a_full_run_equal_those_of_diffusers(flavour: str, gradient_checkpointing: bool) -> None:
    family = controlled(flavour, gradient_checkpointing=gradient_checkpointing)
    network, theirs = family.load_network(), padded(their_plain(flavour)).train()
    for one in (network, theirs):
        with torch.no_grad():
            one.get_parameter("x_embedder.weight")[:, 64:] = fixed(32, 64, seed=11) * 0.1
    assert_same(our_loss(family, network), dict(network.named_parameters()), their_loss(theirs), dict(theirs.named_parameters()))
    assert network.get_parameter("x_embedder.weight").grad[:, 64:].any(), "the control image teaches the new channels"  # type: ignore[index]


def test_loss_and_every_gradient_of_an_adapter_equal_those_of_its_file_in_diffusers(tmp_path: Path) -> None:
    family = controlled(**LORA)
    trainable = make_trainable(family, None)
    for number, parameter in enumerate(trainable.parameters):
        parameter.data = fixed(*parameter.shape, seed=number) * 0.1
    trainable.save(tmp_path)
    pipeline: Any = FluxControlPipeline.from_pretrained(tiny_model("flux", flavour="dev"))
    pipeline.load_lora_weights(tmp_path, adapter_name="default")
    theirs = pipeline.transformer.train()
    assert theirs.config.in_channels == 128
    others = {name: one.requires_grad_() for name, one in theirs.named_parameters() if "lora_" in name}
    mine = {name: one for name, one in trainable.network.named_parameters() if one.requires_grad}
    assert_same(our_loss(family, trainable.network), mine, their_loss(theirs), others)


@pytest.mark.parametrize("values", [{}, LORA])
def test_a_run_begins_with_the_predictions_of_the_plain_network(values: dict[str, Any]) -> None:
    family, plain = controlled(**values), tiny_flux()
    network = make_trainable(family, None).network
    inputs = StepInputs(noisy_latents=NOISE, timesteps=SIGMAS, prompts=family.collate_prompts(PROMPTS), control=CONTROL)
    with torch.no_grad():
        wanted = plain.predict(plain.load_network(), replace(inputs, control=None))
        assert torch.allclose(family.predict(network, inputs), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["all", "nano", "all+ffs+embedder"])
def test_an_adapter_always_includes_the_widened_layer(target: str) -> None:
    names = make_trainable(controlled(**LORA, flux_lora_target=target), None).names
    assert [name for name in names if "x_embedder" in name] == ["x_embedder.lora_A.default.weight", "x_embedder.lora_B.default.weight"]
    chosen = make_trainable(controlled(**LORA, peft_lora_target_modules='["attn.to_q"]'), None).names
    assert any("x_embedder" in name for name in chosen) and any("to_q" in name for name in chosen)


def request_of(family: Flux, **values: Any) -> GenerationRequest:
    (prompt,) = family.encode_prompts(["a cat"])
    return GenerationRequest(
        prompt=prompt, negative=prompt, width=64, height=96, steps=3, guidance=3.5, seed=5, **{"control": EDGES, **values}
    )


def test_a_generated_image_equals_that_of_the_pipeline(tmp_path: Path) -> None:
    family = controlled(model=wide_model(tmp_path))
    pipeline = family.make_pipeline(family.load_network().eval())
    taken: list[int] = []
    request = request_of(family)
    ours = family.generate(pipeline, request, on_step=lambda step: taken.append(step.number))
    theirs: Any = laid_out_alike(FluxControlPipeline.from_pretrained(tmp_path / "wide"))
    how: dict[str, Any] = {"width": 64, "height": 96, "num_inference_steps": 3, "guidance_scale": 3.5}
    fitted = EDGES.resize((64, 96), Image.Resampling.LANCZOS)
    wanted = theirs("a cat", control_image=fitted, generator=torch.Generator().manual_seed(5), **how).images[0]
    assert type(pipeline) is FluxControlPipeline and taken == [1, 2, 3]
    assert ours.tobytes() == wanted.tobytes()
    same = FluxControlPipeline(**{**theirs.components, "transformer": pipeline.transformer, "vae": pipeline.vae})
    prompt = {"prompt_embeds": request.prompt["embeds"][None], "pooled_prompt_embeds": request.prompt["pooled"][None]}
    assert same(**prompt, control_image=fitted, generator=request.generator(), **how).images[0].tobytes() == ours.tobytes()


def test_the_control_image_decides_what_is_generated(tmp_path: Path) -> None:
    family = controlled(model=wide_model(tmp_path))
    pipeline = family.make_pipeline(family.load_network().eval())
    shown = [family.generate(pipeline, request_of(family, control=image)) for image in (EDGES, Image.new("RGB", (96, 64)))]
    assert shown[0].tobytes() != shown[1].tobytes()


def test_true_guidance_which_the_pipeline_lacks_changes_nothing() -> None:
    family = controlled()
    pipeline = family.make_pipeline(family.load_network().eval())
    images = [family.generate(pipeline, request_of(family, true_guidance=scale)).tobytes() for scale in (1.0, 4.0)]
    assert images[0] == images[1]


def test_control_latents_of_another_type_reach_the_network_in_its_own() -> None:
    family = controlled()
    exact = Flux(family.options, replace(family.devices, vae=torch.float64))
    image = exact.generate(exact.make_pipeline(exact.load_network().eval()), request_of(exact))
    assert exact.autoencoder.model.dtype == torch.float64 and image.size == (64, 96)


def test_weights_that_are_wide_already_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = wide_model(tmp_path)
    network: Any = controlled(model=folder).load_network()
    stored: Any = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    assert torch.equal(network.x_embedder.weight, stored.x_embedder.weight) and network.config.in_channels == 128


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    folder = wide_model(tmp_path, factor=6)
    with pytest.raises(InvalidOptions) as refused:
        controlled(model=folder).load_network()
    (problem,) = refused.value.problems
    assert (problem.option, problem.code) == ("pretrained_model_name_or_path", "other_width")
    assert "384 input channels" in problem.message and "128" in problem.expected


def test_weights_that_look_at_control_images_are_refused_in_a_run_without(tmp_path: Path) -> None:
    folder = wide_model(tmp_path)
    with pytest.raises(InvalidOptions) as refused:
        tiny_flux(model=folder).load_network()
    assert [problem.code for problem in refused.value.problems] == ["needs_control"]


@pytest.mark.parametrize("guided", [True, False])
def test_the_stated_number_of_weights_is_that_of_the_widened_network(guided: bool) -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=guided, in_channels=128, out_channels=64)
    control = specs()["flux"].control
    assert control is not None and network.get_parameter(f"{control.input_layer}.weight").shape[1] == 2 * control.channels
    assert sum(one.numel() for one in network.parameters()) == control.parameters["dev" if guided else "schnell"]


def test_the_result_of_a_full_run_is_a_pipeline_that_takes_control_images(tmp_path: Path) -> None:
    family = controlled()
    network: Any = family.load_network()
    nn.init.normal_(network.x_embedder.weight)
    family.save_pipeline(tmp_path / "pipeline", network)
    theirs: Any = FluxControlPipeline.from_pretrained(tmp_path / "pipeline")
    assert (theirs.transformer.config.in_channels, theirs.transformer.config.out_channels) == (128, 64)
    assert torch.equal(theirs.transformer.x_embedder.weight, network.x_embedder.weight)
    card = (tmp_path / "pipeline" / "README.md").read_text()
    assert "FluxControlPipeline.from_pretrained" in card and "control_image" in card

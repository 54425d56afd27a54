"""The ControlNet of PixArt: the loss and every gradient beside a reference that uses diffusers' layers alone, and runs of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.gradients import assert_same_gradients
from tests.helpers.models import options_with, tiny_model
from tests.trainer_engine.config.test_controlnet import codes, problems_of
from tests.trainer_engine.families.controlnet.runs import controlled_run
from tests.trainer_engine.families.controlnet.test_unets import awake
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.contract.events import ImageEvent
from trainer_engine.families.base import Family
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.families.inputs import StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.families.pixart_sigma.controlnet import PixArtControlNetAdapterModel, SteeredPixArt
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

PROMPTS = ["A red circle on blue glass ", "two small stars, three moons and a very bright sun behind the mountain"]
TIMESTEPS = torch.tensor([3, 821])
WEIGHTS = "diffusion_pytorch_model.safetensors"


def fixed_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise, and the latents of control images."""
    generator = torch.Generator().manual_seed(11)
    latents, noise, control = (torch.randn(2, 4, 8, 12, generator=generator) for _ in range(3))
    return latents, noise, control


def deep_model(place: Path) -> Path:
    """The micro model with a transformer of four blocks, so that a ControlNet has several."""
    shutil.copytree(tiny_model("pixart_sigma"), place)
    config = json.loads((place / "transformer" / "config.json").read_text())
    torch.manual_seed(5)
    cast("Any", PixArtTransformer2DModel.from_config({**config, "num_layers": 4})).save_pretrained(place / "transformer")
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deep_model(tmp_path_factory.mktemp("pixart") / "deep")


def family_of(base: Path, **values: Any) -> Family:
    options = options_with(model_family="pixart_sigma", pretrained_model_name_or_path=str(base), **{"controlnet": True, **values})
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def our_loss(family: Family, network: nn.Module) -> Tensor:
    latents, noise, control = fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    inputs = StepInputs(
        noisy_latents=objective.add_noise(latents, noise, TIMESTEPS),
        timesteps=TIMESTEPS,
        prompts=family.collate_prompts(family.encode_prompts(PROMPTS)),
        control=control,
    )
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def their_loss(base: Path, controlnet: PixArtControlNetAdapterModel) -> Tensor:
    """The transformer's own forward pass, with a block's output changed by a hook for the block behind it."""
    pipeline, (latents, noise, control) = PixArtSigmaPipeline.from_pretrained(base), fixed_batch()
    embeds, mask, _, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    network: Any = pipeline.transformer.requires_grad_(False).train()
    states: list[Tensor] = []

    def add(number: int, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        block: Any = controlnet.controlnet_blocks[number]
        states.append(output + block.before_proj(network.pos_embed(control)) if number == 0 else states[-1])
        states.append(block.transformer_block(states.pop(), **kwargs))
        return output + block.after_proj(states[-1])

    for number in range(len(controlnet.controlnet_blocks)):
        hook = lambda _, args, kwargs, output, number=number: add(number, kwargs, output)  # noqa: E731
        network.transformer_blocks[number].register_forward_hook(hook, with_kwargs=True)
    scheduler = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000)
    output = network(
        scheduler.add_noise(latents, noise, TIMESTEPS),
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        timestep=TIMESTEPS,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return mse_loss(output[:, :4], noise)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_every_gradient_equal_those_of_the_transformer_with_hooks(
    base: Path, gradient_checkpointing: bool, tmp_path: Path
) -> None:
    family = family_of(base, gradient_checkpointing=gradient_checkpointing)
    network = awake(family.load_network())
    family.save_component("controlnet", network, tmp_path)
    theirs: Any = PixArtControlNetAdapterModel.from_pretrained(tmp_path).train()

    loss, wanted = our_loss(family, network), their_loss(base, theirs)

    assert len(theirs.controlnet_blocks) == 3
    assert_same_gradients(loss, network, wanted, theirs)


def test_a_new_controlnet_copies_the_first_blocks_and_changes_nothing_yet(base: Path) -> None:
    family, plain = family_of(base), family_of(base, controlnet=False)
    network: Any = family.load_network()
    transformer: Any = plain.load_network()
    for ours, theirs in zip(network.controlnet_blocks, transformer.transformer_blocks, strict=False):
        assert all(torch.equal(*pair) for pair in zip(ours.transformer_block.parameters(), theirs.parameters(), strict=True))
    assert our_loss(family, network).item() == pytest.approx(our_loss(plain, transformer).item(), rel=1e-6)


def test_networks_that_know_the_size_of_an_image_are_steered_too(tmp_path: Path) -> None:
    base = tiny_model("pixart_sigma", size_conditions=True)
    family, plain = family_of(base), family_of(base, controlnet=False)
    assert our_loss(family, family.load_network()).item() == pytest.approx(our_loss(plain, plain.load_network()).item(), rel=1e-6)


def test_a_new_controlnet_has_as_many_blocks_as_it_is_given(base: Path) -> None:
    network: Any = family_of(base, controlnet_custom_config='{"num_layers": 2}').load_network()
    assert len(network.controlnet_blocks) == 2
    with pytest.raises(InvalidOptions) as refused:
        family_of(base, controlnet_custom_config='{"num_layers": 4}').load_network()
    assert refused.value.problems[0].code == "too_many"
    assert ("controlnet_custom_config.num_layers", "out_of_range") in codes(
        problems_of("pixart_sigma", controlnet_custom_config='{"num_layers": 0}')
    )


def test_weights_for_another_transformer_are_refused(base: Path, tmp_path: Path) -> None:
    cast(
        "Any", PixArtControlNetAdapterModel(num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(InvalidOptions) as refused:
        family_of(base, controlnet_model_name_or_path=str(tmp_path)).load_network()
    assert [problem.code for problem in refused.value.problems] == ["other_model"]


def test_the_number_of_weights_is_that_of_the_usual_blocks() -> None:
    with torch.device("meta"):
        network = PixArtControlNetAdapterModel()
    spec = family_of(tiny_model("pixart_sigma")).spec
    assert set(spec.parameters.values()) == {sum(parameter.numel() for parameter in network.parameters())}


def test_an_adapter_on_a_new_controlnet_reaches_every_layer_that_has_no_copy(base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model_type": "lora", "lora_type": "standard", "lora_rank": 2, "learning_rate": 1e-2, "max_train_steps": 3}
    trained = make_trainable(family_of(base, model_type="lora", lora_type="standard", lora_rank=2), None).names
    assert not any("transformer_block" in name and "lora" not in name for name in trained)
    run = controlled_run(tmp_path, "pixart_sigma", **options)
    below: Any = PixArtControlNetAdapterModel.from_pretrained(run.output_dir / "controlnet")
    assert below.controlnet_blocks[0].before_proj.weight.any() and below.controlnet_blocks[0].after_proj.weight.any()
    assert all(key.startswith("controlnet.") for key in load_file(run.output_dir / "pytorch_lora_weights.safetensors"))


def test_a_run_that_was_stopped_and_resumed_equals_the_straight_one(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_disable": False, "validation_step_interval": 4, "validation_num_inference_steps": 2}
    options: dict[str, Any] = {"validation_resolution": "64x64", "validation_guidance": 2.0, "num_eval_images": 1}
    straight = controlled_run(tmp_path / "straight", "pixart_sigma", **shown, **options)
    controlled_run(tmp_path / "resumed", "pixart_sigma", stop_after=2, validation_disable=True)
    resumed = controlled_run(tmp_path / "resumed", "pixart_sigma", resume_from_checkpoint="latest")
    one, other = ((run.output_dir / "controlnet" / WEIGHTS).read_bytes() for run in (straight, resumed))
    assert one == other
    assert straight.heard.of(ImageEvent)


def test_the_model_card_of_a_controlnet_loads_it(tmp_path: Path) -> None:
    run = controlled_run(tmp_path, "pixart_sigma")
    _, _, rest = (run.output_dir / "controlnet" / "README.md").read_text().partition("```python\n")
    code = rest.partition("```")[0].replace("path/to/this/folder", str(run.output_dir / "controlnet"))
    scope: dict[str, Any] = {}
    exec(code, scope)
    pipeline = scope["pipeline"]
    assert isinstance(pipeline.transformer, SteeredPixArt)
    pipeline.transformer.control = torch.zeros(1, 4, 8, 8)
    arguments: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2, "use_resolution_binning": False}
    assert pipeline("a cat", **arguments).images[0].size == (64, 64)


def test_the_card_of_an_adapter_loads_it_with_its_controlnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = controlled_run(tmp_path, "pixart_sigma", model_type="lora", lora_type="standard", lora_rank=2, max_train_steps=1)
    code = (run.output_dir / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run.output_dir)
    found: dict[str, Any] = {}
    exec(code, found)
    assert any("lora_A" in name for name, _ in found["pipeline"].transformer.controlnet.named_parameters())


def test_a_generated_image_follows_the_control_image(base: Path) -> None:
    family = family_of(base)
    pipeline = family.make_pipeline(awake(family.load_network()).eval())
    prompt, negative = family.encode_prompts(PROMPTS)
    plain: dict[str, Any] = {"prompt": prompt, "negative": negative, "width": 64, "height": 64, "steps": 2, "guidance": 2.0, "seed": 1}
    dark, bright, again = (
        np.asarray(family.generate(pipeline, GenerationRequest(**plain, control=Image.new("RGB", (90, 70), colour))))
        for colour in ("black", "white", "black")
    )
    assert (dark == again).all() and (dark != bright).any()

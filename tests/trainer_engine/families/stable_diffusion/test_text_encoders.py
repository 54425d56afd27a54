"""Trained text encoders of the families with CLIP, beside references that use diffusers and transformers alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.models import options_with, tiny_model
from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.build import make_trainable
from trainer_engine.checkpointing.snapshot import as_it_is
from trainer_engine.families.common.unet import ClipUNetFamily
from trainer_engine.families.inputs import SampleFacts, StepInputs
from trainer_engine.families.load import load_family
from trainer_engine.objectives.build import make_objective
from trainer_engine.runtime.devices import resolve_devices

PROMPTS = ["A red circle on blue glass ", "two small stars"]
TIMESTEPS = torch.tensor([3, 821])
SAMPLES = [SampleFacts(original_size=(128, 64), crop_corner=(0, 0), target_size=(128, 64))] * 2
PIPELINES = {"sd1x": "StableDiffusionPipeline", "sd2x": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
ENCODERS = {"sd1x": ["text_encoder"], "sd2x": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}
LORA = {"model_type": "lora", "lora_rank": 4, "lora_alpha": 2, "lora_dropout": 0}


def family_of(name: str, **values: Any) -> ClipUNetFamily:
    """The micro model with trained text encoders, on the CPU."""
    options = options_with(
        model_family=name, pretrained_model_name_or_path=str(values.pop("model", tiny_model(name))), train_text_encoder=True, **values
    )
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    assert isinstance(family, ClipUNetFamily)
    return family


def fixed_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    latents, noise = (torch.randn(2, 4, 8, 16, generator=generator) for _ in range(2))
    return latents, noise


def our_loss(family: ClipUNetFamily, network: nn.Module) -> Tensor:
    latents, noise = fixed_batch()
    objective = make_objective(family.prediction_type, family.scheduler_config(), family.options.objective)
    prompts = family.collate_prompts(family.encode_prompts(PROMPTS))
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    inputs = StepInputs(noisy_latents=noisy, timesteps=TIMESTEPS, prompts=prompts, conditions=family.conditions(SAMPLES))
    return objective.loss(family.predict(network, inputs), objective.target(latents, noise, TIMESTEPS), TIMESTEPS).mean()


def pipeline_of(name: str, folder: Path | None = None) -> Any:
    return getattr(diffusers, PIPELINES[name]).from_pretrained(folder or tiny_model(name))


def their_loss(pipeline: Any, prediction_type: str, clip_skip: int) -> Tensor:
    """The loss of a pipeline of diffusers, with gradients through the text encoders."""
    latents, noise = fixed_batch()
    if clip_skip and not hasattr(pipeline, "text_encoder_2"):
        # The pipeline asks for a submodule that transformers 5 has merged into the encoder.
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    encoded = pipeline.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    added = {"text_embeds": encoded[2], "time_ids": torch.tensor([[64.0, 128.0, 0, 0, 64, 128]] * 2)} if len(encoded) > 2 else None
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
    output = pipeline.unet(noisy, TIMESTEPS, encoder_hidden_states=encoded[0], added_cond_kwargs=added).sample
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, TIMESTEPS)
    return mse_loss(output, target)


@dataclass
class Pair:
    """The same weights here and in a pipeline of diffusers."""

    family: ClipUNetFamily
    ours: Trainable
    theirs: Any

    def networks(self) -> list[tuple[nn.Module, nn.Module]]:
        modules = self.family.trained_modules(self.ours.network)
        return [(module, getattr(self.theirs, name)) for name, module in modules.items()]


def full_pair(name: str, **values: Any) -> Pair:
    family, pipeline = family_of(name, **values), pipeline_of(name)
    for component in ["unet", *ENCODERS[name]]:
        getattr(pipeline, component).train().requires_grad_(True)
    return Pair(family, make_trainable(family, None), pipeline)


def adapter_pair(name: str, **values: Any) -> Pair:
    """An adapter whose matrices are not zero, here and through the libraries' own ``add_adapter``."""
    from peft import LoraConfig

    family, pipeline = family_of(name, **{**LORA, **values}), pipeline_of(name)
    trainable = make_trainable(family, None)
    for component, module in family.trained_modules(trainable.network).items():
        theirs = getattr(pipeline, component).train().requires_grad_(False)
        theirs.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=list(family.adapter_targets(component))))
        weights = [(one, other) for (key, one), other in zip(module.named_parameters(), theirs.parameters(), strict=True) if "lora_" in key]
        with torch.no_grad():
            for number, (one, other) in enumerate(weights):
                one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
                other.copy_(one)
    return Pair(family, trainable, pipeline)


def assert_equal_gradients(pair: Pair, clip_skip: int = 0) -> None:
    ours, theirs = our_loss(pair.family, pair.ours.network), their_loss(pair.theirs, pair.family.prediction_type, clip_skip)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    for mine, others in pair.networks():
        trained = 0
        for (name, one), other in zip(mine.named_parameters(), others.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            assert one.requires_grad == (one.grad is not None), f"{name} is trained if and only if it gets a gradient"
            if one.grad is not None and other.grad is not None:
                trained += bool(one.grad.any())
                assert (one.grad - other.grad).norm() <= 1e-6 * other.grad.norm(), name
        assert trained > 5


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_loss_and_every_gradient_equal_those_of_diffusers(name: str, gradient_checkpointing: bool, clip_skip: int) -> None:
    assert_equal_gradients(full_pair(name, gradient_checkpointing=gradient_checkpointing, clip_skip=clip_skip), clip_skip)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_of_an_adapter_equal_those_of_peft(name: str, gradient_checkpointing: bool) -> None:
    assert_equal_gradients(adapter_pair(name, gradient_checkpointing=gradient_checkpointing))


@pytest.mark.parametrize("name", ["sd1x", "sdxl"])
def test_a_checkpoint_restores_every_text_encoder_and_a_snapshot_writes_the_same_bytes(tmp_path: Path, name: str) -> None:
    family = family_of(name)
    trainable = make_trainable(family, None)
    with torch.no_grad():
        for weight in trainable.parameters:
            weight.add_(0.01)
    trainable.save(tmp_path / "saved")
    trainable.snapshot(as_it_is)(tmp_path / "held")
    files = [path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*.*")]
    assert {file.parts[0] for file in files} == {"unet", *ENCODERS[name]}
    assert all((tmp_path / "saved" / file).read_bytes() == (tmp_path / "held" / file).read_bytes() for file in files)
    again = make_trainable(family, tmp_path / "held")
    ours, theirs = trainable.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.names == trainable.names


def test_an_adapter_at_strength_zero_leaves_the_base_text_encoders() -> None:
    """Images of the base model are made with its own text encoders, too."""
    pair = adapter_pair("sd1x")
    with torch.no_grad(), pair.ours.at_strength(0.0):
        bare = our_loss(pair.family, pair.ours.network.eval())
    with torch.no_grad():
        assert bare.item() == pytest.approx(their_loss(pipeline_of("sd1x"), "epsilon", 0).item(), rel=1e-6)
        assert bare.item() != pytest.approx(our_loss(pair.family, pair.ours.network).item(), rel=1e-4)

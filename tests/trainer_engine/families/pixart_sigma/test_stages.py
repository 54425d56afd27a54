"""Validation images of PixArt Sigma by two transformers that share the noise schedule, beside diffusers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline
from torch import Tensor

from tests.helpers.models import tiny_family, tiny_model, tiny_pixart
from tests.helpers.tiny_run import train_here
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.errors import InvalidOptions, ModelUnavailable
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.pixart_sigma.family import PixArtSigma

MODE = "pixart_validation_pipeline_mode"
FIRST, SECOND = "pixart_validation_stage1_model", "pixart_validation_stage2_model"
STRENGTH, STEPS = 0.4, 5
TEXT, NEGATIVE = "a red circle", "blue"
SHARE = {"refiner_training": True, "refiner_training_strength": STRENGTH, MODE: "full-pipeline", "validation_disable": False}


def first_folder() -> Path:
    return tiny_pixart()


def second_folder() -> Path:
    return tiny_model("pixart_sigma", seed=5)


def trained(*, first: bool, **values: Any) -> PixArtSigma:
    """A run of one stage, whose images both make."""
    own, other = (first_folder(), {SECOND: str(second_folder())}) if first else (second_folder(), {FIRST: str(first_folder())})
    chosen = {"pretrained_model_name_or_path": str(own), "refiner_training_invert_schedule": first, **SHARE, **other, **values}
    family = tiny_family(**chosen)
    assert isinstance(family, PixArtSigma)
    return family


def our_image(family: PixArtSigma, sampler: str | None, taken: list[SamplerStep] | None = None) -> np.ndarray[Any, Any]:
    encoder = tiny_family()  # its prompts, so that those of two text encoders do not differ
    prompt, negative = encoder.encode_prompts([TEXT, NEGATIVE])
    request = GenerationRequest(prompt=prompt, negative=negative, width=96, height=64, steps=STEPS, guidance=5.0, seed=3)
    pipeline = family.make_pipeline(family.load_network().eval(), sampler=sampler, spacing="linspace")
    return np.asarray(family.generate(pipeline, request, on_step=None if taken is None else taken.append))


class LastSteps(DDIMScheduler):
    """DDIM that begins where another pipeline has stopped."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps[self.timesteps < STRENGTH * 1000]


class HandedOver(Exception):
    """The first stage has done its part."""


def their_image() -> np.ndarray[Any, Any]:
    """What two pipelines of diffusers make of one image, each with the timesteps of its stage."""
    begins, ends = (PixArtSigmaPipeline.from_pretrained(folder) for folder in (first_folder(), second_folder()))
    config = {"clip_sample": False, "timestep_spacing": "linspace"}
    begins.scheduler = DDIMScheduler.from_config(begins.scheduler.config, **config)
    ends.scheduler = LastSteps.from_config(begins.scheduler.config)
    ends.vae.to(memory_format=torch.channels_last)
    family = tiny_family()
    batch = family.collate_prompts(family.encode_prompts([TEXT, NEGATIVE]))
    usual = {
        "prompt_embeds": batch["embeds"][:1],
        "prompt_attention_mask": batch["mask"][:1],
        "negative_prompt": None,
        "negative_prompt_embeds": batch["embeds"][1:],
        "negative_prompt_attention_mask": batch["mask"][1:],
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "width": 96,
        "height": 64,
        "use_resolution_binning": False,
    }
    begins.scheduler.set_timesteps(STEPS)
    last = min(step for step in begins.scheduler.timesteps.tolist() if step >= STRENGTH * 1000)
    kept: list[Tensor] = []

    def keep(_: int, timestep: Tensor, latents: Tensor) -> None:
        if int(timestep) == last:
            kept.append(latents)
            raise HandedOver

    with pytest.raises(HandedOver):
        begins(**usual, generator=torch.Generator().manual_seed(3), callback=keep)
    return np.asarray(ends(**usual, latents=kept[0]).images[0])


def test_an_image_equals_that_of_two_pipelines_whichever_stage_is_trained() -> None:
    wanted = their_image()
    for first in (True, False):
        taken: list[SamplerStep] = []
        assert np.array_equal(our_image(trained(first=first), "ddim", taken), wanted)
        assert [step.number for step in taken] == [1, 2, 3, 4, 5]
    alone = our_image(trained(first=True, **{MODE: "trained-stage"}), "ddim")
    assert not np.array_equal(alone, wanted)


@torch.no_grad()
def test_a_sampler_of_several_steps_keeps_its_memory_at_the_border() -> None:
    """The loop of the pipeline, written out: the sampler of the base model is DPM-Solver++ of second order."""
    first, second = (PixArtSigmaPipeline.from_pretrained(folder) for folder in (first_folder(), second_folder()))
    family = trained(first=True)
    scheduler, reader = family.parts.make_scheduler("epsilon", None, "linspace"), tiny_family()
    batch = reader.collate_prompts(reader.encode_prompts([TEXT, NEGATIVE]))
    embeds, mask = batch["embeds"].flip(0), batch["mask"].flip(0)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        network = (first if step >= STRENGTH * 1000 else second).transformer
        noise = network(
            scheduler.scale_model_input(torch.cat([latents, latents]), step),
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=step.expand(2),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, :4]
        unguided, guided = noise.chunk(2)
        latents = scheduler.step(unguided + 5.0 * (guided - unguided), step, latents).prev_sample
    first.vae.to(memory_format=torch.channels_last)
    decoded = first.vae.decode(latents / first.vae.config.scaling_factor).sample
    wanted = np.asarray(first.image_processor.postprocess(decoded, output_type="pil")[0], dtype=int)
    assert np.array_equal(our_image(family, None), wanted)


@pytest.mark.parametrize("first", [True, False])
def test_a_stage_with_size_conditions_gets_them_and_the_other_does_not(first: bool) -> None:
    family = trained(first=first, **{SECOND if first else FIRST: str(tiny_pixart(size_conditions=True))})
    image = our_image(family, "ddim")
    assert image.shape == (64, 96, 3) and not np.array_equal(image, our_image(trained(first=first), "ddim"))


def test_validation_by_both_stages_leaves_training_as_it_is(tmp_path: Path) -> None:
    images = {
        "validation_prompt": TEXT,
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 3,
        "validation_step_interval": 2,
    }
    usual = {**SHARE, **images, SECOND: str(second_folder()), "refiner_training_invert_schedule": True, "max_train_steps": 2}
    both = train_here(tmp_path, **usual, output_dir=str(tmp_path / "both"))
    alone = train_here(tmp_path, **{**usual, MODE: "trained-stage"}, output_dir=str(tmp_path / "alone"))
    assert both.files() == alone.files() and list_checkpoints(both.output_dir)
    made = [sorted((run.output_dir / "validation_images").iterdir()) for run in (both, alone)]
    assert [path.name for path in made[0]] == [path.name for path in made[1]] and len(made[0]) >= 4
    assert all(ours.read_bytes() != theirs.read_bytes() for ours, theirs in zip(*made, strict=True))


def test_a_stage_that_one_sampler_cannot_ask_is_refused_before_training(tmp_path: Path) -> None:
    velocity = Path(shutil.copytree(second_folder(), tmp_path / "velocity"))
    scheduler = velocity / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(InvalidOptions) as refused:
        trained(first=True, **{SECOND: str(velocity)}).load_network()
    assert [(problem.option, problem.code) for problem in refused.value.problems] == [(SECOND, "other_prediction")]
    small = Path(shutil.copytree(second_folder(), tmp_path / "small"))
    config = small / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "out_channels": 4}))
    with pytest.raises(InvalidOptions) as refused:
        trained(first=True, **{SECOND: str(small)}).load_network()
    assert [(problem.option, problem.code) for problem in refused.value.problems] == [(SECOND, "other_shape")]
    with pytest.raises(ModelUnavailable, match="There is no folder"):
        trained(first=True, **{SECOND: str(tmp_path / "nowhere")}).load_network()


def test_a_run_that_generates_nothing_does_not_look_for_the_other_stage(tmp_path: Path) -> None:
    nowhere = {SECOND: str(tmp_path / "nowhere")}
    assert trained(first=True, **nowhere, validation_disable=True).load_network() is not None

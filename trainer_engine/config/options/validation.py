from __future__ import annotations

import math
import re
from typing import Literal

from trainer_engine.config.option import OptionGroup, option

MEGAPIXELS_BELOW = 128
"""A lone number below this means megapixels."""
MOST_MEGAPIXELS = 16
EDGE_MULTIPLE = 8


class ValidationOptions(OptionGroup):
    """The images that a run draws to show how far it is."""

    validation_prompt: str = option("", "Prompt that is drawn at every validation. Empty: none besides the unconditional image.")
    validation_prompt_library: Literal["false", "true", "general", "people"] = option(
        "false", "Draw the prompts of a library that comes along too: a name, or true for general."
    )
    user_prompt_library: str | None = option(
        None,
        "Prompts of your own, drawn at every validation: a file with an object of JSON, shortname -> prompt. A run keeps what it held "
        "when it was started.",
        json=True,
    )
    validation_negative_prompt: str = option("blurry, cropped, ugly", "What the images are steered away from.")
    validation_guidance: float = option(7.5, "Classifier-free guidance scale; a family has its own default.", ge=1, le=30)
    validation_guidance_rescale: float = option(
        0.0, "How far guided predictions are brought back to the contrast of unguided ones, for families whose pipeline can.", ge=0, le=1
    )
    validation_guidance_real: float = option(
        1.0,
        "Classifier-free guidance beside the scale that a distilled network is told; above 1 the negative prompt counts, and each step "
        "takes twice as long.",
        ge=1,
        le=30,
    )
    validation_no_cfg_until_timestep: int = option(2, "Sampler steps at the start that validation_guidance_real leaves alone.", ge=0)
    validation_resolution: str = option(
        "256",
        "Size of the images: an edge in pixels, WIDTHxHEIGHT, or several with commas. A number below 128 is megapixels of a square.",
    )
    validation_num_inference_steps: int = option(30, "Sampler steps of an image.", ge=1, le=1000)
    validation_seed: int | None = option(None, "Seed of the images' noise, the same for each prompt. Empty: seed.", ge=0)
    validation_seed_source: Literal["cpu", "gpu"] = option(
        "cpu", "Where the images' noise is drawn: the same seed gives other noise on a GPU. cpu gives the same on every machine."
    )
    validation_randomize: bool = option(False, "Draw each image from a new seed; images of two steps cannot be compared then.")
    validation_noise_scheduler: Literal["ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++"] | None = option(
        None, "Sampler of the images. Empty: the base model's own.", later=("perflow",)
    )
    inference_scheduler_timestep_spacing: Literal["trailing", "leading", "linspace"] = option(
        "trailing", "Which timesteps of a diffusion schedule the sampler takes; a family has its own default."
    )
    validation_step_interval: int = option(100, "Validate every so many optimizer steps.", ge=1, aliases=("validation_steps",))
    validation_epoch_interval: int | None = option(None, "Validate at the end of every so many epochs too.", ge=1)
    validate_after_step: int | None = option(
        None, "No validation at an interval before this step. The last one, and those that are asked for, come anyway.", ge=0
    )
    validate_after_epoch: int | None = option(None, "The same, before this epoch; the first is 1.", ge=0)
    validation_on_startup: bool = option(False, "Validate before the first step of this start, also where a run goes on.")
    validation_disable: bool = option(False, "Draw no images at all.")
    validation_disable_unconditional: bool = option(False, "Do not draw the image of the empty prompt.")
    disable_benchmark: bool = option(False, "Do not draw with the base model before the first step.")
    validation_multigpu: Literal["batch-parallel", "single-gpu"] = option(
        "batch-parallel", "With several processes: each draws some of the images, or the first one draws all while the others wait."
    )
    num_validation_images: int = option(1, "Images for each prompt and size; their seeds count up.", ge=1, le=10)
    ema_validation: Literal["comparison", "ema_only", "none"] = option(
        "comparison", "With use_ema: draw and evaluate with the live weights and the average, the average alone, or the live weights alone."
    )

    num_eval_images: int = option(
        4,
        "Images of each eval set that are evaluated on, from the first by name on; the captions of up to 10 of them are drawn at every "
        "validation. Where sets have references: how many pairs are drawn, each with validation_prompt and its own caption.",
        ge=1,
        le=1000,
    )
    eval_dataset_id: str | None = option(
        None, "Evaluate on this eval set alone. Without eval sets: the set of images whose pairs are drawn, where sets have references."
    )
    validation_lycoris_strength: float = option(
        1.0, "How much of the trained adapter the images show, LyCORIS or standard; 1 is all of it.", ge=0
    )
    validation_adapter_path: str | None = option(
        None,
        "An adapter that was trained before, put on the network while images are drawn and taken off again: a .safetensors file, a folder "
        "that holds pytorch_lora_weights.safetensors, or a repository of the hub, owner/name or owner/name:file.",
    )
    validation_adapter_name: str | None = option(
        None, "What stands behind the shortname of images drawn with that adapter. Empty: the name of its file, folder or repository."
    )
    validation_adapter_strength: float = option(1.0, "How much of that adapter the images show; 1 is all of it, 0 is refused.")
    validation_adapter_mode: Literal["adapter_only", "comparison", "none"] = option(
        "adapter_only", "Draw with that adapter, or each image without it and with it, or leave it alone."
    )
    validation_adapter_config: str | None = option(
        None,
        "Several of them, each drawn with in turn: a list of JSON, {name, path, strength} or {name, adapters: [{path, strength}]}, or an "
        "object that holds it as runs. Not together with validation_adapter_path.",
        json=True,
    )
    validation_image_format: Literal["png", "webp", "jpeg"] = option("png", "File type of the images.")
    validation_image_quality: int = option(90, "Quality of webp and jpeg.", ge=1, le=100)

    validation_preview: bool = option(
        False, "Show images while they are drawn, through the family's Tiny AutoEncoder, as events of the type validation.image."
    )
    validation_preview_steps: int = option(
        1, "With validation_preview: show the first sampler step, every so many after it, and the last.", ge=1
    )

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Sizes of the images as (width, height) in pixels."""
        return parse_resolutions(self.validation_resolution)


def parse_resolutions(text: str) -> list[tuple[int, int]]:
    """(width, height) of each part of ``text``, each size once; ValueError says which part is no size."""
    return list(dict.fromkeys(_parse_resolution(part.strip()) for part in text.split(",")))


def _parse_resolution(text: str) -> tuple[int, int]:
    pair = re.fullmatch(r"(\d{1,5})\s*[xX*]\s*(\d{1,5})", text)
    if pair:
        size = int(pair[1]), int(pair[2])
    elif re.fullmatch(r"\d{1,5}(\.\d+)?", text):
        number = float(text)
        if MOST_MEGAPIXELS < number < MEGAPIXELS_BELOW:
            raise ValueError(f"{text!r} means {text} megapixels; write {text}x{text} for an edge in pixels")
        edge = round(math.sqrt(number * 1e6) / 64) * 64 if number < MEGAPIXELS_BELOW else int(number)
        size = edge, edge
    else:
        raise ValueError(f"{text!r} is neither a size nor WIDTHxHEIGHT")
    if min(size) < 64 or max(size) > 8192 or any(edge % EDGE_MULTIPLE for edge in size):
        raise ValueError(f"{text!r} has edges that are not multiples of {EDGE_MULTIPLE} from 64 to 8192")
    return size

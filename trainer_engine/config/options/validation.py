"""Options of validation images: prompts, sampler, sizes, intervals, and adapters that are only shown in them."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.options.sizes import parse_resolutions
from trainer_engine.config.skipped_layers import SHAPE, SkippedLayers, parse_layers


class ValidationOptions(OptionGroup):
    """The images that a run generates to show its progress."""

    validation_prompt: str = option(
        "", "Prompt of an image that every validation generates. Empty: only the other prompts and the unconditional image."
    )
    validation_prompt_library: Literal["false", "true", "general", "people"] = option(
        "false", "Built-in prompt library that every validation also generates images for. true: general. false: none."
    )
    user_prompt_library: str | None = option(
        None,
        "Prompt library of your own: JSON, as text or in a file, of an object that maps a short name to a prompt. Every validation "
        "generates an image for each prompt. The run keeps the contents that the file had when it started.",
        json=True,
    )
    validation_negative_prompt: str = option("blurry, cropped, ugly", "Negative prompt: what the images are steered away from.")
    validation_guidance: float = option(
        7.5, "Scale of classifier-free guidance; 1 or less: no guidance. A family may have another default.", ge=0, le=30
    )
    validation_guidance_rescale: float = option(
        0.0,
        "How far guided predictions are rescaled to the contrast of unguided ones: 0 not at all, 1 completely. Only for families whose "
        "pipeline supports it.",
        ge=0,
        le=1,
    )
    validation_guidance_real: float = option(
        1.0,
        "Scale of real classifier-free guidance for guidance-distilled networks, in addition to validation_guidance. Above 1 the negative "
        "prompt applies and each sampler step takes twice as long.",
        ge=1,
        le=30,
    )
    validation_no_cfg_until_timestep: int = option(
        2, "Number of sampler steps at the start to which validation_guidance_real does not apply.", ge=0
    )
    validation_guidance_skip_layers: str | None = option(
        None,
        "Skip-layer guidance: blocks of the transformer, from 0, that the prediction with the negative prompt leaves out. Only for "
        "families whose pipeline supports it.",
        json=True,
        shape=SHAPE,
    )
    validation_guidance_skip_layers_start: float = option(
        0.01, "Share of the sampler steps after which validation_guidance_skip_layers begins.", ge=0, le=1
    )
    validation_guidance_skip_layers_stop: float = option(
        0.2, "Share of the sampler steps with which validation_guidance_skip_layers ends.", ge=0, le=1
    )
    validation_resolution: str = option(
        "256",
        "Size of the images: an edge of a square in pixels, WIDTHxHEIGHT, or several separated by commas. A number below 128 is the area "
        "of a square in megapixels.",
    )
    validation_num_inference_steps: int = option(30, "Number of sampler steps for each image.", ge=1, le=1000)
    validation_seed: int | None = option(None, "Seed of the images' noise, the same for every prompt. Empty: seed.", ge=0)
    validation_seed_source: Literal["cpu", "gpu"] = option(
        "cpu",
        "Device that generates the images' noise. cpu: the same noise on every machine. gpu: noise that depends on the device.",
    )
    validation_randomize: bool = option(False, "Use a new random seed for each image. Images of different steps can then not be compared.")
    validation_noise_scheduler: Literal["ddim", "ddpm", "euler", "euler-a", "unipc", "dpm++"] | None = option(
        None, "Sampler of the images. Empty: the base model's own.", later=("perflow",)
    )
    inference_scheduler_timestep_spacing: Literal["trailing", "leading", "linspace"] = option(
        "trailing", "How the sampler spaces the timesteps of a diffusion schedule. A family may have another default."
    )
    validation_step_interval: int = option(
        100, "Validate every this many optimizer steps. 0: at no interval of steps.", ge=0, aliases=("validation_steps",)
    )
    validation_epoch_interval: int | None = option(
        None, "Also validate at the end of every this many epochs. Empty: only by validation_step_interval.", ge=1
    )
    validate_after_step: int | None = option(
        None, "Skip validations at an interval before this step. The final one and requested ones are never skipped.", ge=0
    )
    validate_after_epoch: int | None = option(
        None,
        "Skip validations at an interval before this epoch; the first epoch is 1. The final one and requested ones are never skipped.",
        ge=0,
    )
    validation_on_startup: bool = option(False, "Validate before the first step, also when a run resumes.")
    validation_disable: bool = option(False, "Generate no images at all.")
    validation_disable_unconditional: bool = option(False, "Do not generate the image of the empty prompt.")
    disable_benchmark: bool = option(False, "Do not generate images with the base model before the first step.")
    validation_multigpu: Literal["batch-parallel", "single-gpu"] = option(
        "batch-parallel",
        "How several processes share the images. batch-parallel: each generates some of them. single-gpu: the first generates all of them "
        "while the others wait.",
    )
    num_validation_images: int = option(1, "Number of images for each prompt and size. Each uses the next seed.", ge=1, le=10)
    validation_num_video_frames: int | None = option(
        None,
        "Number of frames of each clip, for families that generate clips. Each is written as an animated GIF and, with the extra video, as "
        "an mp4 file. Empty, 0 or 1: images.",
        ge=0,
        le=1025,
    )
    framerate: float | None = option(None, "Frames a second at which clips play. Empty: the rate of the family.", ge=1, le=60)
    ema_validation: Literal["comparison", "ema_only", "none"] = option(
        "comparison",
        "Weights that validation and evaluation use with use_ema. comparison: the trained weights and the average. ema_only: the average. "
        "none: the trained weights.",
    )

    validation_using_datasets: bool | None = option(
        None,
        "Use the references of the first pairs of the datasets as inputs of the images, for networks that edit, or the first frames of the "
        "datasets, for networks that animate. Empty: if datasets have these and validation_input is empty. false: generate from the "
        "prompts alone, or from validation_input.",
    )
    validation_input: str | None = option(
        None,
        "Images that every validation edits or animates, for networks that do: JSON, as text or in a file, of a list of {path, prompt} or "
        "{path, prompt, shortname}.",
        json=True,
    )
    validation_stitch_input_location: Literal["none", "left", "right", "top", "bottom"] = option(
        "none", "Side of each image on which its inputs are shown in the same picture. none: the image alone."
    )

    num_eval_images: int = option(
        4,
        "Number of images of each eval set to evaluate on, the first by name. The captions of up to 10 of them become validation prompts. "
        "If datasets have references, or lend first frames: number of those for which a validation generates images, with "
        "validation_prompt and with their caption.",
        ge=1,
        le=1000,
    )
    eval_dataset_id: str | None = option(
        None,
        "Id of the only eval set to evaluate on. Empty: all eval sets. Without eval sets, if datasets have references: id of the image set "
        "whose pairs are generated.",
    )
    validation_lycoris_strength: float = option(
        1.0, "Strength of the trained adapter in the images, LyCORIS or standard. 1: as trained. 0: the base model.", ge=0
    )
    validation_adapter_path: str | None = option(
        None,
        "Existing adapter to apply to the network while images are generated: a .safetensors file, a folder that holds "
        "pytorch_lora_weights.safetensors, or a repository on the hub as owner/name or owner/name:file.",
    )
    validation_adapter_name: str | None = option(
        None, "Name of that adapter in the names of its images. Empty: the name of its file, folder or repository."
    )
    validation_adapter_strength: float = option(1.0, "Strength of that adapter in the images. 1: as trained. 0 is refused.")
    validation_adapter_mode: Literal["adapter_only", "comparison", "none"] = option(
        "adapter_only",
        "How validation_adapter_path is used. adapter_only: every image with it. comparison: every image without and with it. none: not "
        "at all.",
    )
    validation_adapter_config: str | None = option(
        None,
        "Several validation adapters, used one after the other: a JSON list of {name, path, strength} or {name, adapters: [{path, "
        "strength}]}, or an object with this list as runs. Not together with validation_adapter_path.",
        json=True,
    )
    validation_image_format: Literal["png", "webp", "jpeg"] = option("png", "File format of the images.")
    validation_image_quality: int = option(90, "Quality of webp and jpeg files, from 1 to 100.", ge=1, le=100)

    validation_preview: bool = option(
        False,
        "Show images while they are generated, as events of the type validation.image. The family's Tiny AutoEncoder decodes them, or its "
        "own autoencoder if it has none.",
    )
    validation_preview_steps: int = option(
        1, "Number of sampler steps between two previews. The first and the last step are always shown.", ge=1
    )

    @property
    def frames(self) -> int:
        """Frames of each clip; 1 for images."""
        return max(1, self.validation_num_video_frames or 1)

    @property
    def skipped_layers(self) -> SkippedLayers | None:
        """The blocks that unguided predictions leave out; None if they leave out none."""
        layers, _ = parse_layers(self.validation_guidance_skip_layers)
        start, stop = self.validation_guidance_skip_layers_start, self.validation_guidance_skip_layers_stop
        return SkippedLayers(layers, start, stop) if layers else None

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Sizes of the images as (width, height) in pixels."""
        return parse_resolutions(self.validation_resolution)

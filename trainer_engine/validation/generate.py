"""Generates the validation images and clips of the network in its current state."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.prompt_library import DEFAULT, built_in_library, file_name, library_of
from trainer_engine.config.rules.clips import writes_mp4
from trainer_engine.config.rules.validation import AVERAGED, PROMPT, STARTUP, UNCONDITIONAL
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import ImageNotFinite
from trainer_engine.families.common.computation import sampling_attention, uncompiled
from trainer_engine.families.generation import GenerationRequest, SamplerStep
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.media import CLIP_ENDING, ENDINGS, FRAMES_PER_SECOND, Picture, write_mp4, write_picture
from trainer_engine.runtime.devices import ran_out_of_memory
from trainer_engine.runtime.groups import ALONE, Group
from trainer_engine.runtime.reproducibility import preserve_training_state
from trainer_engine.validation.failures import SURVIVED, ElsewhereFailed, GenerationFailed, GenerationStopped
from trainer_engine.validation.names import apart
from trainer_engine.validation.stitch import stitched

FOLDER = "validation_images"
HIGHEST_SEED = 2**31
NOWHERE = "none"


@dataclass(frozen=True)
class ValidationPrompt:
    """A prompt of the validation and its name."""

    shortname: str
    text: str
    adapter_strength: float | None = None
    """Strength of the trained adapter in its images; None takes ``validation_lycoris_strength``."""


@dataclass(frozen=True)
class Edit:
    """A pair whose references are inputs of a validation image, or the first frame of a validation clip."""

    name: str
    """Named after its image."""
    caption: str
    read_references: Callable[[], tuple[Tensor, ...]]
    """Latents (C, h, w) of its references of every conditioning set."""
    read_prompt: Callable[[str], PromptEmbedding]
    """The embedding of a text, with its references if the text encoder looks at them."""
    read_images: Callable[[], Sequence[Image.Image]] = tuple
    """Its references, or its first frame, as the network sees them."""
    has_own_prompt: bool = False
    """Whether it is generated with its caption only, and not with ``validation_prompt``."""


@dataclass(frozen=True)
class Subject:
    """One image to generate."""

    prompt: ValidationPrompt
    resolution: tuple[int, int]
    index: int
    edit: Edit | None = None


@dataclass(frozen=True)
class ValidationImage:
    """A finished image or clip."""

    path: Path
    """The image, or the frames of a clip as an animated GIF."""
    shortname: str
    prompt: str
    resolution: tuple[int, int]
    """Width and height in pixels."""
    index: int
    """Counts the images of one prompt and size, from 0."""
    seed: int
    sampler_steps: int
    label: str = ""
    """Names the weights if they are not the live ones; also at the end of ``shortname``."""
    video: Path | None = None
    """The frames of a clip as an mp4 file, if the library for it is installed."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of it."""
        return (self.path,) if self.video is None else (self.path, self.video)


@dataclass(frozen=True)
class SampledImage:
    """An image that is being generated."""

    image: ValidationImage
    """What it will be; its file is not there yet."""
    taken: SamplerStep


def validation_prompts(options: TrainingOptions) -> list[ValidationPrompt]:
    """The prompts of every validation of a run, in order; empty if it generates no images."""
    validation = options.validation
    if validation.validation_disable:
        return []
    unconditional = [] if validation.validation_disable_unconditional else [ValidationPrompt(UNCONDITIONAL, "")]
    library = {"false": None, "true": DEFAULT}.get(validation.validation_prompt_library, validation.validation_prompt_library)
    prompts = [*(built_in_library(library) if library else ()), *library_of(validation.user_prompt_library)]
    listed = [ValidationPrompt(prompt.shortname, prompt.text, prompt.adapter_strength) for prompt in prompts]
    asked_for = [ValidationPrompt(PROMPT, validation.validation_prompt)] if validation.validation_prompt else []
    return unconditional + listed + asked_for


def texts_to_encode(options: TrainingOptions, negative_text: Callable[[str], str] = str) -> list[str]:
    """The prompts whose embeddings ``render`` will read. ``negative_text``: that of the family."""
    prompts = validation_prompts(options)
    return [prompt.text for prompt in prompts] + ([negative_text(options.validation.validation_negative_prompt)] if prompts else [])


def render(
    family: Family,
    network: nn.Module,
    read_prompt: Callable[[str], PromptEmbedding],
    options: TrainingOptions,
    step: int,
    *,
    edits: Sequence[Edit] = (),
    eval_prompts: Sequence[ValidationPrompt] = (),
    label: str = "",
    group: Group = ALONE,
    weights_for: Callable[[ValidationPrompt], AbstractContextManager[object]] = lambda prompt: nullcontext(),
    on_image: Callable[[ValidationImage], None] = lambda image: None,
    on_sampler_step: Callable[[SampledImage], None] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[ValidationImage]:
    """Generate every prompt at every resolution into ``<output_dir>/validation_images``.

    ``network`` is the bare network; weights, mode and every global random state are as before afterwards. ``weights_for`` puts the weights
    for a prompt into place. ``group``: the processes that generate each image together; its first one writes the files, other groups
    generate other images. ``step`` and ``label`` (such as ``ema``) name the files. ``on_progress`` receives (done, total) in sampler
    steps. Raises GenerationFailed: at the first image that fails, or at the end for the first one that is not finite.
    """
    plan = _part(_plan(options, edits, eval_prompts, family), group.index, group.count)
    steps, stopped = options.validation.validation_num_inference_steps, group.agreed(should_stop)
    images, not_finite = list[ValidationImage](), None
    with preserve_training_state(network), _freeing(family), uncompiled(network, options), sampling_attention(network, options):
        network.eval()
        pipeline = _make_pipeline(family, network, options, plan) if plan else None
        for number, subject in takewhile(lambda _: not stopped(), enumerate(plan)):
            image, failure = _image_of(subject, options, step, label), None

            def on_step(taken: SamplerStep, image: ValidationImage = image, before: int = number * steps) -> None:
                on_progress(before + taken.number, len(plan) * steps)
                if on_sampler_step:
                    on_sampler_step(SampledImage(image, taken))
                if stopped():
                    raise GenerationStopped

            try:
                with weights_for(subject.prompt):
                    request = _request(subject, image, family, read_prompt, options)
                    picture = family.generate(pipeline, request, on_step=on_step)
                if group.is_first:
                    images.append(_write(_beside_inputs(picture, subject, options), image, family, options))
            except GenerationStopped:
                break
            except ImageNotFinite as error:
                not_finite = not_finite or GenerationFailed(image.path.stem, image.prompt, error)
                continue
            except SURVIVED as error:
                failure = _survived(image, error, group)
            _raise_together(group, failure, image)
            if group.is_first:
                on_image(images[-1])
        pipeline = None  # it holds what is released here, which is the network of another stage as well
    if not_finite is not None:
        raise not_finite
    return images


def _survived(image: ValidationImage, error: Exception, group: Group) -> GenerationFailed:
    """The failure of an image. Raises the error itself if the other processes of a group would wait for this one for ever."""
    if group.size > 1 and ran_out_of_memory(error):
        raise error
    return GenerationFailed(image.path.stem, image.prompt, error)


def _raise_together(group: Group, failure: GenerationFailed | None, image: ValidationImage) -> None:
    """Raises GenerationFailed on every process of the group if one of them has failed."""
    if group.any_of(failure is not None):
        raise failure or GenerationFailed(image.path.stem, image.prompt, ElsewhereFailed())


def _beside_inputs(picture: Picture, subject: Subject, options: TrainingOptions) -> Picture:
    """The picture together with its inputs, if ``validation_stitch_input_location`` says where."""
    location = options.validation.validation_stitch_input_location
    if location == NOWHERE or subject.edit is None:
        return picture
    return stitched(picture, subject.edit.read_images(), location)


def _write(picture: Picture, image: ValidationImage, family: Family, options: TrainingOptions) -> ValidationImage:
    """Write the files of an image or a clip; the mp4 file first, so that a GIF with the name in the events is never without it."""
    validation, folder, stem = options.validation, image.path.parent, image.path.stem
    how: dict[str, Any] = {"format": validation.validation_image_format, "quality": validation.validation_image_quality}
    if isinstance(picture, Image.Image):
        return dataclasses.replace(image, path=write_picture(folder, stem, picture, **how))
    clips = family.spec.sampling.clips
    rate = validation.framerate or (clips.frames_per_second if clips else FRAMES_PER_SECOND)
    video = write_mp4(folder, stem, picture, rate) if writes_mp4() else None
    return dataclasses.replace(image, path=write_picture(folder, stem, picture, frames_per_second=rate), video=video)


def _make_pipeline(family: Family, network: nn.Module, options: TrainingOptions, plan: Sequence[Subject]) -> Any:
    validation = options.validation
    sampler, spacing = validation.validation_noise_scheduler, validation.inference_scheduler_timestep_spacing
    try:
        family.expect_prompts([validation.validation_negative_prompt, *(subject.prompt.text for subject in plan)])
        return family.make_pipeline(network, sampler=sampler, spacing=spacing)
    except SURVIVED as error:
        raise GenerationFailed("", "", error) from error


@contextmanager
def _freeing(family: Family) -> Iterator[None]:
    try:
        yield
    finally:
        family.release_encoders()


def _image_of(subject: Subject, options: TrainingOptions, step: int, label: str) -> ValidationImage:
    """What an image will be; its file is not there yet."""
    prompt, (width, height), index = subject.prompt, subject.resolution, subject.index
    shortname = f"{prompt.shortname}_{label}" if label else prompt.shortname
    ending = CLIP_ENDING if options.validation.frames > 1 else ENDINGS[options.validation.validation_image_format]
    name = f"step_{step}_{file_name(shortname)}_{index}_{width}x{height}{ending}"
    seed = secrets.randbelow(HIGHEST_SEED) if options.validation.validation_randomize else first_seed(options) + index
    path = Path(options.run.output_dir) / FOLDER / name
    steps = options.validation.validation_num_inference_steps
    return ValidationImage(
        path=path,
        shortname=shortname,
        prompt=prompt.text,
        resolution=(width, height),
        index=index,
        seed=seed,
        sampler_steps=steps,
        label=label,
    )


def _request(
    subject: Subject,
    image: ValidationImage,
    family: Family,
    read_prompt: Callable[[str], PromptEmbedding],
    options: TrainingOptions,
) -> GenerationRequest:
    validation, (width, height) = options.validation, image.resolution
    edit, sees_control, in_place = subject.edit, family.spec.sees_control, family.edits_in_place
    read = edit.read_prompt if edit else read_prompt
    return GenerationRequest(
        prompt=read(image.prompt),
        negative=read(family.negative_text(validation.validation_negative_prompt)),
        text=image.prompt,
        negative_text=validation.validation_negative_prompt,
        width=width,
        height=height,
        steps=image.sampler_steps,
        guidance=max(1.0, validation.validation_guidance),
        seed=image.seed,
        frames=validation.frames,
        references=edit.read_references() if edit and not sees_control and not in_place else (),
        reference=next(iter(edit.read_images())) if edit and in_place else None,
        control=next(iter(edit.read_images())) if edit and sees_control else None,
        first_frame=next(iter(edit.read_images())) if edit and family.animates else None,
        noise_device=str(family.devices.device) if validation.validation_seed_source == "gpu" else "cpu",
        guidance_rescale=validation.validation_guidance_rescale,
        true_guidance=validation.validation_guidance_real,
        unguided_steps=validation.validation_no_cfg_until_timestep,
        skipped_layers=validation.skipped_layers,
    )


def _plan(options: TrainingOptions, edits: Sequence[Edit], eval_prompts: Sequence[ValidationPrompt], family: Family) -> list[Subject]:
    """Every prompt, and those that held-out images lend.

    With pairs to edit, or first frames: these with the prompt asked for and with their own captions instead. A run with control images,
    and a family that animates or sees its reference in further channels, generate from these alone.
    """
    validation = options.validation
    is_led = family.spec.sees_control or family.animates or family.edits_in_place
    alone = [] if is_led else [*validation_prompts(options), *eval_prompts]
    what: list[tuple[ValidationPrompt, Edit | None]] = [(prompt, edit) for edit in edits for prompt in _prompts_of(edit, options)]
    what = what or [(prompt, None) for prompt in alone]
    used = ((AVERAGED, options.run.use_ema), (STARTUP, validation.validation_on_startup))
    names = apart([prompt.shortname for prompt, _ in what], [label for label, is_used in used if is_used])
    return [
        Subject(dataclasses.replace(prompt, shortname=name), resolution, index, edit)
        for (prompt, edit), name in zip(what, names, strict=True)
        for resolution in validation.resolutions
        for index in range(validation.num_validation_images)
    ]


def _part(plan: Sequence[Subject], which: int, of: int) -> Sequence[Subject]:
    """One of ``of`` parts, about as long as the others. Neighbours stay together: of every second image, all might be the large ones."""
    return plan[len(plan) * which // of : len(plan) * (which + 1) // of]


def _prompts_of(edit: Edit, options: TrainingOptions) -> list[ValidationPrompt]:
    asked_for = options.validation.validation_prompt
    own = ValidationPrompt(edit.name, edit.caption)
    return [ValidationPrompt(f"{PROMPT}_{edit.name}", asked_for), own] if asked_for and not edit.has_own_prompt else [own]


def first_seed(options: TrainingOptions) -> int:
    """``validation_seed``, or ``seed`` where it is empty. The same for each prompt and step, so that images can be compared."""
    chosen = options.validation.validation_seed
    return options.run.seed if chosen is None else chosen

"""Images drawn by the network as it is, for people to see how far it has come."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer_engine.contract.options import TrainingOptions
from trainer_engine.families.base import Drawing, Family, PromptEmbedding, SamplerStep
from trainer_engine.pictures import write_picture

FOLDER = "validation_images"
UNCONDITIONAL = "unconditional"
PROMPT = "validation"


@dataclass(frozen=True)
class ValidationPrompt:
    """What is drawn, and under which name."""

    shortname: str
    text: str


@dataclass(frozen=True)
class Edit:
    """A pair whose references are drawn with."""

    name: str
    """Of its image, without folder and ending."""
    caption: str
    read_references: Callable[[], tuple[Tensor, ...]]
    """Latents (C, h, w) of its references of every conditioning set."""


@dataclass(frozen=True)
class Subject:
    """One image to draw."""

    prompt: ValidationPrompt
    resolution: tuple[int, int]
    index: int
    edit: Edit | None = None


@dataclass(frozen=True)
class ValidationImage:
    """A finished image."""

    path: Path
    shortname: str
    prompt: str
    resolution: tuple[int, int]
    """Width and height in pixels."""
    index: int
    """Counts the images of one prompt and size, from 0."""
    seed: int
    sampler_steps: int


@dataclass(frozen=True)
class SampledImage:
    """An image that is being drawn."""

    image: ValidationImage
    """What it will be; its file is not there yet."""
    taken: SamplerStep


def validation_prompts(options: TrainingOptions) -> list[ValidationPrompt]:
    """What every validation of a run draws, in order; empty where it draws nothing."""
    validation = options.validation
    if validation.validation_disable:
        return []
    unconditional = [] if validation.validation_disable_unconditional else [ValidationPrompt(UNCONDITIONAL, "")]
    asked_for = [ValidationPrompt(PROMPT, validation.validation_prompt)] if validation.validation_prompt else []
    return unconditional + asked_for


def texts_to_encode(options: TrainingOptions) -> list[str]:
    """The prompts whose embeddings ``render`` will read."""
    prompts = validation_prompts(options)
    return [prompt.text for prompt in prompts] + ([options.validation.validation_negative_prompt] if prompts else [])


def render(
    family: Family,
    denoiser: nn.Module,
    read_prompt: Callable[[str], PromptEmbedding],
    options: TrainingOptions,
    step: int,
    *,
    edits: Sequence[Edit] = (),
    eval_prompts: Sequence[ValidationPrompt] = (),
    label: str = "",
    on_image: Callable[[ValidationImage], None] = lambda image: None,
    on_sampler_step: Callable[[SampledImage], None] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[ValidationImage]:
    """Draw every prompt at every resolution into ``<output_dir>/validation_images``.

    ``denoiser`` is the bare network; weights, mode and every global random state are as before afterwards. ``read_prompt`` is
    ``PromptCache.read``. ``step`` and ``label`` (such as ``ema``) name the files. ``on_progress`` hears (done, total) in sampler steps
    of all images, ``should_stop`` is asked before each image. The autoencoder is loaded for it and freed after.
    """
    plan = _plan(options, edits, eval_prompts)
    steps = options.validation.validation_num_inference_steps
    folder = Path(options.run.output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    negative = read_prompt(options.validation.validation_negative_prompt) if plan else {}
    images: list[ValidationImage] = []
    with undisturbed(denoiser):
        denoiser.eval()
        pipeline = family.make_pipeline(denoiser, sampler=options.validation.validation_noise_scheduler)
        for number, subject in enumerate(plan):
            prompt, (width, height), index = subject.prompt, subject.resolution, subject.index
            if should_stop():
                break
            seed = first_seed(options) + index
            guidance = options.validation.validation_guidance
            references = subject.edit.read_references() if subject.edit else ()
            drawing = Drawing(read_prompt(prompt.text), negative, width, height, steps, guidance, seed, references)
            shortname = f"{prompt.shortname}_{label}" if label else prompt.shortname
            path = folder / f"step_{step}_{shortname}_{index}_{width}x{height}.png"
            image = ValidationImage(path, shortname, prompt.text, (width, height), index, seed, steps)

            def heard(taken: SamplerStep, image: ValidationImage = image, before: int = number * steps) -> None:
                on_progress(before + taken.number, len(plan) * steps)
                if on_sampler_step:
                    on_sampler_step(SampledImage(image, taken))

            picture = family.draw(pipeline, drawing, on_step=heard)
            images.append(dataclasses.replace(image, path=write_picture(folder, path.stem, picture)))
            on_image(images[-1])
        del pipeline
    family.free_encoders()
    return images


def _plan(options: TrainingOptions, edits: Sequence[Edit], eval_prompts: Sequence[ValidationPrompt]) -> list[Subject]:
    """Every prompt, and those that held-out images lend.

    With pairs to edit: their references with the prompt asked for and with their own captions instead.
    """
    validation = options.validation
    what = [(prompt, edit) for edit in edits for prompt in _prompts_of(edit, options)] or [
        (prompt, None) for prompt in [*validation_prompts(options), *eval_prompts]
    ]
    return [
        Subject(prompt, resolution, index, edit)
        for prompt, edit in what
        for resolution in validation.resolutions
        for index in range(validation.num_validation_images)
    ]


def _prompts_of(edit: Edit, options: TrainingOptions) -> list[ValidationPrompt]:
    asked_for = options.validation.validation_prompt
    own = ValidationPrompt(edit.name, edit.caption)
    return [ValidationPrompt(f"{PROMPT}_{edit.name}", asked_for), own] if asked_for else [own]


def first_seed(options: TrainingOptions) -> int:
    """``validation_seed``, or ``seed`` where it is empty. The same for each prompt and step, so that images can be compared."""
    chosen = options.validation.validation_seed
    return options.run.seed if chosen is None else chosen


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put training mode of every module and the random states of Python, numpy and torch back when the block ends."""
    modes = [(module, module.training) for module in network.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    # Only the network's own GPU: asking the others for their state would take memory on each.
    gpus = sorted({parameter.device.index for parameter in network.parameters() if parameter.device.type == "cuda"})
    try:
        with torch.random.fork_rng(gpus), torch.no_grad():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, training in modes:
            module.training = training

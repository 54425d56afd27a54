"""Whether the autoencoder of a base model is that of its family, and whether its text encoders of CLIP have the layers that are read.

``validate`` and the engine use the same functions. What is not on this machine, or not stated, is not judged. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.components import component_config, component_source
from trainer_engine.config.families import specs
from trainer_engine.config.family_parts import Scaling
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.text_states import stated_number
from trainer_engine.contract.errors import Problem

AUTOENCODER = "vae"
USUAL_SCALING = 0.18215
"""What diffusers takes for an ``AutoencoderKL`` that states none."""
CLIP_SKIP = "clip_skip"


def foreign_autoencoder(model: ModelOptions, spec: FamilySpec, cache: Path) -> Problem | None:
    """Why the autoencoder is that of another family: by its class, by its latents, or by what they are scaled with. None if it is not."""
    config, latents = component_config(model, spec, AUTOENCODER, cache), spec.latents
    kind = config.get("_class_name")
    if not latents.autoencoder_classes or not isinstance(kind, str):
        return None
    if kind not in latents.autoencoder_classes:
        what, expected = f"a {kind[:100]}", " or ".join(f"an {name}" for name in latents.autoencoder_classes)
    elif (made := _latents_of(config)) and not _is_cut_from(made, latents.channels, latents.scale_factor_px):
        what = f"an {kind} of {made[0]} channels for {made[1]} x {made[1]} pixels"
        expected = f"latents of {latents.channels} channels for {latents.scale_factor_px} x {latents.scale_factor_px} pixels"
    elif (found := _scaling_of(config)) and latents.scaling and found != latents.scaling and found in _scalings(kind, latents.channels):
        what, expected = f"an {kind} whose latents are scaled by {found.factor:g}", f"a scaling_factor of {latents.scaling.factor:g}"
    else:
        return None
    source = component_source(model, spec, AUTOENCODER)
    place = source.config or source
    message = f"{place.name} holds {what}, which is not the autoencoder of {spec.title}."
    hint = f"use that of {spec.repository(model.model_flavour)}"
    return Problem.error(place.option, "other_autoencoder", message, got=place.name, expected=expected, hint=hint)


def _latents_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(channels, pixels of a latent cell each way) as the configuration of an autoencoder states them."""
    channels = next((config[key] for key in ("latent_channels", "z_dim") if type(config.get(key)) is int), None)
    levels = next((config[key] for key in ("block_out_channels", "dim_mult") if isinstance(config.get(key), list)), None)
    return (channels, 2 ** (len(levels) - 1)) if channels and levels and len(levels) <= 16 else None


def _is_cut_from(made: tuple[int, int], channels: int, scale_factor_px: int) -> bool:
    """Whether the family's latents are those of an autoencoder, perhaps with squares of cells put together as channels."""
    squares = scale_factor_px // made[1]
    return squares * made[1] == scale_factor_px and made[0] * squares**2 == channels


def _scaling_of(config: Mapping[str, Any]) -> Scaling | None:
    factor, shift = config.get("scaling_factor", USUAL_SCALING), config.get("shift_factor") or 0.0
    return Scaling(float(factor), float(shift)) if type(factor) in (int, float) and type(shift) in (int, float) else None


def _scalings(kind: str, channels: int) -> set[Scaling]:
    """Those of the published autoencoders of a class with latents of so many channels."""
    found = (spec.latents for spec in specs().values())
    return {one.scaling for one in found if one.scaling and kind in one.autoencoder_classes and one.channels == channels}


def missing_clip_layers(model: ModelOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Yields an error if a text encoder has no layer that is ``clip_skip`` before the one whose states the network reads."""
    prompts = spec.prompts
    configs = (component_config(model, spec, folder, cache) for folder in prompts.clip_folders)
    depths = [depth for config in configs if (depth := stated_number(config, "num_hidden_layers")) is not None]
    problem = clip_skip_problem(model.clip_skip, min(depths), penultimate=prompts.reads_penultimate) if depths else None
    yield from [problem] if problem else []


def clip_skip_problem(skip: int, layers: int, *, penultimate: bool) -> Problem | None:
    """The error of a ``clip_skip`` that asks for a layer before the first of so many, or None.

    ``penultimate``: the network was trained with the states of the last layer but one, from which layers are counted.
    """
    most = layers - 1 - penultimate
    if skip <= most:
        return None
    message = f"{CLIP_SKIP}={skip}, and the text encoder has {layers} layers."
    return Problem.error(CLIP_SKIP, "too_many", message, got=skip, expected=f"at most {most}")

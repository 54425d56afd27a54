"""Makes ControlNets, writes those that were trained, and passes their outputs on to the frozen network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn

from trainer_engine.config.controlnet import FOLDER, ControlNetSpec, custom_config
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.families.base import Family
from trainer_engine.families.common.pipeline_folder import base_facts, training_facts
from trainer_engine.families.generation import GenerationRequest
from trainer_engine.results.folders import whole_folder
from trainer_engine.results.model_card import model_card_head, model_card_notices, named_base
from trainer_engine.runtime.seeds import derived_seed
from trainer_engine.weights.hub import Part
from trainer_engine.weights.loading import load_diffusers


def load_controlnet(cls: type[Any], part: Part, dtype: torch.dtype) -> nn.Module:
    """A stored ControlNet. Raises ModelUnavailable."""
    network: nn.Module = load_diffusers(cls, part, dtype)
    return network


def new_controlnet(make: Callable[..., nn.Module], network: nn.Module, spec: ControlNetSpec, options: TrainingOptions) -> nn.Module:
    """A ControlNet that begins as a copy of layers of ``network``, and changes nothing yet: its outputs are zero.

    ``make`` is the constructor of diffusers. Layers that the network lacks follow from the seed. Raises InvalidOptions.
    """
    settings, problems = custom_config(options.model.controlnet_custom_config, spec)
    if problems:
        raise InvalidOptions(problems)
    with torch.random.fork_rng([]):
        torch.manual_seed(derived_seed(options.run.seed, FOLDER))
        made = make(network, **settings)
    dtype = next(network.parameters()).dtype
    return made if dtype == torch.float32 else made.to(dtype)


def control_picture(request: GenerationRequest) -> Image.Image:
    """The control image of a request, at the size of the image to generate: what does not fit is cut off evenly."""
    assert request.control is not None, "validations of a ControlNet have control images"
    return ImageOps.fit(request.control.convert("RGB"), (request.width, request.height), Image.Resampling.LANCZOS)


def imports(steers: ControlNetSpec, pipeline: str) -> list[str]:
    """Lines of Python that import a pipeline and what its ControlNet needs."""
    if steers.module == "diffusers":
        return [f"from diffusers import {steers.class_name}, {pipeline}"]
    return [f"from diffusers import {pipeline}", f"from {steers.module} import {steers.class_name}, {steers.joined}"]


def argument(steers: ControlNetSpec) -> str:
    """What a pipeline is loaded with, if it takes the ControlNet."""
    return "" if steers.joined else ", controlnet=controlnet"


def joining(spec: FamilySpec, steers: ControlNetSpec) -> list[str]:
    """Lines of Python that join the two networks, if the pipeline does not."""
    place = f"pipeline.{spec.network}"
    return [f"{place} = {steers.joined}({place}, controlnet)  # its control: latents of the control image"] if steers.joined else []


def write_controlnet(family: Family, folder: Path, network: nn.Module) -> None:
    """The trained ControlNet in the layout of diffusers, with its model card. ``folder`` appears whole or not at all."""
    with whole_folder(folder) as staging:
        family.save_component(FOLDER, network, staging)
        (staging / "README.md").write_text(_card(family), encoding="utf-8")


def _card(family: Family) -> str:
    spec, options = family.spec, family.options
    assert spec.steers is not None
    base, dtype = family.parts.base.name, str(family.devices.weights).removeprefix("torch.")
    facts = {"family": spec.name, "objective": family.prediction_type, **base_facts(options, spec), **training_facts(options)}
    return "\n".join(
        [
            *model_card_head(options, spec, base, ["controlnet"]),
            f"# A ControlNet for {spec.title}",
            "",
            f"It was trained beside the frozen network of `{named_base(options, base)}`, which it steers by a control image.",
            "",
            *model_card_notices(options),
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            "```python",
            "import torch",
            *imports(spec.steers, spec.steers.pipeline),
            "",
            f"controlnet = {spec.steers.class_name}.from_pretrained('path/to/this/folder', torch_dtype=torch.{dtype})",
            f"pipeline = {spec.steers.pipeline}.from_pretrained({base!r}{argument(spec.steers)}, torch_dtype=torch.{dtype})",
            *joining(spec, spec.steers),
            "```",
            "",
        ]
    )

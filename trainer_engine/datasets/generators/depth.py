"""Depth maps of images, as a model of the hub estimates them: near is bright, far is dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.generators.base import Generator, Wrong

if TYPE_CHECKING:
    from PIL import Image

MODEL = "Intel/dpt-large"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class DepthFields(OptionGroup):
    """Fields of the generator of depth maps."""

    model_type: Literal["DPT"] = option("DPT", "Kind of the model. Every depth model of the transformers library is loaded alike.")
    model_name: str = option(
        MODEL, "Repository of the model, with weights in safetensors. It is downloaded once into the cache of the hub, if it is not there."
    )


def contradictions(fields: DepthFields) -> Iterator[Wrong]:
    """A name that is no repository: a folder is not read."""
    if not REPOSITORY.fullmatch(fields.model_name) or ".." in fields.model_name:
        yield Wrong("model_name", "is not a repository of the hub", f"owner/name, such as {MODEL}")


def make(image: Image.Image, fields: DepthFields, seed: int) -> Image.Image:
    """The nearest point is white and the farthest is black. Raises ModelUnavailable."""
    # By name, so that no process that only reads these declarations loads a library for models.
    estimated: Image.Image = import_module("trainer_engine.weights.depth_model").depth_map(image, fields.model_name)
    return estimated


GENERATORS = (
    Generator(
        name="depth",
        help="a map of the depth of the image, which a model estimates: near is bright.",
        synonyms=("depth_map", "depth_midas"),
        fields=DepthFields,
        models=("model_name",),
        make=make,
        contradictions=contradictions,
    ),
)

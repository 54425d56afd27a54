"""What an image set says of a conditioning set that is generated from its images: one entry of ``conditioning``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trainer_engine.config.dataset_tables import GeneratorSpec, generator_choice, generator_specs
from trainer_engine.config.option import OptionGroup, option


class GeneratedFields(OptionGroup):
    """Fields that every entry of ``conditioning`` may have; its generator may declare more."""

    type: str = generator_choice()
    conditioning_type: Literal["reference_strict", "reference_loose", "controlnet", "mask", "segmentation"] = option(
        "reference_strict",
        "How a generated file is used with its image. reference_strict: the network looks at it. reference_loose: the same, cropped by "
        "itself. controlnet: it is a control image; with the options controlnet and control this replaces both reference types, and "
        "without them this is reference_strict. mask: its brightness weights the loss at each place. segmentation: everything that is "
        "not black weights it in full.",
    )
    instance_data_dir: str | None = option(None, "Folder of the generated files. Empty: <cache_dir>/conditioning_data/<id>.")


class GeneratedReference(BaseModel):
    """One entry of ``conditioning``, with every default written out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Its place in the list."""
    type: str
    """The word for the generator as it was written; a part of the id of the generated set."""
    generator: str
    """Name of the generator."""
    conditioning_type: Literal["reference_strict", "reference_loose", "controlnet", "mask", "segmentation"]
    instance_data_dir: str
    """Folder of the generated files."""
    captions: tuple[str, ...] = ()
    """Captions of samples whose only reference is of this set, one at a time; empty for those of the images."""
    settings: Mapping[str, Any]
    """Values of the fields that the generator declares."""

    @property
    def spec(self) -> GeneratorSpec:
        return generator_specs()[self.generator]

    def id_of(self, images: str) -> str:
        """Returns the id of the set that is generated from the set with the id ``images``."""
        return generated_id(images, self.type)

    def as_entry(self) -> dict[str, Any]:
        """Returns the entry as it may be written in the file."""
        values = {name: value for name, value in self.settings.items() if value is not None}
        captions = list(self.captions) or False
        own = {"type": self.type, "conditioning_type": self.conditioning_type, "instance_data_dir": self.instance_data_dir}
        return {**own, "captions": captions, **values}


def generated_id(images: str, type: str) -> str:
    """Returns the id of a generated set: ``cats_conditioning_canny``."""
    return f"{images}_conditioning_{type}"

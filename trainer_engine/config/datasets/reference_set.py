"""The fields of a conditioning set: references, masks or control images of the images of another set."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainer_engine.config.datasets.fields import FileSet, eval_crop
from trainer_engine.config.datasets.generated import GeneratedReference
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.option import option


class ReferenceSet(FileSet):
    """A folder of reference images or masks. Each has the same name as its partner, the image that it is trained with.

    Sizes always come from the partner's set.
    """

    dataset_type: Literal["conditioning"] = "conditioning"
    instance_data_dir: str = option(..., "Folder of the references, searched with all its subfolders.", aliases=("instance_data_root",))
    conditioning_type: Literal["reference_strict", "reference_loose", "controlnet", "mask", "segmentation"] = option(
        ...,
        "How a file is used with its partner. reference_strict: the network looks at it; it has the same size and is cropped at the same "
        "place. reference_loose: the network looks at it; it has any size and is cropped by itself. controlnet: it is a control image of "
        "a run with controlnet or control, placed like a reference_strict; a network that takes references looks at it too. mask: its "
        "brightness weights the loss at each place. segmentation: everything in it that is not black weights the loss in full.",
    )
    instance_prompt: tuple[str, ...] = ()
    """Captions of samples whose only reference is of this set, one at a time; empty for those of the images."""
    generated: GeneratedReference | None = Field(default=None, exclude=True)
    """How its files are generated from the images of its partner's set; None for files that exist."""
    source_dataset_id: str | None = option(None, "Id of the image set that names this set in conditioning_data. Not required.")
    resolution: float = option(1024, "No effect: the partner's set decides.", gt=0)
    resolution_type: Literal["area", "pixel", "pixel_area"] = option("pixel_area", "No effect: the partner's set decides.")
    minimum_image_size: float | None = option(None, "No effect: references are never too small.", ge=0)
    maximum_image_size: float | None = option(None, "No effect: the partner's set decides.", ge=0)
    target_downsample_size: float | None = option(None, "No effect: the partner's set decides.", ge=0)
    crop: bool = option(False, "Crop each reference to the shape of crop_aspect. Only for reference_loose.")
    crop_style: Literal["random", "center", "corner"] = option(
        "random",
        "Position of the crop, for reference_loose. random: anywhere. center: in the middle. corner: at the top left.",
        synonyms={"centre": "center"},
        later=("face",),
    )
    crop_aspect: Literal["square", "preserve"] = option(
        "square",
        "Shape of the crop, for reference_loose. square: a square. preserve: the aspect ratio of the reference.",
        later=("random", "closest"),
    )
    cache_dir_vae: str | None = option(None, "Folder of the references' cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")

    def as_entry(self) -> dict[str, Any]:
        values = super().as_entry()
        chosen = {"caption_strategy": "instanceprompt"} if self.instance_prompt else {}
        return {**{name: value for name, value in values.items() if name != "instance_prompt" or value}, **chosen}

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions of samples whose only reference is of this set, one at a time; empty for those of the images."""
        return self.generated.captions if self.generated else self.instance_prompt

    def option(self, field: str) -> str:
        """Returns the name of a field in problems; of a generated set in the entry that generates it."""
        number = "" if self.generated is None else f"conditioning[{self.generated.number}]."
        return super().option(f"{number}{field}")

    @property
    def is_mask(self) -> bool:
        """Whether its files weight the loss, instead of being shown to the network."""
        return self.conditioning_type in ("mask", "segmentation")

    @property
    def shares_crops(self) -> bool:
        """Whether each reference is cropped like its image; loose references have sizes of their own."""
        return self.conditioning_type != "reference_loose"

    @property
    def noun(self) -> str:
        """What one of its files is called in messages."""
        return "mask" if self.is_mask else "control image" if self.conditioning_type == "controlnet" else "reference"

    @property
    def vae_cache(self) -> str:
        """Folder of the references' cached latents, or of the masks at the size of latents. Parsing always fills it in."""
        assert self.cache_dir_vae is not None
        return self.cache_dir_vae

    def as_images(self, partner: ImageSet) -> ImageSet:
        """Returns the references as an image set that can be planned: with the sizes of the partner's set and without its filters."""
        own = (
            "position",
            "id",
            "type",
            "own_fields",
            "instance_data_dir",
            "cache_dir_vae",
            "write_batch_size",
            "vae_batch_size",
            "max_workers",
            "vae_cache_ondemand",
            "vae_cache_disable",
            "compress_cache",
            "crop",
            "crop_style",
            "crop_aspect",
        )
        silent: dict[str, Any] = {"caption_strategy": "filename", "prepend_instance_prompt": False, "only_instance_prompt": False}
        silent["vae_cache_clear_each_epoch"] = False  # references of their own size keep their crop
        if partner.is_eval:
            silent["crop_style"] = eval_crop(self.crop_style)
        free = {"minimum_image_size": None, "minimum_aspect_ratio": None, "maximum_aspect_ratio": None, "max_num_samples": None}
        return partner.model_copy(update={**{name: getattr(self, name) for name in own}, **silent, **free})

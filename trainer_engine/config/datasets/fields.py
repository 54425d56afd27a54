"""What a dataset entry may say: one field of one model each, declared like the options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer_engine.config.option import OptionGroup, OptionSpec, option, spec_of

STORAGE_LATER = ("csv", "aws", "huggingface", "webshart", "memory")
DATASET_TYPES_LATER = (
    "video",
    "audio",
    "image_embeds",
    "conditioning_image_embeds",
    "distillation_cache",
    "caption",
    "grounding",
)


class AspectChoice(BaseModel):
    """One aspect that crops may have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aspect: float
    """Width / height."""
    weight: float
    """Share of the images that get it where crop_aspect is random; all weights of a list add up to 1."""


class Entry(OptionGroup):
    """What every dataset has."""

    position: int = Field(exclude=True)
    """Index in the file; problems are named by it."""
    id: str = option(..., "Name of the dataset, unique in the file; caches are found by it.")
    type: Literal["local"] = option("local", "Where the files lie.", later=STORAGE_LATER)

    def option(self, field: str) -> str:
        """How problems name a field of this entry: ``dataloader[0].resolution``."""
        return option_name(self.position, field)

    def as_entry(self) -> dict[str, Any]:
        """The entry as the file would hold it with nothing left to defaults; parsing it gives the same dataset again."""
        return self.model_dump(mode="json", exclude_none=True)


class ImageSet(Entry):
    """A folder of images that is trained on, or held out to be evaluated on."""

    dataset_type: Literal["image", "eval"] = "image"
    instance_data_dir: str = option(..., "Folder of the images; folders in it are searched too.", aliases=("instance_data_root",))
    caption_strategy: Literal["filename", "textfile", "instanceprompt"] = option(
        "filename",
        "Where captions come from: the file's name with spaces for underscores, a .txt file beside it, or instance_prompt for all.",
        synonyms={"instance_prompt": "instanceprompt"},
        later=("parquet", "csv", "huggingface", "webshart"),
    )
    conditioning_data: tuple[str, ...] = ()
    """Ids of the conditioning sets that hold a reference for each image of this set."""
    instance_prompt: tuple[str, ...] = ()
    """One or more prompts; a sample that has several is trained with one of them at a time."""
    prepend_instance_prompt: bool = option(False, "Put instance_prompt and a space before each caption.")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.")
    disable_multiline_split: bool = option(False, "Take a .txt file as one caption, not each of its lines as one of several.")
    resolution: float = option(1024, "Training size, in the unit of resolution_type.", gt=0)
    resolution_type: Literal["area", "pixel", "pixel_area"] = option(
        "pixel_area", "Unit of the sizes: megapixels, the shorter edge in pixels, or the edge of a square of that area."
    )
    minimum_image_size: float | None = option(None, "Smaller images are left out.", ge=0)
    maximum_image_size: float | None = option(None, "Larger images are scaled to target_downsample_size before they are cropped.", ge=0)
    target_downsample_size: float | None = option(None, "What images above maximum_image_size are scaled to.", ge=0)
    minimum_aspect_ratio: float | None = option(None, "Images that would be trained narrower than this are left out.", ge=0)
    maximum_aspect_ratio: float | None = option(None, "Images that would be trained wider than this are left out.", ge=0)
    crop: bool = option(False, "Cut a part of crop_aspect out of each image. Without it the image is only trimmed to whole multiples.")
    crop_style: Literal["random", "center", "corner"] = option(
        "random", "Where the part lies: anywhere, in the middle, at the top left.", synonyms={"centre": "center"}, later=("face",)
    )
    crop_aspect: Literal["square", "preserve", "random", "closest"] = option(
        "square", "Shape of the part: square, the image's own, or one of crop_aspect_buckets, drawn or nearest."
    )
    crop_aspect_buckets: tuple[AspectChoice, ...] = ()
    """The aspects that crop_aspect=random and closest choose from."""
    metadata_backend: Literal["discovery"] = option(
        "discovery",
        "How sizes are found: by reading the files' headers.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("parquet", "huggingface", "webshart"),
    )
    repeats: int = option(0, "How many more times each sample is seen in an epoch: it is seen repeats + 1 times.", ge=0)
    probability: float = option(1.0, "How likely a batch of this set is drawn before those of others; 0 leaves the set out.", ge=0)
    max_num_samples: int | None = option(None, "Train on this many of the files, chosen by the dataset's id alone.", ge=1)
    text_embeds: str | None = option(None, "Id of the text_embeds set that holds this set's captions.", aliases=("text_embed_cache",))
    cache_dir_vae: str | None = option(None, "Folder of this set's latents; <output_dir>/cache/vae/<family>/<id> otherwise.")
    write_batch_size: int = option(128, "Cache entries computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Images encoded together while caching.", ge=1)

    @property
    def is_held_out(self) -> bool:
        """Whether it is only evaluated on."""
        return self.dataset_type == "eval"

    @property
    def is_trained(self) -> bool:
        """Whether batches are drawn from it."""
        return not self.is_held_out and self.probability > 0

    @property
    def vae_cache(self) -> str:
        """Where this set's latents are kept; parsing has filled it in."""
        assert self.cache_dir_vae is not None
        return self.cache_dir_vae


class ReferenceSet(Entry):
    """A folder of images that others are trained with: each is found by the name of its partner.

    Sizes are those of the partner's set, whatever is said here.
    """

    dataset_type: Literal["conditioning"] = "conditioning"
    instance_data_dir: str = option(..., "Folder of the references; folders in it are searched too.", aliases=("instance_data_root",))
    conditioning_type: Literal["reference_strict", "reference_loose"] = option(
        ...,
        "reference_strict: as large as its partner, and cut out at the same place. reference_loose: of any size, cut out by itself.",
        later=("controlnet", "mask", "segmentation"),
    )
    source_dataset_id: str | None = option(None, "Id of the set of images that names this one in conditioning_data; need not be said.")
    resolution: float = option(1024, "As its partner's set says.", gt=0)
    resolution_type: Literal["area", "pixel", "pixel_area"] = option("pixel_area", "As its partner's set says.")
    minimum_image_size: float | None = option(None, "Without effect: references are never too small.", ge=0)
    maximum_image_size: float | None = option(None, "As its partner's set says.", ge=0)
    target_downsample_size: float | None = option(None, "As its partner's set says.", ge=0)
    crop: bool = option(False, "reference_loose: cut a part of crop_aspect out of each reference.")
    crop_style: Literal["random", "center", "corner"] = option(
        "random", "reference_loose: where the part lies.", synonyms={"centre": "center"}, later=("face",)
    )
    crop_aspect: Literal["square", "preserve"] = option("square", "reference_loose: shape of the part.", later=("random", "closest"))
    metadata_backend: Literal["discovery"] = option(
        "discovery",
        "How sizes are found: by reading the files' headers.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("parquet", "huggingface", "webshart"),
    )
    cache_dir_vae: str | None = option(None, "Folder of the references' latents; <output_dir>/cache/vae/<family>/<id> otherwise.")
    write_batch_size: int = option(128, "Cache entries computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Images encoded together while caching.", ge=1)

    @property
    def vae_cache(self) -> str:
        """Where the references' latents are kept; parsing has filled it in."""
        assert self.cache_dir_vae is not None
        return self.cache_dir_vae

    def as_images(self, partner: ImageSet) -> ImageSet:
        """The set as one that is planned by itself: sizes of the partner's set, and nothing is too small."""
        own = (
            "position",
            "id",
            "instance_data_dir",
            "cache_dir_vae",
            "write_batch_size",
            "vae_batch_size",
            "crop",
            "crop_style",
            "crop_aspect",
        )
        silent: dict[str, Any] = {"caption_strategy": "filename", "prepend_instance_prompt": False, "only_instance_prompt": False}
        if partner.is_held_out:
            silent["crop_style"] = held_out_crop(self.crop_style)
        free = {"minimum_image_size": None, "minimum_aspect_ratio": None, "maximum_aspect_ratio": None, "max_num_samples": None}
        return partner.model_copy(update={**{name: getattr(self, name) for name in own}, **silent, **free})


class TextSet(Entry):
    """A place for the embeddings of captions and prompts."""

    dataset_type: Literal["text_embeds"] = "text_embeds"
    default: bool = option(False, "Holds the embeddings of every set that names no other, and of validation prompts.")
    cache_dir: str | None = option(None, "Folder of the embeddings; <output_dir>/cache/text/<family> otherwise.")
    write_batch_size: int = option(128, "Embeddings computed before they are written together.", ge=1)

    @property
    def text_cache(self) -> str:
        """Where the embeddings are kept; parsing has filled it in."""
        assert self.cache_dir is not None
        return self.cache_dir


def held_out_crop(style: str) -> str:
    """Where parts of held-out images lie: what is measured must not change with the run's seed, which places random parts."""
    return "center" if style == "random" else style


SETS: Mapping[str, type[Entry]] = MappingProxyType(
    {"image": ImageSet, "eval": ImageSet, "conditioning": ReferenceSet, "text_embeds": TextSet}
)
OF_IMAGES = ("image", "eval")
"""Types of sets that hold images with captions."""
PLAIN = ("position", "dataset_type", "instance_prompt", "crop_aspect_buckets", "conditioning_data")
"""Fields with a parser of their own."""
COMMON = frozenset({"id", "type", "dataset_type", "disabled", "disable"})
PATHS = ("instance_data_dir", "cache_dir_vae", "cache_dir")

SWITCH = OptionSpec(
    "disabled", "", "bool", False, False, False, (), (), MappingProxyType({}), ("disable",), MappingProxyType({}), "Skip the entry."
)
KIND = OptionSpec(
    "dataset_type",
    "",
    "str",
    "image",
    False,
    False,
    tuple(SETS),
    DATASET_TYPES_LATER,
    MappingProxyType({}),
    (),
    MappingProxyType({}),
    "Its role.",
)


@cache
def specs(dataset_type: str) -> Mapping[str, OptionSpec]:
    """The declared fields of a kind of dataset that hold one plain value each."""
    cls = SETS[dataset_type]
    found = {name: spec_of(name, dataset_type, info) for name, info in cls.model_fields.items() if name not in PLAIN}
    return MappingProxyType(found)


@cache
def allowed(dataset_type: str) -> frozenset[str]:
    """Names that an entry of this kind may use, aliases included."""
    aliases = {alias for spec in specs(dataset_type).values() for alias in spec.aliases}
    return COMMON | aliases | (set(SETS[dataset_type].model_fields) - {"position"})


@cache
def later() -> Mapping[str, Any]:
    """Fields of the format without code behind them yet -> the format's default, None where it has none."""
    text = resources.files(__package__).joinpath("not_available.json").read_text(encoding="utf-8")
    known: dict[str, Any] = json.loads(text)
    return MappingProxyType(known)


@cache
def known_names() -> frozenset[str]:
    """Every field of the format."""
    return frozenset(later()).union(*(allowed(kind) for kind in SETS))


def option_name(position: int, field: str = "") -> str:
    """``dataloader[2].crop``, or ``dataloader[2]`` for the entry as a whole."""
    return f"dataloader[{position}].{field}" if field else f"dataloader[{position}]"

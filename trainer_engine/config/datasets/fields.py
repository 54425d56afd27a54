"""The fields of dataset entries: one model for each kind of dataset, with fields declared like the options."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field

from trainer_engine.config.dataset_tables import FOLDER_FIELD, SOURCES_LATER, SourceSpec, caption_choice, source_choice, source_specs
from trainer_engine.config.datasets.object_fields import AspectChoice, CaptionShuffle, TableFile
from trainer_engine.config.option import OptionGroup, option

DATASET_TYPES_LATER = (
    "video",
    "audio",
    "image_embeds",
    "conditioning_image_embeds",
    "distillation_cache",
    "caption",
    "grounding",
)


Group = TypeVar("Group", bound=OptionGroup)
GroupClass = type[Group]


class Entry(OptionGroup):
    """Fields that every dataset has."""

    position: int = Field(exclude=True)
    """Index in the file, by which problems name the entry."""
    id: str = option(..., "Name of the dataset. It must be unique in the file; caches are identified by it.")
    type: str = source_choice()

    def option(self, field: str) -> str:
        """Returns the name of a field of this entry in problems: ``dataloader[0].resolution``."""
        return option_name(self.position, field)

    def as_entry(self) -> dict[str, Any]:
        """Returns the entry with every default written out. Parsing it gives the same dataset again."""
        return self.model_dump(mode="json", exclude_none=True)


class FileSet(Entry):
    """Fields of datasets whose files lie in a source."""

    own_fields: dict[str, Any] = Field(default_factory=dict, exclude=True)
    """Values of the fields that the source and the caption strategy of this dataset declare, by name."""
    parquet: TableFile | None = None
    """The table with captions or sizes of the files."""

    @property
    def source(self) -> SourceSpec:
        """The facts of the source that ``type`` chooses."""
        return source_specs()[self.type]

    @property
    def place(self) -> str:
        """Where the files lie, as configured."""
        return str(getattr(self, FOLDER_FIELD) if self.source.place_field == FOLDER_FIELD else self.own_fields[self.source.place_field])

    @property
    def place_option(self) -> str:
        """Name in problems of the field that says where the files lie."""
        return self.option(self.source.place_field)

    def own(self, group: GroupClass[Group]) -> Group:
        """Returns the fields that a source or a caption strategy declares, with their types."""
        return group.model_validate({name: self.own_fields[name] for name in group.model_fields})

    def as_entry(self) -> dict[str, Any]:
        values = {**super().as_entry(), **{name: value for name, value in self.own_fields.items() if value is not None}}
        return {name: value for name, value in values.items() if name != FOLDER_FIELD or value}


class ImageSet(FileSet):
    """A folder of images to train on, or, as an eval set, to evaluate on."""

    dataset_type: Literal["image", "eval"] = "image"
    instance_data_dir: str = option(..., "Folder of the images, searched with all its subfolders.", aliases=("instance_data_root",))
    caption_strategy: str = caption_choice()
    conditioning_data: tuple[str, ...] = ()
    """Ids of the conditioning sets that hold a reference for each image of this set."""
    instance_prompt: tuple[str, ...] = ()
    """One or more prompts. A sample with several is trained with one of them at a time."""
    prepend_instance_prompt: bool = option(False, "Put instance_prompt and a space in front of each caption.")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.")
    disable_multiline_split: bool = option(
        False, "Use a complete .txt file as one caption. Without it each line is one of several alternative captions."
    )
    caption_shuffle: CaptionShuffle | None = None
    """How the tags of captions are shuffled; None if they are not."""
    resolution: float = option(1024, "Training size. resolution_type gives its unit.", gt=0)
    resolution_type: Literal["area", "pixel", "pixel_area"] = option(
        "pixel_area",
        "Unit of all sizes. pixel_area: the edge of a square with the same area, in pixels. area: megapixels. pixel: the shorter edge, in "
        "pixels.",
    )
    minimum_image_size: float | None = option(None, "Skip images smaller than this. Empty: skip none.", ge=0)
    maximum_image_size: float | None = option(
        None, "Scale images larger than this down to target_downsample_size before they are cropped. Empty: no limit.", ge=0
    )
    target_downsample_size: float | None = option(
        None, "Size that images larger than maximum_image_size are scaled to. Both are set, or neither.", ge=0
    )
    minimum_aspect_ratio: float | None = option(
        None, "Skip images whose aspect ratio (width / height) in training is below this. Empty: skip none.", ge=0
    )
    maximum_aspect_ratio: float | None = option(
        None, "Skip images whose aspect ratio (width / height) in training is above this. Empty: skip none.", ge=0
    )
    crop: bool = option(
        False, "Crop each image to the shape of crop_aspect. Without it an image is only trimmed so that its edges are whole multiples."
    )
    crop_style: Literal["random", "center", "corner"] = option(
        "random",
        "Position of the crop. random: anywhere. center: in the middle. corner: at the top left.",
        synonyms={"centre": "center"},
        later=("face",),
    )
    crop_aspect: Literal["square", "preserve", "random", "closest"] = option(
        "square",
        "Shape of the crop. square: a square. preserve: the aspect ratio of the image. random: one of crop_aspect_buckets, at random. "
        "closest: the one of crop_aspect_buckets that is nearest to the image.",
    )
    crop_aspect_buckets: tuple[AspectChoice, ...] = ()
    """The aspect ratios that crop_aspect=random and closest choose from."""
    metadata_backend: Literal["discovery", "parquet"] = option(
        "discovery",
        "Source of the image sizes. discovery: the headers of the files. parquet: the table in parquet.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("huggingface", "webshart"),
    )
    repeats: int = option(0, "Number of additional times that each sample is seen in an epoch: it is seen repeats + 1 times.", ge=0)
    probability: float = option(
        1.0, "Weight with which batches of this set come before those of other sets in an epoch. 0: the set is not trained on.", ge=0
    )
    max_num_samples: int | None = option(
        None, "Train on only this many of the files. The choice depends only on the dataset's id. Empty: all files.", ge=1
    )
    text_embeds: str | None = option(
        None, "Id of the text_embeds set that caches this set's captions. Empty: the default one.", aliases=("text_embed_cache",)
    )
    cache_dir_vae: str | None = option(None, "Folder of this set's cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)

    @property
    def is_eval(self) -> bool:
        """Whether this is an eval set: evaluated on, never trained on."""
        return self.dataset_type == "eval"

    @property
    def is_trained(self) -> bool:
        """Whether the run trains on batches of this set."""
        return not self.is_eval and self.probability > 0

    @property
    def vae_cache(self) -> str:
        """Folder of this set's cached latents. Parsing always fills it in."""
        assert self.cache_dir_vae is not None
        return self.cache_dir_vae


class ReferenceSet(FileSet):
    """A folder of reference images. Each has the same name as its partner, the image that it is trained with.

    Sizes always come from the partner's set.
    """

    dataset_type: Literal["conditioning"] = "conditioning"
    instance_data_dir: str = option(..., "Folder of the references, searched with all its subfolders.", aliases=("instance_data_root",))
    conditioning_type: Literal["reference_strict", "reference_loose"] = option(
        ...,
        "How a reference relates to its partner. reference_strict: the same size, cropped at the same place. reference_loose: any size, "
        "cropped by itself.",
        later=("controlnet", "mask", "segmentation"),
    )
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
    metadata_backend: Literal["discovery", "parquet"] = option(
        "discovery",
        "Source of the image sizes. discovery: the headers of the files. parquet: the table in parquet.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("huggingface", "webshart"),
    )
    cache_dir_vae: str | None = option(None, "Folder of the references' cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)

    @property
    def vae_cache(self) -> str:
        """Folder of the references' cached latents. Parsing always fills it in."""
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
            "crop",
            "crop_style",
            "crop_aspect",
        )
        silent: dict[str, Any] = {"caption_strategy": "filename", "prepend_instance_prompt": False, "only_instance_prompt": False}
        if partner.is_eval:
            silent["crop_style"] = eval_crop(self.crop_style)
        free = {"minimum_image_size": None, "minimum_aspect_ratio": None, "maximum_aspect_ratio": None, "max_num_samples": None}
        return partner.model_copy(update={**{name: getattr(self, name) for name in own}, **silent, **free})


class TextSet(Entry):
    """A cache of the embeddings of captions and prompts."""

    type: Literal["local"] = option("local", "Storage of the cache. local: a folder on this machine.", later=SOURCES_LATER)
    dataset_type: Literal["text_embeds"] = "text_embeds"
    default: bool = option(False, "Cache the embeddings of image sets that name no text_embeds set, and of validation prompts, here.")
    caption_filter_list: str | tuple[str, ...] = ()
    """What is removed from captions and replaced in them: entries, or the path of a file of them."""
    cache_dir: str | None = option(None, "Folder of the cached embeddings. Empty: <output_dir>/cache/text/<family>.")
    write_batch_size: int = option(128, "Number of embeddings that are computed before they are written together.", ge=1)

    @property
    def text_cache(self) -> str:
        """Folder of the cached embeddings. Parsing always fills it in."""
        assert self.cache_dir is not None
        return self.cache_dir


def eval_crop(style: str) -> str:
    """Returns the crop style of an eval set: never random, since the evaluation loss must not depend on the run's seed."""
    return "center" if style == "random" else style


def option_name(position: int, field: str = "") -> str:
    """Returns the name of a field in problems, ``dataloader[2].crop``, or of the entry itself, ``dataloader[2]``."""
    return f"dataloader[{position}].{field}" if field else f"dataloader[{position}]"

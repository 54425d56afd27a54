"""The fields of dataset entries: one model for each kind of dataset, with fields declared like the options."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field

from trainer_engine.config.dataset_tables import FOLDER_FIELD, SOURCES_LATER, SourceSpec, caption_choice, source_choice, source_specs
from trainer_engine.config.datasets.generated import GeneratedReference
from trainer_engine.config.datasets.object_fields import AspectChoice, CaptionShuffle, ClipLength, TableFile
from trainer_engine.config.option import OptionGroup, option

DATASET_TYPES_LATER = (
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


class Gates(NamedTuple):
    """The epochs and optimizer steps, from 1, in which a set is trained on: both starts are reached, and no end is passed."""

    start_epoch: int = 1
    start_step: int = 0
    end_epoch: int = 0
    """The last one; 0 for no end."""
    end_step: int = 0
    """The last one; 0 for no end."""

    def has_epoch(self, epoch: int) -> bool:
        return self.start_epoch <= epoch and (not self.end_epoch or epoch <= self.end_epoch)

    def has_step(self, step: int) -> bool:
        return self.start_step <= step and (not self.end_step or step <= self.end_step)

    @property
    def step_cuts(self) -> tuple[int, ...]:
        """Steps from which on the set is trained on, or no longer."""
        return (*((self.start_step,) if self.start_step > 1 else ()), *((self.end_step + 1,) if self.end_step else ()))

    @property
    def epoch_cuts(self) -> tuple[int, ...]:
        """Epochs from which on the set is trained on, or no longer."""
        return (*((self.start_epoch,) if self.start_epoch > 1 else ()), *((self.end_epoch + 1,) if self.end_epoch else ()))


ALWAYS = Gates()


class ImageSet(FileSet):
    """A folder of images, or of clips, to train on, or, as an eval set, to evaluate on."""

    dataset_type: Literal["image", "video", "eval"] = "image"
    video: ClipLength | None = None
    """The lengths of its clips; None for a set of images."""
    instance_data_dir: str = option(..., "Folder of the images, searched with all its subfolders.", aliases=("instance_data_root",))
    caption_strategy: str = caption_choice()
    conditioning_data: tuple[str, ...] = ()
    """Ids of the conditioning sets that hold a reference for each image of this set."""
    conditioning: tuple[GeneratedReference, ...] = ()
    """Conditioning sets that are generated from its images."""
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
    max_upscale_threshold: float | None = option(
        None,
        "Largest enlargement that crop_aspect=random may cause, as a fraction: 0.25 allows edges 1.25 times as long. Aspects that need "
        "more are not chosen for an image; if none is left, it is cropped to a square. Empty: no limit.",
        ge=0,
        le=1,
    )
    metadata_backend: Literal["discovery", "parquet", "huggingface"] = option(
        "discovery",
        "Source of the image sizes. discovery: the headers of the files. parquet: the table in parquet. huggingface: the columns width "
        "and height of a huggingface set, where they are right.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("webshart",),
    )
    repeats: int = option(0, "Number of additional times that each sample is seen in an epoch: it is seen repeats + 1 times.", ge=0)
    probability: float = option(
        1.0, "Weight with which batches of this set come before those of other sets in an epoch. 0: the set is not trained on.", ge=0
    )
    max_num_samples: int | None = option(
        None, "Train on only this many of the files. The choice depends only on the dataset's id. Empty: all files.", ge=1
    )
    train_batch_size: int | None = option(
        None, "Number of samples of this set that each process takes at once. Empty: the option train_batch_size.", ge=1
    )
    start_epoch: int = option(1, "First epoch in which this set is trained on. start_step must be reached as well.", ge=0)
    start_step: int = option(0, "First optimizer step in which this set is trained on. start_epoch must be reached as well.", ge=0)
    end_epoch: int | None = option(None, "Last epoch in which this set is trained on. Empty or 0: the last of the run.", ge=0)
    end_step: int | None = option(None, "Last optimizer step in which this set is trained on. Empty or 0: the last of the run.", ge=0)
    disable_validation: bool = option(False, "Use none of its images and captions in validation images.")
    is_regularisation_data: bool = option(
        False,
        "Use the set for prior preservation: on its samples an adapter learns the prediction of the base model instead of the image. A "
        "full fine-tune trains on its images like on any other.",
        aliases=("is_regularization_data",),
    )
    timestep_sampling_offset: float = option(
        0.0,
        "Flow matching: number added before the sigmoid that gives the timesteps of this set. Above 0: more noise, as for composition; "
        "below 0: less, as for details. Not with flow_use_uniform_schedule or flow_use_beta_schedule.",
        ge=-10,
        le=10,
    )
    text_embeds: str | None = option(
        None, "Id of the text_embeds set that caches this set's captions. Empty: the default one.", aliases=("text_embed_cache",)
    )
    cache_dir_vae: str | None = option(None, "Folder of this set's cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)
    vae_cache_ondemand: bool = option(
        False, "Encode the images of this set when a batch first needs them, and store their latents. Also on with the option of that name."
    )
    vae_cache_disable: bool = option(
        False, "Encode the images of this set whenever a batch needs them, and store nothing. Also on with the option of that name."
    )
    compress_cache: bool | None = option(None, "Compress the cached latents of this set, without loss. Empty: compress_disk_cache.")
    max_workers: int = option(32, "Largest number of threads that read and decode files for the cache.", ge=1)

    @property
    def gates(self) -> Gates:
        """The epochs and steps in which this set is trained on."""
        return Gates(self.start_epoch, self.start_step, self.end_epoch or 0, self.end_step or 0)

    def as_entry(self) -> dict[str, Any]:
        values = super().as_entry()
        generated = [one.as_entry() for one in self.conditioning]
        return {name: value for name, value in {**values, "conditioning": generated}.items() if name != "conditioning" or generated}

    @property
    def is_eval(self) -> bool:
        """Whether this is an eval set: evaluated on, never trained on."""
        return self.dataset_type == "eval"

    @property
    def noun(self) -> str:
        """What one of its files is called in messages."""
        return "image" if self.video is None else "clip"

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
    """A folder of reference images or masks. Each has the same name as its partner, the image that it is trained with.

    Sizes always come from the partner's set.
    """

    dataset_type: Literal["conditioning"] = "conditioning"
    instance_data_dir: str = option(..., "Folder of the references, searched with all its subfolders.", aliases=("instance_data_root",))
    conditioning_type: Literal["reference_strict", "reference_loose", "controlnet", "mask", "segmentation"] = option(
        ...,
        "How a file is used with its partner. reference_strict: the network looks at it; it has the same size and is cropped at the same "
        "place. reference_loose: the network looks at it; it has any size and is cropped by itself. controlnet: the ControlNet that is "
        "trained looks at it; it has the same size and is cropped at the same place. mask: its brightness weights the loss at each place. "
        "segmentation: everything in it that is not black weights the loss in full.",
    )
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
    metadata_backend: Literal["discovery", "parquet", "huggingface"] = option(
        "discovery",
        "Source of the image sizes. discovery: the headers of the files. parquet: the table in parquet. huggingface: the columns width "
        "and height of a huggingface set, where they are right.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("webshart",),
    )
    cache_dir_vae: str | None = option(None, "Folder of the references' cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)
    vae_cache_ondemand: bool = option(
        False, "Encode the images of this set when a batch first needs them, and store their latents. Also on with the option of that name."
    )
    vae_cache_disable: bool = option(
        False, "Encode the images of this set whenever a batch needs them, and store nothing. Also on with the option of that name."
    )
    compress_cache: bool | None = option(None, "Compress the cached latents of this set, without loss. Empty: compress_disk_cache.")
    max_workers: int = option(32, "Largest number of threads that read and decode files for the cache.", ge=1)

    def option(self, field: str) -> str:
        """Returns the name of a field in problems; of a generated set in the entry that generates it."""
        number = "" if self.generated is None else f"conditioning[{self.generated.number}]."
        return super().option(f"{number}{field}")

    @property
    def is_mask(self) -> bool:
        """Whether its files weight the loss, instead of being shown to the network."""
        return self.conditioning_type in ("mask", "segmentation")

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
    text_encoder_batch_size: int = option(1, "Number of captions that are encoded together for the cache.", ge=1)
    text_cache_ondemand: bool = option(
        False,
        "Encode prompts of this set when they are first needed, and store their embeddings. Also on with the option of that name.",
    )
    text_cache_disable: bool = option(
        False, "Encode the prompts of this set whenever they are needed, and store nothing. Also on with the option of that name."
    )
    compress_cache: bool | None = option(None, "Compress the embeddings of this set, without loss. Empty: compress_disk_cache.")

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

"""The fields of dataset entries: one model for each kind of dataset, with fields declared like the options."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field

from trainer_engine.config.dataset_tables import FOLDER_FIELD, SOURCES_LATER, SourceSpec, source_choice, source_specs
from trainer_engine.config.datasets.object_fields import TableFile
from trainer_engine.config.option import OptionGroup, option

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
    metadata_backend: Literal["discovery", "parquet", "huggingface"] = option(
        "discovery",
        "Source of the image sizes. discovery: the headers of the files. parquet: the table in parquet. huggingface: the columns width "
        "and height of a huggingface set, where they are right.",
        synonyms={"json": "discovery", "filesystem": "discovery"},
        later=("webshart",),
    )
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)
    vae_cache_ondemand: bool = option(
        False, "Encode the images of this set when a batch first needs them, and store their latents. Also on with the option of that name."
    )
    vae_cache_disable: bool = option(
        False,
        "Encode the images of this set whenever a batch needs them, and store nothing. Also on with the option of that name.",
        aliases=("disable_vae_cache",),
    )
    compress_cache: bool | None = option(None, "Compress the cached latents of this set, without loss. Empty: compress_disk_cache.")
    max_workers: int = option(32, "Largest number of threads that read and decode files for the cache.", ge=1)

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


class LatentSet(Entry):
    """A place for the cached latents of the image set that names it in ``image_embeds``."""

    type: Literal["local"] = option("local", "Storage of the latents. local: a folder on this machine.", later=SOURCES_LATER)
    dataset_type: Literal["image_embeds"] = "image_embeds"
    cache_dir: str | None = option(
        None, "Folder of the latents of the image set that names this set in image_embeds. Empty: that set's cache_dir_vae."
    )


class FrameSet(Entry):
    """A place of the format for what an image encoder makes of first frames and references. It needs none here."""

    type: Literal["local"] = option("local", "Storage of the cache. local: a folder on this machine.", later=SOURCES_LATER)
    dataset_type: Literal["conditioning_image_embeds"] = "conditioning_image_embeds"
    cache_dir: str | None = option(None, "No effect: what an image encoder makes of a frame is cached with the latents of its clip.")


def eval_crop(style: str) -> str:
    """Returns the crop style of an eval set: never random, since the evaluation loss must not depend on the run's seed."""
    return "center" if style == "random" else style


def option_name(position: int, field: str = "") -> str:
    """Returns the name of a field in problems, ``dataloader[2].crop``, or of the entry itself, ``dataloader[2]``."""
    return f"dataloader[{position}].{field}" if field else f"dataloader[{position}]"

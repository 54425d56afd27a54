"""The fields of a set of images or clips that is trained or evaluated on."""

from __future__ import annotations

from typing import Any, Literal

from trainer_engine.config.dataset_tables import caption_choice
from trainer_engine.config.datasets.fields import FileSet, Gates
from trainer_engine.config.datasets.generated import GeneratedReference
from trainer_engine.config.datasets.object_fields import AspectChoice, CaptionShuffle, ClipLength
from trainer_engine.config.option import option


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
    vae_cache_clear_each_epoch: bool = option(
        False,
        "Crop each image anew in each epoch: at a new place with crop_style=random, to a new aspect with crop_aspect=random. Latents are "
        "then encoded while training, as with vae_cache_ondemand, and those of an epoch are removed from the cache when it is over.",
    )
    repeats: int = option(0, "Number of additional times that each sample is seen in an epoch: it is seen repeats + 1 times.", ge=0)
    probability: float = option(
        1.0,
        "Weight with which batches of this set come before those of other sets in an epoch. 0: the set is not trained on.",
        ge=0,
        le=1_000_000,
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
    slider_strength: float = option(
        0.0,
        "Slider training: strength of the adapter while it learns this set. Above 0: more of the concept. Below 0: less of it. 0: a "
        "neutral set, for which the adapter has its usual strength. With such sets batches alternate: positive, negative, neutral.",
        ge=-10,
        le=10,
    )
    text_embeds: str | None = option(
        None, "Id of the text_embeds set that caches this set's captions. Empty: the default one.", aliases=("text_embed_cache",)
    )
    image_embeds: str | None = option(
        None, "Id of an image_embeds set, whose cache_dir is the folder of this set's cached latents if it gives no cache_dir_vae."
    )
    cache_dir_vae: str | None = option(None, "Folder of this set's cached latents. Empty: <output_dir>/cache/vae/<family>/<id>.")

    @property
    def slider_side(self) -> int:
        """The side of a slider that it is on: 1, -1, or 0 for neither."""
        return (self.slider_strength > 0) - (self.slider_strength < 0)

    @property
    def changes_aspects(self) -> bool:
        """Whether its images get new aspects in each epoch, so that the buckets of epochs differ."""
        return self.vae_cache_clear_each_epoch and self.is_trained and self.crop and self.crop_aspect == "random"

    @property
    def changes_crops(self) -> bool:
        """Whether its images are cropped anew in each epoch."""
        return self.changes_aspects or (self.vae_cache_clear_each_epoch and self.is_trained and self.crop and self.crop_style == "random")

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

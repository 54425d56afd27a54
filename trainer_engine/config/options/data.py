"""Options of datasets: where they are described, how samples are sized, captioned, cached and put into batches."""

from __future__ import annotations

from typing import Literal

from trainer_engine.config.dataset_tables import caption_choice
from trainer_engine.config.option import OptionGroup, option


class DataOptions(OptionGroup):
    """Where the datasets are, and how they become batches. An entry of the dataloader file overrides the option of the same name."""

    data_backend_config: str = option(..., "Path of the JSON file that describes the datasets.")
    resolution: float = option(1024, "Training size of datasets that set none. resolution_type gives its unit.", gt=0)
    resolution_type: Literal["pixel_area", "area", "pixel"] = option(
        "pixel_area",
        "Unit of all sizes. pixel_area: the edge of a square with the same area, in pixels. area: megapixels. pixel: the shorter edge, in "
        "pixels.",
    )
    minimum_image_size: float | None = option(
        None, "Skip images smaller than this. resolution_type gives its unit. Empty: skip none.", ge=0
    )
    maximum_image_size: float | None = option(
        None, "Scale images larger than this down to target_downsample_size before they are cropped. Empty: no limit.", ge=0
    )
    target_downsample_size: float | None = option(
        None, "Size that images larger than maximum_image_size are scaled to. Both are set, or neither.", ge=0
    )
    aspect_bucket_alignment: int = option(64, "Image edges are multiples of this many pixels. A family may need a larger multiple.", ge=8)
    aspect_bucket_rounding: int = option(2, "Number of decimals to which the aspect ratio of a bucket is rounded.", ge=1, le=9)
    caption_strategy: str = caption_choice()
    instance_prompt: str | None = option(
        None, "Caption for caption_strategy=instanceprompt, only_instance_prompt and prepend_instance_prompt."
    )
    prepend_instance_prompt: bool = option(False, "Put instance_prompt and a space in front of each caption.")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.")
    parquet_caption_column: str | None = option(None, "Column of the captions in tables whose parquet object names no caption_column.")
    parquet_filename_column: str | None = option(
        None, "Column of the names of files in tables whose parquet object names no filename_column."
    )
    caption_dropout_probability: float = option(
        0.1, "Probability that a sample is trained with the empty prompt instead of its caption.", ge=0, le=1
    )
    aws_max_pool_connections: int = option(
        128, "Largest number of connections to a service at once, for datasets of type aws that set none.", ge=1, le=1_000
    )
    cache_dir: str | None = option(None, "Root folder of caches that have no folder of their own. Empty: <output_dir>/cache.")
    cache_dir_vae: str | None = option(
        None, "Folder of cached latents; each image set without a cache_dir_vae uses <cache_dir_vae>/<dataset id>. Empty: below cache_dir."
    )
    cache_dir_text: str | None = option(
        None, "Folder of cached text embeddings, for text_embeds sets without a cache_dir. Empty: below cache_dir."
    )
    write_batch_size: int = option(128, "Number of cache entries that are computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Number of images that are encoded together for the cache.", ge=1)
    text_encoder_batch_size: int = option(1, "Number of captions that are encoded together for the cache.", ge=1)
    vae_cache_ondemand: bool = option(
        False,
        "Encode images when a batch first needs them instead of before training, and store their latents for the next time. Files are "
        "still read once at the start, to leave out broken ones. The autoencoder stays in memory.",
    )
    vae_cache_disable: bool = option(
        False, "Encode images whenever a batch needs them, and never store latents. Entries that are in the cache are read."
    )
    text_cache_ondemand: bool = option(
        False,
        "Encode captions when a batch first needs them instead of before training, and store their embeddings for the next time. The text "
        "encoders stay in memory.",
    )
    text_cache_disable: bool = option(
        False, "Encode captions whenever a batch needs them, and never store embeddings. Entries that are in the cache are read."
    )
    compress_disk_cache: bool = option(
        False,
        "Compress cache entries from 64 KiB on, without loss, where that saves at least 15 percent. Reading and writing them takes longer. "
        "Entries of both kinds are always read.",
    )
    max_workers: int = option(32, "Largest number of threads that read and decode files for the cache.", ge=1)
    dataloader_prefetch: bool = option(
        True,
        "Prepare batches ahead in a background thread, so that steps do not wait for the disk. The order and contents of batches are the "
        "same.",
    )
    dataloader_prefetch_qlen: int = option(
        10,
        "Number of batches that dataloader_prefetch keeps ready. Each takes host memory for the latents, noise and embeddings of "
        "train_batch_size samples.",
        ge=1,
    )
    data_backend_sampling: Literal["auto-weighting", "uniform"] = option(
        "auto-weighting",
        "How the dataset of the next batch is chosen. auto-weighting: by its probability times the number of batches that it has left in "
        "the epoch. uniform: by its probability alone.",
    )
    allow_dataset_oversubscription: bool = option(
        False, "Repeat the samples of buckets that hold fewer samples than one optimizer step takes."
    )
    conditioning_multidataset_sampling: Literal["combined", "random"] = option(
        "random",
        "How image sets with several conditioning sets are trained. combined: with the references of all of them. random: with those of "
        "one of them at a time.",
    )

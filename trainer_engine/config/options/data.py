from __future__ import annotations

from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class DataOptions(OptionGroup):
    """Where the datasets are, and how they become batches. An entry of the dataloader file wins over the option of its name."""

    data_backend_config: str = option(..., "Path of the JSON file that describes the datasets.")
    resolution: float = option(1024, "Training size where a dataset names none; its unit is resolution_type.", gt=0)
    resolution_type: Literal["pixel_area", "area", "pixel"] = option(
        "pixel_area",
        "Unit of every size: pixel_area is the edge of a square of that area, area is megapixels, pixel the shorter edge.",
    )
    minimum_image_size: float | None = option(None, "Leave out images smaller than this, in the unit of resolution_type.", ge=0)
    maximum_image_size: float | None = option(None, "Scale images larger than this down to target_downsample_size before cropping.", ge=0)
    target_downsample_size: float | None = option(None, "Size that images above maximum_image_size are scaled to; needs it.", ge=0)
    aspect_bucket_alignment: int = option(64, "Image edges are multiples of this many pixels; a family may ask for a larger one.", ge=8)
    aspect_bucket_rounding: int = option(2, "Decimals of the aspect ratio that names a bucket.", ge=1, le=9)
    caption_strategy: Literal["filename", "textfile", "instanceprompt"] = option(
        "filename",
        "Where captions come from: the file's name, a .txt file beside it, or instance_prompt for all.",
        synonyms={"instance_prompt": "instanceprompt"},
        later=("parquet", "csv", "huggingface", "webshart"),
    )
    instance_prompt: str | None = option(
        None, "The caption of caption_strategy=instanceprompt, or what prepend_instance_prompt puts first."
    )
    prepend_instance_prompt: bool = option(False, "Put instance_prompt and a space before each caption.")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.")
    caption_dropout_probability: float = option(0.1, "Chance that a sample is trained with the empty prompt.", ge=0, le=1)
    cache_dir: str | None = option(None, "Root of the caches that have no folder of their own. Empty: <output_dir>/cache.")
    cache_dir_vae: str | None = option(None, "Latents of image sets that name no cache_dir_vae go to <this>/<dataset id>.")
    cache_dir_text: str | None = option(None, "Text embeddings of text_embeds sets that name no cache_dir go here.")
    write_batch_size: int = option(128, "Cache entries computed before they are written together.", ge=1)
    vae_batch_size: int = option(4, "Images encoded together while caching.", ge=1)
    text_encoder_batch_size: int = option(1, "Captions encoded together while caching.", ge=1)
    max_workers: int = option(32, "Threads that read and decode files while caching, at most.", ge=1)
    dataloader_prefetch: bool = option(
        True, "Prepare batches ahead in a thread, so that steps do not wait for the disk. Changes neither their order nor their numbers."
    )
    dataloader_prefetch_qlen: int = option(
        10,
        "Batches kept ready by dataloader_prefetch in host memory: latents, noise and embeddings of train_batch_size samples.",
        ge=1,
    )
    data_backend_sampling: Literal["auto-weighting", "uniform"] = option(
        "auto-weighting",
        "How the next batch's dataset is chosen: by probability times the batches that it has left in the epoch, or by probability alone.",
    )
    allow_dataset_oversubscription: bool = option(False, "Repeat the samples of buckets that are too small for one optimizer step.")
    conditioning_multidataset_sampling: Literal["combined", "random"] = option(
        "random", "Sets with references in several conditioning sets: train with those of all sets together, or of one set at a time."
    )

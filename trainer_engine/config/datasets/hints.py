"""Fields of the format that ask how to do something which this trainer does without being asked. Real datasets files contain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from trainer_engine.config.json_fields import WrongValue, parse_bool
from trainer_engine.config.options.hints import LEFT_OUT, SCANS, UNWANTED
from trainer_engine.config.options.values import parse_text


class Hint(NamedTuple):
    """A field that needs nothing."""

    reason: str
    """What happens anyway."""
    check: Callable[[object], object]
    """Raises WrongValue for a value that the field cannot have."""


def _whole(value: object) -> None:
    if isinstance(value, bool) or not (str(value).strip().isascii() and str(value).strip().isdigit()):
        raise WrongValue("is not a whole number", code="not_a_number", hint="use a whole number, or leave it out")


def _scans(value: object) -> None:
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(word in SCANS for word in words):
        raise WrongValue("names something else than scans", code="not_a_choice", hint=f"use some of {', '.join(SCANS)}")


OF_FRAMES = "what an image encoder makes of a first frame is cached with the latents of its clip"
HINTS: Mapping[str, Hint] = MappingProxyType(
    {
        "skip_file_discovery": Hint("files that have not changed are not opened again", _scans),
        "preserve_data_backend_cache": Hint("files that have not changed are not opened again, and new ones are found", parse_bool),
        "metadata_update_interval": Hint("sizes of files are stored as soon as they are measured", _whole),
        "read_batch_size": Hint("images are read ahead by as many threads as max_workers allows", _whole),
        "image_processing_batch_size": Hint("images are decoded ahead by as many threads as max_workers allows", _whole),
        "conditioning_image_embeds": Hint(OF_FRAMES, parse_text),
        "cache_dir_conditioning_image_embeds": Hint(OF_FRAMES, parse_text),
        "conditioning_image_embed_batch_size": Hint("first frames are encoded with their clips, vae_batch_size of them together", _whole),
        "hash_filenames": Hint("entries of caches are always named by the content of their file", parse_bool),
        "cache_file_suffix": Hint("entries of caches are named by the content of their file, so datasets cannot mistake them", parse_text),
        "delete_problematic_images": Hint(LEFT_OUT, parse_bool),
        "delete_unwanted_images": Hint(UNWANTED, parse_bool),
        "scan_for_errors": Hint("each entry of a cache has a checksum, and a damaged one is computed again", parse_bool),
    }
)
"""Field -> why any value of it needs nothing."""

_OF_ITS_IMAGE = "a sample has the captions of its image, unless its only reference has caption_strategy=instanceprompt"
OF_REFERENCES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("caption_strategy", "prepend_instance_prompt", "only_instance_prompt"), _OF_ITS_IMAGE)
)
"""Fields of captions that configurations also give to conditioning sets -> why they need nothing there."""

GONE: Mapping[str, str] = MappingProxyType({"ignore_epochs": "num_train_epochs or max_train_steps sets when a run ends"})
"""Fields that were removed from the format, in which they had no effect -> what to use instead."""

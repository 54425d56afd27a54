"""Options of the format that ask how to do something which this trainer does without being asked. Real configurations contain them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.json_fields import WrongValue, parse_bool
from trainer_engine.contract.errors import Problem

SCANS = ("vae", "aspect", "text", "metadata")
_WORKERS = "images are read ahead by as many threads as max_workers allows"
HINTS: Mapping[str, str] = MappingProxyType(
    {
        "compress_disk_cache": "entries of caches are never compressed, so that they are read where they lie",
        "offload_during_startup": "text encoders and autoencoder leave the memory before the network is loaded",
        "offload_during_save": "checkpoints are written from a copy in the memory of the host and need none of the device",
        "ramtorch_disable_sync_hooks": "copies and computation wait for each other on the device, without hooks",
        "ramtorch_vae": "the autoencoder is only in memory while images are encoded or generated",
        "group_offload_vae": "the autoencoder is only in memory while images are encoded or generated",
        "fully_unload_text_encoder": "text encoders leave the memory when the prompts are cached",
        "aspect_bucket_worker_count": "the headers of files are read by as many threads as the machine can use",
        "aspect_bucket_disable_rebuild": "buckets are formed once and not again in every epoch",
        "read_batch_size": _WORKERS,
        "image_processing_batch_size": _WORKERS,
        "metadata_update_interval": "sizes of files are stored as soon as they are measured",
        "skip_file_discovery": "files that have not changed are not opened again",
        "set_grads_to_none": "gradients are always freed",
        "print_filenames": "files that cannot be used are named in the report of the datasets",
    }
)
"""Option -> what happens anyway."""


def hint_problem(name: str, value: object, default: object) -> Problem:
    """Returns a note that says why a value needs nothing, or an error if the option cannot have it. ``default`` is the format's."""
    try:
        _check(value, default)
    except WrongValue as wrong:
        return Problem.error(name, wrong.code, f"{name} {wrong}.", got=value, hint=wrong.hint)
    message = f"{name} has no effect: {HINTS[name]}."
    return Problem.note(name, "not_needed", message, got=value, hint="it may stay in the configuration")


def _check(value: object, default: object) -> None:
    """Raises WrongValue."""
    if isinstance(default, bool):
        parse_bool(value)
    elif isinstance(default, int):
        if isinstance(value, bool) or not (str(value).strip().isascii() and str(value).strip().isdigit()):
            raise WrongValue("is not a whole number", code="not_a_number", hint=f"its default is {default}")
    else:
        words = str(value).replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(words, list) or not all(word in SCANS for word in words):
            raise WrongValue("names something else than scans", code="not_a_choice", hint=f"use some of {', '.join(SCANS)}")

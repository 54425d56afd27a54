"""Why a field or a kind of dataset of the format is refused, by the reasons that refused options have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from trainer_engine.config.json_fields import folded
from trainer_engine.config.options.refused import Reason, Refusal

_SOUND = "it holds sound, for models of music and speech"
_PLACES = "it says what lies where in an image, for models with grounding"
_SCREEN = "it screens images with a classifier"
_CSV = "a dataset of type csv says the same in csv_file, csv_url_column, csv_cache_dir and csv_caption_column"
_SHARDS = "it reads tar shards through the webshart library"
_MEMORY = "it keeps a cache in a file system in memory"

FIELDS: Mapping[str, Refusal] = MappingProxyType(
    {
        **dict.fromkeys(("audio", "s2v_datasets"), Refusal(Reason.FAMILY, _SOUND)),
        "csv": Refusal(Reason.NOT_OFFERED, _CSV),
        "grounding": Refusal(Reason.FAMILY, _PLACES),
        "delete_nsfw_images": Refusal(Reason.RESEARCH, _SCREEN),
        **dict.fromkeys(("source", "metadata", "subfolder", "webshart"), Refusal(Reason.LATER, _SHARDS)),
        **dict.fromkeys(("memory_filesystem_path", "memory_filesystem_size", "memory_filesystem_sudo"), Refusal(Reason.LATER, _MEMORY)),
    }
)
"""Field -> why it is refused. Other fields of the format that are not implemented have no reason but that."""

KINDS: Mapping[str, Refusal] = MappingProxyType(
    {
        "audio": Refusal(Reason.FAMILY, _SOUND),
        "grounding": Refusal(Reason.FAMILY, _PLACES),
        "distillation_cache": Refusal(Reason.RESEARCH, "it holds samples of a teacher that is distilled"),
        "caption": Refusal(Reason.RESEARCH, "it holds captions without images, for a distillation"),
    }
)
"""Value of ``dataset_type`` -> why it is refused."""
NOT_YET = Refusal(Reason.LATER, "it is not implemented yet")


def refusal_of_field(name: str) -> Refusal:
    """Returns why a field of the format that is not implemented is refused."""
    return FIELDS.get(name, NOT_YET)


def reason_of_field(option: str, got: str) -> Reason:
    """Returns the reason of a problem of the code ``not_available``, by its option (``dataloader[0].audio``) and the refused value."""
    name = option.rpartition("].")[2]
    return KINDS.get(folded(got), NOT_YET).reason if name == "dataset_type" else refusal_of_field(name).reason

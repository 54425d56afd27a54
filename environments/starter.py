"""What a new environment begins with: a configuration and a datasets file that validate as soon as their folders hold images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from environments.config_files import DATASETS_FILE
from trainer_engine.contract.families import FamilyCard
from trainer_engine.contract.options import REGISTRY

LENGTH = MappingProxyType({"max_train_steps": 1000, "num_train_epochs": 0, "train_batch_size": 1, "learning_rate": 1e-5})
"""A run that is long enough to see something, in steps, so that its length does not depend on the number of images."""


def starter_config(name: str, card: FamilyCard, flavour: str, model_type: str) -> dict[str, Any]:
    """Option name -> value of a new environment; paths are relative to the server's home and to ``config/``."""
    return {
        "model_family": card.name,
        "model_type": model_type,
        "model_flavour": flavour,
        "pretrained_model_name_or_path": card.repository(flavour),
        "output_dir": f"output/{name}",
        "data_backend_config": f"{name}/{DATASETS_FILE}",
        **LENGTH,
    }


def starter_datasets(name: str, options: Mapping[str, Any], *, include_defaults: bool = True) -> list[dict[str, Any]]:
    """One image set and the default text_embeds set.

    ``include_defaults`` spells out what a person most often wants to change; without it the entries hold what they must.
    """
    images: dict[str, Any] = {
        "id": f"{name}-images",
        "type": "local",
        "dataset_type": "image",
        "instance_data_dir": f"datasets/{name}",
    }
    if include_defaults:
        images |= {
            "caption_strategy": "filename",
            "resolution": _whole(options.get("resolution", REGISTRY["resolution"].default)),
            "resolution_type": options.get("resolution_type", REGISTRY["resolution_type"].default),
            "crop": True,
            "crop_style": "center",
            "crop_aspect": "square",
            "repeats": 0,
            "metadata_backend": "discovery",
            "cache_dir_vae": f"cache/{name}/vae",
        }
    texts = {"id": f"{name}-text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True}
    return [images, {**texts, "cache_dir": f"cache/{name}/text"} if include_defaults else texts]


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number

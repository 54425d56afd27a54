"""The initial configuration and datasets file of an environment. They are valid as soon as their folders hold images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from environments.files.adapter_file import OPTION as ADAPTER_OPTION
from environments.files.adapter_file import own_path, uses_lycoris
from environments.files.config_files import DATASETS_FILE
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import REGISTRY

LENGTH = MappingProxyType({"max_train_steps": 1000, "num_train_epochs": 0, "train_batch_size": 1})
"""A run that is long enough to show an effect, in steps, so that its length does not depend on the number of images."""
LEARNING_RATES = MappingProxyType({"lora": 1e-4, "full": 1e-5})
"""An adapter starts from nothing and learns at a higher rate than weights that are trained already."""


def starter_config(name: str, spec: FamilySpec, flavour: str, model_type: str, lora_type: str = "standard") -> dict[str, Any]:
    """Option name -> value of a new environment; paths are relative to the server's home and to ``config/``."""
    adapter = {"lora_type": lora_type} if model_type == "lora" else {}
    if uses_lycoris({"model_type": model_type, "lora_type": lora_type}):
        adapter[ADAPTER_OPTION] = own_path(name)
    return {
        "model_family": spec.name,
        "model_type": model_type,
        "model_flavour": flavour,
        "pretrained_model_name_or_path": spec.repository(flavour),
        "output_dir": f"output/{name}",
        "data_backend_config": f"{name}/{DATASETS_FILE}",
        **adapter,
        **LENGTH,
        "learning_rate": LEARNING_RATES[model_type],
    }


def starter_datasets(name: str, options: Mapping[str, Any], *, include_defaults: bool = True) -> list[dict[str, Any]]:
    """One set of images, or of clips for a model that animates, its conditioning set for an editing model, and the default text_embeds set.

    ``include_defaults`` writes out the fields that people change most often; without it, entries hold required fields only.
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
            "resolution": whole(options.get("resolution", REGISTRY["resolution"].default)),
            "resolution_type": options.get("resolution_type", REGISTRY["resolution_type"].default),
            "crop": True,
            "crop_style": "center",
            "crop_aspect": "square",
            "repeats": 0,
            "metadata_backend": "discovery",
            "cache_dir_vae": f"cache/{name}/vae",
        }
    images |= _clips(options)
    references = _references(name, images, include_defaults) if _needs_references(options) else []
    texts = {"id": f"{name}-text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True}
    return [images, *references, {**texts, "cache_dir": f"cache/{name}/text"} if include_defaults else texts]


def _clips(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a set of clips as long as the family learned, for a flavour that is given the first frame of each; else none."""
    spec = find_spec(str(options.get("model_family", "")))
    clips = spec.sampling.clips if spec is not None and spec.animates(options.get("model_flavour")) else None
    return {"dataset_type": "video", "video": {"num_frames": clips.trained_frames}} if clips else {}


def _needs_references(options: Mapping[str, Any]) -> bool:
    spec = find_spec(str(options.get("model_family", "")))
    return spec is not None and (options.get("model_flavour") or spec.default_flavour) in spec.needs_references


def _references(name: str, images: dict[str, Any], include_defaults: bool) -> list[dict[str, Any]]:
    """The conditioning set of an editing model; ``images`` gets a reference to it."""
    images["conditioning_data"] = [f"{name}-references"]
    entry: dict[str, Any] = {
        "id": f"{name}-references",
        "type": "local",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "instance_data_dir": f"datasets/{name}-references",
    }
    return [{**entry, "cache_dir_vae": f"cache/{name}/vae-references"} if include_defaults else entry]


def plain(document: Any) -> Any:
    """Read-only mappings and tuples of a spec as dictionaries and lists."""
    if isinstance(document, Mapping):
        return {key: plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, (list, tuple)) else document


def whole(number: float) -> int | float:
    """The number as people write it: without a fraction that is zero."""
    return int(number) if number == int(number) else number

"""What a translation builds: options with their origins, datasets, an adapter file and prompts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from environments.files.adapter_file import own_path
from environments.imports.ledger import Ledger
from environments.imports.source import Source
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_spec import FamilySpec

LONGEST_ID = 40
TEXT_FILE = ".txt"
DENSITIES = "flow_cubic_schedule_weights"
SHUFFLED_VARIANTS = 10
"""Variants of a shuffled caption: other trainers shuffle at every step, this one caches each variant."""
TRANSFORMER = ("Attention", "FeedForward")
"""Endings of the classes of attention and feed-forward layers, on which most trainers put adapters."""
CONVOLUTIONS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
NO_CONVOLUTIONS = "the network has no blocks of convolutions"
WIDE = ("all+ffs", "attention+ffs")
"""Named sets of layers that hold attention and feed-forward layers, by the families' names for them."""
IMAGE_KINDS = ("image", "video")
FOLDER_REASON = "the entry names no folder"


@dataclass
class Draft:
    """An environment in the making. ``origins``: option -> its path in the foreign document."""

    name: str
    ledger: Ledger = field(default_factory=Ledger)
    options: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    adapter: dict[str, Any] | None = None

    @property
    def spec(self) -> FamilySpec | None:
        return find_spec(str(self.options.get("model_family", "")))

    @property
    def is_flow_matching(self) -> bool:
        return self.spec is not None and self.spec.objective == "flow_matching"

    @property
    def has_images(self) -> bool:
        """Whether there is a set to train on."""
        return any(one.get("dataset_type", "image") in IMAGE_KINDS for one in self.datasets)

    def put(self, option: str, value: Any, origin: str) -> None:
        """Sets an option, unless the value is None."""
        if value is not None:
            self.options[option], self.origins[option] = value, origin

    def use_sigmoid(self, origin: str) -> None:
        """Samples timesteps as a sigmoid of the normal distribution, also for a family that has densities of its own by default."""
        if self.spec is not None and self.spec.defaults_of(self.options.get("model_flavour")).get(DENSITIES):
            self.put(DENSITIES, "", origin)

    def copy(self, source: Source, kinds: Mapping[str, tuple[str, str]]) -> None:
        """Takes simple values: key -> (option, kind), with a kind of ``number``, ``whole``, ``flag`` or ``text``."""
        readers = {"number": source.number, "whole": source.whole, "flag": source.flag, "text": source.text}
        for key, (option, kind) in kinds.items():
            if source.holder(key).values.get(key) is not None:
                self.put(option, readers[kind](key), source.origin(key))

    def add_set(self, folder: str, **fields: Any) -> dict[str, Any]:
        """Adds an image set with captions in text files beside the images, and returns its entry."""
        entry = {
            "id": self._free_id(folder),
            "type": "local",
            "dataset_type": "image",
            "instance_data_dir": folder,
            "caption_strategy": "textfile",
            "metadata_backend": "discovery",
        }
        entry |= {name: value for name, value in fields.items() if value is not None}
        entry["cache_dir_vae"] = f"cache/{self.name}/vae/{entry['id']}"
        self.datasets.append(entry)
        return entry

    def add_partner(self, images: dict[str, Any], folder: str, kind: str) -> None:
        """Adds a conditioning set for an image set, whose size it takes."""
        entry = {"id": self._free_id(folder), "type": "local", "dataset_type": "conditioning", "conditioning_type": kind}
        self.datasets.append({**entry, "instance_data_dir": folder, "cache_dir_vae": f"cache/{self.name}/vae/{entry['id']}"})
        images.setdefault("conditioning_data", []).append(entry["id"])

    def add_texts(self) -> None:
        """Adds the set that caches the embeddings of captions."""
        texts = {"id": f"{self.name}-text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True}
        self.datasets.append({**texts, "cache_dir": f"cache/{self.name}/text"})

    def module_classes(self, endings: tuple[str, ...]) -> list[str]:
        """The classes of the network's modules that an adapter may name and that end so."""
        return [name for name in self.spec.adapters.module_classes if name.endswith(endings)] if self.spec else []

    @property
    def has_convolutions(self) -> bool:
        """Whether the network has blocks of convolutions that adapters are put on."""
        return bool(self.module_classes(CONVOLUTIONS))

    def use_layers(self, preferred: Sequence[str], origin: str) -> None:
        """Puts a standard adapter on the first of these named sets of layers that the family has."""
        adapters = self.spec.adapters if self.spec else None
        known = next((name for name in preferred if adapters and name in adapters.lora_targets), None)
        if adapters is not None and adapters.lora_target_option and "peft_lora_target_modules" not in self.options:
            self.put(adapters.lora_target_option, known, origin)

    def use_lycoris(self, origin: str, algo: str, arguments: Mapping[str, Any], layers: tuple[str, ...] = TRANSFORMER) -> None:
        """Trains an adapter of LyCORIS on the modules whose classes end so, and with ``conv_dim`` on the blocks of convolutions too."""
        self.put("lora_type", "lycoris", origin)
        self.put("lycoris_config", own_path(self.name), origin)
        given = {name: value for name, value in arguments.items() if value is not None}
        if algo == "lokr":
            given.setdefault("factor", -1)
        targets, has_conv = self.module_classes(layers), bool(given.get("conv_dim"))
        if has_conv and not self.has_convolutions:
            self.ledger.leave(f"{origin}: conv_dim", given["conv_dim"], NO_CONVOLUTIONS)
            has_conv, given = False, {name: value for name, value in given.items() if not name.startswith("conv_")}
        preset = {"target_module": [*targets, *(self.module_classes(CONVOLUTIONS) if has_conv else [])]}
        self.adapter = {"algo": algo, "multiplier": 1.0, **given, "apply_preset": {**preset, **({"enable_conv": True} if has_conv else {})}}
        for name in ("lora_rank", "lora_alpha", "lora_dropout"):
            self.options.pop(name, None)

    def use_prompts(self, prompts: Sequence[str], origin: str) -> None:
        """One prompt becomes ``validation_prompt``, several a prompt library."""
        if len(prompts) == 1:
            self.put("validation_prompt", prompts[0], origin)
        elif prompts:
            library = {f"prompt-{number:02d}": prompt for number, prompt in enumerate(prompts, 1)}
            self.put("user_prompt_library", json.dumps(library, ensure_ascii=False), origin)

    def _free_id(self, folder: str) -> str:
        last = PurePosixPath(folder.replace("\\", "/")).name
        base = re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-")[:LONGEST_ID] or "images"
        taken, found, number = {one["id"] for one in self.datasets}, base, 1
        while found in taken:
            number += 1
            found = f"{base}-{number}"
        return found


def square_edge(value: Any) -> int | None:
    """The edge of the square with the area of a size: 1024, "1024", [w, h] or "w,h". None if it is none of these."""
    parts = (
        re.split(r"[,x]", value.lower().strip()) if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
    )
    try:
        edges = [float(part) for part in parts if not isinstance(part, bool)]
    except (TypeError, ValueError):
        return None
    if len(edges) not in (1, 2) or not all(math.isfinite(edge) and 0 < edge < 1e6 for edge in edges):
        return None
    return round(math.sqrt(edges[0] * edges[-1]))


def cropping(has_buckets: bool, is_random: bool = False) -> dict[str, Any]:
    """The fields of an image set with the aspect ratios of its images, or with squares."""
    if has_buckets:
        return {"crop": False}
    return {"crop": True, "crop_style": "random" if is_random else "center", "crop_aspect": "square"}


def shuffling(is_on: bool | None, kept_tags: int | None = None) -> dict[str, Any]:
    """The fields of an image set whose tags are shuffled behind the first ones."""
    if not is_on:
        return {}
    return {"caption_shuffle": {"enable": True, "count": SHUFFLED_VARIANTS, "position_start": kept_tags or 0, "include_original": False}}


def repeats_of(times: float | None) -> int:
    """``repeats`` of a set whose images are seen so many times an epoch."""
    return max(0, round(times) - 1) if times is not None else 0


def check_caption_file(source: Source, key: str) -> None:
    """Leaves out a suffix of caption files other than ``.txt``."""
    suffix = source.text(key)
    if suffix is not None and f".{suffix.lstrip('.').lower()}" != TEXT_FILE:
        source.ledger.leave(source.origin(key), suffix, "captions are read from .txt files; rename them")

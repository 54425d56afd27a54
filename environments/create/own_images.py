"""A new environment for images of one's own: where they lie, how they are described, and a prompt to watch them by."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from environments.create.starter import whole
from environments.paths import Home, Kind, resolve
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.sources.base import Suffixes
from trainer_engine.datasets.sources.local import Bound, LocalSource

FIRST_ADAPTER: Mapping[str, Any] = MappingProxyType(
    {
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 100,
        "optimizer": "adamw_bf16",
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "caption_dropout_probability": 0.1,
        "lora_rank": 16,
        "checkpoint_step_interval": 250,
        "checkpoints_total_limit": 4,
        "validation_step_interval": 250,
        "validation_seed": 42,
        "seed": 42,
    }
)
"""Options of an adapter on a model without a shipped example. The rest are defaults of the family."""
OF_REQUEST = ("model_family", "model_flavour", "model_type", "lora_type", "data_backend_config")
"""Options that the request names itself, so that ``options`` may not."""
CAPTIONS = Suffixes(frozenset({".txt"}), MappingProxyType({}))
LONGEST_WORD = 200
LONGEST_SECONDS = 3.0


@dataclass(frozen=True)
class OwnImages:
    """A folder of images, as the datasets file will name it."""

    given: str
    trigger_word: str
    has_captions: bool
    """Whether text files lie among them."""

    def fields(self, name: str) -> dict[str, Any]:
        """The fields of the set of images."""
        word = {"instance_prompt": self.trigger_word} if self.trigger_word else {}
        if self.has_captions:
            captions = {"caption_strategy": "textfile", **word, **({"prepend_instance_prompt": True} if word else {})}
        else:
            captions = {"caption_strategy": "instanceprompt", **word} if word else {"caption_strategy": "filename"}
        return {"id": f"{name}-images", "instance_data_dir": self.given, "cache_dir_vae": f"cache/{name}/vae", **captions}


def find_images(given: str | None, trigger_word: str, home: Home) -> OwnImages | None | Problem:
    """The folder of a request; None if it names none."""
    word = " ".join(trigger_word.split())
    if len(word) > LONGEST_WORD:
        message = f"The trigger word has {len(word)} characters."
        return Problem.error("trigger_word", "too_long", message, expected=f"at most {LONGEST_WORD} characters")
    if not given:
        if not word:
            return None
        return Problem.error("trigger_word", "no_images", "A trigger word describes images.", got=word, hint="send images, too")
    found = resolve(given, "images", home=home, must_exist=True, kind=Kind.FOLDER)
    return found if isinstance(found, Problem) else OwnImages(given, word, _has_captions(found.path))


def _has_captions(folder: Path) -> bool:
    """Whether a folder holds a text file. A very large tree is not searched to its end."""
    try:
        return bool(LocalSource(str(folder)).list_files(CAPTIONS, Bound(1, LONGEST_SECONDS)).files)
    except OSError:
        return False


def option_problems(options: Mapping[str, Any]) -> list[Problem]:
    """Options that a request may not lay over an example."""
    return [
        Problem.error(f"options.{name}", "own_field", f"{name} is a field of this call.", got=options[name], hint="send it beside options")
        for name in OF_REQUEST
        if name in options
    ]


def values_for(images: OwnImages, *, is_adapter: bool, has_example: bool) -> dict[str, Any]:
    """Options that follow from the images; further ones of the request win."""
    usual = dict(FIRST_ADAPTER) if is_adapter and not has_example else {}
    word = images.trigger_word
    # An image of the empty prompt shows nothing of what was learned.
    return {**usual, **({"validation_prompt": f"a photograph of {word}", "validation_disable_unconditional": True} if word else {})}


def datasets_for(images: OwnImages, name: str, entries: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Datasets with the first set of images in place of theirs, and with caches of the environment's own."""
    found = copy.deepcopy([dict(entry) for entry in entries])
    is_done = False
    for entry in found:
        kind = entry.get("dataset_type", "image")
        if kind in ("image", "video") and not is_done:
            is_done = True
            entry |= images.fields(name)
            entry |= {"resolution": whole(options["resolution"])} if "resolution" in options else {}
        elif kind == "text_embeds":
            entry |= {"id": f"{name}-text-embeds", "cache_dir": f"cache/{name}/text"}
    return found

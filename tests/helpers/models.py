"""Small real models for tests, made once a process."""

from __future__ import annotations

import atexit
import importlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from torch import Tensor
from transformers import AutoTokenizer

from trainer_engine.config.families import specs
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.families.load import load_family
from trainer_engine.families.pixart_sigma.tiny import make_tiny
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

OneFamily = TypeVar("OneFamily", bound=Family)
OnePipeline = TypeVar("OnePipeline", bound=Any)
BEYOND_THE_FORMAT = frozenset({"flux3", "qwen_image_21"})
"""Families that the configuration format does not name."""
UNETS = tuple(name for name, spec in specs().items() if spec.components[spec.network].folder == "unet")
"""Families whose network is a UNet."""


@cache
def tiny_pixart(*, size_conditions: bool = False) -> Path:
    """A PixArt Sigma of 50 thousand parameters; treat the folder as read-only."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-pixart-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny(folder / "model", size_conditions=size_conditions)


@cache
def tiny_model(family: str, **how: Any) -> Path:
    """The micro model of any family, from its own ``tiny.py``; treat the folder as read-only."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny-{family}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made: Path = importlib.import_module(f"trainer_engine.families.{family}.tiny").make_tiny(folder / "model", **how)
    return made


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer in a folder, by its class: one of diffusers is not known to ``AutoTokenizer``."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    cls = ChatGLMTokenizer if settings.get("tokenizer_class") == ChatGLMTokenizer.__name__ else AutoTokenizer
    return cls.from_pretrained(folder)


def undistilled(family: str) -> dict[str, str]:
    """The option with which a family trains without its publisher's adapter; none where the default flavour is not distilled."""
    spec = specs()[family]
    if spec.distillation is None or spec.default_flavour not in spec.distillation.flavours:
        return {}
    return {"model_flavour": next(name for name, one in spec.flavours.items() if spec.distillation.base in (name, one))}


def options_with(**values: Any) -> TrainingOptions:
    """Options of a float32 run of the tiny model; ``values`` go over them."""
    usual = {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "pretrained_model_name_or_path": str(tiny_pixart()),
        "data_backend_config": "datasets.json",
        "output_dir": "output",
        "max_train_steps": 10,
        "num_train_epochs": 0,
        "mixed_precision": "no",
        "vae_dtype": "fp32",
    }
    return parse_options({**usual, **values})


def tiny_family(**values: Any) -> Family:
    """The tiny model's family on the CPU."""
    options = options_with(**values)
    return load_family(options, resolve_devices(options, torch.device("cpu")))


def tiny_of(kind: type[OneFamily], folder: Path | str, **values: Any) -> OneFamily:
    """A family on the CPU with the micro model in a folder."""
    family = tiny_family(**{"model_family": kind.spec.name, "pretrained_model_name_or_path": str(folder), **values})
    assert isinstance(family, kind)
    return family


def laid_out_alike(pipeline: OnePipeline) -> OnePipeline:
    """A pipeline of diffusers whose autoencoder lies in memory as that of a run does, with its channels last.

    Kernels add in another order with another layout, and the last bit of a sum follows it.
    """
    pipeline.vae.to(memory_format=Autoencoder.layout)
    return pipeline


@cache
def _hashes() -> FileHashes:
    folder = Path(tempfile.mkdtemp(prefix="hashes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return FileHashes(folder / "hashes.jsonl")


@cache
def _embeddings() -> dict[tuple[str, ...], list[PromptEmbedding]]:
    """Fingerprint of the text encoders and prompts -> embeddings."""
    return {}


def embedded(family: Family, prompts: Sequence[str]) -> list[PromptEmbedding]:
    """What the encoders of a family make of prompts. They are loaded and compute once for all families that have the same."""
    known, key = _embeddings(), (family.spec.name, family.text_fingerprint(_hashes()), *prompts)
    if key not in known:
        known[key] = family.encode_prompts(prompts, [[] for _ in prompts])
        family.free_encoders()
    return known[key]


def fixed(*shape: int, seed: int) -> Tensor:
    """Normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def place_tiny_model(hf_home: Path, repository: str) -> Path:
    """``from_pretrained(repository)`` finds the tiny PixArt Sigma, offline, with ``HF_HOME`` set to ``hf_home``; its snapshot."""
    return place_in_hub_cache(tiny_pixart(), repository, hf_home)

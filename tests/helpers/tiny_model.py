"""A tiny model where a Hugging Face cache has the real one."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.models import tiny_pixart
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache


def place_tiny_model(hf_home: Path, repository: str) -> Path:
    """``from_pretrained(repository)`` finds the tiny PixArt Sigma, offline, with ``HF_HOME`` set to ``hf_home``; its snapshot."""
    return place_in_hub_cache(tiny_pixart(), repository, hf_home)

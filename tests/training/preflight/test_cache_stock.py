"""What ``validate`` says of embeddings that take many gigabytes, and which options store less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from training.preflight.cache_stock import EMBEDDINGS, LARGE_EMBEDDINGS_BYTES, LATENTS, padding_notes
from training.preflight.disk import DiskUse

PLACE = Path("/cache/text")
USES = [
    DiskUse("dataloader[0].cache_dir_vae", Path("/cache/vae"), LATENTS, 10 * LARGE_EMBEDDINGS_BYTES),
    DiskUse("dataloader[1].cache_dir", PLACE, EMBEDDINGS, 42 * LARGE_EMBEDDINGS_BYTES),
    DiskUse("dataloader[2].cache_dir", PLACE, EMBEDDINGS, LARGE_EMBEDDINGS_BYTES - 1),
]


def notes(family: str, **options: Any) -> list[Problem]:
    values = {"model_family": family, "model_type": "lora", "output_dir": "/out", "max_train_steps": 9, "num_train_epochs": 0}
    spec = find_spec(family)
    assert spec is not None
    return list(padding_notes(USES, parse_options({**values, "data_backend_config": "/sets.json", **options}), spec))


def test_large_embeddings_of_padding_are_noted_with_the_options_that_store_less() -> None:
    [note] = notes("flux")
    assert (note.option, note.code, note.level, note.got) == ("dataloader[1].cache_dir", "large_embeddings", Level.NOTE, str(USES[1].bytes))
    assert "391.2 GiB" in note.message and str(PLACE) in note.message
    named = ("compress_disk_cache=true", "t5_padding=zero", "flux_attention_masked_training=true", "text_cache_disable=true")
    assert all(option in note.hint for option in named)


def test_only_options_that_a_family_has_are_named() -> None:
    [note] = notes("sdxl")
    assert "t5_padding" not in note.hint and "flux" not in note.hint


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("flux", {"t5_padding": "zero"}),
        ("flux", {"flux_attention_masked_training": True}),
        ("flux", {"compress_disk_cache": True}),
        ("pixart_sigma", {}),
    ],
)
def test_nothing_is_noted_where_no_padding_is_stored_or_it_is_compressed(family: str, options: dict[str, Any]) -> None:
    assert notes(family, **options) == []

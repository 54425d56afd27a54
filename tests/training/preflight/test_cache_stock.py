"""What ``validate`` says of embeddings that take many gigabytes, and which options store less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import tiny_options
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.examine import examine
from training.preflight.cache_stock import EMBEDDINGS, LARGE_EMBEDDINGS_BYTES, LATENTS, cache_uses, embedding_notes
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
    return list(embedding_notes(USES, parse_options({**values, "data_backend_config": "/sets.json", **options}), spec))


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


def test_large_embeddings_of_several_states_a_token_are_noted() -> None:
    for more in ({}, {"compress_disk_cache": True}):
        [note] = notes("krea2", **more)
        assert (note.option, note.code, note.level) == ("dataloader[1].cache_dir", "large_embeddings", Level.NOTE)
        assert "at most 391.2 GiB" in note.message and "with 12 states for each token" in note.message
        assert "text_cache_disable=true" in note.hint and "short captions" in note.hint and "padding" not in note.hint


@pytest.mark.parametrize(("family", "times"), [("krea2", 1), ("qwen_image", 2)])
def test_stacked_states_count_as_bfloat16_on_a_cpu_too(tmp_path: Path, family: str, times: int) -> None:
    generate_images(tmp_path / "images", count=2, size=(64, 64))
    spec, options = find_spec(family), parse_options(tiny_options(tmp_path, model="nobody/nothing", model_family=family))
    assert spec is not None
    entry: dict[str, Any] = {"id": "images", "instance_data_dir": str(tmp_path / "images"), "resolution": 64}
    dataloader, _ = parse_dataloader([{**entry, "caption_strategy": "filename"}], options)
    report = examine(dataloader, options, spec)
    found = [
        sum(use.bytes for use in cache_uses(options, spec, dataloader, report, on_cpu=on_cpu) if use.what == EMBEDDINGS)
        for on_cpu in (False, True)
    ]
    assert found[1] == times * found[0] > 0

"""Text embeddings are computed once and read from disk or memory."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.models import tiny_family
from trainer_engine.caches.prompts import PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore
from trainer_engine.families.base import Family

PROMPTS = ["a red circle", "", "a very large blue triangle on the sea", "ein Käse 日本", "a red circle"]


def cached(family: Family, prompts: list[str], folder: Path, **how: object) -> PromptCache:
    usual: dict[str, object] = {"batch_size": 2, "write_batch_size": 3}
    return cache_prompts(family, prompts, CacheStore(folder), **{**usual, **how})  # type: ignore[arg-type]


def test_each_prompt_is_encoded_once_and_read_unchanged(tmp_path: Path) -> None:
    family = tiny_family()
    cache = cached(family, PROMPTS, tmp_path)
    assert (cache.made, cache.reused) == (4, 0)
    for prompt in PROMPTS:
        assert torch.allclose(cache.read(prompt)["embeds"], family.encode_prompts([prompt])[0]["embeds"], atol=1e-6)


def test_second_run_loads_no_encoder(tmp_path: Path) -> None:
    cached(tiny_family(), PROMPTS, tmp_path)
    family = tiny_family()
    cache = cached(family, [*PROMPTS, "a new one"][:-1], tmp_path)
    assert (cache.made, cache.reused) == (0, 4)
    assert cache.read("a red circle")["embeds"].shape[1] == 32
    assert family._text is None


def test_only_new_prompts_are_encoded(tmp_path: Path) -> None:
    cached(tiny_family(), PROMPTS, tmp_path)
    assert cached(tiny_family(), [*PROMPTS, "a green owl"], tmp_path).made == 1


def test_only_real_tokens_are_stored(tmp_path: Path) -> None:
    cache = cached(tiny_family(), PROMPTS, tmp_path)
    assert len(cache.read("")["embeds"]) == 1
    assert len(cache.read("a red circle")["embeds"]) == 4


def test_interrupted_caching_continues_where_it_stopped(tmp_path: Path) -> None:
    asked = iter([False, True])
    assert cached(tiny_family(), PROMPTS, tmp_path, should_stop=lambda: next(asked)).stopped
    assert cached(tiny_family(), PROMPTS, tmp_path).reused == 2


def test_progress_counts_distinct_prompts(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    cached(tiny_family(), PROMPTS, tmp_path, on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(0, 4), (2, 4), (4, 4)]


def test_damaged_embedding_is_recomputed(tmp_path: Path) -> None:
    wanted = cached(tiny_family(), PROMPTS, tmp_path).read("")["embeds"]
    family = tiny_family()
    cache = cached(family, PROMPTS, tmp_path)
    cache.store.path(cache.address("")).unlink()
    assert torch.allclose(cache.read("")["embeds"], wanted, atol=1e-6)
    assert family._text is None


def test_address_depends_on_the_type_of_the_encoder(tmp_path: Path) -> None:
    family = tiny_family()
    short = type(family)(family.options, type(family.devices)(**{**vars(family.devices), "text": torch.bfloat16}))
    assert PromptCache(family, CacheStore(tmp_path)).address("") != PromptCache(short, CacheStore(tmp_path)).address("")

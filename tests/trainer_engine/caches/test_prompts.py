"""Text embeddings are computed once and read from disk or memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.caches import flip_entry
from tests.helpers.models import tiny_family, tiny_model
from tests.helpers.samples import sample_of
from trainer_engine.caches.prompts import Prompt, PromptCache, cache_prompts
from trainer_engine.caches.store import CacheStore, address_of
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.families.pixart_sigma.family import PixArtSigma

PROMPTS = ["a red circle", "", "a very large blue triangle on the sea", "ein Käse 日本", "a red circle"]


def cached(family: Family, prompts: list[str], folder: Path, **how: object) -> PromptCache:
    usual: dict[str, object] = {"seed": 1, "batch_size": 2, "write_batch_size": 3}
    return cache_prompts(family, map(Prompt, prompts), CacheStore(folder), **{**usual, **how})  # type: ignore[arg-type]


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
    assert family.text._loaded is None


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
    flip_entry(tmp_path, cache.address(""))
    assert torch.allclose(cache.read("")["embeds"], wanted, atol=1e-6)
    assert family.text._loaded is None


def test_address_depends_on_the_type_of_the_encoder(tmp_path: Path) -> None:
    family = tiny_family()
    short = type(family)(family.options, type(family.devices)(**{**vars(family.devices), "text": torch.bfloat16}))
    assert PromptCache(family, CacheStore(tmp_path), 1).address("") != PromptCache(short, CacheStore(tmp_path), 1).address("")


def test_families_with_the_same_text_encoder_have_addresses_of_their_own(tmp_path: Path) -> None:
    for name in ("z_image", "flux2"):
        shutil.copytree(tiny_model(name), tmp_path / name)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(tmp_path / "z_image" / part)
        shutil.copytree(tmp_path / "flux2" / part, tmp_path / "z_image" / part)
    families = [tiny_family(model_family=name, pretrained_model_name_or_path=str(tmp_path / name)) for name in ("z_image", "flux2")]
    store = CacheStore(tmp_path / "cache")
    assert len({PromptCache(family, store, 1).address("a cat") for family in families}) == 2


def test_the_address_of_a_prompt_without_references_stays_what_it_was(tmp_path: Path) -> None:
    family, store = tiny_family(), CacheStore(tmp_path)
    wanted = address_of("prompt", prompt="a cat", encoder=family.text_fingerprint(store.hashes))
    assert PromptCache(family, store, 1).address("a cat") == wanted
    assert address_of("prompt", prompt="a cat", encoder="e") == "03c744f784646957996d24d2343fef98a4d14ece3970e337681189ca843dc17e"


class Seeing(PixArtSigma):
    """Adds the mean colour of its references to the embedding of a text."""

    @property
    def prompts_see_references(self) -> bool:
        return True

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        found = super().encode_prompts(prompts)
        means = [sum(float(pixels.mean()) for pixels in seen) for seen in references]
        return [{"embeds": one["embeds"] + mean} for one, mean in zip(found, means, strict=True)]


def test_an_embedding_that_sees_references_is_cached_by_text_and_pixels(tmp_path: Path) -> None:
    plain = tiny_family()
    family = Seeing(plain.options, plain.devices)
    for name, shade in (("dark", 0), ("light", 255), ("same", 255)):
        Image.new("RGB", (64, 64), (shade,) * 3).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "dark.png").read_bytes()[:60])
    dark, light, same = (sample_of(tmp_path / f"{name}.png") for name in ("dark", "light", "same"))
    broken, gone = dark._replace(name="broken.png"), dark._replace(name="gone.png")
    prompts = [Prompt("a cat"), *(Prompt("a cat", (one,)) for one in (dark, light, same, broken, gone))]
    cache = cache_prompts(family, prompts, CacheStore(tmp_path / "cache"), seed=1, batch_size=4, write_batch_size=9)
    assert cache.address("a cat", (light,)) == cache.address("a cat", (same,)) != cache.address("a cat", (dark,))
    text = cache.read("a cat")["embeds"]
    assert torch.allclose(cache.read("a cat", (dark,))["embeds"], text - 1, atol=1e-5)
    assert torch.allclose(cache.read("a cat", (light,))["embeds"], text + 1, atol=1e-5)
    flip_entry(tmp_path / "cache", cache.address("a cat", (dark,)))
    again = PromptCache(family, cache.store, 1)
    assert torch.allclose(again.read("a cat", (dark,))["embeds"], text - 1, atol=1e-5)
    with pytest.raises(BrokenImage):
        cache.read("a cat", (broken,))

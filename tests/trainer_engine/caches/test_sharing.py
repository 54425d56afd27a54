"""Processes of one run share the work of filling a cache, and so do two runs that fill one at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from tests.helpers.models import tiny_family
from tests.helpers.pictures import generate_images
from tests.helpers.samples import samples_of
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.prompts import Prompt, PromptCache, cache_prompts
from trainer_engine.caches.ranks import ALONE, Ranks, Share
from trainer_engine.caches.store import CacheStore
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.families.pixart_sigma.family import PixArtSigma

T = TypeVar("T")
IMAGES = 24


@dataclass
class Group:
    """Several ranks as threads of this process."""

    count: int
    said: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count)


@dataclass
class ThreadRank:
    """One of them."""

    rank: int
    group: Group

    @property
    def count(self) -> int:
        return self.group.count

    def wait(self) -> None:
        self.group.barrier.wait(60)

    def gather(self, mine: bytes) -> list[bytes]:
        self.group.said[self.rank] = mine
        self.wait()
        found = [self.group.said[rank] for rank in range(self.count)]
        self.wait()
        return found

    def first_then_others(self, work: Callable[[], T]) -> T:
        if self.rank:
            self.wait()
            return work()
        result = work()
        self.wait()
        return result


class Slow(PixArtSigma):
    """Real, but slow enough for two runs to meet."""

    encoded = 0
    """Number of images and prompts."""

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        self.encoded += len(pixels)
        time.sleep(0.03 * len(pixels))
        return super().encode_images(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        self.encoded += len(prompts)
        time.sleep(0.03 * len(prompts))
        return super().encode_prompts(prompts, references)


def slow_family() -> Slow:
    """With its encoders loaded: the libraries cannot load models in two threads at once."""
    usual = tiny_family()
    family = Slow(usual.options, usual.devices)
    family.encode_images(torch.zeros(1, 3, 64, 64))
    family.encode_prompts([""])
    family.encoded = 0
    return family


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return generate_images(tmp_path / "pictures", count=IMAGES)


def latents_at_once(folder: Path, samples: list[Sample], ranks: Sequence[Ranks]) -> list[LatentCache]:
    """The caches of several processes that begin at the same moment."""

    def run(family: Slow, ranks: Ranks) -> LatentCache:
        how = {"seed": 1, "batch_size": 2, "write_batch_size": 2, "workers": 1}
        return cache_latents(family, samples, CacheStore(folder), ranks=ranks, **how)  # type: ignore[arg-type]

    families = [slow_family() for _ in ranks]
    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(run, families, ranks))


@pytest.mark.parametrize("count", [2, 3])
def test_each_rank_encodes_its_share_of_the_latents(tmp_path: Path, pictures: list[Path], count: int) -> None:
    group = Group(count)
    caches = latents_at_once(tmp_path / "cache", samples_of(pictures), [ThreadRank(rank, group) for rank in range(count)])
    assert [cache.made for cache in caches] == [IMAGES // count] * count
    [alone] = latents_at_once(tmp_path / "alone", samples_of(pictures), [ALONE])
    for sample in samples_of(pictures):
        assert all(torch.allclose(cache.read(sample), alone.read(sample), atol=1e-6) for cache in caches)
    assert [cache.family.encoded for cache in caches] == [IMAGES // count] * count, "nothing was encoded to be read"


def test_all_ranks_leave_out_what_one_of_them_found_broken(tmp_path: Path, pictures: list[Path]) -> None:
    samples = samples_of(pictures)
    pictures[3].write_bytes(pictures[3].read_bytes()[:200])
    pictures[4].write_bytes(b"no image")
    group = Group(2)
    one, two = latents_at_once(tmp_path / "cache", samples, [ThreadRank(rank, group) for rank in range(2)])
    assert one.addresses == two.addresses and len(one.addresses) == IMAGES - 2
    assert sorted((sample.name, reason) for sample, reason in one.left_out) == sorted(
        (sample.name, reason) for sample, reason in two.left_out
    )


def test_the_files_are_hashed_once_between_the_ranks(tmp_path: Path, pictures: list[Path]) -> None:
    group = Group(2)
    latents_at_once(tmp_path / "cache", samples_of(pictures), [ThreadRank(rank, group) for rank in range(2)])
    lines = (tmp_path / "cache/hashes.jsonl").read_text().splitlines()
    assert sum("pictures" in line for line in lines) == IMAGES


def test_each_rank_encodes_its_share_of_the_prompts(tmp_path: Path) -> None:
    group, prompts = Group(2), [Prompt(f"a number {number}") for number in range(10)]

    families = [slow_family(), slow_family()]

    def run(rank: int) -> PromptCache:
        how = {"seed": 1, "batch_size": 1, "write_batch_size": 3}
        ranks = ThreadRank(rank, group)
        return cache_prompts(families[rank], prompts, CacheStore(tmp_path), ranks=ranks, **how)  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(run, range(2)))
    assert [cache.made for cache in caches] == [5, 5]
    for prompt in prompts:
        assert torch.equal(caches[0].read(prompt.text)["embeds"], caches[1].read(prompt.text)["embeds"])
    assert [cache.family.encoded for cache in caches] == [5, 5]


def test_two_runs_that_fill_a_cache_at_once_meet_in_the_middle(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_engine.caches.latents.REFRESHED_SECONDS", 0.0)
    started = threading.Event()
    usual = CacheStore.writer

    def one_after_the_other(store: CacheStore, **how: bool) -> object:
        """Both have taken stock before one has written; the second begins a moment later."""
        if started.is_set():
            time.sleep(0.1)
        started.set()
        return usual(store, **how)

    monkeypatch.setattr(CacheStore, "writer", one_after_the_other)
    one, two = latents_at_once(tmp_path / "cache", samples_of(pictures), [ALONE, ALONE])
    assert one.made + two.made <= IMAGES + 10 and min(one.made, two.made) >= 4
    assert one.made + one.reused == two.made + two.reused == IMAGES
    assert all(torch.equal(one.read(sample), two.read(sample)) for sample in samples_of(pictures))


def test_a_share_follows_from_the_order_and_leaves_nothing_out() -> None:
    group, names = Group(3), [f"name {number}" for number in range(10)]
    shares = [Share(ThreadRank(rank, group), names) for rank in range(3)]
    assert sorted(name for share in shares for name in share.mine) == sorted(names)
    assert sorted(name for share in shares for name in share.of(names[4:])) == sorted(names[4:])
    assert Share(ALONE, names).of(names[2:]) == names[2:]

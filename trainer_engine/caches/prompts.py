"""Caches text embeddings: captions, the empty prompt of caption dropout, and validation prompts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from trainer_engine.caches.decoding import pixels_made_from, sample_pixels
from trainer_engine.caches.ranks import ALONE, Ranks, Share, exchange
from trainer_engine.caches.store import CacheStore, Encoded, InMemoryCache, address_by, address_of, entries_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.scanning import MANY_OBJECTS
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.runtime.stages import Advance

REFRESHED_SECONDS = 1.0
"""While entries are made, what other runs write is taken up this often."""


class Prompt(NamedTuple):
    """A text to encode, with the reference images that the text encoder looks at."""

    text: str
    references: tuple[Sample, ...] = ()
    """Empty unless ``Family.prompts_see_references``."""


class PromptCache:
    """The embeddings of prompts. ``read`` is fast and thread-safe."""

    def __init__(self, family: Family, store: CacheStore, seed: int, when: Encoded = Encoded.AHEAD) -> None:
        """``seed`` places random crops of references."""
        self.family = family
        self.store = store
        self.seed = seed
        self.when = when
        self.made = 0
        """Number of embeddings that were computed now."""
        self.reused = 0
        """Number of embeddings that were on disk already."""
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self._fingerprint = family.text_fingerprint(store.hashes)
        self._address_of_text = address_by("prompt", "prompt", encoder=self._fingerprint)
        self._in_memory = InMemoryCache()
        self._shard = store.writer()
        """Kept while the run trains, if entries are made on demand: choosing a shard anew for each would read its index each time."""
        self._encoding = threading.Lock()
        self._refreshed = time.monotonic()

    def address(self, text: str, references: Sequence[Sample] = ()) -> str:
        """Depends on the text, the pixels of its references and the text encoder. Raises OSError if a reference cannot be read."""
        if not references:
            return self._address_of_text(text)
        contents = [self.store.hashes.of_entry(sample.source, sample.name) for sample in references]
        seen = [pixels_made_from(*one, self.seed) for one in zip(references, contents, strict=True)]
        return address_of("prompt", prompt=text, encoder=self._fingerprint, references=seen)

    def read(self, text: str, references: Sequence[Sample] = ()) -> PromptEmbedding:
        """The embedding on the CPU. One that is missing or damaged is computed, for which the encoder is loaded.

        Raises BrokenImage or OSError if a reference cannot be read.
        """
        address = self.address(text, references)
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._compute(Prompt(text, tuple(references)), address))

    def pixels(self, prompt: Prompt) -> list[Tensor]:
        """Pixels (3, H, W) in [-1, 1] of its references. Raises BrokenImage."""
        return [sample_pixels(sample, self.seed) for sample in prompt.references]

    def still_missing(self, prompts: Sequence[Prompt], addresses: Mapping[Prompt, str]) -> list[Prompt]:
        """Those that no other run has written since the stock was taken."""
        if time.monotonic() - self._refreshed > REFRESHED_SECONDS:
            self._refreshed = time.monotonic()
            self.store.refresh()
        return [prompt for prompt in prompts if not self.store.holds(addresses[prompt])]

    def _compute(self, prompt: Prompt, address: str) -> PromptEmbedding:
        """Encode one prompt, alone, so that its embedding does not depend on the order in which prompts are read."""
        with self._encoding:
            embedding = self.family.encode_prompts([prompt.text], [self.pixels(prompt)])[0]
            if self.when is Encoded.AHEAD:
                self.family.free_encoders()
        if self.when is not Encoded.NEVER_STORED:
            self.store.put_all({address: embedding}, self._shard if self.when is Encoded.ON_DEMAND else None)
        self.made += 1
        return embedding


def cache_prompts(
    family: Family,
    prompts: Iterable[Prompt],
    store: CacheStore,
    *,
    seed: int,
    batch_size: int,
    write_batch_size: int,
    when: Encoded = Encoded.AHEAD,
    ranks: Ranks = ALONE,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PromptCache:
    """Compute the missing embeddings; the encoder is loaded only if some are missing.

    Every process of the run calls this, and each encodes its share. ``seed`` places random crops of references. A prompt is left out if
    one of its references cannot be read: caching the latents of the reference fails as well, and reports it. ``on_progress`` receives
    (done, total) of the different prompts. With another ``when`` than ``AHEAD`` nothing is encoded. Raises ModelUnavailable, DiskFull.
    """
    with MANY_OBJECTS.being_made():
        cache = ranks.first_then_others(lambda: PromptCache(family, store, seed, when))
        addresses = ranks.first_then_others(lambda: _addresses(cache, prompts))
        share = Share(ranks, list(addresses))
        missing = [prompt for prompt, address in addresses.items() if not store.holds(address)]
    ranks.wait()  # no process writes before all have seen the same entries
    if ranks.rank == 0 and when is not Encoded.NEVER_STORED:
        store.note_use(addresses.values(), **entries_of("prompts", family))
    cache.reused = len(addresses) - len(missing)
    on_progress(cache.reused, len(addresses))
    if when is Encoded.AHEAD:
        done = partial(_done, cache.reused, len(addresses), ranks.count, on_progress)
        _encode(cache, share.of(missing), addresses, (batch_size, write_batch_size), done, should_stop)
    cache.stopped = any(exchange(ranks, cache.stopped))
    if ranks.count > 1:
        store.refresh()
    return cache


def _encode(
    cache: PromptCache,
    prompts: Sequence[Prompt],
    addresses: Mapping[Prompt, str],
    sizes: tuple[int, int],
    done: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Encode and store prompts. ``sizes``: how many are encoded, and how many written together. ``done`` receives how many are made."""
    batch_size, write_batch_size = sizes
    prompts = [*prompts]
    with GroupWriter(cache.store, write_batch_size) as writer:
        if prompts and writer.others_write():
            prompts.reverse()  # from the other end: the two of them meet in the middle
        for start in range(0, len(prompts), batch_size):
            if should_stop():
                cache.stopped = True
                break
            batch = _decoded(cache, cache.still_missing(prompts[start : start + batch_size], addresses))
            embeddings = cache.family.encode_prompts([prompt.text for prompt in batch], list(batch.values())) if batch else []
            for prompt, embedding in zip(batch, embeddings, strict=True):
                writer.add(addresses[prompt], embedding)
            cache.made += len(batch)
            done(start + len(prompts[start : start + batch_size]))


def _done(reused: int, total: int, processes: int, on_progress: Advance, made: int) -> None:
    on_progress(min(total, reused + processes * made), total)


def _addresses(cache: PromptCache, prompts: Iterable[Prompt]) -> dict[Prompt, str]:
    """Address of each different prompt; without those whose references cannot be read."""
    found: dict[Prompt, str] = {}
    for prompt in dict.fromkeys(prompts):
        try:
            found[prompt] = cache.address(*prompt)
        except OSError:
            continue
    return found


def _decoded(cache: PromptCache, prompts: Iterable[Prompt]) -> dict[Prompt, list[Tensor]]:
    """Pixels of the references of each prompt; without those whose references cannot be decoded."""
    found: dict[Prompt, list[Tensor]] = {}
    for prompt in prompts:
        try:
            found[prompt] = cache.pixels(prompt)
        except BrokenImage:
            continue
    return found

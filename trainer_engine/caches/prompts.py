"""Caches text embeddings: captions, the empty prompt of caption dropout, and validation prompts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from trainer_engine.caches.store import CacheStore, InMemoryCache, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.runtime.stages import Advance


class PromptCache:
    """The embeddings of prompts. ``read`` is fast and thread-safe."""

    def __init__(self, family: Family, store: CacheStore) -> None:
        self.family = family
        self.store = store
        self.made = 0
        """Number of embeddings that this call computed."""
        self.reused = 0
        """Number of embeddings that existed."""
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self._fingerprint = family.text_fingerprint(store.hashes)
        self._in_memory = InMemoryCache()
        self._encoding = threading.Lock()

    def address(self, prompt: str) -> str:
        return address_of("prompt", prompt=prompt, encoder=self._fingerprint)

    def read(self, prompt: str) -> PromptEmbedding:
        """The embedding, on the CPU. A missing or damaged entry is computed again, which loads the encoder."""
        address = self.address(prompt)
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._recompute(prompt, address))

    def _recompute(self, prompt: str, address: str) -> PromptEmbedding:
        with self._encoding:
            embedding = self.family.encode_prompts([prompt])[0]
            self.family.free_encoders()
        self.store.put(address, embedding)
        return embedding


def cache_prompts(
    family: Family,
    prompts: Iterable[str],
    store: CacheStore,
    *,
    batch_size: int,
    write_batch_size: int,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PromptCache:
    """Compute the missing embeddings; the encoder is loaded only if some are missing.

    Call ``family.free_encoders`` after all caches are made. ``on_progress`` counts distinct prompts. Raises ModelUnavailable, DiskFull.
    """
    cache = PromptCache(family, store)
    distinct = list(dict.fromkeys(prompts))
    missing = [prompt for prompt in distinct if not store.holds(cache.address(prompt))]
    cache.reused = len(distinct) - len(missing)
    on_progress(cache.reused, len(distinct))
    with GroupWriter(store, write_batch_size) as writer:
        for start in range(0, len(missing), batch_size):
            if should_stop():
                cache.stopped = True
                break
            batch = missing[start : start + batch_size]
            for prompt, embedding in zip(batch, family.encode_prompts(batch), strict=True):
                writer.add(cache.address(prompt), embedding)
            cache.made += len(batch)
            on_progress(cache.reused + cache.made, len(distinct))
    return cache

"""Text embeddings, computed once: captions, the empty prompt of caption dropout, and the prompts of the validation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from trainer_engine.caches.in_memory import InMemoryCache
from trainer_engine.caches.store import CacheStore, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding

Progress = Callable[[int, int], None]


class PromptCache:
    """Embeddings by prompt. ``read`` is quick, and safe to use from several threads."""

    def __init__(self, family: Family, store: CacheStore) -> None:
        self.family = family
        self.store = store
        self.made = 0
        """Embeddings that were computed now."""
        self.reused = 0
        """Embeddings that were there."""
        self.stopped = False
        """Whether ``should_stop`` ended the work before it was done."""
        self._fingerprint = family.text_fingerprint(store.hashes)
        self._residents = InMemoryCache()
        self._encoding = threading.Lock()

    def address(self, prompt: str) -> str:
        return address_of("prompt", prompt=prompt, encoder=self._fingerprint)

    def read(self, prompt: str) -> PromptEmbedding:
        """The embedding on the CPU; one whose file was damaged or removed is made again, for which the encoder is loaded."""
        address = self.address(prompt)
        known = self._residents.get(address) or self.store.get(address)
        return self._residents.keep(address, known or self._make_again(prompt, address))

    def _make_again(self, prompt: str, address: str) -> PromptEmbedding:
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
    on_progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PromptCache:
    """Make what is missing; the encoder is loaded only if something is. Call ``family.free_encoders`` when all caches are made.

    ``on_progress`` hears (done, total) of the different prompts. Raises ModelUnavailable, DiskFull.
    """
    cache = PromptCache(family, store)
    different = list(dict.fromkeys(prompts))
    missing = [prompt for prompt in different if not store.holds(cache.address(prompt))]
    cache.reused = len(different) - len(missing)
    on_progress(cache.reused, len(different))
    with GroupWriter(store, write_batch_size) as writer:
        for start in range(0, len(missing), batch_size):
            if should_stop():
                cache.stopped = True
                break
            batch = missing[start : start + batch_size]
            for prompt, embedding in zip(batch, family.encode_prompts(batch), strict=True):
                writer.add(cache.address(prompt), embedding)
            cache.made += len(batch)
            on_progress(cache.reused + cache.made, len(different))
    return cache

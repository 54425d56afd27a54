"""Caches text embeddings: captions, the empty prompt of caption dropout, and validation prompts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from trainer_engine.caches.decoding import pixels_made_from, sample_pixels
from trainer_engine.caches.store import CacheStore, InMemoryCache, address_of
from trainer_engine.caches.writer import GroupWriter
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.base import Family
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.runtime.stages import Advance


class Prompt(NamedTuple):
    """A text to encode, with the reference images that the text encoder looks at."""

    text: str
    references: tuple[Sample, ...] = ()
    """Empty unless ``Family.prompts_see_references``."""


class PromptCache:
    """The embeddings of prompts. ``read`` is fast and thread-safe."""

    def __init__(self, family: Family, store: CacheStore, seed: int) -> None:
        """``seed`` places random crops of references."""
        self.family = family
        self.store = store
        self.seed = seed
        self.made = 0
        """Number of embeddings that were computed now."""
        self.reused = 0
        """Number of embeddings that were on disk already."""
        self.stopped = False
        """Whether ``should_stop`` ended the caching early."""
        self._fingerprint = family.text_fingerprint(store.hashes)
        self._in_memory = InMemoryCache()
        self._encoding = threading.Lock()

    def address(self, text: str, references: Sequence[Sample] = ()) -> str:
        """Depends on the text, the pixels of its references and the text encoder. Raises OSError if a reference cannot be read."""
        made_from: dict[str, Any] = {"prompt": text, "encoder": self._fingerprint}
        if references:
            contents = [self.store.hashes.of_entry(sample.source, sample.name) for sample in references]
            made_from["references"] = [pixels_made_from(*one, self.seed) for one in zip(references, contents, strict=True)]
        return address_of("prompt", **made_from)

    def read(self, text: str, references: Sequence[Sample] = ()) -> PromptEmbedding:
        """The embedding on the CPU; one whose file was damaged or removed is made again, for which the encoder is loaded.

        Raises BrokenImage or OSError if a reference cannot be read.
        """
        address = self.address(text, references)
        known = self._in_memory.get(address) or self.store.get(address)
        return self._in_memory.keep(address, known or self._make_again(Prompt(text, tuple(references)), address))

    def pixels(self, prompt: Prompt) -> list[Tensor]:
        """Pixels (3, H, W) in [-1, 1] of its references. Raises BrokenImage."""
        return [sample_pixels(sample, self.seed) for sample in prompt.references]

    def _make_again(self, prompt: Prompt, address: str) -> PromptEmbedding:
        with self._encoding:
            embedding = self.family.encode_prompts([prompt.text], [self.pixels(prompt)])[0]
            self.family.free_encoders()
        self.store.put(address, embedding)
        return embedding


def cache_prompts(
    family: Family,
    prompts: Iterable[Prompt],
    store: CacheStore,
    *,
    seed: int,
    batch_size: int,
    write_batch_size: int,
    on_progress: Advance = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PromptCache:
    """Compute the missing embeddings; the encoder is loaded only if some are missing.

    ``seed`` places random crops of references. A prompt is left out if one of its references cannot be read: caching the latents of the
    reference fails as well, and reports it. ``on_progress`` receives (done, total) of the different prompts. Raises ModelUnavailable,
    DiskFull.
    """
    cache = PromptCache(family, store, seed)
    addresses = _addresses(cache, prompts)
    missing = [prompt for prompt, address in addresses.items() if not store.holds(address)]
    cache.reused = len(addresses) - len(missing)
    on_progress(cache.reused, len(addresses))
    with GroupWriter(store, write_batch_size) as writer:
        for start in range(0, len(missing), batch_size):
            if should_stop():
                cache.stopped = True
                break
            batch = _decoded(cache, missing[start : start + batch_size])
            embeddings = family.encode_prompts([prompt.text for prompt in batch], list(batch.values())) if batch else []
            for prompt, embedding in zip(batch, embeddings, strict=True):
                writer.add(addresses[prompt], embedding)
            cache.made += len(batch)
            on_progress(cache.reused + cache.made, len(addresses))
    return cache


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

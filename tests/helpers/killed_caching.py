"""Fills a cache again and again in a child that is killed with SIGKILL in the middle: ``python killed_caching.py PLACE IMAGES TIMES``.

Prints JSON: for each child which samples were stored before it, and which it encoded. The last child is not killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from torch import Tensor

from tests.helpers.models import tiny_family
from tests.helpers.samples import samples_of
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.store import CacheStore
from trainer_engine.families.pixart_sigma.family import PixArtSigma


class Noted(PixArtSigma):
    """Real; it writes down how many images it has encoded."""

    note: int

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        latents = super().encode_images(pixels, exact=exact)
        os.write(self.note, b"x" * len(pixels))
        return latents


def child(place: Path, paths: list[Path]) -> None:
    usual = tiny_family()
    family = Noted(usual.options, usual.devices)
    family.note = os.open(place / "encoded", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    cache_latents(family, samples_of(paths), CacheStore(place / "cache"), seed=1, batch_size=1, write_batch_size=2, workers=1)


def stored(place: Path, paths: list[Path]) -> list[str]:
    """Names of the samples whose entry is there and sound."""
    cache = LatentCache(tiny_family(), CacheStore(place / "cache"), 1)
    return [sample.name for sample in samples_of(paths) if cache.store.get(cache.address(sample)) is not None]


def main(place: Path, images: int, times: int) -> None:
    paths = sorted((place / "pictures").iterdir())[:images]
    dice, turns = random.Random(7), []
    tiny_family().encode_images  # noqa: B018 - loads the modules once, before the first child
    for turn in range(times + 1):
        before = stored(place, paths)
        pid = os.fork()
        if pid == 0:
            child(place, paths)
            os._exit(0)
        if turn < times:
            note, began = place / "encoded", time.monotonic()
            wanted = dice.randrange(1, 6)
            while time.monotonic() - began < 60 and not (note.exists() and note.stat().st_size >= wanted):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    break
                time.sleep(0.002)
            else:
                time.sleep(dice.random() * 0.01)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        else:
            os.waitpid(pid, 0)
        turns.append({"before": before, "encoded": (place / "encoded").stat().st_size, "after": stored(place, paths)})
        (place / "encoded").unlink()
    print(json.dumps(turns))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

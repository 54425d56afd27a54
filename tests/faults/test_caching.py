"""Caches under kills and flipped bits: nothing is encoded twice, and no damage goes unnoticed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.live_server import REPOSITORY
from tests.helpers.models import tiny_family
from tests.helpers.pictures import generate_images
from tests.helpers.samples import samples_of
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.store import CacheStore
from trainer_engine.datasets.shards.folder import SHARDS
from trainer_engine.datasets.shards.shard import INDEX, SHARD

KILLS, FLIPS = 50, 1000
WRITTEN_TOGETHER = 2


def test_kills_in_the_middle_of_caching_lose_no_entry_and_encode_none_twice(tmp_path: Path) -> None:
    images = 120
    generate_images(tmp_path / "pictures", count=images, size=(64, 64))
    command = [sys.executable, "-m", "tests.helpers.killed_caching", str(tmp_path), str(images), str(KILLS)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    turns = json.loads(done.stdout.splitlines()[-1])
    assert len(turns) == KILLS + 1 and len(turns[-1]["after"]) == images
    for turn in turns:
        assert set(turn["before"]) <= set(turn["after"]), "what was stored stays stored"
        new = len(turn["after"]) - len(turn["before"])
        # At most a group that is being written and one that is being collected were encoded and not stored yet.
        assert turn["encoded"] - 2 * WRITTEN_TOGETHER <= new <= turn["encoded"], turn
    shards = list((tmp_path / "cache" / SHARDS).glob(f"*{SHARD}"))
    assert len(shards) <= 2, "killed runs leave no shard each"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    generate_images(tmp_path / "pictures", count=30, size=(64, 64))
    return tmp_path


def filled(place: Path) -> LatentCache:
    samples = samples_of(sorted((place / "pictures").iterdir()))
    return cache_latents(tiny_family(), samples, CacheStore(place / "cache"), seed=1, batch_size=1, write_batch_size=8, workers=1)


def test_a_thousand_flipped_bits_are_noticed_and_every_entry_is_made_again(place: Path) -> None:
    cache, samples = filled(place), samples_of(sorted((place / "pictures").iterdir()))
    wanted = {sample.name: cache.read(sample) for sample in samples}
    dice, folder, made = random.Random(11), place / "cache" / SHARDS, 0
    for number in range(FLIPS):
        path = dice.choice(sorted([*folder.glob(f"*{SHARD}"), *folder.glob(f"*{INDEX}")]))
        position = dice.randrange(path.stat().st_size)
        live = {place.row.offset: place.row.end for place in CacheStore(place / "cache")._shards.places()}
        with path.open("r+b") as stream:
            stream.seek(position)
            [byte] = stream.read(1)
            stream.seek(position)
            stream.write(bytes([byte ^ 1 << dice.randrange(8)]))
        is_hit = path.suffix == SHARD and any(start <= position < end for start, end in live.items())
        again = filled(place)
        assert all(torch.equal(again.read(sample), wanted[sample.name]) for sample in samples), (number, path, position)
        assert again.made == is_hit, (number, path, position)
        made += again.made
    assert made > FLIPS / 20
    assert filled(place).made == 0

"""Runs that crop their images anew in each epoch: what they train on, what they leave in the cache, and how they resume."""

from __future__ import annotations

import gc
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.caches import entries_of
from tests.helpers.params import first_fast
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_same_checkpoints
from tests.helpers.samples import samples_of
from tests.helpers.tiny_run import HereRun, run_of_ranks, tiny_datasets, tiny_options, train_here
from tests.trainer_engine.families.flux.test_kontext import adapter, kontext, pairs
from tests.trainer_engine.loop.test_masked_loss import masked
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.masks import MaskCache
from trainer_engine.caches.store import CacheStore, Encoded, InMemoryCache
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import CheckpointUnusable, DiskFull, ExitCode
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.shards.collect import DAY, collect, release
from trainer_engine.datasets.shards.stock import stats
from trainer_engine.families.base import Family
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices

PLACES: dict[str, Any] = {"crop": True, "vae_cache_clear_each_epoch": True}
ASPECTS: dict[str, Any] = {**PLACES, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 1.0, 2.0]}
SETS = {
    "aspects": ASPECTS,
    "places": PLACES,
    "repeated": {**ASPECTS, "repeats": 1, "crop_style": "center"},
    "nothing stored": {**ASPECTS, "vae_cache_disable": True},
}
STEPS = 11


def datasets_of(place: Path, name: str, **fields: Any) -> list[dict[str, Any]]:
    images, texts = tiny_datasets(place, images=7, **fields)
    return [images | {"cache_dir_vae": str(place / name / "vae")}, texts]


def run(place: Path, fields: dict[str, Any], name: str = "straight", **options: Any) -> HereRun:
    values = {"max_train_steps": STEPS, "resolution": 128, "output_dir": str(place / name), **options}
    return train_here(place, datasets=datasets_of(place, name, **fields), **values)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, tuple[int, int], tuple[int, int]]]]:
    """Name of each image -> epoch, size and place of the crops that the run reads, in order."""
    found: dict[str, list[tuple[int, tuple[int, int], tuple[int, int]]]] = defaultdict(list)
    read = LatentCache.read

    def noting(cache: LatentCache, sample: Sample) -> torch.Tensor:
        found[sample.name].append((sample.epoch, sample.target, crop_window(sample, cache.seed)))
        return read(cache, sample)

    monkeypatch.setattr(LatentCache, "read", noting)
    return found


@pytest.mark.parametrize("name", first_fast(list(SETS)))
def test_a_run_resumes_exactly_within_an_epoch(tmp_path: Path, name: str) -> None:
    fields = SETS[name]
    whole = run(tmp_path, fields, dataloader_prefetch=False)
    assert whole.code is ExitCode.COMPLETED
    for after in (2, 6):
        assert run(tmp_path, fields, "interrupted", stop_after=after).step == after
        resumed = run(tmp_path, fields, "interrupted")
        assert_same_checkpoints(whole, resumed)
        shutil.rmtree(tmp_path / "interrupted")


def test_each_epoch_reads_other_crops_and_the_cache_holds_those_of_one(tmp_path: Path, windows: dict[str, Any]) -> None:
    held: list[int] = []

    def count(step: int) -> None:
        held.append(len(entries_of(tmp_path / "straight/vae")))

    done = train_here(
        tmp_path,
        datasets=datasets_of(tmp_path, "straight", **PLACES),
        on_step=count,
        max_train_steps=0,
        num_train_epochs=5,
        output_dir=str(tmp_path / "straight"),
        dataloader_prefetch=False,
    )
    assert (done.code, done.step) == (ExitCode.COMPLETED, 20)
    wide = [found for name, found in windows.items() if name.startswith("wide")]
    assert len(wide) == 4 and all({epoch for epoch, _, _ in found} == set(range(5)) for found in wide)
    assert all(len({window for epoch, _, window in found}) >= 4 for found in wide), "a place may come twice"
    assert all(len({(epoch, window) for epoch, _, window in found}) == 5 for found in wide), "an epoch has one crop of each image"
    assert max(held) <= 7 + 2, "entries of the epoch, and those of the next step"
    assert 4 <= len(entries_of(tmp_path / "straight/vae")) <= 7


def test_latents_are_those_of_the_crop_that_pillow_cuts(tmp_path: Path) -> None:
    generate_images(tmp_path / "images", count=2, size=(160, 80))
    options = parse_options(tiny_options(tmp_path))
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    for epoch, sample, latents in read_epochs(tmp_path, family):
        left, top = crop_window(sample, 7)
        assert sample.epoch == epoch and sample.target == (64, 64)
        with Image.open(sample.location) as image:
            cut = image.convert("RGB").resize((128, 64), Image.Resampling.LANCZOS).crop((left, top, left + 64, top + 64))
        pixels = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1).float() / 127.5 - 1
        [wanted] = family.encode_images(pixels[None])
        assert torch.equal(latents, wanted)


def read_epochs(place: Path, family: Family) -> list[tuple[int, Sample, torch.Tensor]]:
    """(epoch, sample, its latents) for three epochs of two images."""
    cache = LatentCache(family, CacheStore(place / "vae"), 7, Encoded.ON_DEMAND, crops_change=True)
    samples = samples_of(sorted((place / "images").iterdir()), crop_style="random")
    cache.take_stock(samples, 1)
    moved = [(epoch, one._replace(epoch=epoch)) for epoch in range(3) for one in samples]
    return [(epoch, sample, cache.read(sample)) for epoch, sample in moved]


def test_a_full_disk_at_the_end_of_an_epoch_keeps_no_entry_from_being_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_images(tmp_path / "images", count=3, size=(160, 80))
    samples = samples_of(sorted((tmp_path / "images").iterdir()), crop_style="random")
    options = parse_options(tiny_options(tmp_path))
    family = load_family(options, resolve_devices(options, torch.device("cpu")))
    settings = {"seed": 7, "batch_size": 2, "write_batch_size": 2, "workers": 1, "when": Encoded.ON_DEMAND}
    cache = cache_latents(family, samples, CacheStore(tmp_path / "vae"), **settings, crops_change=True)
    for sample in epoch_of(samples, 0):
        cache.read(sample)

    def full(*_: object) -> None:
        raise DiskFull("no space left")

    monkeypatch.setattr(cache, "note_epoch", full)
    assert cache.release(epoch_of(samples, 0), epoch_of(samples, 1)) == len(samples)


def epoch_of(samples: list[Sample], epoch: int) -> list[Sample]:
    return [one._replace(epoch=epoch) for one in samples]


def test_the_epoch_of_a_run_that_lives_is_in_use_and_another_run_leaves_it_alone(tmp_path: Path) -> None:
    generate_images(tmp_path / "images", count=3, size=(160, 80))
    samples = samples_of(sorted((tmp_path / "images").iterdir()), crop_style="random")

    def begun(name: str) -> LatentCache:
        options = parse_options(tiny_options(tmp_path, output_dir=str(tmp_path / name)))
        family = load_family(options, resolve_devices(options, torch.device("cpu")))
        settings = {"seed": 7, "batch_size": 2, "write_batch_size": 2, "workers": 1, "when": Encoded.ON_DEMAND}
        return cache_latents(family, samples, CacheStore(tmp_path / "vae"), **settings, crops_change=True)

    def read(cache: LatentCache, epoch: int) -> int:
        made = cache.made
        for sample in epoch_of(samples, epoch):
            cache.read(sample)
        return cache.made - made

    def cleaned() -> int:
        for cache in running:
            cache._shard.close()  # what keeps gc away is not that the runs are writing
        return collect([tmp_path / "vae"], unused_days=0, keep_bytes=0, remove_now=True, now=time.time() + 30 * DAY).entries

    one, two = running = begun("one"), begun("two")
    assert read(one, 0) == 3 and read(two, 0) == 0
    assert stats(tmp_path / "vae").unused == 0 and cleaned() == 0
    two._in_memory = InMemoryCache()
    assert one.release(epoch_of(samples, 0), epoch_of(samples, 1)) == 0, "the other run is in this epoch"
    assert read(two, 0) == 0 and read(one, 1) == 3
    assert cleaned() == 0 and stats(tmp_path / "vae").unused == 0
    assert two.release(epoch_of(samples, 0), epoch_of(samples, 1)) == 3, "both are in the next one"
    assert len(entries_of(tmp_path / "vae")) == 3
    cleaned()
    running = ()
    del one, two
    gc.collect()
    assert cleaned() == 3


@pytest.fixture
def masks_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sample, torch.Tensor]]:
    """Masks as the run reads them."""
    found: list[tuple[Sample, torch.Tensor]] = []
    read = MaskCache.read

    def noting(cache: MaskCache, sample: Sample, size: tuple[int, int]) -> torch.Tensor:
        values = read(cache, sample, size)
        found.append((sample, values))
        return values

    monkeypatch.setattr(MaskCache, "read", noting)
    return found


def test_masks_lie_on_the_crop_of_their_image_in_each_epoch(tmp_path: Path, masks_read: list[tuple[Sample, torch.Tensor]]) -> None:
    datasets = masked(tmp_path, **PLACES)
    done = train_here(tmp_path, datasets=datasets, max_train_steps=12, output_dir=str(tmp_path / "out"))
    assert done.code is ExitCode.COMPLETED
    later = [(sample, values) for sample, values in masks_read if sample.epoch]
    assert {sample.epoch for sample, _ in later} == {1, 2}
    for sample, values in later:
        left, top = crop_window(sample, 7)
        with Image.open(sample.location) as image:
            cut = image.resize(sample.resized, Image.Resampling.BOX).crop((left, top, left + 64, top + 64))
        wanted = torch.frombuffer(bytearray(cut.tobytes()), dtype=torch.uint8).view(1, 1, 64, 64).float() / 255
        assert torch.allclose(values, torch.nn.functional.adaptive_avg_pool2d(wanted, values.shape[-2:])[0], atol=0.25)
    assert len(entries_of(tmp_path / "cache/masks")) == 8, "later crops are not stored"
    resumed = {"datasets": datasets, "max_train_steps": 12, "output_dir": str(tmp_path / "resumed")}
    train_here(tmp_path, stop_after=7, **resumed)
    assert train_here(tmp_path, **resumed).weights() == done.weights()


@pytest.mark.slow
def test_strict_references_move_with_their_image_and_leave_no_entries(tmp_path: Path, windows: dict[str, Any]) -> None:
    sets = pairs(tmp_path, "reference_strict", "reference_loose")
    sets[0] |= {"vae_cache_clear_each_epoch": True}
    options = {"max_train_steps": 8, "dataloader_prefetch": False}
    whole = kontext(tmp_path, sets, output_dir=str(tmp_path / "out"), **options)
    assert whole.code is ExitCode.COMPLETED
    by_cache = {name: len(entries_of(tmp_path / f"cache/{name}")) for name in ("edits", "refs-0", "refs-1")}
    assert by_cache["edits"] <= 4 and by_cache["refs-0"] <= 4 and by_cache["refs-1"] == 4
    kontext(tmp_path, sets, output_dir=str(tmp_path / "resumed"), stop_after=5, **options)
    resumed = kontext(tmp_path, sets, output_dir=str(tmp_path / "resumed"), **options)
    assert adapter(resumed) == adapter(whole)
    epochs = {(epoch, size) for found in windows.values() for epoch, size, _ in found}
    assert {epoch for epoch, _ in epochs} >= {0, 1, 2, 3}


def test_entries_that_another_run_noted_stay(tmp_path: Path) -> None:
    store = CacheStore(tmp_path)
    addresses = [f"{number:064x}" for number in range(6)]
    store.put_all({address: {"latents": torch.zeros(4)} for address in addresses})
    store.note_use(addresses[:2], kind="latents")
    writer = store.writer(is_short_lived=True)
    store.put_all({f"{9:064x}": {"latents": torch.ones(4)}}, writer)
    assert store.release(addresses, writer) == 4
    assert set(entries_of(tmp_path)) == {*addresses[:2], f"{9:064x}"}
    assert not store.holds(addresses[4]) and store.get(addresses[5]) is None and store.get(addresses[1]) is not None
    assert release(tmp_path, addresses) == 0


def test_entries_of_short_life_get_a_shard_of_their_own_which_goes_with_them(tmp_path: Path) -> None:
    store = CacheStore(tmp_path)
    store.put_all({"a" * 64: {"latents": torch.zeros(4)}})
    writer = store.writer(is_short_lived=True)
    for epoch in range(4):
        address = f"{epoch:064x}"
        store.put_all({address: {"latents": torch.zeros(4)}}, writer)
        assert len(list((tmp_path / "shards").glob("*.shard"))) == 2
        assert store.release([address], writer) == 1
        assert set(entries_of(tmp_path)) == {"a" * 64}
    assert len(list((tmp_path / "shards").glob("*.shard"))) == 1


def test_a_killed_run_leaves_entries_that_the_next_one_removes(tmp_path: Path) -> None:
    run(tmp_path, PLACES, "killed", stop_after=6)
    left = set(entries_of(tmp_path / "killed/vae"))
    run(tmp_path, PLACES, "other", stop_after=3, checkpoint_step_interval=1, dataloader_prefetch=False)
    before = set(entries_of(tmp_path / "other/vae"))
    shutil.copytree(tmp_path / "other/vae/shards", tmp_path / "killed/vae/shards", dirs_exist_ok=True)
    resumed = run(tmp_path, PLACES, "killed", max_train_steps=7)
    found = set(entries_of(tmp_path / "killed/vae"))
    assert resumed.step == 7 and before - left and not (before - left) & found, "they are of the epoch before"


def test_a_regular_run_of_the_same_set_keeps_its_entries(tmp_path: Path) -> None:
    plain = {"crop": True}
    assert run(tmp_path, plain, "same").code is ExitCode.COMPLETED
    before = set(entries_of(tmp_path / "same/vae"))
    anew = run(tmp_path, PLACES, "same", output_dir=str(tmp_path / "anew"))
    assert anew.code is ExitCode.COMPLETED and before <= set(entries_of(tmp_path / "same/vae"))


def test_turning_it_on_for_a_resumed_run_is_refused_as_a_changed_dataset(tmp_path: Path) -> None:
    run(tmp_path, {"crop": True}, stop_after=2)
    with pytest.raises(CheckpointUnusable, match="vae_cache_clear_each_epoch"):
        run(tmp_path, PLACES)


@pytest.mark.slow
def test_two_ranks_train_what_one_does_with_twice_the_batch_and_resume_exactly(tmp_path: Path) -> None:
    alone = run(tmp_path, ASPECTS, "alone", train_batch_size=2, max_train_steps=6)
    found = {}
    for name, steps in (("straight", [6]), ("resumed", [3, 6])):
        for number, last in enumerate(steps):
            options = {"max_train_steps": last, "resolution": 128, "output_dir": str(tmp_path / name)}
            ranks = run_of_ranks(tmp_path, f"run-{name}-{number}", datasets=datasets_of(tmp_path, name, **ASPECTS), **options)
        found[name] = (ranks.newest_checkpoint().path / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
        assert len(entries_of(tmp_path / name / "vae")) <= 7
    assert found["straight"] == found["resumed"]
    ours = [event.loss for event in alone.heard.of(ProgressEvent)]
    theirs = [entry.data["loss"] for entry in ranks.of_type("training.progress")]
    assert theirs == pytest.approx(ours[3:], rel=1e-3)

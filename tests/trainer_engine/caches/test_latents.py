"""Latents are computed once and read from disk or memory."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.caches import flip_entry
from tests.helpers.models import tiny_family, tiny_pixart
from tests.helpers.pictures import generate_images
from tests.helpers.samples import sample_of, samples_of
from trainer_engine.caches import decoding
from trainer_engine.caches.decoding import batches_by_size, sample_pixels
from trainer_engine.caches.encoding import BatchEncoder, trouble_with
from trainer_engine.caches.latents import LatentCache, cache_latents
from trainer_engine.caches.store import CacheStore, InMemoryCache
from trainer_engine.contract.errors import OutOfMemory
from trainer_engine.datasets.media.base import medium_of
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.base import Family
from trainer_engine.families.pixart_sigma.family import PixArtSigma


def cached(family: Family, samples: list[Sample], folder: Path, **how: object) -> LatentCache:
    usual: dict[str, object] = {"seed": 1, "batch_size": 3, "write_batch_size": 4, "workers": 2}
    return cache_latents(family, samples, CacheStore(folder), **{**usual, **how})  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return generate_images(tmp_path / "pictures", count=10)


def test_every_sample_has_the_latents_of_its_pixels(tmp_path: Path, pictures: list[Path]) -> None:
    family, samples = tiny_family(), samples_of(pictures)
    cache = cached(family, samples, tmp_path / "cache")
    assert (cache.made, cache.reused, cache.left_out) == (10, 0, [])
    for sample in samples:
        wanted = family.encode_images(sample_pixels(sample, 1)[None])[0]
        assert torch.allclose(cache.read(sample), wanted, atol=1e-5)


def test_second_run_computes_nothing_and_loads_no_encoder(tmp_path: Path, pictures: list[Path]) -> None:
    samples = samples_of(pictures)
    first = cached(tiny_family(), samples, tmp_path / "cache")
    family = tiny_family()
    second = cached(family, samples, tmp_path / "cache")
    assert (second.made, second.reused) == (0, 10)
    assert not family.autoencoder.is_loaded
    assert all(torch.equal(first.read(sample), second.read(sample)) for sample in samples)


def test_latents_are_recomputed_after_a_change_of_the_pixel_rule(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(pictures)
    monkeypatch.setattr(decoding, "medium_of", lambda name, **kind: replace(medium_of(name, **kind), pixel_rule=1))
    cached(tiny_family(), samples, tmp_path / "cache")
    monkeypatch.undo()
    assert (cached(tiny_family(), samples, tmp_path / "cache").made, len(samples)) == (10, 10)


def test_images_of_different_sizes_are_encoded_separately(tmp_path: Path) -> None:
    wide = samples_of(generate_images(tmp_path / "wide", count=3, size=(128, 64)), target=(128, 64))
    square = samples_of(generate_images(tmp_path / "square", count=2))
    batches = batches_by_size([wide[0], square[0], wide[1], square[1], wide[2]], batch_size=2)
    assert batches == [[wide[0], wide[1]], [wide[2]], [square[0], square[1]]]
    cache = cached(tiny_family(), wide, tmp_path / "cache")
    assert cache.read(wide[0]).shape == (4, 8, 16)


def test_broken_files_are_named_and_the_others_are_cached(tmp_path: Path, pictures: list[Path]) -> None:
    samples = samples_of(pictures)
    pictures[2].write_bytes(pictures[2].read_bytes()[:200])
    pictures[5].write_bytes(b"no image at all")
    pictures[7].unlink()
    Image.new("RGB", (50, 50)).save(pictures[8])
    cache = cached(tiny_family(), samples, tmp_path / "cache")
    assert {sample.name for sample, _ in cache.left_out} == {pictures[number].name for number in (2, 5, 7, 8)}
    reasons = {sample.name: reason for sample, reason in cache.left_out}
    assert "not an image" in reasons[pictures[5].name]
    assert "No such file" in reasons[pictures[7].name]
    assert "size changed from 96x96 to 50x50" in reasons[pictures[8].name]
    assert cache.made == 6
    with pytest.raises(KeyError):
        cache.read(samples[2])


def test_interrupted_caching_continues_where_it_stopped(tmp_path: Path, pictures: list[Path]) -> None:
    samples, asked = samples_of(pictures), iter([False, False, True])
    stopped = cached(tiny_family(), samples, tmp_path / "cache", should_stop=lambda: next(asked))
    assert (stopped.made, stopped.stopped) == (6, True)
    resumed = cached(tiny_family(), samples, tmp_path / "cache")
    assert (resumed.made, resumed.reused, resumed.stopped) == (4, 6, False)


def test_progress_counts_every_sample_once(tmp_path: Path, pictures: list[Path]) -> None:
    progress: list[tuple[int, int]] = []
    samples = samples_of(pictures)
    pictures[0].write_bytes(b"broken")
    cached(tiny_family(), samples, tmp_path / "cache", on_progress=lambda done, total: progress.append((done, total)))
    assert progress == [(0, 10), (3, 10), (6, 10), (9, 10), (10, 10)]


@pytest.mark.parametrize("change", ["bytes", "target", "seed", "model"])
def test_latents_are_recomputed_after_a_change_of_their_inputs(tmp_path: Path, pictures: list[Path], change: str) -> None:
    how = {"crop_style": "random", "target": (64, 32)}
    cached(tiny_family(), samples_of(pictures, **how), tmp_path / "cache")
    family, seed = tiny_family(), 1
    if change == "bytes":
        for number, path in enumerate(pictures):
            Image.new("RGB", (96, 96), (number, 200, 0)).save(path)
    elif change == "target":
        how["target"] = (32, 64)
    elif change == "seed":
        seed = 2
    else:
        shutil.copytree(tiny_pixart(), tmp_path / "model")
        config = tmp_path / "model/vae/config.json"
        config.write_text(config.read_text().replace('"scaling_factor": 2.0', '"scaling_factor": 3.0'))
        family = tiny_family(pretrained_model_name_or_path=str(tmp_path / "model"))
    again = cached(family, samples_of(pictures, **how), tmp_path / "cache", seed=seed)
    assert again.made >= 8


def test_copied_dataset_reuses_latents_by_content(tmp_path: Path, pictures: list[Path]) -> None:
    cached(tiny_family(), samples_of(pictures), tmp_path / "cache")
    copies = [Path(shutil.copy(path, tmp_path / f"{path.stem}-copy{path.suffix}")) for path in pictures]
    assert cached(tiny_family(), samples_of(copies), tmp_path / "cache").reused == 10


def test_damaged_latents_are_recomputed_on_read(tmp_path: Path, pictures: list[Path]) -> None:
    family, samples = tiny_family(), samples_of(pictures[:2])
    wanted = cached(family, samples, tmp_path / "cache").read(samples[0])
    cache = cached(family, samples, tmp_path / "cache")
    flip_entry(tmp_path / "cache", cache.addresses[samples[0].name])
    assert torch.allclose(cache.read(samples[0]), wanted, atol=1e-5)
    assert cache.made == 1
    again = cached(family, samples, tmp_path / "cache")
    assert torch.allclose(again.read(samples[0]), wanted, atol=1e-5) and again.made == 0


class LittleMemory(PixArtSigma):
    """Real in everything but that it runs out of memory above two images."""

    batches: list[int]

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        self.batches.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return super().encode_images(pixels, exact=exact)


def with_little_memory(most: int) -> LittleMemory:
    usual = tiny_family()
    family = LittleMemory(usual.options, usual.devices)
    family.most, family.batches = most, []
    return family


def test_batches_are_halved_permanently_when_memory_runs_out(tmp_path: Path, pictures: list[Path]) -> None:
    family = with_little_memory(2)
    cache = cached(family, samples_of(pictures), tmp_path / "cache", batch_size=8)
    assert cache.made == 10
    assert family.batches == [8, 4, 2, 2, 2, 2, 2]


def test_image_that_does_not_fit_is_an_error_with_its_size(pictures: list[Path]) -> None:
    with pytest.raises(OutOfMemory, match="One image of 64x64 does not fit"):
        BatchEncoder(with_little_memory(0)).encode(torch.zeros(4, 3, 64, 64))


class Overflowing(PixArtSigma):
    """Real, but its short type overflows on bright images; on black ones float32 does too."""

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        latents = super().encode_images(pixels, exact=exact)
        broken = pixels.mean(dim=(1, 2, 3)) < -0.99 if exact else pixels.mean(dim=(1, 2, 3)).abs() > 0.9
        latents[broken] = torch.inf
        return latents


def test_overflowing_latents_are_recomputed_in_float32_or_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("white", "grey", "black")]
    for path, value in zip(paths, (255, 100, 0), strict=True):
        Image.new("RGB", (64, 64), (value,) * 3).save(path)
    samples, usual = [sample_of(path) for path in paths], tiny_family()
    cache = cached(Overflowing(usual.options, usual.devices), samples, tmp_path / "cache")
    assert bool(cache.read(samples[0]).isfinite().all())
    assert [(sample.name, reason) for sample, reason in cache.left_out] == [("black.png", "its latents are not finite, also in float32")]


@pytest.mark.parametrize(
    ("latents", "trouble"),
    [
        (torch.randn(4, 8, 8), ""),
        (torch.full((4, 8, 8), -2.0), ""),
        (torch.full((4, 8, 8), torch.nan), "not finite"),
        (torch.zeros(4, 8, 8), "all zero"),
        (torch.randn(4, 8, 8) * 1e4, "standard deviation"),
    ],
)
def test_trouble_with_describes_unusable_latents(latents: Tensor, trouble: str) -> None:
    assert trouble in trouble_with(latents) if trouble else trouble_with(latents) == ""


def test_in_memory_cache_stays_within_its_limit() -> None:
    residents = InMemoryCache(limit_bytes=100)
    entries = {name: {"latents": torch.zeros(10)} for name in "abc"}
    for name, entry in entries.items():
        residents.keep(name, entry)
        residents.keep(name, entry)
    assert residents.held_bytes == 80
    assert [residents.get(name) is entries[name] for name in "abc"] == [True, True, False]


def test_reading_from_several_threads_gives_the_same_latents(tmp_path: Path, pictures: list[Path]) -> None:
    samples = samples_of(pictures)
    cache = cached(tiny_family(), samples, tmp_path / "cache")
    wanted, failures = [cached(tiny_family(), samples, tmp_path / "cache").read(sample) for sample in samples], []

    def read_all() -> None:
        failures.extend(sample.name for sample, tensor in zip(samples, wanted, strict=True) if not torch.equal(cache.read(sample), tensor))

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

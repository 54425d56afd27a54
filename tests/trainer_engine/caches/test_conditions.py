"""Inputs that a family makes of the pixels of a sample: cached with its latents, under the same address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.caches import entries_of, flip_entry
from tests.helpers.models import tiny_family
from tests.helpers.pictures import generate_images
from tests.helpers.samples import sample_of, samples_of
from tests.trainer_engine.batches.test_loader import Stacking, builder
from tests.trainer_engine.caches.test_latents import cached
from trainer_engine.batches.sampler import Item
from trainer_engine.caches.decoding import sample_pixels
from trainer_engine.caches.encoding import BatchEncoder, trouble_in
from trainer_engine.caches.store import Encoded
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.samples import Sample
from trainer_engine.families.inputs import Conditions
from trainer_engine.families.pixart_sigma.family import PixArtSigma


class SeesCorners(PixArtSigma):
    """Real, and its network is also given the top left pixels of each image; those of white images overflow in the short type."""

    caches_conditions = True
    rule = "corner 1"
    made = 0

    def image_fingerprint(self, hashes: FileHashes) -> str:
        return f"{super().image_fingerprint(hashes)} {self.rule}"

    def encode_conditions(self, pixels: Tensor, *, exact: bool = False) -> Conditions:
        self.made += len(pixels)
        corners = pixels[..., :2, :2].clone()
        if not exact:
            corners[corners > 0.99] = torch.inf
        return {"top_left": corners, "brightness": pixels.mean(dim=(1, 2, 3))}


def seeing() -> SeesCorners:
    usual = tiny_family()
    return SeesCorners(usual.options, usual.devices)


def same(wanted: Conditions, found: Conditions) -> bool:
    """Whether two samples have the same conditions, up to the order in which means add up."""
    return set(wanted) == set(found) and all(torch.allclose(wanted[name], found[name], atol=1e-6) for name in wanted)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return samples_of(generate_images(tmp_path / "pictures", count=5))


def test_every_entry_holds_the_latents_and_the_conditions_of_its_pixels(tmp_path: Path, samples: list[Sample]) -> None:
    family = seeing()
    cache = cached(family, samples, tmp_path / "cache")
    assert (cache.made, family.made, cache.left_out) == (5, 5, [])
    for sample in samples:
        pixels = sample_pixels(sample, 1)
        found = cache.read_conditions(sample)
        assert set(found) == {"top_left", "brightness"}
        assert torch.equal(found["top_left"], pixels[:, :2, :2]) and torch.allclose(found["brightness"], pixels.mean())
        assert torch.allclose(cache.read(sample), tiny_family().encode_images(pixels[None])[0], atol=1e-5)
    assert all(set(entry) == {"latents", "top_left", "brightness"} for entry in entries_of(tmp_path / "cache").values())


def test_a_family_without_conditions_stores_latents_alone(tmp_path: Path, samples: list[Sample]) -> None:
    cache = cached(tiny_family(), samples, tmp_path / "cache")
    assert cache.read_conditions(samples[0]) == {}
    assert all(set(entry) == {"latents"} for entry in entries_of(tmp_path / "cache").values())


def test_a_second_run_reads_the_conditions_and_a_changed_rule_makes_them_again(tmp_path: Path, samples: list[Sample]) -> None:
    first, again, changed = seeing(), seeing(), seeing()
    changed.rule = "corner 2"
    wanted = cached(first, samples, tmp_path / "cache").read_conditions(samples[0])
    found = cached(again, samples, tmp_path / "cache").read_conditions(samples[0])
    assert again.made == 0 and same(wanted, found)
    assert cached(changed, samples, tmp_path / "cache").made == changed.made == 5


def test_a_damaged_entry_is_made_again_with_its_conditions(tmp_path: Path, samples: list[Sample]) -> None:
    cache = cached(seeing(), samples, tmp_path / "cache")
    wanted = cache.read_conditions(samples[0])
    again = cached(seeing(), samples, tmp_path / "cache")
    flip_entry(tmp_path / "cache", again.addresses[samples[0].name])
    found = again.read_conditions(samples[0])
    assert again.made == 1 and same(wanted, found)


@pytest.mark.parametrize("when", [Encoded.ON_DEMAND, Encoded.NEVER_STORED])
def test_conditions_that_are_made_on_demand_are_the_same(tmp_path: Path, samples: list[Sample], when: Encoded) -> None:
    ahead = cached(seeing(), samples, tmp_path / "ahead")
    later = cached(seeing(), samples, tmp_path / "later", when=when)
    assert later.made == 0
    for sample in samples:
        wanted, found = ahead.read_conditions(sample), later.read_conditions(sample)
        assert same(wanted, found)


def test_conditions_that_overflow_are_made_again_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    Image.new("RGB", (64, 64), (255,) * 3).save(path)
    sample = sample_of(path)
    cache = cached(seeing(), [sample], tmp_path / "cache")
    assert cache.left_out == [] and bool((cache.read_conditions(sample)["top_left"] == 1).all())


@pytest.mark.parametrize(
    ("entry", "trouble"),
    [
        ({"latents": torch.randn(4, 8, 8), "first_frame": torch.zeros(4)}, ""),
        ({"latents": torch.randn(4, 8, 8), "first_frame": torch.tensor([torch.nan])}, "its first frame is not finite"),
        ({"latents": torch.zeros(4, 8, 8), "first_frame": torch.tensor([torch.inf])}, "its latents are all zero"),
    ],
)
def test_an_entry_with_numbers_that_are_not_finite_is_named(entry: dict[str, Tensor], trouble: str) -> None:
    assert trouble_in(entry) == trouble


def test_less_memory_halves_the_batch_of_conditions_too() -> None:
    class Small(SeesCorners):
        def encode_conditions(self, pixels: Tensor, *, exact: bool = False) -> Conditions:
            if len(pixels) > 1:
                raise torch.OutOfMemoryError("too large")
            return super().encode_conditions(pixels, exact=exact)

    usual = tiny_family()
    encoder = BatchEncoder(Small(usual.options, usual.devices))
    rows = encoder.encode(torch.rand(3, 3, 64, 64) - 0.5)
    assert encoder.largest == 1 and all(isinstance(row, dict) and row["top_left"].shape == (3, 2, 2) for row in rows)


def test_a_batch_has_the_cached_conditions_of_its_samples_beside_those_of_facts(tmp_path: Path, samples: list[Sample]) -> None:
    items = [Item("pictures", sample._replace(captions=("a picture",))) for sample in samples[:2]]
    read: Callable[[str, Sample], Conditions] = lambda set_id, sample: {"seen": torch.full((2, 3), float(ord(sample.name[0])))}  # noqa: E731
    made = builder(family=Stacking(), read_conditions=read).build(items, ["a", "b"], reference_sets=())
    assert set(made.conditions) == {"time_ids", "guidance", "seen"} and made.conditions["seen"].shape == (2, 2, 3)
    moved = made.with_noise(torch.zeros_like(made.latents), torch.zeros(2)).to(torch.device("meta"))
    assert moved.conditions["seen"].device.type == "meta"
    assert set(builder().build(items, ["a", "b"], reference_sets=()).conditions) == {"time_ids", "guidance"}

"""Masks: paired like references, read as greyscale, cropped where their image is, and brought to the size of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.caches import flip_entry, places_of, state_of
from trainer_engine.caches.masks import MaskCache, cache_masks
from trainer_engine.caches.store import CacheStore
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.masks import load_mask, open_mask
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.sources.base import SourceFile
from trainer_engine.datasets.sources.local import LocalSource

SPEC = find_spec("pixart_sigma")
OPTION = "dataloader[1].instance_data_dir"


def entries(place: Path, kind: str = "mask", **fields: Any) -> list[dict[str, Any]]:
    images = {"id": "images", "instance_data_dir": str(place / "images"), "conditioning_data": ["masks"], "resolution": 64, **fields}
    return [images, {"id": "masks", "conditioning_type": kind, "instance_data_dir": str(place / "masks")}]


def examined(place: Path, document: list[dict[str, Any]], **options: Any) -> tuple[DatasetReport, list[Problem]]:
    values = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": str(place / "out"), "data_backend_config": "d"}
    parsed = parse_options({**values, "max_train_steps": 1, "train_batch_size": 1, **options})
    dataloader, problems = parse_dataloader(document, parsed)
    assert SPEC is not None
    report = examine(dataloader, parsed, SPEC)
    return report, problems + report.problems


def told(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is not Level.NOTE}


def noise(size: tuple[int, int], seed: int = 0, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def grey_of(path: Path, *, segments: bool = False) -> NDArray[np.uint8]:
    source = LocalSource(str(path.parent))
    return np.array(open_mask(SourceFile(source, path.name, path.stat().st_size), segments=segments))


def test_a_mask_is_cropped_at_random_where_its_image_is(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"images/{number}.png", noise((200, 120), number))
        save(tmp_path / f"masks/{number}.png", noise((200, 120), 9 + number, channels=1))
    report, problems = examined(tmp_path, entries(tmp_path, crop=True, crop_style="random"))
    assert told(problems) <= {("dataloader", "text_set_made")}
    corners = set()
    for sample in report.sets[0].samples:
        assert sample.references == () and sample.mask is not None
        assert (sample.mask.set, sample.mask.sample.name) == ("masks", sample.name)
        corner = crop_window(sample.mask.sample, 5)
        assert corner == crop_window(sample, 5)
        corners.add(corner)
        file = Image.open(tmp_path / "masks" / sample.name)
        scaled = file.resize(sample.resized, Image.Resampling.BOX)
        box = (*corner, corner[0] + sample.target[0], corner[1] + sample.target[1])
        assert load_mask(sample.mask.sample, corner, segments=False).tobytes() == scaled.crop(box).tobytes()
    assert len(corners) > 1, "the crops are in different places"


def test_a_mask_at_the_size_of_latents_is_the_mean_of_its_pixels(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", noise((64, 64)))
    save(tmp_path / "masks/a.png", noise((64, 64), 1, channels=1))
    report, _ = examined(tmp_path, entries(tmp_path))
    mask = cached(report, tmp_path).read(mask_sample(report), (8, 8))
    pixels = np.array(Image.open(tmp_path / "masks/a.png"), dtype=np.float64) / 255
    wanted = pixels.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert mask.shape == (1, 8, 8) and mask.dtype == torch.float32
    assert np.abs(mask[0].numpy() - wanted).max() < 1e-6


def test_a_segmentation_counts_in_full_wherever_it_is_not_black(tmp_path: Path) -> None:
    painted = Image.new("RGB", (64, 64))
    painted.putpixel((3, 3), (0, 0, 1))
    painted.paste((120, 0, 0), (32, 32, 64, 64))
    save(tmp_path / "images/a.png", noise((64, 64)))
    save(tmp_path / "masks/a.png", painted)
    report, _ = examined(tmp_path, entries(tmp_path, "segmentation"))
    mask = cached(report, tmp_path, segments=True).read(mask_sample(report), (8, 8))[0]
    wanted = torch.zeros(8, 8)
    wanted[4:, 4:] = wanted[0, 0] = 1
    assert torch.equal(mask, wanted)


def mask_sample(report: DatasetReport) -> Any:
    mask = report.sets[0].samples[0].mask
    assert mask is not None
    return mask.sample


def cached(report: DatasetReport, place: Path, *, segments: bool = False) -> MaskCache:
    samples = [sample.mask.sample for sample in report.sets[0].samples if sample.mask]
    return cache_masks(samples, CacheStore(place / "cache"), seed=5, segments=segments, scale_factor_px=8, workers=2)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (Image.new("L", (8, 8), 90), 90),
        (Image.new("1", (8, 8), 1), 255),
        (Image.new("RGB", (8, 8), (90, 90, 90)), 90),
        (Image.new("LA", (8, 8), (200, 0)), 0),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 128)), 128),
        (Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)), 90),
        (Image.new("RGB", (8, 8), (255, 255, 255)).quantize(4), 255),
    ],
    ids=["L", "1", "RGB", "transparent", "half transparent", "16 bits", "palette"],
)
def test_masks_of_every_mode_are_read_as_greyscale_with_transparency_as_black(made: Image.Image, wanted: int, tmp_path: Path) -> None:
    save(tmp_path / "mask.png", made)
    assert np.unique(grey_of(tmp_path / "mask.png")).tolist() == [wanted]
    assert np.unique(grey_of(tmp_path / "mask.png", segments=True)).tolist() == [255 if wanted else 0]


def test_every_problem_of_masks_is_named_at_once(tmp_path: Path) -> None:
    for name in ("alone", "small", "good", "broken", "turned"):
        save(tmp_path / f"images/{name}.jpg", noise((96, 64)))
    save(tmp_path / "masks/good.png", noise((96, 64), channels=1))
    save(tmp_path / "masks/small.png", noise((48, 32), channels=1))
    save(tmp_path / "masks/turned.png", noise((64, 96), channels=1))
    save(tmp_path / "masks/nobody.png", noise((96, 64), channels=1))
    (tmp_path / "masks/broken.png").write_bytes(b"no picture")
    (tmp_path / "masks/good.mp4").write_bytes(b"no mask")
    report, problems = examined(tmp_path, entries(tmp_path))
    codes = {"missing_reference", "unlike_sizes", "broken_reference", "unused_reference"}
    assert told(problems) == {(OPTION, code) for code in codes}
    text = " ".join(problem.message for problem in problems)
    for words in (
        "1 images of images have no mask",
        "2 masks differ",
        "small.jpg (96x64 and 48x32)",
        "turned.jpg",
        "broken.png",
        "nobody.png",
    ):
        assert words in text
    [hint] = [problem.hint for problem in problems if problem.code == "unlike_sizes"]
    assert hint == "scale each mask to the size of its image"
    assert [sample.name for sample in report.sets[0].samples] == ["good.jpg"]


def test_a_set_has_masks_of_one_kind_and_they_need_no_network_that_takes_references(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", noise((64, 64)))
    save(tmp_path / "masks/a.png", noise((64, 64), channels=1))
    document = entries(tmp_path, crop=True)
    document[1]["crop"] = True
    document[0]["conditioning_data"] = ["masks", "more"]
    document.append({**document[1], "id": "more", "conditioning_type": "segmentation", "crop": False, "cache_dir_vae": str(tmp_path / "c")})
    _, problems = examined(tmp_path, document)
    assert told(problems) == {("dataloader[0].conditioning_data", "several_masks")}
    assert ("dataloader[1].crop", "no_effect") in {(problem.option, problem.code) for problem in problems}


def test_the_probability_of_masks_without_masks_is_a_note(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", noise((64, 64)))
    plain = [{"id": "images", "instance_data_dir": str(tmp_path / "images"), "resolution": 64}]
    _, problems = examined(tmp_path, plain, masked_loss_probability=0.5)
    assert ("masked_loss_probability", "no_masks") in {(problem.option, problem.code) for problem in problems}


def test_a_mask_is_read_from_its_cache_and_computed_again_if_damaged(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", noise((64, 64)))
    save(tmp_path / "masks/a.png", noise((64, 64), 1, channels=1))
    report, _ = examined(tmp_path, entries(tmp_path))
    sample = mask_sample(report)
    wanted = cached(report, tmp_path).read(sample, (8, 8))
    [folder] = {path.parent.parent for path in (tmp_path / "cache").rglob("*.shard")}
    [address], stored = places_of(folder), state_of(folder)
    assert torch.equal(cached(report, tmp_path).read(sample, (8, 8)), wanted)
    assert state_of(folder) == stored
    flip_entry(folder, address)
    assert torch.equal(cached(report, tmp_path).read(sample, (8, 8)), wanted)


def test_masks_that_cannot_be_decoded_are_left_out_and_black_ones_are_known(tmp_path: Path) -> None:
    for name in ("black", "torn", "white"):
        save(tmp_path / f"images/{name}.png", noise((64, 64)))
        save(tmp_path / f"masks/{name}.png", Image.new("L", (64, 64), 255 if name == "white" else 0))
    report, _ = examined(tmp_path, entries(tmp_path))
    torn = tmp_path / "masks/torn.png"
    content = bytearray(torn.read_bytes())
    content[content.index(b"IDAT") + 5] ^= 255
    torn.write_bytes(content)
    cache = cached(report, tmp_path)
    assert [sample.name for sample, _ in cache.left_out] == ["torn.png"]
    assert [sample.name for sample in cache.empty] == ["black.png"]
    assert set(cache.addresses) == {"black.png", "white.png"}

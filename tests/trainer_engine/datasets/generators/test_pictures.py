"""What the generators make of pictures whose edges, noise and masks are known."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from trainer_engine.config.dataset_tables import generator_specs
from trainer_engine.datasets.generators import canny, jpeg_artifacts, random_masks, superresolution


def picture(size: tuple[int, int] = (96, 64)) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def levels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64)


def lines_of(grey: NDArray[np.float32], low: float = 50, high: float = 100) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = canny.edges(grey, low, high)
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_a_straight_edge_is_one_line_of_one_pixel(turned: bool) -> None:
    grey = np.zeros((40, 60), np.float32)
    grey[:, 30:] = 200
    found = lines_of(grey.T.copy()).T if turned else lines_of(grey)
    assert found.sum(axis=1).tolist() == [1] * 40
    assert set(np.flatnonzero(found[20])) <= {29, 30}


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_diagonal_edge_is_thin_and_has_no_gap(mirrored: bool) -> None:
    y, x = np.mgrid[:60, :60]
    grey = np.where(x + 0.5 > y, 200, 0).astype(np.float32)
    found = lines_of(grey[:, ::-1].copy())[:, ::-1] if mirrored else lines_of(grey)
    inside = found[5:55]
    assert inside.sum(axis=1).min() >= 1 and inside.sum(axis=1).max() <= 2
    assert np.abs(np.argwhere(found)[:, 0] - np.argwhere(found)[:, 1]).max() <= 1


def test_a_square_has_its_four_sides_and_its_inside_is_empty() -> None:
    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=(255, 255, 255))
    found = levels(canny.make(image, canny.CannyFields(), 0))
    assert set(np.unique(found)) == {0.0, 255.0}
    rows, columns = np.nonzero(found[..., 0])
    assert {15, 16, 47, 48} >= {rows.min(), rows.max(), columns.min(), columns.max()}
    assert not found[22:42, 22:42].any() and not found[:12].any()


def test_a_weak_edge_counts_only_where_it_continues_a_strong_one() -> None:
    grey = np.zeros((60, 80), np.float32)
    grey[:, 20:] = np.linspace(100, 22, 60)[:, None]  # an edge that is strong above and weak below
    grey[:, 50:] += 22  # an edge that is weak everywhere
    found = lines_of(grey, low=40, high=200)
    assert found[:, 18:22].any(axis=1).all()
    assert not found[:, 46:54].any(), "no strong edge touches it"


def test_nothing_is_an_edge_in_a_plain_picture_nor_above_the_thresholds() -> None:
    assert not lines_of(np.full((30, 30), 90, np.float32)).any()
    grey = np.zeros((30, 30), np.float32)
    grey[:, 15:] = 20
    assert not lines_of(grey, low=200, high=300).any()


def test_edges_of_a_large_spiral_are_followed_to_the_end() -> None:
    image = Image.new("L", (400, 400))
    angles = np.linspace(0, 14 * np.pi, 3000)
    points = [(200 + 4 * angle * np.cos(angle), 200 + 4 * angle * np.sin(angle)) for angle in angles]
    for number, (one, other) in enumerate(zip(points, points[9:], strict=False)):
        ImageDraw.Draw(image).line((*one, *other), fill=max(30, 250 - number), width=9)
    grey = np.asarray(image, np.float32)
    assert lines_of(grey, low=20, high=500).sum() > 0.9 * lines_of(grey, low=20, high=21).sum() > 5000


def test_a_worse_copy_is_what_pillow_and_numpy_make() -> None:
    image = picture()
    plain = superresolution.SuperresolutionFields(add_noise=False)
    assert superresolution.make(image, plain, 1).tobytes() == image.filter(ImageFilter.GaussianBlur(2.0)).tobytes()
    boxed = plain.model_copy(update={"blur_type": "box", "blur_radius": 3.0})
    assert superresolution.make(image, boxed, 1).tobytes() == image.filter(ImageFilter.BoxBlur(3.0)).tobytes()
    both = plain.model_copy(update={"blur_type": "both"})
    wanted = image.filter(ImageFilter.GaussianBlur(1.0)).filter(ImageFilter.BoxBlur(1.0))
    assert superresolution.make(image, both, 1).tobytes() == wanted.tobytes()
    small = plain.model_copy(update={"blur_radius": 0.0, "downscale_factor": 4.0})
    wanted = image.resize((24, 16), Image.Resampling.BICUBIC).resize((96, 64), Image.Resampling.BICUBIC)
    assert superresolution.make(image, small, 1).tobytes() == wanted.tobytes()


def test_noise_has_its_level_and_follows_from_the_seed() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    fields = superresolution.SuperresolutionFields(blur_radius=0.0, noise_level=0.05)
    one, again, other = (superresolution.make(grey, fields, seed) for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert levels(one).std() == pytest.approx(0.05 * 255, rel=0.02)
    assert levels(one).mean() == pytest.approx(128, abs=0.2)


def saved_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def test_jpeg_artifacts_are_those_of_a_jpeg_file() -> None:
    image = picture()
    assert jpeg_artifacts.make(image, jpeg_artifacts.JpegFields(), 0).tobytes() == saved_as_jpeg(image, 25).tobytes()
    twice = jpeg_artifacts.JpegFields(quality=40, compression_rounds=2, round_quality_decay=0.5)
    assert jpeg_artifacts.make(image, twice, 0).tobytes() == saved_as_jpeg(saved_as_jpeg(image, 40), 20).tobytes()
    enhanced = jpeg_artifacts.JpegFields(enhance_blocks=True)
    assert levels(jpeg_artifacts.make(image, enhanced, 0)).std() > levels(saved_as_jpeg(image, 25)).std()


@pytest.mark.parametrize("mode", ["random", "range"])
def test_random_qualities_are_of_their_list_or_range(mode: str) -> None:
    image = picture()
    fields = jpeg_artifacts.JpegFields(quality_mode=mode, quality_range="12,14", quality_list="12,13,14")
    allowed = {saved_as_jpeg(image, quality).tobytes() for quality in (12, 13, 14)}
    found = {jpeg_artifacts.make(image, fields, seed).tobytes() for seed in range(30)}
    assert found == allowed


@pytest.mark.parametrize("kind", ["rectangle", "circle", "brush", "irregular", "rectangle,circle,brush,irregular"])
def test_random_masks_cover_what_was_asked_for(kind: str) -> None:
    fields = random_masks.MaskFields(mask_types=kind, edge_blur=False)
    shares = []
    for seed in range(12):
        mask = random_masks.random_mask((120, 80), fields, random.Random(seed))
        shares.append(float((levels(mask) > 0).mean()))
        assert set(np.unique(levels(mask))) <= {0.0, 255.0}
    assert min(shares) >= 0.1 - 1e-9 and max(shares) <= 0.5
    assert len(set(shares)) > 6


def test_a_mask_and_the_masked_image_have_the_same_hole() -> None:
    image = picture().point(lambda value: min(value, 200))
    sharp: dict[str, Any] = {"edge_blur": False, "mask_value": 255}
    mask = levels(random_masks.make(image, random_masks.MaskFields(**sharp), 4))
    masked = levels(random_masks.make(image, random_masks.InpaintingFields(**sharp), 4))
    assert ((masked == 255).all(axis=2) == (mask == 255).all(axis=2)).all()
    outside = (mask == 0).all(axis=2)
    assert (masked[outside] == levels(image)[outside]).all()
    grey = levels(random_masks.make(image, random_masks.MaskFields(edge_blur=False, mask_value=90), 4))
    assert set(np.unique(grey)) == {0.0, 90.0}
    assert len(np.unique(levels(random_masks.make(image, random_masks.MaskFields(), 4)))) > 5, "blurred edges have shades"


@pytest.mark.parametrize("name", sorted(name for name, generator in generator_specs().items() if not generator.models))
def test_every_generator_keeps_the_size_and_repeats_itself(name: str) -> None:
    generator: Any = generator_specs()[name]
    for size in ((37, 53), (16, 16), (3, 200)):
        image = Image.new("RGB", size, (10, 200, 90))
        one, again = (generator.make(image, generator.fields(), 7) for _ in range(2))
        assert one.size == size and one.mode == "RGB" and one.tobytes() == again.tobytes()
    assert not list(generator.contradictions(generator.fields()))

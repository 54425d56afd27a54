"""Other colour spaces become sRGB; what cannot be used is left as it is, and said."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin, TiffTags

from tests.helpers import profiles
from tests.helpers.odd_pictures import chunk, encoded, exif, png
from tests.helpers.profiles import meant_in_srgb
from tests.helpers.samples import file_of
from tests.trainer_engine.datasets.test_report import entry, report_of
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.media.colour import as_srgb, colour_trouble
from trainer_engine.datasets.media.image import inspect_image
from trainer_engine.datasets.media.pixels import open_rgb

SPACES = {"p3": profiles.display_p3, "adobe": profiles.adobe_rgb}


def colours() -> Image.Image:
    """Muted colours, which every space holds, in large patches that survive compression."""
    patches = Image.new("RGB", (4, 3))
    patches.putdata([(60 + 30 * (n % 4), 70 + 35 * (n % 3), 180 - 12 * n) for n in range(12)])
    return patches.resize((64, 48), Image.Resampling.NEAREST)


def opened(folder: Path, content: bytes, name: str = "picture.png") -> np.ndarray:
    (folder / name).write_bytes(content)
    return np.asarray(open_rgb(file_of(folder / name)), np.float64)


def remark(folder: Path, content: bytes, name: str = "picture.png") -> str:
    (folder / name).write_bytes(content)
    return inspect_image(file_of(folder / name)).remark


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("kind", "how"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("JPEG", {"quality": 98, "subsampling": 0})]
)
def test_a_picture_in_another_space_is_converted(tmp_path: Path, space: str, kind: str, how: dict[str, Any]) -> None:
    content = encoded(colours(), kind, icc_profile=SPACES[space](), **how)
    expected = meant_in_srgb(colours(), space)
    found = opened(tmp_path, content)
    assert np.abs(found - expected).mean() < (2 if kind == "JPEG" else 0.8)
    assert np.abs(np.asarray(colours(), np.float64) - expected).mean() > 4, "converting matters"
    assert remark(tmp_path, content) == ""


def test_a_turned_picture_is_converted_too(tmp_path: Path) -> None:
    content = encoded(colours(), "PNG", icc_profile=profiles.display_p3(), exif=exif(3))
    assert np.abs(opened(tmp_path, content)[::-1, ::-1] - meant_in_srgb(colours(), "p3")).mean() < 0.8


def test_palettes_and_transparency_are_converted_and_lie_on_white(tmp_path: Path) -> None:
    image = colours().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 16))
    expected = meant_in_srgb(colours(), "adobe")
    expected[:16, :16] = 255
    for found in (image, image.quantize(32)):
        shown = opened(tmp_path, encoded(found, "PNG", icc_profile=profiles.adobe_rgb()))
        assert np.abs(shown - expected).mean() < 1.5


def test_a_grey_picture_follows_the_curve_of_its_profile(tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L")
    linear = (np.asarray(ramp, np.float64) / 255) ** 1.8
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found = opened(tmp_path, encoded(ramp, "PNG", icc_profile=profiles.grey(1.8)))
    assert np.abs(found - expected[..., None]).max() < 3
    with_alpha = opened(tmp_path, encoded(ramp.convert("LA"), "PNG", icc_profile=profiles.grey(1.8)))
    assert np.array_equal(found, with_alpha)


def test_a_grey_picture_may_carry_the_profile_of_its_editor(tmp_path: Path) -> None:
    content = encoded(Image.linear_gradient("L"), "PNG", icc_profile=profiles.srgb())
    assert np.array_equal(opened(tmp_path, content)[..., 0], np.asarray(Image.linear_gradient("L")))
    assert remark(tmp_path, content) == ""


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(tmp_path: Path, kind: str) -> None:
    image = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    plain = opened(tmp_path, encoded(image, kind))[16, 16]
    shown = opened(tmp_path, encoded(image, kind, icc_profile=profiles.cmyk()))[16, 16]
    assert np.abs(plain - (0, 255, 255)).max() < 4
    assert np.abs(shown - (76, 215, 253)).max() < 12, "Lab(80, -30, -30)"
    assert remark(tmp_path, encoded(image, kind, icc_profile=profiles.cmyk())) == ""


def test_an_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    assert np.array_equal(opened(tmp_path, encoded(image, "PNG", icc_profile=profiles.srgb())), np.asarray(image))


def cicp(*codes: int) -> bytes:
    return chunk(b"cICP", bytes(codes))


def test_the_code_points_of_a_png_win_over_its_profile(tmp_path: Path) -> None:
    with_both = encoded(colours(), "PNG", icc_profile=profiles.adobe_rgb())
    place = with_both.index(b"iCCP") - 4
    content = with_both[:place] + cicp(12, 13, 0, 1) + with_both[place:]
    expected = meant_in_srgb(colours(), "p3")
    assert np.abs(opened(tmp_path, content) - expected).mean() < 0.8
    assert np.abs(opened(tmp_path, png(colours(), before=cicp(12, 13, 0, 1))) - expected).mean() < 0.8
    assert np.abs(opened(tmp_path, png(colours(), before=cicp(9, 13, 0, 1))) - meant_in_srgb(colours(), "bt2020")).mean() < 0.8
    assert np.array_equal(opened(tmp_path, png(colours(), before=cicp(1, 13, 0, 1))), np.asarray(colours()))


def test_video_levels_are_expanded_to_the_full_range(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (16, 126, 235))
    assert opened(tmp_path, png(image, before=cicp(1, 13, 0, 0)))[0, 0].tolist() == [0, 128, 255]


def without_part(content: bytes) -> bytes:
    """A JPEG whose profile counts one part more than there is."""
    place = content.index(b"ICC_PROFILE\0") + 13
    return content[:place] + bytes((content[place] + 1,)) + content[place + 1 :]


BROKEN: dict[str, tuple[bytes, str]] = {
    "noise": (encoded(colours(), "PNG", icc_profile=bytes(range(256)) * 8), "damaged"),
    "cut": (encoded(colours(), "PNG", icc_profile=profiles.display_p3()[:200]), "damaged"),
    "black": (encoded(colours(), "PNG", icc_profile=profiles.display_p3().replace(b"rXYZ", b"xXYZ", 1)), "damaged"),
    "ink": (encoded(colours(), "WEBP", lossless=True, icc_profile=profiles.cmyk()), "CMYK"),
    "grey": (encoded(colours(), "TIFF", icc_profile=profiles.grey(2.2)), "GRAY"),
    "pq": (png(colours(), before=cicp(9, 16, 0, 1)), "PQ"),
    "hlg": (png(colours(), before=cicp(9, 18, 0, 1)), "HLG"),
    "unknown": (png(colours(), before=cicp(77, 13, 0, 1)), "unsupported"),
    "matrix": (png(colours(), before=cicp(1, 13, 5, 1)), "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unusable_colours_are_not_converted_but_reported(tmp_path: Path, name: str) -> None:
    content, word = BROKEN[name]
    assert np.array_equal(opened(tmp_path, content), np.asarray(colours()))
    assert word in remark(tmp_path, content)


def test_a_profile_with_a_missing_part_is_reported(tmp_path: Path) -> None:
    content = without_part(encoded(colours(), "JPEG", quality=98, icc_profile=profiles.display_p3()))
    assert np.abs(opened(tmp_path, content) - np.asarray(colours())).mean() < 2
    assert "damaged" in remark(tmp_path, content)


def test_validate_names_the_pictures_whose_colours_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "noise.png").write_bytes(BROKEN["noise"][0])
    (folder / "good.png").write_bytes(encoded(colours(), "PNG", icc_profile=profiles.display_p3()))
    for attempt in range(2):
        report = report_of(entry(folder), index_dir=tmp_path / "index")
        [note] = report.problems
        assert (note.code, note.level) == ("colours_not_converted", Level.NOTE), attempt
        assert "noise.png (its colour profile is damaged)" in note.message and "good.png" not in note.message


@given(
    places=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    make=st.sampled_from([profiles.display_p3, profiles.cmyk, lambda: profiles.grey(1.8)]),
)
@settings(max_examples=200, deadline=None)
def test_a_profile_with_flipped_bytes_is_used_or_reported(places: list[tuple[int, int]], mode: str, make: Callable[[], bytes]) -> None:
    profile = bytearray(make())
    for place, value in places:
        profile[place % len(profile)] = value
    image = Image.new(mode, (5, 4))
    shown = as_srgb(image, bytes(profile))
    assert (shown.mode, shown.size) == ("RGB", (5, 4))
    if colour_trouble(mode, bytes(profile)):
        assert shown.tobytes() == image.convert("RGB").tobytes()


def test_a_profile_of_numbers_in_a_tiff_is_passed_over(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675] = (1, 2, 3)
    tags.tagtype[34675] = TiffTags.SHORT
    content = encoded(colours(), "TIFF", tiffinfo=tags)
    assert np.array_equal(opened(tmp_path, content), np.asarray(colours())) and remark(tmp_path, content) == ""


def test_large_profiles_of_a_jpeg_lie_in_many_segments(tmp_path: Path) -> None:
    profile = profiles.display_p3() + bytes(200_000)
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    content = encoded(colours(), "JPEG", quality=98, subsampling=0, icc_profile=profile)
    assert io.BytesIO(content).getvalue().count(b"ICC_PROFILE") > 2
    assert np.abs(opened(tmp_path, content) - meant_in_srgb(colours(), "p3")).mean() < 2
    assert remark(tmp_path, content) == ""

"""Whatever a file turns out to be: its size, its pixels, or a plain reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.samples import file_of, sample_of
from trainer_engine.datasets.crops import crop_window, load_frames, random_numbers
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.headers import exif_orientation, read_header
from trainer_engine.datasets.media.image import inspect_image
from trainer_engine.datasets.media.pixels import open_rgb
from trainer_engine.datasets.samples import Sample

RED, GREEN = (250, 10, 10), (10, 240, 10)


def noise(size: tuple[int, int] = (70, 50)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def saved(folder: Path, content: bytes, name: str = "picture.jpg") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def size_of(path: str) -> tuple[int, int]:
    return inspect_image(file_of(path)).size


def load_image(sample: Sample, left_top: tuple[int, int]) -> Image.Image:
    [frame] = load_frames(sample, left_top)
    return frame


def reason_for(path: str) -> str:
    with pytest.raises(BrokenImage) as caught:
        size_of(path)
    assert os.path.basename(path) in caught.value.message
    return caught.value.reason


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker of cameras"
    return exif


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"icc_profile": b"x" * 200_000}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"icc_profile": b"x" * 300}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("PPM", {}),
    ],
)
def test_every_usual_format_is_measured(tmp_path: Path, kind: str, how: dict[str, object]) -> None:
    assert size_of(saved(tmp_path, encoded(noise(), kind, **how))) == (70, 50)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_measured_and_loaded_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    path = saved(tmp_path, encoded(noise(), kind, exif=turned(orientation)))
    expected = (50, 70) if orientation >= 5 else (70, 50)
    assert size_of(path) == expected
    assert open_rgb(file_of(path)).size == expected


def test_orientations_in_either_byte_order_are_read() -> None:
    big = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
    small = b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0)
    assert (exif_orientation(big), exif_orientation(small)) == (6, 8)


@given(damaged=st.binary(max_size=60))
def test_damaged_exif_gives_no_orientation(damaged: bytes) -> None:
    assert exif_orientation(b"Exif\0\0II" + damaged) in range(9)


def test_a_name_may_lie_about_the_format(tmp_path: Path) -> None:
    assert size_of(saved(tmp_path, encoded(noise(), "PNG"), "really_a_png.jpg")) == (70, 50)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
def test_a_file_cut_off_is_named_while_measuring(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(noise((300, 300)), kind)
    assert reason_for(saved(tmp_path, whole[: int(len(whole) * share)]))


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        assert size_of(saved(tmp_path, encoded(noise(), kind) + b"\0" * 5000)) == (70, 50)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"this is no picture", "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, ""),
        (b"RIFF\xff\xff\xff\xffWEBPVP8 ", ""),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_with_a_reason(tmp_path: Path, content: bytes, word: str) -> None:
    assert word in reason_for(saved(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="no such file"):
        inspect_image(file_of(tmp_path / "gone.png"))


def test_a_bomb_is_refused_before_a_pixel_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    path = saved(tmp_path, bomb, "bomb.png")
    assert "900 megapixels" in reason_for(path)
    with pytest.raises(BrokenImage):
        open_rgb(file_of(path))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]), place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_flipped_byte_ends_in_a_picture_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: float, value: int
) -> None:
    content = bytearray(encoded(noise((40, 30)), kind))
    content[int(place * (len(content) - 1))] = value
    path = saved(tmp_path_factory.mktemp("flip"), bytes(content))
    for look in (size_of, lambda path: open_rgb(file_of(path)).size):
        try:
            assert min(look(path)) > 0
        except BrokenImage as broken:
            assert broken.reason


@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP"]))
def test_no_bytes_break_the_header_reader(content: bytes, start: bytes) -> None:
    found = read_header(io.BytesIO(start + content), len(start + content))
    assert found is None or (found.width > 0 and found.height > 0)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(Image.new("RGB", (8, 8), RED).convert("CMYK"), "JPEG", quality=100))
    red, green, blue = open_rgb(file_of(path)).getpixel((4, 4))
    assert red > 200 and green < 60 and blue < 60


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = Image.new("I;16", (8, 8), 0x8080)
    assert open_rgb(file_of(saved(tmp_path, encoded(grey, "PNG"), "grey.png"))).getpixel((0, 0)) == pytest.approx((128, 128, 128), abs=1)


def test_floating_point_pictures_are_scaled(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "float.tif")
    assert open_rgb(file_of(path)).getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_transparency_shows_white(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), "clear.png")
    assert open_rgb(file_of(path)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    path = saved(tmp_path, encoded(palette, "GIF", transparency=0), "clear.gif")
    assert open_rgb(file_of(path)).getpixel((0, 0)) == (255, 255, 255)


def test_of_a_moving_picture_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), RED), Image.new("RGB", (20, 10), GREEN)]
    for kind in ("GIF", "WEBP", "PNG"):
        path = saved(tmp_path, encoded(frames[0], kind, save_all=True, append_images=frames[1:]), f"moving.{kind.lower()}")
        assert size_of(path) == (20, 10)
        assert open_rgb(file_of(path)).getpixel((5, 5))[0] > 200


SUBSAMPLED = pytest.param(
    "YCbCr", marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="older Pillow writes such TIFFs too short")
)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", SUBSAMPLED, "LAB", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (6, 6))
    path = saved(tmp_path, encoded(picture, "TIFF"), "mode.tif")
    assert open_rgb(file_of(path)).mode == "RGB"


def test_the_part_that_is_loaded_has_the_size_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise((200, 100)).save(path)
    sample = sample_of(path, target=(64, 64), crop_style="random")
    picture = load_image(sample, crop_window(sample, 1))
    assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_the_corner_and_the_window_show_what_they_should(tmp_path: Path) -> None:
    picture = Image.new("RGB", (128, 64), RED)
    picture.paste(GREEN, (64, 0, 128, 64))
    picture.save(tmp_path / "a.png")
    sample = sample_of(tmp_path / "a.png", target=(64, 64), crop_style="corner")
    assert load_image(sample, crop_window(sample, 0)).getpixel((5, 5)) == RED
    assert load_image(sample, (64, 0)).getpixel((60, 60)) == GREEN


def test_a_file_changed_after_it_was_measured_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise((100, 100)).save(path)
    sample = sample_of(path)
    noise((120, 100)).save(path)
    with pytest.raises(BrokenImage, match="its size changed"):
        load_image(sample, (0, 0))


def test_a_random_window_follows_from_seed_and_name_alone(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise((900, 64)).save(tmp_path / name)
    first, second = (sample_of(tmp_path / name, crop_style="random") for name in ("a.png", "b.png"))
    assert crop_window(first, 1) == crop_window(first, 1)
    assert len({crop_window(first, seed) for seed in range(20)}) > 10
    assert any(crop_window(first, seed) != crop_window(second, seed) for seed in range(5))


def test_random_numbers_are_spread_evenly() -> None:
    values = [random_numbers(f"file {number}", "test")[0] for number in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.02)


def test_random_numbers_are_the_same_on_every_machine() -> None:
    assert random_numbers("a.png", "window 1") == random_numbers("a.png", "window 1")
    assert random_numbers("a.png", "window 1") != random_numbers("a.png", "window 2")

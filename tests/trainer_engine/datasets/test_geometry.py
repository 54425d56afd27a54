"""Sizes: the table of the format, and what must hold for every image there could be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.datasets import geometry
from trainer_engine.datasets.geometry import Size

EDGES = st.integers(1, 12_000)
SIZES = st.tuples(EDGES, EDGES)
ALIGNMENTS = st.sampled_from([8, 16, 32, 64])
UNITS = st.sampled_from(
    [("area", 0.25), ("area", 0.5), ("area", 1.0), ("area", 3.3), ("pixel", 512.0), ("pixel", 1000.0), ("pixel_area", 768.0)]
)


@pytest.mark.parametrize(
    ("megapixels", "edge"),
    [
        (0.25, 512),
        (0.262144, 512),
        (0.5, 768),
        (0.54, 768),
        (1.0, 1024),
        (1.048576, 1024),
        (2.0, 1536),
        (4.0, 2048),
        (0.589824, 768),
        (3.0, 1728),
    ],
)
def test_squares_have_their_customary_edges(megapixels: float, edge: int) -> None:
    assert geometry.target_size(1.0, megapixels, "area", 64) == (edge, edge)


@pytest.mark.parametrize(
    ("aspect", "resolution", "unit", "expected"),
    [
        (1.5, 1.0, "area", (1280, 832)),
        (0.67, 1.0, "area", (832, 1280)),
        (1.78, 0.5, "area", (960, 512)),
        (1.5, 0.25, "area", (640, 448)),
        (1.5, 1024, "pixel_area", (1280, 832)),
        (1.0, 1024, "pixel_area", (1024, 1024)),
        (1.5, 512, "pixel", (768, 512)),
        (0.67, 512, "pixel", (512, 768)),
        (1.0, 1000, "pixel", (1024, 1024)),
        (100.0, 1.0, "area", (10240, 128)),
    ],
)
def test_each_unit_gives_the_size_of_the_format(aspect: float, resolution: float, unit: str, expected: Size) -> None:
    assert geometry.target_size(aspect, resolution, unit, 64) == expected


def test_halves_are_rounded_to_the_even_multiple() -> None:
    assert [geometry.round_to_multiple(pixels, 64) for pixels in (0, 32, 96, 160, 224)] == [64, 64, 128, 128, 256]


@given(size=SIZES, unit=UNITS, alignment=ALIGNMENTS)
def test_the_edges_of_every_target_are_multiples(size: Size, unit: tuple[str, float], alignment: int) -> None:
    target = geometry.target_size(geometry.aspect_of(size, 2), unit[1], unit[0], alignment)
    assert all(edge % alignment == 0 and edge >= alignment for edge in target)


@given(aspect=st.floats(0.25, 4.0), megapixels=st.floats(0.2, 4.0))
def test_area_targets_have_about_the_area_asked_for(aspect: float, megapixels: float) -> None:
    width, height = geometry.target_size(round(aspect, 2), megapixels, "area", 8)
    assert width * height / 1e6 == pytest.approx(megapixels, rel=0.35)


@given(size=SIZES, unit=UNITS, alignment=ALIGNMENTS, maximum=st.floats(0.1, 4), downsample=st.floats(0.1, 4))
def test_the_intermediary_covers_the_target_and_enlarges_no_more_than_that(
    size: Size, unit: tuple[str, float], alignment: int, maximum: float, downsample: float
) -> None:
    target = geometry.target_size(geometry.aspect_of(size, 2), unit[1], unit[0], alignment)
    wide, high = geometry.intermediary_size(size, target, maximum=maximum, downsample=downsample, resolution_type="area")
    assert wide >= target[0] and high >= target[1]
    needed = max(1.0, geometry.cover_scale(size, target))
    assert wide <= max(target[0], size[0] * needed + 1) and high <= max(target[1], size[1] * needed + 1)


@given(size=SIZES, unit=UNITS)
def test_without_a_downsample_size_one_edge_fits_exactly(size: Size, unit: tuple[str, float]) -> None:
    target = geometry.target_size(geometry.aspect_of(size, 2), unit[1], unit[0], 64)
    wide, high = geometry.intermediary_size(size, target, maximum=None, downsample=None, resolution_type=unit[0])
    assert wide == target[0] or high == target[1]


@given(size=st.tuples(st.integers(64, 8000), st.integers(64, 8000)))
def test_scaling_keeps_the_aspect(size: Size) -> None:
    wide, high = geometry.intermediary_size(size, (64, 64), maximum=None, downsample=None, resolution_type="area")
    assert abs(wide * size[1] - high * size[0]) <= max(size)


def test_only_images_above_the_maximum_are_brought_to_the_downsample_size() -> None:
    limits = {"maximum": 4.0, "downsample": 2.25, "resolution_type": "area"}
    assert geometry.intermediary_size((3000, 3000), (1024, 1024), **limits) == (1500, 1500)
    assert geometry.intermediary_size((2000, 2000), (1024, 1024), **limits) == (1024, 1024)


def test_a_downsample_size_below_the_target_is_enlarged_to_cover_it() -> None:
    assert geometry.intermediary_size((4000, 2000), (1024, 1024), maximum=1.0, downsample=0.25, resolution_type="area") == (2048, 1024)


def test_in_pixels_the_shorter_edge_decides() -> None:
    assert not geometry.is_larger((4000, 500), 512, "pixel")
    assert geometry.intermediary_size((4000, 2000), (512, 512), maximum=1024, downsample=768, resolution_type="pixel") == (1536, 768)


def test_pixel_area_limits_mean_the_area_of_that_square() -> None:
    assert geometry.is_larger((1100, 1000), 1024, "pixel_area")
    assert not geometry.is_larger((2000, 500), 1024, "pixel_area")


@pytest.mark.parametrize(
    ("size", "minimum", "unit", "square", "left_out"),
    [
        ((500, 500), 0.25, "area", True, False),
        ((1000, 400), 0.25, "area", False, False),
        ((1000, 400), 0.25, "area", True, True),
        ((499, 499), 0.25, "area", False, True),
        ((512, 400), 512, "pixel", False, True),
        ((512, 512), 512, "pixel", True, False),
        ((511, 513), 512, "pixel_area", False, True),
        ((10, 10), 0, "pixel", True, False),
        ((10, 10), None, "area", True, False),
    ],
)
def test_small_images_are_left_out_with_a_reason(size: Size, minimum: float | None, unit: str, square: bool, left_out: bool) -> None:
    reason = geometry.too_small(size, minimum, unit, square=square)
    assert bool(reason) is left_out
    assert not left_out or f"{size[0]}x{size[1]}" in reason


@given(
    size=SIZES,
    target=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    style=st.sampled_from(["random", "center", "corner"]),
    random_numbers=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_the_window_lies_inside_the_image(size: Size, target: Size, style: str, random_numbers: tuple[float, float]) -> None:
    intermediary = geometry.intermediary_size(size, target, maximum=None, downsample=None, resolution_type="area")
    left, top = geometry.window_offset(intermediary, target, style, random_numbers)
    assert 0 <= left <= intermediary[0] - target[0]
    assert 0 <= top <= intermediary[1] - target[1]


def test_styles_put_the_window_where_their_names_say() -> None:
    assert geometry.window_offset((100, 80), (60, 60), "corner", (0.9, 0.9)) == (0, 0)
    assert geometry.window_offset((100, 80), (60, 60), "center", (0.9, 0.9)) == (20, 10)
    assert geometry.window_offset((100, 80), (60, 60), "random", (0.0, 0.999)) == (0, 20)


@given(aspect=st.floats(0.05, 20))
def test_the_closest_aspect_is_nearest_by_ratio(aspect: float) -> None:
    choices = [0.5, 0.75, 1.0, 1.5, 2.0]
    chosen = geometry.closest_aspect(aspect, choices)
    assert all(abs(math.log(chosen / aspect)) <= abs(math.log(other / aspect)) for other in choices)


@given(draw=st.floats(0, 1, exclude_max=True))
def test_random_aspects_follow_their_weights(draw: float) -> None:
    assert geometry.chosen_aspect(draw, [0.5, 1.0], [0.25, 0.75]) == (0.5 if draw < 0.25 else 1.0)
    assert geometry.chosen_aspect(draw, [0.5, 1.0, 2.0], [0.0, 1.0, 0.0]) == 1.0


@given(size=SIZES, rounding=st.integers(1, 9))
def test_narrow_and_wide_images_are_limited_alike(size: Size, rounding: int) -> None:
    aspect = geometry.aspect_of(size, rounding)
    assert 0.01 <= aspect <= 100
    assert geometry.is_beyond_limits(size) == geometry.is_beyond_limits((size[1], size[0]))


@pytest.mark.parametrize("length", [3_000, 10_000, 1_000_000])
def test_a_panorama_is_trained_at_the_area_asked_for(length: int) -> None:
    wide, high = (geometry.target_size(geometry.aspect_of(size, 2), 1.0, "area", 64) for size in ((length, 1), (1, length)))
    assert wide == (high[1], high[0]) == (10240, 128)

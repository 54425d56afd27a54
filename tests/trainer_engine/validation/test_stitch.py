"""Inputs beside the image that was made of them."""

from __future__ import annotations

import pytest
from PIL import Image

from trainer_engine.validation.stitch import stitched

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def colours(image: Image.Image, *places: tuple[int, int]) -> list[object]:
    return [image.getpixel(place) for place in places]


@pytest.mark.parametrize(
    ("location", "size", "of_input", "of_result"),
    [
        ("left", (90, 40), (5, 20), (60, 20)),
        ("right", (90, 40), (85, 20), (30, 20)),
        ("top", (50, 65), (25, 5), (25, 50)),
        ("bottom", (50, 65), (25, 60), (25, 20)),
    ],
)
def test_the_input_is_scaled_to_the_edge_that_it_touches(
    location: str, size: tuple[int, int], of_input: tuple[int, int], of_result: tuple[int, int]
) -> None:
    result, given = Image.new("RGB", (50, 40), RED), Image.new("RGB", (20, 20) if location in ("left", "right") else (20, 10), BLUE)
    joined = stitched(result, [given], location)
    assert isinstance(joined, Image.Image) and joined.size == size
    assert colours(joined, of_input, of_result) == [BLUE, RED]


def test_several_inputs_stand_in_their_order() -> None:
    joined = stitched(Image.new("RGB", (10, 10), RED), [Image.new("RGB", (10, 10), BLUE), Image.new("L", (20, 10), 255)], "left")
    assert isinstance(joined, Image.Image) and joined.size == (40, 10)
    assert colours(joined, (5, 5), (20, 5), (35, 5)) == [BLUE, (255, 255, 255), RED]


def test_each_frame_of_a_clip_has_the_input() -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in (RED, GREEN)]
    joined = stitched(frames, [Image.new("RGB", (10, 10), BLUE)], "right")
    assert not isinstance(joined, Image.Image)
    assert [colours(frame, (5, 5), (15, 5)) for frame in joined] == [[RED, BLUE], [GREEN, BLUE]]


def test_a_result_without_inputs_stays_as_it_is() -> None:
    result = Image.new("RGB", (10, 10), RED)
    assert stitched(result, [], "left") is result

"""What a generator of conditioning images offers. A new one is a file in this folder that lists its ``GENERATORS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer_engine.config.dataset_tables import GeneratorSpec
from trainer_engine.config.json_fields import WrongValue

if TYPE_CHECKING:
    from PIL import Image


class Wrong(NamedTuple):
    """A field of a generator that does not fit the others."""

    field: str
    message: str
    """Continues a sentence that starts with the name of the field."""
    expected: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Generator(GeneratorSpec):
    """The declaration of a generator."""

    make: Callable[[Image.Image, Any, int], Image.Image]
    """(RGB image, its ``fields`` with their types, seed) -> an image of the same size. The same arguments give the same pixels.

    The seed depends on the content of the image and on the fields. Large libraries are imported inside."""
    contradictions: Callable[[Any], Iterator[Wrong]] = lambda fields: iter(())
    """The problems of its fields among each other."""
    version: int = 1
    """Increases when the same arguments give other pixels, so that the files are made again."""


def numbers_in(text: str) -> tuple[float, ...]:
    """Returns the numbers of a list that is written as ``10,20``. Raises WrongValue."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise WrongValue("is not a list of numbers", code="not_a_list") from error


def words_in(text: str) -> tuple[str, ...]:
    """Returns the words of a list that is written as ``one,two``, in lower case."""
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def qualities(field: str, text: str, count: int | None = None) -> Iterator[Wrong]:
    """Checks a list of JPEG qualities, of ``count`` numbers if that is given, the smaller one first."""
    expected = f"{count} whole numbers from 1 to 100, the smaller one first" if count else "whole numbers from 1 to 100"
    try:
        found: Sequence[float] = numbers_in(text)
    except WrongValue:
        found = ()
    if not found or any(not 1 <= one <= 100 or one != int(one) for one in found):
        yield Wrong(field, "is not a list of JPEG qualities", expected)
    elif count and (len(found) != count or list(found) != sorted(found)):
        yield Wrong(field, f"is not a range: {text}", expected)

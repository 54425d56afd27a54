"""Simple shapes for the demo's images: skies, discs, ridges, waves, houses. Coordinates are fractions, (0, 0) is top left."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
SUPERSAMPLING = 3


class Canvas:
    """An image of (width, height) pixels, drawn larger and scaled down for smooth edges."""

    def __init__(self, size: tuple[int, int], dice: random.Random) -> None:
        self.size = size
        self.dice = dice
        self.width, self.height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.image = Image.new("RGB", (self.width, self.height))
        self.pen = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.width, y * self.height

    def gradient(self, top: Colour, bottom: Colour, start: float = 0.0, end: float = 1.0) -> None:
        """A vertical gradient from one colour to another between two heights."""
        first, last = round(start * self.height), round(end * self.height)
        for y in range(first, last):
            self.pen.line([(0, y), (self.width, y)], fill=mix(top, bottom, (y - first) / max(1, last - first - 1)))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """The radius is a fraction of the shorter side."""
        reach = radius * min(self.width, self.height)
        left, top = self.at(x, y)
        self.pen.ellipse([left - reach, top - reach, left + reach, top + reach], fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([self.at(x, y) for x, y in points], fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.shape([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ridge(self, height: float, roughness: float, colour: Colour, peaks: int = 5) -> None:
        """Mountains or hills across the image; the area below has their colour."""
        points = [(0.0, 1.0)]
        for index in range(peaks * 2 + 1):
            lift = roughness * self.dice.uniform(0.5, 1.0) if index % 2 else 0.0
            points.append((index / (peaks * 2), height - lift))
        self.shape([*points, (1.0, 1.0)], colour)

    def glints(self, count: int, top: float, bottom: float, colour: Colour, length: float = 0.08) -> None:
        """Short horizontal strokes: waves, or light on water."""
        for _ in range(count):
            x, y = self.dice.random(), self.dice.uniform(top, bottom)
            reach = length * self.dice.uniform(0.4, 1.0) * (0.4 + y)
            self.pen.line([self.at(x - reach, y), self.at(x + reach, y)], fill=colour, width=max(1, self.height // 160))

    def dots(self, count: int, top: float, bottom: float, colour: Colour, radius: float) -> None:
        """Stars, snow, or flowers."""
        for _ in range(count):
            self.disc(self.dice.random(), self.dice.uniform(top, bottom), radius * self.dice.uniform(0.5, 1.0), colour)

    def fir(self, x: float, foot: float, height: float, colour: Colour) -> None:
        """A tree of three triangles."""
        for step in range(3):
            top = foot - height * (1.0 - 0.24 * step)
            low = foot - height * (0.52 - 0.26 * step)
            reach = height * (0.16 + 0.07 * step)
            self.shape([(x, top), (x - reach, low), (x + reach, low)], colour)

    def house(self, x: float, foot: float, size: float, wall: Colour, roof: Colour, light: Colour) -> None:
        self.box(x - size / 2, foot - size * 0.7, x + size / 2, foot, wall)
        self.shape([(x - size * 0.62, foot - size * 0.7), (x + size * 0.62, foot - size * 0.7), (x, foot - size * 1.25)], roof)
        self.box(x - size * 0.12, foot - size * 0.42, x + size * 0.12, foot - size * 0.12, light)

    def boat(self, x: float, water: float, size: float, hull: Colour, sail: Colour) -> None:
        deck = [
            (x - size, water - size * 0.22),
            (x + size, water - size * 0.22),
            (x + size * 0.6, water + 0.02),
            (x - size * 0.6, water + 0.02),
        ]
        self.shape(deck, hull)
        self.shape([(x, water - size * 1.7), (x, water - size * 0.3), (x + size * 0.9, water - size * 0.3)], sail)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """A blend of two colours; ``share`` 0 is the first, 1 the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue

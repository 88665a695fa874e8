"""Outlines and colours: what can be drawn, each under exactly one name."""

from __future__ import annotations

import math
from random import Random

Point = tuple[float, float]
Color = tuple[int, int, int]

# How often a shape is drawn. A square is also a rectangle, so it is rare, and then upright.
SHAPES = {
    "circle": 3, "triangle": 3, "rectangle": 3, "square": 0.4, "star": 1, "diamond": 1, "pentagon": 1,
    "hexagon": 1, "ellipse": 1, "cross": 1, "ring": 1, "heart": 1, "line": 1,
}  # fmt: skip
# Below this many pixels across (at 84 pixels) corners are lost and the name could not be told.
SMALLEST = {
    "circle": 11,
    "pentagon": 26,
    "hexagon": 30,
    "ellipse": 18,
    "ring": 18,
    "heart": 18,
    "star": 18,
    "line": 24,
}

# Each name covers what lies between its examples; none is claimed by two names.
COLORS: dict[str, list[Color]] = {
    "black": [(0, 0, 0), (28, 28, 28)],
    "gray": [(112, 112, 112), (128, 128, 128), (150, 150, 150)],
    "white": [(255, 255, 255), (244, 244, 244)],
    "red": [(255, 0, 0), (225, 15, 15), (235, 40, 45)],
    "green": [(0, 128, 0), (30, 160, 40), (50, 205, 60)],
    "blue": [(0, 0, 255), (30, 70, 230), (20, 40, 190)],
    "yellow": [(255, 255, 0), (250, 220, 20), (240, 230, 60)],
    "orange": [(255, 140, 0), (255, 128, 20), (245, 150, 40)],
    "purple": [(128, 0, 128), (120, 30, 180), (145, 40, 160)],
    "pink": [(255, 150, 185), (255, 175, 200), (255, 105, 180)],
    "brown": [(165, 42, 42), (139, 69, 19), (120, 72, 40)],
    "teal": [(0, 128, 128), (10, 140, 135), (0, 115, 120)],
    "cyan": [(0, 255, 255), (30, 230, 240), (70, 240, 240)],
}


def pick_color(rng: Random, name: str) -> Color:
    """A colour between the examples of `name`, moved by at most 6 per channel."""
    weights = [rng.random() + 1e-6 for _ in COLORS[name]]
    total = sum(weights)
    mixed = (sum(w * c[i] for w, c in zip(weights, COLORS[name], strict=True)) / total for i in range(3))
    # One step for all channels of a gray, so that it does not turn into a tint.
    together = rng.uniform(-6, 6)
    even = name in ("black", "gray", "white")
    red, green, blue = (_byte(value + (together if even else rng.uniform(-6, 6))) for value in mixed)
    return red, green, blue


def outline(rng: Random, shape: str) -> tuple[list[Point], list[Point]]:
    """Outer corners and the corners of the hole (mostly none), turned, within a circle of radius 1."""
    hole: list[Point] = []
    turn = rng.uniform(0, 2 * math.pi)
    if shape in ("circle", "ring"):
        points = _regular(48)
        if shape == "ring":
            width = rng.uniform(0.5, 0.68)
            hole = [(x * width, y * width) for x, y in points]
    elif shape == "triangle":
        points = _triangle(rng)
    elif shape == "rectangle":
        points, turn = _box(rng.uniform(1.25, 2.8)), rng.choice((0.0, math.pi / 2, turn))
    elif shape == "square":
        points, turn = _box(1.0), rng.uniform(-0.1, 0.1)
    elif shape == "line":
        points = _box(rng.uniform(7, 11))
    elif shape == "diamond":
        width = rng.uniform(0.5, 0.66)
        points, turn = [(0, -1), (width, 0), (0, 1), (-width, 0)], rng.uniform(-0.12, 0.12)
    elif shape == "ellipse":
        flat = rng.uniform(0.4, 0.64)
        points = [(x, y * flat) for x, y in _regular(48)]
    elif shape == "star":
        inner = rng.uniform(0.38, 0.48)
        points = [(x * r, y * r) for i, (x, y) in enumerate(_regular(10)) for r in [inner if i % 2 else 1]]
    elif shape == "cross":
        points, turn = _cross(rng.uniform(0.22, 0.34)), rng.uniform(-0.15, 0.15)
    elif shape == "heart":
        points, turn = _heart(), rng.uniform(-0.35, 0.35)
    else:
        points = _regular({"pentagon": 5, "hexagon": 6}[shape])
    return [_turned(p, turn) for p in points], [_turned(p, turn) for p in hole]


def _regular(corners: int) -> list[Point]:
    steps = [2 * math.pi * i / corners for i in range(corners)]
    return [(math.sin(angle), -math.cos(angle)) for angle in steps]


def _triangle(rng: Random) -> list[Point]:
    """Corners on the circle with every angle at least 36 degrees."""
    spare = math.pi - 3 * math.radians(36)
    first, second = sorted((rng.uniform(0, spare), rng.uniform(0, spare)))
    angles = [2 * (math.radians(36) + part) for part in (first, second - first)]
    at = [0.0, angles[0], angles[0] + angles[1]]
    return [(math.sin(angle), -math.cos(angle)) for angle in at]


def _box(aspect: float) -> list[Point]:
    width, height = aspect / math.hypot(aspect, 1), 1 / math.hypot(aspect, 1)
    return [(-width, -height), (width, -height), (width, height), (-width, height)]


def _cross(half: float) -> list[Point]:
    quarter = [(half, -half), (half, -0.94), (-half, -0.94)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(y, -x) for x, y in quarter]
    return points


def _heart() -> list[Point]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -(y + 2.5) / 16))
    return points


def _turned(point: Point, angle: float) -> Point:
    x, y = point
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)


def _byte(value: float) -> int:
    return max(0, min(255, round(value)))

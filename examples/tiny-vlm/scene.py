"""A scene: things with a name, a colour and a place on a background; and its picture."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from random import Random

from PIL import Image, ImageDraw, ImageFont
from shapes import COLORS, SHAPES, SMALLEST, Color, Point, outline, pick_color

FINE = 4  # drawn this much larger, then reduced
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"


@dataclass
class Thing:
    """A shape or a character. `x`, `y`, `radius` are fractions of the picture's side."""

    name: str
    color: str
    rgb: Color
    x: float
    y: float
    radius: float
    outer: list[Point] = field(default_factory=list)
    hole: list[Point] = field(default_factory=list)
    turn: float = 0.0

    @property
    def is_character(self) -> bool:
        return len(self.name) == 1

    @property
    def place(self) -> str | None:
        """One of nine places ("top left", "center", "right", ...), or None where two could be meant."""
        column, row = _third(self.x), _third(self.y)
        if column is None or row is None:
            return None
        across, down = ("left", "", "right")[column], ("top", "", "bottom")[row]
        return f"{down} {across}".strip() or "center"


@dataclass
class Scene:
    things: list[Thing]
    background: Color
    size: int
    smooth: bool
    grain: float

    def reading_order(self) -> list[Thing]:
        return sorted(self.things, key=lambda thing: (int(thing.y * 3), thing.x))


def single(rng: Random) -> Scene:
    """One shape anywhere, from small to nearly the whole picture."""
    shape, color = pick_shape(rng), rng.choice(list(COLORS))
    radius = rng.uniform(max(12, SMALLEST.get(shape, 14)), 62) / 2 / 84
    return _scene(rng, [_shape(rng, shape, color, *_anywhere(rng, radius), radius)])


def several(rng: Random) -> Scene:
    """Two to four shapes apart from one another, shape and colour of each drawn on its own."""
    places = _places(rng, rng.choice((2, 2, 3, 3, 4)))
    things = [
        _shape(rng, pick_shape(rng, small=r < 0.15), rng.choice(list(COLORS)), x, y, r) for x, y, r in places
    ]
    return _scene(rng, things)


def crowd(rng: Random) -> Scene:
    """One to six shapes that share shape, colour, or both: something to count."""
    shape, color = pick_shape(rng, small=True), rng.choice(list(COLORS))
    shares = rng.choice(("both", "shape", "color"))
    few = rng.sample(list(COLORS), 2)
    kinds = [pick_shape(rng, small=True) for _ in range(2)]
    things = []
    for x, y, radius in _places(rng, rng.randint(1, 6), cells=3):
        this_shape = rng.choice(kinds) if shares == "color" else shape
        this_color = rng.choice(few) if shares == "shape" else color
        things.append(_shape(rng, this_shape, this_color, x, y, radius))
    return _scene(rng, things)


def text(rng: Random) -> Scene:
    """One large character, or two to four in a row of one colour."""
    alphabet, length = rng.choice((LETTERS, DIGITS)), rng.choice((1, 1, 1, 2, 3, 4))
    color = rng.choice(list(COLORS))
    rgb = pick_color(rng, color)
    radius = rng.uniform(11, 34) / 84 if length == 1 else rng.uniform(0.75, 1) * 0.48 / length
    x, y = _anywhere(rng, radius) if length == 1 else (0.5, rng.uniform(radius + 0.05, 0.95 - radius))
    turn = rng.uniform(-18, 18) if length == 1 else 0.0
    step = min(2 * radius, 0.96 / length)
    left = x - step * (length - 1) / 2
    names = [rng.choice(alphabet) for _ in range(length)]
    things = [Thing(name, color, rgb, left + i * step, y, radius, turn=turn) for i, name in enumerate(names)]
    return _scene(rng, things)


def signs(rng: Random) -> Scene:
    """Two or three characters, each of its own colour and place."""
    alphabet = rng.choice((LETTERS, DIGITS))
    things = []
    for x, y, radius in _places(rng, rng.choice((2, 2, 3))):
        color = rng.choice(list(COLORS))
        turn = rng.uniform(-15, 15)
        things.append(Thing(rng.choice(alphabet), color, pick_color(rng, color), x, y, radius, turn=turn))
    return _scene(rng, things)


def pick_shape(rng: Random, *, small: bool = False) -> str:
    names = [name for name in SHAPES if not small or SMALLEST.get(name, 0) < 20]
    return rng.choices(names, [SHAPES[name] for name in names])[0]


def picture(scene: Scene, rng: Random) -> Image.Image:
    """Draw it: RGB, `scene.size` pixels square."""
    image = Image.new("RGB", (scene.size, scene.size), scene.background)
    for thing in scene.things:
        _stamp(image, thing, scene.smooth)
    if scene.grain:
        speckles = Image.frombytes("RGB", image.size, rng.randbytes(3 * scene.size**2))
        image = Image.blend(image, speckles, scene.grain)
    return image


def _stamp(image: Image.Image, thing: Thing, smooth: bool) -> None:
    side = image.width
    reach = math.ceil(thing.radius * side) + 1
    left, top = int(thing.x * side) - reach, int(thing.y * side) - reach
    scale = FINE if smooth else 1
    mask = Image.new("L", ((2 * reach + 2) * scale,) * 2)
    center = ((thing.x * side - left) * scale, (thing.y * side - top) * scale)
    radius = thing.radius * side * scale
    pen = ImageDraw.Draw(mask)
    if thing.is_character:
        font = _font(max(8, round(radius * 2.1)))
        pen.text(center, thing.name, 255, font, anchor="mm", stroke_width=radius * 0.06)
        mask = mask.rotate(thing.turn, Image.Resampling.BILINEAR, center=center)
    else:
        for points, value in ((thing.outer, 255), (thing.hole, 0)):
            if points:
                pen.polygon([(center[0] + x * radius, center[1] + y * radius) for x, y in points], value)
    if smooth:
        mask = mask.resize((mask.width // FINE,) * 2, Image.Resampling.LANCZOS)
    image.paste(thing.rgb, (left, top), mask)


@functools.lru_cache(maxsize=512)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise SystemExit("this Pillow has no FreeType; install Pillow from a wheel")
    return font


def _shape(rng: Random, shape: str, color: str, x: float, y: float, radius: float) -> Thing:
    outer, hole = outline(rng, shape)
    return Thing(shape, color, pick_color(rng, color), x, y, radius, outer, hole)


def _scene(rng: Random, things: list[Thing]) -> Scene:
    size = rng.choices((84, 64, 96, 112), (60, 25, 8, 7))[0]
    grain = rng.uniform(0.02, 0.08) if rng.random() < 0.12 else 0.0
    return Scene(things, _background(rng, [thing.rgb for thing in things]), size, rng.random() < 0.8, grain)


def _background(rng: Random, colors: list[Color]) -> Color:
    """Mostly a light tint, now and then any colour, far enough from all that is drawn on it."""
    for attempt in range(400):
        # A light ground does not suit white things; after some tries anything that can be seen will do.
        light = rng.random() < 0.75 and attempt < 40
        low = 208 if light else 0
        ground = rng.randint(low, 255), rng.randint(low, 255), rng.randint(low, 255)
        if all(math.dist(ground, color) > (85 if attempt < 200 else 50) for color in colors):
            return ground
    return (64, 64, 72)


def _anywhere(rng: Random, radius: float) -> Point:
    return rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)


def _places(rng: Random, count: int, cells: int = 2) -> list[tuple[float, float, float]]:
    """`count` places (x, y, radius) that cannot overlap, each with a clear name."""
    if count == 2 and cells == 2 and rng.random() < 0.5:
        pairs = rng.choice(([(0.25, 0.5), (0.75, 0.5)], [(0.5, 0.25), (0.5, 0.75)]))
    elif count == 3 and cells == 2 and rng.random() < 0.3:
        cells, pairs = 3, rng.choice(([(k, 0.5) for k in _THIRDS], [(0.5, k) for k in _THIRDS]))
    else:
        lines = (0.25, 0.75) if cells == 2 else _THIRDS
        pairs = rng.sample([(x, y) for x in lines for y in lines], count)
    largest = 0.5 / cells - 0.03
    lowest = 0.62 if cells == 2 else 0.75
    return [
        (x + rng.uniform(-0.025, 0.025), y + rng.uniform(-0.025, 0.025), largest * rng.uniform(lowest, 1))
        for x, y in pairs
    ]


_THIRDS = (1 / 6, 0.5, 5 / 6)


def _third(value: float) -> int | None:
    for index, (low, high) in enumerate(((-1, 0.29), (0.38, 0.62), (0.71, 2))):
        if low <= value <= high:
            return index
    return None

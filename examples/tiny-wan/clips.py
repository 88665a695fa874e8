"""What a clip shows, the words for it, and its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

SIZE, FRAMES, FPS = 64, 17, 8
BOX = 24  # pixels of a digit's square, cut from the middle of MNIST's 28
SPEED = 2  # pixels a frame, for all: the digit wanders 32 pixels
TRAVEL = SPEED * (FRAMES - 1)
APART = 16  # pixels at least between the corners of two digits, in every frame, so that both stay legible

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y points down


@dataclass(frozen=True)
class Mover:
    """A digit, where it goes, and the corner of its square in the first frame."""

    digit: int
    direction: str
    x: int
    y: int

    def corner(self, frame: int) -> tuple[int, int]:
        across, down = DIRECTIONS[self.direction]
        return self.x + across * SPEED * frame, self.y + down * SPEED * frame


Pair = tuple[int, str]


def withheld(pairs: list[Pair]) -> bool:
    """Whether these two digits with these directions never occur in training (a tenth of all combinations)."""
    key = " ".join(f"{digit}{direction}" for digit, direction in sorted(pairs))
    return len(pairs) > 1 and Random(f"withheld {key}").random() < 0.1


def subjects(rng: Random, count: int) -> list[Pair]:
    return [(rng.randrange(10), rng.choice(sorted(DIRECTIONS))) for _ in range(count)]


def start(rng: Random, direction: str) -> tuple[int, int]:
    """A corner from which the whole way stays inside the picture."""
    room = SIZE - BOX
    along = [rng.randint(0, room), rng.randint(0, room)]
    for axis, step in enumerate(DIRECTIONS[direction]):
        if step:
            along[axis] = rng.randint(0, room - TRAVEL) + (TRAVEL if step < 0 else 0)
    return along[0], along[1]


def place(rng: Random, pairs: list[Pair]) -> list[Mover]:
    """Starts drawn until no two digits cover each other in any frame."""
    while True:
        movers = [Mover(digit, direction, *start(rng, direction)) for digit, direction in pairs]
        if len(movers) < 2 or all(_distance(*movers, frame) >= APART for frame in range(FRAMES)):
            return movers


def _distance(first: Mover, second: Mover, frame: int) -> int:
    one, other = first.corner(frame), second.corner(frame)
    return max(abs(one[0] - other[0]), abs(one[1] - other[1]))


def scene(rng: Random) -> list[Mover]:
    """One digit (45 %) or two, with the combinations of the exam left out."""
    count = 1 if rng.random() < 0.45 else 2
    while withheld(pairs := subjects(rng, count)):
        pass
    return place(rng, pairs)


def draw(movers: list[Mover], digits: list[np.ndarray], rng: Random) -> np.ndarray:
    """uint8 [FRAMES, SIZE, SIZE], grey: every mover with one handwritten picture of its digit, white on black."""
    clip = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    cut = (28 - BOX) // 2
    for mover in movers:
        pictures = digits[mover.digit]
        picture = pictures[rng.randrange(len(pictures))][cut:-cut, cut:-cut]
        for frame in range(FRAMES):
            x, y = mover.corner(frame)
            window = clip[frame, y : y + BOX, x : x + BOX]
            np.maximum(window, picture, out=window)
    return clip


def plain(pairs: list[Pair]) -> str:
    """The form used in documents and in the exam: "a three moving left and an eight moving up"."""
    return " and ".join(
        f"{'an' if digit == 8 else 'a'} {DIGITS[digit]} moving {direction}" for digit, direction in pairs
    )


def worded(rng: Random, pairs: list[Pair]) -> str:
    """The plain form six times out of ten, otherwise some other way to say it."""
    if rng.random() < 0.6:
        return plain(pairs)
    parts = []
    for digit, direction in pairs:
        name = rng.choice([DIGITS[digit], DIGITS[digit], str(digit)])
        subject = rng.choice([f"a {name}", f"the {name}", f"the digit {name}", f"a digit {name}", name])
        verb = rng.choice(["moving", "moving", "going", "moves", "goes", "that moves"])
        where = rng.choice([direction, direction, _longer(direction)])
        # A word that is not in the vocabulary, so that such words do little harm.
        strange = rng.choice(["<unk> ", "", "", "", "", "", "", ""])
        parts.append(f"{subject} {strange}{verb} {where}")
    return rng.choice([" and ", " and ", ", "]).join(parts)


def _longer(direction: str) -> str:
    return f"to the {direction}" if direction in ("left", "right") else f"{direction}wards"

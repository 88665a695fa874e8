"""Small training files with drawn pictures: several sizes, several images, no image, several turns, a clip."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black")


def draw(path: Path, width: int, height: int, colour: str, seed: int) -> str:
    """A coloured square somewhere on noise; returns the file's name."""
    picture = Image.new("RGB", (width, height), (seed * 37 % 256, seed * 91 % 256, 200))
    place = ImageDraw.Draw(picture)
    left, top = seed * 13 % (width // 2), seed * 29 % (height // 2)
    place.rectangle((left, top, left + width // 3, top + height // 3), fill=colour)
    picture.save(path)
    return path.name


def write_data(folder: Path, count: int = 12, *, seed: int = 0, name: str = "data.jsonl") -> Path:
    """`count` rows of unequal lengths with their pictures; returns the data file."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    rows = [_row(folder, index, chance) for index in range(count)]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(folder: Path, index: int, chance: random.Random) -> dict[str, Any]:
    colour = chance.choice(COLOURS)

    def picture(extra: str = "") -> str:
        size = (chance.choice((56, 84, 112)), chance.choice((56, 84)))
        return draw(folder / f"{index}{extra}.png", *size, colour, index + 1)

    def turn(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    kind = index % 4
    if kind == 0:
        return {"messages": turn("<image>what shape?", colour), "images": [picture()]}
    if kind == 1:
        answer = f"a {colour} square on the left, " * (1 + index % 3)
        return {
            "messages": turn("<image>and <image> compare", answer),
            "images": [picture("a"), picture("b")],
        }
    if kind == 2:
        return {"messages": turn("what does the fox do?", "jumps over the lazy dog")}
    messages = turn("<image>what is it?", f"a {colour} square") + turn("is it blue?", "yes" * (1 + index % 2))
    return {"messages": messages, "images": [picture()]}

"""Draw pictures with questions to pre-train a small vision tower on.

    python examples/tiny-vlm/draw.py OUT --samples 60000 --seed 0
    python examples/tiny-vlm/draw.py OUT --samples 1000 --split held-out

Writes OUT/data.jsonl and OUT/pictures/. The same arguments give the same files; `held-out` never shares a
random stream with `train`, and asks one question a picture so that answers can be scored by kind.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import questions
import scene
from PIL import Image

FOLDER_SIZE = 1000

# Share, how a scene is made, how it is asked about.
MakeScene = Callable[[Random], scene.Scene]
MakeTurns = Callable[[Random, scene.Scene], list[questions.Turn]]
MIX: list[tuple[float, MakeScene, MakeTurns]] = [
    (0.45, scene.single, questions.single_turns),
    (0.27, scene.several, questions.several_turns),
    (0.08, scene.crowd, questions.crowd_turns),
    (0.12, scene.text, questions.text_turns),
    (0.08, scene.signs, questions.sign_turns),
]


def sample(split: str, seed: int, index: int) -> tuple[scene.Scene, list[questions.Turn], Image.Image]:
    """Scene, turns and picture number `index`: a function of the arguments alone."""
    rng = Random(f"{split} {seed} {index}")
    _, make_scene, make_turns = rng.choices(MIX, [share for share, _, _ in MIX])[0]
    made = make_scene(rng)
    turns = make_turns(rng, made)
    if split == "held-out":
        turns = [rng.choice(turns)]
    return made, turns, scene.picture(made, rng)


def to_row(turns: list[questions.Turn], picture: str) -> dict[str, object]:
    """A row of Sightline's conversation format; the picture comes before the first question."""
    messages = []
    for number, (_, question, answer) in enumerate(turns):
        messages.append({"role": "user", "content": question if number else f"<image>{question}"})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "images": [picture], "kind": "+".join(kind for kind, _, _ in turns)}


def draw(output: Path, samples: int, seed: int, split: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "data.jsonl.partial"
    with lines.open("w", encoding="utf-8") as file:
        for index in range(samples):
            _, turns, image = sample(split, seed, index)
            name = f"pictures/{index // FOLDER_SIZE:03d}/{index:06d}.png"
            path = output / name
            if index % FOLDER_SIZE == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                print(f"{index}/{samples}", flush=True)
            image.save(path, compress_level=1)
            file.write(json.dumps(to_row(turns, name)) + "\n")
    # Named at the end, so that an interrupted run is not taken for the whole.
    lines.replace(output / "data.jsonl")
    print(f"{samples} pictures with questions in {output / 'data.jsonl'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw pictures with questions for pre-training.")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=("train", "held-out"), default="train")
    arguments = parser.parse_args()
    draw(arguments.output, arguments.samples, arguments.seed, arguments.split)


if __name__ == "__main__":
    main()

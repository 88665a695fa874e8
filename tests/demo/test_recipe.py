"""The drawn pictures: the same for the same arguments, and every answer true of the pixels."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo.recipe import load_script
from sightline.data.vision import patch_image
from sightline.data.vision_spec import VisionSpec

draw, questions, scenes, shapes = (load_script(name) for name in ("draw", "questions", "scene", "shapes"))
school = load_script("school")
NEGATIONS = re.compile(r"\b(absent|without|lack|not|missing)\b")


def many(make_scene: Any, make_turns: Any, count: int, seed: str = "test") -> list[tuple[Any, Any, Random]]:
    found = []
    for index in range(count):
        rng = Random(f"{seed} {index}")
        made = make_scene(rng)
        found.append((made, make_turns(rng, made), rng))
    return found


def inside(scene: Any, thing: Any) -> tuple[int, int]:
    """A pixel that the thing surely covers: the middle of its corners, or of a ring's band."""
    if thing.hole:
        x, y = (thing.outer[0][0] + thing.hole[0][0]) / 2, (thing.outer[0][1] + thing.hole[0][1]) / 2
    else:
        x = sum(point[0] for point in thing.outer) / len(thing.outer)
        y = sum(point[1] for point in thing.outer) / len(thing.outer)
    side = scene.size
    return int((thing.x + x * thing.radius) * side), int((thing.y + y * thing.radius) * side)


def nearest_name(rgb: tuple[int, ...]) -> str:
    def distance(name: str) -> float:
        return min(math.dist(rgb, example) for example in shapes.COLORS[name])

    return min(shapes.COLORS, key=distance)


def regions(image: Image.Image, background: tuple[int, int, int]) -> int:
    """How many connected patches differ clearly from the background."""
    pixels, side = image.load(), image.width
    todo = {(x, y) for x in range(side) for y in range(side) if math.dist(pixels[x, y], background) > 25}
    count = 0
    while todo:
        count += 1
        edge = [todo.pop()]
        while edge:
            x, y = edge.pop()
            for step in [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if step in todo:
                    todo.remove(step)
                    edge.append(step)
    return count


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw.draw(tmp_path / name, 12, 3, "train")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 13
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_seeds_and_splits_share_no_pictures() -> None:
    seen = [draw.sample(split, seed, index)[2].tobytes() for index in range(20)
            for split, seed in (("train", 0), ("train", 1), ("held-out", 0))]  # fmt: skip
    assert len(set(seen)) == 60


def test_rows_are_ours_and_held_out_rows_ask_one_thing(tmp_path: Path) -> None:
    from sightline.data.rows import load_conversations

    draw.draw(tmp_path, 30, 0, "held-out")
    conversations = load_conversations(tmp_path / "data.jsonl")
    assert len(conversations) == 30
    kinds = {"shape", "color", "yes-no", "count", "position", "letter", "digit", "caption"}
    for conversation in conversations:
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        assert len(conversation.images) == 1
        assert conversation.extra["kind"] in kinds
    row = json.loads((tmp_path / "data.jsonl").read_text().splitlines()[0])
    assert row["messages"][0]["content"].startswith("<image>")


def test_a_colour_never_looks_like_another_name() -> None:
    rng = Random(0)
    for name in shapes.COLORS:
        for _ in range(300):
            assert nearest_name(shapes.pick_color(rng, name)) == name


@pytest.mark.parametrize("make", [scenes.single, scenes.several, scenes.crowd])
def test_pixels_have_the_named_colours_and_stand_out(make: Any) -> None:
    for index in range(60):
        rng = Random(f"pixels {index}")
        scene = make(rng)
        scene.grain = 0.0
        image = scenes.picture(scene, rng)
        for thing in scene.things:
            pixel = image.getpixel(inside(scene, thing))
            assert math.dist(pixel, thing.rgb) < 12, (index, thing)
            assert nearest_name(pixel) == thing.color
            assert math.dist(thing.rgb, scene.background) > 50


def test_things_are_apart_whole_and_counted() -> None:
    for index in range(40):
        rng = Random(f"count {index}")
        scene = (scenes.several, scenes.crowd)[index % 2](rng)
        scene.grain = 0.0
        image = scenes.picture(scene, rng)
        assert regions(image, scene.background) == len(scene.things), index
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            assert thing.place is not None


def test_single_answers_are_true_and_yes_is_as_frequent_as_no() -> None:
    answers: Counter[str] = Counter()
    for scene, turns, _ in many(scenes.single, questions.single_turns, 1500):
        thing = scene.things[0]
        for kind, question, answer in turns:
            if kind == "shape":
                assert answer == thing.name
            elif kind == "color":
                assert answer == thing.color
            elif kind == "position":
                assert answer == thing.place
            elif kind == "caption":
                assert f"{thing.color} {thing.name}" in answer
            else:
                assert answer == truth(scene, question)
                answers[answer] += 1
    assert 0.44 < answers["yes"] / answers.total() < 0.56


def truth(scene: Any, question: str) -> str:
    """Yes or no by reading the question again, word by word."""
    words = re.findall(r"[a-z]+", question.lower())
    colors = [word for word in words if word in shapes.COLORS]
    names = [word for word in words if word in shapes.SHAPES]
    there = any(
        all(color == thing.color for color in colors) and all(name == thing.name for name in names)
        for thing in scene.things
    )
    assert colors or names
    return "yes" if there != bool(NEGATIONS.search(question.lower())) else "no"


def test_answers_about_several_things_are_true() -> None:
    answers: Counter[str] = Counter()
    for scene, turns, _ in many(scenes.several, questions.several_turns, 1500):
        by_place = {thing.place: thing for thing in scene.things}
        for kind, question, answer in turns:
            asked = question.lower()
            if kind == "yes-no":
                assert answer == truth(scene, question)
                answers[answer] += 1
            elif kind == "count":
                assert answer == str(len(scene.things))
            elif kind == "color":
                words = re.findall(r"[a-z]+", asked)
                assert {thing.color for thing in scene.things if thing.name in words} == {answer}
            elif kind == "shape":
                words = re.findall(r"[a-z]+", asked)
                assert {thing.name for thing in scene.things if thing.color in words} == {answer}
            elif kind == "position":
                assert by_place[answer].name in asked
            elif kind == "caption" and len(answer.split()) == 2:
                place = max((p for p in by_place if p in asked), key=len)
                assert answer == f"{by_place[place].color} {by_place[place].name}"
            elif kind == "caption":
                for thing in scene.things:
                    assert f"{thing.color} {thing.name}" in answer
                    assert thing.place in answer
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_counts_are_true() -> None:
    for scene, turns, _ in many(scenes.crowd, questions.crowd_turns, 600):
        ((kind, question, answer),) = turns
        assert kind == "count"
        words = re.findall(r"[a-z]+", question.lower())
        colors = [word for word in words if word in shapes.COLORS]
        names = [name for name in shapes.SHAPES for word in words if word in (f"{name}s", f"{name}es")]
        expected = sum(
            all(color == thing.color for color in colors) and all(name == thing.name for name in names)
            for thing in scene.things
        )
        assert answer.split()[0] == str(expected), question


def test_letters_and_digits_are_read_in_order() -> None:
    for scene, turns, _ in many(scenes.text, questions.text_turns, 300):
        written = " ".join(thing.name for thing in scene.things)
        for kind, _, answer in turns:
            assert answer.endswith(scene.things[0].color if kind == "color" else written)
            assert kind in ("caption", "color", "digit" if written[0].isdigit() else "letter")
    for scene, turns, _ in many(scenes.signs, questions.sign_turns, 300):
        for kind, question, answer in turns:
            if kind != "caption":
                place = max((t.place for t in scene.things if t.place in question.lower()), key=len)
                (thing,) = [thing for thing in scene.things if thing.place == place]
                assert answer == (thing.color if kind == "color" else thing.name)


def test_no_answer_follows_from_an_earlier_turn() -> None:
    for scene, turns, _ in many(scenes.single, questions.single_turns, 600):
        told = ""
        for kind, question, answer in turns:
            if kind in ("shape", "color", "position"):
                assert answer not in told.split(), (scene, turns)
            told += f" {question} {answer}".lower().replace("?", "").replace(".", "")


def test_shapes_and_colours_are_drawn_independently() -> None:
    pairs = Counter((s.things[0].name, s.things[0].color) for s, _, _ in
                    many(scenes.single, questions.single_turns, 3000))  # fmt: skip
    for name in ("circle", "triangle", "rectangle"):
        row = [pairs[name, color] for color in shapes.COLORS]
        assert min(row) > 0.5 * sum(row) / len(row)


def test_school_cuts_pictures_as_the_model_does() -> None:
    spec = VisionSpec("qwen2_5_vl", min_pixels=84 * 84, max_pixels=84 * 84)
    pixels, _, _, _ = school.lesson(0, 3)
    expected, grid = patch_image(spec, Image.fromarray(pixels))
    assert grid == (1, 6, 6)
    actual = school.patches(pixels[None], torch.tensor(spec.image_mean), torch.tensor(spec.image_std))
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_school_masks_are_the_share_of_each_cell_that_is_not_ground() -> None:
    pixels = np.full((1, 84, 84, 3), 250, np.uint8)
    pixels[0, :28, 28:42] = (200, 0, 0)  # the left half of the second token
    pixels[0, 80:, 80:] = (0, 0, 0)  # the last cell of the last token
    mask = school.masks(pixels, np.array([[250, 250, 250]]))
    assert mask.shape == (1, 9, 49)
    assert mask[0, 1].view(7, 7)[0].tolist() == [1, 1, 1, 0.5, 0, 0, 0]
    assert mask[0, 8, 48] == 1
    assert mask.sum() == 7 * 3.5 + 1


def test_lessons_depend_on_seed_and_number_alone() -> None:
    one, again, other = school.lesson(1, 5), school.lesson(1, 5), school.lesson(2, 5)
    assert (one[0] == again[0]).all()
    assert one[2:] == again[2:]
    assert (one[0] != other[0]).any()

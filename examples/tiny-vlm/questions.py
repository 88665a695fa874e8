"""What can be asked about a scene, with true answers.

A turn is (kind, question, answer). Within one conversation no later answer follows from an earlier turn: each
turn takes a thing, or a property of the only thing, that no other turn speaks of.
"""

from __future__ import annotations

from random import Random

from scene import DIGITS, LETTERS, Scene, Thing, pick_shape
from shapes import COLORS

Turn = tuple[str, str, str]

CAPTION = (
    "describe the {p}.", "what is in the {p}?", "what do you see?", "caption this {p}.",
    "what does the {p} show?", "write a short caption.", "tell me what is here.",
)  # fmt: skip
LIST = (
    "list the objects.",
    "name everything.",
    "list what you see, with places.",
    "name the objects in order.",
)
SHAPE = (
    "what shape is this?", "which shape is it?", "name the shape.", "what is the shape in the {p}?", "shape?",
    "what figure is drawn?", "what shape does the {p} show?", "what form does the object have?",
)  # fmt: skip
COLOR = (
    "what color is it?", "which color?", "name the color.", "what is the color of the shape?", "color?",
    "what color does the object have?", "the shape is drawn in which color?", "what color is the figure?",
)  # fmt: skip
BOTH = ("name color and shape.", "color and shape?", "what is this?", "what is drawn here?")
SIZE = ("name size, color and shape.", "size, color, shape?", "is it small or large, and what is it?")
WHERE = ("where is it?", "where is the object?", "in which part of the {p} is it?", "where does it lie?")
THERE = (
    "is there {a}?", "do you see {a}?", "does the {p} show {a}?", "can you see {a} here?",
    "is {a} in the {p}?", "does this {p} contain {a}?", "is {a} present?",
)  # fmt: skip
ABSENT = (
    "is {a} absent?", "is the {p} without {a}?", "does the {p} lack {a}?",
    "is it true that there is not {a}?",
    "does the {p} not show {a}?", "is {a} missing from the {p}?", "is there not {a} in the {p}?",
)  # fmt: skip


def single_turns(rng: Random, scene: Scene) -> list[Turn]:
    """One shape: a caption, or one to three of its properties."""
    thing = scene.things[0]
    if rng.random() < 0.4:
        return [_single_caption(rng, thing)]
    makers = [_shape_turn, _color_turn]
    if thing.place is not None and rng.random() < 0.5:
        makers.append(_where_turn)
    count = len(makers) if rng.random() < 0.75 else 1
    makers = rng.sample(makers, count)
    return [maker(rng, thing) for maker in makers]


def several_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Some shapes: all of them listed, or questions about different ones."""
    if rng.random() < 0.6:
        return [_list_turn(rng, scene)]
    turns = []
    if rng.random() < 0.15:
        turns.append(_count_all(rng, scene))
    for thing in rng.sample(scene.things, min(len(scene.things), rng.choice((2, 2, 3)))):
        turns.append(_thing_turn(rng, scene, thing))
    return turns


def crowd_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Things to count: all of them, or those of one shape or colour."""
    shapes, colors = {t.name for t in scene.things}, {t.color for t in scene.things}
    if len(shapes) == len(colors) == 1 and rng.random() < 0.5:
        thing = scene.things[0]
        many = f"{len(scene.things)} {_plural(thing, len(scene.things))}"
        wordings = ("what is there, and how many?", "count and name the shapes.")
        return [("count", _say(rng, wordings), many)]
    roll = rng.random()
    if roll < 0.4:
        return [_count_all(rng, scene)]
    if len(shapes) > 1 or (len(colors) == 1 and roll < 0.7):
        name = rng.choice(sorted(shapes)) if rng.random() < 0.9 else pick_shape(rng)
        count = sum(thing.name == name for thing in scene.things)
        wordings = ("how many {a}?", "count the {a}.", "how many {a} are there?")
        return [("count", _say(rng, wordings, _plural(name, 2)), str(count))]
    name = rng.choice(sorted(colors)) if rng.random() < 0.9 else rng.choice(list(COLORS))
    count = sum(thing.color == name for thing in scene.things)
    asked = _say(rng, ("how many {a} shapes?", "count the {a} shapes.", "how many shapes are {a}?"), name)
    return [("count", asked, str(count))]


def text_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Characters of one colour: read them, and tell their colour."""
    things, (kind, noun) = scene.things, _character_kind(scene.things[0])
    written = " ".join(thing.name for thing in things)
    wordings = (f"what {noun} is this?", f"which {noun} do you see?", f"name the {noun}.")
    if len(things) > 1:
        wordings = (f"read the {noun}s.", "read the text.", f"which {noun}s are these?")
    read = (kind, _say(rng, wordings), written)
    some, color = (f"{noun}s" if len(things) > 1 else noun), things[0].color
    wordings = (f"what color is the {noun}?", f"in which color is the {noun} drawn?")
    color_turn = ("color", _say(rng, wordings), color)
    roll = rng.random()
    if roll < 0.3:
        first = _a(color) if len(things) == 1 else color
        return [("caption", _say(rng, CAPTION), f"{first} {some} {written}")]
    if roll < 0.5:
        return [read]
    return [read, color_turn] if rng.random() < 0.5 else [color_turn, read]


def sign_turns(rng: Random, scene: Scene) -> list[Turn]:
    """Characters of several colours: list them, or ask for some by place."""
    kind, noun = _character_kind(scene.things[0])
    if rng.random() < 0.6:
        parts = [f"{_a(thing.color)} {thing.name} {_at(thing)}" for thing in scene.reading_order()]
        return [("caption", _say(rng, CAPTION), _joined(parts))]
    turns = []
    for thing in rng.sample(scene.things, 2):
        what = f"{noun} {_at(thing)}"
        if rng.random() < 0.6:
            wordings = ("which is the {a}?", "what {a}?", "read the {a}.", "name the {a}.")
            turns.append((kind, _say(rng, wordings, what), thing.name))
        else:
            wordings = ("what color is the {a}?", "name the color of the {a}.")
            turns.append(("color", _say(rng, wordings, what), thing.color))
    return turns


def _single_caption(rng: Random, thing: Thing) -> Turn:
    """Each wording has one form of answer, so that nothing is left to guess but the picture."""
    size = _size(thing)
    roll = rng.random()
    if roll < 0.2 and size:
        return "caption", _say(rng, SIZE), f"{size} {thing.color} {thing.name}"
    if roll < 0.45:
        return "caption", _say(rng, BOTH), f"{thing.color} {thing.name}"
    where = f" {_at(thing)}" if thing.place else ""
    return "caption", _say(rng, CAPTION), f"{_a(thing.color)} {thing.name}{where}"


def _size(thing: Thing) -> str | None:
    if thing.radius < 0.14:
        return "small"
    return "large" if thing.radius > 0.27 else None


def _shape_turn(rng: Random, thing: Thing) -> Turn:
    if rng.random() < 0.75:
        return "shape", _say(rng, SHAPE), thing.name
    asked = thing.name if rng.random() < 0.5 else _other(rng, thing.name)
    return _yes_no(rng, _a(asked), asked == thing.name)


def _color_turn(rng: Random, thing: Thing) -> Turn:
    if rng.random() < 0.75:
        return "color", _say(rng, COLOR), thing.color
    asked = thing.color if rng.random() < 0.5 else _other(rng, thing.color)
    return _yes_no(rng, f"{_a(asked)} {rng.choice(('shape', 'thing', 'object'))}", asked == thing.color)


def _where_turn(rng: Random, thing: Thing) -> Turn:
    return "position", _say(rng, WHERE), str(thing.place)


def _list_turn(rng: Random, scene: Scene) -> Turn:
    things = scene.reading_order()
    if rng.random() < 0.4:
        return "caption", _say(rng, LIST), ", ".join(f"{t.color} {t.name} {t.place}" for t in things)
    return "caption", _say(rng, CAPTION), _joined([f"{_a(t.color)} {t.name} {_at(t)}" for t in things])


def _thing_turn(rng: Random, scene: Scene, thing: Thing) -> Turn:
    """A question about this thing alone."""
    only_shape = sum(other.name == thing.name for other in scene.things) == 1
    only_color = sum(other.color == thing.color for other in scene.things) == 1
    roll = rng.random()
    if roll < 0.25 and only_shape:
        return (
            "color",
            _say(rng, ("what color is the {a}?", "the {a} has which color?"), thing.name),
            thing.color,
        )
    if roll < 0.5 and only_color:
        return "shape", _say(rng, ("what shape is {a}?", "which shape is {a}?"), thing.color), thing.name
    if roll < 0.65 and only_shape:
        wordings = ("where is the {a}?", "in which part is the {a}?")
        return "position", _say(rng, wordings, thing.name), str(thing.place)
    if roll < 0.8:
        return _pair_exists(rng, scene, thing)
    asked = _say(rng, ("what is {a}?", "what do you see {a}?", "what is drawn {a}?"), _at(thing))
    return "caption", asked, f"{thing.color} {thing.name}"


def _pair_exists(rng: Random, scene: Scene, thing: Thing) -> Turn:
    """Is there a red circle? The wrong ones differ in one of the two words."""
    pairs = {(other.color, other.name) for other in scene.things}
    color, name = thing.color, thing.name
    if rng.random() < 0.5:
        while (color, name) in pairs:
            color, name = thing.color, thing.name
            if rng.random() < 0.5:
                color = _other(rng, color)
            else:
                name = _other(rng, name)
    return _yes_no(rng, f"{_a(color)} {name}", (color, name) in pairs)


def _count_all(rng: Random, scene: Scene) -> Turn:
    asked = ("how many shapes are there?", "count the shapes.", "how many objects do you see?", "how many?")
    return "count", _say(rng, asked), str(len(scene.things))


def _yes_no(rng: Random, what: str, there: bool) -> Turn:
    if rng.random() < 0.3:
        return "yes-no", _say(rng, ABSENT, what), "no" if there else "yes"
    return "yes-no", _say(rng, THERE, what), "yes" if there else "no"


def _other(rng: Random, name: str) -> str:
    """Another word of the same sort. A square is a rectangle, so neither is asked for the other."""
    words = list(COLORS) if name in COLORS else None
    while True:
        other = rng.choice(words) if words else pick_shape(rng)
        if other != name and {other, name} != {"square", "rectangle"}:
            return other


def _character_kind(thing: Thing) -> tuple[str, str]:
    if thing.name in LETTERS:
        return "letter", "letter"
    assert thing.name in DIGITS
    return "digit", "digit"


def _at(thing: Thing) -> str:
    place = str(thing.place)
    if place == "center":
        return "in the center"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _plural(what: Thing | str, count: int) -> str:
    name = what if isinstance(what, str) else f"{what.color} {what.name}"
    return name if count == 1 else name + ("es" if name.endswith("s") else "s")


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _say(rng: Random, choices: tuple[str, ...], a: str = "") -> str:
    """One of the wordings, now and then with a capital or without its last mark."""
    said = rng.choice(choices).format(a=a, p=rng.choice(("picture", "image", "drawing")))
    if rng.random() < 0.25:
        said = said[0].upper() + said[1:]
    return said[:-1] if rng.random() < 0.15 else said

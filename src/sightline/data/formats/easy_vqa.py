"""easy-vqa: coloured shapes with questions, from the installed package; `easy-vqa` or `easy-vqa:test`."""

from __future__ import annotations

from collections.abc import Iterator

from sightline.data.conversation import Origin, RowError
from sightline.data.formats.base import Item, Options, SourceFormat
from sightline.errors import SightlineError, UsageError

_NAMES = ("easy-vqa", "easy_vqa")
_SPLITS = ("train", "test")


def matches(source: str) -> bool:
    return source.partition(":")[0].lower() in _NAMES


def rows(source: str, options: Options) -> Iterator[Item]:
    """One row per question of the split (train unless named).

    Raises:
        UsageError: an unknown split. SightlineError: the package is not installed.
    """
    split = source.partition(":")[2] or "train"
    if split not in _SPLITS:
        raise UsageError(f"easy-vqa has no split {split!r}; write easy-vqa:train or easy-vqa:test")
    try:
        import easy_vqa
    except ImportError as error:
        raise SightlineError("easy-vqa is not installed; run `pip install easy-vqa`") from error
    texts, answers, image_ids = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    for number, (text, answer, image) in enumerate(zip(texts, answers, image_ids, strict=True), 1):
        origin = Origin(f"easy-vqa:{split}", number)
        if image not in paths:
            yield origin, RowError(f"the package has no picture {image}", origin)
            continue
        yield (
            origin,
            {
                "messages": [
                    {"role": "user", "content": f"<image>{text}"},
                    {"role": "assistant", "content": answer},
                ],
                "images": [paths[image]],
            },
        )


EASY_VQA = SourceFormat("easy-vqa", matches, rows)

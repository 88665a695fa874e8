"""COCO captions: one annotation file with `images` and `annotations`, and a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.data.conversation import Origin, RowError
from sightline.data.formats.base import Item, Options, SourceFormat
from sightline.data.rows import load_json
from sightline.errors import SightlineError


def matches(source: str) -> bool:
    """A json file whose document is one object with images and annotations."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"{") and _is_coco(_document(path))


def _document(path: Path) -> Any:
    try:
        return load_json(path)
    except SightlineError:
        return None  # perhaps jsonl under another name; its reader says what is wrong


def _is_coco(document: Any) -> bool:
    return isinstance(document, dict) and all(
        isinstance(document.get(key), list) for key in ("images", "annotations")
    )


def rows(source: str, options: Options) -> Iterator[Item]:
    """One row per caption, or per image with `captions="first"`. The origin's line counts annotations from 1.

    Raises:
        SightlineError: not a COCO file, or one of boxes or key points instead of captions.
    """
    path = Path(source)
    document = load_json(path)
    if not _is_coco(document):
        raise SightlineError(f"{path} has no images and annotations lists; give a COCO captions file")
    annotations = document["annotations"]
    if annotations and not any(isinstance(item, dict) and "caption" in item for item in annotations):
        raise SightlineError(f"{path} holds no captions, only {_keys(annotations[0])}; give captions_*.json")
    folder = _image_folder(path, options.media_root)
    files = {image["id"]: image["file_name"] for image in document["images"] if _is_image(image)}
    seen: set[Any] = set()
    for number, annotation in enumerate(annotations, 1):
        origin = Origin(str(path), number)
        if not isinstance(annotation, dict):
            yield origin, RowError("the annotation is not an object", origin)
            continue
        image = annotation.get("image_id")
        if options.captions == "first" and image in seen:
            continue
        seen.add(image)
        yield origin, _row(annotation, files, folder, options.prompt, origin)


def _row(
    annotation: dict[str, Any], files: dict[Any, str], folder: Path, prompt: str, origin: Origin
) -> dict[str, Any] | RowError:
    image, caption = annotation.get("image_id"), annotation.get("caption")
    if not isinstance(caption, str):
        return RowError("the annotation has no caption", origin)
    if image not in files:
        return RowError(f"image_id {image!r} is not among the images of the file", origin)
    return {
        "messages": [
            {"role": "user", "content": f"<image>{prompt}"},
            {"role": "assistant", "content": caption.strip()},
        ],
        "images": [str((folder / files[image]).absolute())],
        "image_id": image,
    }


def _is_image(image: Any) -> bool:
    return isinstance(image, dict) and "id" in image and isinstance(image.get("file_name"), str)


def _image_folder(path: Path, media_root: Path | None) -> Path:
    """captions_train2017.json has its pictures in ../train2017, as COCO unpacks, unless told otherwise."""
    if media_root is not None:
        return media_root
    name = path.stem.rpartition("_")[2]
    for candidate in (path.parent.parent / name, path.parent / name, path.parent / "images"):
        if candidate.is_dir():
            return candidate
    return path.parent


def _keys(annotation: Any) -> str:
    return ", ".join(map(str, annotation)) if isinstance(annotation, dict) else "other values"


COCO = SourceFormat("coco", matches, rows)

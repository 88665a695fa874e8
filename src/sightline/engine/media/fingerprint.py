"""What tells one image or clip from another: hashes of everything that its patches depend on.

Each piece is hashed with its tag and its length in front, so that no two lists of pieces run together into
the same bytes. Encoded media count by the bytes of their file, open pictures by the RGB pixels that the model
sees: palette, transparency and orientation are in them already.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sightline.data.conversation import Image, Source, Video
from sightline.data.media import Budget, opened
from sightline.data.vision_spec import VisionSpec

if TYPE_CHECKING:
    import torch

    from sightline.models.patches import Layout

Piece = tuple[str, bytes]


def digest(*pieces: Piece) -> bytes:
    """32 bytes that differ where a tag, the bytes of a piece, their order or their number differ."""
    whole = hashlib.sha256()
    for tag, data in pieces:
        name = tag.encode()
        whole.update(b"%d:%d:" % (len(name), len(data)))
        whole.update(name)
        whole.update(data)
    return whole.digest()


def settings_mark(spec: VisionSpec, dtype: torch.dtype) -> bytes:
    """Of what an engine does to all its media."""
    return digest(("spec", repr(spec).encode()), ("dtype", str(dtype).encode()))


def source_key(medium: Image | Video, mark: bytes, budget: Budget) -> bytes:
    """Of a medium's content, its own settings and the engine's (`settings_mark`): equal keys, equal patches.

    Raises:
        MediaError: it cannot be read.
    """
    if isinstance(medium, Image):
        pieces = [("image", _content(medium.source, budget))]
        settings: tuple[Any, ...] = (medium.min_pixels, medium.max_pixels)
    else:
        frames = isinstance(medium.source, tuple)
        sources = medium.source if isinstance(medium.source, tuple) else (medium.source,)
        pieces = [("frame" if frames else "video", _content(source, budget)) for source in sources]
        settings = (medium.fps, medium.max_frames, medium.min_pixels, medium.max_pixels)
    return digest(("mark", mark), ("settings", repr(settings).encode()), *pieces)


def medium_key(source: bytes, layout: Layout, tower: str | None = None) -> bytes:
    """Of a medium in a prompt: equal keys, equal features at equal positions.

    Args:
        tower: of the adapter whose own tower sees it; None for the model's.
    """
    shape = (layout.kind, layout.grid, layout.seconds_per_patch)
    pieces = [("source", source), ("layout", repr(shape).encode())]
    if tower is not None:
        pieces.append(("tower", tower.encode()))
    return digest(*pieces)


def _content(source: Source, budget: Budget) -> bytes:
    """Hash of one source; the same for a file and for its bytes."""
    from sightline.data.images import open_image

    if isinstance(source, bytes):
        return digest(("file", hashlib.sha256(source).digest()))
    if isinstance(source, str):
        return digest(("file", _file_hash(source, budget)))
    picture = open_image(source, budget)
    return digest(("size", repr(picture.size).encode()), ("rgb", picture.tobytes()))


def _file_hash(source: str, budget: Budget) -> bytes:
    whole = hashlib.sha256()
    with opened(source, budget) as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return whole.digest()

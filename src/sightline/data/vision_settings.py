"""The processor files of a checkpoint: where the image and video settings stand, and what they may say.

Three layouts exist: `preprocessor_config.json` alone (Qwen2-VL, Qwen2.5-VL), the same with
`video_preprocessor_config.json` beside it (Qwen3-VL), and transformers 5's joint `processor_config.json`,
which wins over the others as it does in transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sightline.errors import SightlineError
from sightline.files import read_object

Settings = dict[str, Any]

IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
JOINT_FILE = "processor_config.json"

_SIZES = ("patch_size", "temporal_patch_size", "merge_size")
_COLOURS = ("image_mean", "image_std")
# Pillow's numbers of the two filters that the image and the video path can both apply.
_FILTERS = {2: "bilinear", 3: "bicubic"}


class Section(NamedTuple):
    """The settings of one processor and the file they stand in; `values` is empty where there are none."""

    values: Settings
    place: Path


def read_settings(folder: Path) -> tuple[Section, Section]:
    """Image and video settings of a checkpoint folder.

    Raises:
        SightlineError: a file is not a JSON object, or asks for something that is not supported.
    """
    joint = settings_in(folder / JOINT_FILE)
    image = _section(folder, joint.get("image_processor"), IMAGE_FILE)
    video = _section(folder, joint.get("video_processor"), VIDEO_FILE)
    _refuse_unsupported(image)
    _refuse_unsupported(video)
    return image, video


def _section(folder: Path, joint: Any, file: str) -> Section:
    if not joint:
        return Section(settings_in(folder / file), folder / file)
    if not isinstance(joint, dict):
        raise SightlineError(f"{folder / JOINT_FILE}: the settings of a processor must be an object")
    return Section(joint, folder / JOINT_FILE)


def settings_in(path: Path) -> Settings:
    """The JSON object in a file, empty if there is no such file."""
    return read_object(path) if path.exists() else {}


def common_values(section: Section) -> dict[str, Any]:
    """What is set of that which pictures and clips must share, as fields of VisionSpec.

    Raises:
        SightlineError: a value is unusable.
    """
    settings, place = section
    found: dict[str, Any] = {}
    for name in _SIZES:
        if settings.get(name) is not None:
            found[name] = whole_number(settings[name], f"{place}: {name}")
    for name in _COLOURS:
        if settings.get(name) is not None:
            found[name] = _per_channel(settings[name], f"{place}: {name}")
    if settings.get("resample") is not None:
        found["resample"] = settings["resample"]
    if settings.get("rescale_factor") is not None:
        found["rescale_factor"] = float(settings["rescale_factor"])
    return found


def limit_values(section: Section, *, only_size: bool = False) -> dict[str, int]:
    """`min_pixels` and `max_pixels`, where set; as in transformers they win over `size` unless `only_size`.

    Raises:
        SightlineError: a limit is not a positive whole number.
    """
    settings = section.values
    size = settings.get("size")
    size = size if isinstance(size, dict) else {}
    found: dict[str, int] = {}
    for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        places = (None if only_size else settings.get(name), size.get(edge), size.get(name))
        value = next((value for value in places if value is not None), None)
        if value is not None:
            found[name] = whole_number(value, f"{section.place}: {name}")
    return found


def whole_number(value: Any, name: str) -> int:
    """A positive whole number from a file.

    Raises:
        SightlineError: it is something else.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 1:
        raise SightlineError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)


def _per_channel(value: Any, name: str) -> tuple[float, ...]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(v, (int, float)) for v in values):
        raise SightlineError(f"{name} must be three numbers, for red, green and blue, not {value!r}")
    return tuple(float(v) for v in values)


def _refuse_unsupported(section: Section) -> None:
    settings, place = section
    # do_convert_rgb may be anything: pictures come here as RGB already (see sightline.data.media).
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(name) is False:
            raise SightlineError(f"{place}: {name} false is not supported; the Qwen-VL models need it true")
    resample = settings.get("resample")
    if resample is not None and resample not in _FILTERS:
        names = " or ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise SightlineError(f"{place}: resample {resample!r} is not supported; use {names}")
    factor = settings.get("rescale_factor")
    if factor is not None and (not isinstance(factor, (int, float)) or factor <= 0):
        raise SightlineError(f"{place}: rescale_factor must be a positive number, not {factor!r}")
    if settings.get("num_frames") is not None:
        raise SightlineError(f"{place}: num_frames is not supported; set fps and max_frames instead")

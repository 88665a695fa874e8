"""What a demo run needs before its first step: libraries, room on the disk, a usable base."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from sightline.demo.fetch import SMOLLM2, cached_wheel
from sightline.demo.settings import Settings
from sightline.errors import SightlineError
from sightline.files import cache_folder
from sightline.progress import size

# Distribution and the name that Python imports.
_ALWAYS = {"easy-vqa": "easy_vqa", "openai": "openai", "jinja2": "jinja2"}
_BUILT_IN = {"gguf": "gguf"}
_BUILT_IN_BYTES = 275_000_000
_WHEEL_BYTES = 100_000_000
# What learns (tower, merger, adapter) with two moments of the optimizer in float32, against bfloat16 weights;
# one checkpoint is kept while the next is written, and the adapter itself comes last.
_CHECKPOINT_SHARE = 0.35
_CHECKPOINTS = 3
_REST = 60_000_000  # rows, answers, report


def check_libraries(settings: Settings) -> None:
    """Raises SightlineError, with the command that installs them, where libraries are missing."""
    wanted = _ALWAYS if settings.base is not None else {**_ALWAYS, **_BUILT_IN}
    missing = [name for name, module in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        libraries = "library " + missing[0] if len(missing) == 1 else "libraries " + ", ".join(missing)
        raise SightlineError(f'the demo needs the {libraries}; run: pip install "sightline[demo]"')


def check_base(settings: Settings) -> None:
    """Raises SightlineError unless the model can be had: a usable --base, or the package's own weights."""
    if settings.base is None:
        from sightline.demo.pretrained import describe

        describe()
        return
    from sightline.models.loading import check_weights
    from sightline.models.processor import load_processor

    load_processor(settings.base)
    check_weights(settings.base)


def check_disk(settings: Settings, output: Path) -> None:
    """Raises SightlineError where the disk cannot hold what the rest of the run will write."""
    need = bytes_to_write(settings, output)
    places = {output: need}
    if settings.base is None and not (output / "model").exists() and cached_wheel(SMOLLM2) is None:
        places[cache_folder()] = _WHEEL_BYTES
    for place, wanted in places.items():
        free = shutil.disk_usage(_existing(place)).free
        if free < wanted:
            raise SightlineError(
                f"the disk of {place} has {size(free)} free, but the demo needs {size(wanted)} there; "
                "free some, or choose another place with "
                + ("--output" if place == output else "SIGHTLINE_CACHE")
            )


def bytes_to_write(settings: Settings, output: Path) -> int:
    """An upper estimate of what the steps that are not done yet will write into `output`."""
    weights = _BUILT_IN_BYTES if settings.base is None else _weights(settings.base)
    model = 0 if settings.base is not None or (output / "model").exists() else weights
    merged = 0 if (output / "merged").exists() else weights
    return int(model + merged + _CHECKPOINTS * _CHECKPOINT_SHARE * weights + _REST)


def _weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path

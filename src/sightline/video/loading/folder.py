"""A Wan model's folder as diffusers saves it: `model_index.json` and a folder for each part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.files import read_object

INDEX = "model_index.json"
PARTS = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
_PIPELINE, _TRANSFORMER, _VAE = "WanPipeline", "WanTransformer3DModel", "AutoencoderKLWan"


def read_index(folder: Path) -> dict[str, str]:
    """The class of each part that is run.

    Raises:
        SightlineError: it is another pipeline, names parts that are not run, or lacks one.
    """
    path = folder / INDEX
    index = read_object(path)
    _check_kind(path, index)
    found: dict[str, str] = {}
    for part in PARTS:
        named = index.get(part)
        if not (isinstance(named, list) and len(named) == 2 and all(isinstance(name, str) for name in named)):
            raise SightlineError(f"{path} names no {part}; download the model again")
        found[part] = named[1]
        library = "transformers" if part in ("tokenizer", "text_encoder") else "diffusers"
        if named[0] != library:
            raise SightlineError(
                f"{path} takes its {part} from {named[0]}; Sightline takes it from {library} only"
            )
    for part, kind in (("transformer", _TRANSFORMER), ("vae", _VAE)):
        if found[part] != kind:
            raise SightlineError(f"{path} names a {found[part]} as its {part}; Sightline runs a {kind}")
    return found


def _check_kind(path: Path, index: Mapping[str, Any]) -> None:
    if index.get("_class_name") != _PIPELINE:
        raise SightlineError(
            f"{path} is of a {index.get('_class_name')}; Sightline runs the {_PIPELINE} of text-to-video models, such "
            "as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    if _given(index.get("transformer_2")) or index.get("boundary_ratio") is not None:
        raise SightlineError(
            f"{path} names a second transformer (transformer_2, boundary_ratio), as Wan2.2 has; Sightline runs models "
            "with one, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    if index.get("expand_timesteps"):
        raise SightlineError(
            f"{path} asks for a timestep for each token (expand_timesteps), as Wan2.2-TI2V-5B does; Sightline runs "
            "models with one for all"
        )
    known = {*PARTS, "transformer_2", "boundary_ratio", "expand_timesteps"}
    others = [
        name
        for name, value in index.items()
        if not name.startswith("_") and name not in known and _given(value)
    ]
    if others:
        raise SightlineError(
            f"{path} names {others[0]}, a part that Sightline does not run; take a text-to-video model such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )


def _given(value: Any) -> bool:
    return value not in (None, [], [None, None])

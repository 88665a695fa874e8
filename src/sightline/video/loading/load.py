"""Opening each part at its place, whichever layout that has: a part's folder, the authors' files, a single file.

What is opened has been compared with its config by the headers; no weight has been read yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError
from sightline.files import read_object
from sightline.video.loading import original_text, original_transformer, original_vae, parts
from sightline.video.loading.assemble import Part
from sightline.video.loading.places import ENCODER, Places, check_not_megatron
from sightline.video.loading.tensors import Tensors, open_tensors

if TYPE_CHECKING:
    import torch

# diffusers' converted folders have this one (scheduler/scheduler_config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers).
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "flow_shift": 3.0,
}


def open_transformer(path: Path, dtype: torch.dtype) -> Part:
    """The transformer of a folder or file.

    Raises:
        SightlineError: it cannot be used; the text says what to change.
    """
    check_not_megatron(path)
    config, where, tensors = _opened(path, "WanTransformer3DModel")
    if config is None:
        _check_whole(path, original_transformer.is_original(tensors.entries))
        theirs = read_object(path / "config.json") if (path / "config.json").is_file() else {}
        if original_transformer.is_original(tensors.entries):
            tensors = original_transformer.to_diffusers(tensors)
        original_transformer.check_kind(tensors)
        heads = theirs.get("num_heads")
        config = original_transformer.config_of(tensors, heads if type(heads) is int and heads > 0 else None)
        original_transformer.check_config(theirs, config, path / "config.json")
    return parts.make_transformer(config, where, tensors, dtype)


def open_vae(path: Path) -> Part:
    """The VAE of a folder or file, in float32.

    Raises:
        SightlineError: it cannot be used; the text says what to change.
    """
    config, where, tensors = _opened(path, "AutoencoderKLWan")
    if config is None:
        _check_whole(path, original_vae.is_original(tensors.entries))
        if original_vae.is_original(tensors.entries):
            tensors = original_vae.to_diffusers(tensors)
        config = original_vae.config_of(tensors)
    return parts.make_vae(config, where, tensors)


def open_text_encoder(path: Path, name: str | None, dtype: torch.dtype) -> Part:
    """The text encoder of a folder or file.

    Args:
        name: of its class in transformers; without, what its config says.

    Raises:
        SightlineError: it cannot be used; the text says what to change.
    """
    config, where, tensors = _opened(path)
    if config is None:
        if original_text.is_original(tensors.entries):
            tensors = original_text.to_transformers(tensors)
        config = original_text.config_of(tensors)
        name = ENCODER
    named = config.get("architectures")
    if name is None:
        name = str(named[0]) if isinstance(named, list) and named else ENCODER
    return parts.make_text_encoder(name, config, where, tensors, dtype)


def load_scheduler(places: Places) -> Any:
    """The folder's scheduler; for the original files, which have none, the one of diffusers' folders.

    Raises:
        SightlineError: its file is missing, or makes none.
    """
    if places.scheduler is None:
        return parts.make_scheduler(SCHEDULER, "the scheduler of Wan2.1")
    path = places.scheduler / "scheduler_config.json"
    return parts.make_scheduler(read_object(path), path)


def _check_whole(path: Path, original: bool) -> None:
    """A folder as diffusers saves it says in its config what shapes do not tell; the authors' is known without."""
    if path.is_dir() and not original:
        raise SightlineError(
            f"{path} has no config.json of its model; download it again, or give its file alone"
        )


def _opened(path: Path, kind: str | None = None) -> tuple[dict[str, Any] | None, Path, Tensors]:
    """A part's config where a library saved it beside the weights, what names it in messages, and the tensors.

    Args:
        kind: the class that diffusers' config must be of; None for transformers', which has no such field.

    Raises:
        SightlineError: it is of another class, lacks its config, or its files cannot be read.
    """
    if path.is_file():
        return None, path, open_tensors(path)
    where = path / "config.json"
    config = read_object(where) if where.is_file() else None
    found = None if config is None else config.get("_class_name")
    if kind is None and config is None:
        raise SightlineError(f"{path} has no config.json; give a text encoder's folder, or its file")
    if kind is not None and config is not None and found not in (kind, "WanModel", None):
        raise SightlineError(f"{where} is of a {found}; here a {kind} is needed")
    return (None if found != kind else config), where if found == kind else path, open_tensors(path)

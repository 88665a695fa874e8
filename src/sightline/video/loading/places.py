"""Where each part of a model lies: found in a folder of either layout, or given file by file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.checkpoints.megatron.files import LATEST
from sightline.errors import SightlineError, UsageError
from sightline.video.loading import folder as diffusers_folder

ENCODER = "UMT5EncoderModel"
OPTIONS = ("transformer_file", "vae_file", "text_encoder_file", "tokenizer")
# What the authors call their files (wan/configs of Wan-Video/Wan2.1).
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = Path("google") / "umt5-xxl"


@dataclass(frozen=True)
class Places:
    """A file or folder for each part.

    Attributes:
        folder: the model's own, None where every part was given apart.
        scheduler: None for the original files, which have none.
        encoder: the text encoder's class in transformers.
    """

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    scheduler: Path | None = None
    folder: Path | None = None
    encoder: str | None = None


def find_places(
    model: str | Path | None,
    transformer_file: str | Path | None = None,
    vae_file: str | Path | None = None,
    text_encoder_file: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Places:
    """Where a model's parts are; a file that is given counts more than the folder's.

    Raises:
        SightlineError: the folder is none of a Wan model's. UsageError: no folder, and not every part.
    """
    options = zip(OPTIONS, (transformer_file, vae_file, text_encoder_file, tokenizer), strict=True)
    given: dict[str, Path] = {name: Path(path).expanduser() for name, path in options if path is not None}
    for name, path in given.items():
        if not path.exists():
            raise UsageError(f"{name} {path} does not exist")
    parts: dict[str, Any] = {name.removesuffix("_file"): path for name, path in given.items()}
    if model is None:
        absent = [name for name in OPTIONS if name not in given]
        if absent:
            raise UsageError(f"give a model's folder, or {absent[0]} as well as the other parts")
        return Places(**parts)
    found = _of_folder(Path(model).expanduser(), set(parts))
    if "text_encoder" in parts:
        found = replace(found, encoder=None)
    return replace(found, **parts)


def _of_folder(folder: Path, given: set[str]) -> Places:
    if not folder.is_dir():
        raise SightlineError(_absent(folder))
    if (folder / diffusers_folder.INDEX).is_file():
        classes = diffusers_folder.read_index(folder)
        for part in diffusers_folder.PARTS:
            if part not in given and not (folder / part).is_dir():
                raise SightlineError(
                    f"{folder} has no folder {part}, which its {diffusers_folder.INDEX} names; "
                    "download the model again"
                )
        inside: dict[str, Any] = {part: folder / part for part in diffusers_folder.PARTS}
        return Places(**inside, folder=folder, encoder=classes["text_encoder"])
    check_not_megatron(folder)
    if (
        any(folder.glob("diffusion_pytorch_model*"))
        or (folder / VAE_FILE).exists()
        or (folder / TEXT_FILE).exists()
    ):
        return _of_original(folder, given)
    raise SightlineError(
        f"{folder} is no Wan model: it has neither {diffusers_folder.INDEX} (diffusers' layout) nor "
        f"diffusion_pytorch_model*.safetensors and {VAE_FILE} (the authors' files)"
    )


def check_not_megatron(path: Path) -> None:
    """Raises SightlineError, with the command to run, where a folder holds MindSpeed-MM's files."""
    inside = (path, path / "release")
    if path.is_dir() and ((path / LATEST).is_file() or any(any(at.glob("mp_rank_*")) for at in inside)):
        raise SightlineError(
            f"{path} is a checkpoint of MindSpeed-MM; run `sightline convert mm-to-hf --mm-dir {path} --hf-dir FOLDER "
            "-o OUTPUT` with diffusers' FOLDER of the model it was trained from, and give OUTPUT as transformer_file"
        )


def _of_original(folder: Path, given: set[str]) -> Places:
    places: dict[str, Any] = {
        "vae": folder / VAE_FILE,
        "text_encoder": folder / TEXT_FILE,
        "tokenizer": folder / TOKENIZER,
    }
    for part, path in places.items():
        if part not in given and not path.exists():
            option = part if part == "tokenizer" else f"{part}_file"
            raise SightlineError(
                f"{folder} has no {path.relative_to(folder)}; download it again, or give the {part.replace('_', ' ')} "
                f"with {option}"
            )
    return Places(transformer=folder, **places, folder=folder)


def _absent(folder: Path) -> str:
    if folder.is_file():
        return (
            f"{folder} is a file; give the model's folder, or the file as transformer_file together with the folder "
            "that has the other parts"
        )
    name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    if len(folder.parts) == 2 and not folder.is_absolute() and folder.parts[0] not in (".", ".."):
        name = str(folder)
    return (
        f"{folder} is no folder, and nothing is fetched from a hub; download {name} there (`hf download {name} "
        f"--local-dir {folder}`, or with your hub's own command) and give the folder"
    )

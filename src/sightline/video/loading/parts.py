"""The parts of a Wan model, each made of a config and tensors by its own class, and what they must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, first_line
from sightline.video.loading.assemble import Part, skeleton
from sightline.video.loading.defaults import spatial_of, temporal_of
from sightline.video.loading.tensors import Tensors

if TYPE_CHECKING:
    import torch

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")

Config = Mapping[str, Any]


def make_transformer(config: Config, where: object, tensors: Tensors, dtype: torch.dtype) -> Part:
    """diffusers' `WanTransformer3DModel`.

    Raises:
        SightlineError: config and weights do not fit, or it is one that needs a picture to begin with.
    """
    from diffusers import WanTransformer3DModel

    model = skeleton(lambda: WanTransformer3DModel.from_config(dict(config)), where)
    given, made = model.config.in_channels, model.config.out_channels or model.config.in_channels
    if model.config.image_dim or given != made:
        raise SightlineError(
            f"{where} is of an image-to-video transformer ({given} channels in, {made} out); Sightline runs "
            "text-to-video models, such as Wan2.1-T2V-1.3B"
        )
    return Part(model, tensors, dtype, "transformer")


def make_vae(config: Config, where: object, tensors: Tensors) -> Part:
    """diffusers' `AutoencoderKLWan`, in float32: in half precision its pictures show bands (diffusers' own advice).

    Raises:
        SightlineError: config and weights do not fit, or its factors are not those of its stages.
    """
    import torch
    from diffusers import AutoencoderKLWan

    model = skeleton(lambda: AutoencoderKLWan.from_config(dict(config)), where)
    for name, found in (
        ("scale_factor_spatial", spatial_of(model)),
        ("scale_factor_temporal", temporal_of(model)),
    ):
        if model.config[name] != found:
            raise SightlineError(f"{where} says {name} {model.config[name]}, but its stages make it {found}")
    for name in ("latents_mean", "latents_std"):
        if len(model.config[name]) != model.config.z_dim:
            raise SightlineError(
                f"{where} has {len(model.config[name])} numbers in {name} for z_dim {model.config.z_dim}"
            )
    return Part(model, tensors, torch.float32, "VAE")


def make_text_encoder(name: str, config: Config, where: object, tensors: Tensors, dtype: torch.dtype) -> Part:
    """A text encoder of transformers: Wan's is `UMT5EncoderModel`.

    Args:
        name: of its class in transformers.

    Raises:
        SightlineError: there is no such class, or config and weights do not fit.
    """
    import transformers

    kind: Any = getattr(transformers, name, None)
    base: Any = transformers.PreTrainedModel
    known = isinstance(kind, type) and issubclass(kind, base)
    if not known:
        raise SightlineError(f"{where} is of a {name}, which this transformers does not have; update it")
    model = skeleton(lambda: kind(kind.config_class.from_dict(dict(config))), where)
    return Part(model, tensors, dtype, "text encoder")


def make_tokenizer(folder: Path) -> Any:
    """A tokenizer from its folder; nothing is fetched and no code of the folder is run.

    Raises:
        SightlineError: there is none in it, or it cannot be read.
    """
    if not folder.is_dir() or not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise SightlineError(
            f"{folder} is no tokenizer's folder: it has none of {', '.join(_TOKENIZER_FILES)}; download it again"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise every kind of it
        raise SightlineError(f"{folder} cannot be read as a tokenizer: {first_line(error)[:200]}") from error
    if tokenizer.pad_token_id is None:
        raise SightlineError(f"{folder} has no padding token; prompts are padded to a length with it")
    return tokenizer


def make_scheduler(config: Config, where: object) -> Any:
    """The scheduler that a folder names.

    Raises:
        SightlineError: diffusers has no such scheduler, or the config does not fit it.
    """
    import diffusers

    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise SightlineError(f"{where} names the scheduler {name}, which this diffusers does not have")
    try:
        return kind.from_config(dict(config))
    except Exception as error:  # whatever a scheduler raises about a wrong field
        raise SightlineError(f"{where} makes no scheduler: {first_line(error)[:200]}") from error


def check_together(tokenizer: Any, text_encoder: Any, transformer: Any, vae: Any, where: object) -> None:
    """Whether the parts belong together.

    Raises:
        SightlineError: two of them have different sizes; the text has both numbers.
    """
    width, wanted = text_encoder.config.hidden_size, transformer.config.text_dim
    if width != wanted:
        raise SightlineError(
            f"{where}: the transformer takes texts of width {wanted} and the text encoder gives {width}; "
            "take both from one model"
        )
    if vae.config.z_dim != transformer.config.in_channels:
        raise SightlineError(
            f"{where}: the transformer makes latents of {transformer.config.in_channels} channels and the VAE decodes "
            f"{vae.config.z_dim}; take both from one model"
        )
    words, rows = len(tokenizer), text_encoder.config.vocab_size
    if words > rows:
        raise SightlineError(
            f"{where}: the tokenizer has {words} tokens and the text encoder {rows}; take both from one model"
        )

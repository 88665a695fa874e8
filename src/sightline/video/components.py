"""The parts of a video model, loaded: tokenizer, text encoder, transformer, VAE, scheduler, and what it does untold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UsageError

if TYPE_CHECKING:
    import torch

    from sightline.video.loading.defaults import Defaults

OFFLOADS = ("none", "model", "group")


@dataclass
class Components:
    """What a generation runs on.

    Attributes:
        name: of the model, for people.
        tokenizer, text_encoder: of transformers; the encoder is in `dtype`.
        transformer: diffusers' `WanTransformer3DModel`, in `dtype` but for what its class keeps in float32.
        vae: diffusers' `AutoencoderKLWan`, in float32.
        scheduler: the model's own; a generation makes a fresh one of it.
        defaults: what it does without being told, and which sizes it has.
        device, dtype: where inputs go, and in which type.
        offload: `none`, `model` or `group`.
        folder: where the model came from; None where every part was given apart.
    """

    name: str
    tokenizer: Any
    text_encoder: Any
    transformer: Any
    vae: Any
    scheduler: Any
    defaults: Defaults
    device: torch.device
    dtype: torch.dtype
    offload: str = "none"
    folder: Path | None = None
    _fingerprint: str | None = field(default=None, repr=False)

    def weights_fingerprint(self) -> str:
        """`video.fingerprint.fingerprint` of the transformer as it was loaded, before anything was done to it.

        Raises:
            SightlineError: its weights are not loaded.
        """
        if self._fingerprint is None:
            from sightline.video.fingerprint import fingerprint

            self._fingerprint = fingerprint(self.transformer)
        return self._fingerprint

    @contextmanager
    def on_device(self, part: str) -> Iterator[Any]:
        """A part (`text_encoder`, `transformer`, `vae`), on the device while the `with` lasts."""
        yield getattr(self, part)


def load_components(
    model: str | Path | None,
    *,
    dtype: str = "auto",
    device: str | None = None,
    offload: str = "none",
    cast_weights: bool = False,
    tile_vae: bool = False,
    transformer_file: str | Path | None = None,
    vae_file: str | Path | None = None,
    text_encoder_file: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> Components:
    """Load a Wan model from the disk; nothing is ever fetched.

    Args:
        model: a folder as diffusers saves it, or one with the authors' own files.
        dtype: auto, bf16, fp16 or fp32, of transformer and text encoder; auto is what the device computes fastest in.
        device: cpu, cuda, npu, one with a number, or None for the best there is.
        offload: `model` has each part on the device only while it runs; `group` has the transformer there block by
            block, and the others like `model`.
        cast_weights: keep the transformer's large weights in 8 bits and compute in `dtype`; not exact.
        tile_vae: decode a picture in overlapping tiles; not exact.
        transformer_file, vae_file, text_encoder_file, tokenizer: a part from elsewhere, a file or folder.

    Raises:
        SightlineError: a part is missing, damaged, or does not fit the others; the text says what to change.
        UsageError: an argument that means nothing.
    """
    from sightline.hardware import accelerator
    from sightline.video.loading import load, parts
    from sightline.video.loading.defaults import defaults_of, name_of
    from sightline.video.loading.places import find_places

    if offload not in OFFLOADS:
        raise UsageError(f"offload must be {', '.join(OFFLOADS)}, not {offload!r}")
    found = accelerator.find(device)
    number = accelerator.dtype_from_name(dtype, found)
    places = find_places(model, transformer_file, vae_file, text_encoder_file, tokenizer)
    where = found.torch_device
    # The small parts come first: what is wrong with them shows before gigabytes are read.
    words = parts.make_tokenizer(places.tokenizer)
    scheduler = load.load_scheduler(places)
    vae = load.load_vae(places.vae, where)
    text_encoder = load.load_text_encoder(places.text_encoder, places.encoder, number, where)
    transformer = load.load_transformer(places.transformer, number, where)
    parts.check_together(words, text_encoder, transformer, vae, places.folder or "the parts")
    return Components(
        name=name_of(places.folder or places.transformer),
        tokenizer=words,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        defaults=defaults_of(transformer, vae, scheduler, places.folder),
        device=where,
        dtype=number,
        offload=offload,
        folder=places.folder,
    )

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

PARTS = ("text_encoder", "transformer", "vae")
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
        text_device: where the text encoder stays and computes, where that is another device.
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
    text_device: torch.device | None = None
    _fingerprint: str | None = field(default=None, repr=False)
    _visitors: set[str] = field(default_factory=set, repr=False)

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
        """A part (`text_encoder`, `transformer`, `vae`), on the device while the `with` lasts.

        With offload `none`, and for the transformer with `group`, it is there all the time. A text encoder with a
        device of its own stays on that one.

        Raises:
            UsageError: there is no such part.
        """
        if part not in PARTS:
            raise UsageError(f"{part!r} is no part that computes; the parts are {', '.join(PARTS)}")
        module = getattr(self, part)
        stays = self.offload == "none" or (self.offload == "group" and part == "transformer")
        stays = stays or (part == "text_encoder" and self.text_device is not None)
        if stays or self.device.type == "cpu" or part in self._visitors:
            yield module
            return
        from sightline.hardware import accelerator
        from sightline.video.loading.visit import visiting

        self._visitors.add(part)
        try:
            with visiting(module, self.device):
                yield module
        finally:
            self._visitors.discard(part)
            accelerator.find(str(self.device)).empty_cache()


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
    text_encoder_device: str | None = None,
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
        text_encoder_device: where the text encoder computes, if not on `device`; cpu keeps its 11 GB off a card.

    Raises:
        SightlineError: a part is missing, damaged, or does not fit the others; the text says what to change.
        UsageError: an argument that means nothing.
    """
    import torch

    from sightline.hardware import accelerator
    from sightline.video.loading import load, parts
    from sightline.video.loading.defaults import defaults_of, name_of
    from sightline.video.loading.places import find_places

    if offload not in OFFLOADS:
        raise UsageError(f"offload must be {', '.join(OFFLOADS)}, not {offload!r}")
    found = accelerator.find(device)
    number, target = accelerator.dtype_from_name(dtype, found), found.torch_device
    places = find_places(model, transformer_file, vae_file, text_encoder_file, tokenizer)
    words, scheduler = parts.make_tokenizer(places.tokenizer), load.load_scheduler(places)
    # All of it is compared by its headers before the gigabytes are read.
    opened = {
        "text_encoder": load.open_text_encoder(places.text_encoder, places.encoder, number),
        "vae": load.open_vae(places.vae),
        "transformer": load.open_transformer(places.transformer, number),
    }
    models = {part: made.model for part, made in opened.items()}
    parts.check_together(tokenizer=words, where=places.folder or "the parts", **models)
    defaults = defaults_of(models["transformer"], models["vae"], scheduler, places.folder)
    home = target if offload == "none" else torch.device("cpu")
    apart = None if text_encoder_device is None else accelerator.find(text_encoder_device).torch_device
    components = Components(
        name=name_of(places.folder or places.transformer),
        tokenizer=words,
        **{
            part: made.fill(apart if apart is not None and part == "text_encoder" else home)
            for part, made in opened.items()
        },
        scheduler=scheduler,
        defaults=defaults,
        device=target,
        dtype=number,
        offload=offload,
        folder=places.folder,
        text_device=apart,
    )
    components.weights_fingerprint()
    _save_memory(components, cast_weights, tile_vae)
    return components


def _save_memory(components: Components, cast: bool, tile: bool) -> None:
    from sightline.video.loading.casting import cast_weights
    from sightline.video.loading.ferry import Ferry

    if cast:
        cast_weights(components.transformer, components.dtype, components.device)
    if tile:
        components.vae.enable_tiling()
    if components.offload == "group" and components.device.type != "cpu":
        Ferry(components.transformer, components.device)

"""An adapter folder, checked against a model before any of it is used: each tensor has its place, or it is an error."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from sightline.checkpoints.adapter import Adapter, Change, open_adapter, other_method, read_settings
from sightline.checkpoints.names import canonical
from sightline.errors import SightlineError
from sightline.models.adapters.low_rank import Pair
from sightline.models.adapters.places import Places
from sightline.models.families import family_of

_LINEAR = re.compile(r"^text\.layers\.(?P<layer>\d+)\.(self_attn|mlp)\.(?P<name>\w+_proj)\.weight$")
# How many times `up` of a joined map holds zeros for its neighbours, at most (see `low_rank.side_by_side`).
_JOINED = {"q_proj": 3, "k_proj": 3, "v_proj": 3, "gate_proj": 2, "up_proj": 2}


@dataclass(frozen=True)
class Reading:
    """A checked adapter; its tensors are still on disk.

    Attributes:
        linear: the low-rank changes of the language model, by layer and name of the linear map (q_proj, ...).
        vision: the changes of the vision tower, by our name of the tensor (visual.blocks.0...).
        rank: the largest of all low-rank changes; 0 without any.
        targets: names of the linear maps that change, and "visual" where the tower does.
    """

    adapter: Adapter
    linear: dict[tuple[int, str], Change]
    vision: dict[str, Change]
    rank: int
    targets: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.adapter.folder

    def elements(self) -> int:
        """About how many numbers it takes in memory."""
        shape = self.adapter.store.shape
        count = sum(math.prod(change.shape) for change in self.vision.values())
        for (_, name), change in self.linear.items():
            assert change.a is not None
            assert change.b is not None
            count += math.prod(shape(change.a)) + _JOINED.get(name, 1) * math.prod(shape(change.b))
        return count

    def pair(self, change: Change, device: torch.device, dtype: torch.dtype) -> Pair:
        """The tensors of a low-rank change, as they are computed with.

        Raises:
            SightlineError: they hold nan, or numbers too large for `dtype`.
        """
        assert change.a is not None
        assert change.b is not None
        down = self.adapter.store.get(change.a).to(dtype)
        up = (self.adapter.store.get(change.b).float() * change.scale).to(dtype)
        self.check_finite(change.target, down, up)
        return Pair(down.contiguous().to(device).t(), up.t().contiguous().to(device))

    def check_finite(self, name: str, *tensors: torch.Tensor) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise SightlineError(
                f"the adapter {self.folder} holds nan, infinite or far too large numbers for {name}; take those of "
                "another training step"
            )


def read_adapter(folder: str | Path, places: Places, *, max_rank: int) -> Reading:
    """Read an adapter's headers and find the place of each of its tensors.

    Raises:
        SightlineError: no LoRA adapter of this model, one of a kind that cannot be computed beside others, or of a
            rank above `max_rank`; the text names the tensor or the setting.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if (words := other_method(settings)) is not None:
        raise SightlineError(
            f"{folder} uses {words}, which cannot be computed beside other adapters (LoRA and rsLoRA can); serve it "
            "alone on its base with adapter=, or merge it into its base with sightline merge"
        )
    if settings.get("fan_in_fan_out"):
        raise SightlineError(
            f"{folder} has fan_in_fan_out, for layers whose weights are stored turned; {places.path} has none, so it "
            "was made for another model"
        )
    adapter = _opened(folder, places, settings.get("base_model_name_or_path"))
    linear: dict[tuple[int, str], Change] = {}
    vision: dict[str, Change] = {}
    for target, change in adapter.changes.items():
        ours = canonical(target)
        place = _LINEAR.match(ours)
        if ours.startswith("visual."):
            vision[ours] = change
        elif place is not None and change.whole is None:
            linear[int(place["layer"]), place["name"]] = change
        else:
            _refuse(folder, target, change)
    pairs = [change.b for change in adapter.changes.values() if change.b is not None]
    rank = max((adapter.store.shape(name)[1] for name in pairs), default=0)
    if rank > max_rank:
        raise SightlineError(
            f"{folder} has rank {rank}, above max_lora_rank {max_rank}; raise that, or merge the adapter into its "
            "base with sightline merge"
        )
    names = sorted({name for _, name in linear})
    return Reading(adapter, linear, vision, rank, (*names, "visual") if vision else tuple(names))


def _opened(folder: Path, places: Places, base: object) -> Adapter:
    """Open an adapter that names `base` as the model that it was made for."""
    if base and _is_another_family(Path(str(base)), places.path):
        raise SightlineError(
            f"the adapter {folder} was made for {base}, a model of another family than {places.path}"
        )
    try:
        return open_adapter(folder, places)
    except SightlineError as error:
        made = f" (it names {base} as its base)" if base else ""
        raise SightlineError(f"the adapter does not fit this model{made}: {error}") from error


def _is_another_family(named: Path, own: Path) -> bool:
    """Whether two folders hold models of different families; where the named one is not there, shapes tell."""
    try:
        return family_of(named) != family_of(own)
    except SightlineError:
        return False


def _refuse(folder: Path, target: str, change: Change) -> None:
    # PEFT saves an embedding or a head in full beside its LoRA.
    what = "in full" if change.a is None else "by LoRA"
    module = target.removesuffix(".weight")
    raise SightlineError(
        f"{folder} trained {module} {what}, which cannot be computed beside other adapters; merge it into its base "
        "with sightline merge and serve that"
    )

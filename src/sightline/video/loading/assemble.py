"""A model's class filled with tensors from the disk: each of them used exactly once, or one sentence that says why not.

diffusers and transformers only log it where a folder's config and weights do not fit, and go on with random numbers;
here that is an error, found in the headers before anything is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import DTYPES
from sightline.checkpoints.writing import same_bytes
from sightline.errors import SightlineError
from sightline.hardware.out_of_memory import explained
from sightline.progress import Progress
from sightline.video.loading.tensors import Tensors

if TYPE_CHECKING:
    import torch

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")

ADVICE = "use offload model, or group, which needs least, or a free device"

Names = Mapping[str, tuple[str, ...]]


def skeleton(make: Callable[[], Any], where: object) -> Any:
    """A model without memory for its weights; the tables that it computes for itself are real.

    Args:
        make: calls the class with its config.
        where: the config's file, for the message.

    Raises:
        SightlineError: the class refuses the config.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            model = make()
    except Exception as error:  # whatever a library raises about a wrong field
        raise SightlineError(f"{where} makes no model: {' '.join(str(error).split())[:200]}") from error
    # The two embeddings of T5's kind are one; whether transformers ties them depends on its version and a field.
    if "shared" in dict(model.named_children()):
        model.set_input_embeddings(model.shared)
    return model


@dataclass(frozen=True)
class Part:
    """A part that is made but empty, and the tensors for it.

    Attributes:
        model: a skeleton.
        tensors: of the part, by the model's names.
        dtype: of the weights; those that the class keeps in float32 stay in it.
        label: what it is, for the bar.

    Raises:
        SightlineError: a tensor is missing, left over, of another shape, or quantized.
    """

    model: Any
    tensors: Tensors
    dtype: torch.dtype
    label: str

    def __post_init__(self) -> None:
        check_fit(self.model, _names(self.model), self.tensors)

    def fill(self, device: torch.device) -> Any:
        """Read the weights, once and straight to a device.

        Returns:
            The model, in evaluation mode and without gradients.

        Raises:
            SightlineError: a file cannot be read or was cut off meanwhile, or the device's memory runs out.
        """
        state: dict[str, torch.Tensor] = {}
        size = self.tensors.bytes
        with (
            explained(
                f"the {self.label} ({size / 1e9:.1f} GB in its files) does not fit on {device}", ADVICE
            ),
            Progress(f"loading {self.label}", total=size, unit="bytes") as progress,
        ):
            for name, aliases in _names(self.model).items():
                given = [alias for alias in aliases if alias in self.tensors]
                value = self.tensors.read(given[0])
                if value.is_floating_point():
                    value = value.to(dtype=dtype_of(self.model, name, self.dtype))
                state.update(dict.fromkeys(aliases, value.to(device)))
                progress.advance(sum(self.tensors.entries[alias].bytes for alias in given))
        self.model.load_state_dict(state, strict=True, assign=True)
        return self.model.to(device).requires_grad_(False).eval()  # the tables that are in no file move here


def check_fit(model: Any, names: Names, tensors: Tensors) -> None:
    """Compare what a model wants with what there is, by the headers alone.

    Raises:
        SightlineError: the text has the file, the tensor and the numbers.
    """
    where, wanted = tensors.where, model.state_dict(keep_vars=True)
    missing = [name for name, aliases in names.items() if not any(alias in tensors for alias in aliases)]
    if missing:
        raise SightlineError(f"{where} lacks {_some(missing)}, which its config asks for; download it again")
    extra = sorted(set(tensors.entries) - {alias for aliases in names.values() for alias in aliases})
    if extra:
        raise SightlineError(
            f"{where} holds {_some(extra)}, which a {type(model).__name__} of its config has no place for; "
            "it is of another kind of model, or config and weights are of two models"
        )
    for alias, entry in tensors.entries.items():
        expected = tuple(wanted[alias].shape)
        if tuple(entry.shape) != expected:
            raise SightlineError(
                f"{where}: {alias} is {list(entry.shape)}, and the config asks for {list(expected)}; "
                "config and weights are of two models"
            )
        if wanted[alias].is_floating_point() and entry.dtype not in _FLOATS:
            kind = DTYPES.get(entry.dtype, entry.dtype)
            raise SightlineError(
                f"{where}: {alias} is stored as {kind}, so the file is quantized; take one in bfloat16"
            )
    for aliases in names.values():
        _check_same([alias for alias in aliases if alias in tensors], tensors)


def dtype_of(model: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one weight: diffusers always keeps the modules that a class names in float32, transformers keeps
    one list of them beside float16 and another beside bfloat16 as well."""
    import torch
    from diffusers import ModelMixin

    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if not isinstance(model, ModelMixin):
        if dtype != torch.float16:
            kept = set()
        kept |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return torch.float32 if kept & set(name.split(".")) else dtype


def _names(model: Any) -> Names:
    """The names of every tensor that a model wants, by the first of them; a tied one has several."""
    found: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        found.setdefault(id(value), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def _check_same(given: list[str], tensors: Tensors) -> None:
    first = tensors.entries[given[0]]
    for other in given[1:]:
        if not same_bytes(first, tensors.entries[other], tensors.descriptor):
            raise SightlineError(
                f"{tensors.where}: {given[0]} and {other} must be one tensor and differ; save the model again"
            )


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

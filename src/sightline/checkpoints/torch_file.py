"""Files of `torch.save`, without loading them: what tensors they hold and where, and new ones written piece by piece.

A file is a zip archive of a small pickle and the tensors' bytes, stored as they are. torch reads the pickle with
fake tensors, which know their place in the file; and it writes one whose places are left empty, to be filled later.
Pickles are read with `weights_only=True`, which runs nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import Entry, name_of, torch_dtype
from sightline.errors import SightlineError, first_line

if TYPE_CHECKING:
    import torch

Places = dict[tuple[str, ...], Entry]


def read_torch_file(file: Path) -> tuple[Places, dict[tuple[str, ...], Any]]:
    """The tensors of a file by the keys that lead to them, and everything else that it holds.

    Raises:
        SightlineError: it is no such file, is cut off, or holds objects that only code could read.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        file.open("rb").close()
    except OSError as error:
        raise SightlineError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        with FakeTensorMode(), torch.serialization.safe_globals(_stand_ins(file)):
            content = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's advice stands before and behind the cause.
        cause = next((line for line in str(error).splitlines() if "GLOBAL" in line), first_line(error))
        raise SightlineError(
            f"{file} holds objects that only their own code can read ({cause.strip()[:120]}), so it is not "
            "opened; save it again with its weights alone"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError) as error:
        raise SightlineError(
            f"{file} is cut off or is not a file of torch.save: {first_line(error)[:160]}"
        ) from error
    places: Places = {}
    rest: dict[tuple[str, ...], Any] = {}
    for keys, value in _leaves(content):
        if isinstance(value, torch.Tensor):
            places[keys] = _entry(file, keys, value)
        else:
            rest[keys] = value
    return places, rest


class _Inert:
    """Stands for whatever a trainer left in its file beside the weights (arguments, states of generators)."""

    def __init__(self, *given: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def _rebuilt(
    storage: Any, offset: int, size: Any, stride: Any, grad: bool, hooks: Any, npu: Any
) -> torch.Tensor:
    """Stands for torch_npu's function of the same arguments, which moves the tensor to a card besides."""
    import torch

    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, grad, hooks)


# By the names of what they stand for.
_KNOWN: dict[str, Any] = {"torch_npu.utils.storage._rebuild_npu_tensor": _rebuilt}


def _stand_ins(file: Path) -> list[Any]:
    """For every class or function that the pickle names and that is not torch's own: none of them is imported."""
    import torch

    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    return [(_KNOWN.get(name, _Inert), name) for name in names]


def _leaves(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _leaves(value, (*keys, str(key)))
    else:
        yield keys, content


def _entry(file: Path, keys: tuple[str, ...], tensor: Any) -> Entry:
    name = ".".join(keys)
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise SightlineError(
            f"{file}: {name} is in torch's old format; load and save it again with this torch"
        )
    if not tensor.is_contiguous():
        raise SightlineError(f"{file}: {name} is a view of another tensor; save it again as contiguous()")
    start = offset + tensor.storage_offset() * tensor.element_size()
    end = start + tensor.nelement() * tensor.element_size()
    if end > file.stat().st_size:
        raise SightlineError(f"{file} is cut off: {name} ends behind its end")
    return Entry(file, name_of(tensor.dtype), tuple(tensor.shape), start)


def prepare() -> None:
    """Let torch import what its first fake tensor needs, which takes seconds: before progress is shown."""
    _faked(("U8", (1,)))


def reserve_torch_file(file: Path, content: Mapping[str, Any]) -> Places:
    """Write a file of `content` whose tensors are still empty, and tell where their bytes belong.

    Args:
        content: nested; a tensor is given as (dtype of safetensors, shape).
    """
    import torch
    from torch.serialization import skip_data

    fake = _faked(content)
    with skip_data(materialize_fake_tensors=True):
        torch.save(fake, file)
    places, _ = read_torch_file(file)
    return places


def _faked(content: Any) -> Any:
    """The same with a fake tensor for each description of one."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    def made(inside: Any) -> Any:
        if isinstance(inside, Mapping):
            return {key: made(value) for key, value in inside.items()}
        if isinstance(inside, tuple):
            dtype, shape = inside
            return torch.empty(shape, dtype=torch_dtype(dtype))
        return inside

    with FakeTensorMode():
        return made(content)

"""What an attention call is apart from its numbers: shapes, dtype, order of the dimensions, which mask."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sightline.errors import UsageError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Problem:
    """One kind of attention call; two calls of one kind run the same kernel.

    Attributes:
        dtype: fp32, bf16, fp16 or fp64.
        head_first: whether the tensors are [B, N, S, D] rather than [B, S, N, D].
        mask: which dimensions the mask spans, letters of "bnqk" (batch, heads, queries, keys); "" is no mask.
        packed: whether all three tensors are contiguous.
        gradient: whether a gradient will be asked for.
    """

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    dtype: str
    head_first: bool = False
    mask: str = ""
    packed: bool = True
    gradient: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def operations(self) -> int:
        """Floating-point operations of the two matrix products, two for each multiply-add."""
        return 4 * self.batch * self.heads * self.queries * self.keys * self.head_dim

    @property
    def order(self) -> str:
        return "BNSD" if self.head_first else "BSND"

    def key(self) -> str:
        """The problem in one line, the same in every process."""
        words = [
            self.dtype,
            f"b{self.batch}",
            f"n{self.heads}" + (f"/{self.kv_heads}" if self.kv_heads != self.heads else ""),
            f"q{self.queries}",
            f"k{self.keys}",
            f"d{self.head_dim}",
            self.order,
        ]
        words += [f"mask:{self.mask}"] if self.mask else []
        words += [] if self.packed else ["strided"]
        return " ".join([*words, "gradient"] if self.gradient else words)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor | None,
        head_first: bool,
    ) -> Problem:
        """
        Args:
            keep: the mask as `placed_mask` gives it.

        Raises:
            UsageError: the tensors are not three of four dimensions that fit one another.
        """
        tensors = (query, key, value)
        _check(tensors, head_first)
        heads, tokens = (1, 2) if head_first else (2, 1)
        problem = cls(
            batch=query.shape[0],
            heads=query.shape[heads],
            kv_heads=key.shape[heads],
            queries=query.shape[tokens],
            keys=key.shape[tokens],
            head_dim=query.shape[3],
            dtype=_NAMES[query.dtype],
            head_first=head_first,
            mask="" if keep is None else mask_form(keep),
            packed=all(tensor.is_contiguous() for tensor in tensors),
            gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        )
        return problem

    @classmethod
    def from_shape(cls, shape: str, dtype: torch.dtype, **rest: Any) -> Problem:
        """The self-attention of "1x12x32760x128": batch, heads, tokens, head size.

        Args:
            rest: other fields; `keys` and `kv_heads` are those of the queries unless given.

        Raises:
            UsageError: the text is not four numbers above 0, or the other fields do not fit them.
        """
        if not re.fullmatch(r"[1-9]\d*([x*,][1-9]\d*){3}", shape):
            raise UsageError(f"shape {shape!r} is not BATCHxHEADSxTOKENSxHEAD_SIZE, such as 1x12x32760x128")
        batch, heads, queries, head_dim = (int(part) for part in re.split("[x*,]", shape))
        given = {name: value for name, value in rest.items() if value is not None}
        sizes = {"keys": queries, "kv_heads": heads, **given}
        problem = cls(
            batch=batch, heads=heads, queries=queries, head_dim=head_dim, dtype=_NAMES[dtype], **sizes
        )
        if heads % problem.kv_heads:
            raise UsageError(f"{heads} query heads cannot share {problem.kv_heads} key heads evenly")
        return problem


def _check(tensors: tuple[torch.Tensor, ...], head_first: bool) -> None:
    query, key, value = tensors
    order = "[B, N, S, D]" if head_first else "[B, S, N, D]"
    shapes = " ".join(str(tuple(tensor.shape)) for tensor in tensors)
    if any(tensor.dim() != 4 for tensor in tensors):
        raise UsageError(f"attention_forward takes query, key and value as {order}, not {shapes}")
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1 or query.dtype not in _NAMES:
        kinds = " ".join(f"{tensor.dtype} on {tensor.device}" for tensor in tensors)
        raise UsageError(f"query, key and value must be of one floating dtype on one device, not {kinds}")
    heads = 1 if head_first else 2
    fits = key.shape == value.shape and key.shape[0] == query.shape[0] and key.shape[3] == query.shape[3]
    if not fits or key.shape[heads] == 0 or query.shape[heads] % key.shape[heads]:
        raise UsageError(
            f"query, key and value {shapes} do not fit one another as {order}: batch and head size are shared, "
            "and the key heads divide the query heads"
        )


def placed_mask(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, head_first: bool) -> torch.Tensor:
    """A mask as bool [B|1, N|1, Sq|1, Sk|1], True where a query sees a key.

    Args:
        mask: bool or integers, 1 = keep: [Sq, Sk], [B, Sq, Sk] or [B, N, Sq, Sk], any of them 1 for all.

    Raises:
        UsageError: it is of a floating dtype, or its shape does not fit.
    """
    if mask.is_floating_point():
        raise UsageError(
            "attn_mask must be bool or integers with 1 = keep; one of floats is usually added to the scores and "
            "says the opposite: give mask == 0, or mask > -1"
        )
    placed = (
        {2: mask[None, None], 3: mask[:, None]}.get(mask.dim(), mask) if mask.dim() in (2, 3, 4) else mask
    )
    tokens = 2 if head_first else 1
    full = (query.shape[0], query.shape[3 - tokens], query.shape[tokens], key.shape[tokens])
    if placed.dim() != 4 or any(a not in (1, b) for a, b in zip(placed.shape, full, strict=True)):
        raise UsageError(
            f"attn_mask {tuple(mask.shape)} does not fit {full} (batch, heads, queries, keys); give [Sq, Sk], "
            "[B, Sq, Sk] or [B, N, Sq, Sk] with 1 for what is the same for all"
        )
    if mask.device != query.device:
        raise UsageError(f"attn_mask is on {mask.device}, the query on {query.device}")
    return placed.bool()


def mask_form(keep: torch.Tensor) -> str:
    """Which of batch, heads, queries and keys a placed mask spans, at least its keys."""
    spans = "".join(letter for letter, size in zip("bnq", keep.shape, strict=False) if size != 1)
    return spans + "k"

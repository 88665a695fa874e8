"""The kernels that may compute an attention call, and which calls each of them takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sightline.hardware.operators.dense_attention.problem import Problem

#: What a kernel is called with: query, key, value in its own layout, the placed mask or None, scale, the problem.
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float, Problem], torch.Tensor
]
#: Why a kernel does not take a problem; None if it does.
Refusal = Callable[[Problem], str | None]


@dataclass(frozen=True)
class Form:
    """A kernel with the layout that it is given its tensors in.

    Attributes:
        name: as `op_type` names it.
        layout: BSND, BNSD or BSH (heads and head size as one dimension).
        exact: False for a kernel that computes in fewer bits than its tensors have; taken only on request.
        differentiable: whether a gradient flows through it.
    """

    name: str
    layout: str
    kernel: Kernel
    refusal: Refusal = lambda problem: None
    exact: bool = True
    differentiable: bool = True

    def why_not(self, problem: Problem) -> str | None:
        """Why this kernel does not take the problem; None if it does."""
        if problem.gradient and not self.differentiable:
            return "it has no gradient"
        return self.refusal(problem)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor | None,
        scale: float,
        problem: Problem,
    ) -> torch.Tensor:
        """Attention in the problem's own layout; rows that see no key are not looked after here."""
        query, key, value = (laid(tensor, problem.head_first, self.layout) for tensor in (query, key, value))
        mixed = self.kernel(query, key, value, keep, scale, problem)
        return _laid_back(mixed, problem, self.layout)


def laid(tensor: torch.Tensor, head_first: bool, layout: str) -> torch.Tensor:
    """[B, S, N, D], or [B, N, S, D] with `head_first`, as a view in `layout` (BSH copies where it must)."""
    if layout == "BNSD":
        return tensor if head_first else tensor.transpose(1, 2)
    tokens_first = tensor.transpose(1, 2) if head_first else tensor
    return tokens_first.flatten(2) if layout == "BSH" else tokens_first


def _laid_back(mixed: torch.Tensor, problem: Problem, layout: str) -> torch.Tensor:
    if layout == "BSH":
        mixed = mixed.unflatten(2, (problem.heads, problem.head_dim))
    return mixed if (layout == "BNSD") == problem.head_first else mixed.transpose(1, 2)


def forms_for(kind: str) -> list[Form]:
    """The forms of a kind of device, the one taken without a measurement first."""
    from sightline.hardware.operators.dense_attention import library_forms, npu_forms, torch_forms

    if kind == "npu":
        return [*npu_forms.FORMS, *torch_forms.ON_ANY]
    if kind == "cuda":
        return [*torch_forms.ON_CUDA, *library_forms.FORMS]
    if kind == "cpu":
        return [*torch_forms.ON_ANY, *torch_forms.ON_CPU]
    return torch_forms.ON_ANY

"""What this machine can do at most, and which share of it a generation reached."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sightline.errors import UsageError
from sightline.video.operations import decode_work, denoising_work, latents_of, text_work, total
from sightline.video.plan import Plan

if TYPE_CHECKING:
    import torch

    from sightline.video.components import Components
    from sightline.video.request import Request


def roofline(seconds: float, operations: float, rate: float) -> float:
    """The share of a machine's `rate` (operations a second) that was reached.

    Raises:
        UsageError: a time or a rate that is not above 0.
    """
    if not seconds > 0 or not rate > 0:
        raise UsageError(f"seconds and rate must be above 0, not {seconds!r} and {rate!r}")
    return operations / seconds / rate


@lru_cache
def ceiling(device: torch.device, dtype: torch.dtype, *, convolutions: bool = False) -> float:
    """Operations a second of a large matrix product here, measured once in a process.

    Args:
        convolutions: of one that computes as convolutions do: torch lets these, and not products, round float32 to
            TF32 on CUDA.
    """
    import torch

    from sightline.hardware.operators.dense_attention.measure import product_rate

    if not (convolutions and device.type == "cuda" and dtype == torch.float32 and _convolves_in_tf32()):
        return product_rate(device, dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return product_rate(device, dtype)
    finally:
        torch.set_float32_matmul_precision(before)


def _convolves_in_tf32() -> bool:
    import torch

    cudnn: Any = torch.backends.cudnn
    try:
        return bool(cudnn.allow_tf32)
    except RuntimeError:  # the newer switch was used, which this one cannot read
        return bool(cudnn.conv.fp32_precision == "tf32")


@lru_cache
def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy here, read and written, measured once in a process."""
    import time

    import torch

    from sightline.hardware.accelerator import Accelerator

    synchronize = Accelerator(device.type, device.index).synchronize
    given = torch.zeros(1 << (26 if device.type == "cpu" else 30), dtype=torch.uint8, device=device)
    made, times = torch.empty_like(given), []
    for _ in range(6):  # the first finds out where the memory is
        synchronize()
        begun = time.perf_counter()
        made.copy_(given)
        synchronize()
        times.append(time.perf_counter() - begun)
    return 2 * given.numel() / min(times)


def figures(
    components: Components,
    request: Request,
    seconds: Mapping[str, float],
    *,
    plan: Plan | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """What a generation computed and which share of this machine's ceiling that was, for the JSON beside a video.

    Args:
        seconds: `text`, `denoise` and `decode`, as far as they are known.
        devices: as many as worked on it, each with a ceiling like this one's.

    Returns:
        By part of `seconds`: `tflop`, `tflop_without_plan` (denoising), `share` of the ceiling in the part's dtype;
        and under `ceiling_tflops` the ceilings by dtype, that of a text encoder's own device apart. What cannot be
        counted (another VAE, another encoder) is left out.
    """
    config, vae = components.transformer.config, components.vae.config
    shape = latents_of(config, request.width, request.height, request.frames, vae)
    text, branches = components.defaults.text_length, request.branches
    share = len(branches) > 1
    exact = total(denoising_work(config, shape, request.steps, text, branches=branches, share=False))
    spent = total(
        denoising_work(config, shape, request.steps, text, branches=branches, plan=plan, share=share)
    )
    works = {"denoise": (spent, components.dtype)}
    if hasattr(components.text_encoder.config, "is_gated_act"):
        works["text"] = (text_work(components.text_encoder.config, text) * len(branches), components.dtype)
    if not getattr(vae, "is_residual", False):
        works["decode"] = (decode_work(vae, shape), components.vae.dtype)
    found: dict[str, Any] = {"ceiling_tflops": {}}
    for part, (work, dtype) in works.items():
        found[part] = {"tflop": _rounded(work.operations / 1e12)}
        if part == "denoise":
            found[part]["tflop_without_plan"] = _rounded(exact.operations / 1e12)
        if seconds.get(part, 0) > 0:
            apart = components.text_device if part == "text" else None
            rate = ceiling(apart or components.device, dtype, convolutions=part == "decode")
            name = str(dtype).removeprefix("torch.") + (f" on {apart}" if apart else "")
            found["ceiling_tflops"][name] = _rounded(rate / 1e12)
            found[part]["share"] = _rounded(roofline(seconds[part], work.operations, rate * devices))
    return found


def _rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")

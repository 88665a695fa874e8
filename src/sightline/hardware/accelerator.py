"""The one place that knows cpu, cuda and npu apart. Everything else asks an `Accelerator`.

torch.npu, which torch_npu brings, mirrors torch.cuda name for name, so one code path serves both.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError, UsageError
from sightline.hardware import memory
from sightline.hardware.memory import Memory

KINDS = ("npu", "cuda", "cpu")  # in the order in which they are preferred

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
_VISIBLE_DEVICES = {"cpu": "", "cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Accelerator:
    """One device that computes. `index` is None on the CPU, else the number among the visible devices."""

    kind: str
    index: int | None = None

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    @property
    def name(self) -> str:
        """The device in words, as its maker calls it."""
        if self.kind == "cpu":
            return _cpu_name()
        return str(_device_module(self.kind).get_device_name(self.index))

    @property
    def torch_device(self) -> torch.device:
        return torch.device(str(self))

    @property
    def distributed_backend(self) -> str:
        """The torch.distributed backend of this kind: gloo, nccl or hccl."""
        return _BACKENDS[self.kind]

    @property
    def visible_devices_variable(self) -> str:
        """The environment variable that chooses devices of this kind; empty on the CPU."""
        return _VISIBLE_DEVICES[self.kind]

    def count(self) -> int:
        """How many devices of this kind this process sees; 1 for the CPU."""
        return 1 if self.kind == "cpu" else int(_device_module(self.kind).device_count())

    def memory(self) -> Memory:
        """Free and total memory in bytes; on the CPU what this process's cgroup still allows."""
        if self.kind == "cpu":
            return memory.of_machine()
        free, total = _device_module(self.kind).mem_get_info(self.index)
        return Memory(free=int(free), total=int(total))

    def peak_memory(self) -> int:
        """Most bytes held since the start or the last reset: tensors on a device, resident set on the CPU."""
        if self.kind == "cpu":
            return _peak_resident()
        return int(_device_module(self.kind).max_memory_allocated(self.index))

    def reset_peak_memory(self) -> None:
        """Let `peak_memory` start again from what is held now."""
        if self.kind != "cpu":
            _device_module(self.kind).reset_peak_memory_stats(self.index)
            return
        # Linux: 5 sets the high-water mark of the resident set to its present size (man 5 proc). Where there
        # is no such file the peak stays that of the whole process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether arithmetic in `dtype` runs at all (a CPU computes bf16 and fp16 in software if need be)."""
        if dtype == torch.bfloat16 and self.kind == "npu":
            return self._has_bfloat16()
        return dtype in (torch.float32, torch.float16, torch.bfloat16)

    def preferred_dtype(self) -> torch.dtype:
        """bf16 where the hardware computes in it, else fp16 on a device and fp32 on the CPU."""
        if self._has_bfloat16():
            return torch.bfloat16
        return torch.float32 if self.kind == "cpu" else torch.float16

    def synchronize(self) -> None:
        """Wait until everything queued on the device is done."""
        if self.kind != "cpu":
            _device_module(self.kind).synchronize(self.index)

    def empty_cache(self) -> None:
        """Give memory that torch's allocator keeps unused back to the device."""
        if self.kind != "cpu":
            _device_module(self.kind).empty_cache()

    def _has_bfloat16(self) -> bool:
        if self.kind == "cuda":
            # Compute capability 8.0 (Ampere) is the first with bf16 arithmetic; torch emulates it below.
            return bool(torch.version.hip) or torch.cuda.get_device_capability(self.index)[0] >= 8
        if self.kind == "npu":
            return _npu_has_bfloat16(self.index)
        return _cpu_has_bfloat16()


def find(requested: str | None = None) -> Accelerator:
    """The accelerator to compute on.

    Args:
        requested: "cpu", "cuda", "npu", one with a number ("cuda:1"), or None (also "auto") for the best
            there is: npu, cuda, cpu in this order. Under torchrun, a missing number means LOCAL_RANK.

    Raises:
        UsageError: it is not a device's name, or there is no such device here.
        SightlineError: torch_npu is installed but cannot be loaded.
    """
    if requested in (None, "", "auto"):
        kind = next(kind for kind in KINDS if _count(kind) > 0)
        return Accelerator(kind, _default_index(kind))
    kind, _, number = str(requested).strip().lower().partition(":")
    if (
        kind not in KINDS
        or (number and not number.isdecimal())
        or (kind == "cpu" and number not in ("", "0"))
    ):
        raise UsageError(f"device {requested!r} is not cpu, cuda, npu or one with a number such as cuda:1")
    if kind == "cpu":
        return Accelerator("cpu")
    count = _count(kind)
    index = int(number) if number else (_default_index(kind) if count else 0)
    if index is None or index >= count:
        present = ", ".join(str(accelerator) for accelerator in available())
        raise UsageError(f"device {requested!r} is not on this machine; there is {present}")
    return Accelerator(kind, index)


def available() -> list[Accelerator]:
    """Every accelerator that this process sees, best first; the CPU is always the last."""
    found: list[Accelerator] = []
    for kind in ("npu", "cuda"):
        # A torch_npu that cannot be loaded offers no device; find() says why.
        with contextlib.suppress(SightlineError):
            found += [Accelerator(kind, index) for index in range(_count(kind))]
    return [*found, Accelerator("cpu")]


def dtype_from_name(name: str | None, accelerator: Accelerator) -> torch.dtype:
    """The torch dtype that a configuration names; "auto" or None is the accelerator's preferred one.

    Raises:
        UsageError: the name is unknown, or the accelerator cannot compute in it.
    """
    if name in (None, "", "auto"):
        return accelerator.preferred_dtype()
    dtype = _DTYPES.get(str(name).lower().removeprefix("torch."))
    if dtype is None:
        raise UsageError(f"dtype {name!r} is not one of auto, bf16, fp16, fp32")
    if not accelerator.supports(dtype):
        preferred = str(accelerator.preferred_dtype()).removeprefix("torch.")
        raise UsageError(f"{accelerator} ({accelerator.name}) does not compute in {name}; use {preferred}")
    return dtype


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "npu" and not _load_npu():
        return 0
    module = _device_module(kind)
    return int(module.device_count()) if module.is_available() else 0


def _default_index(kind: str) -> int | None:
    if kind == "cpu":
        return None
    # torchrun and accelerate number the processes of a machine; more processes than devices share them.
    return int(os.environ.get("LOCAL_RANK", "0")) % _count(kind)


def _device_module(kind: str) -> Any:
    return getattr(torch, kind)


def _load_npu() -> bool:
    """Import torch_npu where it is installed, which makes `torch.npu`. False where it is not.

    Raises:
        SightlineError: it is installed but its libraries are not found or do not match.
    """
    if hasattr(torch, "npu"):
        return True
    if importlib.util.find_spec("torch_npu") is None:
        return False
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # ImportError for a missing library, RuntimeError for a wrong version
        cause = " ".join(str(error).split())[:200]
        raise SightlineError(
            f"torch_npu is installed but cannot be loaded ({cause}): source CANN's set_env.sh (and NNAL's "
            "atb/set_env.sh after it), install the torch_npu of this torch version, or use device cpu"
        ) from error
    return hasattr(torch, "npu")


def _npu_has_bfloat16(index: int | None) -> bool:
    npu = _device_module("npu")
    if hasattr(npu, "is_bf16_supported"):
        return bool(npu.is_bf16_supported())
    # Older torch_npu: the Ascend 310 family and the first 910 compute in fp16 only. The later 910s have a number
    # behind the letter or an underscore (910B3, 910_9362); a bare 910B is still of the first.
    soc = str(npu.get_device_name(index)).removeprefix("Ascend")
    return "310" not in soc and re.fullmatch("910(Premium|Pro)?[AB]?", soc) is None


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bf16 in hardware: AVX512-BF16 or AMX on x86, the BF16 extension on ARM."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(check() for name in checks if (check := getattr(torch.cpu, name, None)) is not None):
        return True
    flags = _cpu_flags()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu_flags() -> set[str]:
    for line in _cpu_info():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # x86, ARM
            return set(value.split())
    return set()


def _cpu_name() -> str:
    for line in _cpu_info():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _peak_resident() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes on macOS, KiB on Linux

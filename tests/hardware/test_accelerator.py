"""Accelerators: the real CPU, and an NPU by a stand-in for torch.npu with the names of torch_npu 2.7."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sightline.errors import SightlineError, UsageError
from sightline.hardware import accelerator
from sightline.hardware.accelerator import Accelerator, available, dtype_from_name, find

CPU = Accelerator("cpu")


class FakeNpu:
    """What torch_npu puts at torch.npu, recording what is asked of it."""

    def __init__(self, count: int = 2, soc: str = "Ascend910B3", bf16: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.count, self.soc, self.bf16 = count, soc, bf16

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_name(self, index: int | None = None) -> str:
        return self.soc

    def is_bf16_supported(self) -> bool:
        return self.bf16

    def mem_get_info(self, index: int | None = None) -> tuple[int, int]:
        self.calls.append(("mem_get_info", index))
        return 60 * 2**30, 64 * 2**30

    def max_memory_allocated(self, index: int | None = None) -> int:
        return 123

    def reset_peak_memory_stats(self, index: int | None = None) -> None:
        self.calls.append(("reset", index))

    def synchronize(self, index: int | None = None) -> None:
        self.calls.append(("synchronize", index))

    def empty_cache(self) -> None:
        self.calls.append(("empty_cache", None))


@pytest.fixture
def with_npu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def put(npu: Any) -> Any:
        monkeypatch.setattr(torch, "npu", npu, raising=False)
        return npu

    return put


@pytest.fixture
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_count", lambda kind: int(kind == "cpu"))


def test_the_cpu_is_always_there() -> None:
    assert available()[-1] == CPU
    assert find("cpu") == find("CPU:0") == CPU
    assert CPU.torch_device == torch.device("cpu")
    assert CPU.count() == 1
    assert CPU.name
    assert (CPU.distributed_backend, CPU.visible_devices_variable) == ("gloo", "")
    CPU.synchronize()
    CPU.empty_cache()


def test_cpu_memory_is_within_its_total() -> None:
    free, total = CPU.memory()
    assert 0 < free <= total


def test_cpu_peak_memory_counts_what_was_held() -> None:
    # In a process of its own: where the system cannot reset the peak, an earlier test's would hide this one's.
    code = """
import torch
from sightline.hardware.accelerator import find
cpu = find("cpu")
cpu.reset_peak_memory()
before = cpu.peak_memory()
held = torch.ones(50_000_000)  # 200 MB
print(cpu.peak_memory() - before)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output) >= 150_000_000


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2 avx512f", torch.float32),
        ("fpu avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
        ("fp asimd bf16 i8mm", torch.bfloat16),
    ],
)
def test_cpu_prefers_bf16_only_in_hardware(
    monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype
) -> None:
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False, raising=False)
    key = "Features" if "asimd" in flags else "flags"
    monkeypatch.setattr(accelerator, "_cpu_info", lambda: ["processor\t: 0", f"{key}\t\t: {flags}"])
    assert CPU.preferred_dtype() == dtype
    assert all(CPU.supports(each) for each in (torch.float32, torch.float16, torch.bfloat16))
    assert not CPU.supports(torch.int8)


def test_an_npu_is_preferred_and_described(with_npu: Callable[[Any], Any]) -> None:
    npu = with_npu(FakeNpu())
    found = find()
    assert found == Accelerator("npu", 0)
    assert str(found) == "npu:0"
    assert available()[:2] == [Accelerator("npu", 0), Accelerator("npu", 1)]
    assert (found.name, found.count()) == ("Ascend910B3", 2)
    assert found.distributed_backend == "hccl"
    assert found.visible_devices_variable == "ASCEND_RT_VISIBLE_DEVICES"
    second = find("npu:1")
    assert second.memory() == (60 * 2**30, 64 * 2**30)
    assert second.peak_memory() == 123
    second.reset_peak_memory()
    second.synchronize()
    second.empty_cache()
    assert npu.calls == [("mem_get_info", 1), ("reset", 1), ("synchronize", 1), ("empty_cache", None)]


@pytest.mark.parametrize(
    ("soc", "bf16", "dtype"),
    [("Ascend910B3", True, torch.bfloat16), ("Ascend310P3", False, torch.float16)],
)
def test_npus_without_bf16_use_fp16(
    with_npu: Callable[[Any], Any], soc: str, bf16: bool, dtype: torch.dtype
) -> None:
    with_npu(FakeNpu(soc=soc, bf16=bf16))
    found = find("npu")
    assert found.preferred_dtype() == dtype
    assert found.supports(torch.bfloat16) == bf16
    assert dtype_from_name("auto", found) == dtype


def test_bf16_on_an_npu_that_lacks_it_is_refused(with_npu: Callable[[Any], Any]) -> None:
    with_npu(FakeNpu(soc="Ascend310P3", bf16=False))
    with pytest.raises(UsageError, match=r"npu:0 \(Ascend310P3\) does not compute in bf16; use float16"):
        dtype_from_name("bf16", find("npu"))


@pytest.mark.parametrize(
    ("soc", "dtype"),
    [
        ("Ascend310P3", torch.float16),
        ("Ascend910A", torch.float16),
        ("Ascend910ProB", torch.float16),
        ("Ascend910B", torch.float16),
        ("Ascend910B2C", torch.bfloat16),
        ("Ascend910_9362", torch.bfloat16),
    ],
)
def test_an_older_torch_npu_is_asked_by_name(
    with_npu: Callable[[Any], Any], soc: str, dtype: torch.dtype
) -> None:
    with_npu(SimpleNamespace(get_device_name=lambda index: soc))
    assert Accelerator("npu", 0).preferred_dtype() == dtype


def test_a_driver_without_devices_falls_back_to_the_cpu(
    with_npu: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_npu(FakeNpu(count=0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find() == CPU


def test_processes_of_one_machine_take_their_own_device(
    with_npu: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_npu(FakeNpu(count=2))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find() == find("npu") == Accelerator("npu", 1)
    assert find("npu:0") == Accelerator("npu", 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "cpu:1", "cuda:²", "mps"])
def test_a_name_that_is_no_device(name: str) -> None:
    with pytest.raises(UsageError, match="is not cpu, cuda, npu"):
        find(name)


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "npu", "npu:7"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not on this machine; there is cpu"):
        find(name)


def test_a_broken_torch_npu_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "npu", raising=False)

    def broken(name: str) -> None:
        raise ImportError("libatb.so: cannot open shared object file:\nNo such file or directory")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        SightlineError, match=r"\(libatb.so: cannot open .* directory\): source CANN's set_env.sh"
    ):
        find()
    assert find("cpu") == CPU  # does not touch torch_npu
    assert CPU in available()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("float16", torch.float16),
        ("FP32", torch.float32),
        ("torch.float32", torch.float32),
    ],
)
def test_dtype_names(name: str, dtype: torch.dtype) -> None:
    assert dtype_from_name(name, CPU) == dtype


def test_unknown_dtype_names() -> None:
    with pytest.raises(UsageError, match="dtype 'int8' is not one of auto, bf16, fp16, fp32"):
        dtype_from_name("int8", CPU)
    assert dtype_from_name(None, CPU) == CPU.preferred_dtype()


def test_an_accelerator_is_a_value() -> None:
    assert len({Accelerator("cuda", 0), Accelerator("cuda", 0), Accelerator("cuda", 1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        CPU.kind = "npu"  # type: ignore[misc]


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_cuda_device() -> None:
    found = find("cuda")
    free, total = found.memory()
    assert 0 < free <= total
    found.reset_peak_memory()
    held = torch.ones(25_000_000, device=found.torch_device)
    found.synchronize()
    assert found.peak_memory() >= held.numel() * 4
    assert found.supports(found.preferred_dtype())
    assert found.name

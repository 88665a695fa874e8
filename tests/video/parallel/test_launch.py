"""Joining: what is refused before anything is sent, and what a process alone gets."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from sightline.errors import SightlineError, UsageError
from sightline.hardware.accelerator import Accelerator
from sightline.video.parallel import launch
from sightline.video.parallel.guidance import check_plan
from sightline.video.parallel.launch import joined, leads
from sightline.video.parallel.layout import Layout
from sightline.video.parallel.ulysses import cut
from sightline.video.plan import Plan
from sightline.video.schedule import Term
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def started(monkeypatch: pytest.MonkeyPatch, world: int, **more: str) -> None:
    values = {"WORLD_SIZE": str(world), "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(world)}
    for name, value in (values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | more).items():
        monkeypatch.setenv(name, value)


def refused(ulysses: int, cfg: int, device: Any = "cpu", **options: Any) -> str:
    with pytest.raises(SightlineError) as caught, joined(ulysses, cfg, device, **options):
        pass
    return str(caught.value)


def test_a_process_alone_sends_nothing_and_computes_everything() -> None:
    with joined() as layout:
        assert layout == Layout()
        assert not torch.distributed.is_initialized()
    assert layout.leads
    assert leads()
    velocities = {"cond": torch.ones(1), "uncond": torch.zeros(1)}
    assert layout.gather_branches(velocities) == velocities
    assert layout.mine({"cond": torch.ones(1)}) == {"cond": torch.ones(1)}
    model = torch.nn.Linear(1, 1)
    cut(model, layout).undo()  # whatever it is, it is left alone


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (
            ["/usr/bin/sightline", "video", "generate", "--prompt", "a cat", "--ulysses-size", "4"],
            "torchrun --nproc_per_node=4 -m sightline video generate --prompt 'a cat' --ulysses-size 4",
        ),
        (
            ["/lib/sightline/__main__.py", "video", "--cfg-size", "2"],
            "torchrun --nproc_per_node=4 -m sightline video",
        ),
        (["mine.py", "x"], "torchrun --nproc_per_node=4 mine.py x"),
        (["-c"], ": start the program with torchrun --nproc_per_node=4"),
        (["/usr/bin/sightline"], ": start the program with torchrun --nproc_per_node=4"),
    ],
)
def test_without_torchrun_the_command_to_type_is_told(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], typed: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert typed in refused(4, 1)
    assert refused(2, 2).startswith("--ulysses-size 2 --cfg-size 2 needs 4 processes and this is one alone")


@pytest.mark.parametrize(
    ("world", "ulysses", "cfg", "told"),
    [
        (4, 3, 1, "give --ulysses-size 4 --cfg-size 1 or --ulysses-size 2 --cfg-size 2, or start 3"),
        (3, 1, 2, "give --ulysses-size 3 --cfg-size 1, or start 2"),
        (4, 1, 1, "--ulysses-size 1 times --cfg-size 1 is 1, but there are 4 processes"),
        (4, 1, 4, "--cfg-size is 1 or 2"),
        (4, 0, 1, "--ulysses-size is a number of cards, 1 or more, not 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch, world: int, ulysses: int, cfg: int, told: str
) -> None:
    started(monkeypatch, world)
    assert told in refused(ulysses, cfg)


def test_an_environment_that_is_not_torchruns_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK and MASTER_ADDR and MASTER_PORT" in refused(2, 1)
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE is 'two'" in refused(2, 1)


def test_every_process_needs_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, 2)
    assert "--device cuda:1 is one card for 2 processes; give --device cuda" in refused(2, 1, "cuda:1")
    monkeypatch.setattr("sightline.hardware.accelerator.find", lambda name: Accelerator("npu", 0))
    monkeypatch.setattr(Accelerator, "count", lambda self: 1)
    assert "there are 2 processes on this machine and 1 npu device; start one process a device" in refused(
        2, 1, "npu"
    )
    monkeypatch.delenv("LOCAL_RANK")
    assert "LOCAL_RANK is not set, so every process would take the same card" in refused(2, 1, "npu")


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("npu", "hccl"), ("cpu", "gloo")])
def test_the_connection_is_of_the_devices_kind(
    monkeypatch: pytest.MonkeyPatch, kind: str, backend: str
) -> None:
    started(monkeypatch, 2, LOCAL_RANK="1")
    calls: list[Any] = []

    class Module:
        @staticmethod
        def set_device(index: int) -> None:
            calls.append(index)

    found = Accelerator(kind, None if kind == "cpu" else 1)
    monkeypatch.setattr("sightline.hardware.accelerator.find", lambda name: found)
    monkeypatch.setattr(Accelerator, "count", lambda self: 2)
    monkeypatch.setattr(torch, kind, Module, raising=False)
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda name, timeout, **more: calls.append((name, timeout.seconds, more)),
    )
    monkeypatch.setattr(torch.distributed, "barrier", lambda: calls.append("barrier"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("left"))
    monkeypatch.setattr(launch, "arranged", lambda *sizes: Layout(world=2, ulysses=2))

    with pytest.raises(KeyError), joined(2, 1, None, timeout=7):
        raise KeyError
    more = {"device_id": torch.device("cuda:1")} if kind == "cuda" else {}
    assert calls == [*([] if kind == "cpu" else [1]), (backend, 7, more), "left"]
    calls.clear()
    with joined(2, 1, None, timeout=7):
        pass
    assert calls[-2:] == ["barrier", "left"]


def test_processes_that_do_not_meet_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rank 1 looks for rank 0 where nobody is.
    started(monkeypatch, 2, RANK="1")
    assert "the 2 processes did not find one another at 127.0.0.1:1" in refused(2, 1, timeout=1)
    assert not torch.distributed.is_initialized()


def test_two_groups_need_guidance() -> None:
    layout = Layout(rank=1, world=2, cfg=2)
    with pytest.raises(UsageError, match="give --cfg-size 1, or a guidance scale above 1"):
        layout.mine({"cond": torch.zeros(1)})
    assert list(layout.mine({"cond": torch.zeros(1), "uncond": torch.ones(1)})) == ["uncond"]


def test_a_branch_that_is_not_the_ranks_is_refused() -> None:
    with pytest.raises(SightlineError, match="rank 1 computes uncond, but gave cond"):
        Layout(rank=1, world=2, cfg=2).gather_branches({"cond": torch.zeros(1)})


def test_a_plan_that_makes_one_branch_of_the_other_needs_both_on_a_rank() -> None:
    rows = {
        "cond": {OUTPUT: (Action.COMPUTE,) * 2},
        "uncond": {OUTPUT: (Action.COMPUTE, Action.FIT)},
    }
    plan = Plan(
        Setting(steps=2),
        rows,
        name="fitted",
        fits={"uncond": {OUTPUT: {1: (Term("cond", 1, 0.5), Term("uncond", 0, 0.5))}}},
    )
    check_plan(plan, Layout(world=4, ulysses=4))
    with pytest.raises(SightlineError, match="give --ulysses-size 4 --cfg-size 1"):
        check_plan(plan, Layout(world=4, ulysses=2, cfg=2))

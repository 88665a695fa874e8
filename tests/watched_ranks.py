"""Ranks under `watched` that fail in one way or another, each a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Ended:
    """What became of them: exit codes by rank, all their stderr, seconds from the failure to the last end."""

    codes: list[int | None]
    text: str
    seconds: float
    pids: list[int]


def run(folder: Path, body: Callable[[int, Path], None], size: int = 3, send: tuple[int, ...] = ()) -> Ended:
    """Run `body(rank, folder)` on ranks that went through a collective together.

    Args:
        send: a signal to each rank, 0 for none, once all are at work.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "diffusers", "split_vae", "watched_ranks"])
    processes = [context.Process(target=_rank, args=(rank, size, folder, body)) for rank in range(size)]
    for process in processes:
        process.start()
    try:
        # What fails, does so when this file is written.
        until = time.monotonic() + 240
        while len(list(folder.glob("ready-*"))) < size and time.monotonic() < until:
            time.sleep(0.02)
        begun = time.monotonic()
        (folder / "now").touch()
        for process, number in zip(processes, send, strict=False):
            if number:
                os.kill(process.pid, number)
        for process in processes:
            process.join(max(0.0, begun + 20 - time.monotonic()))
        codes = [process.exitcode for process in processes]
        took = time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()
    return Ended(codes, (folder / "stderr").read_text(), took, [process.pid for process in processes])


def _rank(rank: int, size: int, folder: Path, body: Callable[[int, Path], None]) -> None:
    import torch.distributed as dist

    from sightline.cli.app import INTERRUPTED, _say, explain
    from sightline.video.parallel.layout import Layout
    from sightline.video.parallel.watch import watched

    out = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ.pop("MASTER_ADDR", None)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size
    )
    try:
        try:
            with watched(Layout(rank=rank, world=size, ulysses=size)):
                together()
                (folder / f"ready-{rank}").touch()
                body(rank, folder)
        finally:
            dist.destroy_process_group()
    except BaseException as error:
        code = explain(error, debug=False)
        if code == INTERRUPTED:
            _say("interrupted", style="")
        sys.exit(code)


def together() -> None:
    """An all-to-all, which no rank leaves before all others are in it."""
    import torch
    import torch.distributed as dist

    size = dist.get_world_size()
    given = list(torch.ones(size, 1000).unbind())
    dist.all_to_all([torch.empty(1000) for _ in range(size)], given)


def wait(folder: Path) -> None:
    while not (folder / "now").exists():
        time.sleep(0.01)


def raises_on_1(rank: int, folder: Path) -> None:
    from sightline.errors import SightlineError

    wait(folder)
    if rank == 1:
        raise SightlineError("the disk of this machine is full; free some room")
    together()


def raises_on_0(rank: int, folder: Path) -> None:
    wait(folder)
    if rank == 0:
        raise FileNotFoundError(2, "No such file or directory", "weights.safetensors")
    together()


def raises_on_all(rank: int, folder: Path) -> None:
    from sightline.errors import UsageError

    wait(folder)
    raise UsageError("width 481 is no multiple of 16; take 480")


def no_memory_on_2(rank: int, folder: Path) -> None:
    import torch

    wait(folder)
    if rank == 2:
        torch.empty(1 << 56)
    together()


def hangs_on_its_way_out(rank: int, folder: Path) -> None:
    """As leaving a process group can whose other ranks do not answer."""
    import torch.distributed as dist

    wait(folder)
    if rank == 1:
        dist.destroy_process_group = lambda: time.sleep(60)
        raise ValueError("a wrong number")
    together()


def leaves_on_1(rank: int, folder: Path) -> None:
    wait(folder)
    if rank == 1:
        sys.exit(7)
    together()


def works(rank: int, folder: Path) -> None:
    """All of them, over and over."""
    while True:
        together()


def waits_for_2(rank: int, folder: Path) -> None:
    """All but one inside a collective, that one in Python."""
    while rank == 2:
        time.sleep(0.05)
    together()


def hangs_in_a_collective(rank: int, folder: Path) -> None:
    """All of them inside one, waiting for another."""
    import torch
    import torch.distributed as dist

    dist.recv(torch.empty(1), (rank + 1) % 3)


def works_on_after_the_others(rank: int, folder: Path) -> None:
    """Rank 0 has something to write when the others are through."""
    wait(folder)
    while rank == 0:
        time.sleep(0.05)


def slow_end(rank: int, folder: Path) -> None:
    wait(folder)
    time.sleep(0.3 * (2 - rank))


def dies_while_others_compute(rank: int, folder: Path) -> None:
    """Nobody is in a collective, so nobody but the lookout can see it."""
    wait(folder)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def says(ended: Ended) -> list[str]:
    return [line for line in ended.text.splitlines() if line.strip()]


def everyone(number: int, size: int = 3) -> tuple[int, ...]:
    return (number,) * size


def only(rank: int, number: int, size: int = 3) -> tuple[int, ...]:
    return tuple(number if each == rank else 0 for each in range(size))

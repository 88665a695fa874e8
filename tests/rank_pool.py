"""Processes joined by gloo that wait for work: the cost of their start is paid once for all tests of a module."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Pool:
    """`size` processes. A piece of work is a function of a module, called as `work(rank, group, *arguments)`."""

    def __init__(self, size: int) -> None:
        # The libraries are read once, by a process that does nothing else; the ranks are its forks.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "diffusers", "split_vae"])
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._pipes = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Let the first `count` processes do it together; their results by rank.

        Raises:
            AssertionError: one of them failed; with its traceback.
        """
        for rank in range(count):
            self._pipes[rank].send((count, work, arguments))
        answers = []
        for rank in range(count):
            assert self._pipes[rank].poll(120), f"rank {rank} of {count} did not answer"
            answers.append(self._pipes[rank].recv())
        failures = [failure for _, failure in answers if failure]
        assert not failures, "\n".join(failures)
        return [value for value, _ in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    groups = {count: dist.new_group(list(range(count))) for count in range(1, size + 1)}
    while True:
        count, work, arguments = pipe.recv()
        try:
            answer = (work(rank, groups[count], *arguments), "")
        except Exception:
            answer = (None, f"rank {rank}: {traceback.format_exc()}")
        pipe.send(answer)

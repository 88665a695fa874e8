"""Joining the processes that torchrun started, and leaving them, after a failure too."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UsageError, first_line
from sightline.video.parallel.layout import Layout, arranged, check_sizes

if TYPE_CHECKING:
    from sightline.hardware.accelerator import Accelerator

TIMEOUT = (
    1800.0  # seconds; a rank may load weights from a slow disk, or write the video, while the others wait
)


@contextmanager
def joined(
    ulysses: int = 1, cfg: int = 1, device: Any = None, *, timeout: float = TIMEOUT
) -> Iterator[Layout]:
    """Be one of torchrun's processes for the length of a `with`; without torchrun, a process alone.

    The connection is gloo between CPUs, nccl between CUDA cards, hccl between Ascend cards. Ranks leave together; a
    rank that fails leaves at once.

    Args:
        ulysses: over how many ranks the tokens are cut.
        cfg: over how many groups the guidance branches are spread, 1 or 2.
        device: "cpu", "cuda", "npu" or None for the best there is; a card is chosen by LOCAL_RANK.
        timeout: seconds that a rank waits for another. HCCL has its own for the start, HCCL_CONNECT_TIMEOUT, and for
            each exchange, HCCL_EXEC_TIMEOUT.

    Raises:
        UsageError: sizes that do not fit the number of processes, fewer cards than processes, one card named for all.
        SightlineError: the processes do not find one another.
    """
    world = process_count()
    if world == 1:
        if ulysses * cfg > 1:
            raise UsageError(_not_started(ulysses, cfg))
        check_sizes(1, ulysses, cfg)
        yield Layout()
        return
    check_sizes(world, ulysses, cfg)
    import torch.distributed as dist

    # Whoever initialised torch.distributed before ends it too.
    ours = not dist.is_initialized()
    if ours:
        _connect(_accelerator(device), world, timeout)
    try:
        yield arranged(range(world), ulysses, cfg) or Layout()
        # torchrun stops the others when one has left, and gloo's threads abort a process that ends over them.
        dist.barrier()
    finally:
        if ours:
            dist.destroy_process_group()


def process_count() -> int:
    """How many processes torchrun started; 1 without it.

    Raises:
        UsageError: WORLD_SIZE is set, but not by torchrun.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"WORLD_SIZE is {text!r}, which is no number of processes; start with torchrun")
    if int(text) > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {text}, but {' and '.join(missing)} not set; start with torchrun, which sets them, "
                f"or unset WORLD_SIZE"
            )
    return int(text)


def leads() -> bool:
    """Whether this process speaks and writes for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _not_started(ulysses: int, cfg: int) -> str:
    count = ulysses * cfg
    program = Path(sys.argv[0])
    # `-m sightline` and the installed script are the same command line.
    own = program.name == "sightline" or program.parts[-2:] == ("sightline", "__main__.py")
    command = ["torchrun", f"--nproc_per_node={count}", *(["-m", "sightline"] if own else [str(program)])]
    sizes = f"--ulysses-size {ulysses}" + (f" --cfg-size {cfg}" if cfg > 1 else "")
    alone = f"{sizes} needs {count} processes and this is one alone"
    if program.name in ("", "-c") or (own and len(sys.argv) == 1):  # called in Python: the line is not known
        return f"{alone}: start the program with torchrun --nproc_per_node={count}"
    return f"{alone}: run {shlex.join([*command, *sys.argv[1:]])}"


def _accelerator(device: Any) -> Accelerator:
    """This rank's device; a card of its own."""
    from sightline.hardware.accelerator import find

    name = None if device is None else str(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if name is not None and ":" in name:
        raise UsageError(
            f"--device {name} is one card for {here} processes; give --device {name.split(':')[0]}, and every process "
            f"takes its own"
        )
    accelerator = find(name)
    if accelerator.kind != "cpu" and here > 1 and not os.environ.get("LOCAL_RANK"):
        raise UsageError(
            "LOCAL_RANK is not set, so every process would take the same card; start with torchrun, which sets it"
        )
    if accelerator.kind != "cpu" and accelerator.count() < here:
        raise UsageError(
            f"there are {here} processes on this machine and {accelerator.count()} "
            f"{accelerator.kind} device{'s' if accelerator.count() > 1 else ''}; start one process a device, or give "
            f"--device cpu"
        )
    return accelerator


def _connect(accelerator: Accelerator, world: int, timeout: float) -> None:
    import torch
    import torch.distributed as dist

    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout)}
    if accelerator.kind != "cpu":
        getattr(torch, accelerator.kind).set_device(accelerator.index)
    if accelerator.kind == "cuda":
        options["device_id"] = accelerator.torch_device  # NCCL connects at once, and knows whose card it is
    try:
        dist.init_process_group(accelerator.distributed_backend, **options)
    except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise SightlineError(
            f"the {world} processes did not find one another at {where} ({first_line(error)}); see that all of them "
            f"were started and reach that address"
        ) from error

"""One engine and one measurement in a process of its own: `python -m offline.worker JOB RESULT STARTED`.

Runs in the Python that has the engine, so it imports the standard library and Pillow only. STARTED is the time at
which the process was started, by the clock of `time.time`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from offline.engines import Job, Prompt
from offline.measure import MODES


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    engine = importlib.import_module(f"offline.engines.{job.engine}").Engine(job)
    ready = time.time() - float(sys.argv[3])
    result = {"ready_s": ready} | MODES[job.mode](engine, _prompts(job), job)
    result |= {"prompt_tokens": engine.prompt_tokens, "peak_memory_gb": peak_memory(job.device) / 1e9}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def peak_memory(device: str) -> int:
    """Bytes: of the device where it is a GPU, else the resident sets of this process and those below it.

    Pages that processes share, and those of mapped files, count in each of them.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has just ended
        parents[int(status.parent.name)] = (int(lines["PPid"]), lines.get("VmHWM", "0 kB"))
    own = Path("/proc/self").resolve().name
    family, total = {int(own)}, 0
    for pid in sorted(parents):  # a child's id is above its parent's, unless the ids wrapped around
        parent, peak = parents[pid]
        if pid in family or parent in family:
            family.add(pid)
            total += 1024 * int(peak.split()[0])
    return total


def _prompts(job: Job) -> list[Prompt]:
    return [Prompt(**{**fields, "image": _opened(fields.get("image"))}) for fields in job.prompts]


def _opened(path: str | None) -> Any:
    if path is None:
        return None
    import PIL.Image

    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


if __name__ == "__main__":
    main()

"""Memory that runs out while an engine is built, as a sentence that says what to change.

torch has an error of its own for CUDA; NPUs and the CPU raise a RuntimeError whose words alone tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sightline.errors import SightlineError

_WORDS = re.compile(r"out of memory|can(no|')t allocate memory", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's memory, or the machine's, is used up."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    return isinstance(error, (RuntimeError, OSError)) and _WORDS.search(str(error)) is not None


@contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Say what did not fit where the block runs out of memory.

    Args:
        what: the sentence's first half: "the weights do not fit on cuda:0".
        advice: its second: what to change.

    Raises:
        SightlineError: memory ran out. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(str(error))
        size = f" ({asked[1]} more were asked for)" if asked else ""
        raise SightlineError(f"{what}{size}; {advice}") from error

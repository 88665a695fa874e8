"""Whether a grammar compiles in reasonable time and memory, tried in a process that can be killed.

llguidance's limits do not cover everything: of {"type": "integer", "multipleOf": 99999989} it builds an automaton
with a state for each remainder, for minutes, and no thread can be ended from outside. So a grammar that a stranger sent
is first compiled in a small process beside the engine (20 MB; it starts in a tenth of a second, with the first
such grammar, and ends with the engine). It needs no real tokenizer: what runs away does so with single bytes too.

Run as `python -m sightline.engine.sampling.structured.trial` it is that process: a grammar in (one line of JSON), what
became of it out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sightline.engine.sampling.structured.form import error_of, grammar_of, parser_limits, words_of
from sightline.errors import SightlineError

SECONDS = 5.0
"""Of a processor's time; a grammar that compiles for longer is refused. Real schemas take milliseconds."""
MEMORY = 2 * 1024**3
"""Bytes of address space that compiling may take."""
_START_SECONDS = 60.0  # to import, on a machine that is busy
# The engine goes first, so that on a busy machine a trial may get no more than this share of a processor.
_SHARE = 4


# What a process ends with that has used its time.
_TIMED_OUT = -getattr(signal, "SIGPROF", 0) or None


class TooLong(Exception):
    """It was not compiled in time."""


class TooLarge(Exception):
    """The process died of it: of memory, or of a fault in the library."""


class Trial:
    """One process that compiles, for one caller at a time; started at its first use and after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._busy = threading.Lock()

    def compile(self, source: dict[str, Any], seconds: float = SECONDS) -> str:
        """Try a grammar, and give it in llguidance's form.

        Raises:
            ValueError: it is faulty; the text says why.
            TooLong, TooLarge: it takes more than it may.
            SightlineError: the process cannot be started.
        """
        with self._busy:
            if self._process is None:
                self._start()
            answer = self._ask(json.dumps({"seconds": seconds, **source}), seconds * _SHARE)
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["grammar"])

    def close(self) -> None:
        """End the process, from any thread; whoever waits for it gets TooLarge."""
        process = self._process
        if process is not None:
            process.kill()
        with self._busy:
            self._drop()

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # what was not written yet has no reader any more
                process.communicate()

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sightline.engine.sampling.structured.trial"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                # What this process can import, and nothing that lies in the folder in which it happens to run.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                cwd=Path(__file__).parents[4],
                start_new_session=True,  # Ctrl-C is the engine's to handle
            )
        except OSError as error:
            raise SightlineError(f"the process that tries grammars cannot be started: {error}") from error
        try:
            self._ask("", _START_SECONDS)
        except (TooLong, TooLarge):
            raise SightlineError(
                "the process that tries grammars does not start; see what python -m llguidance says"
            ) from None

    def _ask(self, line: str, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):  # it died, or was closed with the engine
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            self._drop()
            raise TooLong if late.is_set() or process.returncode == _TIMED_OUT else TooLarge
        return dict(json.loads(answer))


def main() -> None:
    """Compile what comes on standard input until it ends."""
    _confine()
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    for line in sys.stdin:
        answer = {}
        if line.strip():
            source = json.loads(line)
            with _ending_after(source["seconds"]):
                answer = _try(source, tokenizer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _confine() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MEMORY:
        with suppress(ValueError, OSError):  # macOS knows no such limit
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    os.nice(10)  # the engine goes first


@contextmanager
def _ending_after(seconds: float) -> Iterator[None]:
    """End this process where the block takes longer: perhaps no engine is left to, and only signals end the library."""
    if not hasattr(signal, "setitimer"):  # on Windows the engine's own clock has to do
        yield
        return
    limits = ((signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, 2 * _SHARE * seconds))
    for clock, limit in limits:
        signal.setitimer(clock, limit)
    yield
    for clock, _ in limits:
        signal.setitimer(clock, 0)


def _try(source: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    from llguidance import LLMatcher

    try:
        grammar = grammar_of(source)
    except ValueError as fault:
        return {"error": words_of(str(fault))}
    machine = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    if not machine.is_error():
        machine.compute_bitmask()
    error = error_of(machine) or _begun(machine, tokenizer)
    return {"grammar": grammar} if error is None else {"error": error}


def _begun(machine: Any, tokenizer: Any) -> str | None:
    """Why the grammar cannot be followed behind the bracket that opens an object or an array, where it cannot."""
    for bracket in "{[":
        copy = machine.deep_copy()
        if copy.try_consume_tokens(tokenizer.tokenize_str(bracket)):
            copy.compute_bitmask()
        error = error_of(copy)
        if error is not None:
            return f"{error}; make it simpler"
    return None


if __name__ == "__main__":
    main()

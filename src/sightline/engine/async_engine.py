"""The engine in a thread of its own: requests go in from anywhere, their text comes out as it is made.

Whoever gives a request gets a `Stream`, to be read by a coroutine or a thread. The engine's thread computes and, on a
CPU, prepares prompts between its steps (see `sightline.engine.preprocess`); it never waits for a reader.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.data.media import DEFAULT, Budget
from sightline.engine.adapters import Adapters
from sightline.engine.core import EngineCore
from sightline.engine.errors import EngineDied, EngineFull, EngineStopped, forget_frames
from sightline.engine.inputs import read_prompt
from sightline.engine.line import Job, Line, Result
from sightline.engine.outputs import RequestOutput
from sightline.engine.preprocess import Preparer
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.sequence import Sequence
from sightline.engine.stats import Stats
from sightline.engine.stream import Delta, Stream, Wakeups, wake
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.models.adapters.loader import AdapterInfo

log = logging.getLogger("sightline.engine")

_BEAT = 1.0  # most seconds between two signs of life


class AsyncEngine:
    """Computes requests as they come.

    Args:
        core: used by this engine's thread alone from now on.
        preparer: turns prompts into requests.
        in_turn: prepare in the engine's thread, as a CPU wants it.
        adapters: that requests may name.

    Attributes:
        heartbeat: time.perf_counter() at the engine's last sign of life.
    """

    def __init__(
        self, core: EngineCore, preparer: Preparer, *, in_turn: bool, adapters: Adapters | None = None
    ) -> None:
        settings = core.settings
        self.heartbeat = time.perf_counter()
        self._process = os.getpid()
        self._core = core
        self._preparer = preparer
        self._adapters = adapters or Adapters(None, most=0)
        self._most_open = (settings.max_num_seqs or 1) + settings.max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = (
            queue.SimpleQueue()
        )  # None ends the thread
        self._tell = self._commands.put
        self._line = Line(core, preparer, in_turn=in_turn, tell=self._tell, admit=self._admit)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._names = itertools.count()
        self._open = 0  # requests whose streams have not ended
        self._received = self._turned_away = 0  # requests since the start
        self._draining = self._closed = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Condition(self._lock)
        self._wakeups: Wakeups = {}

    # Callers, from any thread

    def add(
        self,
        prompt: Any,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        number: int | None = None,
        deltas: bool = True,
        budget: Budget = DEFAULT,
        max_prompt_tokens: int | None = None,
        adapter: str | None = None,
        given: float | None = None,
        fetch_seconds: float = 0.0,
        on_end: Callable[[Stream], None] | None = None,
    ) -> Stream:
        """Give a request to the engine; returns at once.

        Args:
            prompt: as `LLM.generate` takes it, or a conversation.
            request_id: None makes one.
            priority: lower runs earlier.
            number: stands for the request where it brings no seed; None counts.
            budget: what one medium may cost.
            max_prompt_tokens: a longer prompt is refused; None is what `max_model_len` leaves.
            adapter: name of a loaded adapter; None is the model itself.
            given: time.perf_counter() when the caller heard of it; None is now.
            fetch_seconds: that the caller took to get its media, for the measurements of it.
            deltas: False if only the whole output is wanted.
            on_end: called in the engine's thread when nothing follows; it must not take long.

        Raises:
            EngineFull: too many wait. EngineStopped: the engine takes no more; EngineDied, one of these: it cannot.
            SightlineError: it is no prompt, there is no such adapter, or its settings cannot be used; what opening
                its media shows is an error of the stream.
        """
        if os.getpid() != self._process:
            raise EngineStopped("this engine was made in another process; make one in this")
        adapted = None if adapter is None else self._adapters.get(adapter)
        prompt = read_prompt(prompt)
        self._preparer.check(prompt, params)
        options = {
            "priority": priority,
            "budget": budget,
            "max_prompt_tokens": max_prompt_tokens,
            "given": time.perf_counter() if given is None else given,
            "fetched": fetch_seconds,
            "adapter": adapted,
        }
        with self._lock:
            self._check_open()
            options["number"] = next(self._numbers) if number is None else number
            unused = (name for name in map(str, self._names) if name not in self._jobs)
            name = next(unused) if request_id is None else request_id
            if name in self._jobs:
                raise SightlineError(f"there is a request {name!r} already; give each its own id")
            stream = Stream(name, lambda: self._tell(lambda: self._abort(job)), deltas=deltas, on_end=on_end)
            job = Job(stream, prompt, params, options)
            self._jobs[name] = job
            if not self._open:
                self.heartbeat = time.perf_counter()  # it may have slept for long
            self._open += 1
            self._received += 1
            self._start()
        self._tell(lambda: self._line.push(job))
        return stream

    def abort(self, request_id: str) -> None:
        """End a request at the next step; nothing happens where there is none."""
        job = self._jobs.get(request_id)
        if job is not None:
            job.stream.abort()

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """The adapters that requests may name."""
        return self._adapters.infos

    def load_adapter(self, name: str, folder: str | Path) -> AdapterInfo:
        """Load an adapter while requests run, in the caller's thread; takes seconds.

        Raises:
            SightlineError: it does not fit this model or into memory, the name is taken, or too many are loaded.
        """
        return self._adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests for an adapter; it leaves memory when those that were given have ended.

        Raises:
            SightlineError: there is none of this name.
        """
        self._adapters.unload(name)

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those that are open; whether all ended within `timeout` seconds."""
        with self._ended:
            self._draining = True
            return self._ended.wait_for(lambda: not self._open, timeout)

    def wait_for_room(self) -> None:
        """Wait until one request more can be given, or none ever."""
        with self._ended:
            self._ended.wait_for(lambda: len(self._jobs) < self._most_open or self._draining)

    def stop(self) -> None:
        """Begin to end all requests as aborted, and the thread; takes no lock and waits for nothing.

        So the collector may call it at any moment, in any thread.
        """
        self._draining = self._closed = True
        self._tell(None)

    def close(self) -> None:
        """End all requests as aborted, and the thread. May be called again."""
        self.stop()
        with self._lock:
            thread = self._thread
        if thread is None:
            self._line.close()
        elif thread is not threading.current_thread():
            thread.join()

    def stats(self) -> Stats:
        """Counts and gauges; read beside the running engine, so they may be of two neighbouring steps."""
        with self._lock:
            unprepared = sum(job.request is None for job in self._jobs.values())
            received, turned_away = self._received, self._turned_away
        return self._core.stats(
            preparing=unprepared,
            image_cache=self._preparer.cache_use(),
            received=received,
            turned_away=turned_away,
        )

    @property
    def alive(self) -> bool:
        """Whether the engine can compute."""
        return not self._closed and self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """What the engine died of; None while it lives, or where it was closed."""
        return self._failure

    @property
    def open_requests(self) -> int:
        """Requests whose streams have not ended."""
        return self._open

    @property
    def thread_id(self) -> int | None:
        """The system's number of the engine's thread, for whoever measures it; None before the first request."""
        return None if self._thread is None else self._thread.native_id

    def stalled(self) -> float:
        """Seconds since the last sign of life while there is work; 0 for an engine that has none."""
        return time.perf_counter() - self.heartbeat if self._open else 0.0

    def _check_open(self) -> None:
        if self._failure is not None:
            raise EngineDied(f"the engine died: {self._failure}") from self._failure
        if self._draining:
            raise EngineStopped("the engine takes no more requests: it is being stopped")
        if len(self._jobs) >= self._most_open:
            self._turned_away += 1
            raise EngineFull(
                f"{len(self._jobs)} requests are computed or waiting already; try again later, or raise max_waiting"
            )

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, so that an error elsewhere can end the process; `close` ends it in good order.
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    # The engine's thread

    def _run(self) -> None:
        try:
            while self._take_commands():
                self.heartbeat = time.perf_counter()
                if not self._line.advance():
                    self.stop()
                    break
                if self._core.has_work:
                    self._deliver(self._core.step())
                wake(self._wakeups)
            self._end_all(None)
        except BaseException as error:
            log.exception("the engine's thread died")
            self._failure = error
            self._end_all(EngineDied(f"the engine died: {type(error).__name__}: {error}"))
        finally:
            wake(self._wakeups)
            self._line.close()
            atexit.unregister(self.close)

    def _take_commands(self) -> bool:
        """Do what was asked for since the last step, waiting for it where there is nothing to compute."""
        waits = not self._core.has_work and not self._line.moves
        # A sign of life now and then while threads prepare; without any work there is nothing to show.
        pause = _BEAT if self._line.preparing else None
        while True:
            try:
                command = self._commands.get(block=waits, timeout=pause)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            waits = False

    def _admit(self, job: Job, result: Result) -> None:
        """Give a prepared request to the core, or say why it is none."""
        self.heartbeat = time.perf_counter()
        if job.stream.aborted and not isinstance(result, Exception):
            self._finish_unprepared(job)
            return
        try:
            if isinstance(result, Exception):
                raise result
            request, preparation = result
            self._core.add(request, preparation)
        except Exception as error:
            self._core.totals.refused += 1
            self._end(job, None, error)
            return
        job.admitted(request)
        job.stream.open(lambda: self._core.output(request), self._wakeups)

    def _finish_unprepared(self, job: Job) -> None:
        """An aborted request of which nothing is known but that it was aborted."""
        output = job.aborted()
        for answer in output.outputs:
            self._core.totals.add_answer("abort")
            if job.stream.wants_deltas:
                job.stream.push(Delta(answer.index, finish_reason="abort"), self._wakeups)
        self._end(job, output, None)

    def _abort(self, job: Job) -> None:
        """End a request at the next step, or at once while it waits to be prepared."""
        if job.request is not None:
            job.request.abort()
        elif not (job.preparing or job.stream.ended):
            self._finish_unprepared(job)

    def _deliver(self, changed: list[Sequence]) -> None:
        """Tell readers what a step brought."""
        for sequence in changed:
            job = self._job_of(sequence)
            delta = job.news(sequence) if job is not None and job.stream.wants_deltas else None
            if job is not None and delta is not None:
                job.stream.push(delta, self._wakeups)
        # Only then, for several answers of one request may have ended in this step.
        for sequence in changed:
            job = self._job_of(sequence)
            if job is not None and all(one.answer.finished for one in sequence.request.sequences):
                self._end(job, self._core.output(sequence.request), None)
                self._core.forget(sequence.request.id)  # only now does no reader ask the core

    def _job_of(self, sequence: Sequence) -> Job | None:
        """None where its end is told, whose id may be given again."""
        job = self._jobs.get(sequence.request.id)
        return job if job is not None and job.request is sequence.request else None

    def _end(self, job: Job, output: RequestOutput | None, error: BaseException | None) -> None:
        if error is not None:
            forget_frames(error)
        # Out of the books before its reader knows, who may ask for the same id again.
        with self._lock:
            self._jobs.pop(job.stream.id, None)
        job.drop()
        job.stream.end(output, self._wakeups, error)
        with self._ended:
            self._open -= 1
            self._ended.notify_all()

    def _end_all(self, error: BaseException | None) -> None:
        """Leave nobody waiting: as aborted where the engine was closed, with an error where it died."""
        with self._lock:
            self._draining = True
            jobs = list(self._jobs.values())
        for job in jobs:
            if error is not None:
                self._end(job, None, error)
            elif job.request is None:
                self._finish_unprepared(job)
        if error is None:
            self._deliver(self._core.close())

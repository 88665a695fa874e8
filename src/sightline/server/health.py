"""Whether the server can answer, told by one object that every health endpoint asks."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sightline.engine.errors import EngineFull
from sightline.engine.llm import LLM
from sightline.engine.sampling.params import SamplingParams
from sightline.errors import SightlineError
from sightline.server.errors import RETRY_AFTER

log = logging.getLogger("sightline.server")

_NOT_READY: dict[str, Any] = {"description": "not ready; the body says why"}

State = Literal["loading", "ready", "draining", "stalled", "dead"]

# A step that computes may be silent this many times longer than one that does nothing.
_PATIENCE = 10
# Share of the time that a thread must have spent on a processor to count as computing; others may want it too.
_BUSY = 0.05
# What /health/timed waits for where it names no seconds.
_TIMED_SECONDS = 10
_FIRST = -(2**31)  # a priority before all others
# A sign of life this fresh makes a probe superfluous.
_FRESH = 1.0


class Health:
    """The state of a server.

    `loading` until the engine is there, then `ready`; `draining` once it shall stop, `dead` after a failure that ended
    the engine's thread, and `stalled` while there is work but no sign of life: the engine gives one between two steps.
    On a CPU a single step may compute for minutes, so there a thread that keeps its processor busy is believed for ten
    times as long; one that waits for something that never comes uses none.

    Args:
        stall_seconds: without a sign of life.
    """

    def __init__(self, stall_seconds: float = 25.0) -> None:
        self.stall_seconds = stall_seconds
        self._llm: LLM | None = None
        self._draining = False
        self._probing: asyncio.Task[None] | None = None
        self._probed = -_FRESH  # when a probe was last answered
        self._told: State = "ready"
        # A heartbeat, when it was first seen, and the thread's processor seconds then.
        self._seen = (0.0, 0.0, 0.0)

    def loaded(self, llm: LLM) -> None:
        self._llm = llm

    def drain(self) -> None:
        """The server takes no more requests from now on."""
        self._draining = True

    @property
    def state(self) -> State:
        if self._llm is None:
            return "draining" if self._draining else "loading"
        if self._llm.engine.failure is not None:
            return "dead"
        if self._draining or not self._llm.engine.alive:
            return "draining"
        return "stalled" if self._is_stuck() else "ready"

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def hopeless(self) -> bool:
        """Whether the open requests cannot be expected to end by themselves, whatever else the state is."""
        if self._llm is None:
            return False
        return self._llm.engine.failure is not None or self._is_stuck()

    @property
    def reason(self) -> str:
        """The state in words for people; nothing of the server's inside."""
        if self.state == "stalled" and self._llm is not None:
            return f"the engine has given no sign of life for {self._llm.engine.stalled():.0f} s"
        return {
            "loading": "the model is being loaded",
            "ready": "ready",
            "draining": "the server is stopping",
            "dead": "the engine has died",
            "stalled": "the engine has given no sign of life",
        }[self.state]

    def watch(self) -> State:
        """Look once, as is done every few seconds, and log what has changed. Gives the state."""
        if self._llm is not None:
            beat = self._llm.engine.heartbeat
            if beat != self._seen[0]:
                self._seen = (beat, time.perf_counter(), _processor_use(self._llm.engine.thread_id)[1])
        state = self.state
        if state != self._told and "stalled" in (state, self._told):
            if state == "stalled":
                log.error("%s; the server is not ready", self.reason)
            else:
                log.warning("the engine moves again")
        self._told = state
        return state

    async def timed(self, seconds: float) -> bool:
        """Whether the engine gives a sign of life within `seconds`: what it computes, or one token made for this."""
        if self._llm is None or not self.ready:
            return False
        engine = self._llm.engine
        if (
            engine.open_requests and engine.stalled() < _FRESH
        ) or time.perf_counter() - self._probed < _FRESH:
            return True
        # All who ask share one probe: nobody has to show a key for it, so it must not cost more by the number of them.
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(self.probe())
            self._probing.add_done_callback(_look_at)
        try:
            await asyncio.wait_for(asyncio.shield(self._probing), seconds)
            self._probed = time.perf_counter()
        except (asyncio.TimeoutError, EngineFull):
            # The probe's own arrival was a sign of life too, so only later ones count.
            return engine.stalled() < seconds / 2
        except SightlineError as error:
            log.error("the probe for /health/timed failed: %s", error)
            return False
        return True

    async def probe(self) -> None:
        """Generate one token, before all other requests.

        Raises:
            SightlineError: the engine cannot.
        """
        assert self._llm is not None
        tokenizer = self._llm.get_tokenizer()
        tokens = tokenizer.encode("a", add_special_tokens=False)[:1]
        stream = self._llm.engine.add(
            {"prompt_token_ids": tokens},
            SamplingParams(max_tokens=1, temperature=0),
            priority=_FIRST,
            deltas=False,
        )
        try:
            output = await stream.finished()
        finally:
            stream.abort()
        if output.error is not None:
            raise SightlineError(output.error)

    def _is_stuck(self) -> bool:
        assert self._llm is not None
        silent = self._llm.engine.stalled()
        if silent <= self.stall_seconds:
            return False
        return silent > _PATIENCE * self.stall_seconds or not self._computes()

    def _computes(self) -> bool:
        """Whether the engine's thread has a processor or waits for one, or had one since it was last looked at."""
        assert self._llm is not None
        beat, since, used = self._seen
        if self._llm.model.accelerator.kind != "cpu" or beat != self._llm.engine.heartbeat:
            return False
        elapsed = time.perf_counter() - since
        runs, seconds = _processor_use(self._llm.engine.thread_id)
        return runs or (elapsed > 0 and (seconds - used) / elapsed > _BUSY)


def _look_at(task: asyncio.Task[None]) -> None:
    """An error that nobody waits for any more is no news."""
    if not task.cancelled():
        task.exception()


def _processor_use(thread: int | None) -> tuple[bool, float]:
    """Whether a thread runs or could, and its seconds of processor time; (False, 0) where the system is not Linux."""
    try:
        told = Path(f"/proc/self/task/{thread}/stat").read_text()
    except OSError:
        return False, 0.0
    # After the name in brackets come the fields from the third on, the state; 14 and 15 are user and system time.
    fields = told.rpartition(")")[2].split()
    return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def router(health: Health) -> APIRouter:
    """The health endpoints, which need no API key and are answered whatever the state is."""
    routes = APIRouter()

    def told() -> Response:
        if health.ready:
            return Response()
        body = {"status": health.state, "reason": health.reason}
        return JSONResponse(body, status_code=503, headers={"retry-after": RETRY_AFTER})

    async def ready() -> Response:
        return told()

    async def live() -> Response:
        return Response()

    for path, answer in (
        *(("/health", ready), ("/ping", ready)),
        *(("/v2/health/ready", ready), ("/v2/health/live", live)),
    ):
        described: dict[int | str, dict[str, Any]] = {503: _NOT_READY} if answer is ready else {}
        routes.add_api_route(path, answer, methods=["GET"], responses=described, response_class=Response)
        routes.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)

    @routes.get("/health/timed", responses={503: _NOT_READY}, response_class=Response)
    async def timed() -> Response:
        return await within(_TIMED_SECONDS)

    @routes.get(
        "/health/timed-{seconds}",
        responses={400: {"description": "no number of seconds"}, 503: _NOT_READY},
        response_class=Response,
    )
    async def timed_within(seconds: str) -> Response:
        if not re.fullmatch("[0-9]{1,3}", seconds) or not 1 <= int(seconds) <= 600:
            raise HTTPException(400, "write /health/timed-N with N from 1 to 600 seconds")
        return await within(int(seconds))

    async def within(seconds: int) -> Response:
        if await health.timed(seconds):
            return Response()
        if not health.ready:
            return told()
        body = {"status": "slow", "reason": f"the engine gave no sign of life within {seconds} s"}
        return JSONResponse(body, status_code=503, headers={"retry-after": RETRY_AFTER})

    return routes


def is_health_path(path: str) -> bool:
    """Whether an orchestrator's probe asks here."""
    return path in ("/health", "/ping", "/v2/health/ready", "/v2/health/live") or path.startswith(
        "/health/timed"
    )

"""Who asked what: a request's id, and one line of the log for it, in which nothing of its texts stands."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.data.conversation import Conversation
from sightline.server.errors import error_body
from sightline.server.health import is_health_path
from sightline.server.worker import STOPPING

if TYPE_CHECKING:
    from sightline.server.exchange import Exchange

log = logging.getLogger("sightline.access")
_failures = logging.getLogger("sightline.server")

# What a client may call its request: nothing that could break a line of a log or an answer's header.
_SANE = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_MOST_LOGGED = 100_000  # characters of a request's texts
_numbers = itertools.count(1)


@dataclass
class Record:
    """One HTTP request while it is answered."""

    id: str
    exchanges: list[Exchange] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def counts(self) -> str:
        """Tokens in and out, and why the answers ended, of all that the engine was asked."""
        outputs = [output for exchange in self.exchanges if (output := exchange.output_so_far) is not None]
        if not outputs:
            return ""
        taken = sum(len(output.prompt_token_ids) for output in outputs)
        answers = [answer for output in outputs for answer in output.outputs]
        given = sum(len(answer.token_ids) for answer in answers)
        reasons = dict.fromkeys(str(answer.finish_reason or "running") for answer in answers)
        return f" in={taken} out={given} finish={','.join(reasons)}"

    def answers(self) -> list[str]:
        outputs = [output for exchange in self.exchanges if (output := exchange.output_so_far) is not None]
        return [answer.text for output in outputs for answer in output.outputs]


_current: ContextVar[Record | None] = ContextVar("request", default=None)


def engine_id() -> str | None:
    """The id for the engine of what the present HTTP request asks: its own, made unique. None outside of one."""
    record = _current.get()
    return None if record is None else f"{record.id}-{next(_numbers)}"


def remember(exchange: Exchange, conversation: Conversation) -> None:
    """Count what the engine is asked to the present HTTP request."""
    record = _current.get()
    if record is not None:
        record.exchanges.append(exchange)
        record.texts += [f"{message.role}: {message.text}" for message in conversation.messages]


class Access:
    """The outermost ASGI middleware: gives requests their ids, logs them, and lets no failure out.

    Args:
        lines: log a line for each request.
        texts: log the texts of prompts and answers as well.
    """

    def __init__(self, app: ASGIApp, *, lines: bool = True, texts: bool = False) -> None:
        self._app = app
        self._lines = lines
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(scope))
        _current.set(record)
        begun = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", record.id.encode()), (b"date", formatdate(usegmt=True).encode())]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            # The server ends and waits no longer; the task would end here anyway, with a page in the log.
            if not status:
                await JSONResponse(error_body(STOPPING, status=503), 503)(scope, receive, answer)
        except Exception as error:
            # The application has logged its own failures when it answered them.
            if not status:
                _failures.error("request %s failed", record.id, exc_info=error)
                await JSONResponse(error_body("the server failed", status=500), 500)(scope, receive, answer)
        finally:
            self._log(scope, record, status, time.perf_counter() - begun)
            # Timers, cancelled ones too, keep the context they were made in, and with it this record.
            record.exchanges.clear()
            record.texts.clear()

    def _log(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        if not self._lines:
            return
        # What probes and dashboards ask every few seconds would hide the rest.
        routine = status == 200 and (is_health_path(scope["path"]) or scope["path"] == "/metrics")
        level = logging.DEBUG if routine else logging.INFO
        if not log.isEnabledFor(level):
            return
        client = scope["client"][0] if scope.get("client") else "-"
        path = scope.get("raw_path", b"").decode("latin-1")[:256] or "-"
        counts = record.counts()
        milliseconds = f"{1000 * seconds:.0f}ms"
        log.log(
            level,
            "%s %s %s %s %d %s%s",
            record.id,
            client,
            scope["method"],
            path,
            status,
            milliseconds,
            counts,
        )
        if self._texts and record.texts:
            _log_texts(record)


def _log_texts(record: Record) -> None:
    texts: dict[str, Any] = {"prompt": record.texts, "answers": record.answers()}
    log.info("%s %s", record.id, json.dumps(texts, ensure_ascii=True)[:_MOST_LOGGED])


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _SANE.fullmatch(given) else uuid.uuid4().hex

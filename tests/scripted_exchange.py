"""An exchange whose answer is a script: what the server does with a text that no tiny model would write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sightline.engine.outputs import CompletionOutput, RequestOutput
from sightline.engine.stream import Delta
from sightline.server.errors import RequestError


class ScriptedExchange:
    """Stands for an `Exchange`.

    Args:
        pieces: the text of the one answer, piece by piece.
        wait: seconds before the first piece.
        error: raised in the place of the end.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        *,
        reason: str = "stop",
        wait: float = 0.0,
        error: RequestError | None = None,
    ) -> None:
        self.model = "tiny"
        self.aborted = False
        self._pieces = pieces
        self._reason = reason
        self._wait = wait
        self._error = error
        answer = CompletionOutput(0, "".join(pieces), list(range(len(pieces))), finish_reason=reason)
        self.output = RequestOutput("1", None, [1, 2, 3], [answer])

    async def finished(self) -> RequestOutput:
        if self._error is not None:
            raise self._error
        return self.output

    async def deltas(self) -> AsyncIterator[Delta]:
        await asyncio.sleep(self._wait)
        for number, piece in enumerate(self._pieces):
            yield Delta(0, piece, [number])
        if self._error is not None:
            raise self._error
        yield Delta(0, finish_reason=self._reason)

    def abort(self) -> None:
        self.aborted = True


def script(monkeypatch: Any, exchange: ScriptedExchange) -> list[Any]:
    """Let every request of this process get `exchange`; gives what each of them asked."""
    from sightline.server.service import Service

    asked: list[Any] = []

    async def submit(self: Service, prompt: Any, params: Any, **options: Any) -> Any:
        asked.append((prompt, params, options))
        return exchange

    monkeypatch.setattr(Service, "submit", submit)
    return asked

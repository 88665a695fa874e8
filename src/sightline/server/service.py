"""What every dialect does with a request once it is read: its media are fetched, its limits kept, the engine asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import Request

from sightline.data.conversation import Conversation, Image, Part, Video
from sightline.data.media import MediaError
from sightline.engine.inputs import Prompt
from sightline.engine.llm import LLM
from sightline.engine.sampling.params import SamplingParams
from sightline.server import access
from sightline.server.errors import RequestError
from sightline.server.exchange import Exchange, late
from sightline.server.limits import Limits
from sightline.server.media.fetcher import openai_field
from sightline.server.names import Names
from sightline.server.threads import Threads
from sightline.server.worker import Worker

_ASIDE = 8  # calls beside the event loop at a time
_SLOWEST = 32 * 2**10  # bytes a second that a body's sender must keep to


class Service:
    """One loaded engine as its HTTP dialects see it.

    Attributes:
        llm: the engine; its tokenizer, lengths and statistics.
        names: what clients may call the model.
        limits: what a request may hold.
        defaults: sampling settings of the checkpoint, for what a request leaves out.
        worker: the open requests.
        threads: for long work that is not the engine's, such as tokenising; no end of the server waits for them.
        fetcher: gets web addresses and allowed files; None where requests bring their media.
    """

    def __init__(
        self, llm: LLM, names: Sequence[str], *, limits: Limits | None = None, fetcher: Any = None
    ) -> None:
        self.llm = llm
        self.names = Names(llm, names)
        self.limits = limits or Limits()
        self.defaults = llm.get_default_sampling_params()
        self.worker = Worker(llm)
        self.threads = Threads(_ASIDE, "sightline-aside", _busy)
        self.fetcher = fetcher
        self._controls = [token for token in llm.get_tokenizer().get_added_vocab() if token.startswith("<|")]

    async def body(self, http: Request) -> bytes:
        """The request's body, read only as far as it is allowed to be long, and as long as it keeps coming.

        Raises:
            RequestError: 413, it is too long or holds too many values; 408, it stopped coming, or drips.
        """
        body = bytearray()
        try:
            await self._read(http, body)
        except BaseException:
            body.clear()  # what an error has come through may wait for the collector's rarest run
            raise
        # Text and media are read at memory's speed; each value takes a Python object, and no other request moves.
        most = self.limits.max_values
        if sum(map(body.count, b",[{")) > most:
            raise RequestError(
                f"the body holds more than {most:,} values; send fewer, or shorter texts", status=413
            )
        return bytes(body)

    async def _read(self, http: Request, body: bytearray) -> None:
        limits, pieces, begun = self.limits, http.stream(), time.monotonic()
        while True:
            # An open request is one of few: who sends a byte now and then would keep the others out.
            left = begun + limits.body_seconds + len(body) / _SLOWEST - time.monotonic()
            try:
                body += await asyncio.wait_for(anext(pieces), max(0.0, min(left, limits.body_seconds)))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError as error:
                raise RequestError(
                    f"no more of the body came in {limits.body_seconds:g} s, or less than {_SLOWEST:,} bytes a second",
                    status=408,
                ) from error
            if len(body) > limits.max_body:
                raise RequestError(
                    f"the body is longer than {limits.max_body:,} bytes; send smaller media", status=413
                )

    async def submit(
        self,
        prompt: Conversation | Prompt,
        params: SamplingParams,
        *,
        model: str | None = None,
        deltas: bool = True,
        priority: int = 0,
        request_id: str | None = None,
        where: Callable[[int, int, Part], str] | None = None,
    ) -> Exchange:
        """Give a request to the engine, and wait until it is prepared and can be answered.

        Call it inside of `until_left`, so that a client that leaves ends the fetching too.

        Args:
            prompt: a conversation whose media are data: URLs, web addresses, file:// URLs or bytes; or a prompt
                that the template was applied to.
            model: what the request calls the model.
            deltas: False if only the whole answer is wanted.
            priority: lower runs earlier.
            where: as `Fetcher.resolve` takes it: the client's field of a medium; None where the conversation's
                messages and parts are numbered as the client's are.

        Raises:
            RequestError: the request cannot be used, or the server is full or stopping.
        """
        given = time.perf_counter()
        self.names.find(model)
        conversation = asked = prompt if isinstance(prompt, Conversation) else prompt.media
        self._check_texts(conversation)
        # What was fetched counts until the engine has opened it: in its line the bytes are as large as on their way.
        async with self._with_media(conversation, where) as conversation:
            fetched = time.perf_counter() - given
            limits = self.limits
            served = self.names.find(model)  # an adapter may have been unloaded meanwhile
            stream = self.worker.add(
                conversation if isinstance(prompt, Conversation) else replace(prompt, media=conversation),
                params,
                deltas=deltas,
                priority=priority,
                request_id=request_id or access.engine_id(),
                budget=limits.medium,
                max_prompt_tokens=limits.max_prompt_tokens,
                adapter=served.adapter,
                given=given,
                fetch_seconds=fetched,
            )
            exchange = Exchange(stream, served.name, limits.request_seconds, spent=fetched)
            access.remember(exchange, conversation)
            try:
                await exchange.opened()
            except RequestError as error:
                if not isinstance(error.__cause__, MediaError):
                    raise
                field = _field_of(error.__cause__, asked, where or openai_field)
                raise RequestError(str(error), param=field) from error.__cause__
        return exchange

    @asynccontextmanager
    async def _with_media(
        self, conversation: Conversation, where: Callable[[int, int, Part], str] | None
    ) -> AsyncIterator[Conversation]:
        if self.fetcher is None or not (conversation.images or conversation.videos):
            yield conversation
            return
        options = {} if where is None else {"where": where}
        seconds = self.limits.request_seconds
        async with AsyncExitStack() as stack:
            entered = stack.enter_async_context(self.fetcher.resolved(conversation, **options))
            try:
                found: Conversation = await asyncio.wait_for(entered, seconds)
            except asyncio.TimeoutError as error:
                raise late(seconds) from error
            yield found

    def control_token(self, text: str) -> str | None:
        """The first of the model's control tokens that a text holds."""
        return next((token for token in self._controls if token in text), None)

    def _check_texts(self, conversation: Conversation) -> None:
        """Text that tokenizers read as control tokens would let a client write other roles' turns."""
        for number, message in enumerate(conversation.messages, 1):
            found = self.control_token(message.text)
            if found is not None:
                raise RequestError(
                    f"message {number} holds the control token {found}; leave it out", param="messages"
                )


def _field_of(error: MediaError, conversation: Conversation, where: Callable[[int, int, Part], str]) -> str:
    """The client's field of the medium that an error of the engine is about."""
    kinds = {"image": Image, "video": Video}
    if error.medium is None:
        return "messages"
    kind, number = error.medium
    fields = [
        where(i, j, part)
        for i, message in enumerate(conversation.messages)
        for j, part in enumerate(message.parts)
        if isinstance(part, kinds[kind])
    ]
    return fields[number]


def _busy() -> RequestError:
    return RequestError("the system gives this server no more threads; try again later", status=503)

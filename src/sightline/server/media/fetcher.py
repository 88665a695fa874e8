"""A request's media, all fetched before the engine is asked: addresses and files in, bytes out.

Everything of one request is fetched at once and ends together: the first medium that is refused, or a client
that leaves, ends the others in the same moment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio
import httpcore2

from sightline.data.conversation import Conversation, Image, Message, Part, Source, Text
from sightline.data.media import Named
from sightline.server.errors import RequestError
from sightline.server.media import refusal
from sightline.server.media.local import is_file_url, is_plain_path, read_local
from sightline.server.media.policy import MediaPolicy
from sightline.server.media.refusal import Refused
from sightline.server.media.resolver import CheckedBackend, Resolver, own_addresses
from sightline.server.media.urls import WebAddress, parse_url
from sightline.server.media.web import WebClient, check_kind
from sightline.server.threads import Threads

# Sources of a request, of which pictures that stand for a clip's frames may be many.
_MOST_FETCHES = 1024
_AT_A_STRETCH = 16

Where = Callable[[int, int, Part], str]


def openai_field(message: int, part: int, medium: Part) -> str:
    """The field of OpenAI's protocol that holds a medium."""
    return f"messages[{message}].content[{part}].{'image_url' if isinstance(medium, Image) else 'video_url'}"


@dataclass(frozen=True)
class _Task:
    """One source to fetch: for several parts of a request where they name the same."""

    source: str
    kind: str
    where: str
    address: WebAddress | None = None


class Fetcher:
    """Gives a server its requests' media. Used inside `async with`, by one event loop.

    Args:
        policy: what is allowed, and the limits.
        resolver: from a host's name to its addresses; asked once for each connection. By default the system's.
        dialer: opens connections to addresses that were found public.
        tls: whom to believe about https hosts.
    """

    def __init__(
        self,
        policy: MediaPolicy,
        *,
        resolver: Resolver | None = None,
        dialer: httpcore2.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy
        self._web = WebClient(policy, CheckedBackend(resolver, dialer, own_addresses()), tls)
        self._connections = asyncio.Semaphore(policy.connections)
        self._files = Threads(16, "sightline-media-file", refusal.busy)
        self._held = 0

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._web.aclose()

    @property
    def held_bytes(self) -> int:
        """Of media that are being fetched or wait for the engine to open them, of all requests."""
        return self._held

    @asynccontextmanager
    async def resolved(
        self, conversation: Conversation, *, plain_paths: bool = False, where: Where = openai_field
    ) -> AsyncIterator[Conversation]:
        """The conversation with bytes in the place of web addresses and files, which count until the block's end.

        data: URLs are checked for their size and stay, for whoever decodes them does it in a thread; what is bytes or
        an open picture stays too. Cancelling the entry ends all of its fetches.

        Args:
            plain_paths: whether a source that begins with a slash is a file's path, as in MindIE's dialect.
            where: the field that errors name, from the message's and the part's number and the part.

        Raises:
            RequestError: 400 for what the policy refuses, 422 for a host that fails, 503 where too much is being
                fetched already. Its param names the field.
        """
        tasks, total = await self._plan(conversation, plain_paths, where)
        with self._account(total) as take:
            yield _filled(conversation, await self._all(tasks, take)) if tasks else conversation

    async def resolve(
        self, conversation: Conversation, *, plain_paths: bool = False, where: Where = openai_field
    ) -> Conversation:
        """`resolved`, for whoever counts the bytes that come out by himself."""
        async with self.resolved(conversation, plain_paths=plain_paths, where=where) as found:
            return found

    async def _plan(
        self, conversation: Conversation, plain_paths: bool, where: Where
    ) -> tuple[list[_Task], int]:
        """What is to be fetched, and the bytes that the request brings itself. Nothing is opened yet."""
        if len(conversation.images) + len(conversation.videos) > self.policy.max_media:
            raise RequestError(
                f"messages hold more than {self.policy.max_media} images and videos; send fewer",
                param="messages",
            )
        longest = max((len(v.source) for v in conversation.videos if isinstance(v.source, tuple)), default=0)
        if longest > self.policy.max_frames:
            raise RequestError(
                f"messages hold a video of more than {self.policy.max_frames} frames; send fewer",
                param="messages",
            )
        tasks: dict[tuple[str, str], _Task] = {}
        total = 0
        for field, kind, source in _sources(conversation, where):
            if not isinstance(source, str):
                continue
            with _about(field):
                if source[:5].lower() == "data:":
                    total += self._data_size(source, total)
                elif (source, kind) not in tasks:
                    tasks[source, kind] = self._task(source, kind, field, plain_paths)
            if len(tasks) > _MOST_FETCHES:
                raise RequestError(
                    f"messages name more than {_MOST_FETCHES} pictures and videos to fetch; send fewer",
                    param="messages",
                )
            if len(tasks) % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)  # a host's name in another script takes a millisecond
        return list(tasks.values()), total

    def _data_size(self, source: str, before: int) -> int:
        size = len(source) * 3 // 4
        if size > self.policy.max_bytes:
            raise refusal.too_many_bytes(self.policy.max_bytes)
        if before + size > self.policy.max_total_bytes:
            raise refusal.too_many_bytes_in_all(self.policy.max_total_bytes)
        return size

    def _task(self, source: str, kind: str, field: str, plain_paths: bool) -> _Task:
        if is_file_url(source) or (plain_paths and is_plain_path(source)):
            if not self.policy.allowed_local_paths:
                raise refusal.no_files()
            return _Task(source, kind, field)
        if source[:5].lower() not in ("http:", "https"):
            raise refusal.unknown_kind()
        if not self.policy.fetch:
            raise refusal.no_fetching()
        return _Task(source, kind, field, parse_url(source))

    @contextmanager
    def _account(self, total: int) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of one request, and gives them back to the server's account at its end."""
        mine, own = 0, total

        def take(size: int) -> None:
            nonlocal mine
            if own + mine + size > self.policy.max_total_bytes:
                raise refusal.too_many_bytes_in_all(self.policy.max_total_bytes)
            if self._held + size > self.policy.max_held_bytes:
                raise refusal.busy()
            mine += size
            self._held += size

        try:
            yield take
        finally:
            self._held -= mine

    async def _all(self, tasks: list[_Task], take: Callable[[int], None]) -> dict[tuple[str, str], Named]:
        turns = asyncio.Semaphore(self.policy.connections_per_request)
        running = [asyncio.ensure_future(self._one(task, turns, take)) for task in tasks]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
            for done in running:  # in the order of the request, should several have failed in one moment
                if done.done() and (error := done.exception()) is not None:
                    raise error
            return {
                (task.source, task.kind): done.result() for task, done in zip(tasks, running, strict=True)
            }
        finally:
            for left in running:
                left.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, task: _Task, turns: asyncio.Semaphore, take: Callable[[int], None]) -> Named:
        with _about(task.where):
            async with turns:
                data = await (self._from_web(task, take) if task.address else self._from_disk(task, take))
        named = Named(data)
        host = task.address.host if task.address else None
        named.name = f"the {task.kind} from {host}" if host else f"the {task.kind} in the file"
        return named

    async def _from_web(self, task: _Task, take: Callable[[int], None]) -> bytes:
        assert task.address is not None
        try:
            with anyio.fail_after(self.policy.fetch_seconds):
                await self._connections.acquire()
        except TimeoutError:
            raise refusal.busy() from None
        try:
            return await self._web.get(task.address, task.kind, take)
        finally:
            self._connections.release()

    async def _from_disk(self, task: _Task, take: Callable[[int], None]) -> bytes:
        read = partial(read_local, task.source, self.policy.allowed_local_paths, self.policy.max_bytes)
        try:
            with anyio.fail_after(self.policy.fetch_seconds):
                data = await self._files.run(read)
        except TimeoutError:
            raise refusal.slow_file() from None
        take(len(data))
        check_kind(data, task.kind)
        return data


@contextmanager
def _about(field: str) -> Iterator[None]:
    """Tell the client which field a refusal is about."""
    try:
        yield
    except Refused as error:
        raise RequestError(f"{field} {error}", status=error.status, param=field) from error


def _sources(conversation: Conversation, where: Where) -> Iterator[tuple[str, str, Source]]:
    """(field, "image" or "video", source) of all media; a clip given as pictures has several."""
    for i, message in enumerate(conversation.messages):
        for j, part in enumerate(message.parts):
            if isinstance(part, Text):
                continue
            if isinstance(part.source, tuple):
                for source in part.source:
                    yield where(i, j, part), "image", source
            else:
                kind = "image" if isinstance(part, Image) else "video"
                yield where(i, j, part), kind, part.source


def _filled(conversation: Conversation, found: dict[tuple[str, str], Named]) -> Conversation:
    def of(source: Source, kind: str) -> Source:
        return found.get((source, kind), source) if isinstance(source, str) else source

    def part(given: Part) -> Part:
        if isinstance(given, Image):
            return replace(given, source=of(given.source, "image"))
        if isinstance(given, Text):
            return given
        if isinstance(given.source, tuple):
            return replace(given, source=tuple(of(source, "image") for source in given.source))
        return replace(given, source=of(given.source, "video"))

    messages = [
        Message(message.role, [part(given) for given in message.parts]) for message in conversation.messages
    ]
    return Conversation(messages, conversation.origin, conversation.extra)

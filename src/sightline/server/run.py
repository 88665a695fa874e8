"""Starting and stopping the server: in this process until a signal comes, or beside it in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sightline.engine.llm import LLM
from sightline.errors import SightlineError
from sightline.server.lifecycle import Lifecycle, Listener, leave
from sightline.server.limits import Limits
from sightline.server.listen import Address, bind
from sightline.server.settings import ServeSettings
from sightline.server.tls import context_of

__all__ = ["Address", "bind", "serve", "serve_in_background"]

# An engine ends between two steps; one that has not after this long is stuck in one.
_CLOSE_SECONDS = 10.0


def serve(
    settings: ServeSettings | str | Path, *, on_ready: Callable[[dict[str, Address]], None] | None = None
) -> None:
    """Load a model and serve it until SIGINT or SIGTERM; the first ends it in good order, a second at once.

    Args:
        settings: or the model's folder, for the defaults of everything else.
        on_ready: called with the address of each port, by the prefixes of `ServeSettings.places`.

    Raises:
        SightlineError: a port is taken, the model cannot be loaded, or the engine died.
        UsageError: a setting does not suit the model, or TLS files or keys cannot be used.
    """
    chosen = settings if isinstance(settings, ServeSettings) else ServeSettings(model=str(settings))
    with listening(chosen) as listeners:
        lifecycle = Lifecycle(chosen, listeners, ends_with_engine=True)
        with lifecycle.signals():
            asyncio.run(lifecycle.run(lambda: _load(chosen), on_ready or (lambda addresses: None)))
    if lifecycle.llm is None:
        leave(0)  # the model is still being loaded, and nothing can interrupt that
    elif not _close(lifecycle.llm):
        error = lifecycle.failure or SightlineError("the engine is stuck in a step and was left behind")
        _leave_with(error)
    if lifecycle.failure is not None:
        raise lifecycle.failure


@contextlib.contextmanager
def serve_in_background(
    model: LLM | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    served_model_name: str | None = None,
    limits: Limits | None = None,
    settings: dict[str, Any] | None = None,
    **llm_options: Any,
) -> Iterator[Address]:
    """Serve a model (a loaded engine, or a folder) from a thread while the block runs.

    with serve_in_background("merged") as address:
        client = openai.OpenAI(base_url=address.url, api_key="none")

    Args:
        settings: further fields of `ServeSettings`, such as api_key; not those of the engine.
        llm_options: arguments of `LLM`.

    Raises:
        SightlineError: as `serve`, or the server does not start.
    """
    with contextlib.ExitStack() as stack:
        folder = model.model.folder if isinstance(model, LLM) else model
        chosen = ServeSettings(
            model=str(folder), host=host, port=port, served_model_name=served_model_name, **(settings or {})
        )
        listeners = stack.enter_context(listening(chosen))
        llm = model if isinstance(model, LLM) else LLM(model, **llm_options)
        if llm is not model:
            stack.callback(llm.close)
        yield stack.enter_context(_running(Lifecycle(chosen, listeners, limits=limits), llm))


@contextlib.contextmanager
def _running(lifecycle: Lifecycle, llm: LLM) -> Iterator[Address]:
    """The server in a thread; it ends without waiting for the requests that still run."""
    found: dict[str, Address] = {}
    settled = threading.Event()
    errors: list[BaseException] = []

    def ready(addresses: dict[str, Address]) -> None:
        found.update(addresses)
        settled.set()

    def run() -> None:
        try:
            asyncio.run(lifecycle.run(lambda: llm, ready))
        except BaseException as error:
            errors.append(error)
        finally:
            settled.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    settled.wait()
    if errors:
        raise errors[0]
    if not found:
        raise SightlineError("the server stopped while it started")
    try:
        yield found[""]
    finally:
        lifecycle.stop(force=True)
        thread.join()


@contextlib.contextmanager
def listening(settings: ServeSettings) -> Iterator[dict[str, Listener]]:
    """Every port of the settings, taken for as long as the block runs, with its TLS checked.

    Raises:
        SightlineError: a port is taken. UsageError: an address or a file of TLS cannot be used.
    """
    contexts = {prefix: context_of(settings.tls(prefix)) for prefix in settings.places()}
    with contextlib.ExitStack() as stack:
        listeners: dict[str, Listener] = {}
        for prefix, (host, port) in settings.places().items():
            taken: socket.socket = bind(host, port, prefix)
            stack.callback(taken.close)
            listeners[prefix] = Listener(taken, host, contexts[prefix])
        yield listeners


def _load(settings: ServeSettings) -> LLM:
    return LLM(**settings.engine_arguments())


def _close(llm: LLM) -> bool:
    """End the engine; whether it ended in time."""
    thread = threading.Thread(target=llm.close, name="close", daemon=True)
    thread.start()
    thread.join(_CLOSE_SECONDS)
    return not thread.is_alive()


def _leave_with(error: SightlineError) -> None:
    """As raising would end the process, but for a thread that waits for ever."""
    from sightline.progress import note

    note(f"error: {error}")
    leave(error.exit_code)

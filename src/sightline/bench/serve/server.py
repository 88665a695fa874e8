"""A server under load, spoken to in OpenAI's protocol: what it says of itself, and one request to it."""

from __future__ import annotations

import json
import time
from typing import Any

import h11

from sightline.bench.serve.connection import Client, Reply, failure_of
from sightline.bench.serve.events import AnswerReader, message_of
from sightline.bench.serve.load import guarded
from sightline.bench.serve.outcome import Outcome
from sightline.bench.serve.prompts import Prompt
from sightline.errors import SightlineError, first_line
from sightline.progress import note

# Fields that some servers refuse, and what is sent in their place where there is something.
_ALTERNATIVES: dict[str, str | None] = {
    "stream_options": None,
    "ignore_eos": None,
    "max_tokens": "max_completion_tokens",
    "temperature": None,
}


class Server:
    """Requests to one endpoint of one server.

    Attributes:
        model: as the server calls it; known after `meet`.
        counts: whether it counts the tokens of a text (POST /tokenize).
        fields: of every body, beside the prompt's own.
        left_out: fields that it refused and that are no longer sent.
    """

    def __init__(self, client: Client, endpoint: str, model: str | None, fields: dict[str, Any]) -> None:
        self.client = client
        self.endpoint = endpoint if endpoint.startswith("/") else f"/{endpoint}"
        self.model = model
        self.fields = fields
        self.counts = False
        self.left_out: list[str] = []
        self._limit_field = "max_tokens"
        self._target = client.site.target(self.endpoint)

    async def meet(self) -> None:
        """Learn the model's name and whether texts can be counted.

        Raises:
            SightlineError: the server does not answer, refuses the key, or names no model.
        """
        reply = await self._get_models()
        if self.model is None:
            self.model = _first_model(reply)
            if self.model is None:
                raise SightlineError(
                    f"{self.client.site} names no model at /v1/models (status {reply.status}); give --model"
                )
        try:
            self.counts = await self.count("one two") > 0
        except SightlineError:
            self.counts = False

    async def count(self, text: str) -> int:
        """Tokens of a text without a template.

        Raises:
            SightlineError: the server has no /tokenize, or gives no count.
        """
        asked = {"model": self.model, "prompt": text, "add_special_tokens": False}
        target = self.client.site.root_target("/tokenize")
        try:
            reply = await self.client.post(target, json.dumps(asked).encode())
            found = json.loads(bytes(reply.body)) if reply.status == 200 else {}
        except (OSError, ValueError, h11.RemoteProtocolError) as error:
            raise SightlineError(f"/tokenize failed: {first_line(error)}") from error
        tokens = found.get("tokens") if isinstance(found, dict) else None
        number = len(tokens) if isinstance(tokens, list) else found.get("count") if tokens is None else None
        if not isinstance(number, int):
            raise SightlineError(f"/tokenize gave no count (status {reply.status})")
        return number

    async def try_out(self, prompt: Prompt, timeout: float) -> None:
        """One small request. A field that the server refuses by name is left out from then on.

        Raises:
            SightlineError: it fails for another reason, or still fails.
        """
        for _ in range(len(_ALTERNATIVES) + 1):
            outcome = Outcome()
            await guarded(lambda found: self.ask(self.body(prompt), found), outcome, timeout)
            # Text may be missing: two tokens can be half a character.
            if outcome.ok or outcome.kind == "no text":
                return
            field = self._refused_field(outcome)
            if field is None:
                break
            self._leave_out(field)
        raise SightlineError(
            f"{self.client.site} does not answer a first small request: {outcome.error}; "
            "see --endpoint, --model and --extra-body"
        )

    def body(self, prompt: Prompt) -> bytes:
        return prompt.body(self.endpoint, {"model": self.model, **self.fields}, self._limit_field)

    async def ask(self, body: bytes, outcome: Outcome) -> None:
        """Send one body and fill `outcome`; a connection that fails raises, as `Client.post`."""
        reader = AnswerReader(outcome)
        outcome.start = time.perf_counter()
        reply = await self.client.post(self._target, body, reader.on_data)
        now = time.perf_counter()
        if reply.status != 200:
            outcome.fail(f"status {reply.status}", f"{reply.status}: {_said(reply) or 'no message'}")
        elif reply.streams:
            reader.finish(now)
        else:
            reader.whole(now, bytes(reply.body))
        if not outcome.chunks:
            outcome.fail("no text", "the answer held no text")

    async def _get_models(self) -> Reply:
        site = self.client.site
        try:
            reply = await self.client.get(site.target("/v1/models"))
        except (OSError, h11.RemoteProtocolError) as error:
            raise SightlineError(
                f"cannot reach {site}: {failure_of(error)[1]}; start the server or change --base-url"
            ) from error
        if reply.status in (401, 403):
            raise SightlineError(
                f"{site} refuses access ({reply.status}: {_said(reply) or 'no message'}); give --api-key or "
                "set OPENAI_API_KEY"
            )
        if reply.status == 503:
            raise SightlineError(
                f"{site} is not ready (503: {_said(reply) or 'no message'}); try again when it is"
            )
        return reply

    def _refused_field(self, outcome: Outcome) -> str | None:
        if not outcome.kind.startswith("status 4"):
            return None
        sent = {**self.fields, self._limit_field: 1}
        return next((name for name in _ALTERNATIVES if name in sent and name in outcome.error), None)

    def _leave_out(self, field: str) -> None:
        other = _ALTERNATIVES[field]
        self.fields.pop(field, None)
        if other is not None:
            self._limit_field = other
        else:
            self.left_out.append(field)
        note(f"the server refuses {field}; " + (f"{other} is sent instead" if other else "it is left out"))


def _first_model(reply: Reply) -> str | None:
    try:
        models = json.loads(bytes(reply.body))["data"] if reply.status == 200 else []
        return str(models[0]["id"]) if models else None
    except (ValueError, LookupError, TypeError):
        return None


def _said(reply: Reply) -> str:
    try:
        said = message_of(json.loads(bytes(reply.body)))
    except (ValueError, RecursionError):
        said = " ".join(bytes(reply.body[:400]).decode("utf-8", "replace").split())
    return said if len(said) <= 300 else f"{said[:300]}..."

"""What the server answers to a completion request: one object, or the chunks of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sightline.engine.outputs import CompletionOutput, RequestOutput
from sightline.engine.stream import Delta
from sightline.server.openai.answers import Pending
from sightline.server.openai.logprobs import CompletionLogprobs, TokenNames, prompt_logprobs
from sightline.server.openai.reply import Head
from sightline.server.openai.usage import RunningUsage, timings_of, usage_of
from sightline.server.sse import compact, data, quoted


@dataclass(frozen=True)
class Told:
    """What a request wants to be told.

    Attributes:
        echoed: the text of each prompt where answers begin with it, else None.
        silent: of the answers nothing is told (max_tokens 0).
        others: as `reply.Told`.
    """

    names: TokenNames
    n: int
    logprobs: int | None = None
    echoed: Sequence[str] | None = None
    silent: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    usage: bool = False
    running: bool = False

    def seen(self, outputs: Sequence[RequestOutput]) -> list[RequestOutput]:
        """The outputs as the client is to see them."""
        return [_silenced(output) for output in outputs] if self.silent else list(outputs)


def _silenced(output: RequestOutput) -> RequestOutput:
    answers = [
        replace(answer, text="", token_ids=[], logprobs=None, finish_reason="length", stop_reason=None)
        for answer in output.outputs
    ]
    return replace(output, outputs=answers)


def completion(head: Head, told: Told, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """The object of answers that are not streamed, those to the first prompt first."""
    outputs = told.seen(outputs)
    choices = [
        _choice(number, output, answer, told)
        for number, output in enumerate(outputs)
        for answer in output.outputs
    ]
    return {**head.object(), "choices": choices, "usage": usage_of(outputs), "timings": timings_of(outputs)}


def _choice(number: int, output: RequestOutput, answer: CompletionOutput, told: Told) -> dict[str, Any]:
    writer = _Writer(told)
    text, logprobs = writer.echo(number, output)
    choice = {
        "index": number * told.n + answer.index,
        "text": text + answer.text,
        "logprobs": _joined(logprobs, writer.tell(answer.token_ids, answer.logprobs)),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
    if told.prompt_logprobs:
        choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    if told.token_ids:
        choice |= {"token_ids": answer.token_ids, "prompt_token_ids": output.prompt_token_ids}
    return choice


class _Writer:
    """One answer's log-probabilities, whose offsets go on from piece to piece."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._logprobs = None if told.logprobs is None else CompletionLogprobs(told.logprobs, told.names)

    def echo(self, number: int, output: RequestOutput) -> tuple[str, dict[str, Any] | None]:
        """The prompt, where answers begin with it."""
        if self._told.echoed is None:
            return "", None
        text = self._told.echoed[number]
        if self._logprobs is None or output.prompt_logprobs is None:
            return text, None
        return text, self._logprobs.tell(output.prompt_token_ids, output.prompt_logprobs)

    def tell(self, tokens: Sequence[int], entries: Sequence[Any] | None) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        return self._logprobs.tell(tokens, entries or [None] * len(tokens))


def _joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return first if second is None else second
    return {name: first[name] + second[name] for name in first}


class Chunks:
    """The events of a stream, but for `[DONE]`. Those of several prompts come as they are computed."""

    def __init__(self, head: Head, told: Told, prompts: int) -> None:
        self._told = told
        self._opening = compact(head.object())[:-1]
        count = prompts * told.n
        self._writers = [_Writer(told) for _ in range(count)]
        self._pending = [Pending() for _ in range(count)]
        self._begun = [False] * count
        self._usage = RunningUsage(silent=told.silent) if told.running else None
        self._plain = told.logprobs is None and not (told.token_ids or told.running or told.silent)

    def tell(
        self, number: int, delta: Delta, outputs: Callable[[], Sequence[RequestOutput]]
    ) -> Iterator[str]:
        """What a delta of one prompt brings; `outputs` gives those of all prompts so far, where they are needed."""
        index = number * self._told.n + delta.index
        if self._usage is not None:
            self._usage.add(number, delta, outputs)
        if not self._begun[index]:
            self._begun[index] = True
            if self._told.echoed is not None:
                yield self._echo(number, index, outputs()[number])
        if self._plain:
            if delta.text or delta.finish_reason is not None:
                yield self._quick(index, delta)
            return
        if self._told.silent:
            if delta.finish_reason is not None:
                yield self._chunk(index, "", None, "length", None, {})
            return
        pending = self._pending[index]
        pending.add(delta)
        if not delta.text and delta.finish_reason is None:
            return
        new = pending.take()
        logprobs = self._writers[index].tell(new.token_ids, new.logprobs or None)
        ids = {"token_ids": new.token_ids} if self._told.token_ids else {}
        yield self._chunk(index, delta.text, logprobs, delta.finish_reason, delta.stop_reason, ids)

    def end(self, outputs: Sequence[RequestOutput]) -> Iterator[str]:
        """The chunk without choices that tells the usage, where that is wanted."""
        if self._told.usage:
            seen = self._told.seen(outputs)
            usage = {"choices": [], "usage": usage_of(seen), "timings": timings_of(seen)}
            yield data(f"{self._opening},{compact(usage)[1:]}")

    def _quick(self, index: int, delta: Delta) -> str:
        reason = "null" if delta.finish_reason is None else f'"{delta.finish_reason}"'
        stop = "" if delta.stop_reason is None else f',"stop_reason":{compact(delta.stop_reason)}'
        usage = ',"usage":null' if self._told.usage else ""
        return data(
            f'{self._opening},"choices":[{{"index":{index},"text":{quoted(delta.text)},"logprobs":null,'
            f'"finish_reason":{reason}{stop}}}]{usage}}}'
        )

    def _echo(self, number: int, index: int, output: RequestOutput) -> str:
        text, logprobs = self._writers[index].echo(number, output)
        more: dict[str, Any] = {}
        if self._told.prompt_logprobs:
            more["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        if self._told.token_ids:
            more["prompt_token_ids"] = output.prompt_token_ids
        return self._chunk(index, text, logprobs, None, None, more)

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        reason: str | None,
        stop: int | str | None,
        more: dict[str, Any],
    ) -> str:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        if stop is not None:
            choice["stop_reason"] = stop
        body: dict[str, Any] = {"choices": [{**choice, **more}]}
        if self._usage is not None:
            body["usage"] = self._usage.told()
        elif self._told.usage:
            body["usage"] = None
        return data(f"{self._opening},{compact(body)[1:]}")

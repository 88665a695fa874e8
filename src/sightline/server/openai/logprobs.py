"""Log-probabilities as OpenAI tells them: of chat completions, and of the older completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sightline.engine.outputs import Logprob

_LEAST = -9999.0  # stands for the logarithm of nothing, which JSON cannot say

Entry = dict[int, Logprob]


class TokenNames:
    """What tokens are called in answers.

    Args:
        as_ids: "token_id:17" in the place of texts, which are not unique.
    """

    def __init__(self, tokenizer: Any, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        # Not a cache of the method, which would keep this object, and with it itself, until the collector comes.
        self._bytes: dict[int, bytes] = {}

    def text(self, token: int, entry: Logprob | None = None) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        if entry is not None and entry.decoded_token is not None:
            return entry.decoded_token
        return str(self._tokenizer.decode([token]))

    def values(self, token: int) -> list[int]:
        """The bytes that the token stands for; half a character has its own."""
        if token not in self._bytes:
            self._bytes[token] = self._find_bytes(token)
        return list(self._bytes[token])

    def _find_bytes(self, token: int) -> bytes:
        known = _byte_values()
        written = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(written, str) and all(sign in known for sign in written):
            return bytes(known[sign] for sign in written)
        return str(self._tokenizer.decode([token])).encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _byte_values() -> dict[str, int]:
    """The byte of each sign that byte-level vocabularies (GPT-2's and its heirs') are written in.

    Printable bytes of Latin-1 stand for themselves, the others for the signs from 256 on, in their order.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {chr(256 + n): value for n, value in enumerate(others)}


def _finite(logprob: float) -> float:
    return logprob if logprob > _LEAST else _LEAST


def _best(entry: Entry, count: int) -> list[tuple[int, Logprob]]:
    return sorted(entry.items(), key=lambda item: -item[1].logprob)[:count]


def chat_logprobs(entries: Sequence[Entry], count: int, names: TokenNames) -> dict[str, Any]:
    """`choices[].logprobs` of chat completions.

    Args:
        entries: by token, the chosen one first.
        count: most likely tokens that are told beside each.
    """
    return {"content": [_chat_entry(entry, count, names) for entry in entries], "refusal": None}


def _chat_entry(entry: Entry, count: int, names: TokenNames) -> dict[str, Any]:
    chosen = next(iter(entry))
    return {
        **_token(chosen, entry[chosen], names),
        "top_logprobs": [_token(token, one, names) for token, one in _best(entry, count)],
    }


def _token(token: int, entry: Logprob, names: TokenNames) -> dict[str, Any]:
    return {
        "token": names.text(token, entry),
        "logprob": _finite(entry.logprob),
        "bytes": names.values(token),
    }


class CompletionLogprobs:
    """`choices[].logprobs` of the older completions, which count the characters of the tokens before each."""

    def __init__(self, count: int, names: TokenNames) -> None:
        self._count = count
        self._names = names
        self._offset = 0

    def tell(self, tokens: Sequence[int], entries: Sequence[Entry | None]) -> dict[str, Any]:
        """The next tokens of an answer, or of an echoed prompt, whose first token has no entry."""
        told: dict[str, list[Any]] = {
            "text_offset": [],
            "token_logprobs": [],
            "tokens": [],
            "top_logprobs": [],
        }
        for token, entry in zip(tokens, entries, strict=True):
            own = None if entry is None else entry[token]
            text = self._names.text(token, own)
            told["text_offset"].append(self._offset)
            told["token_logprobs"].append(None if own is None else _finite(own.logprob))
            told["tokens"].append(text)
            told["top_logprobs"].append(None if entry is None else self._top(entry, token))
            self._offset += len(text)
        return told

    def _top(self, entry: Entry, chosen: int) -> dict[str, float]:
        """The most likely ones, and the chosen one where it is none of them."""
        best = _best(entry, self._count)
        if all(token != chosen for token, _ in best):
            best.append((chosen, entry[chosen]))
        return {self._names.text(token, one): _finite(one.logprob) for token, one in best}


def prompt_logprobs(entries: Sequence[Entry | None] | None) -> list[Any] | None:
    """vLLM's `prompt_logprobs`: by token id."""
    if entries is None:
        return None
    return [
        None
        if entry is None
        else {
            str(token): {
                "logprob": _finite(one.logprob),
                "rank": one.rank,
                "decoded_token": one.decoded_token,
            }
            for token, one in entry.items()
        }
        for entry in entries
    ]

"""The fields of MindIE's requests: one table says what each may be, for reading and for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from sightline.server.errors import RequestError

_MOST_INT32 = 2**31 - 1
_MOST_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Field:
    """One field. A value that is null is as if it were not there.

    Attributes:
        kind: "flag", "whole", "real", "text", "texts" (one text or a list) or "ids".
        least, most: of a number; `above` and `below` leave the bound itself out.
        also: one more value that a number may have.
    """

    name: str
    kind: str
    least: float | None = None
    most: float | None = None
    above: bool = False
    below: bool = False
    also: int | None = None

    def read(self, value: Any, where: str) -> Any:
        """The value, checked. True is no number, and a text of digits is none either.

        Raises:
            RequestError: it is of another type or out of its range.
        """
        words = _KINDS[self.kind]
        if not _IS[self.kind](value):
            raise RequestError(f"{where} must be {words}", param=where)
        if self.kind in ("whole", "real") and not self._holds(value):
            raise RequestError(f"{where} must be {self._range()}, not {value}", param=where)
        return value

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        schema = dict(_SCHEMAS[self.kind])
        if self.also is None:  # else two ranges would be needed; the server checks them
            if self.least is not None:
                schema["exclusiveMinimum" if self.above else "minimum"] = self.least
            if self.most is not None:
                schema["exclusiveMaximum" if self.below else "maximum"] = self.most
        return {"anyOf": [schema, {"type": "null"}]}

    def _holds(self, value: float) -> bool:
        # Written so that NaN, which JSON does not have anyway, holds nowhere.
        least, most = self.least, self.most
        enough = least is None or (value > least if self.above else value >= least)
        little = most is None or (value < most if self.below else value <= most)
        return (enough and little) or (self.also is not None and value == self.also)

    def _range(self) -> str:
        words = []
        if self.least is not None:
            words.append(f"{'above' if self.above else 'at least'} {self.least:g}")
        if self.most is not None:
            words.append(f"{'below' if self.below else 'at most'} {self.most}")
        text = " and ".join(words)
        return text if self.also is None else f"{self.also}, or {text}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_IS = {
    "flag": lambda value: isinstance(value, bool),
    "whole": _is_whole,
    "real": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "texts": lambda value: (
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    ),
    "ids": lambda value: isinstance(value, list) and all(_is_whole(one) for one in value),
}
_KINDS = {
    "flag": "true or false",
    "whole": "a whole number",
    "real": "a number",
    "text": "a text",
    "texts": "a text or a list of texts",
    "ids": "a list of token ids",
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "flag": {"type": "boolean"},
    "whole": {"type": "integer"},
    "real": {"type": "number"},
    "text": {"type": "string"},
    "texts": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "ids": {"type": "array", "items": {"type": "integer"}},
}

_COMMON = (
    Field("do_sample", "flag"),
    Field("seed", "whole", 0, _MOST_INT64),
    Field("stop", "texts"),
)
VLLM = (
    *_COMMON,
    Field("stream", "flag"),
    Field("max_tokens", "whole", 1, _MOST_INT32),
    Field("temperature", "real", 0),
    Field("top_k", "whole", 1, _MOST_INT32, also=-1),
    Field("top_p", "real", 0, 1, above=True),
    Field("repetition_penalty", "real", 0, 2, above=True),
    Field("presence_penalty", "real", -2, 2),
    Field("frequency_penalty", "real", -2, 2),
    Field("stop_token_ids", "ids"),
    Field("ignore_eos", "flag"),
    Field("include_stop_str_in_output", "flag"),
    Field("skip_special_tokens", "flag"),
    Field("best_of", "whole", 1, 128),
    Field("n", "whole", 1, 128),
    Field("model", "text"),
)
_PARAMETERS = (
    *_COMMON,
    Field("max_new_tokens", "whole", 1, _MOST_INT32),
    Field("temperature", "real", 0, above=True),
    Field("top_k", "whole", 1, _MOST_INT32),
    Field("top_p", "real", 0, 1, above=True, below=True),
    Field("repetition_penalty", "real", 0, above=True),
    Field("typical_p", "real", 0, 1, above=True),
    Field("watermark", "flag"),
    Field("details", "flag"),
)
TGI = (
    *_PARAMETERS,
    Field("decoder_input_details", "flag"),
    Field("return_full_text", "flag"),
    Field("truncate", "whole", 1, _MOST_INT32),
    Field("adapter_id", "text"),
)
_QUEUE = (Field("priority", "whole", 1, 5), Field("timeout", "whole", 1, 65535))
INFER = (*_PARAMETERS, *_QUEUE)
TRITON = (
    *(one for one in _PARAMETERS if one.name not in ("top_k", "top_p")),
    Field("top_k", "whole", 0, _MOST_INT32),
    Field("top_p", "real", 0, 1, above=True),
    Field("batch_size", "whole", 1, _MOST_INT32),
    *_QUEUE,
)


def read_body(body: bytes) -> dict[str, Any]:
    """A body as an object, whatever its content type says.

    Raises:
        RequestError: it is not JSON, or no object.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    return value


def read_fields(given: Mapping[str, Any], table: Iterable[Field], prefix: str = "") -> dict[str, Any]:
    """Those fields of a table that are given; others are ignored.

    Raises:
        RequestError: a value is of the wrong type or out of its range; its `param` is the prefix and the name.
    """
    found = {}
    for field in table:
        value = given.get(field.name)
        if value is not None:
            found[field.name] = field.read(value, prefix + field.name)
    return found


def read_parameters(body: Mapping[str, Any], table: Iterable[Field]) -> dict[str, Any]:
    """The fields under `parameters`.

    Raises:
        RequestError: as `read_fields`, or `parameters` is no object.
    """
    given = body.get("parameters")
    if given is not None and not isinstance(given, dict):
        raise RequestError("parameters must be an object", param="parameters")
    return read_fields(given or {}, table, "parameters.")


def schema_of(table: Iterable[Field]) -> dict[str, Any]:
    """A table as JSON schema of an object."""
    return {"type": "object", "properties": {field.name: field.schema() for field in table}}

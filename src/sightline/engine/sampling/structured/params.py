"""What an answer has to look like: a JSON schema, a regular expression, one of some texts, or a grammar.

What can be seen without compiling is checked when the object is made. The limits keep what a stranger sends small
enough to be read at all; whether it compiles in reasonable time is found out by trying
(`sightline.engine.sampling.structured.trial`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sightline.engine.sampling.parameter_error import ParameterError

NAME = "structured_outputs"
"""The field of `SamplingParams`; faults are named after it."""
KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""Fields of which exactly one is set."""
MOST_SCHEMA = 256 * 1024
"""Characters of a schema; one of 140,000 with 5,000 properties compiles for more than a second."""
MOST_NESTING = 120
"""Brackets within brackets of a schema; llguidance's reader of JSON takes 127."""
MOST_CHOICES = 4096
MOST_CHOICE_TEXT = 64 * 1024
"""Characters of all choices together."""
MOST_REGEX = 8 * 1024
"""Characters; the mask of a literal of 200,000 takes 50 ms at every step."""
MOST_GRAMMAR = 64 * 1024
"""Characters."""
MOST_WHITESPACE = 256
"""Characters of `whitespace_pattern`."""
# Whose values are data, not schemas: a "$ref" in there refers to nothing.
_DATA = ("enum", "const", "default", "examples")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """The form of an answer; names are vLLM's. Exactly one of the first five is set.

    Attributes:
        json: a JSON schema, as a dict, its text, or True for any value; kept as text.
        json_object: any JSON object.
        regex: matches the whole answer; Rust's syntax, so without look-around and back-references.
        choice: the answer is one of these texts.
        grammar: a context-free grammar, in llguidance's Lark dialect (with a rule `start`) or in GBNF, also called
            EBNF (with a rule `root`).
        disable_any_whitespace: JSON without blanks between its parts.
        whitespace_pattern: regular expression of the blanks between parts of JSON.

    Raises:
        ParameterError: none or several are set, or one is of the wrong type or too large; the text names it.
    """

    json: Mapping[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        # False is what clients send for json_object when they mean nothing by it.
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none"
            raise ParameterError(NAME, f"needs exactly one of {', '.join(KINDS)}, but {found}")
        if self.json is not None:
            object.__setattr__(self, "json", _schema(self.json))
        if self.json_object is not None and self.json_object is not True:
            raise _fault("json_object", f"must be True or False, not {self.json_object!r}")
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        _text("regex", self.regex, MOST_REGEX)
        _text("grammar", self.grammar, MOST_GRAMMAR)
        self._check_whitespace()

    @classmethod
    def of(cls, given: Any) -> StructuredOutputsParams:
        """From itself, or from a mapping of its fields.

        Raises:
            ParameterError: it is neither, or names a field that does not exist.
        """
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ParameterError(NAME, f"must be StructuredOutputsParams, not {type(given).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = next((str(name) for name in given if name not in known), None)
        if unknown is not None:
            raise ParameterError(NAME, f"has no field {unknown[:40]!r}; it has {', '.join(known)}")
        return cls(**given)

    @property
    def kind(self) -> str:
        """Which of `KINDS` is set."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def _check_whitespace(self) -> None:
        if not isinstance(self.disable_any_whitespace, bool):
            raise _fault(
                "disable_any_whitespace", f"must be True or False, not {self.disable_any_whitespace!r}"
            )
        _text("whitespace_pattern", self.whitespace_pattern, MOST_WHITESPACE)
        if self.whitespace_pattern is not None and self.disable_any_whitespace:
            raise _fault("whitespace_pattern", "contradicts disable_any_whitespace; give one of them")


def _fault(field: str, text: str) -> ParameterError:
    return ParameterError(f"{NAME}.{field}", text)


def _text(field: str, value: Any, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value:
        raise _fault(field, f"must be a text that is not empty, not {str(value)[:40]!r}")
    if len(value) > most:
        raise _fault(
            field, f"is {len(value):,} characters long, above the limit of {most:,}; make it shorter"
        )
    _check_characters(field, value)


def _check_characters(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _fault(field, "holds half of a surrogate pair, which is no character; remove it") from None


def _choices(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise _fault("choice", "must be a list of at least one text")
    if len(value) > MOST_CHOICES:
        raise _fault("choice", f"has {len(value):,} texts, above the limit of {MOST_CHOICES:,}; give fewer")
    if not all(isinstance(text, str) and text for text in value):
        raise _fault("choice", "must be a list of texts, none of them empty")
    characters = sum(map(len, value))
    if characters > MOST_CHOICE_TEXT:
        raise _fault(
            "choice",
            f"holds {characters:,} characters, above the limit of {MOST_CHOICE_TEXT:,}; make its texts shorter",
        )
    for text in value:
        _check_characters("choice", text)
    return tuple(dict.fromkeys(value))


def _schema(value: Any) -> str:
    """A schema's text, always the same for the same schema."""
    if isinstance(value, str) and len(value) > MOST_SCHEMA:
        raise _too_large(len(value))
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        if not isinstance(schema, Mapping) and schema is not True:
            raise _fault("json", "must be a JSON schema: an object or True")
        _check_schema(schema)
        text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise _fault("json", f"is no JSON: {str(error)[:200]}") from error
    if len(text) > MOST_SCHEMA:
        raise _too_large(len(text))
    _check_characters("json", text)
    return text


def _check_schema(schema: Any) -> None:
    """Its nesting, and that it refers to nothing outside: nothing is ever fetched. Without recursion."""
    stack = [(schema, 1, False)]
    while stack:
        value, depth, data = stack.pop()
        if depth > MOST_NESTING and isinstance(value, (Mapping, list, tuple)):
            raise _too_deep()
        if isinstance(value, Mapping):
            reference = value.get("$ref")
            if not data and isinstance(reference, str) and not reference.startswith("#"):
                raise _fault(
                    "json",
                    f"refers to {reference[:80]!r}; only references within it, as #/$defs/a, are followed",
                )
            stack += [(below, depth + 1, data or name in _DATA) for name, below in value.items()]
        elif isinstance(value, (list, tuple)):
            stack += [(below, depth + 1, data) for below in value]


def _too_deep() -> ParameterError:
    return _fault("json", f"is nested more than {MOST_NESTING} deep; make it flatter, or use $defs")


def _too_large(length: int) -> ParameterError:
    return _fault(
        "json", f"is {length:,} characters long, above the limit of {MOST_SCHEMA:,}; make it smaller"
    )

"""From what a request asks for to a grammar that llguidance reads, and how far llguidance may go with it.

Used in the engine's process and in the one that tries grammars out (`sightline.engine.sampling.structured.trial`), so
nothing heavy is imported here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.engine.sampling.structured.params import StructuredOutputsParams

WHITESPACE = r" |\n {0,16}"
"""Blanks between parts of JSON, where a request says nothing: one, or a new line and its indent. With no end to them
a small model goes on with blanks until its answer is cut."""
SIMPLE = ("choice", "json_object")
"""Kinds whose grammar is made here, so that it needs no trial."""
LIMITS: dict[str, Any] = {
    # llguidance's own defaults, written down: together a mask takes 20 ms at worst, and a lexer some 50 MB.
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_grammar_size": 500_000,
    # Below its 250,000. An answer that gets there goes on with a fresh lexer (`matcher.Matcher`).
    "max_lexer_states": 50_000,
    # Not the client's own schema and text in an error, but what is wrong.
    "verbose_errors": False,
}
_MOST_WORDS = 300  # characters of a library's error that become part of ours


def parser_limits() -> Any:
    """`LIMITS` as llguidance takes them."""
    from llguidance import LLParserLimits

    return LLParserLimits(**LIMITS)


def source(params: StructuredOutputsParams) -> dict[str, Any]:
    """What `grammar_of` needs, as JSON can carry it to another process."""
    whitespace: dict[str, Any] = {"whitespace_pattern": params.whitespace_pattern or WHITESPACE}
    if params.disable_any_whitespace:
        whitespace = {"whitespace_flexible": False}
    return {"kind": params.kind, "value": getattr(params, params.kind), "whitespace": whitespace}


def grammar_of(source: dict[str, Any]) -> str:
    """The grammar in llguidance's form; whether it can be compiled is another question.

    Raises:
        ValueError: the text is no grammar, with what is wrong as far as the converter tells.
    """
    from llguidance import LLMatcher

    kind, value = source["kind"], source["value"]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(value)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(_lark(value))
    if kind == "choice":
        # Its strings are JSON's.
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    # Options are taken for an object alone, so that what allows all is written as one.
    schema = '{"type":"object"}' if kind == "json_object" else "{}" if value == "true" else value
    return LLMatcher.grammar_from_json_schema(schema, overrides=source["whitespace"])


def words_of(error: str) -> str:
    """What llguidance says, as part of a sentence: one line, and no more than is useful."""
    lines = [line.strip() for line in error.strip().splitlines()]
    # Of a regular expression's error the last line says what is wrong; what is a trace of the library does not.
    told = [line for line in lines if line.startswith("error: ")] or lines[:1] or ["it cannot be compiled"]
    text = told[0].removeprefix("error: ").removeprefix("panic: ").split("; following special tokens")[0]
    return text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + "..."


def error_of(machine: Any) -> str | None:
    """Why a machine of llguidance is broken, as part of a sentence, or None."""
    if not machine.is_error():
        return None
    if "NoExtension" in (machine.stop_reason(), machine.get_error()[:11]):
        return "no text satisfies it"
    if "Current row has" in machine.get_error():
        return "too much may come next at one place, such as hundreds of optional properties"
    return words_of(machine.get_error())


def _lark(text: str) -> str:
    """A grammar in Lark's form: as it is, or converted from GBNF, whose rules are written `name ::= ...`."""
    if re.search(r"(?m)^\s*(%llguidance\b|start\b[^:\n]*:(?!:=))", text):
        return text
    if "::=" not in text:
        raise ValueError("it has neither a rule start: as Lark's form wants, nor root ::= as GBNF wants")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    except Exception as error:  # the converter has no error of its own for all that can be wrong
        raise ValueError(words_of(str(error) or "it is no GBNF")) from None

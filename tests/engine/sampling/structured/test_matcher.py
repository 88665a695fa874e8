"""Masks against an independent check of every token of a small vocabulary, forwards and back."""

from __future__ import annotations

import codecs
import itertools
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from sightline import StructuredOutputsParams
from sightline.engine.sampling.structured import form, matcher
from sightline.engine.sampling.structured.compiler import Compiler
from sightline.engine.sampling.structured.matcher import Grammar, Matcher

SIZE = 450  # more columns than the tokenizer has tokens
ENDS = frozenset({0, 2})


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(make_tokenizer(), SIZE, ENDS)
    yield made
    made.close()


def tokens_of(words: Any) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def allowed(one: Matcher, **options: Any) -> set[int]:
    words, _ = one.mask(**options)
    assert words is not None
    return tokens_of(words)


@lru_cache(maxsize=1)
def spellings() -> list[bytes]:
    """The bytes of each token; none for special ones."""
    # GPT-2's table of letters that stand for bytes.
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
    tokenizer = make_tokenizer()
    found = []
    for token, text in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        special = token in tokenizer.added_tokens_decoder
        found.append(b"" if special else bytes(table[letter] for letter in text))
    return found


def begins_text(spelled: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(spelled)
    except UnicodeDecodeError:
        return False
    return True


LANGUAGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"choice": ["red", "green", "rest", "redder"]}, ["red", "green", "rest", "redder"]),
    ({"choice": ['a"b', "a\\c", "a\nb\t", "\x07"]}, ['a"b', "a\\c", "a\nb\t", "\x07"]),
    ({"choice": ["é😀", "é😁", "日本", "日 本", "a"]}, ["é😀", "é😁", "日本", "日 本", "a"]),
    ({"regex": "(red|blue) ?[01]"}, [a + b + c for a in ("red", "blue") for b in ("", " ") for c in "01"]),
    (
        {"regex": "[a-c]{1,3}"},
        ["".join(run) for size in (1, 2, 3) for run in itertools.product("abc", repeat=size)],
    ),
    ({"grammar": 'root ::= "is " ("it" | "in")'}, ["is it", "is in"]),
    (
        {"grammar": 'start: A B\nA: "the " | "quick "\nB: "fox" | "dog"'},
        ["the fox", "the dog", "quick fox", "quick dog"],
    ),
    ({"json": {"enum": ["red", 5, None]}}, ['"red"', "5", "null"]),
    (
        {
            "json": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
            "disable_any_whitespace": True,
        },
        ["[true]", "[false]", "[true,true]", "[true,false]", "[false,true]", "[false,false]"],
    ),
]


@pytest.mark.parametrize(("given_", "language"), LANGUAGES)
def test_masks_against_every_token(compiler: Compiler, given_: dict[str, Any], language: list[str]) -> None:
    """Wherever a random answer is: only what can be gone on with, and an end exactly where it may end."""
    grammar = compiler.compile(StructuredOutputsParams(**given_))
    whole = [text.encode() for text in language]
    generator, seen = random.Random(0), set()
    for _ in range(60):
        one, written = Matcher(grammar), b""
        while True:
            words, only_ends = one.mask()
            found = tokens_of(words)
            able = {
                token
                for token, spelled in enumerate(spellings())
                if spelled and any(text.startswith(written + spelled) for text in whole)
            }
            # The tokenizer's own spelling is enough where the text is fixed, so not all of `able` is there.
            assert found - ENDS <= able
            assert bool(found - ENDS) == bool(able)
            assert (found & ENDS == ENDS) == (written in whole)
            assert only_ends == (not able)
            assert one.complete <= only_ends
            if only_ends or (written in whole and generator.random() < 0.3):
                break
            token = generator.choice(sorted(found - ENDS))
            one.push(token)
            assert not one.astray
            written += spellings()[token]
        seen.add(written)
    assert seen == set(whole) or len(whole) > 20  # every text can be reached


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_popping_leaves_no_trace(compiler: Compiler, seed: int) -> None:
    """After any drafts, right or wrong, the mask is that of a matcher which never saw them."""
    params = StructuredOutputsParams(
        json={"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    )
    grammar, generator = compiler.compile(params), random.Random(seed)
    one, path = Matcher(grammar), []
    for _ in range(25):
        found = sorted(allowed(one) - ENDS)
        if not found:
            break
        drafts = [
            generator.choice(found) if generator.random() < 0.7 else generator.randrange(395)
            for _ in range(generator.randrange(5))
        ]
        for draft in drafts:
            one.push(draft)
            one.mask()
        for _ in drafts:
            one.pop()
        fresh = Matcher(grammar)
        for token in path:
            fresh.push(token)
        assert allowed(one) == allowed(fresh) == set(found) | (allowed(fresh) & ENDS)
        path.append(generator.choice(found))
        one.push(path[-1])


def test_what_is_forbidden_leads_astray_and_back(compiler: Compiler) -> None:
    one = Matcher(compiler.compile(StructuredOutputsParams(choice=["red"])))
    red = make_tokenizer().encode("red", add_special_tokens=False)
    before = allowed(one)
    for token in (7, red[0], 2):
        one.push(token)
        assert one.astray
        assert not one.complete
        assert one.mask() == (None, False)
    for _ in range(3):
        one.pop()
    assert allowed(one) == before
    for token in red:
        one.push(token)
    assert one.complete
    assert one.mask()[1]
    assert allowed(one) == ENDS
    one.push(2)  # an end leads out of the form, and back
    one.pop()
    assert one.complete


def test_an_end_can_be_kept_back_until_nothing_else_is_left(compiler: Compiler) -> None:
    one = Matcher(compiler.compile(StructuredOutputsParams(regex="a{1,2}")))
    letter = make_tokenizer().encode("a", add_special_tokens=False)[0]
    one.push(letter)
    assert allowed(one) == {letter} | ENDS
    assert allowed(one, ends=False) == {letter}
    one.push(letter)
    assert allowed(one, ends=False) == ENDS


def test_special_tokens_and_unknown_ids_never_come(compiler: Compiler) -> None:
    one = Matcher(compiler.compile(StructuredOutputsParams(regex="(?s).*")))
    found = allowed(one)
    begins = {token for token, spelled in enumerate(spellings()) if spelled and begins_text(spelled)}
    assert found == begins | ENDS
    assert len(begins) > 300
    vocabulary = compiler._vocabulary
    assert vocabulary is not None
    named = Grammar(
        form.grammar_of({"kind": "grammar", "value": "start: <[1]>", "whitespace": {}}), vocabulary
    )
    assert allowed(Matcher(named)) == set()


def test_a_full_lexer_is_replaced(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of one lexer are shared by all answers of a form; the last one to fit is not the last answer."""
    params = StructuredOutputsParams(json={"type": "string", "pattern": "^.*a.{12}b.*$"})
    tokens = make_tokenizer().encode('"the quick a aa a aaa brown aa aa a fox aa', add_special_tokens=False)
    wide = Matcher(compiler.compile(params))
    expected = []
    for token in tokens:
        expected.append(allowed(wide))
        wide.push(token)
    monkeypatch.setitem(form.LIMITS, "max_lexer_states", 300)
    grammar = Grammar(form.grammar_of(form.source(params)), compiler._vocabulary)  # type: ignore[arg-type]
    bases = {id(grammar._base)}
    for _ in range(4):
        one = Matcher(grammar)
        for token, mask in zip(tokens, expected, strict=True):
            assert allowed(one) == mask
            assert one.error is None
            one.push(token)
            assert not one.astray
            bases.add(id(grammar._base))
    assert len(bases) > 1  # it was replaced, or this shows nothing
    monkeypatch.setattr(matcher, "_QUICK", 0.0)
    slow = Matcher(Grammar(form.grammar_of(form.source(params)), compiler._vocabulary))  # type: ignore[arg-type]
    for token in tokens:
        slow.mask()
        if slow.error is not None:
            break
        slow.push(token)
    assert "too many states" in str(slow.error)
    assert allowed(slow) == set()

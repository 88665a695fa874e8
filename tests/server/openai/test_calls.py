"""Calls are told apart from text, however the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.server.openai.calls import CallPiece, CallReader

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'

Read = tuple[str, list[tuple[str, str]]]


def read(*pieces: str, live: bool = False) -> Read:
    """The text and the calls that come of an answer in pieces."""
    reader = CallReader(live=live)
    found = [one for piece in pieces for one in reader.feed(piece)] + reader.finish()
    text, calls = "", []
    for one in found:
        if isinstance(one, str):
            assert one
            text += one
        elif one.name is not None:
            assert one.index == len(calls)
            calls.append((one.name, one.arguments))
        else:
            assert one.index == len(calls) - 1
            calls[-1] = calls[-1][0], calls[-1][1] + one.arguments
    return text, calls


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        ("hello", "hello", []),
        (" \n", " \n", []),
        (CALL, "", [("f", '{"a": 1}')]),
        (f"Let me look.\n{CALL}", "Let me look.", [("f", '{"a": 1}')]),
        (f"{CALL}\n{CALL}\n", "", [("f", '{"a": 1}')] * 2),
        (f"{CALL} and more", " and more", [("f", '{"a": 1}')]),
        (f"before\n{CALL} and more", "before and more", [("f", '{"a": 1}')]),
        # The closing tag alone is missing: the answer ended with its stop token.
        (CALL.removesuffix("\n</tool_call>"), "", [("f", '{"a": 1}')]),
        (CALL.removesuffix("_call>"), "", [("f", '{"a": 1}')]),
        # The next call begins before the first is closed.
        (f"{CALL.removesuffix('</tool_call>')}{CALL}", "", [("f", '{"a": 1}')] * 2),
        # Tags inside of a text are text.
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\\"<tool_call>"}}</tool_call>',
            "",
            [("f", '{"a": "</tool_call>\\"<tool_call>"}')],
        ),
        ('<tool_call>{"arguments": {"é": "好"}, "name": "g"}</tool_call>', "", [("g", '{"é": "好"}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 2}"}</tool_call>', "", [("f", '{"a": 2}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "parameters": {"a": 3}}</tool_call>', "", [("f", '{"a": 3}')]),
        ("Use the <tool_call> tag.", "Use the <tool_call> tag.", []),
        ("a <tool_cal", "a <tool_cal", []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ('<tool_call>{"name": 3}</tool_call>x', '<tool_call>{"name": 3}</tool_call>x', []),
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>', []),
    ],
)
def test_text_and_calls_are_told_apart(
    answer: str, text: str, calls: list[tuple[str, str]], live: bool
) -> None:
    assert read(answer, live=live) == (text, calls)
    assert read(*answer, live=live) == (text, calls)


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>\n{"name": "f", "arguments": {"a": }}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call> and text',
        '<tool_call>\n{"name": "f", "arguments": {"a": "b',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": "line\nend"}}\n</tool_call>',
        '<tool_call>\n{"name": "f" "x"\n</tool_call>\nafter ' + "{" * 3000,
    ],
)
def test_what_is_no_sound_call_stays_text(answer: str) -> None:
    assert read(answer) == (answer, [])
    assert read(*answer) == (answer, [])


def test_after_an_unsound_call_the_next_is_found() -> None:
    broken = '<tool_call>\n{"name": "f\n</tool_call>'
    assert read(broken + "\n" + CALL) == (broken, [("f", '{"a": 1}')])


def test_arguments_come_as_they_grow_where_a_grammar_holds_the_model() -> None:
    reader = CallReader(live=True)
    found = [one for sign in CALL for one in reader.feed(sign)] + reader.finish()
    assert found[0] == CallPiece(0, "f")
    assert len(found) > 4
    assert "".join(one.arguments for one in found if isinstance(one, CallPiece)) == '{"a": 1}'


def test_arguments_that_the_end_cuts_short_are_told_as_far_as_they_came() -> None:
    begun = '<tool_call>\n{"name": "f", "arguments": {"a": {"b": [1, '
    assert read(*begun, live=True) == ("", [("f", '{"a": {"b": [1, ')])


_PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<tool_", "</", "\n", " ", '"', "\\", "{", "}", "é", "text", "<"),
        *('{"name": "f", "arguments": {"x": "', '"}}', '{"name": "f", "arguments": {}}', CALL),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=12).map("".join), st.randoms(use_true_random=False), st.booleans())
def test_any_cut_of_the_text_gives_the_same(answer: str, random: object, live: bool) -> None:
    pieces, start = [], 0
    while start < len(answer):
        end = start + random.randint(1, 6)  # type: ignore[attr-defined]
        pieces.append(answer[start:end])
        start = end
    whole = read(answer, live=live)
    assert read(*pieces, live=live) == whole
    if not live:
        assert all(isinstance(json.loads(arguments), (dict, str)) for _, arguments in whole[1] if arguments)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='<tool_ca/>{}"n \n', max_size=60))
def test_without_a_sound_call_nothing_is_lost(answer: str) -> None:
    assert read(*answer) == (answer, [])

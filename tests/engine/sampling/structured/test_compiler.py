"""What is faulty or hostile is refused in time; what is fine is compiled once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_tokenizer

from sightline import StructuredOutputsParams
from sightline.engine.sampling.params import ParameterError
from sightline.engine.sampling.structured import compiler as compiling
from sightline.engine.sampling.structured import params as limits
from sightline.engine.sampling.structured import trial as trying
from sightline.engine.sampling.structured.compiler import Compiler
from sightline.engine.sampling.structured.matcher import Matcher
from sightline.engine.sampling.structured.trial import TooLarge, TooLong, Trial
from sightline.errors import SightlineError

# An automaton with a state for each remainder: compiles for minutes, and no limit of llguidance counts it.
ENDLESS = {"type": "integer", "multipleOf": 99999989}


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(make_tokenizer(), 400, frozenset({0, 2}), seconds=4.0)
    yield made
    made.close()


def optional(count: int) -> dict[str, Any]:
    """An object of which each property may be left out; of 500 and more llguidance cannot follow the bracket."""
    names = [f"p{number}" for number in range(count)]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "given",
    [
        {"json": nested(limits.MOST_NESTING - 1)},
        {"json": True},
        {"json_object": True},
        {"json_object": True, "whitespace_pattern": " ?"},
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}}}}},
        {"json": {"enum": [f"v{number}" for number in range(5000)]}},
        {"json": {"properties": {f"p{number}": {"type": "string"} for number in range(300)}}},
        {"regex": "(a{1,1000}){1,1000}"},
        {"regex": r"(\p{L}{1,100}\p{N}{1,100}){1,1000}"},
        {"regex": "a/b\"c\\\\d\n'"},
        {"choice": [f"choice {number} of many" for number in range(limits.MOST_CHOICES - 1000)]},
        {"grammar": 'root ::= item+\nitem ::= [a-z]+ " "? # words\n'},
        {"grammar": 'start: word ("," word)*\nword: /[a-z]+ ::= "x"/'},
    ],
)
def test_what_compiles(compiler: Compiler, given: dict[str, Any]) -> None:
    words, _ = Matcher(compiler.compile(StructuredOutputsParams(**given))).mask()
    assert words is not None
    assert words.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"regex": "(?=a)b"}, "look-ahead"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": "a("}, "unclosed group"),
        ({"regex": r"[^\s\S]"}, "no text satisfies it"),
        ({"regex": "(" * 3000 + "a" + ")" * 3000}, "nest"),
        ({"json": {"type": "nothing"}}, ""),
        ({"json": {"type": "string", "format": "nonsense"}}, "Unknown format: nonsense"),
        ({"json": {"type": "array", "uniqueItems": True}}, "Unimplemented keys"),
        ({"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}, "nsatisfiable"),
        ({"json": {"$ref": "#"}}, "no text satisfies it"),
        ({"json": {"$ref": "#/$defs/none"}}, ""),
        ({"json_object": True, "whitespace_pattern": "("}, ""),
        ({"json": optional(800)}, "hundreds of optional properties; make it simpler"),
        (
            {
                "json": {"type": "array", "items": optional(800), "minItems": 1},
                "disable_any_whitespace": True,
            },
            "optional properties",
        ),
        ({"grammar": "hello"}, "neither a rule start"),
        ({"grammar": 'root ::= "a'}, "Unexpected end of input"),
        ({"grammar": 'root ::= other\nthis ::= "a"'}, "Rule 'other' not found"),
        ({"grammar": "root ::= " + "(" * 20_000}, "nested too deep"),
        ({"grammar": "start: other"}, "other"),
        ({"grammar": 'start: "a" <|im_start|> "b"'}, 'unknown special token: "<|im_start|>"'),
    ],
)
def test_what_is_faulty_is_told(compiler: Compiler, given: dict[str, Any], words: str) -> None:
    params = StructuredOutputsParams(**given)
    for _ in range(2):  # the second time from memory
        with pytest.raises(ParameterError) as caught:
            compiler.compile(params)
        assert caught.value.name == f"structured_outputs.{params.kind}"
        assert "cannot be used: " in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "given",
    [
        {"json": {"enum": [f"value {number}" for number in range(14_000)]}},
        {"json": {"allOf": [{"oneOf": [{"required": [f"{a}{b}"]} for b in "xy"]} for a in range(18)]}},
        {"json": {"type": "array", "items": nested(40), "minItems": 10**5, "maxItems": 2 * 10**5}},
        {
            "json": {
                "type": "string",
                "pattern": r"^(\w{1,100} ){1,1000}$",
                "format": "email",
                "minLength": 3000,
            }
        },
        {"json": {"type": "integer", "minimum": -(10**300), "maximum": 10**300}},
        {"regex": "((a{1,300}){1,300}){1,300}"},
        {"regex": ".*a.{2000}b"},
        {"regex": "x" * 8000},
        {"grammar": 'start: a{100000}\na: b{100000}\nb: "x"'},
        {"grammar": "start: A\nA: B{10000}\nB: C{10000}\nC: /[a-z]{1,10000}/"},
        {"grammar": 'start: start start | "x" | ""'},
    ],
)
def test_what_is_hostile_takes_little_time(compiler: Compiler, given: dict[str, Any]) -> None:
    """It may compile or be refused; neither that nor going ten tokens along it takes long."""
    begun = time.perf_counter()
    try:
        one = Matcher(compiler.compile(StructuredOutputsParams(**given)))
        for _ in range(10):
            words, _ = one.mask()
            assert words is not None
            found = [token for token in range(3, 395) if words[token // 32] >> (token % 32) & 1]
            if not found:
                break
            one.push(found[-1])
    except ParameterError:
        pass
    assert time.perf_counter() - begun < 8


def test_what_compiles_without_end_is_stopped(compiler: Compiler) -> None:
    quick = Compiler(make_tokenizer(), 400, frozenset({2}), seconds=0.7)
    try:
        begun = time.perf_counter()
        with pytest.raises(ParameterError, match="json takes more than 0.7 s to compile; make it simpler"):
            quick.compile(StructuredOutputsParams(json=ENDLESS))
        assert time.perf_counter() - begun < 20
        process = quick._idle[0]._process
        assert process is None  # killed, not left to compute
        begun = time.perf_counter()
        with pytest.raises(ParameterError, match="takes more than"):
            quick.compile(StructuredOutputsParams(json=ENDLESS))
        assert time.perf_counter() - begun < 0.5  # it is not tried again
        quick.compile(StructuredOutputsParams(regex="ab"))  # and others go on
    finally:
        quick.close()


def test_what_takes_all_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has a limit of its own; here it dies of it at once, as the library then does."""
    trial = Trial()
    try:
        trial.compile({"kind": "regex", "value": "a", "whitespace": {}})
        process = trial._process
        assert process is not None
        found = subprocess.run(
            ["prlimit", "--pid", str(process.pid), "--as", "--noheadings", "--output", "SOFT"],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            assert int(found.stdout) == trying.MEMORY
        threading.Timer(0.5, process.kill).start()  # as a failed allocation ends it
        with pytest.raises(TooLarge):
            trial.compile({"kind": "json", "value": json.dumps(ENDLESS), "whitespace": {}}, 30)
        trial.compile({"kind": "regex", "value": "a", "whitespace": {}})
    finally:
        trial.close()


def test_closing_ends_what_is_tried() -> None:
    compiler, caught = Compiler(make_tokenizer(), 400, frozenset({2}), seconds=60), []

    def compile_() -> None:
        try:
            compiler.compile(StructuredOutputsParams(json=ENDLESS))
        except SightlineError as error:
            caught.append(str(error))

    thread = threading.Thread(target=compile_)
    thread.start()
    deadline = time.perf_counter() + 30
    while not (compiler._all and compiler._all[0]._process) and time.perf_counter() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process = compiler._all[0]._process
    assert process is not None
    compiler.close()
    thread.join(10)
    assert not thread.is_alive()
    assert caught == ["the engine is being stopped"]
    assert process.poll() is not None


def test_a_trial_that_is_late_is_killed_and_started_anew() -> None:
    trial = Trial()
    try:
        with pytest.raises(TooLong):
            trial.compile({"kind": "json", "value": json.dumps(ENDLESS), "whitespace": {}}, 0.4)
        assert trial._process is None
        assert trial.compile({"kind": "regex", "value": "a|b", "whitespace": {}})
    finally:
        trial.close()


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying.sys, "executable", "/nowhere/python")
    with pytest.raises(SightlineError, match="cannot be started"):
        Trial().compile({"kind": "regex", "value": "a", "whitespace": {}})


def test_simple_forms_need_no_process() -> None:
    compiler = Compiler(make_tokenizer(), 400, frozenset({2}))
    compiler.compile(StructuredOutputsParams(choice=["a", "b"]))
    compiler.compile(StructuredOutputsParams(json_object=True))
    assert compiler._all == []
    compiler.close()


def test_a_form_is_compiled_once(compiler: Compiler) -> None:
    params = StructuredOutputsParams(json={"type": "integer"})
    assert compiler.known(params) is None
    first = compiler.compile(params)
    assert compiler.known(StructuredOutputsParams(json='{"type": "integer"}')) is first
    assert compiler.compile(params) is first


def test_the_longest_unused_form_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST_KEPT", 3)
    compiler = Compiler(make_tokenizer(), 400, frozenset({2}))
    forms = [StructuredOutputsParams(choice=[str(number)]) for number in range(4)]
    for form in forms[:3]:
        compiler.compile(form)
    compiler.compile(forms[0])
    compiler.compile(forms[3])
    assert [compiler.known(form) is not None for form in forms] == [True, False, True, True]
    compiler.close()


def test_nothing_is_fetched(compiler: Compiler) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.json"
        # Not as json, which says at once that it is refused, but by the way of a grammar.
        for text in (
            f'start: %json {{"$ref": "{address}"}}',
            f'start: %json {{"$schema": "{address}", "$id": "{address}", "$ref": "other.json"}}',
        ):
            with pytest.raises(ParameterError):
                compiler.compile(StructuredOutputsParams(grammar=text))
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_slow_tokenizer_is_told() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(SightlineError, match="needs a fast tokenizer, not Slow"):
        Compiler(Slow(), 400, frozenset()).compile(StructuredOutputsParams(choice=["a"]))


def test_the_process_imports_nothing_from_where_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "signal", "llguidance", "sightline"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    trial = Trial()
    try:
        assert trial.compile({"kind": "regex", "value": "a", "whitespace": {}})
    finally:
        trial.close()


def test_a_compiler_that_was_closed_leaves_no_process() -> None:
    compiler = Compiler(make_tokenizer(), 400, frozenset({2}))
    compiler.close()
    compiler.compile(StructuredOutputsParams(regex="ab"))
    assert all(trial._process is None for trial in compiler._all)


ORPHAN = """
import os, signal, sys, threading, time
from sightline.engine.sampling.structured.trial import Trial
trial = Trial()
trial.compile({"kind": "regex", "value": "a", "whitespace": {}})
print(trial._process.pid, flush=True)
given = {"kind": "json", "value": sys.argv[1], "whitespace": {}}
threading.Thread(target=trial.compile, args=(given, 0.8), daemon=True).start()
time.sleep(0.4)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_trial_ends_though_its_engine_was_killed() -> None:
    run = subprocess.run(
        [sys.executable, "-c", ORPHAN, json.dumps(ENDLESS)], capture_output=True, text=True, check=False
    )
    process = Path("/proc") / run.stdout.strip()
    assert process.name.isdecimal()
    deadline = time.perf_counter() + 10
    while process.exists() and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not process.exists()


def test_a_trial_that_waits_for_a_processor_is_not_late() -> None:
    trial = Trial()
    try:
        trial.compile({"kind": "regex", "value": "a", "whitespace": {}})
        process = trial._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        threading.Timer(0.6, process.send_signal, (signal.SIGCONT,)).start()
        assert trial.compile({"kind": "regex", "value": "ab", "whitespace": {}}, 0.4)
        assert trial._process is process
    finally:
        trial.close()

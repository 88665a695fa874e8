"""Results files: complete, in order, resumable, and never mixed with those of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from sightline import LLM, SamplingParams
from sightline.data.rows import load_conversations
from sightline.engine.offline.accuracy import evaluate, normalise, score
from sightline.engine.offline.infer import infer, question_of
from sightline.engine.offline.questions import from_dataset, from_folder, from_prompt
from sightline.engine.offline.results import ResultsFile
from sightline.errors import SightlineError

PARAMS = SamplingParams(temperature=0, max_tokens=5)


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six rows: four good, one with a missing picture, one that is not JSON."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Pillow.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")

    def row(text: str, **more: Any) -> str:
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
        return json.dumps({"messages": messages, **more})

    lines = [
        row("<image>is it red?", images=["a.png"], kind="colour", id=4),
        row("a"),
        row("<image>?", images=["missing.png"]),
        row("<image>is it blue?", images=["b.png"], kind="colour"),
        "{oops",
        row("what"),
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "time_to_first_token")} for row in rows]


def test_rows_and_summary(llm: LLM, data: Path, tmp_path: Path) -> None:
    rows, summary = infer(llm, from_dataset(data), PARAMS, tmp_path / "out.jsonl")
    assert rows == read(tmp_path / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(6))
    assert ["error" in row for row in rows] == [False, False, True, False, True, False]
    assert "missing.png" in rows[2]["error"]
    assert "data.jsonl:3" in rows[2]["error"]
    assert "data.jsonl:5" in rows[4]["error"]
    first = rows[0]
    assert first["messages"][-1] == {"role": "assistant", "content": first["answer"]}
    assert (first["reference"], first["kind"], first["id"]) == ("Yes.", "colour", 4)
    assert (first["vision_tokens"], first["completion_tokens"], first["finish_reason"]) == (4, 5, "length")
    assert (summary.questions, summary.answered, summary.failed, summary.resumed) == (6, 4, 2, 0)
    assert summary.completion_tokens == 20
    # The good rows are a dataset again, with the model's answers.
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(json.dumps(row) for row in rows if "error" not in row))
    assert [one.answer for one in load_conversations(good)] == [
        row["answer"] for row in rows if "error" not in row
    ]


def test_answers_do_not_depend_on_the_batch(tiny_folder: Path, llm: LLM, data: Path) -> None:
    one = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=1)
    sampled = SamplingParams(temperature=1.5, max_tokens=5)
    for params in (PARAMS, sampled):
        rows, _ = infer(llm, from_dataset(data), params)
        assert without_times(rows) == without_times(infer(one, from_dataset(data), params)[0])


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 5, 6])
@pytest.mark.parametrize("torn", [b"", b"{", b'{"key": "'])
def test_an_interrupted_file_is_continued(
    llm: LLM, data: Path, tmp_path: Path, keep: int, torn: bytes
) -> None:
    out, sampled = tmp_path / "out.jsonl", SamplingParams(temperature=1.5, max_tokens=3)
    whole, _ = infer(llm, from_dataset(data), sampled, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:keep]) + torn)
    rows, summary = infer(llm, from_dataset(data), sampled, out)
    assert summary.resumed == keep
    assert without_times(rows) == without_times(whole) == without_times(read(out))
    assert out.read_bytes().splitlines(keepends=True)[:keep] == lines[:keep]


def test_results_of_another_run_are_refused(llm: LLM, tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    infer(llm, from_dataset(data), PARAMS, out)
    before = out.read_bytes()
    other_questions = from_dataset(data)
    other_questions[1] = from_prompt("something else")[0]
    other_model = LLM(tiny_folder, dtype="fp32", device="cpu", max_pixels=56 * 56)
    quantized = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=2, quantization="int8")
    for engine, questions, params in (
        (llm, from_dataset(data), SamplingParams(temperature=0, max_tokens=6)),
        (llm, other_questions, PARAMS),
        (llm, from_dataset(data)[:3], PARAMS),
        (other_model, from_dataset(data), PARAMS),
        (quantized, from_dataset(data), PARAMS),
    ):
        with pytest.raises(SightlineError, match="holds other results"):
            infer(engine, questions, params, out)
    assert out.read_bytes() == before
    out.write_text("my notes\n")
    with pytest.raises(SightlineError, match="holds other results"):
        infer(llm, from_dataset(data), PARAMS, out)
    assert out.read_text() == "my notes\n"
    out.write_text('{"mine": 1}')  # one line without its break is not a torn row of ours
    with pytest.raises(SightlineError, match="holds other results"):
        infer(llm, from_dataset(data), PARAMS, out)
    assert out.read_text() == '{"mine": 1}'


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, ["a", "b"]) as first:
        first.append({"answer": 1})
        with pytest.raises(SightlineError, match="another run is writing"), ResultsFile(path, ["a", "b"]):
            pytest.fail("the block must not run")
        first.append({"answer": 2})
    assert [row["answer"] for row in read(path)] == [1, 2]


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_what_is_no_file_is_not_read(path: str) -> None:
    with pytest.raises(SightlineError, match="not an ordinary file"):
        ResultsFile(path, ["a"])


def test_text_that_is_not_unicode_is_an_error_row(llm: LLM, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "a \\ud800"}]}\n')
    for _ in range(2):
        rows, _ = infer(llm, from_dataset(data), PARAMS, tmp_path / "out.jsonl")
        assert "character 3" in rows[0]["error"]


def test_long_prompts_are_error_rows(llm: LLM) -> None:
    rows, summary = infer(llm, [*from_prompt("a " * 50), *from_prompt("a")], PARAMS, max_input_length=30)
    assert "above the input limit of 30" in rows[0]["error"]
    assert (summary.failed, summary.answered) == (1, 1)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.png", "deep/c.webp", "clip.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    questions = from_folder(tmp_path, "what?")
    names = [Path(part.source).name for q in questions for part in q.parts() if hasattr(part, "source")]  # type: ignore[union-attr]
    assert names == ["a.png", "b.JPG", "clip.mp4", "c.webp"]
    assert [type(part).__name__ for part in questions[2].parts()] == ["Video", "Text"]  # type: ignore[union-attr]
    with pytest.raises(SightlineError, match="no pictures or videos"):
        from_folder(tmp_path / "deep/..", "what?") if (tmp_path / "deep/c.webp").unlink() else from_folder(
            tmp_path / "deep", "what?"
        )
    with pytest.raises(SightlineError, match="not a folder"):
        from_folder(tmp_path / "a.png", "what?")


def test_accuracy(llm: LLM, data: Path) -> None:
    rows = [
        {"answer": " Blue.", "reference": "blue", "kind": "colour"},
        {"answer": "blue circle", "reference": "blue", "kind": "colour"},
        {"answer": "a circle", "reference": "A  circle!", "kind": "shape"},
        {"error": "no", "reference": "x", "kind": "shape"},
    ]
    found = score(rows)
    assert (found.total, found.by_kind) == (0.5, {"colour": (1, 2), "shape": (1, 2)})
    assert [row["right"] for row in found.rows] == [True, False, True, False]
    assert normalise("Ｙes, it_is") == "yes it is"
    whole = evaluate(llm, [q for q in from_dataset(data) if not isinstance(q, Exception)][:2], max_tokens=3)
    assert whole.by_kind.keys() == {"all", "colour"}
    with pytest.raises(SightlineError, match="no assistant turn"):
        evaluate(llm, from_prompt("a"))


def test_a_questions_words() -> None:
    row = {"messages": [{"role": "user", "content": "<image>what is\nit?"}], "images": ["/x/a.png"]}
    assert question_of(row) == "[a.png] what is it?"

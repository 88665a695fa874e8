"""The page's parts: intervals, ticks, curves, what is shown, and commands that exist."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import app
from sightline.demo.charts import draw_accuracy, loss_curve, ticks
from sightline.demo.report import cards, interval, mistakes
from sightline.demo.settings import KINDS
from sightline.demo.summary import next_steps


def test_wilsons_interval() -> None:
    # R: prop.test(59, 65, correct = FALSE)
    low, high = interval(59, 65)
    assert (low, high) == pytest.approx((0.8130, 0.9571), abs=5e-4)
    assert interval(0, 20)[0] == 0
    assert interval(20, 20)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("largest", "whole", "expected"),
    [
        (4.5, False, [0, 1, 2, 3, 4, 5]),
        (0.9, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (312, True, [0, 100, 200, 300, 400]),
        (3, True, [0, 1, 2, 3]),
        (10, False, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_ticks_are_round(largest: float, whole: bool, expected: list[float]) -> None:
    assert ticks(largest, whole=whole) == pytest.approx(expected)


def test_the_curve_stays_in_its_box() -> None:
    entries = [{"step": 10 * n, "loss": 3.7 / n} for n in range(1, 30)] + [
        {"step": 300, "loss": float("nan")}
    ]
    curve = loss_curve(entries)
    assert curve is not None
    assert (curve.first, curve.steps) == (3.7, 290)
    places = [tuple(map(float, pair.split(","))) for pair in curve.raw.split()]
    assert len(places) == 29
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in places)
    assert places[0] == (pytest.approx(100 / 29, abs=0.01), pytest.approx(100 - 370 / 4, abs=0.01))
    assert all(0 <= place <= 100 for place, _ in curve.x_ticks + curve.y_ticks)
    assert loss_curve(entries[:1]) is None


def rows(count: int, picture: Path) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "question": f"question {number}",
            "expected": answers[0],
            "after": answers[number % 2],
            "right_after": number % 2 == 0,
            "picture": str(picture),
        }
        for kind, answers in KINDS.items()
        for number in range(count)
    ]


def test_as_many_of_each_kind_are_shown(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    shown = cards(rows(20, picture), seed=0)
    assert [row["kind"] for row in shown] == [kind for kind in KINDS for _ in range(8)]
    assert shown == cards(rows(20, picture), seed=0)
    assert {row["right_after"] for row in shown} == {True, False}
    assert len(cards(rows(2, picture), seed=0)) == 6


def test_mistakes_are_counted(tmp_path: Path) -> None:
    assert mistakes(rows(4, tmp_path)) == [
        ("yes/no", "yes", "no", 2),
        ("shape", "circle", "rectangle", 2),
        ("color", "black", "blue", 2),
    ]


def test_the_bar_chart_is_a_png(tmp_path: Path) -> None:
    kind = {"before": 0.1, "after": 0.9, "guess": 0.5, "questions": 10}
    draw_accuracy({"all": {**kind, "guess": None}, "shape": kind}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_every_suggested_command_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"server_answers": [{"picture": "a b.png", "question": "what's it?"}]}
    commands = [line for lines in next_steps(report, Path("runs/demo")).values() for line in lines]
    assert len(commands) == 7
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "sightline"
        with pytest.raises(SystemExit) as left:
            app.main([*arguments, "--help"])
        assert not left.value.code, capsys.readouterr().err

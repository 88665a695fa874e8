"""Progress: silent for quick work, plain lines off a terminal, a shared bar on one, never on stdout."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sightline import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    progress.set_quiet(False)
    yield
    progress.set_quiet(False)


def wait_until(true: Callable[[], bool]) -> None:
    """Give the timer thread its turn; fail if it never takes it."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_track_yields_every_item_and_stays_silent_for_quick_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(100), "counting")) == list(range(100))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_plain_lines_tell_label_amount_and_total(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.Progress("checking rows", total=4) as shown:
        wait_until(lambda: shown._shown)
        for _ in range(4):
            shown.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert any(line.startswith("checking rows: 2 of 4 (50%)") and line.endswith(" left") for line in lines)
    assert lines[-1].startswith("checking rows: 4 in ")


def test_plain_lines_are_rare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 3600.0)
    with progress.Progress("copying", total=None) as shown:
        wait_until(lambda: shown._shown)
        for _ in range(1000):
            shown.advance()
    assert len(capsys.readouterr().err.splitlines()) == 2  # the first, and the closing one


def test_bytes_are_told_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.Progress("downloading", total=3_000_000, unit="bytes") as shown:
        wait_until(lambda: shown._shown)
        shown.advance(1_500_000)
    assert "downloading: 1.5 MB of 3.0 MB (50%)" in capsys.readouterr().err


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    progress.set_quiet()
    assert list(progress.track([1, 2], "counting")) == [1, 2]
    progress.note("a note")
    assert capsys.readouterr().err == ""


def test_a_failure_is_not_reported_as_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    with pytest.raises(ValueError, match="broken"), progress.Progress("checking", total=2) as shown:
        wait_until(lambda: shown._shown)
        raise ValueError("broken")
    assert " in " not in capsys.readouterr().err


def test_a_terminal_shows_nested_bars_in_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    with progress.Progress("outer work", total=2) as outer:
        wait_until(lambda: outer._shown)
        with progress.Progress("inner work", total=3) as inner:
            wait_until(lambda: inner._shown)
            assert progress._users == 2
            inner.update(2)
            assert progress._display is not None
            assert [task.completed for task in progress._display.tasks] == [0, 2]
            progress.note("[a note] in brackets")
        outer.advance()
    assert progress._display is None
    text = terminal.getvalue()
    assert "outer work" in text
    assert "inner work" in text
    assert "[a note] in brackets" in text


def test_the_timer_does_not_outlive_the_work() -> None:
    before = threading.active_count()
    for _ in range(20):
        list(progress.track([1], "quick"))
    wait_until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB"), (3e9, "3.0 GB")]
)
def test_size_in_words(count: float, words: str) -> None:
    assert progress.size(count) == words

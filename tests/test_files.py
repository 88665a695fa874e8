"""Atomic writing: the target is the old or the new whole, whatever happens in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline import files
from sightline.errors import SightlineError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_writes_the_new_text_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "rows.jsonl"
    with files.replacing(target) as file:
        file.write("größer\n")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "größer\n"
    assert names(target.parent) == ["rows.jsonl"]


def test_replacing_keeps_the_old_text_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replacing(target) as file:
        file.write("half of the ne")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["rows.jsonl"]


def test_replacing_makes_ordinary_files(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "bytes", "wb") as file:
        file.write(b"\x00\xff")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert (tmp_path / "bytes").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_replacing_says_why_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "rows.jsonl"
    with pytest.raises(SightlineError, match=r"cannot write .*rows\.jsonl"), files.replacing(target):
        pass


def test_replacing_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()  # an empty folder is as good as none
    with files.replacing_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        assert names(target) == []
    assert names(target) == ["config.json"]
    assert names(tmp_path) == ["model"]
    assert target.stat().st_mode & 0o700 == 0o700


def test_replacing_folder_refuses_what_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("precious")
    with pytest.raises(SightlineError, match="already exists"), files.replacing_folder(target):
        pytest.fail("the block must not run")
    assert (target / "weights").read_text() == "precious"


def test_replacing_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    with files.replacing_folder(tmp_path / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("precious")
    assert flushed == [(tmp_path / "model" / "deep" / "weights").stat().st_ino]


def test_replacing_folder_leaves_nothing_on_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.replacing_folder(tmp_path / "model") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert names(tmp_path) == []


def test_write_json_keeps_letters_readable(tmp_path: Path) -> None:
    files.write_json(tmp_path / "report.json", {"name": "größe 图"})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "größe 图"}
    assert "图" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff", "is not readable JSON"),
        (b'{"a": ' + b"[" * 200_000, "is not readable JSON"),
        (b"[1]", "must hold a JSON object, not list"),
        (None, "cannot read .*No such file"),
    ],
)
def test_reading_what_is_no_object(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SightlineError, match=words):
        files.read_object(tmp_path / "config.json")


def test_the_umask_of_the_process_is_respected(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_json(tmp_path / "private.json", {})
    finally:
        assert os.umask(before) == 0o077
    assert (tmp_path / "private.json").stat().st_mode & 0o777 == 0o600


def test_only_one_process_holds_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from sightline.files import only_user\n"
        "with only_user(pathlib.Path(sys.argv[1]), 'taken'): print('held', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(SightlineError, match="^taken$"), files.only_user(tmp_path, "taken"):
        pass
    holder.kill()
    holder.communicate()
    with files.only_user(tmp_path, "taken"):  # let go of, however the other ended
        pass

"""A wheel is downloaded once by the user's own pip, checked, and taken from the cache afterwards."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from sightline.demo.fetch import Wheel, cache_folder, cached_wheel, fetch_wheel, file_sha256
from sightline.errors import SightlineError


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A real little wheel in a folder that pip is pointed at, and an empty cache."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "tiny_words-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_words.py", "WORDS = 3\n")
        archive.writestr(
            "tiny_words-0.1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-words\nVersion: 0.1\nRequires-Dist: not-there-at-all\n",
        )
        archive.writestr(
            "tiny_words-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_words-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    return Wheel("tiny-words", "0.1", path.name, file_sha256(path))


def test_the_first_fetch_downloads_and_the_second_needs_nothing(
    published: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached_wheel(published) is None
    path = fetch_wheel(published)
    assert path == cache_folder() / "wheels" / published.filename
    assert [entry.name for entry in path.parent.iterdir()] == [published.filename]
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert fetch_wheel(published) == path


def test_a_damaged_cache_is_fetched_again(published: Wheel) -> None:
    path = fetch_wheel(published)
    path.write_bytes(path.read_bytes()[:-1])
    assert cached_wheel(published) is None
    assert file_sha256(fetch_wheel(published)) == published.sha256


def test_another_file_of_that_name_is_refused_and_not_kept(published: Wheel) -> None:
    other = Wheel(published.project, published.version, published.filename, "0" * 64)
    with pytest.raises(SightlineError, match="instead of 000"):
        fetch_wheel(other)
    assert list((cache_folder() / "wheels").iterdir()) == []


def test_offline_the_error_says_what_to_do(published: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(SightlineError, match=r"pip could not download tiny-words 0\.1 .*or put tiny_words"):
        fetch_wheel(published)


def test_the_cache_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("SIGHTLINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sightline"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sightline"


def test_a_cache_that_cannot_be_written_is_named(
    published: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(SightlineError, match="set SIGHTLINE_CACHE"):
        fetch_wheel(published)

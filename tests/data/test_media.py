"""The bytes of a medium: URLs, budgets, and names in messages."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.media import (
    Budget,
    MediaError,
    decode_data_url,
    describe,
    file_url_to_path,
    local_path,
    opened,
    to_data_url,
)


@given(st.binary(), st.sampled_from(["image/png", "", "text/plain;charset=x"]))
def test_data_urls_there_and_back(data: bytes, mime: str) -> None:
    assert decode_data_url(to_data_url(data, mime)) == data
    unpadded = f"data:{mime};base64," + base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert decode_data_url(unpadded) == data


def test_data_url_forms() -> None:
    assert decode_data_url("DATA:image/png;BASE64,aGk=") == b"hi"
    assert decode_data_url("data:image/png;base64,aG\n k%3D") == b"hi"
    assert decode_data_url("data:,a%20b") == b"a b"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a$b", "not valid base64"),
        ("data:;base64,aaaaa", "not valid base64"),
    ],
)
def test_broken_data_urls(url: str, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        decode_data_url(url)


def test_data_url_over_the_budget_is_not_decoded() -> None:
    with pytest.raises(MediaError, match="more than the 10 allowed") as caught:
        decode_data_url(to_data_url(bytes(1000)), Budget(max_bytes=10))
    assert caught.value.kind == "too-large"


def test_messages_never_hold_the_data() -> None:
    assert describe("data:image/png;base64," + "A" * 1000) == "the data: URL (image/png)"
    assert len(describe("x" * 10000)) < 200
    assert describe(b"12345") == "the medium of 5 bytes"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b.png", "/a/b.png"),
        ("file://localhost/a%20b/%E5%9B%BE.png", "/a b/图.png"),
        ("file://LOCALHOST/a", "/a"),
        ("file:///a?b#c.png", "/a?b#c.png"),
    ],
)
def test_file_urls(url: str, path: str) -> None:
    assert file_url_to_path(url) == path
    assert local_path(url) == Path(path)


@pytest.mark.parametrize(
    "url", ["file://server/a.png", "file://a.png", "ftp://x/a.png", "http://x/a", "HTTPS://x/a"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(MediaError) as caught:
        local_path(url)
    assert caught.value.kind == "unsupported"


def test_special_files_are_not_opened() -> None:
    """Reading /dev/zero would never end."""
    with pytest.raises(MediaError, match="is not a file"), opened("/dev/zero"):
        pass


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be opened: file name too long"), opened("x" * 5000):
        pass


def test_a_budget_without_files_opens_none(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1234")
    for source in (str(path), path.as_uri(), str(tmp_path / "missing")):
        with (
            pytest.raises(MediaError, match="a file of this machine cannot be opened here") as caught,
            opened(source, Budget(files=False)),
        ):
            pass
        assert str(tmp_path) not in str(caught.value)
    with opened(b"1234", Budget(files=False)) as file:
        assert file.read() == b"1234"


def test_long_percent_encoding_is_refused_and_short_is_read() -> None:
    assert decode_data_url("data:image/gif," + "%47%49%46" * 1000) == b"GIF" * 1000
    with pytest.raises(MediaError, match="base64"):
        decode_data_url("data:image/gif," + "%47%49%46" * 200_000)


@pytest.mark.parametrize("url", ["data:,\ud800", "data:image/\udfff;base64,\ud800", "data:\ud800"])
def test_half_a_surrogate_pair_in_a_data_url_is_an_error_that_can_be_sent(url: str) -> None:
    with pytest.raises(MediaError) as caught:
        decode_data_url(url)
    assert str(caught.value).encode()

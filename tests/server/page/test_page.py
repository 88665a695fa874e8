"""The page's files and the headers they come with."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sightline.server.page.page import page_router, read_files

STATIC = Path(str(files("sightline.server.page").joinpath("static")))
NAMES = sorted(path.name for path in STATIC.iterdir())
SVG = "http://www.w3.org/2000/svg"


def text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def get() -> Any:
    app = FastAPI()
    app.include_router(page_router())
    client = TestClient(app)

    def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
        return client.request(method, path, headers=headers)

    return ask


def test_every_file_of_the_package_is_served_with_its_type(get: Any) -> None:
    assert set(read_files()) == set(NAMES)
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in NAMES:
        reply = get(f"/page/{name}")
        assert reply.status_code == 200
        assert reply.content == (STATIC / name).read_bytes()
        assert reply.headers["content-type"].startswith(types[name.rpartition(".")[2]])
    assert get("/").text == text("index.html")
    assert get("/", "HEAD").status_code == 200


def test_the_headers_are_strict(get: Any) -> None:
    for path in ("/", "/page/main.js"):
        headers = get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["permissions-policy"].startswith("camera=(self)")


def test_an_unchanged_file_is_not_sent_again(get: Any) -> None:
    first = get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get("/page/main.js", **{"if-none-match": known})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
        assert "content-security-policy" in again.headers
    assert get("/page/main.js", **{"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/page/", "/page/none.js", "/page/../page.py", "/page/..%2fpage.py", "/page/%2e%2e%2fpage.py"),
        *("/page/..%5cpage.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd", "/page/main.js%00", "/page/."),
    ],
)
def test_no_other_file_can_be_named(get: Any, path: str) -> None:
    assert get(path).status_code == 404


def test_the_page_is_not_part_of_the_interface_description() -> None:
    app = FastAPI()
    app.include_router(page_router())
    assert app.openapi()["paths"] == {}


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', text("index.html")))
    for name in NAMES:
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text(name)))
    assert named <= set(NAMES)
    assert set(NAMES) - named == {"index.html"}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_no_other_host(name: str) -> None:
    without = text(name).replace(f'"{SVG}"', "")
    assert re.findall(r"(?:https?|wss?)://[\w.]", without) == []
    assert re.findall(r"""["'(]//\w""", without) == []
    assert "@import" not in without


def test_nothing_is_inline_and_nothing_makes_markup_of_text() -> None:
    page = text("index.html")
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", page) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc"
    )
    for name in NAMES:
        if name.endswith(".js"):
            assert re.findall(forbidden, text(name)) == [], name


def words(language: str) -> dict[str, str]:
    body = text(f"{language}.js").removeprefix("export default").rstrip().removesuffix(";")
    pairs = json.loads(re.sub(r",\s*}\s*$", "}", body), object_pairs_hook=list)
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_both_languages_say_the_same_things() -> None:
    english, chinese = words("en"), words("zh")
    assert list(english) == list(chinese)
    for key, value in english.items():
        assert value.strip()
        assert sorted(re.findall(r"\{\w+\}", value)) == sorted(re.findall(r"\{\w+\}", chinese[key])), key
    assert all(
        re.search(r"[\u4e00-\u9fff]", value) or key.startswith("label_top") for key, value in chinese.items()
    )


def test_every_word_is_there_and_every_word_is_used() -> None:
    known = set(words("en"))
    page = text("index.html")
    asked = set(re.findall(r'data-i18n(?:-label|-placeholder)?="(\w+)"', page))
    scripts = "".join(text(name) for name in NAMES if name.endswith(".js") and name not in ("en.js", "zh.js"))
    asked |= set(re.findall(r'\bt\("(\w+)"', scripts))
    asked |= set(re.findall(r'iconButton\("\w+", "(\w+)"', scripts))
    assert asked <= known
    # The rest is named by parts or by tables: error_${kind}, MediaError("unreadable").
    prefixes = tuple(re.findall(r"t\(`(\w+_)\$\{", scripts))
    rest = {key for key in known - asked if not key.startswith(prefixes)}
    assert {key for key in rest if f'"{key}"' not in scripts} == set()


def test_labels_point_at_fields() -> None:
    page = text("index.html")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:for|aria-labelledby|aria-describedby|aria-controls)="([^"]+)"', page):
        assert name in ids
    scripts = "".join(text(name) for name in NAMES if name.endswith(".js"))
    assert set(re.findall(r'\$\("([\w-]+)"\)', scripts)) <= set(ids)


def test_modules_stay_small() -> None:
    assert {
        name: lines for name in NAMES if name.endswith(".js") and (lines := text(name).count("\n")) > 300
    } == {}

"""What a client may make the server fetch, case by case."""

from __future__ import annotations

import asyncio
import gzip
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clips import clip
from media_hosts import (
    PNG,
    PUBLIC,
    Net,
    answer,
    drip,
    endless,
    headers,
    informational,
    picture,
    reset,
    silence,
    stall,
)

from sightline.data.conversation import Conversation, Image, Message, Text, Video
from sightline.data.media import to_data_url
from sightline.server.errors import RequestError
from sightline.server.media import Fetcher, MediaPolicy

SITE = "http://pics.example"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG)
ROUTES: dict[str, Any] = {
    "/cat.png": answer(PNG),
    "/cat.jpg": answer(picture("JPEG")),
    "/cat.webp": answer(picture("WEBP")),
    "/%E7%8C%AB.png": answer(PNG),
    "/clip.mp4": answer(clip(frames=4)),
    "/chunked": CHUNKED,
    "/until-close": b"HTTP/1.0 200 OK\r\n\r\n" + PNG,
    "/called-html": answer(PNG, content_type="text/html"),
    "/identity": answer(PNG, content_encoding="identity"),
    "/html": answer(b"<!doctype html><title>a secret page</title>", content_type="image/png"),
    "/long-html": answer(b"<!doctype html>" + b"x" * 3000, content_type="image/png"),
    "/svg": answer(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'),
    "/pdf": answer(b"%PDF-1.7" + bytes(100)),
    "/ico": answer(b"\0\0\1\0" + bytes(100)),
    "/zip": answer(b"PK\3\4" + bytes(100)),
    "/playlist": answer(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n" + b"#" * 99),
    "/gzip": answer(gzip.compress(PNG), content_encoding="gzip"),
    "/brotli": answer(PNG, content_encoding="br"),
    "/said-big": answer(PNG, length=5000),
    "/said-huge": answer(PNG, length=10**30),
    "/sent-big": answer(PNG + bytes(5000)),
    "/endless": endless,
    "/drip": drip,
    "/stall": stall,
    "/silence": silence,
    "/reset": reset,
    "/informational": informational,
    "/headers": headers,
    "/short": answer(PNG[:90], length=len(PNG)),
    "/two-lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-length: 10\r\n\r\n" + PNG,
    "/not-http": b"SSH-2.0-OpenSSH_9.9\r\n",
    "/empty": answer(b""),
    "/500": answer(b"trace of 10.0.0.1", 500),
    "/403": answer(b"", 403),
    "/204": answer(b"", 204),
    "/206": answer(PNG[:50], 206),
    "/304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "/401": answer(b"", 401, www_authenticate="Basic realm=x"),
    "/no-location": answer(b"", 302),
    "/around": answer(b"", 302, location="/around"),
}
FILES = {
    "cat.png": PNG,
    "a b.png": PNG,
    "clip.mp4": clip(frames=4),
    "notes.txt": b"my notes",
    "empty.png": b"",
}

OK = "ok"
CLOSED = "which is not a public host that this server can find"
BAD = "is not a web address that this server fetches"
REDIRECT = "is redirected to an address that this server does not fetch"
NO_FILE = "names a file that this server does not have or may not open"
FAILED = "could not be fetched: pics.example could not be reached or broke off"
SLOW = "could not be fetched: pics.example took too long"


@dataclass
class Case:
    id: str
    source: str
    expected: str = OK
    names: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    status: int = 400
    kind: str = "image"
    plain_paths: bool = False
    dials: int | None = None  # connections that are made; None: any number


def closed(*hosts: str) -> list[Case]:
    return [Case(f"closed {host}", f"http://{host}/cat.png", CLOSED, dials=0) for host in hosts]


def refused(*urls: str) -> list[Case]:
    return [Case(f"refused {url[:60]!a}", url, BAD, dials=0) for url in urls]


def resolves(id: str, *addresses: str) -> Case:
    return Case(
        f"a name for {id}", "http://inside.example/cat.png", CLOSED, {"inside.example": [*addresses]}, dials=0
    )


def redirected(location: str, expected: str = REDIRECT, **rest: Any) -> Case:
    return Case(f"redirected to {location}", f"{SITE}/to?{location}", expected, **rest)


LOCAL = {"allowed_local_paths": True}
# fmt: off
TABLE = [
    # What works.
    Case("a png", f"{SITE}/cat.png", dials=1),
    Case("a jpg with query and fragment", f"{SITE}/cat.jpg?size=1#top"),
    Case("upper case", "HTTP://PICS.Example/cat.webp"),
    Case("a clip", f"{SITE}/clip.mp4", kind="video"),
    Case("a dot behind the host", "http://pics.example./cat.png"),
    Case("another port", "http://pics.example:8080/cat.png"),
    Case("a public address", f"http://{PUBLIC}/cat.png"),
    Case("a public IPv6 address", "http://[2606:2800:220:1::1]/cat.png"),
    Case("a mapped public address", f"http://[::ffff:{PUBLIC}]/cat.png"),
    Case("a translated public address", "http://v6.example/cat.png",
         names={"v6.example": ["64:ff9b::5db8:d822"]}),
    Case("another script in the path", f"{SITE}/猫.png"),
    Case("another script in the host", "http://bücher.example/cat.png",
         names={"xn--bcher-kva.example": [PUBLIC]}),
    Case("chunked", f"{SITE}/chunked"),
    Case("ended by closing", f"{SITE}/until-close"),
    Case("a wrong content type", f"{SITE}/called-html"),
    Case("identity", f"{SITE}/identity"),
    Case("three redirects", f"{SITE}/hops?3", dials=4),
    redirected("//pics.example/cat.png", OK),
    redirected("http://pics.example:8080/cat.png", OK),
    Case("a data URL", to_data_url(PNG), dials=0),
    Case("a listed domain", f"{SITE}/cat.png", policy={"allowed_domains": ("pics.example",)}),
    Case("a listed suffix", f"{SITE}/cat.png", policy={"allowed_domains": (".EXAMPLE",)}),
    Case("the suffix itself", f"{SITE}/cat.png", policy={"allowed_domains": (".pics.example",)}),
    Case("a private address that is not used again", "http://re.example/cat.png",
         names={"re.example": [[PUBLIC], ["10.0.0.1"]]}),
    # Addresses that are not public, in every notation.
    *closed("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200"),
    *closed("0.0.0.0", "0.1.2.3", "100.64.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.7"),
    *closed("203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *closed("[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[fe80::1]",
         "[fc00::1]"),
    *closed("[fd00:ec2::254]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[2002:7f00:1::]"),
    *closed("[2002:5db8:d822::1]", "[2001:0:5db8:d822::1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]"),
    *closed("[64:ff9b:1::5db8:d822]", "[100::1]", "[2001:2::1]", "[5f00::1]", "[0:0:0:0:0:0:0:1]"),
    *closed("localhost", "ip6-localhost", "printer.local", "nobody.example", "127.0.0.1.", "①②⑦.0.0.1",
         "１２７．０．０．１"),
    *closed("127。0。0。1"),
    *refused("http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/",
         "http://0x7f.1/"),
    *refused("http://127.0.0.0x1/", "http://017700000001/", "http://1/", "http://127.0.0.256/", "http://0/"),
    *refused("http://127.0.0.1.1/", "http://[fe80::1%25eth0]/", "http://[::1%eth0]/", "http://[::1]a/",
         "http://[::1/"),
    *refused("http://[v1.fe]/", "http://127%2e0.0.1/", "http://%31%32%37.0.0.1/", "http://[::ffff:0x7f.1]/"),
    # Addresses that two readers might read in two ways.
    *refused("http://pics.example\\@127.0.0.1/", "http:\\\\pics.example/", "http://pics.example@127.0.0.1/"),
    *refused("http://user:pass@pics.example/", "http://127.0.0.1\t.pics.example/", "http://pics.example/a b"),
    *refused("http://pics.example/\r\nHost: a", "http://pics.example\0.a/", "http://pics.example /"),
    *refused("http:///cat.png", "http://", "http:pics.example", "http:/pics.example/", "https:///",
         "http://?a"),
    *refused("http://pics.example:/x:y", "http://pics.example:0/", "http://pics.example:99999/",
         "http://pics.example:٨٠/"),
    *refused("http://pics.example:22/", "http://pics.example:25/", "http://pics.example:80:80/",
         "http://-a.example/"),
    *refused("http://a..example/", "http://.example/", f"http://{'a' * 64}.example/",
         f"http://{'a.' * 130}example/"),
    *refused(f"http://pics.example/{'a' * 9000}", "http://pics.example​/", "http://a_$.example/",
         "http://pics.example/﻿"),
    # Names that stand for such addresses.
    resolves("a private address", "10.0.0.1"),
    resolves("loopback", "127.0.0.1"),
    resolves("the metadata service", "169.254.169.254"),
    resolves("IPv6 loopback", "::1"),
    resolves("a link-local address", "fe80::1%eth0"),
    resolves("a unique local address", "fd12:3456::1"),
    resolves("a public and a private address", PUBLIC, "10.0.0.1"),
    resolves("a private and a public address", "10.0.0.1", PUBLIC),
    resolves("a mapped private address", "::ffff:10.0.0.1"),
    resolves("a translated private address", "64:ff9b::a00:1"),
    resolves("nothing"),
    resolves("nonsense", "not-an-address"),
    # Redirects.
    Case("four redirects", f"{SITE}/hops?4", "is redirected more than 3 times", dials=4),
    Case("redirects in a circle", f"{SITE}/around", "is redirected more than 3 times"),
    Case("none allowed", f"{SITE}/hops?1", "is redirected more than 0 times", policy={"max_redirects": 0}),
    Case("a redirect to nowhere", f"{SITE}/no-location", "is redirected more than 3 times"),
    *(redirected(f"http://{host}/", dials=1) for host in ("127.0.0.1", "10.0.0.1", "[::1]", "2130706433",
         "localhost")),
    *(redirected(url, dials=1) for url in ("http://169.254.169.254/latest/meta-data/",
         "file:///etc/passwd", "ftp://pics.example/")),
    *(redirected(url, dials=1) for url in ("data:image/png;base64,aGk=", "http://a@pics.example/",
         "http://x%5C@pics.example/")),
    redirected("//127.0.0.1/", dials=1),
    redirected("http://[::1/", dials=1),
    redirected("http://inside.example/cat.png", names={"inside.example": ["10.0.0.1"]}, dials=1),
    redirected("http://other.example/cat.png", names={"other.example": [PUBLIC]},
         policy={"allowed_domains": ("pics.example",)}, dials=1),
    Case("a second hop that turned private", "http://re.example/to?/cat.png", REDIRECT,
         {"re.example": [[PUBLIC], ["10.0.0.1"]]}, dials=1),
    # Domains.
    Case("an unlisted domain", f"{SITE}/cat.png", "not among those",
         policy={"allowed_domains": ("a.example",)}, dials=0),
    Case("a listed ending without a dot", "http://evilpics.example/", "not among those",
         policy={"allowed_domains": ("pics.example", ".pics.example")}, dials=0),
    Case("below a listed host", "http://a.pics.example/", "not among those",
         policy={"allowed_domains": ("pics.example",)}, dials=0),
    Case("a listed private address", "http://10.0.0.1/", CLOSED, policy={"allowed_domains": ("10.0.0.1",)},
         dials=0),
    Case("no fetching", f"{SITE}/cat.png", "this server fetches none", policy={"fetch": False}, dials=0),
    # What hosts answer.
    *(Case(f"an answer {code}", f"{SITE}/{code}", f"could not be fetched: pics.example answered {code}",
         status=422) for code in (500, 403, 204, 206, 304, 401)),
    Case("an answer 404", f"{SITE}/nothing", "could not be fetched: pics.example answered 404", status=422),
    Case("a web page", f"{SITE}/html", "is not a picture in a supported format"),
    Case("a long web page", f"{SITE}/long-html", "is not a picture in a supported format"),
    *(Case(f"a {kind}", f"{SITE}/{kind}", "is not a picture") for kind in ("svg", "pdf", "ico", "zip",
         "playlist", "clip.mp4")),
    *(Case(f"as a video a {kind}", f"{SITE}/{kind}", "is not a video", kind="video") for kind in ("html",
         "playlist", "cat.png")),
    Case("a gzip", f"{SITE}/gzip", "sent it compressed", status=422),
    Case("a brotli", f"{SITE}/brotli", "sent it compressed", status=422),
    Case("empty", f"{SITE}/empty", "is empty"),
    Case("too long by its header", f"{SITE}/said-big", "has more than the 4,000 bytes allowed"),
    Case("far too long by its header", f"{SITE}/said-huge", "", status=-1),
    Case("too long in fact", f"{SITE}/sent-big", "has more than the 4,000 bytes allowed"),
    Case("too long together", f"{SITE}/cat.png", "over the 100 bytes allowed",
         policy={"max_total_bytes": 100}),
    Case("a data URL too long", to_data_url(bytes(9000)), "has more than the 4,000 bytes allowed", dials=0),
    Case("endless", f"{SITE}/endless", "has more than the 4,000 bytes allowed"),
    Case("endless and slow", f"{SITE}/drip", SLOW, status=422),
    Case("stalling", f"{SITE}/stall", SLOW, status=422),
    Case("silent", f"{SITE}/silence", SLOW, status=422),
    Case("endless promises", f"{SITE}/informational", SLOW, status=422),
    Case("endless headers", f"{SITE}/headers", FAILED, status=422),
    Case("a reset", f"{SITE}/reset", FAILED, status=422),
    Case("cut short", f"{SITE}/short", FAILED, status=422),
    Case("two lengths", f"{SITE}/two-lengths", FAILED, status=422),
    Case("not http", f"{SITE}/not-http", FAILED, status=422),
    Case("nobody listens", "http://pics.example:9999/", FAILED, status=422),
    # Other kinds of sources.
    *(Case(f"kind {url}", url, "is not an http(s), file or data: URL") for url in ("ftp://pics.example/",
         " http://pics.example/", "gopher://a/", "cat.png", "", "javascript:1", "/etc/passwd", "http",
         "concat:a|b")),
    # Files; {root} is the allowed folder, {outside} one beside it.
    Case("a file", "file://{root}/cat.png", policy=LOCAL, dials=0),
    Case("a file on localhost", "FILE://LocalHost{root}/cat.png", policy=LOCAL),
    Case("a file with a blank", "file://{root}/a%20b.png", policy=LOCAL),
    Case("a file below", "file://{root}/deep/er/cat.png", policy=LOCAL),
    Case("a clip's file", "file://{root}/clip.mp4", policy=LOCAL, kind="video"),
    Case("a link inside", "file://{root}/link-inside.png", policy=LOCAL),
    Case("a plain path for MindIE", "{root}/cat.png", policy=LOCAL, plain_paths=True),
    Case("a dot and back", "file://{root}/./deep/../cat.png", policy=LOCAL),
    Case("no files at all", "file://{root}/cat.png", "this server opens none"),
    Case("no plain paths at all", "{root}/cat.png", "this server opens none", plain_paths=True),
    Case("a text", "file://{root}/notes.txt", "is not a picture", policy=LOCAL),
    Case("an empty file", "file://{root}/empty.png", "is empty", policy=LOCAL),
    Case("a large file", "file://{root}/large.png", "has more than the 4,000 bytes", policy=LOCAL),
    *(
        Case(f"the file {url}", url, NO_FILE, policy=LOCAL, plain_paths=True)
        for url in (
            *("file://{outside}/secret.png", "file://{outside}/missing.png", "file://{root}/missing.png"),
            *("file://{root}/../outside/secret.png", "file://{root}/%2e%2e/outside/secret.png"),
            *("file://{root}/..%2foutside/secret.png", "file://{root}/link-outside.png",
                 "file://{root}/linked/secret.png"),
            *("file://{root}/deep", "file://{root}", "file://{root}/", "file://{root}/pipe",
                 "file://{root}/cat.png%00.png"),
            *("file://{root}-twin/secret.png", "file://evil{root}/cat.png", "file:////{root}/cat.png",
                 "file:{root}/cat.png"),
            *("file:///etc/passwd", "file:///proc/self/environ", "file:///dev/zero", "file:///dev/fd/0",
                 "file://"),
            *("file://{root}/loop", "file://{root}/locked.png/x", "{outside}/secret.png", "/etc/passwd",
                 "//etc/passwd"),
            *("file:///" + "a" * 5000, "file://{root}/" + "b" * 300, "file://{root}/cat.png?x",
                 "file://{root}/%FF%FE"),
        )
    ),
]
# fmt: on


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import os

    base = tmp_path_factory.mktemp("media")
    root, outside, twin = base / "root", base / "outside", base / "root-twin"
    for folder in (root / "deep" / "er", outside, twin):
        folder.mkdir(parents=True)
    for name, data in FILES.items():
        (root / name).write_bytes(data)
    (root / "deep" / "er" / "cat.png").write_bytes(PNG)
    (root / "large.png").write_bytes(PNG + bytes(5000))
    for folder in (outside, twin):
        (folder / "secret.png").write_bytes(PNG)
    (root / "link-inside.png").symlink_to(root / "cat.png")
    (root / "link-outside.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    return {"root": root, "outside": outside}


@pytest.mark.parametrize("case", TABLE, ids=[case.id for case in TABLE])
def test_table(case: Case, folders: dict[str, Path]) -> None:
    values: dict[str, Any] = {
        "max_bytes": 4000,
        # Short where the end of the wait is what is looked for, and long for a busy machine elsewhere.
        "fetch_seconds": 0.4 if case.expected == SLOW else 20.0,
        "idle_seconds": 0.2 if case.expected == SLOW else 20.0,
        "connect_seconds": 20.0,
        **case.policy,
    }
    if values.get("allowed_local_paths"):
        values["allowed_local_paths"] = (folders["root"],)
    source = case.source
    for name, folder in folders.items():
        source = source.replace(f"{{{name}}}", str(folder))
    medium = Image(source) if case.kind == "image" else Video(source)
    conversation = Conversation([Message("user", [Text("what is this?"), medium])])
    net = Net(case.names, ROUTES)

    async def play() -> Any:
        async with (
            net.serving(),
            Fetcher(MediaPolicy(**values), resolver=net.resolve, dialer=net.dialer) as fetcher,
        ):
            try:
                return await fetcher.resolve(conversation, plain_paths=case.plain_paths)
            finally:
                assert fetcher.held_bytes == 0

    if case.expected == OK:
        found = asyncio.run(play()).messages[0].parts[1].source
        assert isinstance(found, bytes) or source.startswith("data:")
        assert isinstance(found, str) or len(found) > 50
    else:
        start = time.perf_counter()
        with pytest.raises(RequestError) as caught:
            asyncio.run(play())
        assert case.expected != SLOW or time.perf_counter() - start < 2.5
        check_refusal(case, caught.value, [str(folder) for folder in folders.values()])
    if case.dials is not None:
        assert len(net.dialed) == case.dials
    assert all(address.startswith((PUBLIC, "2606:", "64:ff9b::")) for address, _ in net.dialed)


def check_refusal(case: Case, error: RequestError, paths: list[str]) -> None:
    text, param = str(error), f"messages[0].content[1].{case.kind}_url"
    assert error.body["error"]["param"] == param
    assert text.startswith(f"{param} ")
    assert case.expected in text
    if case.status > 0:
        assert error.status == case.status
    assert len(text) < 300
    leaks = [*paths, "Errno", "Traceback", "0x7f", "10.0.0.1", "secret", "eth0"]
    given = case.source.lower()
    assert not [leak for leak in leaks if leak in text and leak not in given]


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 60
    assert len({case.id for case in TABLE}) == len(TABLE)

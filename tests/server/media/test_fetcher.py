"""Fetching under load and trouble: what is asked, sent, kept, given back, and ended with the request."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from media_hosts import PNG, PUBLIC, Net, answer, certificates, endless, picture, reset, silence, stall

from sightline.data.conversation import Conversation, Image, Message, Text, Video
from sightline.data.media import describe, to_data_url
from sightline.errors import UsageError
from sightline.server.errors import RequestError
from sightline.server.media import Fetcher, MediaPolicy
from sightline.server.media.local import read_local
from sightline.server.media.refusal import Refused
from sightline.server.media.resolver import SystemResolver

SITE = "http://pics.example"


def ask(*sources: Any) -> Conversation:
    return Conversation([Message("user", [*(Image(source) for source in sources), Text("?")])])


def play(
    net: Net, test: Any, tls: ssl.SSLContext | None = None, trust: ssl.SSLContext | None = None, **policy: Any
) -> Any:
    """Run `test(fetcher)` with `net` served."""

    async def run() -> Any:
        async with (
            net.serving(tls),
            Fetcher(MediaPolicy(**policy), resolver=net.resolve, dialer=net.dialer, tls=trust) as fetcher,
        ):
            return await test(fetcher)

    return asyncio.run(run())


def test_a_name_is_looked_up_once_for_each_connection_and_that_address_is_dialed() -> None:
    net = Net({"re.example": [[PUBLIC], ["127.0.0.1"]]}, {"/a": answer(PNG)})
    play(net, lambda fetcher: fetcher.resolve(ask("http://re.example/a")))
    assert net.asked == ["re.example"]
    assert net.dialed == [(PUBLIC, 80)]


def test_the_second_address_is_tried_where_the_first_is_dead() -> None:
    net = Net({"two.example": ["93.184.216.99", PUBLIC]}, {"/a": answer(PNG)})

    class Half(type(net.dialer)):  # type: ignore[misc]
        async def connect_tcp(self, host: str, port: int, **rest: Any) -> Any:
            if host == "93.184.216.99":
                raise OSError("no route")
            return await super().connect_tcp(host, port, **rest)

    async def run() -> Conversation:
        async with net.serving(), Fetcher(MediaPolicy(), resolver=net.resolve, dialer=Half(net)) as fetcher:
            return await fetcher.resolve(ask("http://two.example/a"))

    assert asyncio.run(run()).images[0].source == PNG


def test_an_address_of_this_machine_is_refused_even_where_it_is_public(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sightline.server.media.fetcher.own_addresses", lambda: frozenset({PUBLIC}))
    net = Net(routes={"/a": answer(PNG)})
    with pytest.raises(RequestError, match="not a public host"):
        play(net, lambda fetcher: fetcher.resolve(ask(f"{SITE}/a")))
    assert net.dialed == []


def test_nothing_but_a_plain_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    net = Net(routes={"/a": answer(b"", 302, location="/b?c=d#e", set_cookie="a=b"), "/b": answer(PNG)})
    play(net, lambda fetcher: fetcher.resolve(ask(f"{SITE}/a")))
    assert [head.split(b"\r\n")[0] for head in net.heads] == [b"GET /a HTTP/1.1", b"GET /b?c=d HTTP/1.1"]
    for head in net.heads:
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        assert set(fields) == {b"Host", b"User-Agent", b"Accept", b"Accept-Encoding", b"Connection"}
        assert fields[b"Host"] == b"pics.example"
        assert fields[b"Accept-Encoding"] == b"identity"


def test_what_comes_back_is_bytes_under_a_name_without_the_address() -> None:
    net = Net(routes={"/secret/a.png": answer(PNG)})
    given = Conversation(
        [
            Message("system", [Text("be kind")]),
            Message("user", [Image(f"{SITE}/secret/a.png", max_pixels=100), Text("?")]),
            Message("user", [Image(to_data_url(PNG)), Image(PNG)]),
        ]
    )
    found = play(net, lambda fetcher: fetcher.resolve(given))
    image, data, raw = found.images
    assert image.source == PNG
    assert image.max_pixels == 100
    assert describe(image.source) == "the image from pics.example"
    assert data.source == to_data_url(PNG)
    assert raw.source is PNG
    assert found.messages[0] == given.messages[0]
    assert given.images[0].source == f"{SITE}/secret/a.png"


def test_a_clip_of_pictures_is_fetched_picture_by_picture() -> None:
    net = Net(routes={"/1": answer(PNG), "/2": answer(picture("JPEG"))})
    clip = Conversation([Message("user", [Video((f"{SITE}/1", f"{SITE}/2", to_data_url(PNG)), fps=2.0)])])
    found = play(net, lambda fetcher: fetcher.resolve(clip)).videos[0]
    assert found.source == (PNG, picture("JPEG"), to_data_url(PNG))
    assert found.fps == 2.0


def test_one_address_named_twice_is_fetched_once() -> None:
    net = Net(routes={"/a": answer(PNG)})
    found = play(net, lambda fetcher: fetcher.resolve(ask(f"{SITE}/a", f"{SITE}/a")))
    assert [image.source for image in found.images] == [PNG, PNG]
    assert len(net.dialed) == 1


def test_the_field_of_the_bad_medium_is_named() -> None:
    net = Net(routes={"/a": answer(PNG)})
    given = Conversation(
        [Message("user", [Text("x")]), Message("user", [Image(f"{SITE}/a"), Video(f"{SITE}/b")])]
    )
    with pytest.raises(RequestError) as caught:
        play(net, lambda fetcher: fetcher.resolve(given))
    assert caught.value.body["error"]["param"] == "messages[1].content[1].video_url"
    with pytest.raises(RequestError) as caught:
        play(net, lambda fetcher: fetcher.resolve(given, where=lambda i, j, part: f"prompt[{j}]"))
    assert caught.value.body["error"]["param"] == "prompt[1]"


def test_too_many_media_are_refused_before_any_is_fetched() -> None:
    net = Net(routes={"/a": answer(PNG)})
    with pytest.raises(RequestError, match="more than 2 images and videos"):
        play(net, lambda fetcher: fetcher.resolve(ask(*(f"{SITE}/a?{i}" for i in range(3)))), max_media=2)
    many = Conversation([Message("user", [Video((f"{SITE}/a",) * 5)])])
    with pytest.raises(RequestError, match="more than 4 frames"):
        play(net, lambda fetcher: fetcher.resolve(many), max_frames=4)
    assert net.dialed == []


def test_many_addresses_hold_nobody_up() -> None:
    async def shown(fetcher: Fetcher, count: int) -> int:
        hosts = ["http://" + "é" * 40 + f"{number}.example/" for number in range(count)]
        ended, ticks = asyncio.Event(), 0

        async def tick() -> None:
            nonlocal ticks
            while not ended.is_set():
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        with pytest.raises(RequestError, match=r"four decimal numbers|more than 1024 pictures"):
            await fetcher.resolve(Conversation([Message("user", [Video((*hosts, "http://127.1/"))])]))
        ended.set()
        await ticking
        return ticks

    net = Net()
    assert play(net, lambda fetcher: shown(fetcher, 1000)) > 50
    assert net.dialed == []
    play(net, lambda fetcher: shown(fetcher, 1100))
    assert net.asked == []


def test_all_media_together_are_bounded_while_they_come() -> None:
    net = Net(routes={f"/{i}": answer(PNG + bytes(1000)) for i in range(8)})
    with pytest.raises(RequestError, match="over the 5,000 bytes allowed"):
        play(net, lambda f: f.resolve(ask(*(f"{SITE}/{i}" for i in range(8)))), max_total_bytes=5000)
    two = [to_data_url(bytes(3000)), f"{SITE}/1"]
    with pytest.raises(RequestError, match="over the 4,000 bytes allowed"):
        play(net, lambda f: f.resolve(ask(*two)), max_total_bytes=4000)


def test_what_the_whole_server_holds_is_bounded() -> None:
    net = Net(routes={"/slow": stall, "/a": answer(PNG + bytes(3000))})

    async def two(fetcher: Fetcher) -> None:
        first = asyncio.ensure_future(fetcher.resolve(ask(f"{SITE}/slow")))
        while not fetcher.held_bytes:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError) as caught:
            await fetcher.resolve(ask(f"{SITE}/a"))
        assert caught.value.status == 503
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert fetcher.held_bytes == 0

    play(net, two, max_held_bytes=3000)


def test_what_waits_for_the_engine_is_held_too() -> None:
    net = Net(routes={"/a": answer(PNG + bytes(1000))})

    async def keep(fetcher: Fetcher) -> None:
        async with fetcher.resolved(ask(f"{SITE}/a")) as found:
            assert fetcher.held_bytes == len(found.images[0].source) == len(PNG) + 1000
            with pytest.raises(RequestError, match="as much as it may"):
                await fetcher.resolve(ask(f"{SITE}/a"))
        assert fetcher.held_bytes == 0
        await fetcher.resolve(ask(f"{SITE}/a"))
        assert fetcher.held_bytes == 0

    play(net, keep, max_held_bytes=len(PNG) + 1500)


def test_media_are_fetched_at_once_but_never_more_than_allowed() -> None:
    most = 0
    net = Net()

    async def slow(writer: asyncio.StreamWriter) -> None:
        nonlocal most
        most = max(most, net.open)
        await asyncio.sleep(0.1)
        writer.write(answer(PNG))

    net.routes["/a"] = slow
    urls = [f"{SITE}/a?{i}" for i in range(12)]
    start = time.perf_counter()
    play(net, lambda fetcher: fetcher.resolve(ask(*urls)), connections_per_request=4)
    assert most == 4
    assert time.perf_counter() - start < 1  # one after the other they take 1.2 s

    async def three(fetcher: Fetcher) -> None:
        await asyncio.gather(*(fetcher.resolve(ask(*urls)) for _ in range(3)))

    most = 0
    play(net, three, connections=5)
    assert most == 5


def test_a_client_that_leaves_ends_its_fetches_at_once() -> None:
    net = Net(routes={"/a": silence, "/b": endless, "/c": stall})

    async def leave(fetcher: Fetcher) -> None:
        task = asyncio.ensure_future(fetcher.resolve(ask(*(f"{SITE}/{name}" for name in "abc"))))
        while net.open < 3:
            await asyncio.sleep(0.01)
        start = time.perf_counter()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.perf_counter() - start < 5
        assert fetcher.held_bytes == 0

    play(net, leave, fetch_seconds=30)


def test_one_refusal_ends_the_other_fetches() -> None:
    net = Net(routes={"/a": silence, "/b": answer(b"", 404)})
    start = time.perf_counter()
    with pytest.raises(RequestError, match=r"content\[1\].*answered 404"):
        play(net, lambda fetcher: fetcher.resolve(ask(f"{SITE}/a", f"{SITE}/b")), fetch_seconds=30)
    assert time.perf_counter() - start < 2


def test_a_slow_name_server_does_not_outlast_the_time_limit() -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return [PUBLIC]

    async def run() -> None:
        async with Fetcher(MediaPolicy(connect_seconds=0.1), resolver=slow) as fetcher:
            await fetcher.resolve(ask(f"{SITE}/a"))

    with pytest.raises(RequestError, match="took too long"):
        asyncio.run(run())


def test_a_stuck_drive_holds_up_neither_its_request_nor_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    stuck, ended = threading.Event(), threading.Event()

    def read(source: str, roots: Any, most: int) -> bytes:
        if source.endswith("stuck.png"):
            stuck.wait(20)
            ended.set()
        return read_local(source, roots, most)

    monkeypatch.setattr("sightline.server.media.fetcher.read_local", read)

    async def both(fetcher: Fetcher) -> None:
        one = asyncio.ensure_future(fetcher.resolve(ask(f"file://{tmp_path}/stuck.png")))
        found = await fetcher.resolve(ask(f"file://{tmp_path}/a.png"))
        assert found.images[0].source == PNG
        with pytest.raises(RequestError, match="could not be read in time") as caught:
            await one
        assert caught.value.status == 503

    try:
        play(Net(), both, allowed_local_paths=(tmp_path,), fetch_seconds=0.3)
    finally:
        stuck.set()
    assert ended.wait(5)  # after its loop was closed


@pytest.mark.parametrize("source", ["file://{folder}/a.png", "http://pics.example/a"])
def test_a_machine_without_threads_is_busy(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        async with Fetcher(MediaPolicy(allowed_local_paths=(tmp_path,))) as fetcher:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", start)
                for _ in range(40):  # more than there are places
                    with pytest.raises(RequestError, match="as much as it may") as caught:
                        await fetcher.resolve(ask(source.format(folder=tmp_path)))
                    assert caught.value.status == 503

    asyncio.run(run())


def test_the_system_knows_this_machine_and_is_not_believed() -> None:
    async def run() -> None:
        assert set(await SystemResolver()("localhost", 80)) <= {"127.0.0.1", "::1"}
        async with Fetcher(MediaPolicy()) as fetcher:
            await fetcher.resolve(ask("http://localhost/a.png"))

    with pytest.raises(RequestError, match="not a public host"):
        asyncio.run(run())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_https_is_checked_against_the_name_that_was_asked_for(tmp_path: Path) -> None:
    server, trust = certificates(tmp_path, "pics.example", "xn--bcher-kva.example")
    names = {"other.example": [PUBLIC], "xn--bcher-kva.example": [PUBLIC]}
    routes = {"/a": answer(PNG), "/down": answer(b"", 302, location="http://pics.example/a")}

    def get(url: str, trusted: ssl.SSLContext | None = trust) -> bytes:
        net = Net(names, routes)
        return play(net, lambda f: f.resolve(ask(url)), server, trusted).images[0].source

    assert get("https://pics.example/a") == PNG
    assert get("https://bücher.example/a") == PNG
    for url in ("https://other.example/a", f"https://{PUBLIC}/a"):
        with pytest.raises(RequestError, match="could not be reached"):
            get(url)
    with pytest.raises(RequestError, match="could not be reached"):
        get("https://pics.example/a", None)
    with pytest.raises(RequestError, match="redirected to an address"):
        get("https://pics.example/down")


def test_a_link_swapped_in_between_check_and_opening_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "a" / "x.png").write_bytes(PNG)
    (outside / "x.png").write_bytes(b"secret")
    (root / "b.png").write_bytes(PNG)
    real = os.path.realpath

    def then_swap(path: Any, **rest: Any) -> Any:
        found = real(path, **rest)
        if found == str(root / "a" / "x.png"):
            (root / "a").rename(root / "old")
            (root / "a").symlink_to(outside)
        if found == str(root / "b.png"):
            (root / "b.png").unlink()
            (root / "b.png").symlink_to(outside / "x.png")
        return found

    monkeypatch.setattr(os.path, "realpath", then_swap)
    for name in ("a/x.png", "b.png"):
        with pytest.raises(Refused, match="does not have or may not open"):
            read_local(f"file://{root}/{name}", [root], 10_000)


@pytest.mark.parametrize("name", ["\ud800", "%ED%A0%80", "%00", "a" * 300, "a/" * 3000, "%", "\udcff.png"])
def test_a_name_that_no_file_can_have_is_no_file(name: str, tmp_path: Path) -> None:
    for source in (f"file://{tmp_path}/{name}", f"{tmp_path}/{name}"):
        with pytest.raises(Refused, match="does not have or may not open"):
            read_local(source, [tmp_path], 10_000)


def test_an_allowed_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for root in ("real", "link"):
        assert read_local(f"file://{tmp_path}/{root}/a.png", [tmp_path / root], 10_000) == PNG
    assert read_local(f"file://{tmp_path}/real/a.png", [tmp_path / "link"], 10_000) == PNG


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"allowed_local_paths": (Path("/nowhere/at/all"),)}, "is not a folder"),
        ({"allowed_domains": ("http://a.example",)}, "is not a host name"),
        ({"allowed_domains": ("",)}, "is not a host name"),
        ({"allowed_domains": ("*.a.example",)}, "is not a host name"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"fetch_seconds": float("nan")}, "fetch_seconds"),
        ({"max_redirects": -1}, "max_redirects"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MediaPolicy(**policy)


def test_a_thousand_mixed_fetches_leave_nothing_open(tmp_path: Path) -> None:
    routes = {
        "/a": answer(PNG),
        "/b": answer(b"", 404),
        "/c": reset,
        "/d": endless,
        "/e": answer(PNG, length=10**6),
        "/f": answer(b"", 302, location="http://10.0.0.1/"),
        "/g": silence,
    }
    (tmp_path / "a.png").write_bytes(PNG)
    net = Net(routes=routes)

    async def many(fetcher: Fetcher) -> tuple[int, int]:
        async def one(number: int) -> None:
            names = "abcdefg"
            urls = [f"{SITE}/{names[(number + k) % 7]}?{number}" for k in range(2)]
            files = [f"file://{tmp_path}/{'a' if number % 2 else 'none'}.png"]
            task = asyncio.ensure_future(fetcher.resolve(ask(*urls, *files)))
            if number % 5 == 0:
                await asyncio.sleep(0.002)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async def batch(first: int, count: int) -> None:
            turns = asyncio.Semaphore(25)

            async def turn(number: int) -> None:
                async with turns:
                    await one(number)

            await asyncio.gather(*(turn(number) for number in range(first, first + count)))

        async def counts() -> tuple[int, int, int]:
            for _ in range(50):
                if not net.open:
                    break
                await asyncio.sleep(0.02)
            return (
                len(list(Path("/proc/self/fd").iterdir())),
                threading.active_count(),
                len(asyncio.all_tasks()),
            )

        await batch(0, 70)  # what is made once: threads, the pool
        before = await counts()
        await batch(70, 340)  # of three media each
        after = await counts()
        assert fetcher.held_bytes == 0
        assert fetcher._connections._value == fetcher.policy.connections
        return before, after

    policy = {"allowed_local_paths": (tmp_path,), "max_bytes": 20_000, "fetch_seconds": 0.15}
    before, after = play(net, many, **policy)
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1]
    assert after[2] <= before[2]

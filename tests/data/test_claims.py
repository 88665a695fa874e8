"""Files that ask for far more than their size are refused before a decoder believes them; honest ones are not."""

from __future__ import annotations

import io
import re
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import CONTAINERS, clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sightline.data.conversation import Video
from sightline.data.images import image_size, open_image
from sightline.data.media import Budget, MediaError, decode_data_url
from sightline.data.videos import load_video, plan_video, video_header
from sightline.errors import SightlineError

ADDRESS = re.compile(r"(?<!\d)0x[0-9a-f]{5}")  # of memory
BUDGET = Budget(max_bytes=64 * 2**20, max_pixels=40_000_000, max_frames=50_000, max_seconds=1800.0)


def photo(format: str, size: tuple[int, int] = (48, 32), mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def flat(format: str, size: tuple[int, int], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("L", size, 7).save(buffer, format, **options)
    return buffer.getvalue()


# Pictures.


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def ihdr(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)


def progressive(scans: int) -> bytes:
    """A small progressive JPEG whose last scan is there `scans` times more."""
    data = photo("JPEG", progressive=True)
    start = data.rfind(b"\xff\xda")
    return data[:-2] + data[start:-2] * scans + data[-2:]


def tiff_with_tiles(side: int) -> bytes:
    entries = [
        *((256, 4, 16), (257, 4, 16), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)),
        *((322, 4, side), (323, 4, side), (324, 4, 200), (325, 4, 20)),
    ]
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)).ljust(200, b"\0") + zlib.compress(
        bytes(500)
    )


def tags(*entries: tuple[int, int, int], values: bytes = b"", at: int | None = None) -> bytes:
    """A TIFF of one table of (tag, type, number of values), all of which lie in `values`."""
    behind = 8 + 2 + 12 * len(entries) + 4
    table = b"".join(struct.pack("<HHII", *entry, behind if at is None else at) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + bytes(4) + values


def fractions(count: int) -> bytes:
    """Exif whose orientation is a list."""
    return tags((274, 5, count), values=b"\1\2\3\0\5\0\0\0" * count)


def fractions_below(count: int) -> bytes:
    """The same in the table of GPS, behind one of Exif that is not there."""
    inner = tags((274, 5, count), values=bytes(8 * count))[8:]
    return (
        struct.pack("<2sHIH", b"II", 42, 8, 2)
        + struct.pack("<HHII", 0x8769, 4, 1, 2**31)
        + struct.pack("<HHII", 0x8825, 4, 1, 38)
        + bytes(4)
        + inner
    )


def jpeg_with(exif: bytes, before: bytes = b"") -> bytes:
    pieces = [exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    segments = [b"\xff\xe1" + struct.pack(">H", 8 + len(piece)) + b"Exif\0\0" + piece for piece in pieces]
    return JPEG[:20] + before + b"".join(segments) + JPEG[20:]  # behind the JFIF segment


def disguised(data: bytes, at: int, magic: bytes) -> bytes:
    """With what `sniff` knows another kind by, in bytes that its own reader passes over."""
    return data[:at] + magic + data[at + len(magic) :]


def webp_with_canvas(width: int, height: int) -> bytes:
    plain = photo("WEBP")
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4)
    canvas += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + canvas + plain[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_with(before: bytes) -> bytes:
    plain = photo("GIF")
    end = 13 + (3 << (plain[10] & 7) + 1)
    return plain[:end] + before + plain[end:]


def bmp_of_runs(size: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 2000, 2000, 1, 8, 1, size, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + size, 0, 0, 54 + 1024) + head + bytes(1024) + bytes(size)


JPEG = photo("JPEG")
# fmt: off
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a large png": (lambda: flat("PNG", (8000, 8000)), "pixels"),
    "a png that says more than it has": (lambda: png(ihdr(60_000, 60_000), (b"IDAT", b"x"), (b"IEND", b"")),
        "pixels"),
    "a png beyond all sizes": (lambda: png(ihdr(2**31 - 1, 2**31 - 1), (b"IEND", b"")), "pixels|damaged"),
    "a png without height": (lambda: png(ihdr(10, 0), (b"IEND", b"")), "nothing to see|damaged"),
    "a png of empty chunks": (lambda: png(ihdr(9, 9), *[(b"IDAT", b"")] * 70_000, (b"IEND", b"")), "chunks"),
    "a png with a text bomb": (
        lambda: png(ihdr(9, 9), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))), (b"IEND", b"")),
        "damaged",
    ),
    "a jpeg of many scans": (lambda: progressive(200), "more than 50 scans"),
    "a jpeg of many comments": (lambda: JPEG[:2] + b"\xff\xfe\0\2" * 6000 + JPEG[2:], "segments"),
    "a jpeg of many comments between scans": (lambda: progressive(1).replace(
        b"\xff\xda", b"\xff\xfe\0\2" * 3000 + b"\xff\xda"), "segments"),
    "a jpeg of fill bytes": (lambda: JPEG[:2] + b"\xff" * 6000 + JPEG[2:], "segments"),
    "a gif of many comments": (lambda: gif_with(b"!\xfe\1a\0" * 30_000), "blocks"),
    "a gif of a long comment": (lambda: gif_with(b"!\xfe" + b"\1a" * 30_000 + b"\0"), "blocks"),
    "a gif of long comments": (lambda: gif_with((b"!\xfe" + b"\1a" * 200 + b"\0") * 200), "blocks"),
    "a gif of nothing": (lambda: gif_with(b"\x42" * 30_000), "blocks"),
    "a gif with a larger frame": (
        lambda: photo("GIF").replace(b",\0\0\0\0\x30\0\x20\0", b",\0\0\0\0\xff\xff\xff\xff"),
        "pixels",
    ),
    "a webp with a large canvas": (lambda: webp_with_canvas(16_000, 16_000), "canvas"),
    "a tiff with large tiles": (lambda: tiff_with_tiles(30_000), "tiles"),
    "a large tiff": (lambda: flat("TIFF", (8000, 8000), compression="tiff_deflate"), "pixels"),
    "a bmp of runs": (lambda: bmp_of_runs(5 * 2**20), "run lengths"),
    "a large bmp header": (lambda: b"BM" + struct.pack("<IHHIIiiHHI", 99, 0, 0, 54, 40, 9000, 9000, 1, 24,
        0) + bytes(20), "pixels"),
    "a bmp of runs called a webp": (lambda: disguised(bmp_of_runs(5 * 2**20), 8, b"WEBP\0\0"), "damaged"),
    "a bmp of runs called a clip": (lambda: disguised(bmp_of_runs(5 * 2**20), 4, b"ftyp"), "is a video"),
    "a jpeg of many comments behind junk": (lambda: JPEG[:20] + b"\0" + b"\xff\xfe\0\2" * 6000 + JPEG[20:],
        "segments"),
    "a jpeg of junk": (lambda: JPEG[:20] + bytes(2**22) + JPEG[20:], "segments"),
    "a jpeg with fractions": (lambda: jpeg_with(fractions(20_000)), "10,000 fractions"),
    "a jpeg with fractions behind bare markers": (
        lambda: jpeg_with(fractions(20_000), b"\xff\xc8\xff\xf0\xff\xd9\xff\0\0\xff"), "10,000 fractions"),
    "a jpeg with long Exif": (lambda: jpeg_with(bytes(2**21)), "Exif of more than"),
    "a png with fractions": (lambda: photo("PNG", exif=fractions(20_000)), "10,000 fractions"),
    "a png with late fractions": (lambda: photo("PNG")[:-12] + png((b"eXIf", fractions(20_000)))[8:]
        + photo("PNG")[-12:], "10,000 fractions"),
    "a webp with fractions": (lambda: photo("WEBP", exif=fractions(20_000)), "10,000 fractions"),
    "a webp with long Exif": (lambda: photo("WEBP", exif=tags((271, 7, 2**21), values=bytes(2**21))), "Exif of"),
    "a tiff with fractions": (lambda: fractions(20_000), "10,000 fractions"),
    "a tiff with fractions below": (lambda: fractions_below(20_000), "10,000 fractions"),
    "a tiff of many strips": (lambda: tags((273, 4, 2**21), values=bytes(2**23)), "1,000,000 numbers"),
    "a tiff of many entries": (lambda: tags(*[(300, 1, 1)] * 60_000), "4,096 entries"),
    "an icon": (lambda: photo("ICO"), "not supported"),
    "a pdf": (lambda: photo("PDF"), "is a pdf"),
    "an eps": (lambda: photo("EPS"), "not a picture in a supported format"),
    "an svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is a svg"),
    "nothing": (lambda: b"", "empty"),
}
# fmt: on


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_bomb_is_refused_quickly_and_in_little_memory(name: str) -> None:
    make, words = BOMBS[name]
    data = make()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(MediaError, match=words) as caught:
            open_image(data, BUDGET)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert peak < 30 * 2**20 + 2 * len(data)
    assert not ADDRESS.search(str(caught.value))
    assert len(str(caught.value)) < 250


HONEST: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: JPEG,
    "progressive": lambda: photo("JPEG", progressive=True),
    "restart markers": lambda: photo("JPEG", (400, 300), restart_marker_blocks=1),
    "cmyk": lambda: photo("JPEG", mode="CMYK"),
    "turned": lambda: photo("JPEG", exif=tags((271, 2, 4), (274, 3, 1), values=b"abc\0", at=6)),
    "profile and Exif": lambda: photo("JPEG", icc_profile=bytes(10**6), exif=b"Exif\0\0II*\0" + bytes(9)),
    "png": lambda: photo("PNG"),
    "palette": lambda: photo("PNG", mode="P"),
    "16 bits": lambda: photo("PNG", mode="I;16"),
    "webp": lambda: photo("WEBP"),
    "lossless webp": lambda: photo("WEBP", lossless=True),
    "webp canvas": lambda: webp_with_canvas(48, 32),
    "gif": lambda: photo("GIF", comment=b"a" * 5000),
    "tiff": lambda: photo("TIFF", compression="tiff_deflate"),
    "bmp": lambda: photo("BMP"),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_pictures_pass(name: str) -> None:
    data = HONEST[name]()
    assert image_size(data, BUDGET) == open_image(data, BUDGET).size


@pytest.mark.parametrize("form", ["gif", "png", "webp"])
def test_of_an_animation_one_frame_is_decoded(form: str) -> None:
    frames = [Pillow.new("RGB", (40, 30), (number, 0, 0)) for number in range(200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=10)
    assert open_image(buffer.getvalue(), BUDGET).size == (40, 30)


# Clips.


def patched(data: bytes, name: bytes, *fields: tuple[int, int]) -> bytes:
    """`data` with 32-bit numbers (offset behind the box's name, value) of its first box `name`."""
    at, changed = data.find(name), bytearray(data)
    assert at > 0
    for offset, value in fields:
        changed[at + offset : at + offset + 4] = struct.pack(">I", value)
    return bytes(changed)


def bomb(samples: int = 60_000_000) -> bytes:
    """A kilobyte for which FFmpeg sets up `samples` entries of some 40 bytes."""
    data = patched(clip(frames=4), b"stsz", (8, 1), (12, samples))
    return patched(patched(data, b"stts", (12, samples)), b"stsc", (16, samples))


def hidden(data: bytes) -> bytes:
    """Its index in a `free` box, into which FFmpeg looks all the same."""
    return data.replace(b"moov", b"free")


def fragments(samples: int) -> bytes:
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(buffer, "w", format="mp4", options=options) as output:
        stream = output.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    data = buffer.getvalue()
    return patched(data, b"trun", (8, samples)) if samples else data


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def behind_a_long_length(data: bytes) -> bytes:
    """What FFmpeg then takes for the number of samples stands where another reader sees an offset."""
    at = data.find(b"trun")
    return data[: at - 4] + struct.pack(">I", 1) + data[at:]


# fmt: off
CLIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "many samples": (bomb, "samples"),
    "many samples in a hidden index": (lambda: hidden(bomb()), "samples"),
    "many samples before half a box": (lambda: bomb() + b"\0\0\0\1free", "samples"),
    "many samples before a quarter of a box": (lambda: bomb() + b"\0\0", "samples"),
    "many samples before a broken box": (lambda: bomb() + b"\0\0\0\5free\0\0\0", "samples"),
    "many samples before a table without end": (lambda: bomb() + b"\0\0\0\x10stts", "samples"),
    "many samples before a table of nothing": (lambda: bomb() + b"stsc" + b"elst\0", "samples"),
    "many samples in a second track": (lambda: clip(frames=4)[:-20] + bomb()[bomb().find(b"trak") - 4 :],
        "samples|damaged"),
    "many samples that are called sound": (lambda: bomb().replace(b"vide", b"soun"), "samples"),
    "a fragment of many samples": (lambda: fragments(2**31), "samples"),
    "a fragment of many samples behind a long length": (lambda: behind_a_long_length(fragments(8)), "64 bits"),
    "many pictures": (
        lambda: clip(frames=4) + box(b"meta", bytes(4) + box(b"iloc", b"\2\0\0\0DD\x07\0\0\0")),
        "samples",
    ),
    "a compressed index": (lambda: clip(frames=4).replace(b"udta", b"cmov"), "compressed index"),
    "more frames than allowed": (lambda: patched(patched(clip(frames=4), b"stsz", (8, 1), (12, 60_000)),
        b"stts", (12, 60_000)), "frames|damaged"),
    "many samples called a matroska": (
        lambda: b"\x1aE\xdf\xa3" + bomb()[bomb().find(b"moov") :], "damaged"),
    "many samples behind an unknown box": (lambda: box(b"uuid", bytes(16)) + bomb(), "supported format"),
    "many samples behind a box to skip": (lambda: box(b"skip", b"") + bomb(), "samples"),
    "an hour": (lambda: clip("mkv", frames=2, fps=8, times=[0, 8 * 3600]), "seconds"),
}
# fmt: on


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_bomb_is_refused_quickly(name: str) -> None:
    make, words = CLIPS[name]
    data = make()
    start = time.perf_counter()
    with pytest.raises(MediaError, match=words) as caught:
        load_video(data, budget=BUDGET)
    assert time.perf_counter() - start < 2
    assert len(str(caught.value)) < 250


def test_a_clip_of_many_edits_is_refused() -> None:
    data = patched(patched(clip(frames=4), b"stsz", (8, 1), (12, 900_000)), b"stts", (12, 900_000))
    with pytest.raises(MediaError, match="edits"):
        video_header(patched(data, b"elst", (8, 50)), Budget())


def test_a_clip_of_many_empty_boxes_is_looked_through_quickly() -> None:
    start = time.perf_counter()
    with pytest.raises(MediaError):
        video_header(clip(frames=2)[:28] + struct.pack(">I4s", 8, b"free") * 500_000, BUDGET)
    assert time.perf_counter() - start < 3


def test_tables_inside_tables_are_not_followed_for_ever() -> None:
    data = (
        clip(frames=2) + struct.pack(">I4s", 8 + 2_000_000, b"free") + b"stts\0\0\0\0\0\xff\xff\xff" * 160_000
    )
    start = time.perf_counter()
    with pytest.raises(MediaError, match="samples|too many tables"):
        video_header(data, BUDGET)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("container", CONTAINERS)
def test_honest_clips_pass(container: str) -> None:
    assert plan_video(clip(container), budget=BUDGET).decoded == 24
    assert len(load_video(clip(container), budget=BUDGET).images) == 6
    assert len(load_video(fragments(0), budget=BUDGET).images) >= 2


def test_a_camera_clip_with_plain_sound_passes() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as output:
        pictures = output.add_stream("mpeg4", rate=8)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for _ in range(8):
            output.mux(pictures.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(pictures.encode(None))
        for second in range(40):  # 1.9 million samples
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 48_000 * second
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    assert video_header(buffer.getvalue(), BUDGET).frames == 8


@pytest.mark.parametrize("source", [clip(frames=24), (JPEG,) * 24], ids=["file", "pictures"])
def test_decoding_a_clip_ends_when_its_time_is_over(source: Any) -> None:
    seen = []

    def slow(picture: Any) -> Any:
        seen.append(picture)
        time.sleep(0.15)
        return picture

    budget = Budget(max_decode_seconds=0.4)
    assert len(load_video(Video(source), budget=budget, transform=slow).images) > 4  # nobody has started it
    seen.clear()
    with pytest.raises(MediaError, match=r"over the 0\.4 s allowed"):
        load_video(Video(source), budget=budget.started(), transform=slow)
    assert 0 < len(seen) <= 4


def test_what_few_people_look_after_is_not_decoded() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as output:
        stream = output.add_stream("zmbv", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for _ in range(4):
            output.mux(stream.encode(av.VideoFrame(64, 48, "bgr0")))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="is encoded in zmbv, which is not decoded"):
        load_video(buffer.getvalue(), budget=BUDGET)


def test_a_stream_that_grows_on_the_way_is_refused_there() -> None:
    small, large = clip("avi", frames=4, size=(64, 48)), clip("avi", frames=4, size=(640, 480))
    other = large.find(b"00dc", large.find(b"movi"))
    data = small[: small.find(b"idx1")] + large[other : large.find(b"idx1")] * 3
    with pytest.raises(MediaError, match="damaged"):
        load_video(data, budget=Budget(max_pixels=64 * 48 * 2))


def test_a_clip_whose_index_lies_about_the_size_of_its_frames_is_refused() -> None:
    data = clip(frames=4, size=(640, 480)).replace(struct.pack(">HH", 640, 480), struct.pack(">HH", 64, 48))
    with pytest.raises(MediaError, match="pixels a frame|damaged"):
        load_video(data, budget=Budget(max_pixels=64 * 48 * 2))


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
    "hls with a file": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{file}\n#EXT-X-ENDLIST\n",
    "hls with a concat": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nconcat:{url}/a|file://{file}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {url}/a.mp4\n",
    "ffconcat with a file": "ffconcat version 1.0\nfile '{file}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" bandwidth="1"><BaseURL>{url}/a</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "asx": '<asx version="3.0"><entry><ref href="{url}/a"/></entry></asx>',
    "reference movie": "[Reference]\nRef1={url}/a\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_clip_cannot_make_ffmpeg_open_anything_else(name: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip(frames=2))
    seen: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def listen() -> None:
            try:
                while True:
                    connection, who = server.accept()
                    seen.append(who)
                    connection.close()
            except OSError:
                pass

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        text = PLAYLISTS[name].format(url=f"http://127.0.0.1:{port}", file=secret, port=port)
        for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode() + b"\n#" * 3000):
            with pytest.raises(MediaError, match="supported format|is a|damaged"):
                load_video(data, budget=BUDGET)
        time.sleep(0.05)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert seen == []


# Whatever the bytes.

SEEDS = {
    **{
        name: HONEST[name]()
        for name in ("jpeg", "progressive", "png", "palette", "webp", "gif", "tiff", "bmp")
    },
    **{name: clip(name, frames=6) for name in ("mp4", "avi", "mkv", "asf")},
}
IS_CLIP = set(CONTAINERS)


def opened(name: str, data: bytes) -> None:
    """Use `data` as a server does; only our own errors may come out, and soon."""
    start, text = time.perf_counter(), ""
    try:
        if name in IS_CLIP:
            plan_video(data, budget=BUDGET)
            load_video(data, budget=BUDGET)
        else:
            image_size(data, BUDGET)
            open_image(data, BUDGET)
    except SightlineError as error:
        text = str(error)
    assert len(text) < 300
    assert not ADDRESS.search(text)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("tenths", range(10))
def test_a_file_cut_off_anywhere_is_used_or_refused(name: str, tenths: int) -> None:
    opened(name, SEEDS[name][: len(SEEDS[name]) * tenths // 10])


@given(data=st.data(), name=st.sampled_from(sorted(SEEDS)))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_files_are_used_or_refused(data: Any, name: str) -> None:
    changed = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 12))):
        # Mostly at the front, where the headers are.
        at = data.draw(st.integers(0, min(len(changed) - 1, data.draw(st.sampled_from([64, 1024, 2**20])))))
        changed[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    opened(name, bytes(changed[:cut]))


@pytest.mark.parametrize("body", ["%00" * 2**20, "a b\n" * 2**20, "%2B" * 2**20, "=" * 2**20, "%" * 2**21])
@pytest.mark.parametrize("head", ["data:image/png,", "data:image/png;base64,"])
def test_a_data_url_takes_a_few_times_its_length(head: str, body: str) -> None:
    url = head + body
    tracemalloc.start()
    try:
        decode_data_url(url, BUDGET)
    except MediaError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5 * len(url)

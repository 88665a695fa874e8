"""Media on their way into a request: what tells them apart, where they stand, what is said when one is bad."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import clip as video_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.data.media import DEFAULT, Budget, MediaError, to_data_url
from sightline.engine.inputs import Prompt, read_prompt
from sightline.engine.media.fingerprint import digest, medium_key, settings_mark, source_key
from sightline.engine.media.image_cache import ImageCache
from sightline.engine.media.limits import MediaLimits
from sightline.engine.media.opening import MediaPreparer, spans_of
from sightline.errors import SightlineError, UsageError
from sightline.models.patches import Layout
from sightline.models.processor import Processor, load_processor


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Any:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Pillow.fromarray(values)


def encoded(image: Any, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def frames(count: int, seed: int = 0) -> tuple[Any, ...]:
    return tuple(picture(seed=seed * 100 + number) for number in range(count))


def ask(*parts: Part) -> Prompt:
    return Prompt(Conversation([Message("user", [*parts, Text("what?")])]))


def preparer(processor: Processor, **options: Any) -> MediaPreparer:
    given = {
        "limits": MediaLimits(),
        "cache": ImageCache(2**24),
        "dtype": torch.float32,
        "most_tokens": 2048,
    }
    return MediaPreparer(processor, **{**given, **options})


@pytest.fixture(scope="module")
def processor(family_folder: Path) -> Processor:
    return load_processor(family_folder)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Processor:
    return load_processor(tiny_folder)


PROMPTS = {
    "text": ask(),
    "one image": ask(Image(picture())),
    "images that touch": ask(Image(picture(60, 60)), Image(picture(200, 90)), Image(picture(30, 90))),
    "the same twice": ask(Image(picture()), Text("and"), Image(picture())),
    "clips that touch": ask(Video(frames(5)), Video(frames(2, 1), fps=4.0), Video(frames(8, 2))),
    "mixed": ask(
        Text("see"), Video(frames(4)), Image(picture(57, 90)), Video(frames(3, 1)), Image(picture())
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_prepared_as_the_processor_encodes_it(processor: Processor, name: str) -> None:
    prompt = PROMPTS[name]
    found, plain = preparer(processor).prepare(prompt), processor.encode(prompt.media, supervise=False)
    for field in ("input_ids", "kinds", "position_ids"):
        assert getattr(found.encoded, field).equal(getattr(plain, field))
    assert found.encoded.rope_delta == plain.rope_delta
    for field in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        one, other = getattr(found.encoded, field), getattr(plain, field)
        assert (one is None and other is None) or one.equal(other)
    assert found.encoded.second_per_grid_ts == plain.second_per_grid_ts
    assert set(found.seconds) == {"fetch", "decode", "preprocess"}


@pytest.mark.parametrize("name", PROMPTS)
def test_spans_cover_every_feature_row_in_order(processor: Processor, name: str) -> None:
    found = preparer(processor).prepare(PROMPTS[name])
    kinds = found.encoded.kinds
    seen = torch.zeros_like(kinds)
    rows: list[list[int]] = [[] for _ in found.media]
    for span in found.spans:
        seen[span.start : span.start + span.length] += 1
        wanted = 1 if found.media[span.medium].kind == "image" else 2
        assert kinds[span.start : span.start + span.length].eq(wanted).all()
        rows[span.medium] += range(span.offset, span.offset + span.length)
    assert seen.equal((kinds > 0).long())
    assert rows == [list(range(medium.tokens)) for medium in found.media]
    assert [span.start for span in found.spans] == sorted(span.start for span in found.spans)
    # Media of one kind follow one another as their features do.
    for kind in ("image", "video"):
        order = [span.medium for span in found.spans if found.media[span.medium].kind == kind]
        assert order == sorted(order)
    assert [medium.tokens for medium in found.media] == [item.layout.tokens for item in found.encoded.media]


def test_a_clip_with_times_has_a_span_for_each_temporal_patch(processor: Processor) -> None:
    found = preparer(processor).prepare(ask(Video(frames(6))))
    grid = found.encoded.media[0].layout.grid
    assert len(found.spans) == (grid[0] if processor.family.timestamps else 1)


@given(
    st.lists(st.tuples(st.sampled_from(["image", "video"]), st.integers(1, 6), st.integers(0, 2)), max_size=8)
)
@settings(deadline=None)
def test_media_that_touch_are_told_apart_by_their_tokens(given_media: list[tuple[str, int, int]]) -> None:
    kinds, wanted = [0], []
    media = sorted(given_media, key=lambda item: item[0])  # images, then videos
    indices = {id(item): index for index, item in enumerate(media)}
    layouts = [Layout(kind, (1, 2, 2 * count), count) for kind, count, _ in media]
    for item in given_media:
        kind, count, gap = item
        kinds += [0] * gap
        wanted.append((indices[id(item)], len(kinds), count, 0))
        kinds += [1 if kind == "image" else 2] * count
    found = spans_of(torch.tensor(kinds), layouts)
    assert [(span.medium, span.start, span.length, span.offset) for span in found] == wanted


@pytest.mark.parametrize("kinds", [[0, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 2]])
def test_placeholders_that_do_not_fit_are_refused(kinds: list[int]) -> None:
    with pytest.raises(ValueError, match="placeholders"):
        spans_of(torch.tensor(kinds), [Layout("image", (1, 2, 6), 3)])


def keys_of(prepare: MediaPreparer, *parts: Part) -> list[bytes]:
    return [medium.key for medium in prepare.prepare(ask(*parts)).media]


def test_the_same_bytes_are_one_medium_however_they_come(tiny: Processor, tmp_path: Path) -> None:
    data = encoded(picture())
    (tmp_path / "a.png").write_bytes(data)
    prepare = preparer(tiny)
    sources = [str(tmp_path / "a.png"), f"file://{tmp_path / 'a.png'}", to_data_url(data), data]
    assert len({keys_of(prepare, Image(source))[0] for source in sources}) == 1
    assert (prepare.cache.misses, prepare.cache.hits) == (1, 3)


def test_clips_by_path_and_by_bytes_are_one_medium(tiny: Processor, tmp_path: Path) -> None:
    data = video_file()
    (tmp_path / "a.mp4").write_bytes(data)
    prepare = preparer(tiny)
    assert keys_of(prepare, Video(str(tmp_path / "a.mp4"))) == keys_of(prepare, Video(data))


DIFFERENT: dict[str, tuple[Part, Part]] = {
    "pixels": (Image(picture(seed=0)), Image(picture(seed=1))),
    "sides swapped": (Image(Pillow.new("RGB", (90, 60))), Image(Pillow.new("RGB", (60, 90)))),
    "limit": (Image(picture(100, 100)), Image(picture(100, 100), max_pixels=56 * 56)),
    "floor": (Image(picture()), Image(picture(), min_pixels=84 * 84)),
    "rate": (Video(frames(4), fps=2.0), Video(frames(4), fps=1.0)),
    "frame count": (Video(frames(8)), Video(frames(8), max_frames=4)),
    "order of frames": (Video(frames(4)), Video(frames(4)[::-1])),
    "more of the same": (Video((picture(),) * 2), Video((picture(),) * 4)),
    "image or clip": (Image(picture()), Video((picture(),) * 2)),
    "clip or frames": (Video((encoded(picture()),) * 2), Video((picture(),) * 2)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_changes_features_or_positions_changes_the_key(tiny: Processor, name: str) -> None:
    one, other = DIFFERENT[name]
    prepare = preparer(tiny)
    assert keys_of(prepare, one) != keys_of(prepare, other)


def test_what_the_model_sees_of_a_picture_is_what_is_hashed(tiny: Processor) -> None:
    """Palette, transparency and orientation change the pixels and so the key; a mode that changes none does not."""
    mark = settings_mark(tiny.vision, torch.float32)

    def key(image: Any) -> bytes:
        return source_key(Image(image), mark, DEFAULT)

    plain = picture().quantize(8)
    recoloured, clear, turned = plain.copy(), plain.copy(), picture()
    recoloured.putpalette(bytes(reversed(plain.getpalette())))
    clear.info["transparency"] = 0
    exif = turned.getexif()
    exif[0x0112] = 3
    turned.info["exif"] = exif.tobytes()
    assert len({key(image) for image in (plain, recoloured, clear, picture(), turned)}) == 5
    assert key(plain) == key(plain.convert("RGB"))


def test_settings_of_the_engine_change_the_key(tiny: Processor) -> None:
    image = Image(picture())
    marks = [
        settings_mark(tiny.vision, torch.float32),
        settings_mark(tiny.vision, torch.bfloat16),
        settings_mark(replace(tiny.vision, max_pixels=56 * 56), torch.float32),
        settings_mark(replace(tiny.vision, image_mean=(0.5, 0.5, 0.5)), torch.float32),
    ]
    assert len({source_key(image, mark, DEFAULT) for mark in marks}) == 4
    layouts = [
        Layout("image", (1, 4, 4), 4),
        Layout("image", (1, 2, 8), 4),
        Layout("video", (1, 4, 4), 4, (0.5,), 1.0),
        Layout("video", (1, 4, 4), 4, (0.5,), 2.0),
    ]
    assert len({medium_key(b"x", layout) for layout in layouts}) == 4


PIECES = st.lists(st.tuples(st.text("ab:1", max_size=3), st.binary(max_size=4)), max_size=4)


@given(PIECES, PIECES)
def test_no_two_lists_of_pieces_run_together(one: list[Any], other: list[Any]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_pieces_are_framed() -> None:
    assert digest(("a", b"bc")) != digest(("ab", b"c"))
    assert digest(("a", b""), ("b", b"")) != digest(("a", b"1:1:b"))
    assert digest(("a", b"x"), ("a", b"y")) != digest(("a", b"xy"))


def test_patches_are_kept_in_the_model_s_dtype(tiny: Processor) -> None:
    prepare = preparer(tiny, dtype=torch.bfloat16)
    full = preparer(tiny).prepare(ask(Image(picture()))).encoded.media[0].patches
    first = prepare.prepare(ask(Image(picture()))).encoded.media[0].patches
    again = prepare.prepare(ask(Image(picture()))).encoded.media[0].patches
    assert first.equal(full.to(torch.bfloat16))
    assert first.data_ptr() == again.data_ptr()


def test_a_repeated_image_is_decoded_once(tiny: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.engine.media import opening as media

    opened = []

    def counting(*given: Any) -> Any:
        opened.append(given)
        return original(*given)

    original = media.open_medium
    monkeypatch.setattr(media, "open_medium", counting)
    prepare, data = preparer(tiny), encoded(picture())
    for _ in range(3):
        prepare.prepare(ask(Image(data), Image(data)))
    assert len(opened) == 1


def test_a_path_is_read_once(tiny: Processor, tmp_path: Path) -> None:
    """What was hashed is what is decoded, though the file changes meanwhile."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(seed=1)))
    prepare = preparer(tiny)
    fetched = prepare.fetch(ask(Image(str(path))))
    path.write_bytes(encoded(picture(seed=2)))
    wanted = preparer(tiny).prepare(ask(Image(encoded(picture(seed=1)))))
    assert prepare.build(fetched).encoded.media[0].patches.equal(wanted.encoded.media[0].patches)


def test_a_clip_that_changes_between_its_reads_is_refused(tiny: Processor, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video_file())
    prepare = preparer(tiny)
    fetched = prepare.fetch(ask(Video(str(path))))
    path.write_bytes(video_file(frames=20))
    with pytest.raises(MediaError, match="changed while it was read"):
        prepare.build(fetched)


def test_errors_say_which_of_several_media(tiny: Processor, tmp_path: Path) -> None:
    good, bad = Image(picture()), Image(b"\xff\xd8\xff nothing")
    prepare = preparer(tiny)
    with pytest.raises(MediaError, match="^image 2 of the prompt: the medium of 11 bytes is") as caught:
        prepare.prepare(ask(good, bad))
    assert caught.value.kind == "truncated"
    with pytest.raises(MediaError, match="^the medium of 11 bytes is"):
        prepare.prepare(ask(bad))
    with pytest.raises(MediaError, match="^video 1 of the prompt: there is no file .*gone.mp4"):
        prepare.prepare(ask(good, Video(str(tmp_path / "gone.mp4"))))
    with pytest.raises(SightlineError, match="^image 1 of the prompt: aspect ratio"):
        prepare.prepare(ask(Image(Pillow.new("RGB", (900, 2))), good))
    broken = tmp_path / "broken.png"
    broken.write_bytes(encoded(picture())[:200])
    with pytest.raises(MediaError, match=r"broken\.png is truncated"):
        prepare.prepare(ask(Image(str(broken))))


def test_the_budget_reaches_every_medium(tiny: Processor) -> None:
    with pytest.raises(MediaError, match="more than the 1,000 allowed"):
        preparer(tiny).prepare(ask(Image(picture())), Budget(max_pixels=1000))
    with pytest.raises(MediaError, match="more than the 3 allowed"):
        preparer(tiny).fetch(ask(Image(to_data_url(b"12345"))), Budget(max_bytes=3))


def test_what_fills_the_context_is_refused_by_its_header(
    tiny: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.engine.media.opening.open_medium", None)  # nothing is decoded
    with pytest.raises(UsageError, match="take 22 tokens.*max_model_len 20"):
        preparer(tiny, most_tokens=20).prepare(ask(Image(picture(80, 60)), Image(picture(200, 200))))


def test_a_rendered_prompt_brings_its_media_in_order(tiny: Processor) -> None:
    text = "<|vision_start|><|image_pad|><|vision_end|> and <|vision_start|><|image_pad|><|vision_end|>"
    given = {"prompt": text, "multi_modal_data": {"image": [picture(60, 60), picture(100, 100)]}}
    found = preparer(tiny).prepare(read_prompt(given))
    ids = tiny.tokenizer(text)["input_ids"]
    other = preparer(tiny).prepare(read_prompt({**given, "prompt": None, "prompt_token_ids": ids}))
    assert found.encoded.input_ids.equal(other.encoded.input_ids)
    assert found.media == other.media
    assert found.spans == other.spans
    with pytest.raises(SightlineError, match="2 <.image_pad.> for 1 media"):
        preparer(tiny).prepare(read_prompt({**given, "multi_modal_data": {"image": picture()}}))


def test_many_threads_prepare_at_once(tiny: Processor) -> None:
    prepare = preparer(tiny, cache=ImageCache(40_000))
    prompts = [ask(Text("red " * number), Image(picture(seed=number % 3))) for number in range(8)]
    wanted = [tiny.encode(prompt.media, supervise=False) for prompt in prompts]
    wrong: list[Any] = []

    def work() -> None:
        for prompt, plain in zip(prompts, wanted, strict=True):
            found = prepare.prepare(prompt).encoded
            same = found.input_ids.equal(plain.input_ids) and found.pixel_values.equal(plain.pixel_values)  # type: ignore[union-attr,arg-type]
            if not same:
                wrong.append(prompt)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    prepare.cache.check_integrity()


def test_no_call_changes_the_tokenizer(tiny: Processor) -> None:
    """A change fails while another thread uses it; checkpoints may come with settings to be changed."""
    backend = tiny.tokenizer.backend_tokenizer
    backend.enable_truncation(7)
    backend.enable_padding(length=9)
    backend.encode_special_tokens = not tiny.tokenizer.split_special_tokens
    preparer(tiny)
    assert backend.truncation is None
    assert backend.padding is None
    assert backend.encode_special_tokens == tiny.tokenizer.split_special_tokens


def test_many_small_files_of_many_pixels_are_refused_before_one_is_decoded(tiny: Processor) -> None:
    plain = encoded(Pillow.new("L", (6300, 6300), 9))
    files = [plain + bytes(number) for number in range(1, 17)]  # each another file, or one would do for all
    opener = preparer(tiny, most_tokens=10**9)
    start = time.perf_counter()
    with pytest.raises(
        MediaError, match="images have 635,040,000 pixels to decode, more than the 200,000,000"
    ):
        opener.prepare(ask(*map(Image, files)), Budget(max_total_pixels=200_000_000))
    assert time.perf_counter() - start < 1
    assert opener.cache.misses == 0


def test_pictures_that_are_kept_cost_no_pixels(tiny: Processor) -> None:
    opener, budget = preparer(tiny), Budget(max_total_pixels=5000)
    files = [encoded(picture(seed=seed)) for seed in range(2)]  # of 4,800 pixels each
    with pytest.raises(MediaError, match="images have 9,600 pixels"):
        opener.prepare(ask(*map(Image, files)), budget)
    for file in files:
        opener.prepare(ask(Image(file)), budget)
    opener.prepare(ask(*map(Image, files)), budget)


def test_every_stored_frame_of_clips_counts(tiny: Processor) -> None:
    file = video_file(frames=24)  # of 64 x 48, of which the model sees a few
    preparer(tiny).prepare(ask(Video(file)), Budget(max_clip_pixels=24 * 64 * 48))
    with pytest.raises(MediaError, match="videos have 73,728 pixels to decode, more than the 73,727"):
        preparer(tiny).prepare(ask(Video(file)), Budget(max_clip_pixels=24 * 64 * 48 - 1))


def test_a_prompt_whose_media_take_too_long_is_refused(tiny: Processor) -> None:
    with pytest.raises(MediaError, match="allowed to decode"):
        preparer(tiny).prepare(ask(Image(encoded(picture()))), Budget(max_decode_seconds=1e-9))
    opener = preparer(tiny)
    fetched = opener.fetch(ask(Image(encoded(picture()))), Budget(max_decode_seconds=0.5))
    time.sleep(0.6)  # in the line: the time begins when it is decoded
    opener.build(fetched)

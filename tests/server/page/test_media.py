"""Pictures, videos and the camera in the page, and the page with a real model behind it."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image as Pillow
from server.page.fake import Fake

from .conftest import Watched, png
from .test_chatting import answered, ask, text_of

# Puts a file into a DataTransfer, as a browser does for a drop or a paste.
TRANSFER = """([name, type, text]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
}"""


def transfer(page: Any, name: str = "blue.png", kind: str = "image/png", content: bytes = b"") -> Any:
    text = base64.b64encode(content or png()).decode()
    return page.evaluate_handle(TRANSFER, [name, kind, text])


def sent(fake: Fake, number: int = -1) -> list[tuple[str, bytes]]:
    """Type and bytes of the media of the last message."""
    parts = fake.asked[number]["messages"][-1]["content"]
    found = [part[part["type"]]["url"] for part in parts if part["type"] != "text"]
    return [
        (url[5 : url.index(";")], base64.b64decode(url[url.index(",") + 1 :], validate=True)) for url in found
    ]


def test_pictures_of_the_file_dialog_are_sent_as_they_are(
    page: Any, fake: Fake, picture: Callable[..., Path]
) -> None:
    files = [picture("a.png"), picture("b.jpg", (90, 60), "green"), picture("c.webp", (30, 30), "blue")]
    with page.expect_file_chooser() as chooser:
        page.click("#attach")
    chooser.value.set_files(files)
    tiles = page.locator("#attached .tile")
    tiles.nth(2).wait_for()
    tiles.nth(1).get_by_role("button", name="Delete b.jpg").click()
    ask(page, "Which?")
    answered(page)
    assert sent(fake) == [("image/png", files[0].read_bytes()), ("image/webp", files[2].read_bytes())]
    assert fake.asked[0]["messages"][0]["content"][-1] == {"type": "text", "text": "Which?"}
    assert page.locator("#attached").is_hidden()
    page.reload()
    shown = page.locator(".gallery img")
    shown.nth(1).wait_for()
    page.wait_for_timeout(100)
    assert [image.evaluate("(node) => node.naturalWidth") for image in shown.all()] == [64, 30]
    shown.first.click()
    page.locator("#lightbox[open]").wait_for()
    assert page.locator("#lightbox-label").inner_text() == "a.png, 64 × 48"
    page.keyboard.press("Escape")
    assert page.locator("#lightbox").is_hidden()
    # A question of a later turn sends them again, from the store.
    ask(page, "And now?")
    answered(page, 2)
    assert fake.asked[1]["messages"][0] == fake.asked[0]["messages"][0]


def test_a_file_that_is_written_to_after_it_was_attached_is_sent_as_it_was(
    page: Any, fake: Fake, picture: Callable[..., Path]
) -> None:
    file = picture("a.png")
    before = file.read_bytes()
    page.set_input_files("#files", file)
    page.locator("#attached .tile").wait_for()
    picture("a.png", (90, 60), "green")
    ask(page, "What is it?")
    answered(page)
    ask(page, "And now?")
    answered(page, 2)
    assert [sent_first(asked) for asked in fake.asked] == [before, before]


def sent_first(asked: dict[str, Any]) -> bytes:
    url = asked["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url[url.index(",") + 1 :], validate=True)


def test_a_pasted_picture_is_sent_and_a_pasted_text_is_not_touched(page: Any, fake: Fake) -> None:
    page.evaluate(
        """(clipboardData) => document.getElementById("field").dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }))""",
        transfer(page),
    )
    page.locator("#attached .tile").wait_for()
    page.press("#field", "Enter")
    answered(page)
    assert sent(fake) == [("image/png", png())]
    assert all(part["type"] != "text" for part in fake.asked[0]["messages"][0]["content"])
    kept = page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", "words");
            const field = document.getElementById("field");
            return field.dispatchEvent(
                new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }"""
    )
    assert kept


def test_a_dropped_picture_is_sent(page: Any, fake: Fake) -> None:
    data = {"dataTransfer": transfer(page)}
    page.dispatch_event("#messages", "dragenter", data)
    assert page.locator("#drop").is_visible()
    page.dispatch_event("#messages", "drop", data)
    assert page.locator("#drop").is_hidden()
    page.locator("#attached .tile").wait_for()
    ask(page, "a")
    answered(page)
    assert sent(fake) == [("image/png", png())]


def test_what_is_no_picture_is_refused(page: Any, fake: Fake) -> None:
    page.dispatch_event(
        "#messages", "drop", {"dataTransfer": transfer(page, "notes.txt", "text/plain", b"a")}
    )
    page.get_by_text("notes.txt: this is neither a picture nor a video.").wait_for()
    page.dispatch_event(
        "#messages", "drop", {"dataTransfer": transfer(page, "bad.png", "image/png", b"junk")}
    )
    page.get_by_text("bad.png: the browser cannot read this picture.").wait_for()
    assert page.locator("#attached").is_hidden()
    page.press("#field", "Enter")
    assert fake.asked == []


def test_a_large_picture_is_made_smaller(page: Any, fake: Fake, picture: Callable[..., Path]) -> None:
    page.set_input_files("#files", picture("wide.png", (5000, 100)))
    page.locator("#attached .tile").wait_for()
    ask(page, "a")
    answered(page)
    [(kind, content)] = sent(fake)
    assert kind == "image/jpeg"
    smaller = Pillow.open(io.BytesIO(content))
    assert smaller.size == (4096, 82)
    assert smaller.getpixel((9, 9))[0] > 240


def test_a_picture_of_a_kind_that_models_do_not_read_is_encoded_anew(page: Any, fake: Fake) -> None:
    drawn = b'<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><circle r="5"/></svg>'
    page.dispatch_event(
        "#messages", "drop", {"dataTransfer": transfer(page, "a.svg", "image/svg+xml", drawn)}
    )
    page.locator("#attached .tile").wait_for()
    ask(page, "a")
    answered(page)
    [(kind, content)] = sent(fake)
    assert (kind, Pillow.open(io.BytesIO(content)).size) == ("image/jpeg", (20, 10))


def test_a_video_is_sent_whole_and_a_long_one_warned_about(page: Any, fake: Fake) -> None:
    page.dispatch_event("#messages", "drop", {"dataTransfer": transfer(page, "clip.avi", "", b"RIFF....")})
    page.locator("#attached .tile.video").wait_for()
    assert page.locator("#size-warning").is_hidden()
    page.evaluate(
        """async () => {
            const { LARGE } = await import("/page/media.js");
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(LARGE)], "long.mp4", { type: "video/mp4" }));
            const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.getElementById("messages").dispatchEvent(event);
        }"""
    )
    page.locator("#size-warning").wait_for()
    page.get_by_role("button", name="Delete long.mp4").click()
    assert page.locator("#size-warning").is_hidden()
    ask(page, "What happens?")
    answered(page)
    assert fake.asked[0]["messages"][0]["content"][0]["type"] == "video_url"
    assert sent(fake) == [("video/mp4", b"RIFF....")]
    page.locator(".unplayable").wait_for()
    assert "clip.avi" in page.locator(".unplayable").inner_text()


def test_the_camera_takes_a_picture_and_is_let_go(page: Any, fake: Fake) -> None:
    page.context.grant_permissions(["camera"], origin=fake.url)
    page.click("#open-camera")
    page.locator("#camera-take:not([disabled])").click()
    page.locator("#attached .tile").wait_for()
    assert page.locator("#camera").is_hidden()
    assert page.evaluate("() => document.getElementById('camera-film').srcObject") is None
    ask(page, "a")
    answered(page)
    [(kind, content)] = sent(fake)
    assert kind == "image/jpeg"
    assert min(Pillow.open(io.BytesIO(content)).size) > 100


def test_a_page_without_a_camera_says_why(page: Any) -> None:
    page.evaluate("() => Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#open-camera")
    page.get_by_text("only to pages from localhost or over HTTPS").wait_for()
    assert page.locator("#camera-take").is_disabled()


def test_editing_keeps_and_removes_pictures(page: Any, fake: Fake, picture: Callable[..., Path]) -> None:
    files = [picture("a.png"), picture("b.png", colour="green")]
    page.set_input_files("#files", files)
    page.locator("#attached .tile").nth(1).wait_for()
    ask(page, "Both")
    answered(page)
    page.locator(".user").hover()
    page.get_by_role("button", name="Edit message").click()
    page.locator(".edit").get_by_role("button", name="Delete a.png").click()
    page.locator(".edit textarea").fill("One")
    page.keyboard.press("Enter")
    fake.wait_for(lambda: len(fake.asked) == 2)
    answered(page)
    assert sent(fake) == [("image/png", files[1].read_bytes())]


def test_a_real_model_answers_about_a_picture(
    watched: Watched, tiny_folder: Path, picture: Callable[..., Path]
) -> None:
    from sightline import LLM
    from sightline.server.run import serve_in_background

    with contextlib.ExitStack() as stack:
        llm = LLM(tiny_folder, dtype="fp32", device="cpu")
        stack.callback(llm.close)
        address = stack.enter_context(serve_in_background(llm, served_model_name="tiny"))
        page = watched.open(address.root)
        page.wait_for_selector("#model option", state="attached")
        assert page.input_value("#model") == "tiny"
        page.click("#open-settings")
        page.fill("#sampling-max_tokens", "8")
        page.fill("#sampling-temperature", "0")
        page.keyboard.press("Escape")
        page.locator("#settings").wait_for(state="hidden")
        page.set_input_files("#files", picture())
        page.locator("#attached .tile").wait_for()
        ask(page, "what shape is it?")
        answer = answered(page)
        parts: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {
                    "url": "data:image/png;base64," + base64.b64encode(picture().read_bytes()).decode()
                },
            },
            {"type": "text", "text": "what shape is it?"},
        ]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
        whole = httpx.post(f"{address.url}/chat/completions", json=body, timeout=60).json()
        said = whole["choices"][0]["message"]["content"]
        assert text_of(page).split() == said.split()
        line = answer.locator(".figures summary").inner_text()
        assert f"{whole['usage']['prompt_tokens']} tokens in" in line
        assert f"{whole['usage']['prompt_tokens_details']['vision_tokens']} vision" in line
        # Whether an untrained model ends its answer at once is chance, and there must be one to stop.
        llm._preparer.end_tokens = frozenset()
        page.fill("#field", "go on")
        page.click("#open-settings")
        page.fill("#sampling-max_tokens", "")
        page.keyboard.press("Escape")
        # Until it is closed the field behind it takes no key.
        page.locator("#settings").wait_for(state="hidden")
        page.press("#field", "Enter")
        page.locator("#stop").wait_for()
        page.keyboard.press("Escape")
        page.locator("#send").wait_for()
        engine = llm.engine
        for _ in range(200):
            if engine.stats().running == 0:
                break
            page.wait_for_timeout(20)
        assert engine.stats().running == 0

"""A browser for the tests of the page: one for all of them, a page with its own storage for each."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from server.page.fake import Fake, fake_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
# Notices of what a browser forbids are errors on the console too; this finds them even where nobody listens.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox", *CAMERA])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Fake]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def fake(server: Fake) -> Fake:
    server.reset()
    return server


@dataclass
class Watched:
    """Opens pages, and knows what went wrong in them. `expected` are parts of messages that a test provokes."""

    browser: Any
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pages: list[Any] = field(default_factory=list)

    def open(self, url: str, **options: Any) -> Any:
        options = {"viewport": {"width": 1100, "height": 720}, "locale": "en-US", **options}
        context = self.browser.new_context(**options)
        context.set_default_timeout(10_000)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(url)
        page.wait_for_selector("body[data-ready]", state="attached")
        self.pages.append(page)
        return page

    def check(self) -> None:
        """Nothing went wrong, and nothing was tried that the policy forbids."""
        violations = [found for page in self.pages for found in page.evaluate("() => window.violations")]
        for page in self.pages:
            page.context.close()
        assert self.problems == []
        assert violations == []

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in self.expected):
            self.problems.append(message.text)


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    watched.check()


@pytest.fixture
def page(watched: Watched, fake: Fake) -> Any:
    page = watched.open(fake.url)
    page.wait_for_selector("#model option", state="attached")
    return page


@pytest.fixture(scope="module")
def bare(browser: Any, server: Fake) -> Iterator[Any]:
    """A page for calling the page's own modules; nothing is asked in it."""
    watched = Watched(browser)
    yield watched.open(server.url)
    watched.check()


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    def make(
        name: str = "red.png", size: tuple[int, int] = (64, 48), colour: str = "red", **options: Any
    ) -> Path:
        path = tmp_path / name
        Pillow.new("RGB", size, colour).save(path, **options)
        return path

    return make


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", size, "blue").save(buffer, "PNG")
    return buffer.getvalue()

"""Picture and page of runs side by side: what is on them, and that nothing else is needed to see it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from films import film

from sightline.errors import UsageError
from sightline.video.sheets.comparison import Comparison, Shown
from sightline.video.sheets.page import differing, sprite, sprite_columns, write_page
from sightline.video.sheets.picture import shown_width, side_by_side, to_picture


def comparison(noise: float = 0.05, title: str = "a disc", **made: object) -> Comparison:
    exact = Shown("exact", film(), 4.0, {"steps": 50, "plan": "none"})
    plan = Shown("plan <2x>", film(noise), 2.0, {"steps": 50, "plan": "every 2"}, note="of a test")
    return Comparison(exact, (plan,), title)


class Outline(HTMLParser):
    """Tags, texts and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "input", "polyline", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag != "polyline":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_picture_has_a_line_a_run_and_one_of_differences(tmp_path: Path) -> None:
    from PIL import Image

    side_by_side([comparison()], tmp_path / "one.png", columns=3)
    side_by_side([comparison(), comparison(0.1)], tmp_path / "two.png", columns=3)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width == two.width
        assert 3 * shown_width(32) < one.width < 3 * shown_width(32) + 300
        assert 3 * shown_width(32) < one.height < two.height
    with pytest.raises(UsageError, match="no runs"):
        side_by_side([], tmp_path / "none.png")


def test_frames_are_shown_as_they_are() -> None:
    frame = torch.rand(3, 4, 6)
    picture = to_picture(frame, 12)
    assert picture.size == (12, 8)
    red = [round(255 * float(value)) for value in frame[:, 1, 2]]
    assert list(picture.getpixel((5, 3))) == red
    assert shown_width(64) == 192
    assert shown_width(832) == 180


def test_a_page_needs_nothing_else_and_says_everything(tmp_path: Path) -> None:
    write_page([comparison(), comparison(0.2, "another")], tmp_path / "sheet.html", title="Plans & runs")
    page = (tmp_path / "sheet.html").read_text()
    outline = Outline(page)
    assert not outline.open
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert "@import" not in page
    text = " ".join(" ".join(outline.texts).split())
    for part in (
        "Plans & runs",
        "plan <2x>",
        "2.00x",
        "difference times 4",
        "Settings that differ",
        "of a test",
    ):
        assert part in text
    assert "<2x>" not in page
    assert "prefers-color-scheme: dark" in page
    assert "All together" in text
    one = comparison()
    assert f"{one.fidelity[0].psnr_worst:.2f}" in text
    assert f'data-frame="{one.fidelity[0].worst_frame}"' in page
    points = re.findall(r'points="([^"]+)"', page)
    assert [len(line.split()) for line in points] == [5, 5]
    told = json.loads(re.findall(r'data-psnr="([^"]+)"', page)[0])
    assert told == [[round(value, 1) for value in one.psnr[0]]]


def test_one_comparison_has_no_table_over_all(tmp_path: Path) -> None:
    write_page([comparison()], tmp_path / "sheet.html", title="one")
    assert "All together" not in (tmp_path / "sheet.html").read_text()
    with pytest.raises(UsageError, match="no runs"):
        write_page([], tmp_path / "none.html", title="none")


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (160, "jpeg")])
def test_a_sprite_holds_every_frame_in_reading_order(side: int, kind: str) -> None:
    from PIL import Image

    frames = film(frames=6, side=side)
    head, _, data = sprite(frames).partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (3 * side, 2 * side)
        last = picture.crop((2 * side, side, 3 * side, 2 * side))
        there = torch.tensor(list(last.getdata())).view(side, side, 3).permute(2, 0, 1) / 255
    assert float((there - frames[5]).abs().mean()) < (0.003 if kind == "png" else 0.02)
    assert sprite_columns(17) == 5


def test_settings_that_differ_are_told_by_their_parts() -> None:
    first = {"steps": 50, "setting": {"shift": 3.0, "dtype": "float32"}}
    second = {"steps": 50, "setting": {"shift": 5.0, "dtype": "float32"}, "plan": "x"}
    assert differing([first, second]) == {"setting.shift": ["3", "5"], "plan": ["-", "x"]}

"""docs/video-models.md shows what exists."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from sightline.video.components import OFFLOADS, load_components
from sightline.video.loading import defaults

PAGE = (Path(__file__).parents[3] / "docs" / "video-models.md").read_text(encoding="utf-8")


def test_the_defaults_it_shows_are_read(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```", PAGE, flags=re.M | re.S)
    (tmp_path / defaults.FILE).write_text(shown)
    found = defaults._own(tmp_path / defaults.FILE)
    assert set(json.loads(shown)) - {"name"} == {"shift" if name == "fixed_shift" else name for name in found}
    assert set(json.loads(shown)) == {*defaults._WHOLE, *defaults._REAL, *defaults._TEXT}


def test_the_options_it_names_exist() -> None:
    known = inspect.signature(load_components).parameters
    for name in ("transformer_file", "vae_file", "text_encoder_file", "tokenizer"):
        assert f"`{name}`" in PAGE
        assert name in known
    for name in re.findall(r"^\| `--[^|]*\| `(\w+)=", PAGE, flags=re.M):
        assert name in known
    assert set(re.findall(r'offload="(\w+)"', PAGE)) == set(OFFLOADS) - {"none"}

"""Prompts are cleaned as diffusers cleans them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.video.text import clean


@given(st.text())
def test_any_text_is_cleaned_as_diffusers_cleans_it(text: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean(text) == prompt_clean(text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("  a\n\tcat ", "a cat"), ("a &amp;lt;b&amp;gt; c", "a <b> c"), ("鲜艳的 色调", "鲜艳的 色调")],
)
def test_spaces_and_escapes_go(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned

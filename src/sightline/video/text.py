"""Prompts as Wan's text encoder was taught to read them."""

from __future__ import annotations

import html
import re


def clean(text: str) -> str:
    """Mend broken encodings if ftfy is installed, undo HTML's escapes (also doubled), make one space of many.

    The same text as `diffusers.pipelines.wan.pipeline_wan.prompt_clean` gives.
    """
    try:
        import ftfy
    except ImportError:
        pass
    else:
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()

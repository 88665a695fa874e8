"""One name for one tensor, whichever transformers generation or PEFT wrapping wrote it."""

from __future__ import annotations

import re

# The first rule that fits decides. Left: what stands in files; right: our name, which stands in no file.
_RULES = (
    (re.compile(r"^(model\.)?visual\."), "visual."),
    (re.compile(r"^(model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)"), "text."),
)
OLD, NEW = "old", "new"
# How transformers' generations spell our names in files. Every one reads both.
_SPELLINGS = {
    OLD: (("visual.", "visual."), ("text.", "model.")),
    NEW: (("visual.", "model.visual."), ("text.", "model.language_model.")),
}
_WRAPPING = re.compile(r"^(base_model\.model\.)+")


def unwrapped(name: str) -> str:
    """Without the prefix that PEFT puts before every module."""
    return _WRAPPING.sub("", name)


def canonical(name: str) -> str:
    """`model.visual.x` and `visual.x` -> `visual.x`; `model.layers.x`, `model.language_model.layers.x` and
    `language_model.model.layers.x` -> `text.layers.x`; `lm_head.x` stays. PEFT's prefix is taken off."""
    name = unwrapped(name)
    for pattern, ours in _RULES:
        if pattern.match(name):
            return pattern.sub(ours, name, count=1)
    return name


def spelled(name: str, style: str) -> str:
    """A canonical name as files have it: `old` (model.layers, visual) or `new` (model.language_model, model.visual)."""
    for ours, theirs in _SPELLINGS[style]:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name

"""Random texts of a wanted number of tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Count = Callable[[str], Awaitable[int]]

# Common enough to be one token each for the tokenizers of the models that are served.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education foot boy age policy music market sense nation plan "
    "college interest death experience effect use class control field development role effort rate heart light "
    "voice wife police mind price report decision son view relationship town road arm difference value building "
    "action season society tax director position player record paper space ground form event matter center couple "
    "site project activity star table court oil situation cost industry figure street image phone data picture "
    "practice piece land product doctor wall patient worker news test movie north love support technology step baby "
    "computer type attention film tree source organization hair look window culture chance brother energy period "
    "course summer plant opportunity term letter condition choice rule daughter south husband floor campaign"
)
WORDS = tuple(_TEXT.split())
_FILLER = " a"
_ATTEMPTS = 8


async def random_text(random: np.random.Generator, tokens: int, count: Count | None) -> str:
    """Words at random, `tokens` of them, or of `tokens` tokens as `count` counts.

    A word is mostly one token, but not always, so that without `count` the length is about right; with it, words are
    taken away and fillers put in until it fits, and the nearest is given where a tokenizer allows no exact fit.
    """
    picked = [WORDS[int(number)] for number in random.integers(0, len(WORDS), max(tokens, 1))]
    if count is None or tokens < 1:
        return " ".join(picked)
    text = " ".join(picked)
    best, off = text, abs(await count(text) - tokens)
    words, filler = len(picked), 0
    for _ in range(_ATTEMPTS):
        if not off:
            return best
        found = await count(text)
        if found > tokens:
            # Too long by more than the filler: fewer words, in proportion.
            keep = min(words - 1, int(words * (tokens - filler) / max(found - filler, 1)))
            words = max(keep, 0)
            filler = 0 if words else tokens
        else:
            filler += tokens - found
        text = (" ".join(picked[:words]) + _FILLER * filler).strip()
        found = await count(text)
        if abs(found - tokens) < off:
            best, off = text, abs(found - tokens)
    return best

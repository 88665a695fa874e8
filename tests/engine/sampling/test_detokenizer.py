"""Text as it comes: whole characters, the decoder's text in the end, stop texts across tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from sightline.engine.sampling.detokenizer import Detokenizer


def sentence_piece_like() -> Any:
    """Words begin with "▁", which is left out at a text's start; unknown characters are spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["<s>", "▁", *"abc.", "▁a", "▁b", "ab"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def ids_of(text: str) -> list[int]:
    return make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def test_no_half_characters() -> None:
    text = Detokenizer(make_tokenizer())
    pieces = []
    for token in ids_of("a 图片 é 👩‍👧!"):
        assert text.add(token) is None
        pieces.append(text.take())
    assert len(ids_of("图")) > 1
    assert "".join(pieces) == "a 图片 é 👩‍👧!"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_cut_answer_ends_with_its_last_whole_character() -> None:
    half = ids_of("ab图")[:-1]
    for cut, expected in ((True, "ab"), (False, "ab\ufffd")):
        text = Detokenizer(make_tokenizer())
        for token in half:
            text.add(token)
        text.finish(cut=cut)
        assert text.text == text.take() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(make_tokenizer()) - 1), max_size=30), st.booleans())
def test_any_tokens_give_the_decoders_text(ids: list[int], skip: bool) -> None:
    text = Detokenizer(make_tokenizer(), skip_special_tokens=skip)
    pieces = []
    for token in ids:
        text.add(token)
        pieces.append(text.take())
    text.finish()
    pieces.append(text.take())
    assert "".join(pieces) == text.text == make_tokenizer().decode(ids, skip_special_tokens=skip)


@settings(max_examples=60, deadline=None)
@given(
    st.text("ab图.", max_size=25),
    st.lists(st.text("ab图.", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_texts(whole: str, stops: list[str]) -> None:
    text = Detokenizer(make_tokenizer(), stops=stops)
    shown, stop = "", None
    for token in ids_of(whole):
        stop = text.add(token)
        shown += text.take() if stop is None else ""
        if stop is not None:
            break
    text.finish()
    shown += text.take()
    # What was shown was never taken back, and the answer ends where the first stop text begins.
    assert shown == text.text
    if stop is None:
        assert text.text == whole
        assert not any(one in whole for one in stops)
    else:
        assert whole.startswith(text.text + stop)
        assert not any(one in text.text for one in stops)


def test_an_early_stop_text_is_passed_over() -> None:
    text = Detokenizer(make_tokenizer(), stops=["b"])
    first, second = ids_of("b")[0], ids_of("a")[0]
    assert text.add(first, may_stop=False) is None
    assert text.add(second) is None
    assert text.add(first) == "b"
    assert text.text == "ba"


@settings(max_examples=40, deadline=None)
@given(st.text("ab c图é.👩", max_size=30))
def test_words_that_begin_with_their_space(whole: str) -> None:
    tokenizer = sentence_piece_like()
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    text = Detokenizer(tokenizer)
    pieces = []
    for token in ids:
        text.add(token)
        pieces.append(text.take())
        assert "\ufffd" not in pieces[-1]
    text.finish()
    assert "".join(pieces) + text.take() == text.text == tokenizer.decode(ids)


SPECIAL, BYTE, LEAD = make_tokenizer().eos_token_id, ids_of("图")[1], ids_of("图")[0]


@pytest.mark.parametrize("run", [[SPECIAL], [BYTE], [LEAD], [LEAD, BYTE, SPECIAL], [BYTE, SPECIAL, SPECIAL]])
def test_tokens_without_a_character_do_not_pile_up(run: list[int]) -> None:
    """A model gone astray, or one that repeats special tokens: no token costs more than the one before."""
    ids = ids_of("ab") + run * 80 + ids_of("图 a")
    text, longest, pieces = Detokenizer(make_tokenizer()), 0, []
    for token in ids:
        text.add(token)
        longest = max(longest, len(text._ids))
        pieces.append(text.take())
    text.finish()
    assert longest < 40
    assert "".join(pieces) + text.take() == text.text
    assert text.text == make_tokenizer().decode(ids, skip_special_tokens=True)


def test_the_stop_text_may_be_kept() -> None:
    text = Detokenizer(make_tokenizer(), stops=["b图"], keep_stop=True)
    found = [text.add(token) for token in ids_of("ab图c")]
    assert [stop for stop in found if stop] == ["b图"]
    text = Detokenizer(make_tokenizer(), stops=["b图"], keep_stop=True)
    for token in ids_of("ab图"):
        text.add(token)
    assert text.take() == text.text == "ab图"

"""Log-probabilities of chat completions, in OpenAI's form."""

from __future__ import annotations

import gc
import math
import weakref

import openai
import pytest
from asking import about

from sightline import LLM, SamplingParams
from sightline.engine.outputs import Logprob
from sightline.server.openai.logprobs import TokenNames, chat_logprobs


def test_they_are_the_engines(client: openai.OpenAI, llm: LLM) -> None:
    expected = llm.chat(about(), SamplingParams(temperature=0, max_tokens=8, logprobs=3))[0].outputs[0]
    answer = client.chat.completions.create(
        model="tiny", messages=about(), temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 8
    for token, entry, one in zip(expected.token_ids, expected.logprobs or [], told.content, strict=True):
        assert one.logprob == pytest.approx(entry[token].logprob, abs=1e-4)
        assert one.token == entry[token].decoded_token
        assert len(one.top_logprobs) == 3
        best = [top.logprob for top in one.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert one.top_logprobs[0].bytes == one.bytes  # greedy: the likeliest is the chosen one
    told_bytes = b"".join(bytes(one.bytes or []) for one in told.content)
    text = answer.choices[0].message.content or ""
    assert told_bytes.decode(errors="replace").rstrip("\ufffd") == text.rstrip("\ufffd")


def test_the_bytes_of_each_token_join_to_the_text(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    names = TokenNames(tokenizer)
    text = "é好🙂 a\n<|im_end|> ÿ"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(bytes(names.values(token)) for token in ids).decode() == text


def test_what_json_has_not_is_replaced(llm: LLM) -> None:
    entry = {5: Logprob(-math.inf, 9, "a"), 6: Logprob(-0.5, 1, "b")}
    told = chat_logprobs([entry], 1, TokenNames(llm.get_tokenizer()))["content"][0]
    assert told["logprob"] == -9999.0
    assert [top["token"] for top in told["top_logprobs"]] == ["b"]


def test_without_top_logprobs_the_chosen_one_is_told_alone(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=about(), max_tokens=2, logprobs=True)
    told = answer.choices[0].logprobs
    assert told is not None
    assert [one.top_logprobs for one in told.content or []] == [[], []]


def test_tokens_may_be_told_by_their_ids(client: openai.OpenAI) -> None:
    extra = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    answer = client.chat.completions.create(
        model="tiny", messages=about(), max_tokens=3, logprobs=True, extra_body=extra
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    told = [one.token for one in choice.logprobs.content or []]
    assert told == [f"token_id:{token}" for token in choice.token_ids]  # type: ignore[attr-defined]


def test_the_names_of_a_request_go_with_it(llm: LLM) -> None:
    """Kept by themselves, they and their bytes would wait for the collector."""
    names = TokenNames(llm.get_tokenizer())
    assert names.values(65) == names.values(65)
    gone = weakref.ref(names)
    gc.disable()
    try:
        del names
        assert gone() is None
    finally:
        gc.enable()

"""Tokens of prompts and messages, as vLLM tells them, and what the server says of itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from asking import about, data_url, post, refusal

import sightline
from sightline import LLM
from sightline.server.run import Address


def test_a_prompt_becomes_tokens_and_they_become_the_prompt(address: Address, llm: LLM) -> None:
    text = "what é好 shape <|im_end|>?"
    told = post(f"{address.root}/tokenize", {"model": "tiny", "prompt": text, "return_token_strs": True})
    tokenizer = llm.get_tokenizer()
    assert told["tokens"] == tokenizer.encode(text)
    assert told["token_strs"] == tokenizer.convert_ids_to_tokens(told["tokens"])
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), llm.max_model_len)
    assert post(f"{address.root}/detokenize", {"tokens": told["tokens"]}) == {"prompt": text}
    assert post(f"{address.root}/tokenize", {"prompt": ""})["tokens"] == []
    assert post(f"{address.root}/tokenize", {"prompt": text})["token_strs"] is None


def test_messages_become_the_tokens_of_their_prompt(address: Address, llm: LLM) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for extra in ({}, {"tools": [tool]}):
        body: dict[str, Any] = {"messages": about(), **extra}
        told = post(f"{address.root}/tokenize", body)
        answer = post(f"{address.url}/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True})
        assert told["tokens"] == answer["prompt_token_ids"]
    asked = post(f"{address.root}/tokenize", {"messages": about(), "add_generation_prompt": False})
    assert post(f"{address.root}/tokenize", {"messages": about()})["count"] > asked["count"]


def test_a_picture_is_one_token_where_nothing_is_opened(address: Address) -> None:
    told = post(f"{address.root}/tokenize", {"messages": about(data_url())})
    assert told["count"] == post(f"{address.root}/tokenize", {"messages": about()})["count"] + 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "a", "messages": about()}, "prompt"),
        ("tokenize", {"prompt": 3}, "prompt"),
        ("tokenize", {"prompt": "a" * (5 * 2**20)}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("tokenize", {"messages": about(), "continue_final_message": True}, "continue_final_message"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("detokenize", {"tokens": [10**9]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": [10**400]}, "tokens"),
    ],
)
def test_wrong_requests_are_named(address: Address, path: str, body: Any, param: str) -> None:
    assert refusal(f"{address.root}/{path}", body) == (400, param)


def test_a_model_that_is_not_served(address: Address) -> None:
    for path, body in (("tokenize", {"prompt": "a"}), ("detokenize", {"tokens": [1]})):
        assert refusal(f"{address.root}/{path}", {**body, "model": "other"}) == (404, "model")


def test_version_and_load(address: Address) -> None:
    assert httpx.get(f"{address.root}/version").json() == {"version": sightline.__version__}
    assert httpx.get(f"{address.root}/load").json() == {"server_load": 0}

"""The older completions: prompts without a template, and their log-probabilities."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from asking import chunks, post, refusal, wait_until_idle

from sightline import LLM, SamplingParams
from sightline.server.run import Address


def joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream as the whole answer has them."""
    found: dict[int, dict[str, Any]] = {}
    for part in parts:
        for choice in part["choices"]:
            one = found.setdefault(choice["index"], {"index": choice["index"], "text": "", "logprobs": None})
            assert one.get("finish_reason") is None
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                before = one["logprobs"] or {name: [] for name in choice["logprobs"]}
                one["logprobs"] = {name: before[name] + choice["logprobs"][name] for name in before}
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize(
    "prompt", ["a red circle", [50, 60, 70], ["a red", "blue", "b"], [[50, 60], [70, 80, 90]]]
)
def test_each_form_of_prompt_is_answered_as_the_engine_does(
    client: openai.OpenAI, llm: LLM, prompt: Any
) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=6)
    expected = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=6))
    assert [choice.text for choice in answer.choices] == [one.outputs[0].text for one in expected]
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(one.prompt_token_ids) for one in expected)


def test_control_tokens_are_what_raw_prompts_are_for(client: openai.OpenAI) -> None:
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert client.completions.create(model="tiny", prompt=text, max_tokens=2).usage.completion_tokens == 2


def test_without_max_tokens_there_are_sixteen(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "a red circle", "n": 2},
        {"prompt": ["a red", "blue"], "n": 2, "stop": ["e"]},
        {"prompt": ["a red", "blue"], "echo": True},
        {"prompt": ["a red", "blue"], "echo": True, "logprobs": 2},
        {"prompt": [[50, 60, 70], [90, 80]], "echo": True, "logprobs": 0, "n": 2},
        {"prompt": "a red circle", "logprobs": 3, "stream_interval": 3},
        {"prompt": "a red circle", "echo": True, "logprobs": 1, "max_tokens": 0},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_a_stream_joined_is_the_whole_answer(address: Address, settings: dict[str, Any]) -> None:
    url = f"{address.url}/completions"
    body = {"max_tokens": 12, "temperature": 1.0, "seed": 7, **settings}
    post(url, body)  # so that both find the prompt in the cache
    whole = post(url, body)
    parts = chunks(url, {**body, "stream_options": {"include_usage": True}})
    expected = [
        {name: choice[name] for name in ("index", "text", "logprobs", "finish_reason")}
        for choice in whole["choices"]
    ]
    assert joined(parts) == expected
    assert parts[-1]["usage"] == whole["usage"]
    assert parts[-1]["choices"] == []


def test_log_probabilities_are_the_engines(client: openai.OpenAI, llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=2, prompt_logprobs=2)
    expected = llm.generate("a red circle", params)[0]
    answer = client.completions.create(
        model="tiny", prompt="a red circle", temperature=0, max_tokens=5, logprobs=2, echo=True
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    tokens = expected.prompt_token_ids + expected.outputs[0].token_ids
    assert len(told.tokens) == len(tokens)
    assert told.token_logprobs[0] is None
    assert "".join(told.tokens).startswith("a red circle")
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(len(tokens))]
    own = [
        entry[token].logprob
        for token, entry in zip(expected.outputs[0].token_ids, expected.outputs[0].logprobs, strict=True)
    ]
    assert told.token_logprobs[-5:] == pytest.approx(own, abs=1e-4)


def test_scoring_a_text_computes_no_answer(address: Address) -> None:
    body = {"prompt": "a red circle", "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = post(f"{address.url}/completions", body)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a red circle", "length")
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 0


def test_a_prompt_is_cut_to_its_last_tokens(address: Address, llm: LLM) -> None:
    body = {
        "prompt": "what shape is in the image?",
        "truncate_prompt_tokens": 4,
        "max_tokens": 1,
        "echo": True,
    }
    answer = post(f"{address.url}/completions", {**body, "return_token_ids": True})
    ids = llm.get_tokenizer()(body["prompt"])["input_ids"][-4:]
    assert answer["choices"][0]["prompt_token_ids"] == ids
    assert answer["choices"][0]["text"].startswith(llm.get_tokenizer().decode(ids))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [5] * 3000}, "prompt"),
        ({"prompt": "a " * 3000}, "prompt"),
        ({"prompt": ["good", "a " * 3000]}, "prompt"),
        ({"prompt": "x<|image_pad|>"}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "a"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"model": "other"}, "model"),
    ],
)
def test_wrong_requests_are_named(address: Address, llm: LLM, change: dict[str, Any], param: str) -> None:
    status, found = refusal(f"{address.url}/completions", {"prompt": "a", "max_tokens": 2, **change})
    assert (status, found) == (404 if param == "model" else 400, param)
    wait_until_idle(llm)


def test_prompts_of_mixed_kinds_are_refused(address: Address) -> None:
    for prompt in ([1, "a"], [[1], "a"], [[True]], [1.5]):
        status, param = refusal(f"{address.url}/completions", {"prompt": prompt})
        assert status == 400
        assert str(param).startswith("prompt")


def test_prompts_times_n_is_bounded(address: Address) -> None:
    """A request counts as one open request, however many answers it asks for."""
    url = f"{address.url}/completions"
    body = {"prompt": ["a"] * 9, "n": 15, "max_tokens": 1}
    assert refusal(url, body) == (400, "n")
    told = httpx.post(url, json=body).json()["error"]["message"]
    assert all(part in told for part in ("9 prompts", "n is 15", "128"))
    assert len(post(url, {**body, "n": 1})["choices"]) == 9

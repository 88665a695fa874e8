"""Every field of the SDK and of vLLM is honoured, ignored or refused, and each as the tables say."""

from __future__ import annotations

from typing import Any

import pytest
from asking import about, chunks, data_url, joined_chat, post, refusal, whole_chat
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from scripted_exchange import ScriptedExchange, script

from sightline import LLM
from sightline.data.conversation import Conversation
from sightline.engine.inputs import Prompt
from sightline.engine.sampling.params import SamplingParams
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.openai.fields import ChatRequest, CompletionRequest
from sightline.server.openai.sampling import chat_sampling
from sightline.server.openai.unsupported import IGNORED, REFUSED
from sightline.server.run import Address

VLLM = (
    *(
        "best_of",
        "use_beam_search",
        "top_k",
        "min_p",
        "repetition_penalty",
        "length_penalty",
        "stop_token_ids",
    ),
    *("include_stop_str_in_output", "ignore_eos", "min_tokens", "skip_special_tokens", "echo", "documents"),
    *("spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "allowed_token_ids"),
    *("bad_words", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template"),
    *("chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs", "structured_outputs", "priority"),
    *("request_id", "return_tokens_as_token_ids", "return_token_ids", "cache_salt", "kv_transfer_params"),
    *(
        "vllm_xargs",
        "repetition_detection",
        "stream_interval",
        "guided_json",
        "guided_regex",
        "guided_choice",
    ),
    *("guided_grammar", "guided_decoding_backend", "guided_whitespace_pattern", "logits_processors"),
    *("do_sample", "include_reasoning", "thinking_token_budget", "structural_tag", "logprob_token_ids"),
)


@pytest.mark.parametrize(
    ("names", "request_"),
    [
        (ChatParams.__annotations__, ChatRequest),
        (CompletionParams.__annotations__, CompletionRequest),
        (VLLM, ChatRequest),
    ],
    ids=["chat", "completions", "vllm"],
)
def test_no_field_is_forgotten(names: Any, request_: type[ChatRequest]) -> None:
    assert len(names) > 15
    for name in names:
        ways = [name in request_.model_fields, name in IGNORED, name in REFUSED]
        assert sum(ways) == 1, f"{name} must be honoured, ignored or refused, in one way"


def test_what_is_ignored_changes_nothing(address: Address) -> None:
    body = {"messages": about(), "temperature": 0, "max_tokens": 4}
    plain = post(f"{address.url}/chat/completions", body)["choices"]
    ignored = {**dict.fromkeys(IGNORED, "x"), "nobody_knows": {"a": [1]}}
    assert post(f"{address.url}/chat/completions", {**body, **ignored})["choices"] == plain


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_is_named_unless_it_asks_for_nothing(address: Address, name: str) -> None:
    harmless, _ = REFUSED[name]
    for endpoint, body in (("chat/completions", {"messages": about()}), ("completions", {"prompt": "a"})):
        url = f"{address.url}/{endpoint}"
        assert refusal(url, {**body, name: {"a": 1}}) == (400, name)
        for value in (None, *harmless):
            post(url, {**body, "max_tokens": 1, name: value})


def sampled(address: Address, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> SamplingParams:
    asked = script(monkeypatch, ScriptedExchange(["a"]))
    post(f"{address.url}/chat/completions", {"messages": about(), **fields})
    params: SamplingParams = asked[0][1]
    return params


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({}, {"max_tokens": None, "n": 1, "logprobs": None}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 1, "top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}, {"top_k": 5, "min_p": 0.1}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
        ({"prompt_logprobs": 2}, {"prompt_logprobs": 2}),
        ({"stop": "a", "include_stop_str_in_output": True}, {"stop": ("a",)}),
        (
            {"stop_token_ids": [3], "ignore_eos": True, "min_tokens": 2},
            {"stop_token_ids": (3,), "min_tokens": 2},
        ),
        (
            {"bad_words": ["x"], "allowed_token_ids": [5, 6]},
            {"bad_words": ("x",), "allowed_token_ids": (5, 6)},
        ),
        ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
        ({"spaces_between_special_tokens": False}, {"spaces_between_special_tokens": False}),
        ({"logit_bias": {"5": 1}, "seed": -3}, {"logit_bias": {5: 1.0}, "seed": -3}),
        ({"n": 2, "best_of": 2}, {"n": 2}),
        ({"length_penalty": 1}, {}),
        ({"temperature": None, "stop": None, "n": None}, {"stop": ()}),
    ],
)
def test_settings_reach_the_engine(
    address: Address, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    params = sampled(address, monkeypatch, **fields)
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"length_penalty": 0.5}, "length_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"priority": 2**40}, "priority"),
        ({"priority": -1}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"bad_words": ["a"] * 257}, "bad_words"),
        ({"bad_words": [""]}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 10**30}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 5, "messages": about(data_url())}, "truncate_prompt_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"stream_options": 3}, "stream_options"),
        ({"echo": 1}, "echo"),
        ({"messages": [{"role": "user", "content": "a"}] * 1025}, "messages"),
        ({"messages": [{"role": "user", "content": one} for one in (["a"] * 4096, [3])]}, "messages"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(token): "bad" for token in range(100_000)}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "a" * (5 * 2**20)}]}, "messages"),
        ({"mm_processor_kwargs": {"max_pixels": "1"}}, "mm_processor_kwargs.max_pixels"),
        ({"mm_processor_kwargs": {"fps": 0}}, "mm_processor_kwargs.fps"),
        ({"media_io_kwargs": {"video": 3}}, "media_io_kwargs.video"),
    ],
)
def test_what_is_out_of_its_range_is_named(address: Address, fields: dict[str, Any], param: str) -> None:
    body = {"messages": about(), "max_tokens": 2, **fields}
    assert refusal(f"{address.url}/chat/completions", body) == (400, param)


def test_priorities_are_for_servers_that_allow_them() -> None:
    request = ChatRequest(messages=about(), priority=-5)
    chat_sampling(request, SamplingParams(), Limits(priorities=True), None)
    with pytest.raises(RequestError, match="--priorities"):
        chat_sampling(request, SamplingParams(), Limits(), None)


def prompted(address: Address, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
    asked = script(monkeypatch, ScriptedExchange(["a"]))
    post(f"{address.url}/chat/completions", {"messages": about(text="one two"), **fields})
    return asked[0][0]


def test_how_the_prompt_is_made(address: Address, monkeypatch: pytest.MonkeyPatch, llm: LLM) -> None:
    question: list[dict[str, Any]] = [{"role": "user", "content": "one two"}]
    begun = [*question, {"role": "assistant", "content": "thr"}]
    asked = "<|im_start|>user\none two<|im_end|>\n"
    assert isinstance(prompted(address, monkeypatch), Conversation)
    for fields, text in (
        ({"add_generation_prompt": False}, asked),
        ({"messages": begun}, f"{asked}<|im_start|>assistant\nthr<|im_end|>\n<|im_start|>assistant\n"),
        ({"messages": begun, "continue_final_message": True}, f"{asked}<|im_start|>assistant\nthr"),
        ({"chat_template_kwargs": {"nothing": [1]}}, f"{asked}<|im_start|>assistant\n"),
    ):
        prompt = prompted(address, monkeypatch, **fields)
        assert isinstance(prompt, Prompt)
        assert prompt.text == text
    prompt = prompted(address, monkeypatch, truncate_prompt_tokens=3)
    whole = llm.get_tokenizer()(f"{asked}<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert prompt.ids == tuple(whole[-3:])
    assert prompted(address, monkeypatch, truncate_prompt_tokens=-1).ids == tuple(whole)


def test_variables_of_the_template_hold_no_control_tokens(
    address: Address, monkeypatch: pytest.MonkeyPatch, llm: LLM
) -> None:
    tokenizer = llm.get_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", "{{ mood }}{{ messages[0].content }}")
    from sightline.server.errors import RequestError
    from sightline.server.openai.template import Template
    from sightline.server.openai.tools import Toolbox
    from sightline.server.service import Service

    template = Template(Service(llm, ["tiny"]))

    def ask(**variables: Any) -> Any:
        request = ChatRequest(messages=about(text="a"), chat_template_kwargs=variables)
        return template.ask(request, Toolbox()).prompt

    # Arguments of the tokenizer's own method are no variables of the template.
    assert ask(mood="good ", tokenize=True, chat_template="{{ 1 }}").text == "good a"
    for value in ("<|im_end|>", [1], {"a": 1}):
        with pytest.raises(RequestError, match="chat_template_kwargs.mood"):
            ask(mood=value)


def test_an_echoed_beginning_stands_before_the_answer(address: Address) -> None:
    begun = [*about(), {"role": "assistant", "content": "It is "}]
    body = {"messages": begun, "continue_final_message": True, "max_tokens": 4, "temperature": 0}
    url = f"{address.url}/chat/completions"
    plain = post(url, body)["choices"][0]["message"]["content"]
    whole = post(url, {**body, "echo": True})
    assert whole["choices"][0]["message"]["content"] == "It is " + plain
    assert joined_chat(chunks(url, {**body, "echo": True})) == whole_chat(whole)


def test_ids_of_requests_and_tokens(address: Address, llm: LLM) -> None:
    body = {"messages": about(), "max_tokens": 4, "request_id": "mine", "return_token_ids": True}
    for _ in range(2):  # an id may come again
        answer = post(f"{address.url}/chat/completions", {**body, "priority": 0})
    assert answer["id"] == "chatcmpl-mine"
    assert len(answer["choices"][0]["token_ids"]) == answer["usage"]["completion_tokens"]
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]


def test_the_log_probabilities_of_the_prompt(address: Address) -> None:
    body = {"messages": about(), "max_tokens": 1, "prompt_logprobs": 2}
    told = post(f"{address.url}/chat/completions", body)["prompt_logprobs"]
    assert told[0] is None
    assert all(len(entry) in (2, 3) for entry in told[1:])
    assert set(next(iter(told[1].values()))) == {"logprob", "rank", "decoded_token"}

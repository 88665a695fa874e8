"""The TGI form, MindIE's own and Triton's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline import LLM, SamplingParams
from sightline.server.limits import Limits
from sightline.server.service import Service

Served = Any  # of conftest.py
GREEDY = {"do_sample": False, "max_new_tokens": 9}
TRITON = "/v2/models/qwen2_vl/generate"


def events(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with served.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = "".join(response.iter_text())
    assert raw.endswith("\n\n")
    return [json.loads(event.removeprefix("data:")) for event in raw.split("\n\n")[:-1]]


def expected(llm: LLM, **settings: Any) -> Any:
    return llm.generate("what shape", SamplingParams(**{"temperature": 0, "max_tokens": 9, **settings}))[0]


def test_tgi_answers_with_the_completion_alone(served: Served, llm: LLM) -> None:
    text = expected(llm).outputs[0].text
    body = {"inputs": "what shape", "parameters": GREEDY}
    assert served.post("/generate", body).json() == {"generated_text": text}
    assert served.post("/", body).json() == [{"generated_text": text}]
    full = {"inputs": "what shape", "parameters": {**GREEDY, "return_full_text": True}}
    assert served.post("/generate", full).json() == {"generated_text": "what shape" + text}
    # 20 tokens where nothing is said.
    short = served.post("/generate", {"inputs": "what shape", "parameters": {"details": True, "stop": None}})
    assert short.json()["details"]["generated_tokens"] == len(
        expected(llm, max_tokens=20).outputs[0].token_ids
    )


def test_tgi_tells_details(served: Served, llm: LLM) -> None:
    output = expected(llm)
    answer = output.outputs[0]
    parameters = {**GREEDY, "details": True, "seed": 7, "decoder_input_details": True}
    details = served.post("/generate", {"inputs": "what shape", "parameters": parameters}).json()["details"]
    assert details == {
        "prompt_tokens": len(output.prompt_token_ids),
        "finish_reason": "length",
        "generated_tokens": 9,
        "seed": 7,
        "prefill": [
            {"id": token, "logprob": None, "special": None, "text": None} for token in output.prompt_token_ids
        ],
        "tokens": [
            {"id": token, "logprob": None, "special": None, "text": None} for token in answer.token_ids
        ],
    }
    stop = {**GREEDY, "details": True, "stop": [answer.text[2]]}
    told = served.post("/generate", {"inputs": "what shape", "parameters": stop}).json()
    assert told["details"]["finish_reason"] == "stop_sequence"
    assert told["generated_text"] == answer.text[: answer.text.index(answer.text[2])]
    assert isinstance(told["details"]["seed"], int)  # drawn, and told
    assert told["details"]["prefill"] == []


@pytest.mark.parametrize("path", ["/generate_stream", "/generate", "/"])
def test_a_tgi_stream_has_an_event_a_token(served: Served, llm: LLM, path: str) -> None:
    answer = expected(llm).outputs[0]
    body = {"inputs": "what shape", "stream": True, "parameters": {**GREEDY, "details": True, "seed": 3}}
    told = events(served, path, body)
    assert [event["token"]["id"] for event in told] == answer.token_ids
    assert "".join(event["token"]["text"] for event in told) == answer.text
    assert all(event["generated_text"] is None and event["details"] is None for event in told[:-1])
    assert all(set(event["token"]) == {"id", "text", "logprob", "special"} for event in told)
    assert told[-1]["generated_text"] == answer.text
    assert told[-1]["details"] == {
        "prompt_tokens": len(expected(llm).prompt_token_ids),
        "finish_reason": "length",
        "generated_tokens": 9,
        "seed": 3,
    }
    del body["parameters"]["details"]  # type: ignore[attr-defined]
    assert events(served, path, body)[-1]["details"] is None


def test_truncate_keeps_the_end_of_a_text(served: Served, llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("the quick brown fox jumps", add_special_tokens=False)
    answer = llm.generate({"prompt_token_ids": ids[-4:]}, SamplingParams(temperature=0, max_tokens=9))[
        0
    ].outputs[0]
    body = {"inputs": "the quick brown fox jumps", "parameters": {**GREEDY, "truncate": 4}}
    assert served.post("/generate", body).json() == {"generated_text": answer.text}
    parts = [{"type": "text", "text": "the quick"}]
    refused = served.post("/generate", {"inputs": parts, "parameters": {"truncate": 4}})
    assert refused.status_code == 422
    assert "truncate" in refused.json()["error"]


def test_all_forms_see_pictures(served: Served, llm: LLM, media: Path) -> None:
    content: list[Any] = [
        {"type": "image", "image": str(media / "red.png")},
        {"type": "text", "text": "what?"},
    ]
    messages = [{"role": "user", "content": content}]
    text = llm.chat(messages, SamplingParams(temperature=0, max_tokens=9))[0].outputs[0].text
    parts = [
        {"type": "image_url", "image_url": str(media / "red.png")},
        {"type": "text", "text": "what?"},
    ]
    for path in ("/generate", "/infer"):
        answer = served.post(path, {"inputs": parts, "parameters": GREEDY}).json()
        assert answer["generated_text"] == text, path
    answer = served.post(TRITON, {"text_input": parts, "parameters": GREEDY}).json()
    assert answer["text_output"] == text


def test_mindies_own_form(served: Served, llm: LLM) -> None:
    output = expected(llm)
    answer = output.outputs[0]
    body: dict[str, Any] = {"inputs": "what shape", "parameters": GREEDY}
    assert served.post("/infer", body).json() == {"generated_text": answer.text}
    body["parameters"] = {**GREEDY, "details": True, "seed": 4, "priority": 1, "timeout": 10}
    told = served.post("/infer", body).json()
    details = {
        "finish_reason": "length",
        "generated_tokens": 9,
        "generated_token_ids": answer.token_ids,
        "seed": 4,
    }
    assert told == {"generated_text": answer.text, "details": details}
    by_ids = {"input_id": output.prompt_token_ids, "parameters": body["parameters"]}
    assert served.post("/infer_token", by_ids).json() == told
    streamed = events(served, "/infer", {**body, "stream": True})
    assert "".join(event["token"]["text"] or "" for event in streamed) == answer.text
    assert [token for event in streamed for token in event["token"]["id"]] == answer.token_ids
    assert streamed[0]["prefill_time"] > 0
    assert streamed[0]["decode_time"] is None
    assert all(event["prefill_time"] is None and event["decode_time"] >= 0 for event in streamed[1:])
    del details["generated_token_ids"]
    assert streamed[-1]["generated_text"] == answer.text
    assert streamed[-1]["details"] == details
    both = served.post("/infer", {"inputs": "a", "input_id": [1]})
    assert (both.status_code, both.json()["error_type"]) == (422, "Input Validation Error")


def test_tritons_form(served: Served, llm: LLM) -> None:
    answer = expected(llm).outputs[0]
    body = {"id": "a-1", "text_input": "what shape", "parameters": {**GREEDY, "details": True}}
    head = {"id": "a-1", "model_name": "qwen2_vl", "model_version": None}
    details = {"generated_tokens": 9, "first_token_cost": None, "decode_cost": None}
    assert served.post(TRITON, body).json() == {
        **head,
        "text_output": answer.text,
        "details": {"finish_reason": "length", **details},
    }
    streamed = events(served, f"{TRITON}_stream", body)
    assert "".join(event["text_output"] for event in streamed) == answer.text
    assert streamed[-1]["details"] == {"finish_reason": "length", **details}
    assert all(event["id"] == "a-1" for event in streamed)
    with served.client.stream("POST", f"{TRITON}_stream", json=body) as response:
        assert next(response.iter_text()).startswith('data:{"id"')
    plain = served.post(TRITON, {"text_input": "what shape", "parameters": {**GREEDY, "top_k": 0}}).json()
    assert "details" not in plain
    assert len(plain["id"]) == 32
    assert served.post("/v2/models/other/generate", body).status_code == 404
    assert served.post(TRITON, {**body, "id": "a b"}).status_code == 422


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e5}, "repetition_penalty"),
        ({"typical_p": 2}, "typical_p"),
        ({"watermark": 1}, "watermark"),
        ({"details": "yes"}, "details"),
        ({"truncate": 0}, "truncate"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"seed": -1}, "seed"),
        ({"adapter_id": 3}, "adapter_id"),
    ],
)
def test_wrong_parameters_are_named(served: Served, change: dict[str, Any], field: str) -> None:
    response = served.post("/generate", {"inputs": "a", "parameters": change})
    assert response.status_code == 422, response.text
    assert response.json()["error"].startswith(f"parameters.{field}")


def test_parameters_that_cannot_be_read(served: Served) -> None:
    for path, prompt in (("/generate", "inputs"), ("/infer", "inputs"), (TRITON, "text_input")):
        for parameters in ([], 3, "a", True):
            response = served.post(path, {prompt: "a", "parameters": parameters})
            assert (response.status_code, response.json()["error"]) == (422, "parameters must be an object")
    streamed = {"inputs": "a", "parameters": {"decoder_input_details": True}}
    assert served.post("/generate_stream", streamed).status_code == 422
    assert served.post("/generate", {"inputs": "a", "parameters": {"adapter_id": "x"}}).status_code == 404
    unnamed = served.post("/generate", {"inputs": "a", "parameters": {"adapter_id": "None", **GREEDY}})
    assert unnamed.status_code == 200


def test_the_tokenizer_answers(served: Served, llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("what shape", add_special_tokens=False)
    told = served.post("/v1/tokenizer", {"inputs": "what shape"}).json()
    assert told["token_number"] == len(ids)
    assert "".join(told["tokens"]) == "what shape"
    silent = served.post("/v1/tokenizer", {"inputs": "what shape", "do_decode": False}).json()
    assert silent == {"token_number": len(ids), "tokens": []}
    for body in ({}, {"inputs": ""}, {"inputs": 3}, {"inputs": None}):
        assert served.post("/v1/tokenizer", body).status_code == 422


@pytest.mark.parametrize("allowed", [True, False])
def test_priorities_run_from_one_to_five_where_they_are_allowed(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """1 is served first; what says nothing stands beside the requests of other dialects."""
    served = serve(limits=Limits(priorities=allowed))
    given: list[int] = []
    submit = Service.submit

    async def note(self: Service, *args: Any, priority: int = 0, **options: Any) -> Any:
        given.append(priority)
        return await submit(self, *args, priority=priority, **options)

    monkeypatch.setattr(Service, "submit", note)
    for path, prompt in (("/infer", "inputs"), (TRITON, "text_input")):
        for parameters in ({"priority": 1}, {"priority": 5}, {}):
            assert served.post(path, {prompt: "a", "parameters": {**GREEDY, **parameters}}).status_code == 200
    assert given == [-4 if allowed else 0, 0, 0] * 2

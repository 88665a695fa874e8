"""POST /generate with a prompt: the vLLM form."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

from sightline import LLM, SamplingParams
from sightline.server.limits import Limits

Served = Any  # of conftest.py


def parts(*addresses: str, text: str = "what shape is it?") -> list[dict[str, Any]]:
    return [*({"type": "image_url", "image_url": one} for one in addresses), {"type": "text", "text": text}]


def pieces(served: Served, body: dict[str, Any]) -> tuple[httpx.Response, list[dict[str, Any]]]:
    with served.client.stream("POST", "/generate", json={**body, "stream": True}) as response:
        raw = b"".join(response.iter_bytes())
    assert raw.endswith(b"\0")
    return response, [json.loads(piece) for piece in raw.decode().split("\0")[:-1]]


def test_an_answer_repeats_the_prompt_and_one_blank(served: Served, llm: LLM) -> None:
    # As it stands: no template.
    expected = llm.generate("is there a", SamplingParams(temperature=0, max_tokens=8))[0]
    answer = served.post("/generate", {"prompt": "is there a", "max_tokens": 8, "temperature": 0})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"text": ["is there a " + expected.outputs[0].text]}


def test_parts_go_through_the_template(served: Served, llm: LLM, media: Path) -> None:
    content = [{"type": "image", "image": str(media / name)} for name in ("red.png", "blue.png")]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what shape is it?"}]}]
    expected = llm.chat(messages, SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text
    red, blue = media / "red.png", media / "blue.png"
    encoded = base64.b64encode(blue.read_bytes()).decode()
    for addresses in (
        (red.as_uri(), blue.as_uri()),
        (f"file://{red}", str(blue)),
        (str(red), f"data:image/png;base64,{encoded}"),
        (red.as_uri(), encoded),
    ):
        body = {"prompt": parts(*addresses), "max_tokens": 8, "do_sample": False, "model": "qwen2_vl"}
        answer = served.post("/generate", body)
        assert answer.json() == {"text": ["what shape is it? " + expected]}, addresses
    body["prompt"] = parts({"url": red.as_uri()}, {"url": blue.as_uri(), "detail": "auto"})  # type: ignore[arg-type]
    assert served.post("/generate", body).json() == answer.json()


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_answer(served: Served, media: Path, n: int) -> None:
    body = {
        "prompt": parts((media / "red.png").as_uri()),
        "max_tokens": 12,
        "temperature": 1.3,
        "seed": 5,
        "n": n,
        "stop": ["e"],
    }
    served.post("/generate", body)  # so that both find the prompt in the cache
    whole = served.post("/generate", body).json()["text"]
    response, told = pieces(served, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(len(piece["text"]) == n for piece in told)
    texts = ["".join(piece["text"][index] for piece in told) for index in range(n)]
    assert ["what shape is it? " + text for text in texts] == whole
    assert n == 1 or len(set(whole)) > 1


@pytest.mark.parametrize("n", [1, 2])
def test_full_text_is_told_each_time(serve: Callable[..., Served], served: Served, n: int) -> None:
    body = {
        "prompt": "is there a",
        "max_tokens": 9,
        "temperature": 1.2,
        "seed": 4,
        "n": n,
        "ignore_eos": True,
    }
    _, added = pieces(served, body)
    _, whole = pieces(serve(full_text=True), body)
    for index in range(n):
        texts = [piece["text"][index] for piece in whole]
        assert texts[-1] == "".join(piece["text"][index] for piece in added) != ""
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_settings_reach_the_answer(served: Served, llm: LLM) -> None:
    settings = {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "seed": 11, "repetition_penalty": 1.3}
    settings |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "max_tokens": 9, "ignore_eos": True}
    expected = llm.generate("what", SamplingParams(**settings))[0].outputs[0]
    told = served.post("/generate", {"prompt": "what", **settings}).json()
    assert told == {"text": ["what " + expected.text]}
    token = expected.token_ids[0]
    stopped = served.post("/generate", {"prompt": "what", **settings, "stop_token_ids": [token]}).json()
    assert stopped == {"text": ["what "]}
    kept = {"stop_token_ids": [token], "include_stop_str_in_output": True}
    text = served.post("/generate", {"prompt": "what", **settings, **kept}).json()["text"][0]
    assert text == "what " + llm.get_tokenizer().decode([token])
    assert served.post("/generate", {"prompt": "what", **settings, "top_k": -1}).status_code == 200


def test_sampling_is_on_where_it_is_asked_for(served: Served, llm: LLM) -> None:
    greedy = llm.generate("what", SamplingParams(temperature=0, max_tokens=9))[0].outputs[0].text
    for body in ({}, {"do_sample": False, "temperature": 2.0}, {"temperature": 0}):
        told = served.post("/generate", {"prompt": "what", "max_tokens": 9, **body}).json()
        assert told == {"text": ["what " + greedy]}, body
    hot = {"prompt": "what", "max_tokens": 9, "temperature": 5.0, "seed": 3}
    assert served.post("/generate", hot).json() != told
    assert served.post("/generate", {**hot, "do_sample": True}).json() == served.post("/generate", hot).json()


def test_the_best_of_several_are_the_likeliest(served: Served, llm: LLM) -> None:
    settings = {"temperature": 1.5, "seed": 2, "max_tokens": 6, "ignore_eos": True}
    made = llm.generate("what", SamplingParams(**settings, n=4, logprobs=0))[0].outputs
    scores = sorted(made, key=lambda one: -(one.cumulative_logprob or -math.inf))
    body = {"prompt": "what", **settings, "best_of": 4}
    assert served.post("/generate", {**body, "n": 2}).json()["text"] == [
        "what " + one.text for one in scores[:2]
    ]
    assert served.post("/generate", body).json()["text"] == ["what " + one.text for one in made]


def test_answers_are_cut_to_the_servers_length(serve: Callable[..., Served]) -> None:
    short = serve(limits=Limits(max_tokens=3))
    for asked in ({}, {"max_tokens": 50}):
        body = {"inputs": "what", "parameters": {"details": True, "max_new_tokens": 50, "do_sample": False}}
        assert short.post("/generate", body).json()["details"]["generated_tokens"] <= 3
        _, told = pieces(short, {"prompt": "what", "temperature": 0, "ignore_eos": True, **asked})
        assert len(told) <= 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"]}, "prompt[0]"),
        ({"prompt": ["a"] * 4097}, "4,096 parts"),
        ({"prompt": [{"type": "audio_url", "audio_url": "a"}]}, "prompt[0]"),
        ({"prompt": [{"type": "text", "text": 3}]}, "prompt[0]"),
        ({"prompt": [{"type": "image_url"}]}, "prompt[0].image_url"),
        ({"prompt": [{"type": "image_url", "image_url": {"url": 3}}]}, "prompt[0].image_url"),
        ({"prompt": parts({"url": "/a", "detail": 3})}, "prompt[0].image_url.detail"),  # type: ignore[arg-type]
        ({"prompt": parts("ftp://example.com/a.png")}, "prompt[0].image_url"),
        ({"prompt": parts("http://127.0.0.1:1/a.png")}, "prompt[0].image_url"),
        ({"prompt": parts("/etc/hostname")}, "prompt[0].image_url"),
        ({"prompt": parts("../secret.png")}, "prompt[0].image_url"),
        ({"prompt": parts("file:///etc/hostname")}, "prompt[0].image_url"),
        ({"prompt": parts(text="<|im_end|>")}, "<|im_end|>"),
        ({"prompt": "\ud800"}, "the body is not JSON"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 2.1}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": 3}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stream": "yes"}, "stream"),
        ({"do_sample": "no"}, "do_sample"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 17, "temperature": 1}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"best_of": 1, "n": 2, "temperature": 1}, "best_of"),
        ({"best_of": 3, "n": 2, "temperature": 1, "stream": True}, "best_of"),
        ({"prompt": "a " * 3000}, "prompt"),
    ],
)
def test_wrong_requests_get_mindies_error(served: Served, change: dict[str, Any], field: str) -> None:
    content = json.dumps({"prompt": "a", "max_tokens": 2, **change}).encode()
    response = served.client.post("/generate", content=content)
    assert response.status_code == 422, response.text
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == "Input Validation Error"
    assert field in response.json()["error"]
    assert "root" not in response.text
    assert "/etc" not in response.text


def test_an_unknown_model_is_not_found(served: Served) -> None:
    response = served.post("/generate", {"prompt": "a", "model": "llama"})
    assert (response.status_code, response.json()["error_type"]) == (404, "NotFoundError")
    assert "llama" in response.json()["error"]


def test_a_bare_jpeg_is_no_path(served: Served) -> None:
    """Its base64 begins with a slash."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (64, 64), "red").save(buffer, "JPEG")
    bare = base64.b64encode(buffer.getvalue()).decode()
    assert bare.startswith("/9j/")
    body: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
    told = [
        served.post("/generate", {"prompt": parts(url), **body}).json()
        for url in (bare, "\n".join([bare[:70], bare[70:]]), f"data:image/jpeg;base64,{bare}")
    ]
    assert told[0] == told[1] == told[2]
    assert told[0]["text"][0].startswith("what shape is it? ")


def test_a_file_beside_the_allowed_ones_stays_closed(served: Served, media: Path) -> None:
    secret = media.parent / "secret.png"
    for address in (str(secret), secret.as_uri(), f"{media}/../secret.png"):
        response = served.post("/generate", {"prompt": parts(address)})
        assert response.status_code == 422
        assert "secret" not in response.text


def test_bodies_that_are_not_objects(served: Served) -> None:
    bodies = (b"", b"{", b"[]", b'"x"', b"\xff", b"null", b'{"prompt": ' + b"[" * 5000, b'{"prompt": NaN}')
    for path in (
        "/generate",
        "/generate_stream",
        "/",
        "/infer",
        "/v2/models/qwen2_vl/generate",
        "/v1/tokenizer",
    ):
        for body in bodies:
            response = served.client.post(path, content=body)
            assert response.status_code == 422, (path, body)
            assert response.json()["error_type"] == "Input Validation Error"


def test_a_client_that_leaves_ends_its_request(served: Served, llm: LLM) -> None:
    before = llm.engine.stats().totals.finished.get("abort", 0)
    body = {"prompt": "what", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with served.client.stream("POST", "/generate", json=body) as response:
        next(response.iter_bytes())
    while llm.engine.stats().running:
        time.sleep(0.01)
    assert llm.engine.stats().totals.finished["abort"] == before + 1
    assert llm.engine.stats().blocks_used == 0

"""Whatever a client sends, it gets an answer or an error in OpenAI's form, never a fault of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from asking import about, wait_until_idle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sightline import LLM
from sightline.server.errors import RequestError
from sightline.server.openai.fields import ChatRequest, CompletionRequest
from sightline.server.openai.reading import read_request
from sightline.server.openai.unsupported import IGNORED, REFUSED
from sightline.server.run import Address

ENDPOINTS = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def http(address: Address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address.root, timeout=60) as client:
        yield client


def check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [*ENDPOINTS, "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":1', b"{}" * 2),
        b'{"messages": ' + b"[" * 100_000,
        b'{"prompt": ' + b'{"a":' * 100_000,
        b'{"prompt": "\\ud800", "tokens": [1], "messages": [{"role": "user", "content": "\\udfff"}]}',
        b'{"prompt": "a", "tokens": [1], "messages": [], "temperature": NaN}',
        b'{"prompt": "a", "tokens": [1], "messages": [], "x": [Infinity]}',
        b'{"prompt": "a", "tokens": [1], "messages": [], "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=range(15),
)
def test_what_is_not_json_or_no_request_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(path, content=body)
    if b"NaN" in body or b"Infinity" in body:
        assert response.status_code == 400
    check(response)


@pytest.mark.parametrize(
    ("path", "field", "values"),
    [
        ("/v1/completions", "prompt", b"[" + b"null," * 200_000 + b"1]"),
        ("/v1/completions", "prompt[0]", b"[[" + b"null," * 200_000 + b"1]]"),
        ("/v1/completions", "stop", b"[" + b"1," * 200_000 + b"1]"),
        ("/v1/chat/completions", "messages", b"[" + b"1," * 200_000 + b"1]"),
    ],
)
def test_of_many_faults_only_the_first_is_looked_at(path: str, field: str, values: bytes) -> None:
    body = b'{"%s": %s}' % (field.partition("[")[0].encode(), values)
    if field == "stop":
        body = body[:-1] + b', "prompt": "a"}'
    with pytest.raises(RequestError) as refused:
        read_request(body, ENDPOINTS[path])
    assert refused.value.body["error"]["param"] == f"{field}[0]"
    cause = refused.value.__cause__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() < 10


@pytest.mark.parametrize("path", [*ENDPOINTS, "/tokenize", "/generate", "/infer"])
@pytest.mark.parametrize("values", [b"1,", b"[],", b'{"a":{}},', b"[[[[1]]]],"])
def test_bodies_of_too_many_values_are_refused_before_they_are_read(
    http: httpx.Client, path: str, values: bytes
) -> None:
    response = http.post(path, content=b'{"x": [' + values * 2**19 + b"1]}")
    assert response.status_code == 413
    assert "values" in response.text


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_the_content_type_does_not_matter(http: httpx.Client, kind: str | None) -> None:
    body = json.dumps({"messages": about(), "max_tokens": 1}).encode()
    headers = {} if kind is None else {"content-type": kind}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


def test_of_a_name_that_comes_twice_the_last_value_counts(http: httpx.Client) -> None:
    body = b'{"prompt": "a", "max_tokens": 9, "max_tokens": 2, "ignore_eos": true}'
    assert http.post("/v1/completions", content=body).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 1e308, "é" * 5000, [[]], {"": None}],
    ids=["huge", "low", "float", "text", "list", "object"],
)
@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest], ids=["chat", "completions"])
def test_no_field_takes_everything(http: httpx.Client, kind: Any, value: Any) -> None:
    path, body = next((path, one) for path, one in _bodies() if ENDPOINTS[path] is kind)
    for name in kind.model_fields:
        check(http.post(path, json={**body, "max_tokens": 1, name: value}))


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    return [("/v1/chat/completions", {"messages": about(text="a")}), ("/v1/completions", {"prompt": "a"})]


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["none", "auto", "required", "user", "text", "json_object", "data:,", "function"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "function", "name", "url", "text", "json", "0"]), inner, max_size=3
        ),
    ),
    max_leaves=5,
)
_NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *IGNORED, *REFUSED} - {"n"})


@pytest.mark.parametrize("path", ENDPOINTS)
@QUICK
@given(fields=st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=3))
def test_random_fields_never_hurt(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    base = dict(_bodies())[path]
    check(http.post(path, json={**base, "ignore_eos": False, **fields, "max_tokens": 2}))


@QUICK
@given(messages=st.lists(st.fixed_dictionaries({}, optional={
    "role": st.sampled_from(["user", "assistant", "tool", "system", "developer", 3]),
    "content": st.one_of(_SCALARS, st.lists(st.one_of(_SCALARS, st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["text", "image_url", "video", "refusal", None]),
        "text": _SCALARS, "image_url": _VALUES, "video": _VALUES, "max_pixels": _SCALARS, "fps": _SCALARS,
    })), max_size=3)),
    "tool_calls": _VALUES,
    "name": _SCALARS,
}), min_size=1, max_size=4))  # fmt: skip
def test_random_messages_never_hurt(http: httpx.Client, messages: list[Any]) -> None:
    check(http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}))


def test_the_document_describes_what_the_server_does(address: Address, llm: LLM) -> None:
    """schemathesis asks what the OpenAPI document says may be asked, and holds answers against it."""
    document = httpx.get(f"{address.root}/openapi.json").json()
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/tokenize", "/detokenize",
             "/version", "/load")  # fmt: skip
    assert set(paths) <= set(document["paths"])
    document["paths"] = {path: document["paths"][path] for path in paths}
    for path in ("/v1/chat/completions", "/v1/completions"):
        # Answers of a few tokens, and whole ones: a stream is no JSON.
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema["properties"]["max_tokens"] = {"enum": [1, 2, 3]}
        for name in (
            "stream",
            "n",
            "max_completion_tokens",
            "truncate_prompt_tokens",
            "best_of",
            "tools",
            "tool_choice",
        ):
            schema["properties"].pop(name, None)
        schema["properties"]["model"] = {"const": "tiny"}
        schema["required"] = [*schema["required"], "max_tokens"]
    loaded = schemathesis.openapi.from_dict(document)
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    statuses: list[int] = []
    for operation in loaded.get_all_operations():
        case_of = operation.ok().as_strategy()

        @settings(QUICK, max_examples=12)
        @given(case=case_of)
        def ask(case: Any) -> None:
            response = case.call(base_url=address.root, timeout=60)
            case.validate_response(response, checks=checks)
            statuses.append(response.status_code)

        ask()
    assert statuses.count(200) >= 8
    wait_until_idle(llm)

"""Whatever the body, a client is told what is wrong with it: never that the server failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sightline.server.mindie.fields import INFER, TGI, TRITON, VLLM, Field

_NUMBERS = st.integers(-3, 3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_PARTS = st.lists(
    st.dictionaries(st.sampled_from(["type", "text", "image_url", "video_url", "url"]), _VALUES, max_size=3)
    | st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=9)})
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["image_url", "video_url"]),
            "image_url": st.sampled_from(["/9j/", "data:image/png;base64,AAAA", "/x", "A" * 80, "file:", ""]),
        }
    ),
    max_size=3,
)


def _bodies(prompt: str, table: tuple[Field, ...], *, inside: bool) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from([field.name for field in table]), _VALUES, max_size=4)
    asked = st.just("what") | _PARTS | _VALUES
    if not inside:
        return st.builds(lambda value, rest: {**rest, prompt: value}, asked, fields)
    return st.builds(
        lambda value, rest, stream: {prompt: value, "parameters": rest, "stream": stream},
        asked,
        fields | _VALUES,
        st.booleans() | _VALUES,
    )


_FORMS = {
    "/generate": _bodies("prompt", VLLM, inside=False) | _bodies("inputs", TGI, inside=True),
    "/generate_stream": _bodies("inputs", TGI, inside=True),
    "/": _bodies("inputs", TGI, inside=True),
    "/infer": _bodies("inputs", INFER, inside=True) | _bodies("input_id", INFER, inside=True),
    "/v2/models/qwen2_vl/generate": _bodies("text_input", TRITON, inside=True),
    "/v2/models/qwen2_vl/generate_stream": _bodies("text_input", TRITON, inside=True),
    "/v1/tokenizer": st.dictionaries(st.sampled_from(["inputs", "do_decode"]), _VALUES),
}


@pytest.mark.parametrize("path", list(_FORMS))
def test_any_body_gets_an_answer_or_a_reason(served: Any, path: str) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(body=_FORMS[path] | _VALUES)
    def check(body: Any) -> None:
        if isinstance(body, dict) and isinstance(body.get("parameters"), dict):
            body["parameters"].setdefault("max_new_tokens", 2)
        elif isinstance(body, dict):
            body.setdefault("max_tokens", 2)
        response = served.post(path, body)
        assert response.status_code in (200, 404, 422), (body, response.text)
        if response.status_code != 200:
            assert response.json().keys() == {"error", "error_type"}
            assert len(response.json()["error"]) > 8

    check()
    stats = served.service.llm.engine.stats()
    assert stats.totals.finished.get("error", 0) == 0


def test_the_document_describes_what_the_routes_do(served: Any) -> None:
    """schemathesis asks what the OpenAPI document says may be asked, and holds answers against it."""
    document = served.client.get("/openapi.json").json()
    del document["paths"]["/stopService"]
    for path, methods in document["paths"].items():
        for method in methods.values():
            for parameter in method.get("parameters", []):
                parameter["schema"] = {"enum": ["qwen2_vl", "other"]}
            _shorten(method.get("requestBody", {}))
        assert "$ref" not in json.dumps(methods), path
    loaded = schemathesis.openapi.from_dict(document)
    checks = [
        *(not_a_server_error, status_code_conformance),
        *(content_type_conformance, response_schema_conformance),
    ]
    statuses: list[int] = []
    for operation in loaded.get_all_operations():

        @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def ask(case: Any) -> None:
            response = case.call(base_url=str(served.client.base_url), timeout=60)
            case.validate_response(response, checks=checks)
            statuses.append(response.status_code)

        ask()
    assert statuses.count(200) >= 15
    assert len(statuses) > 90


def _shorten(body: dict[str, Any]) -> None:
    """Let no answer be longer than a few tokens."""
    for content in body.get("content", {}).values():
        schema = content["schema"]
        for form in schema.get("anyOf", [schema]):
            properties = form["properties"]
            for name, place in (("max_tokens", properties), ("max_new_tokens", properties.get("parameters"))):
                inner = place.get("properties", place) if place else {}
                if name in inner:
                    inner[name] = {"enum": [1, 2]}
                    owner = form if place is properties else properties["parameters"]
                    owner["required"] = [*owner.get("required", []), name]
            if "parameters" in properties:
                form["required"] = [*form["required"], "parameters"]

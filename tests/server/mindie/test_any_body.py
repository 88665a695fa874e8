"""Whatever the body, a client is told what is wrong with it: never that the server failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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

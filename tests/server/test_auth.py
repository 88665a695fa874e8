"""Who is let in with which key."""

from __future__ import annotations

import hashlib
import hmac

import httpx
import openai
import pytest

from sightline import LLM
from sightline.server import auth
from sightline.server.run import Address, serve_in_background

BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def address(served_llm: LLM) -> Address:
    settings = {"api_key": ["first", "zweiter-schlüssel"], "cors_origin": ["https://friend.example"]}
    with serve_in_background(served_llm, served_model_name="tiny", settings=settings) as address:
        yield address


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer first"}, 200),
        ({"authorization": "bearer   first"}, 200),
        ({"authorization": "Bearer zweiter-schlüssel".encode()}, 200),
        ({"x-api-key": "first"}, 200),
        ({"authorization": "Bearer firs"}, 401),
        ({"authorization": "Bearer firstx"}, 401),
        ({"authorization": "Basic first"}, 401),
        ({"authorization": "first"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"x-api-key": ""}, 401),
    ],
)
def test_a_request_needs_one_of_the_keys(address: Address, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{address.url}/chat/completions", json=BODY, headers=headers, timeout=60)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "first" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        ("GET", "/health", True),
        ("HEAD", "/health", True),
        ("GET", "/v2/health/live", True),
        ("GET", "/v2/health/ready", True),
        ("GET", "/health/timed-3", True),
        ("GET", "/metrics", True),
        ("GET", "/version", True),
        ("GET", "/", True),
        ("HEAD", "/", True),
        ("GET", "/page/main.js", True),
        ("POST", "/", False),
        ("POST", "/health", False),
        ("GET", "/v1/models", False),
        ("GET", "/stopService", False),
        ("GET", "/v1/config", False),
        ("GET", "/openapi.json", False),
        ("POST", "/generate", False),
        ("POST", "/v1/load_lora_adapter", False),
        ("GET", "/healthy", False),
        ("GET", "/pages", False),
        ("DELETE", "/v1/models", False),
    ],
)
def test_what_is_open_without_a_key(address: Address, method: str, path: str, is_open: bool) -> None:
    answer = httpx.request(method, address.root + path, timeout=60)
    assert (answer.status_code == 401) is not is_open, answer.status_code


def test_the_sdk_tells_a_wrong_key(address: Address) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address.url, api_key="no", max_retries=0).models.list()
    assert openai.OpenAI(base_url=address.url, api_key="first").models.list().data[0].id == "tiny"


def test_every_key_is_compared_whatever_the_first_says(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    plain = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return plain(given, known)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    digests = [hashlib.sha256(key).digest() for key in (b"a", b"bbbb", b"c")]
    guard = auth.Auth(None, digests)  # type: ignore[arg-type]
    assert guard._knows({"headers": [(b"authorization", b"Bearer a")]})
    assert compared == digests
    assert len({len(digest) for digest in digests}) == 1


def test_a_browsers_question_is_answered_before_keys_are_asked_for(address: Address) -> None:
    asked = {
        "origin": "https://friend.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = httpx.options(f"{address.url}/chat/completions", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    evil = httpx.options(
        f"{address.url}/chat/completions", headers={**asked, "origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in evil.headers
    # The page must be able to read that it lacks a key, and the id of its request.
    refused = httpx.post(
        f"{address.url}/chat/completions", json=BODY, headers={"origin": "https://friend.example"}
    )
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://friend.example"
    key = {"authorization": "Bearer first"}
    for origin, status in (("https://friend.example", 200), ("https://evil.example", 403)):
        answer = httpx.post(f"{address.url}/chat/completions", json=BODY, headers={**key, "origin": origin})
        assert answer.status_code == status
        assert ("access-control-allow-origin" in answer.headers) is (status == 200)


def test_without_an_allowed_site_no_header_lets_pages_read(served_llm: LLM) -> None:
    with serve_in_background(served_llm) as address:
        asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
        answer = httpx.options(f"{address.url}/chat/completions", headers=asked)
        assert answer.status_code in (403, 405)
        assert not [name for name in answer.headers if name.startswith("access-control")]

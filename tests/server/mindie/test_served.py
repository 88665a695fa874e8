"""MindIE's dialect as `sightline serve` has it: with its config.json, on its three ports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from free_ports import free_ports

from sightline import LLM, SamplingParams
from sightline.server.limits import Limits
from sightline.server.run import serve_in_background

CONFIG = """{
    // as it stands in a deployment guide
    "ServerConfig": {
        "ipAddress": "127.0.0.1", "port": %d, "managementPort": %d, "metricsPort": %d,
        "maxLinkNum": 200, "httpsEnabled": false, "timeoutInSeconds": 300
    },
    "BackendConfig": {
        "npuDeviceIds": [[0]],
        "ModelDeployConfig": {
            "maxSeqLen": 1024, "maxInputTokenLen": 512, "truncation": false,
            "ModelConfig": [{
                "modelName": "qwen2_vl",
                "modelWeightPath": %s,   // the checkpoint's folder
                "worldSize": 1, "npuMemSize": 1, "maxBatchSize": 4
            }]
        },
        "ScheduleConfig": {"maxPrefillTokens": 1024, "maxIterTimes": 40, "maxBatchSize": 4, "maxWaitingTimeInMs": 100}
    },
    "LogConfig": {"logLevel": "error"}
}"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, media: Path) -> Iterator[list[int]]:
    """A server of its own process; its business, management and metrics ports."""
    folder = tmp_path_factory.mktemp("mindie")
    found = free_ports(3)
    config = folder / "config.json"
    config.write_text(CONFIG % (*found, json.dumps(str(tiny_folder))), encoding="utf-8")
    options = ("--config", str(config), "--allowed-local-media-path", str(media), "--device", "cpu")
    server = subprocess.Popen(
        (sys.executable, "-m", "sightline.cli.app", "serve", *options, "--dtype", "fp32", "--mindie-metrics"),
        stdout=(folder / "out").open("wb"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{found[1]}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert server.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < until, (folder / "out").read_text()
            time.sleep(0.1)
        yield found
        # MindIE's own way to end it.
        assert httpx.get(f"http://127.0.0.1:{found[1]}/stopService").status_code == 200
        assert server.wait(30) == 0, (folder / "out").read_text()
    finally:
        server.kill()
        server.wait()


def curl(url: str, body: dict[str, Any] | None = None) -> bytes:
    """What the command line of a deployment guide prints."""
    program = shutil.which("curl")
    if program is None:
        return httpx.get(url).content if body is None else httpx.post(url, json=body, timeout=60).content
    command = [program, "-sSN", "--fail-with-body", url]
    if body is not None:
        command += ["-X", "POST", "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.mark.parametrize("stream", [False, True])
def test_the_three_commands_of_a_deployment_guide(
    ports: list[int], llm: LLM, media: Path, stream: bool
) -> None:
    picture = f"file://{media}/red.png"
    settings = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 0.7, "top_p": 0.95, "top_k": 20}
    settings |= {"max_tokens": 30, "stream": stream, "model": "qwen2_vl"}
    content: list[Any] = [
        {"type": "image", "image": str(media / "red.png")},
        {"type": "text", "text": "what shape is in the image?"},
    ]
    greedy = SamplingParams(temperature=0, max_tokens=30)
    expected = llm.chat([{"role": "user", "content": content}], greedy)[0].outputs[0].text
    assert curl(f"http://127.0.0.1:{ports[1]}/health") is not None
    prompt = [
        {"type": "image_url", "image_url": picture},
        {"type": "text", "text": "what shape is in the image?"},
    ]
    told = curl(f"http://127.0.0.1:{ports[0]}/generate", {"prompt": prompt, **settings})
    if stream:
        pieces = [json.loads(piece) for piece in told.decode().split("\0")[:-1]]
        assert "".join(piece["text"][0] for piece in pieces) == expected
    else:
        assert json.loads(told) == {"text": ["what shape is in the image? " + expected]}
    chat = {"messages": [{"role": "user", "content": prompt}], **settings}
    told = curl(f"http://127.0.0.1:{ports[0]}/v1/chat/completions", chat)
    if stream:
        lines = [line.removeprefix("data: ") for line in told.decode().split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        text = "".join(
            choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
        )
        assert text == expected
    else:
        assert json.loads(told)["choices"][0]["message"]["content"] == expected


def test_each_port_has_its_own_routes(ports: list[int], llm: LLM) -> None:
    business, management, metrics = (f"http://127.0.0.1:{port}" for port in ports)
    config = httpx.get(f"{management}/v1/config").json()
    assert (config["modelName"], config["maxSeqLen"], config["maxOutputLen"]) == ("qwen2_vl", 1024, 40)
    assert (config["maxInputTokenLen"], config["maxBatchSize"]) == (512, 4)
    text = httpx.get(f"{metrics}/metrics").text
    assert 'vllm:num_requests_running{engine="0",model_name="qwen2_vl"}' in text
    assert 'request_received_total{model_name="qwen2_vl"}' in text
    for url in (f"{business}/v1/config", f"{business}/stopService", f"{business}/metrics", f"{metrics}/info"):
        assert httpx.get(url).status_code == 404, url
    assert httpx.post(f"{management}/generate", json={"prompt": "a"}).status_code == 404
    # maxIterTimes cuts what asks for more.
    body = {"prompt": "what", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
    expected = llm.generate("what", SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))[0].outputs[
        0
    ]
    assert httpx.post(f"{business}/generate", json=body).json() == {"text": ["what " + expected.text]}


def test_errors_that_no_route_tells_have_mindies_form_too(llm: LLM) -> None:
    settings = {"api_key": ["secret"]}
    key = {"Authorization": "Bearer secret"}
    with (
        serve_in_background(llm, settings=settings, limits=Limits(max_body=2000)) as address,
        httpx.Client(base_url=address.root) as client,
    ):
        for method, path, status, headers in (
            ("GET", "/generate", 405, key),
            ("DELETE", "/v2/models/a", 405, key),
            ("GET", "/v2/nothing", 404, key),
            ("POST", "/generate", 401, {}),
            ("POST", "/infer", 403, {**key, "Origin": "https://example.com"}),
        ):
            response = client.request(method, path, headers=headers)
            assert response.status_code == status, path
            assert response.json().keys() == {"error", "error_type"}, path
        # On one port, management is for clients of this machine and no foreign page, GETs included.
        for path, extra in (
            ("/info", {"X-Forwarded-For": "1.2.3.4"}),
            ("/stopService", {"X-Forwarded-For": "1.2.3.4"}),
            ("/stopService", {"Sec-Fetch-Site": "cross-site"}),
            ("/stopService", {"Sec-Fetch-Site": "same-site"}),
        ):
            response = client.get(path, headers={**key, **extra})
            assert response.status_code == 403, path
            assert response.json().keys() == {"error", "error_type"}, path
        assert client.get("/info", headers=key).status_code == 200
        long = client.post("/generate", json={"prompt": "a" * 3000}, headers=key)
        assert (long.status_code, long.json()["error_type"]) == (413, "Input Validation Error")
        # OpenAI's clients are told in OpenAI's words.
        assert client.get("/v1/chat/completions", headers=key).json()["error"]["type"]
        assert client.post("/v1/completions").json()["error"]["code"] == "invalid_api_key"

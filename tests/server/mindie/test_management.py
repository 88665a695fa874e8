"""What the management routes tell, and what they do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline import LLM
from sightline.engine.stream import Stream
from sightline.server.limits import Limits

Served = Any  # of conftest.py


def test_the_effective_numbers(serve: Callable[..., Served], llm: LLM) -> None:
    served = serve(limits=Limits(max_tokens=77, max_prompt_tokens=500))
    stats = llm.engine.stats()
    config = served.client.get("/v1/config").json()
    assert config == {
        "modelName": "qwen2_vl",
        "maxSeqLen": llm.max_model_len,
        "npuMemSize": round(llm.settings.kv_cache_memory_bytes / 2**30, 3),
        "cpuMemSize": 0,
        "worldSize": 1,
        "maxOutputLen": 77,
        "cacheBlockSize": llm.settings.block_size,
        "maxInputTokenLen": 500,
        "maxBatchSize": llm.max_num_seqs,
        "maxPrefillTokens": llm.settings.max_num_batched_tokens,
    }
    assert config["npuMemSize"] > 0
    info = served.client.get("/info").json()
    assert info["models"][0]["model_id"] == "qwen2_vl"
    assert info["models"][0]["model_dtype"] == "float32"
    assert info["models"][0]["max_total_tokens"] == llm.max_model_len
    assert (info["max_input_length"], info["max_concurrent_requests"]) == (500, llm.max_num_seqs)
    assert info["sha"] is None
    assert served.client.get("/v2").json()["extensions"]["max_iter_times"] == 77
    model = served.client.get("/v2/models/qwen2_vl/config").json()
    assert (model["max_seq_len"], model["model_weight_path"]) == (llm.max_model_len, llm.model.folder.name)
    assert served.client.get("/v2/models/qwen2_vl").json()["name"] == "qwen2_vl"
    slots = served.client.get("/v2/models/qwen2_vl/getSlotCount").json()
    assert slots["available_tokens_length"] == stats.blocks_total * (llm.settings.block_size or 0)
    for path in ("/v2/models/other", "/v2/models/other/config", "/v2/models/other/ready"):
        refused = served.client.get(path)
        assert (refused.status_code, refused.json()["error_type"]) == (404, "NotFoundError")


def test_the_status_follows_the_requests(served: Served, llm: LLM) -> None:
    idle = served.client.get("/v1/status").json()
    assert idle["service"] == {"roleStatus": "RoleReady", "currentRole": "none"}
    assert idle["linkStatus"] == {"peers": []}
    resource = idle["resource"]
    assert (resource["runningRequestNum"], resource["availSlotsNum"]) == (0, llm.max_num_seqs)
    assert resource["freeNpuBlockNums"] == resource["totalNpuBlockNums"] == resource["availBlockNum"] > 0
    seen: dict[str, Any] = {}
    # The engine calls it between two steps, so that the answer is surely under way.
    first = threading.Event()

    def note(stream: Stream, delta: Any, wakeups: Any, push: Any = Stream.push) -> None:
        push(stream, delta, wakeups)
        first.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "push", note)
        stream = llm.stream("what shape is it?")
        assert first.wait(30)
        seen = served.client.get("/v2/status").json()["resource"]
        stream.abort()
        stream.result(30)
    assert seen["runningRequestNum"] <= 1
    assert seen["totalAvailNpuBlockNum"] == seen["maxAvailNpuBlockNum"] == seen["dpInstMap"][0][1]
    metrics = served.client.get("/metrics-json").json()
    values = {entry["metric"][0]["__name__"]: entry["value"] for entry in metrics["result"]}
    assert set(values) == {
        *("TTFT", "TBT", "waitingInferRequestNum", "processingInferRequestNum", "remainBlocks")
    }
    assert float(values["TTFT"]) > 0
    assert served.client.get("/v2/models/qwen2_vl/ready").status_code == 200


def test_stopping_is_told_once(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.client.get("/stopService").status_code == 200
    again = served.client.get("/stopService")
    assert (again.status_code, again.json()["error_type"]) == (500, "Incomplete Generation")
    assert served.client.get("/stopService?mode=Force").status_code == 200
    assert served.stopped == [False, True]


def test_an_adapter_is_loaded_asked_and_unloaded(served: Served, llm: LLM, tiny_folder: Path) -> None:
    from adapter_folders import adapter_of

    folder = adapter_of(tiny_folder, "words")
    body: dict[str, Any] = {"prompt": "what shape", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    base = served.post("/generate", body).json()
    assert served.post("/generate", {**body, "model": "words"}).status_code == 404
    load = {"lora_name": "words", "lora_path": str(folder), "master_model": "qwen2_vl"}
    loaded = served.post("/v1/load_lora_adapter", load)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'words' added successfully.")
    adapted = served.post("/generate", {**body, "model": "words"}).json()
    assert adapted != base
    tgi = {"inputs": "what shape", "parameters": {"adapter_id": "words", "do_sample": False}}
    by_tgi = served.post(
        "/generate", {**tgi, "parameters": {**tgi["parameters"], "max_new_tokens": 12}}
    ).json()
    assert adapted["text"][0].startswith("what shape " + by_tgi["generated_text"])
    assert served.post("/generate", body).json() == base
    assert served.post("/v1/load_lora_adapter", load).status_code == 400
    unloaded = served.post("/v1/unload_lora_adapter", {"lora_name": "words"})
    assert unloaded.text == "Success: LoRA adapter 'words' removed successfully."
    assert served.post("/generate", {**body, "model": "words"}).status_code == 404


def test_wrong_adapters_are_named(served: Served, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "lora_name"),
        ({"lora_name": ""}, "lora_name"),
        ({"lora_name": 3}, "lora_name"),
        ({"lora_name": "a", "lora_path": ""}, "lora_path"),
        ({"lora_name": "a", "lora_path": "/a\0b"}, "lora_path"),
        ({"lora_name": "a b", "lora_path": str(tmp_path)}, "lora_path"),
        ({"lora_name": "qwen2_vl", "lora_path": str(tmp_path)}, "lora_name"),
        ({"lora_name": "a", "lora_path": str(tmp_path / "nothing")}, "lora_path"),
    ]
    for body, field in wrong:
        response = served.post("/v1/load_lora_adapter", body)
        assert response.status_code == 400, body
        # vLLM has this route too, so its errors are OpenAI's.
        assert response.json()["error"]["param"] == field, body
    missing = served.post("/v1/unload_lora_adapter", {"lora_name": "none"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert served.client.post("/v1/load_lora_adapter", content=b"[").status_code == 400

"""What a server tells about itself in MindIE's words: the effective numbers, whatever was configured."""

from __future__ import annotations

from typing import Any

import sightline
from sightline.engine.llm import LLM
from sightline.server.service import Service

_GIB = 2**30


def cache_gib(llm: LLM) -> float:
    """Size of the KV cache, which was measured or given; MindIE's npuMemSize."""
    size = llm.settings.kv_cache_memory_bytes
    return round(int(size or 0) / _GIB, 3)


def most_tokens(service: Service) -> int:
    """Longest answer; MindIE's maxIterTimes."""
    return service.limits.max_iter_times or service.limits.max_tokens or service.llm.max_model_len


def most_prompt_tokens(service: Service) -> int:
    """Longest prompt; MindIE's maxInputTokenLen."""
    return min(service.limits.max_prompt_tokens or service.llm.max_model_len, service.llm.max_model_len - 1)


def server_metadata(service: Service) -> dict[str, Any]:
    """GET /v2."""
    llm = service.llm
    return {
        "name": "Sightline",
        "version": sightline.__version__,
        "extensions": {
            "max_iter_times": most_tokens(service),
            "prefill_policy_type": 0,
            "decode_policy_type": 0,
            "max_prefill_batch_size": llm.max_num_seqs,
            "max_prefill_tokens": llm.settings.max_num_batched_tokens,
        },
    }


def model_metadata(service: Service, model: str) -> dict[str, Any]:
    """GET /v2/models/{model}; raises RequestError where nothing is called so."""
    ids = {"shape": [-1], "datatype": "UINT32"}
    return {
        "name": service.names.find(model).name,
        "platform": "Sightline",
        "inputs": [{"name": "input0", **ids}],
        "outputs": [{"name": "output0", **ids}],
    }


def model_config(service: Service, model: str) -> dict[str, Any]:
    """GET /v2/models/{model}/config; raises RequestError where nothing is called so."""
    llm = service.llm
    return {
        "model_name": service.names.find(model).name,
        "input_datatype": "INT64",
        "output_datatype": "INT64",
        "max_seq_len": llm.max_model_len,
        "npu_mem_size": cache_gib(llm),
        "cpu_mem_size": 0,
        "world_size": llm.settings.tensor_parallel_size,
        "model_weight_path": llm.model.folder.name,
        "model_instance_type": "Standard",
    }


def tgi_info(service: Service) -> dict[str, Any]:
    """GET /info."""
    llm = service.llm
    unknown = (
        *("docker_label", "max_stop_sequences", "max_waiting_tokens", "sha"),
        *("validation_workers", "waiting_served_ratio"),
    )
    return {
        **dict.fromkeys(unknown),
        "max_batch_total_tokens": llm.settings.max_num_batched_tokens,
        "max_best_of": service.limits.max_n,
        "max_concurrent_requests": llm.max_num_seqs,
        "max_stop_sequences": service.limits.max_stops,
        "version": sightline.__version__,
        "models": [
            {
                "model_device_type": llm.model.accelerator.kind,
                "model_dtype": str(llm.model.dtype).removeprefix("torch."),
                "model_id": service.names.model,
                "model_pipeline_tag": "image-text-to-text",
                "model_sha": None,
                "max_total_tokens": llm.max_model_len,
            }
        ],
        "max_input_length": most_prompt_tokens(service),
    }


def config(service: Service) -> dict[str, Any]:
    """GET /v1/config. The numbers that MindIE's own has not come last."""
    llm = service.llm
    return {
        "modelName": service.names.model,
        "maxSeqLen": llm.max_model_len,
        "npuMemSize": cache_gib(llm),
        "cpuMemSize": 0,
        "worldSize": llm.settings.tensor_parallel_size,
        "maxOutputLen": most_tokens(service),
        "cacheBlockSize": llm.settings.block_size,
        "maxInputTokenLen": most_prompt_tokens(service),
        "maxBatchSize": llm.max_num_seqs,
        "maxPrefillTokens": llm.settings.max_num_batched_tokens,
    }


def status(service: Service) -> dict[str, Any]:
    """GET /v1/status."""
    stats = service.llm.engine.stats()
    free = stats.blocks_total - stats.blocks_used
    return {
        "service": {"roleStatus": "RoleReady", "currentRole": "none"},
        "resource": {
            "availSlotsNum": max(0, service.llm.max_num_seqs - stats.running - stats.waiting),
            "availBlockNum": free,
            "waitingRequestNum": stats.waiting + stats.preparing,
            "runningRequestNum": stats.running,
            "swappedRequestNum": 0,
            "freeNpuBlockNums": free,
            "freeCpuBlockNums": 0,
            "totalNpuBlockNums": stats.blocks_total,
            "totalCpuBlockNums": 0,
        },
        "linkStatus": {"peers": []},
    }


def status_v2(service: Service) -> dict[str, Any]:
    """GET /v2/status."""
    told = status(service)
    resource = told["resource"]
    free = resource["freeNpuBlockNums"]
    resource |= {
        "totalAvailNpuSlotsNum": resource["availSlotsNum"],
        "totalAvailNpuBlockNum": free,
        "dpInstMap": [[0, free]],
        "maxAvailNpuBlockNum": free,
    }
    return told


def slots(service: Service) -> dict[str, Any]:
    """GET /v2/models/{model}/getSlotCount."""
    told = status(service)["resource"]
    return {
        "total_slots": service.llm.max_num_seqs,
        "free_slots": told["availSlotsNum"],
        "available_tokens_length": told["freeNpuBlockNums"] * (service.llm.settings.block_size or 1),
    }


def metrics_json(service: Service, instance: str) -> dict[str, Any]:
    """GET /metrics-json: mean milliseconds since the start, and the moment's numbers."""
    stats = service.llm.engine.stats()
    histograms = stats.totals.histograms

    def mean(name: str) -> str:
        histogram = histograms[name]
        return f"{1000 * histogram.sum / max(1, histogram.count):.6f}"

    values = {
        "TTFT": mean("time_to_first_token"),
        "TBT": mean("inter_token"),
        "waitingInferRequestNum": str(stats.waiting + stats.preparing),
        "processingInferRequestNum": str(stats.running),
        "remainBlocks": str(stats.blocks_total - stats.blocks_used),
    }
    result = [
        {"metric": [{"__name__": name, "job": "node", "instance": instance}], "value": value}
        for name, value in values.items()
    ]
    return {"resultType": "vector", "result": result}

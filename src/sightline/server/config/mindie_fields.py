"""Every field of MindIE's config.json that is known here: what it sets, or why it is passed over.

After MindIE-LLM's src/server/conf/config.json and its description of the service's parameters. One table, of which the
reader, its messages and the documentation are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["whole", "number", "text", "truth", "texts", "any"]


@dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
        path: its place in the newer schema.
        option: of `serve` that it sets; None where it is passed over or needs more than a copy.
        why: what it means here, or why it is passed over.
        kind, least, most: what it may be.
        harmless: values that ask for what happens anyway, of which nothing is said.
        special: read by code of its own (see `sightline.server.config.mindie`).
        refused: why other values than the harmless ones are an error.
    """

    path: str
    option: str | None = None
    why: str = ""
    kind: Kind = "any"
    least: float | None = None
    most: float | None = None
    harmless: tuple[Any, ...] = ()
    special: bool = False
    refused: str = ""

    @property
    def mapped(self) -> bool:
        return self.option is not None or self.special


S, B = "ServerConfig.", "BackendConfig."
D = f"{B}ModelDeployConfig."
M = f"{D}ModelConfig[0]."
C = f"{B}ScheduleConfig."

_ONE_ENGINE = "prefill and decode run in one engine of one process"
_ONE_HOST = "a server is one process on one machine"
_JOINS = "a request joins at the next step; nothing waits for a batch to fill"
_CHUNKS = "prompts are always computed in chunks, mixed with decoding"
_INSIDE = "nothing leaves the process between its parts"
_KMC = "keys encrypted by KMC cannot be opened; use a plain key, or --ssl-keyfile-password-file"
_CRL = "revocation lists are not read; withdraw a client's certificate at its authority"
_LOGS = "the log goes to stderr, and whoever collects it keeps it"
_CARDS = "which cards compute is said by worldSize and npuDeviceIds"


def _tls(prefix: str, options: str) -> tuple[Field, ...]:
    """The files of one port's TLS."""
    return (
        Field(f"{S}{prefix}CaPath", None, "the folder of the authorities", "text", special=True),
        Field(
            f"{S}{prefix}CaFile", f"{options}ssl_ca_certs", "clients must show a certificate", special=True
        ),
        Field(f"{S}{prefix}Cert", f"{options}ssl_certfile", "", "text", special=True),
        Field(f"{S}{prefix}Pk", f"{options}ssl_keyfile", "", "text", special=True),
        Field(f"{S}{prefix}PkPwd", None, _KMC, harmless=("",)),
        Field(f"{S}{prefix}CrlPath", None, _CRL, harmless=("",)),
        Field(f"{S}{prefix}CrlFiles", None, _CRL, harmless=([], "")),
    )


FIELDS: tuple[Field, ...] = (
    Field("Version", None, "of the file's form", harmless=("1.0.0", "1.1.0")),
    Field("EnableDynamicAdjustTimeoutConfig", None, "time limits are fixed", harmless=(False,)),
    # Server
    Field(f"{S}ipAddress", "host", "", "text"),
    Field(f"{S}managementIpAddress", "management_host", "without it, ipAddress", "text"),
    Field(f"{S}port", "port", "", "whole", 1, 65535),
    Field(f"{S}managementPort", "management_port", "", "whole", 1, 65535),
    Field(f"{S}metricsPort", "metrics_port", "", "whole", 1, 65535),
    Field(f"{S}allowAllZeroIpListening", None, "0.0.0.0 is refused without it", "truth", special=True),
    Field(f"{S}maxLinkNum", "max_open", "", "whole", 1, 4096),
    Field(f"{S}httpsEnabled", None, "whether the tls* files are used", "truth", special=True),
    Field(f"{S}fullTextEnabled", "full_text", "", "truth"),
    Field(f"{S}maxRequestLength", "max_body", "in MB", "whole", 1, 100, special=True),
    Field(f"{S}e2eTimeout", "request_seconds", "", "number", 1, 65535),
    Field(f"{S}timeoutInSeconds", "request_seconds", "e2eTimeout wins", "number", 1, 65535, special=True),
    Field(
        f"{S}tokenTimeout", None, "a request's whole time is limited instead (e2eTimeout)", "number", 1, 3600
    ),
    *_tls("tls", ""),
    *_tls("managementTls", "management_"),
    *_tls("metricsTls", "metrics_"),
    Field(f"{S}kmcKsfMaster", None, _KMC, harmless=("",)),
    Field(f"{S}kmcKsfStandby", None, _KMC, harmless=("",)),
    Field(f"{S}inferMode", None, _ONE_ENGINE, "text", harmless=("standard",)),
    Field(f"{S}interComm*", None, _ONE_ENGINE),
    Field(
        f"{S}openAiSupport",
        None,
        "the protocol is always OpenAI's with vLLM's additions",
        harmless=("vllm", "openai"),
    ),
    Field(f"{S}distDPServerEnabled", None, _ONE_ENGINE, harmless=(False,)),
    Field(f"{S}layerwiseDisaggregated*", None, _ONE_ENGINE, harmless=(False,)),
    Field(f"{S}maxJsonDepth", None, "how deep bodies and schemas may be nested is fixed", "whole", 10, 100),
    Field(
        f"{S}HealthCheckConfig.npuUsageThreshold",
        None,
        "health is told by the engine's progress, not its load",
    ),
    # Backend
    Field(f"{B}backendName", None, "there is one engine", harmless=("mindieservice_llm_engine",)),
    Field(
        f"{B}modelInstanceNumber",
        None,
        "one model a process",
        "whole",
        harmless=(1,),
        refused="1: one process serves one model, so start a second server for another",
    ),
    Field(f"{B}npuDeviceIds", "device", "one card, or with several device_map auto", special=True),
    Field(f"{B}tokenizerProcessNumber", None, "texts and pictures are prepared in threads", "whole", 1, 32),
    Field(
        f"{B}multiNodesInferEnabled",
        None,
        _ONE_HOST,
        "truth",
        harmless=(False,),
        refused=f"false: {_ONE_HOST}",
    ),
    Field(f"{B}multiNodesInferPort", None, _ONE_HOST),
    Field(f"{B}interNode*", None, _ONE_HOST),
    Field(f"{B}kvPoolConfig*", None, "keys and values stay on the device", harmless=({},)),
    # Model
    Field(f"{D}engineName", None, "there is one engine"),
    Field(f"{D}maxSeqLen", "max_model_len", "", "whole", 2, 4194304),
    Field(f"{D}maxInputTokenLen", "max_prompt_tokens", "at most maxSeqLen - 1", "whole", 1, 4194304),
    Field(
        f"{D}truncation",
        None,
        "a prompt that is too long is refused with its length, since cutting it would cut its pictures",
        harmless=(False, 0),
    ),
    Field(f"{D}maxLoras", "max_adapters", "", "whole", 0, 4096, special=True),
    Field(f"{D}maxLoraRank", "max_lora_rank", "", "whole", 0, 65536, special=True),
    Field(f"{D}LoraModules", "adapter", "names and paths", special=True),
    Field(f"{D}speculationGamma", None, "guessing ahead is set by --num-speculative-tokens", harmless=(0,)),
    Field(f"{M}modelInstanceType", None, "there is one kind", harmless=("Standard",)),
    Field(f"{M}modelName", "served_model_name", "letters, digits, . _ - up to 256", "text", special=True),
    Field(f"{M}modelWeightPath", "model", "relative to config.json", "text", special=True),
    Field(
        f"{M}worldSize",
        "device_map",
        "more than 1 spreads the model over the visible cards",
        "whole",
        1,
        1024,
        special=True,
    ),
    Field(
        f"{M}npuMemSize", "kv_cache_memory", "in GB; -1 measures what is left over", "number", special=True
    ),
    Field(f"{M}cpuMemSize", None, "no keys and values are moved to host memory", harmless=(0,)),
    Field(f"{M}maxBatchSize", "max_num_seqs", "ScheduleConfig's wins", "whole", 1, 819200, special=True),
    Field(f"{M}backendType", None, "there is one engine"),
    Field(f"{M}trustRemoteCode", None, "no code of a checkpoint is ever run", harmless=(False,)),
    Field(f"{M}plugin_params", None, "prefix_cache turns prefix_caching on", special=True),
    *(
        Field(f"{M}{name}", None, _CARDS, harmless=(1, -1))
        for name in ("tp", "dp", "sp", "cp", "pp", "moe_tp", "moe_ep")
    ),
    *(
        Field(f"{M}{name}", None, _ONE_ENGINE)
        for name in ("async_scheduler_wait_time", "kv_trans_timeout", "kv_link_timeout")
    ),
    # Schedule
    Field(f"{C}templateType", None, _CHUNKS),
    Field(f"{C}templateName", None, "there is one scheduler"),
    Field(f"{C}pipelineNumber", None, "there is one scheduler"),
    Field(f"{C}cacheBlockSize", "block_size", "", "whole", 1, 128),
    Field(f"{C}maxPrefillTokens", "max_num_batched_tokens", "", "whole", 1, 512000),
    Field(f"{C}maxBatchSize", "max_num_seqs", "", "whole", 1, 819200),
    Field(f"{C}maxIterTimes", "max_iter_times", "for requests of MindIE's dialect", "whole", 1, 4194304),
    Field(f"{C}maxN", "max_n", "", "whole", 1, 1024),
    Field(f"{C}enablePrefixCache", "prefix_caching", "", "truth"),
    Field(f"{C}maxPrefillBatchSize", None, "steps are bounded by tokens (maxPrefillTokens)", "whole", 1),
    Field(f"{C}maxPreemptCount", None, "requests are preempted when memory asks for it, and computed again"),
    *(
        Field(f"{C}{name}", None, _JOINS)
        for name in (
            *(
                "supportSelectBatch",
                "maxQueueDelayMicroseconds",
                "maxWaitingTimeInMs",
                "maxFirstTokenWaitTime",
            ),
            *(
                "prefillTimeMsPerReq",
                "decodeTimeMsPerReq",
                "prefillPolicyType",
                "decodePolicyType",
                "policyType",
            ),
            *("stageSelectPolicy", "dynamicBatchSizeEnable", "prefillExpectedTime", "decodeExpectedTime"),
        )
    ),
    *(
        Field(f"{C}{name}", None, _CHUNKS)
        for name in ("enableSplit", "splitType", "splitStartType", "splitChunkTokens", "splitStartBatchSize")
    ),
    Field(f"{C}bufferResponseEnabled", None, "text is sent as it is made", harmless=(False,)),
    # Logs
    Field("LogConfig.dynamicLogLevel", "log_level", "", "text", special=True),
    Field("LogConfig.logLevel", "log_level", "", "text", special=True),
    Field("LogConfig.*", None, _LOGS),
    Field(f"{S}ResourceParam*", None, _INSIDE),
)

# Where the parts of the older schema stand in the newer one; the first that fits counts.
OLDER: tuple[tuple[str, str], ...] = (
    ("OtherParam.ServeParam.", S),
    ("OtherParam.LogParam.", "LogConfig."),
    ("OtherParam.ResourceParam.cacheBlockSize", f"{C}cacheBlockSize"),
    ("OtherParam.ResourceParam.", f"{S}ResourceParam"),
    ("WorkFlowParam.TemplateParam.", C),
    ("ModelDeployParam.modelParam[0].pluginParams", f"{M}plugin_params"),
    ("ModelDeployParam.modelParam[0].", M),
    ("ModelDeployParam.modelInstanceNumber", f"{B}modelInstanceNumber"),
    ("ModelDeployParam.tokenizerProcessNumber", f"{B}tokenizerProcessNumber"),
    ("ModelDeployParam.npuDeviceIds", f"{B}npuDeviceIds"),
    ("ModelDeployParam.multiNodesInferEnabled", f"{B}multiNodesInferEnabled"),
    ("ModelDeployParam.multiNodesInferPort", f"{B}multiNodesInferPort"),
    ("ModelDeployParam.", D),
    ("ScheduleParam.", C),
    ("ModelDeployConfig.ModelParam[0].", M),
    ("ModelDeployConfig.", D),
    ("ScheduleConfig.", C),
    (f"{D}ModelParam[0].", M),
)

SECTIONS = (
    *("ServerConfig", "BackendConfig", "ModelDeployConfig", "ScheduleConfig", "LogConfig"),
    *("OtherParam", "WorkFlowParam", "ModelDeployParam", "ScheduleParam"),
)

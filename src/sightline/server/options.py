"""Every option of `serve` with its meaning, range and default; the command line, serve.yaml and docs are made of these.

One class a group. A value that means "whatever suits" is None, and the text says what that is. `None` of a list is [].
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sightline.checkpoints.shards import parse_size
from sightline.data.media_counts import read_media_counts
from sightline.errors import UsageError

MIB, GIB = 2**20, 2**30


def _text(value: Any) -> Any:
    """A name or folder may be 2026 or 2026-11-20, which YAML reads as a number and a date."""
    return str(value) if isinstance(value, (int, float, date)) and not isinstance(value, bool) else value


def _listed(value: Any) -> Any:
    """One value where several may stand."""
    if value is None:
        return []
    return [value] if isinstance(value, (str, int, float, date)) else value


def _size(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        return 0 if str(value).strip() == "0" else parse_size(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _counts(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return read_media_counts(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[list[Text], BeforeValidator(_listed)]
Size = Annotated[int, BeforeValidator(_size)]
Counts = Annotated[dict[str, Any], BeforeValidator(_counts)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]


def option(
    default: Any,
    meaning: str,
    *,
    also: tuple[str, ...] = (),
    secret: bool = False,
    size: bool = False,
    **checks: Any,
) -> Any:
    """A field. `also` are other tools' names of it; a `secret` is never printed, a `size` is in bytes."""
    extra: dict[str, Any] = {"also": list(also), "secret": secret, "size": size}
    return Field(default, description=meaning, json_schema_extra=extra, **checks)


class _Group(BaseModel):
    # `model_` is no name of pydantic's here: the first option is called model.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=False, protected_namespaces=()
    )


class ModelOptions(_Group):
    """Model"""

    model: Text = option(..., "The checkpoint folder.")
    adapter: Texts = option(
        [],
        "A LoRA adapter that requests choose by name: NAME=FOLDER, or a folder whose name it gets. Repeatable.",
        also=("lora_modules",),
    )
    max_adapters: int = option(8, "Most adapters loaded at a time.", also=("max_loras",), ge=1, le=4096)
    max_lora_rank: int = option(256, "Largest rank of an adapter.", ge=1, le=65536)
    served_model_name: Texts = option(
        [],
        "What clients call the model; repeatable, answers tell the first. Without it, the folder's name and path.",
    )
    dtype: Text = option("auto", "auto, bf16, fp16 or fp32.")
    quantization: Literal["int8", "int4"] | None = option(
        None, "int8 or int4: quantize the weights while loading."
    )
    device: Text | None = option(None, "cpu, cuda, npu, cuda:1, ...; without it, the best there is.")
    device_map: Literal["auto"] | None = option(None, "auto spreads the model over the visible cards.")
    tensor_parallel_size: int = option(
        1,
        "Cards that compute one layer together: only 1 is built; see device_map for several cards.",
        ge=1,
        le=1,
    )
    enforce_eager: bool = option(False, "Capture no graphs of decode steps.")
    seed: int = option(0, "Draws for requests that bring no seed.", ge=-(2**63), le=2**63 - 1)


class MemoryOptions(_Group):
    """Steps and memory"""

    max_model_len: int | None = option(
        None,
        "Most tokens of prompt and answer; without it, the checkpoint's, or what the KV cache holds.",
        ge=2,
    )
    max_num_seqs: int | None = option(
        None, "Most answers computed together; without it 8 on a CPU, else 64.", ge=1
    )
    max_num_batched_tokens: int | None = option(
        None, "Most tokens of one step; without it 512 on a CPU, else 4096.", ge=1
    )
    max_encoder_tokens: int | None = option(
        None, "Vision tokens encoded in one step; without it 1024 on a CPU, else 8192.", ge=1
    )
    max_waiting: int = option(1024, "Requests that wait to be computed; one more gets 503.", ge=1)
    kv_cache_memory: Size | None = option(
        None,
        "Memory for keys and values, like 4GiB; without it, what is left over.",
        also=("kv_cache_memory_bytes",),
        ge=1,
        size=True,
    )
    gpu_memory_utilization: float = option(
        0.9, "Share of a card's memory that may be taken in all.", gt=0, le=1
    )
    cpu_memory_share: float = option(
        0.4, "On a CPU, share of the memory left over that keys and values get.", gt=0, le=1
    )
    block_size: int | None = option(
        None,
        "Tokens of a block of the KV cache; without it, what the device's attention prefers.",
        ge=1,
        le=4096,
    )
    prefix_caching: bool = option(
        True, "Reuse what earlier prompts began with.", also=("enable_prefix_caching",)
    )
    encoder_cache: Size | None = option(
        None, "Memory for image features; without it 512MiB on a CPU, else 1GiB.", ge=0, size=True
    )
    image_cache: Size = option(
        512 * MIB, "Host memory for preprocessed pictures; 0 keeps none.", ge=0, size=True
    )
    num_speculative_tokens: int = option(
        0, "Tokens guessed ahead from the text itself; 0 is none.", ge=0, le=64
    )
    prompt_lookup_min: int = option(2, "Shortest run of tokens that guesses are looked up by.", ge=1, le=64)
    prompt_lookup_max: int = option(4, "Longest run of tokens that guesses are looked up by.", ge=1, le=64)


class MediaOptions(_Group):
    """Pictures and videos"""

    max_pixels: int | None = option(
        None,
        "Largest picture as the model sees it; without it MAX_PIXELS, then the checkpoint's limit.",
        ge=1,
    )
    min_pixels: int | None = option(
        None, "Smallest picture as the model sees it; without it, the checkpoint's.", ge=1
    )
    limit_mm_per_prompt: Counts | None = option(
        None, "Most media of a prompt: image=4,video=1, or JSON that may name width and height too."
    )
    fetch_media: bool = option(True, "Fetch http and https addresses that requests name; private ones never.")
    allowed_media_domain: Texts = option(
        [],
        "A host that requests may name: example.org alone, or .example.org with all below. Repeatable; "
        "without any, every public host.",
        also=("allowed_media_domains",),
    )
    allowed_local_media_path: Texts = option(
        [], "A folder whose files requests may name with file://. Repeatable; without any, no file is opened."
    )
    max_media: int = option(16, "Pictures and clips of a request.", ge=1, le=1000)
    media_max_bytes: Size = option(64 * MIB, "Bytes of one medium as it is sent or stored.", ge=1, size=True)
    media_max_total_bytes: Size = option(256 * MIB, "Bytes of a request's media together.", ge=1, size=True)
    media_max_pixels: int = option(
        40_000_000, "Width x height of a picture or frame, before it is decoded.", ge=1
    )
    media_max_total_pixels: int = option(200_000_000, "Pixels of a request's pictures together.", ge=1)
    media_max_frames: int = option(50_000, "Frames of a clip as it is stored.", ge=1)
    media_max_seconds: Seconds = option(1800.0, "Length of a clip.")
    media_max_clip_pixels: int = option(20_000_000_000, "Frames x width x height of a request's clips.", ge=1)
    media_max_decode_seconds: Seconds = option(60.0, "To decode a request's media.")
    media_fetch_seconds: Seconds = option(30.0, "To fetch one medium, from its host's name to the last byte.")
    media_connect_seconds: Seconds = option(5.0, "To reach a medium's host.")
    media_idle_seconds: Seconds = option(10.0, "Between two pieces of a medium.")
    media_max_redirects: int = option(3, "Redirects followed to a medium, each checked anew.", ge=0, le=10)
    media_connections: int = option(64, "Media fetched at the same time by the whole server.", ge=1)
    media_connections_per_request: int = option(8, "Media of one request fetched at the same time.", ge=1)
    media_max_held_bytes: Size = option(
        2048 * MIB, "Bytes of media being fetched by the whole server.", ge=1, size=True
    )


class NetworkOptions(_Group):
    """Ports and TLS"""

    host: Text = option("127.0.0.1", "The address to listen on; 0.0.0.0 is every one.")
    port: Port = option(8000, "The port of the API; 0 takes a free one.")
    management_host: Text | None = option(None, "The address of the management port; without it 127.0.0.1.")
    management_port: Port | None = option(
        None,
        "A port of its own for health, configuration, adapters and stopping; without it they are on port.",
    )
    metrics_host: Text | None = option(None, "The address of the metrics port; without it, host.")
    metrics_port: Port | None = option(None, "A port of its own for /metrics; without it, it is on port.")
    ssl_certfile: Text | None = option(None, "The server's certificate (PEM), for https; needs ssl_keyfile.")
    ssl_keyfile: Text | None = option(None, "The certificate's private key (PEM).")
    ssl_keyfile_password_file: Text | None = option(None, "A file whose first line opens the private key.")
    ssl_ca_certs: Text | None = option(
        None, "Authorities (PEM) of which every client must show a certificate; without it, none need one."
    )
    management_ssl_certfile: Text | None = option(
        None, "Of the management port; without it, as ssl_certfile."
    )
    management_ssl_keyfile: Text | None = option(None, "Of the management port; without it, as ssl_keyfile.")
    management_ssl_keyfile_password_file: Text | None = option(None, "Of the management port's key.")
    management_ssl_ca_certs: Text | None = option(None, "Of the management port, beside its own certificate.")
    metrics_ssl_certfile: Text | None = option(None, "Of the metrics port; without it, as ssl_certfile.")
    metrics_ssl_keyfile: Text | None = option(None, "Of the metrics port; without it, as ssl_keyfile.")
    metrics_ssl_keyfile_password_file: Text | None = option(None, "Of the metrics port's key.")
    metrics_ssl_ca_certs: Text | None = option(None, "Of the metrics port, beside its own certificate.")
    max_connections: int = option(1024, "Open connections of a port; one more is closed.", ge=1, le=65535)
    header_seconds: Seconds = option(10.0, "For a request's header to arrive.")
    keep_alive_seconds: Seconds = option(5.0, "An idle connection is kept.")


class AccessOptions(_Group):
    """Access"""

    api_key: Texts = option(
        [],
        "A key that requests must bring as `Authorization: Bearer KEY`. Repeatable. Also SIGHTLINE_API_KEY "
        "and VLLM_API_KEY, which no other user of the machine can read.",
        secret=True,
    )
    api_key_file: Text | None = option(
        None, "A file of keys, one a line; lines that begin with # are comments."
    )
    allowed_hosts: Texts = option(
        [],
        "A name the server may be called by. Repeatable; without any, every name, or on 127.0.0.1 the local ones.",
    )
    cors_origin: Texts = option(
        [],
        "A web site such as https://example.org whose pages may call the server. Repeatable; * is every site.",
    )
    page: bool = option(True, "Serve the chat page at /.")


class LimitOptions(_Group):
    """Limits of a request"""

    max_open: int = option(
        64, "Requests that are read, wait or are answered; one more gets 503.", ge=1, le=65535
    )
    max_body: Size = option(64 * MIB, "Bytes of a request's body.", ge=1024, le=4 * GIB, size=True)
    max_held_body: Size = option(
        512 * MIB,
        "Bytes of the bodies of all requests until their answers begin, and never less than max_body; beyond it 503.",
        ge=1024,
        size=True,
    )
    body_seconds: Seconds = option(
        10.0, "Between two pieces of a body; after as long it must have come at 32 KiB a second."
    )
    max_values: int = option(
        2**19, "Values of a body, as its commas and brackets tell; each costs time and memory.", ge=1
    )
    max_messages: int = option(1024, "Messages of a conversation.", ge=1)
    max_prompt_chars: int = option(4 * MIB, "Characters of all texts of a request.", ge=1)
    max_prompt_tokens: int | None = option(
        None, "Tokens of a prompt; without it, what max_model_len leaves.", ge=1
    )
    max_tokens: int | None = option(None, "Tokens of an answer; without it, what max_model_len leaves.", ge=1)
    max_iter_times: int | None = option(
        None, "Answers in MindIE's dialect are cut to so many tokens; without it, to max_tokens.", ge=1
    )
    max_n: int = option(16, "Answers to one prompt.", ge=1)
    max_prompts: int = option(64, "Prompts of one completion request.", ge=1)
    max_answers: int = option(128, "Answers to all prompts of one completion request: prompts times n.", ge=1)
    priorities: bool = option(
        False,
        "Let requests say by priority that they go before others, running ones too; without it OpenAI's are refused, "
        "MindIE's ignored.",
    )
    max_logprobs: int = option(20, "Most likely tokens told beside each one.", ge=0)
    max_stops: int = option(16, "Stop texts of a request.", ge=0)
    max_stop_length: int = option(256, "Characters of a stop text.", ge=1)
    max_stop_ids: int = option(256, "Stop tokens of a request.", ge=0)
    max_biases: int = option(1024, "Tokens of a request's logit_bias.", ge=0)
    max_bad_words: int = option(256, "Texts that an answer may not hold.", ge=0)
    request_seconds: Seconds | None = option(
        600.0, "From a request's arrival to its end; null in a file is for ever."
    )


class RunOptions(_Group):
    """Stopping, health and logs"""

    drain_seconds: float = option(
        30.0, "Running requests may take after SIGTERM.", ge=0, le=86400, allow_inf_nan=False
    )
    stall_seconds: Seconds = option(25.0, "Without a sign of life after which a busy engine counts as stuck.")
    access_log: bool = option(True, "Log one line for each request, without its texts.")
    log_prompts: bool = option(False, "Log the texts of prompts and answers too (never pictures).")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "How much is logged: debug, info, warning or error."
    )
    mindie_metrics: bool = option(False, "Tell /metrics under MindIE's names beside vLLM's.")
    full_text: bool = option(False, "Streams of MindIE's /generate repeat the whole text in each piece.")


GROUPS: tuple[type[_Group], ...] = (
    ModelOptions,
    MemoryOptions,
    MediaOptions,
    NetworkOptions,
    AccessOptions,
    LimitOptions,
    RunOptions,
)

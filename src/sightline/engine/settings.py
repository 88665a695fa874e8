"""Every argument of the engine, checked in one place before anything is loaded: one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sightline.checkpoints.shards import parse_size
from sightline.engine.adapters import check_name
from sightline.engine.media.limits import MediaLimits
from sightline.errors import UsageError

QUANTIZATIONS = ("int8", "int4")

# What is used where nothing is said: on a CPU a step of 512 tokens already keeps every core busy for a second.
_SEQUENCES = {"cpu": 8}
_TOKENS = {"cpu": 512}
_ENCODER_TOKENS = {"cpu": 1024}
_OTHER_SEQUENCES, _OTHER_TOKENS, _OTHER_ENCODER_TOKENS = 64, 4096, 8192

# Arguments of vLLM that ask for what happens here anyway: the values in brackets change nothing.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "trust_remote_code": (False,),
    "disable_log_stats": (True, False),
    "disable_custom_all_reduce": (True, False),
    "swap_space": (0, 4),
    "cpu_offload_gb": (0,),
    "max_seq_len_to_capture": (8192,),
    "enable_chunked_prefill": (True, None),
    "tokenizer": (None,),
    "tokenizer_mode": ("auto",),
    "skip_tokenizer_init": (False,),
    "task": ("auto", "generate"),
    "runner": ("auto", "generate"),
    "convert": ("auto", "none"),
    "load_format": ("auto", "safetensors"),
    "kv_cache_dtype": ("auto",),
    "pipeline_parallel_size": (1,),
    "data_parallel_size": (1,),
    "distributed_executor_backend": (None, "mp", "uni"),
    "revision": (None, "main"),
    "tokenizer_revision": (None, "main"),
    "hf_overrides": (None,),
    "hf_token": (None, False),
    "enable_lora": (True, False),
    "mm_processor_cache_gb": (),
    "disable_mm_preprocessor_cache": (False,),
    "allowed_local_media_path": ("",),
    "chat_template": (None,),
}
_REASONS = {
    "trust_remote_code": "the model classes are those of transformers, and no code of a checkpoint is run; "
    "leave it out",
    "enable_chunked_prefill": "prompts are always computed in chunks of at most max_num_batched_tokens",
    "pipeline_parallel_size": "one model is spread over cards with device_map='auto'",
    "mm_processor_cache_gb": "its size is image_cache_bytes",
    "disable_mm_preprocessor_cache": "its size is image_cache_bytes; 0 turns it off",
}


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built. None means that the engine chooses when it knows device and model.

    Attributes:
        model, adapter: checkpoint folders; all requests are computed with this one adapter.
        adapters: folders by name: of the adapters that requests may choose, each its own, in one batch.
        max_adapters: most of them that are loaded at a time; max_lora_rank: of their low-rank changes.
        dtype: auto, bf16, fp16 or fp32; quantization: None, int8 or int4; device: cpu, cuda:0, npu, ...
        device_map: "auto" spreads a model over the cards that are visible.
        max_model_len: most tokens of prompt and answer.
        max_num_seqs: most answers computed together; None is 8 on a CPU and 64 elsewhere.
        max_num_batched_tokens: tokens of one step; None is 512 on a CPU and 4096 elsewhere.
        max_encoder_tokens: vision tokens that one step encodes; one medium alone may have more.
        limit_mm_per_prompt: {"image": 4} or {"image": {"count": 4, "width": 1280, "height": 720}}.
        mm_processor_kwargs: {"max_pixels", "min_pixels"} of every picture.
        kv_cache_memory_bytes: bytes, or a text like "4GiB"; None measures what is free.
        gpu_memory_utilization: share of a card's memory that the engine may take in all.
        cpu_memory_share: on a CPU, share of what the machine (its cgroup) still allows once the weights are loaded.
        block_size: tokens of a block of the KV cache; None is what the device's attention prefers.
        enforce_eager: capture no graphs.
        num_speculative_tokens: most draft tokens of a step by prompt lookup; 0 is none.
        prompt_lookup_min, prompt_lookup_max: lengths of the n-grams that are looked up.
        encoder_cache_bytes, image_cache_bytes: of image features, and of preprocessed pictures in host memory.
        max_waiting: most requests that wait to be computed; one more is refused.
        seed: of requests that bring none.
        tensor_parallel_size: 1; more is not built yet.

    Raises:
        UsageError: a value is of the wrong type or out of its range; the text names it.
    """

    model: str | Path
    adapter: str | Path | None = None
    dtype: str = "auto"
    quantization: str | None = None
    device: str | None = None
    device_map: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_encoder_tokens: int | None = None
    limit_mm_per_prompt: Mapping[str, Any] | None = None
    mm_processor_kwargs: Mapping[str, Any] | None = None
    kv_cache_memory_bytes: int | str | None = None
    gpu_memory_utilization: float = 0.9
    cpu_memory_share: float = 0.4
    block_size: int | None = None
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    num_speculative_tokens: int = 0
    prompt_lookup_min: int = 2
    prompt_lookup_max: int = 4
    encoder_cache_bytes: int | None = None
    image_cache_bytes: int = 512 * 2**20
    max_waiting: int = 1024
    seed: int = 0
    tensor_parallel_size: int = 1
    adapters: Mapping[str, str | Path] | None = None
    max_adapters: int = 8
    max_lora_rank: int = 256

    @classmethod
    def of(cls, model: str | Path, **arguments: Any) -> EngineSettings:
        """From the arguments of `LLM`, vLLM's among them: those that ask for what happens anyway are passed over.

        Raises:
            UsageError: as the class, or an argument that is not known or not honoured.
        """
        known = {field.name for field in fields(cls)}
        foreign = {name: value for name, value in arguments.items() if name not in known}
        if foreign.get("max_loras") is not None:  # vLLM's word
            arguments.setdefault("max_adapters", foreign["max_loras"])
        foreign.pop("max_loras", None)
        pixels = {name: foreign.pop(name, None) for name in ("max_pixels", "min_pixels")}
        for name, value in foreign.items():
            _refuse_foreign(name, value)
        given = {name: value for name, value in arguments.items() if name in known}
        options = {name: value for name, value in pixels.items() if value is not None}
        # The same by two names: the dictionary is the more deliberate one.
        if options:
            given["mm_processor_kwargs"] = {**options, **(given.get("mm_processor_kwargs") or {})}
        given["dtype"] = str(given.get("dtype") or "auto")
        return cls(model, **given)

    def __post_init__(self) -> None:
        for name in ("limit_mm_per_prompt", "mm_processor_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise UsageError(f"{name} must be a dict, not {value!r}")
        if not isinstance(self.model, (str, Path)) or not isinstance(self.adapter, (str, Path, type(None))):
            raise UsageError("model and adapter must be folders, given as text or Path")
        self._check_adapters()
        if self.tensor_parallel_size != 1:
            raise UsageError(
                f"tensor_parallel_size is {self.tensor_parallel_size}, but one model is not computed by several "
                "devices together yet; set it to 1, or spread a large model with device_map='auto'"
            )
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_encoder_tokens", "block_size"):
            _whole(name, getattr(self, name), 1)
        _whole("max_model_len", self.max_model_len, 2)
        _whole("num_speculative_tokens", self.num_speculative_tokens, 0, 64)
        _whole("prompt_lookup_min", self.prompt_lookup_min, 1)
        _whole("prompt_lookup_max", self.prompt_lookup_max, self.prompt_lookup_min)
        _whole("image_cache_bytes", self.image_cache_bytes, 0)
        _whole("encoder_cache_bytes", self.encoder_cache_bytes, 0)
        _whole("max_waiting", self.max_waiting, 1)
        _whole("seed", self.seed, -(2**63), 2**63 - 1)
        _share("gpu_memory_utilization", self.gpu_memory_utilization)
        _share("cpu_memory_share", self.cpu_memory_share)
        _truth("enable_prefix_caching", self.enable_prefix_caching)
        _truth("enforce_eager", self.enforce_eager)
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UsageError(
                f"quantization {self.quantization!r} is not one of {', '.join(QUANTIZATIONS)}; None leaves the "
                "weights as they are"
            )
        if self.device_map not in (None, "auto"):
            raise UsageError(f"device_map {self.device_map!r} is not 'auto'; use device to name one device")
        if self.kv_cache_memory_bytes is not None:
            object.__setattr__(self, "kv_cache_memory_bytes", _bytes(self.kv_cache_memory_bytes))
        # Both are read here so that a mistake is found before the model is loaded.
        _ = self.limits, self.pixel_options

    def _check_adapters(self) -> None:
        _whole("max_adapters", self.max_adapters, 1)
        _whole("max_lora_rank", self.max_lora_rank, 1)
        if self.adapters is None:
            return
        if not isinstance(self.adapters, Mapping):
            raise UsageError(
                f"adapters must be a dict of names and folders, not {type(self.adapters).__name__}"
            )
        for name, folder in self.adapters.items():
            check_name(name)
            if not isinstance(folder, (str, Path)):
                raise UsageError(f"the adapter {name} must be a folder, given as text or Path")
        if self.adapter is not None and self.adapters:
            raise UsageError(
                "adapter puts one adapter on all requests and adapters lets each choose; give one of the two"
            )
        if len(self.adapters) > self.max_adapters:
            raise UsageError(
                f"there are {len(self.adapters)} adapters, and max_adapters is {self.max_adapters}; raise it"
            )

    @property
    def limits(self) -> MediaLimits:
        """What `limit_mm_per_prompt` says."""
        return MediaLimits.parse(self.limit_mm_per_prompt)

    @property
    def pixel_options(self) -> dict[str, int | None]:
        """max_pixels and min_pixels as `models.loading.load_model` takes them."""
        options = dict(self.mm_processor_kwargs or {})
        unknown = set(options) - {"max_pixels", "min_pixels"}
        if unknown:
            raise UsageError(
                f"mm_processor_kwargs has {min(unknown)!r}; known are max_pixels and min_pixels (fps and others "
                "stand beside a prompt's media)"
            )
        for name, value in options.items():
            _whole(name, value, 1)
        return {"max_pixels": options.get("max_pixels"), "min_pixels": options.get("min_pixels")}

    def for_device(self, kind: str) -> EngineSettings:
        """With the numbers that depend on the kind of device filled in."""
        sequences = self.max_num_seqs or _SEQUENCES.get(kind, _OTHER_SEQUENCES)
        tokens = self.max_num_batched_tokens or max(sequences, _TOKENS.get(kind, _OTHER_TOKENS))
        if tokens < sequences:
            raise UsageError(
                f"max_num_batched_tokens is {tokens}, but {sequences} answers take a token each step; raise it to "
                f"{sequences} or lower max_num_seqs"
            )
        encoder = self.max_encoder_tokens or _ENCODER_TOKENS.get(kind, _OTHER_ENCODER_TOKENS)
        return replace(
            self, max_num_seqs=sequences, max_num_batched_tokens=tokens, max_encoder_tokens=encoder
        )


def _refuse_foreign(name: str, value: Any) -> None:
    if name not in _HARMLESS:
        raise UsageError(f"{name} is not an argument of LLM; see docs/infer.md for those that are")
    if value in _HARMLESS[name]:
        return
    reason = _REASONS.get(name, "it is not built here; leave it out")
    raise UsageError(f"{name}={value!r} cannot be honoured: {reason}")


def _bytes(value: int | str) -> int:
    try:
        return parse_size(value)
    except UsageError as error:
        raise UsageError(f"kv_cache_memory_bytes: {error}") from error


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        words = f"at least {least}" if most is None else f"between {least} and {most}"
        raise UsageError(f"{name} must be {words}, not {value}")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UsageError(f"{name} must be above 0 and at most 1, not {value!r}")


def _truth(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {value!r}")

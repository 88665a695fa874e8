"""The engine as a Python library: `LLM`, with the calls that vLLM's users know."""

from __future__ import annotations

import itertools
import queue
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation
from sightline.engine.adapters import LoRARequest
from sightline.engine.assembly import assemble
from sightline.engine.async_engine import AsyncEngine
from sightline.engine.errors import EngineFull
from sightline.engine.inputs import Prompt, read_messages, read_prompt
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.engine.settings import EngineSettings
from sightline.engine.stream import Stream
from sightline.errors import SightlineError, UsageError
from sightline.files import read_object
from sightline.progress import Progress

Params = SamplingParams | Iterable[SamplingParams] | None
#: The adapter of a prompt by its name or in vLLM's words, or one for each prompt of a list; None is the model alone.
Adapter = str | LoRARequest | Sequence["str | LoRARequest | None"] | None

_DEFAULTS_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class LLM:
    """A model that answers. Any number of threads may use it: their requests are computed together.

    Args:
        model: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint folder.
        arguments: the fields of `EngineSettings`, which explains them: adapter, adapters, dtype, quantization, device,
            device_map, max_model_len, max_num_seqs, max_num_batched_tokens, limit_mm_per_prompt,
            mm_processor_kwargs, kv_cache_memory_bytes, gpu_memory_utilization, enable_prefix_caching, seed, ...;
            also max_pixels and min_pixels. vLLM's other arguments are accepted where they ask for what
            happens anyway.

    Attributes:
        settings: with every number that was left open filled in.
        engine: the `AsyncEngine` behind it, for streams, aborts and statistics.

    Raises:
        SightlineError: the checkpoint cannot be loaded, or memory does not suffice.
        UsageError: an argument is unknown or out of its range.
    """

    def __init__(self, model: str | Path, **arguments: Any) -> None:
        parts = assemble(EngineSettings.of(model, **arguments))
        self.model = parts.model
        self.settings = parts.settings
        self.engine: AsyncEngine = parts.engine()
        self._preparer = parts.preparer
        self._adapters = parts.adapters
        # Its thread would keep the model in memory when this object is gone. The collector may call this while this
        # very thread holds the engine's lock, so it must not wait for the engine.
        weakref.finalize(self, self.engine.stop)

    @property
    def adapter(self) -> str | Path | None:
        return self.settings.adapter

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def max_model_len(self) -> int:
        return self.settings.max_model_len or 0

    @property
    def max_num_seqs(self) -> int:
        return self.settings.max_num_seqs or 0

    @property
    def end_tokens(self) -> frozenset[int]:
        """The model's own end tokens."""
        return self._preparer.end_tokens

    @property
    def window(self) -> int:
        """Requests that a long list keeps open at a time: those computed, and as many prepared ahead of them."""
        return self.max_num_seqs + min(self.max_num_seqs, self.settings.max_waiting)

    def generate(
        self,
        prompts: Any,
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        adapter: Adapter = None,
        lora_request: Adapter = None,
    ) -> list[RequestOutput]:
        """Answer prompts, in order.

        Args:
            prompts: one of, or a list or generator of: a text; token ids; {"prompt" or "prompt_token_ids",
                "multi_modal_data": {"image": PIL image or list, "video": frames or list}}. The chat template is
                applied already; one image or video token stands for each medium. Of a generator only the next few
                prompts are taken at a time.
            sampling_params: one for all or one each; None takes the checkpoint's.
            use_tqdm: show progress when it takes more than two seconds.
            adapter: name of the adapter that answers, of `adapters` or `engine.load_adapter`; or a list with one for
                each of a list of prompts, None among them. `lora_request` is vLLM's word for the same.

        Returns:
            One output a prompt. Where computing one failed, its `error` says why and its answers end with "error".

        Raises:
            SightlineError: a medium cannot be used, or a prompt is too long; the text gives the numbers. Of a list
                this is known before anything is computed, as far as the headers of its media tell.
        """
        adapter = _one_word(adapter, lora_request)
        if _is_one(prompts):
            prompts = [prompts]
        if isinstance(prompts, Sequence):
            listed = [read_prompt(prompt) for prompt in prompts]
            return self._generate(listed, sampling_params, use_tqdm, adapter)
        if not isinstance(prompts, Iterable):
            prompts = [prompts]
        return self._generate((read_prompt(prompt) for prompt in prompts), sampling_params, use_tqdm, adapter)

    def chat(
        self,
        messages: Any,
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        adapter: Adapter = None,
        lora_request: Adapter = None,
    ) -> list[RequestOutput]:
        """Answer a conversation (OpenAI's messages), or a list or generator of them, through the chat template.

        Args and errors are those of `generate`.
        """
        adapter = _one_word(adapter, lora_request)
        if isinstance(messages, Iterator):
            given = (Prompt(read_messages(one)) for one in messages)
            return self._generate(given, sampling_params, use_tqdm, adapter)
        listed = isinstance(messages, Sequence) and bool(messages)
        many = listed and not isinstance(messages[0], Mapping)
        conversations = [read_messages(one) for one in (messages if many else [messages])]
        return self._generate([Prompt(one) for one in conversations], sampling_params, use_tqdm, adapter)

    def stream(
        self,
        prompt: Any,
        sampling_params: SamplingParams | None = None,
        *,
        adapter: str | LoRARequest | None = None,
    ) -> Stream:
        """Answer one prompt (as `generate` takes it, or a conversation), to be read as it comes.

        Texts are whole characters, and none is taken back by a stop text. `abort()` of what is returned ends it.
        """
        params = sampling_params or self.get_default_sampling_params()
        return self.engine.add(prompt, params, adapter=self._adapters.named(adapter))

    def get_tokenizer(self) -> Any:
        return self.model.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The settings that the checkpoint's generation_config.json recommends.

        Raises:
            SightlineError: a value there is none of a setting.
        """
        path = self.model.folder / "generation_config.json"
        if not path.is_file():
            return SamplingParams()
        settings = read_object(path)
        chosen = {
            name: settings[name] for name in _DEFAULTS_FROM_CHECKPOINT if settings.get(name) is not None
        }
        try:
            return SamplingParams(**chosen)
        except ParameterError as error:
            raise SightlineError(f"{path}: {error}") from error

    def close(self) -> None:
        """End what is running and the engine's thread. Without it, this happens when the object is dropped."""
        self.engine.close()

    def _generate(
        self, prompts: Iterable[Prompt], params: Params, show: bool, adapter: Adapter
    ) -> list[RequestOutput]:
        given = self.get_default_sampling_params() if params is None else params
        if isinstance(given, (Mapping, str)) or not isinstance(given, (SamplingParams, Iterable)):
            raise UsageError(
                f"sampling_params must be SamplingParams or a list of them, not {type(given).__name__}"
            )
        total = len(prompts) if isinstance(prompts, Sequence) else None
        if isinstance(given, Sequence) and total is not None and len(given) != total:
            raise UsageError(f"there are {total} prompts but {len(given)} sampling_params")
        names = self._names(adapter, total)
        if isinstance(prompts, Sequence):
            each = [given] * len(prompts) if isinstance(given, SamplingParams) else list(given)
            pairs = list(zip(prompts, each, strict=True))
            for place, ((prompt, one), name) in enumerate(zip(pairs, names, strict=False)):
                with _naming(place, total):
                    adapted = None if name is None else self._adapters.get(name)
                    self._preparer.check(prompt, one, headers=True, adapter=adapted)
            return self._answer(pairs, names, total, show)
        return self._answer(_paired(prompts, given), names, total, show)

    def _names(self, adapter: Adapter, total: int | None) -> Iterable[str | None]:
        """The adapter of each prompt."""
        if adapter is None or isinstance(adapter, str) or not isinstance(adapter, Sequence):
            return itertools.repeat(self._adapters.named(adapter))
        if len(adapter) != total:
            count = "a generator of" if total is None else str(total)
            raise UsageError(f"there are {count} prompts but {len(adapter)} adapters")
        return [self._adapters.named(one) for one in adapter]

    def _answer(
        self,
        pairs: Iterable[tuple[Prompt, SamplingParams]],
        names: Iterable[str | None],
        total: int | None,
        show: bool,
    ) -> list[RequestOutput]:
        """Keep a window of requests open until all are answered; one that cannot be used ends the others."""
        open_: dict[Stream, int] = {}
        outputs: dict[int, RequestOutput] = {}  # not the streams: of a long list only the answers are kept
        ended: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        with ExitStack() as stack:
            progress = stack.enter_context(Progress("answering", total)) if show else None

            def settle() -> None:
                stream = ended.get()
                place = open_.pop(stream)
                with _naming(place, total):
                    outputs[place] = stream.result()
                if progress is not None:
                    progress.advance()

            def give(place: int, prompt: Prompt, params: SamplingParams, name: str | None) -> Stream:
                while True:
                    try:
                        with _naming(place, total):
                            return self.engine.add(
                                prompt, params, deltas=False, on_end=ended.put, adapter=name
                            )
                    except EngineFull:  # other threads give it requests too
                        pass
                    if open_:
                        settle()
                    else:
                        self.engine.wait_for_room()

            try:
                # The pairs first: of names there may be one more than is needed.
                for place, ((prompt, params), name) in enumerate(zip(pairs, names, strict=False)):
                    while len(open_) >= self.window:
                        settle()
                    open_[give(place, prompt, params, name)] = place
                while open_:
                    settle()
            except BaseException:
                for stream in open_:
                    stream.abort()
                raise
        return [outputs[place] for place in range(len(outputs))]


class _naming:
    """Says in an error which of several prompts it is about."""

    def __init__(self, place: int, total: int | None) -> None:
        self._words = "" if total == 1 else f"prompts[{place}]: "

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SightlineError) and self._words:
            error.args = (f"{self._words}{error}",)


def _one_word(adapter: Adapter, lora_request: Adapter) -> Adapter:
    if adapter is not None and lora_request is not None:
        raise UsageError("adapter and lora_request are two words for the same; give one of them")
    return lora_request if adapter is None else adapter


def _paired(
    prompts: Iterable[Prompt], params: SamplingParams | Iterable[SamplingParams]
) -> Iterator[tuple[Prompt, SamplingParams]]:
    if isinstance(params, SamplingParams):
        return ((prompt, params) for prompt in prompts)
    return _zipped(prompts, params)


def _zipped(
    prompts: Iterable[Prompt], params: Iterable[SamplingParams]
) -> Iterator[tuple[Prompt, SamplingParams]]:
    each = iter(params)
    number = 0
    for number, prompt in enumerate(prompts, 1):
        one = next(each, None)
        if one is None:
            raise UsageError(f"there are at least {number} prompts but {number - 1} sampling_params")
        yield prompt, one
    if next(each, None) is not None:
        raise UsageError(f"there are {number} prompts but more sampling_params")


def _is_one(prompts: Any) -> bool:
    """Whether this is one prompt rather than several."""
    if isinstance(prompts, (str, Mapping, Prompt, Conversation)):
        return True
    return (
        isinstance(prompts, Sequence)
        and bool(prompts)
        and all(isinstance(token, int) and not isinstance(token, bool) for token in prompts)
    )

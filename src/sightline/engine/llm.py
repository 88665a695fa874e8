"""The engine as a Python library: `LLM`, with the calls that vLLM's users know."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation
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

_DEFAULTS_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class LLM:
    """A model that answers. Any number of threads may use it: their requests are computed together.

    Args:
        model: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint folder.
        arguments: the fields of `EngineSettings`, which explains them: adapter, dtype, quantization, device,
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
        self, prompts: Any, sampling_params: Params = None, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Answer prompts, in order.

        Args:
            prompts: one of, or a list or generator of: a text; token ids; {"prompt" or "prompt_token_ids",
                "multi_modal_data": {"image": PIL image or list, "video": frames or list}}. The chat template is
                applied already; one image or video token stands for each medium. Of a generator only the next few
                prompts are taken at a time.
            sampling_params: one for all or one each; None takes the checkpoint's.
            use_tqdm: show progress when it takes more than two seconds.

        Returns:
            One output a prompt. Where computing one failed, its `error` says why and its answers end with "error".

        Raises:
            SightlineError: a medium cannot be used, or a prompt is too long; the text gives the numbers. Of a list
                this is known before anything is computed, as far as the headers of its media tell.
        """
        if _is_one(prompts):
            prompts = [prompts]
        if isinstance(prompts, Sequence):
            return self._generate([read_prompt(prompt) for prompt in prompts], sampling_params, use_tqdm)
        if not isinstance(prompts, Iterable):
            prompts = [prompts]
        return self._generate((read_prompt(prompt) for prompt in prompts), sampling_params, use_tqdm)

    def chat(
        self, messages: Any, sampling_params: Params = None, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Answer a conversation (OpenAI's messages), or a list or generator of them, through the chat template."""
        if isinstance(messages, Iterator):
            return self._generate((Prompt(read_messages(one)) for one in messages), sampling_params, use_tqdm)
        listed = isinstance(messages, Sequence) and bool(messages)
        many = listed and not isinstance(messages[0], Mapping)
        conversations = [read_messages(one) for one in (messages if many else [messages])]
        return self._generate([Prompt(one) for one in conversations], sampling_params, use_tqdm)

    def stream(self, prompt: Any, sampling_params: SamplingParams | None = None) -> Stream:
        """Answer one prompt (as `generate` takes it, or a conversation), to be read as it comes.

        Texts are whole characters, and none is taken back by a stop text. `abort()` of what is returned ends it.
        """
        return self.engine.add(prompt, sampling_params or self.get_default_sampling_params())

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

    def _generate(self, prompts: Iterable[Prompt], params: Params, show: bool) -> list[RequestOutput]:
        given = self.get_default_sampling_params() if params is None else params
        if isinstance(given, (Mapping, str)) or not isinstance(given, (SamplingParams, Iterable)):
            raise UsageError(
                f"sampling_params must be SamplingParams or a list of them, not {type(given).__name__}"
            )
        total = len(prompts) if isinstance(prompts, Sequence) else None
        if isinstance(given, Sequence) and total is not None and len(given) != total:
            raise UsageError(f"there are {total} prompts but {len(given)} sampling_params")
        if isinstance(prompts, Sequence):
            each = [given] * len(prompts) if isinstance(given, SamplingParams) else list(given)
            pairs = list(zip(prompts, each, strict=True))
            for place, (prompt, one) in enumerate(pairs):
                with _naming(place, total):
                    self._preparer.check(prompt, one, headers=True)
            return self._answer(pairs, total, show)
        return self._answer(_paired(prompts, given), total, show)

    def _answer(
        self, pairs: Iterable[tuple[Prompt, SamplingParams]], total: int | None, show: bool
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

            def give(place: int, prompt: Prompt, params: SamplingParams) -> Stream:
                while True:
                    try:
                        with _naming(place, total):
                            return self.engine.add(prompt, params, deltas=False, on_end=ended.put)
                    except EngineFull:  # other threads give it requests too
                        pass
                    if open_:
                        settle()
                    else:
                        self.engine.wait_for_room()

            try:
                for place, (prompt, params) in enumerate(pairs):
                    while len(open_) >= self.window:
                        settle()
                    open_[give(place, prompt, params)] = place
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

"""The engine as a Python library: `LLM`, with the calls that vLLM's users know.

One thread computes at a time: every entry takes the lock. How requests are batched is
`sightline.engine.batch`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.engine import batch
from sightline.engine.inputs import Prompt, check_text, read_messages, read_prompt
from sightline.engine.job import Delta, Job
from sightline.engine.outputs import RequestOutput
from sightline.engine.static_request import Request
from sightline.engine.sampling import ParameterError, SamplingParams
from sightline.errors import SightlineError, UsageError
from sightline.files import read_object
from sightline.models.loading import load_model
from sightline.progress import track

# Between the seeds of the answers to one prompt: the next prompt's seed is one higher.
_SEED_STEP = 1_000_000_007
_DEFAULTS_FROM_CHECKPOINT = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class LLM:
    """A model that answers.

    Args:
        model: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint folder.
        adapter: a PEFT adapter folder to put on top.
        dtype: auto, bf16, fp16 or fp32; `device`: cpu, cuda:0, npu:0, ... (None takes the best there is).
        max_model_len: most tokens of prompt and answer; None takes the checkpoint's.
        max_num_seqs: most answers that are computed together.
        seed: of requests that bring none.
        limit_mm_per_prompt: most images and videos of a prompt, like {"image": 10, "video": 1}.
        mm_processor_kwargs: {"max_pixels", "min_pixels"} of every picture; also as arguments of their own.
        tensor_parallel_size: 1; more is not built yet.

    Raises:
        SightlineError: the checkpoint cannot be loaded. UsageError: an argument is out of its range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        dtype: str | None = "auto",
        device: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 8,
        seed: int = 0,
        limit_mm_per_prompt: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        if tensor_parallel_size != 1:
            raise UsageError(
                f"tensor_parallel_size is {tensor_parallel_size}, but one model is not spread over several "
                "devices yet; set it to 1"
            )
        if max_num_seqs < 1:
            raise UsageError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        options = {"max_pixels": max_pixels, "min_pixels": min_pixels, **(mm_processor_kwargs or {})}
        unknown = set(options) - {"max_pixels", "min_pixels"}
        if unknown:
            raise UsageError(
                f"mm_processor_kwargs has {sorted(unknown)[0]!r}; known are max_pixels and min_pixels"
            )
        self.model = load_model(model, device=device, dtype=dtype or "auto", adapter=adapter, **options)
        self.adapter = adapter
        self.max_num_seqs = max_num_seqs
        self.seed = seed
        self.max_model_len = self._model_length(max_model_len)
        self._limits = {kind: _count(kind, limit) for kind, limit in (limit_mm_per_prompt or {}).items()}
        self._end_tokens = self._find_end_tokens()
        self._compute = threading.Lock()
        # One at a time: a tokenizer of the tokenizers library refuses to be used by two threads at once.
        self._preprocess = threading.Lock()
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer prompts, in order.

        Args:
            prompts: one or a list of: a text; token ids; {"prompt" or "prompt_token_ids", "multi_modal_data":
                {"image": PIL image or list, "video": frames or list}}. The chat template is applied already;
                one image or video token stands for each medium.
            sampling_params: one for all or one each; None takes the checkpoint's.
            use_tqdm: show progress when it takes more than two seconds.

        Raises:
            SightlineError: a medium cannot be used, or a prompt is too long; the text gives the numbers.
        """
        several = isinstance(prompts, Sequence) and not isinstance(prompts, str)
        if several and not (prompts and all(isinstance(token, int) for token in prompts)):
            return self._generate([read_prompt(prompt) for prompt in prompts], sampling_params, use_tqdm)
        return self._generate([read_prompt(prompts)], sampling_params, use_tqdm)

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer a conversation (OpenAI's messages) or a list of them, through the model's chat template."""
        listed = isinstance(messages, Sequence) and bool(messages)
        many = listed and not isinstance(messages[0], Mapping)
        conversations = [read_messages(one) for one in (messages if many else [messages])]
        return self._generate([Prompt(one) for one in conversations], sampling_params, use_tqdm)

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

    def prepare(self, prompt: Any, params: SamplingParams, *, number: int | None = None) -> Job:
        """Open a prompt's media and build its sequence, without computing; any thread may.

        `number` stands for the request where it brings no seed; None counts the requests of this engine.

        Raises:
            SightlineError: as `generate`.
        """
        start, prompt = time.perf_counter(), read_prompt(prompt)
        self._check_counts(prompt)
        self._check_stops(params)
        check_text(prompt)
        self._check_media(prompt)
        with self._preprocess:
            encoded = self._encode(prompt)
        length = len(encoded.input_ids)
        self._check_length(length, encoded.vision_tokens)
        room = self.max_model_len - length
        number = next(self._numbers) if number is None else number
        seed = params.seed if params.seed is not None else self.seed * 1_000_003 + number
        requests = [
            Request(
                encoded=encoded,
                params=params,
                end_tokens=self._end_tokens,
                limit=min(room, params.max_tokens or room),
                tokenizer=self.get_tokenizer(),
                seed=(seed + index * _SEED_STEP) % 2**63,
                index=index,
                arrived=start,
            )
            for index in range(params.n)
        ]
        return Job(str(number), prompt.text, requests, time.perf_counter() - start)

    def run(self, jobs: Sequence[Job]) -> None:
        """Answer prepared jobs; each holds its answers afterwards."""
        requests = [request for job in jobs for request in job.requests]
        with self._compute:
            for start in range(0, len(requests), self.max_num_seqs):
                for _ in self._steps(requests[start : start + self.max_num_seqs]):
                    pass

    def stream(self, job: Job) -> Iterator[Delta]:
        """Answer one prepared job, giving text as it comes; waits while another job computes.

        Texts are whole characters, and none is taken back by a stop text. `job.abort()` from any thread, or
        leaving the loop, ends the computation at the next step.
        """
        try:
            with self._compute:
                for start in range(0, len(job.requests), self.max_num_seqs):
                    yield from self._deltas(job.requests[start : start + self.max_num_seqs])
        finally:
            for request in job.requests:
                if not request.finished:
                    request.finish("abort")

    def _generate(self, prompts: list[Prompt], params: Any, show: bool) -> list[RequestOutput]:
        given = params if params is not None else self.get_default_sampling_params()
        each = [given] * len(prompts) if isinstance(given, SamplingParams) else list(given)
        if len(each) != len(prompts):
            raise UsageError(f"there are {len(prompts)} prompts but {len(each)} sampling_params")
        outputs: list[RequestOutput] = []
        starts: Any = range(0, len(prompts), self.max_num_seqs)
        for start in track(starts, "answering (batches)") if show else starts:
            end = start + self.max_num_seqs
            # Prepared batch by batch, so that the pixels of a long list are never all in memory.
            jobs = [self.prepare(*pair) for pair in zip(prompts[start:end], each[start:end], strict=True)]
            self.run(jobs)
            outputs += [job.output() for job in jobs]
        return outputs

    def _deltas(self, requests: list[Request]) -> Iterator[Delta]:
        if all(request.aborted for request in requests):
            return
        told: set[int] = set()
        for _ in self._steps(requests):
            for request in requests:
                piece, reason = request.text.take(), request.output.finish_reason
                if piece or (reason and request.index not in told):
                    yield Delta(request.index, piece, reason)
                if reason:
                    told.add(request.index)

    def _steps(self, requests: list[Request]) -> Iterator[None]:
        return batch.run(self.model.module, requests, device=self.model.device)

    def _encode(self, prompt: Prompt) -> Any:
        processor = self.model.processor
        if prompt.ids is not None:
            self._check_ids(prompt.ids)
            return processor.encode_prompt(prompt.ids, prompt.media)
        if prompt.text is not None:
            return processor.encode_prompt(prompt.text, prompt.media)
        return processor.encode(prompt.media, supervise=False)

    def _check_counts(self, prompt: Prompt) -> None:
        for kind, found in (("image", len(prompt.media.images)), ("video", len(prompt.media.videos))):
            limit = self._limits.get(kind)
            if limit is not None and found > limit:
                raise UsageError(f"the prompt has {found} {kind}s, but limit_mm_per_prompt allows {limit}")

    def _check_ids(self, ids: Sequence[int]) -> None:
        most = self.model.processor.config.get_text_config().vocab_size
        wrong = next((token for token in ids if not 0 <= token < most), None)
        if wrong is not None:
            raise UsageError(f"the prompt holds the token id {wrong}, but the model knows 0 to {most - 1}")

    def _check_stops(self, params: SamplingParams) -> None:
        most = self.model.processor.config.get_text_config().vocab_size
        if any(token >= most for token in params.stop_ids):
            raise ParameterError("stop_token_ids", f"must lie between 0 and {most - 1}")

    def _check_media(self, prompt: Prompt) -> None:
        """What alone is too long is refused by its headers: decoded, it might take more memory than there is."""
        vision = self.model.processor.count_vision(prompt.media)
        if vision >= self.max_model_len:
            raise UsageError(
                f"the prompt's images and videos take {vision} tokens, which leaves no room for an answer in "
                f"max_model_len {self.max_model_len}; give fewer or lower max_pixels"
            )

    def _check_length(self, length: int, vision: int) -> None:
        if length >= self.max_model_len:
            raise UsageError(
                f"the prompt has {length} tokens ({vision} of them from images and videos), which leaves "
                f"no room for an answer in max_model_len {self.max_model_len}; shorten it or lower max_pixels"
            )

    def _model_length(self, wanted: int | None) -> int:
        config = self.model.processor.config
        most = int(getattr(config.get_text_config(), "max_position_embeddings", 32768))
        if wanted is None:
            return most
        if not 2 <= wanted <= most:
            raise UsageError(f"max_model_len must be between 2 and the model's {most}, not {wanted}")
        return wanted

    def _find_end_tokens(self) -> frozenset[int]:
        settings = getattr(self.model.module, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        own = self.get_tokenizer().eos_token_id
        return frozenset(ends if own is None else [*ends, own])


def _count(kind: str, limit: Any) -> int:
    if kind not in ("image", "video"):
        raise UsageError(f"limit_mm_per_prompt has {kind!r}; known are image and video")
    number = limit.get("count") if isinstance(limit, Mapping) else limit
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UsageError(f"limit_mm_per_prompt of {kind} must be a whole number from 0, not {limit!r}")
    return number

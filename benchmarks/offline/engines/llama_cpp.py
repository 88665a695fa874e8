"""llama.cpp through `llama-cpp-python`, in a Python of its own; text alone, one prompt at a time.

Built for this machine's processor, which wants cmake and takes a while:

    python -m venv peers/llama
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" peers/llama/bin/pip install llama-cpp-python==0.3.36
"""

from __future__ import annotations

import os
import time

from llama_cpp import Llama

from offline.engines import Job, Prompt


class Engine:
    caches = False

    def __init__(self, job: Job) -> None:
        threads = len(os.sched_getaffinity(0))
        self.llama = Llama(
            job.settings["gguf"],
            n_ctx=job.longest,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.marks: list[float] = []
        self.prompt_tokens = 0

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        self.prompt_tokens = sum(len(prompt.ids or []) for prompt in prompts)
        return [self._answer(prompt.ids or [], new_tokens) for prompt in prompts]

    def encode(self, prompt: Prompt) -> float:
        raise NotImplementedError("the language model has no vision encoder")

    def _answer(self, ids: list[int], new_tokens: int) -> list[int]:
        self.llama.reset()
        self.marks, answer = [], []
        started = time.perf_counter()
        for token in self.llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            self.marks.append(time.perf_counter() - started)
            answer.append(token)
            if len(answer) == new_tokens:
                break
        return answer

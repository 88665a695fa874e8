"""Ours, through the two names a user imports."""

from __future__ import annotations

from typing import Any

from offline.engines import Job, Prompt
from sightline import LLM, SamplingParams


class Engine:
    caches = True

    def __init__(self, job: Job) -> None:
        self.llm = LLM(
            job.model,
            device=job.device,
            max_model_len=job.longest,
            max_num_seqs=job.sequences,
            limit_mm_per_prompt=job.media_limit,
            **job.settings,
        )
        self.marks: list[float] = []
        self.prompt_tokens = 0

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        outputs = self._outputs(prompts, new_tokens)
        self.prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        return [output.outputs[0].token_ids for output in outputs]

    def encode(self, prompt: Prompt) -> float:
        """As the engine itself reports it."""
        return float(self._outputs([prompt], 1)[0].metrics.encode)

    def _outputs(self, prompts: list[Prompt], new_tokens: int) -> list[Any]:
        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        return self.llm.generate([_request(prompt) for prompt in prompts], params, use_tqdm=False)


def _request(prompt: Prompt) -> dict[str, Any]:
    if prompt.ids is not None:
        return {"prompt_token_ids": prompt.ids}
    return {"prompt": prompt.text, "multi_modal_data": {"image": prompt.image}}

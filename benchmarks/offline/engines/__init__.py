"""The contestants, each as its own library's users call it; a file imports nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class Prompt:
    """One prompt: a text with one image mark and the opened picture, or token ids alone."""

    text: str | None = None
    ids: list[int] | None = None
    image: Any = None


@dataclass
class Job:
    """What one process measures; written as JSON by the contest, read by the worker.

    Attributes:
        engine: the module of this package; mode: a function of `offline.measure`.
        settings: of the engine, such as {"quantization": "int8"}.
        image_size: (width, height) of every picture, None where there is none.
        prompts: as `Prompt`, pictures as paths.
        sequences: answers computed together at most.
        new_tokens: of each answer; longest: tokens of prompt and answer at most.
        repeats: how often the short measurements are taken.
    """

    engine: str
    mode: str
    model: str
    settings: dict[str, Any]
    device: str
    prompts: list[dict[str, Any]]
    sequences: int
    new_tokens: int
    longest: int
    repeats: int = 3
    image_size: tuple[int, int] | None = None

    @property
    def media_limit(self) -> dict[str, Any]:
        """vLLM's limit_mm_per_prompt, which keeps start-up from profiling larger pictures than come."""
        if self.image_size is None:
            return {"image": 0, "video": 0}
        width, height = self.image_size
        return {"image": {"count": 1, "width": width, "height": height}, "video": 0}


class Engine(Protocol):
    """Ready to answer once it is made.

    Attributes:
        caches: a prompt seen before costs next to nothing, so that two runs of different length tell a step's time.
        marks: of the latest `generate` where not: seconds from its start to each token.
        prompt_tokens: of the latest prompts together.
    """

    caches: bool
    marks: list[float]
    prompt_tokens: int

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        """Greedy answers of exactly `new_tokens` tokens each; the end token is ignored."""

    def encode(self, prompt: Prompt) -> float:
        """Seconds that the vision encoder takes for a picture it has not seen."""

"""What pictures and clips cost, stage by stage: metrics of our own, for which vLLM has no names."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from sightline.engine.llm import LLM
from sightline.server.metrics.families import Families

# (name, text, histogram of the totals); one value for each request with media that ended well.
_STAGES = (
    ("media_fetch_seconds", "Seconds to get the bytes of a request's images and videos.", "fetch"),
    ("media_decode_seconds", "Seconds from these bytes to pixels.", "decode"),
    (
        "media_preprocess_seconds",
        "Seconds of a request's whole preparation, these two included.",
        "preprocess",
    ),
    ("vision_encode_seconds", "Seconds of the vision encoder for a request.", "encode"),
)


class VisionCollector:
    """Registers with a `prometheus_client.CollectorRegistry`."""

    def __init__(self, llm: LLM, model: str) -> None:
        self._llm = llm
        self._families = Families(model_name=model)

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.engine.stats()
        totals, counter, gauge = stats.totals, self._families.counter, self._families.gauge
        for name, text, source in _STAGES:
            yield self._families.histogram(f"sightline:{name}", text, totals.histograms[source])
        yield counter(
            "sightline:vision_tokens", "Tokens of prompts that stand for media.", totals.vision_tokens
        )
        for name, use, what in (
            ("encoder_cache", stats.encoder_cache, "features of images and videos"),
            ("image_cache", stats.image_cache, "preprocessed images and videos"),
        ):
            yield counter(f"sightline:{name}_queries", f"How often {what} were looked for.", use.queries)
            yield counter(f"sightline:{name}_hits", f"How often {what} were found.", use.hits)
            yield gauge(f"sightline:{name}_bytes", f"Bytes of {what} that are kept.", use.bytes)
        yield counter("sightline:steps", "Steps that were computed.", totals.steps)
        yield counter("sightline:step_seconds", "Seconds that steps took.", totals.step_seconds)
        yield counter("sightline:requests_received", "Requests that the engine took.", stats.received)
        yield counter("sightline:requests_refused", "Requests that could not be prepared.", totals.refused)

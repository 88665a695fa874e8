"""cache-dit on diffusers' `WanPipeline`, in a Python that has it: `dbcache` by thresholds, `scm` by its step masks.

python3 -m venv peers/cache-dit
peers/cache-dit/bin/pip install cache-dit==1.5.3 diffusers==0.42.1 torch==2.13.0 transformers safetensors
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from caching.engines import wan_pipeline
from caching.job import Job


class Engine(wan_pipeline.Engine):
    """A loaded pipeline; its cache is enabled for a job and disabled after it."""

    def versions(self) -> dict[str, str]:
        return super().versions() | {"cache-dit": version("cache-dit")}

    @contextlib.contextmanager
    def cached(self, job: Job) -> Iterator[dict[str, Any]]:
        """The pipeline with the job's cache; tells how many steps it took from it."""
        import cache_dit

        told: dict[str, Any] = {}
        if job.method == "exact":
            yield told
            return
        knobs = dict(job.knobs)
        order = knobs.pop("taylorseer_order", None)
        calibrator = None
        if order is not None:
            calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
        policy = knobs.pop("mask_policy", None)
        if policy is not None:
            knobs["steps_computation_mask"] = cache_dit.steps_mask(mask_policy=policy, total_steps=job.steps)
        config = cache_dit.DBCacheConfig(num_inference_steps=job.steps, **knobs)
        cache_dit.enable_cache(self.pipe, cache_config=config, calibrator_config=calibrator)
        # It wraps the pipeline's class; the clock is the instance's.
        self.pipe.progress_bar = self._bar
        try:
            yield told
            told["cached_steps"] = cached_steps(self.pipe)
        finally:
            cache_dit.disable_cache(self.pipe)
            self.pipe.progress_bar = self._bar


def cached_steps(pipe: Any) -> list[int]:
    """Steps that were taken from the cache, of each branch."""
    import cache_dit

    found = cache_dit.summary(pipe, details=False, logging=False)
    several = found if isinstance(found, list) else [found]
    return [
        len(getattr(one, name, ()) or ()) for one in several for name in ("cached_steps", "cfg_cached_steps")
    ]

"""The servers that are compared, each by the command its own users type, and what a request to it must say.

Every server is given the same limits: bfloat16, so many requests together, so many tokens at most, one picture of the
size that comes. What each needs to be installed:

    sightline      nothing more
    vllm           a Python of its own (benchmarks/offline/engines/vllm.py tells how it is made), by --vllm-python
    transformers   `pip install "transformers[serving]" torchvision`, in this Python or that of --transformers-python;
                   where torchvision has no build for the torch at hand, a copy of the usual one on PYTHONPATH does
                   (made as for vllm), whose io/image.py gets a `decode_image` of Pillow at its end:

                       def decode_image(input, mode=None, apply_exif_orientation=False):
                           import io, numpy, PIL.Image
                           picture = PIL.Image.open(io.BytesIO(input.numpy().tobytes())).convert("RGB")
                           return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).contiguous()
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError

NAMES = ("sightline", "engine", "vllm", "transformers")
ENGINE = "engine"  # ours without HTTP; no server


@dataclass(frozen=True)
class Limits:
    """What servers are told: tokens of the longest request, requests together, the pictures' (width, height)."""

    tokens: int
    requests: int
    image: tuple[int, int]

    @property
    def media(self) -> dict[str, Any]:
        width, height = self.image
        return {"image": {"count": 1, "width": width, "height": height}, "video": 0}


@dataclass(frozen=True)
class Server:
    """A server as it is started.

    Attributes:
        command: without the port, which follows as --port N.
        ready: a path that answers 200 when requests can be sent.
        fields: of every request, beside those that all servers get; None takes a field out.
        asks_for: the model's name in requests; None asks the server.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    ready: str = "/health"
    fields: dict[str, Any] = field(default_factory=dict)
    asks_for: str | None = None


def server(name: str, model: Path, limits: Limits, new_tokens: int, pythons: dict[str, str]) -> Server:
    """The server `name` for a model; `pythons` has the interpreters that were given.

    Raises:
        SightlineError: it needs a Python that was not given.
    """
    make = {"sightline": _sightline, "vllm": _vllm, "transformers": _transformers}[name]
    return make(model.absolute(), limits, new_tokens, pythons)


def _sightline(model: Path, limits: Limits, new_tokens: int, pythons: dict[str, str]) -> Server:
    command = [sys.executable, "-m", "sightline.cli.app", "serve", "--model", str(model)]
    command += ["--dtype", "bf16", "--max-num-seqs", str(limits.requests)]
    command += ["--max-model-len", str(limits.tokens), "--limit-mm-per-prompt", json.dumps(limits.media)]
    return Server("sightline", command, fields={"ignore_eos": True})


def _vllm(model: Path, limits: Limits, new_tokens: int, pythons: dict[str, str]) -> Server:
    if "vllm" not in pythons:
        raise SightlineError("vllm runs in a Python of its own; give it with --vllm-python")
    command = [pythons["vllm"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--dtype", "bfloat16", "--max-num-seqs", str(limits.requests), "--seed", "0"]
    command += ["--max-model-len", str(limits.tokens), "--limit-mm-per-prompt", json.dumps(limits.media)]
    # Left alone it keeps a core for itself, half of a small machine; see benchmarks/offline/engines/vllm.py.
    environment = {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    return Server("vllm", command, environment, fields={"ignore_eos": True})


def _transformers(model: Path, limits: Limits, new_tokens: int, pythons: dict[str, str]) -> Server:
    """Answers one request after the other where the model takes pictures; refuses the fields it does not know."""
    python = Path(pythons.get("transformers", sys.executable))
    command = [str(python.with_name("transformers")), "serve", str(model), "--dtype", "bfloat16"]
    # It knows no ignore_eos, and ends at the tokens of the model's own generation config.
    generation = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    fields = {"generation_config": json.dumps(generation), "stream_options": None}
    return Server("transformers", [*command, "--device", "cpu"], fields=fields, asks_for=str(model))

"""What is in a folder or file of weights, from headers and configuration alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightline.checkpoints.adapter import read_settings
from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron.files import LATEST, MegatronFiles
from sightline.checkpoints.names import canonical, unwrapped
from sightline.checkpoints.store import Store
from sightline.errors import SightlineError
from sightline.files import read_object

# By the beginning of our canonical names, and of MindSpeed-MM's. The first that fits.
_PARTS = (
    ("visual.merger.", "projector"),
    ("visual.deepstack_merger_list.", "projector"),
    ("visual.", "vision tower"),
    ("text.embed_tokens.", "embedding"),
    ("text.", "language model"),
    ("lm_head.", "head"),
    ("image_encoder.projector.", "projector"),
    ("image_encoder.", "vision tower"),
    ("text_decoder.embedding.", "embedding"),
    ("text_decoder.output_layer.", "head"),
    ("text_decoder.", "language model"),
    ("blocks.", "blocks"),
)


@dataclass
class Group:
    """Some of the tensors: how many, how many numbers they hold, and their bytes."""

    tensors: int = 0
    numbers: int = 0
    bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.tensors += 1
        self.numbers += math.prod(entry.shape)
        self.bytes += entry.bytes


@dataclass
class Inspection:
    """
    Attributes:
        kind: model, adapter, MindSpeed-MM checkpoint, or weights.
        architecture: class or model type, where a config.json tells.
        parts, dtypes: groups of the tensors.
        files: of weights, with their bytes.
        details: what else is to be said: layers, ranks of an adapter, how a checkpoint is cut.
    """

    path: str
    kind: str
    architecture: str | None
    total: Group
    parts: dict[str, Group]
    dtypes: dict[str, Group]
    files: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def inspect(path: str | Path) -> Inspection:
    """Look into a model folder, an adapter folder, a checkpoint of MindSpeed-MM, or a file of safetensors.

    Raises:
        SightlineError: it is none of these, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise SightlineError(f"{path} does not exist")
    if path.is_dir() and (path / "adapter_config.json").is_file():
        return _adapter(path)
    if path.is_dir() and ((path / LATEST).is_file() or any(path.glob("mp_rank_*"))):
        return _megatron(path)
    inside = path / "transformer"
    if path.is_dir() and not (path / "config.json").is_file() and (inside / "config.json").is_file():
        path = inside  # of a diffusers pipeline
    store = Store(path)
    config = read_object(path / "config.json") if (path / "config.json").is_file() else {}
    found = _inspection(path, "model" if config else "weights", store.entries.items())
    found.architecture = _architecture(config)
    found.details = _model_details(config)
    return found


def _inspection(path: Path, kind: str, tensors: Iterable[tuple[str, Entry]]) -> Inspection:
    total = Group()
    parts: dict[str, Group] = {}
    dtypes: dict[str, Group] = {}
    files: dict[str, int] = {}
    root = path if path.is_dir() else path.parent
    for name, entry in tensors:
        total.add(entry)
        parts.setdefault(_part(name), Group()).add(entry)
        dtypes.setdefault(entry.dtype, Group()).add(entry)
        file = str(entry.file.relative_to(root))
        files.setdefault(file, entry.file.stat().st_size)
    return Inspection(str(path), kind, None, total, parts, dtypes, files)


def _adapter(path: Path) -> Inspection:
    settings = read_settings(path)
    store = Store(path / "adapter_model.safetensors")
    found = _inspection(path, "adapter", ((unwrapped(name), entry) for name, entry in store.entries.items()))
    ranks = Counter(
        entry.shape[0] for name, entry in store.entries.items() if re.search(r"\.lora_(embedding_)?A", name)
    )
    modules = Counter(
        match[1] for name in store if (match := re.search(r"([^.]+)\.lora_(?:embedding_)?A", name))
    )
    whole = sorted({unwrapped(name) for name in store if ".lora_" not in name})
    found.architecture = (settings.get("auto_mapping") or {}).get("base_model_class")
    found.details = {
        "method": "DoRA" if settings.get("use_dora") else settings.get("peft_type", "LORA"),
        "base": settings.get("base_model_name_or_path"),
        "rank": {str(rank): count for rank, count in sorted(ranks.items())},
        "alpha": settings.get("lora_alpha"),
        "rslora": bool(settings.get("use_rslora")),
        "targets": dict(sorted(modules.items())),
        "trained whole": len(whole),
    }
    return found


def _megatron(path: Path) -> Inspection:
    files = MegatronFiles(path)
    found = _inspection(
        files.folder, "MindSpeed-MM checkpoint", ((p.name, e) for p, e in files.entries.items())
    )
    found.path = str(path)
    found.details = {
        "tensor-parallel ranks": files.tensor_ranks,
        "pipeline ranks": files.pipeline_ranks,
        "virtual stages of each": files.chunks,
        "canonical": any(".q_proj." in place.name for place in files.entries),
        "iteration": files.folder.name,
    }
    return found


def _architecture(config: dict[str, Any]) -> str | None:
    kinds = config.get("architectures") or [config.get("_class_name") or config.get("model_type")]
    return str(kinds[0]) if kinds and kinds[0] else None


def _model_details(config: dict[str, Any]) -> dict[str, Any]:
    text = {**config, **(config.get("text_config") or {})}
    vision = config.get("vision_config") or {}
    quantization = config.get("quantization_config") or {}
    details = {
        "layers": text.get("num_hidden_layers") or text.get("num_layers"),
        "hidden size": text.get("hidden_size"),
        "vision layers": vision.get("depth"),
        "vocabulary": text.get("vocab_size"),
        "tied embedding": config.get("tie_word_embeddings", text.get("tie_word_embeddings")),
        "quantization": quantization.get("format") or quantization.get("quant_method"),
    }
    return {name: value for name, value in details.items() if value is not None}


def _part(name: str) -> str:
    ours = canonical(name)
    return next((part for start, part in _PARTS if ours.startswith(start)), "other")

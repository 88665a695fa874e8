"""LoRA adapters between PEFT and MindSpeed-MM."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sightline.checkpoints.job import sources
from sightline.checkpoints.megatron import lora
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.convert import MAX_SHARD, check_complete, check_copies
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Layout
from sightline.checkpoints.megatron.output import ConversionReport, Run, write_hugging_face, write_megatron
from sightline.checkpoints.names import NEW
from sightline.checkpoints.store import read_config
from sightline.checkpoints.tiling import planned
from sightline.errors import UsageError
from sightline.files import write_json

_ONCE = Run()


def lora_hf_to_mm(
    adapter: str | Path, base: str | Path, output: str | Path, layout: Layout, run: Run = _ONCE
) -> tuple[ConversionReport, dict[str, Any]]:
    """Cut a PEFT adapter as MindSpeed-MM saves its own; gives its adapter_config.json too, whose r and lora_alpha the
    training script must be told again.

    Args:
        base: the model's folder, for its config.json.

    Raises:
        UsageError: the layout does not fit. SightlineError: the adapter has more than LoRA on linear maps.
    """
    model = Architecture.of(read_config(base), str(base))
    layout.check(model)
    source = lora.open_peft(adapter)
    mosaics = lora.mosaics(layout, model, source.entries)
    check_complete(mosaics, {key: entry.shape for key, entry in source.entries.items()})
    report = write_megatron(
        output,
        mosaics,
        source.entries,
        lambda entry: source.store.descriptor(entry.file),
        layout=layout.words(),
        ranks=layout.files,
        plan={
            "job": "lora-hf-to-mm",
            "model": asdict(model),
            "sources": sources(entry.file for entry in source.entries.values()),
        },
        run=run,
    )
    return report, source.settings


def lora_mm_to_hf(
    folder: str | Path,
    base: str | Path,
    output: str | Path,
    layout: Layout,
    *,
    alpha: float | None,
    names: str = NEW,
    run: Run = _ONCE,
) -> ConversionReport:
    """Put an adapter of MindSpeed-MM together as a PEFT folder, with its adapter_config.json.

    Args:
        base: the model's folder, for its config.json.
        layout: as it was trained; the files show only the layers that have LoRA.
        alpha: --lora-alpha of the training, which is in none of the files.
        names: new or old, as the installed transformers calls its modules (new since 4.52).

    Raises:
        UsageError: no alpha. SightlineError: the files are not those of this model in this layout.
    """
    if alpha is None or not alpha > 0:
        raise UsageError(
            "--lora-alpha is needed: MindSpeed-MM's files do not hold it; give that of the training"
        )
    model = Architecture.of(read_config(base), str(base))
    layout = replace(layout, canonical=True)
    layout.check(model)
    files = MegatronFiles(folder)
    found, mosaics = lora.back(files, layout, model)
    check_copies(files, mosaics)
    tensors = {lora.peft_name(key, names): mosaic for key, mosaic in found.items()}
    settings = lora.peft_settings(tensors, alpha, str(base))
    return write_hugging_face(
        output,
        [planned(name, mosaic, files.entries, files.descriptor) for name, mosaic in tensors.items()],
        layout=layout.words(),
        limit=MAX_SHARD * 1000,  # PEFT reads one file
        stem="adapter_model",
        plan={"job": "lora-mm-to-hf", "settings": settings, "sources": sources(files.files.values())},
        run=run,
        beside=lambda target: write_json(target / "adapter_config.json", settings),
    )

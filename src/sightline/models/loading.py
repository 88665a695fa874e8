"""From a checkpoint folder to a model in memory, with an error a user can act on for everything that can be wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.checkpoints.store import Store
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError, UsageError, first_line
from sightline.hardware.accelerator import Accelerator, dtype_from_name, find
from sightline.hardware.host_memory import keep_freed_memory
from sightline.hardware.out_of_memory import explained
from sightline.models.attention import batch_segments
from sightline.models.processor import Processor, load_processor
from sightline.models.quantization.module import load_quantized, quantization_of, quantize_module
from sightline.models.rewrites import apply_rewrites
from sightline.models.spread import Placement, plan, spread
from sightline.progress import note


@dataclass
class VisionLanguageModel:
    """A transformers model with all that is needed to talk to it."""

    module: Any
    processor: Processor
    accelerator: Accelerator
    dtype: torch.dtype
    folder: Path
    placement: Placement | None = None

    @property
    def spread(self) -> bool:
        """Whether its parts are on several devices, so that each layer has a device of its own."""
        return self.placement is not None

    @property
    def device(self) -> torch.device:
        """Where token ids and embeddings go."""
        if self.placement is not None:
            return self.placement.device_of("model.language_model.embed_tokens")
        return self.accelerator.torch_device

    @property
    def layer_devices(self) -> list[torch.device]:
        """Where each decoder layer computes, and so where its keys and values lie."""
        count = int(self.processor.config.get_text_config().num_hidden_layers)
        if self.placement is None:
            return [self.device] * count
        return [self.placement.device_of(f"model.language_model.layers.{index}") for index in range(count)]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer


def load_model(
    folder: str | Path,
    *,
    device: str | None = None,
    dtype: str | torch.dtype = "auto",
    adapter: str | Path | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
    attention: str = "sdpa",
    processor: Processor | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload_folder: str | Path | None = None,
    quantization: str | None = None,
) -> VisionLanguageModel:
    """Load a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint in evaluation mode.

    Args:
        device: "cpu", "cuda", "cuda:1", "npu", ...; None takes the best there is.
        dtype: "auto" (what the device prefers), "bf16", "fp16" or "fp32".
        adapter: a PEFT adapter folder to put on top. Its pixel limits, recorded in training, are used.
        attention: an implementation that transformers knows, such as `sightline.models.attention.NAME`.
        processor: the folder's, where it is read already; the pixel limits are then its own.
        device_map: "auto" spreads a model larger than one card over the visible cards by their free memory; a
            dict says for names of modules which device they go to. The weights pass through host memory.
        max_memory: for "auto", what each may take: {0: "20GiB", 1: "20GiB", "cpu": "64GiB"}. What fits none of
            them stays on disk, in `offload_folder`.
        quantization: "int8" or "int4" computes in fewer bits than the checkpoint holds. A checkpoint of
            `sightline quantize` is loaded as it is.

    Raises:
        SightlineError: see the checks below; each names the file or the setting to change.
    """
    folder = Path(folder)
    if processor is None:
        processor = _load_processor(folder, adapter, max_pixels, min_pixels)
    accelerator = find(device)
    torch_dtype = dtype_from_name(dtype, accelerator) if isinstance(dtype, str) else dtype
    if accelerator.kind == "cpu":
        keep_freed_memory()
    check_weights(folder)
    stored = quantization_of(folder)
    _check_quantization(folder, stored, quantization, adapter)
    load = _load_module if stored is None else _load_quantized
    module = load(folder, processor, torch_dtype, attention)
    apply_rewrites(module)
    batch_segments(module.model.visual)
    if adapter is not None:
        module = _with_adapter(module, Path(adapter))
    elif quantization is not None and stored is None:
        _report_kept(quantize_module(module, quantization).kept)
    module.eval()
    placement = None
    if device_map is not None:
        # The hooks go into the transformers module itself, also where an adapter is around it.
        inner = module.get_base_model() if adapter is not None else module
        places = plan(inner, device_map, max_memory, accelerator)
        if set(places) == {""} and places[""] != "disk":
            accelerator = find(str(places[""]))
        else:
            with _fitting(folder, "the devices of device_map"):
                placement = spread(inner, places, offload_folder)
    if placement is None:
        with _fitting(folder, str(accelerator)):
            module = module.to(accelerator.torch_device)
    return VisionLanguageModel(module, processor, accelerator, torch_dtype, folder, placement)


def _fitting(folder: Path, where: str) -> AbstractContextManager[None]:
    return explained(
        f"the weights in {folder} do not fit into the memory of {where}",
        "use a larger card, spread them over several with device_map auto, or halve them with quantization int8",
    )


def _load_processor(
    folder: Path, adapter: str | Path | None, max_pixels: int | None, min_pixels: int | None
) -> Processor:
    """The folder's processor; where training wrote pixel limits into the adapter, those count."""
    processor = load_processor(folder, max_pixels=max_pixels, min_pixels=min_pixels)
    if adapter is not None:
        processor.vision = vision_of(processor, adapter, max_pixels=max_pixels, min_pixels=min_pixels)
    return processor


def vision_of(
    processor: Processor,
    adapter: str | Path,
    *,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
) -> VisionSpec:
    """How pictures are brought to the tower with an adapter: the pixel limits that its training recorded, if it did."""
    if not (Path(adapter) / "preprocessor_config.json").exists():
        return processor.vision
    return VisionSpec.from_folder(
        adapter, processor.family.model_type, max_pixels=max_pixels, min_pixels=min_pixels
    )


def _load_module(folder: Path, processor: Processor, dtype: torch.dtype, attention: str) -> Any:
    import transformers

    transformers.logging.disable_progress_bar()  # a line for every tensor where stderr is no terminal
    transformers.logging.set_verbosity_error()  # its table of odd tensors; they are reported below
    try:
        module, report = processor.family.model_class().from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            attn_implementation=attention,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except Exception as error:
        # transformers and safetensors raise many kinds here; each means that the folder cannot be loaded.
        raise SightlineError(f"cannot load the weights in {folder}: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise SightlineError(
            f"the weights in {folder} lack {len(missing)} tensors, first {missing[0]}; the checkpoint is incomplete"
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        note(
            f"{folder}: {len(unexpected)} tensors are not part of the model and left out, first {unexpected[0]}"
        )
    mismatched = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if mismatched:
        raise SightlineError(f"{mismatched[0]} in {folder} does not have the shape that config.json says")
    return module


def _load_quantized(folder: Path, processor: Processor, dtype: torch.dtype, attention: str) -> Any:
    model_class = processor.family.model_class()
    config = model_class.config_class.from_pretrained(str(folder))
    return load_quantized(model_class, config, folder, dtype=dtype, attention=attention)


def _check_quantization(
    folder: Path, stored: str | None, wanted: str | None, adapter: str | Path | None
) -> None:
    if wanted not in (None, "int8", "int4"):
        raise UsageError(f"quantization is {wanted!r}; known are int8 and int4")
    if stored is not None and wanted not in (None, stored):
        raise UsageError(
            f"{folder} is a checkpoint in {stored}; it cannot be loaded with quantization {wanted}"
        )
    if adapter is not None and (stored or wanted):
        raise UsageError(
            f"an adapter cannot be put on weights in {stored or wanted}; merge it first with sightline merge, "
            "then quantize what that gives"
        )


def _report_kept(kept: list[str]) -> None:
    if kept:
        note(f"{len(kept)} linear layers keep their dtype, first {kept[0]}: their shape suits no kernel")


def check_weights(folder: Path) -> None:
    """Every shard that the index names must be there and whole; only headers are read.

    Raises:
        SightlineError: no weights, shards missing or cut off.
    """
    Store(folder)


def _with_adapter(module: Any, adapter: Path) -> Any:
    if not (adapter / "adapter_config.json").exists():
        raise SightlineError(f"{adapter} holds no adapter_config.json, so it is not a PEFT adapter folder")
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # Of the libraries about one another; that keys find no place is an error below.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(module, adapter, is_trainable=False)
        _check_placed(adapted, adapter)
    except SightlineError:
        raise
    except Exception as error:
        # peft raises many kinds for an adapter that does not fit; each means just that.
        raise SightlineError(f"the adapter {adapter} does not fit this model: {first_line(error)}") from error
    return adapted


def _check_placed(adapted: Any, adapter: Path) -> None:
    """Every tensor of the adapter must have a place: PEFT only warns, and the base would answer alone."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    path = adapter / "adapter_model.safetensors"
    if not path.exists():
        raise SightlineError(f"{adapter} holds no adapter_model.safetensors")
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    placed = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    astray = sorted(stored - placed)
    if astray:
        raise SightlineError(
            f"{len(astray)} of {len(stored)} tensors of the adapter {adapter} have no place in this model, "
            f"first {astray[0]}; it was made for another model or another version of transformers"
        )
    lacking = sorted(placed - stored)
    if lacking:
        raise SightlineError(f"the adapter {adapter} lacks {len(lacking)} tensors, first {lacking[0]}")

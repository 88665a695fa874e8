"""What 8 and 4 bit cost in accuracy, on a model that was fine-tuned for questions with one right answer.

    python benchmarks/quantization.py --model demo/merged --data demo/data/held-out.jsonl [--samples 500]

`sightline demo` makes both. Each question is run once with its right answer behind it; the model answers it, greedily,
if and only if the likeliest token is the answer's at every place, the end included. The distributions at these places
are compared with those of the same weights computed in float32: mean Kullback-Leibler divergence in nats, and the share
of places with the same likeliest token. A prompt has many rows, so 4 bit weights are widened to 8 as in any prefill;
the last variant uses the product of decoding, which reads the 4 bits themselves, for all rows.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.data.rows import load_conversations
from sightline.models.loading import load_model
from sightline.models.processor import Encoded
from sightline.models.quantization import int4
from sightline.models.quantization.module import quantize_module


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    dtype: str = "bf16"
    kind: str | None = None
    group: int | None = None
    skip: tuple[str, ...] = ()
    few_rows: int | None = None


VARIANTS = (
    Variant("float32", dtype="fp32"),
    Variant("bfloat16"),
    Variant("int8", kind="int8"),
    Variant("int8, vision tower left", kind="int8", skip=("visual.*",)),
    Variant("int8, head left", kind="int8", skip=("lm_head",)),
    Variant("int4, groups of 32", kind="int4"),
    Variant("int4, groups of 64", kind="int4", group=64),
    Variant("int4, groups of 128", kind="int4", group=128),
    Variant("int4, groups of 32, 4 bit product for all rows", kind="int4", few_rows=1 << 30),
)


@torch.inference_mode()
def logits_of(module: Any, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits before each token of the answer float32 [places, V], these tokens [places])"""
    places = (encoded.labels >= 0).nonzero()[:, 0]
    output = module.model(
        input_ids=encoded.input_ids[None],
        position_ids=encoded.position_ids[:, None],
        mm_token_type_ids=encoded.kinds[None],
        pixel_values=encoded.pixel_values,
        image_grid_thw=encoded.image_grid_thw,
        use_cache=False,
    )
    return module.lm_head(output.last_hidden_state[0, places - 1]).float(), encoded.labels[places]


def run(variant: Variant, folder: Path, data: Path, samples: int, reference: list[Any]) -> str:
    """Measure one variant; the first, which fills `reference`, is what the others are compared with."""
    model = load_model(folder, device="cpu", dtype=variant.dtype)
    if variant.kind is not None:
        quantize_module(model.module, variant.kind, group=variant.group, skip=variant.skip)
    before, int4._FEW_ROWS = int4._FEW_ROWS, variant.few_rows or int4._FEW_ROWS
    right = places = same = 0
    divergence = 0.0
    conversations = load_conversations(data, max_samples=samples)
    for index, conversation in enumerate(conversations):
        logits, tokens = logits_of(model.module, model.processor.encode(conversation, supervise=True))
        chosen, log_probabilities = logits.argmax(-1), logits.log_softmax(-1)
        if len(reference) == index:
            reference.append(log_probabilities.half())
        wanted = reference[index].float()
        right += bool((chosen == tokens).all())
        places += len(tokens)
        same += int((chosen == wanted.argmax(-1)).sum())
        divergence += float((wanted.exp() * (wanted - log_probabilities)).sum())
    int4._FEW_ROWS = before
    accuracy = right / len(conversations)
    return f"| {variant.name} | {accuracy:.1%} | {divergence / places:.5f} | {same / places:.2%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=500)
    arguments = parser.parse_args()
    reference: list[torch.Tensor] = []
    print("| weights and activations | right answers | mean KL | same likeliest token |\n|---|---|---|---|")
    for variant in VARIANTS:
        print(run(variant, arguments.model, arguments.data, arguments.samples, reference), flush=True)


if __name__ == "__main__":
    main()

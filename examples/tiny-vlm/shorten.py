"""Keep the first layers of a checkpoint's language model: a short one teaches a new tower several times faster.

    python examples/tiny-vlm/shorten.py BASE OUT --layers 4

A tower that knows nothing gets little from a deep language model: its gradient comes from far away and every sample
costs the whole depth. The first layers read the same embeddings, so what the tower learns with them carries over.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from sightline.files import replacing_folder

# With or without `language_model.` before it, as transformers' versions write it; the tower's are called blocks.
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def shorten(base: Path, output: Path, layers: int) -> None:
    """Write `base` with only the first `layers` of its language model."""
    weights = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if _depth(name) < layers}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    text["num_hidden_layers"] = layers
    text["layer_types"] = text["layer_types"][:layers]
    with replacing_folder(output) as folder:
        for path in base.iterdir():
            if path.name not in ("model.safetensors", "config.json"):
                shutil.copy(path, folder / path.name)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _depth(name: str) -> int:
    found = _LAYER.search(name)
    return int(found.group(1)) if found else -1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    shorten(options.base, options.output, options.layers)

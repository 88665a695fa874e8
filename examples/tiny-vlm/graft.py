"""Put the vision tower that a run trained into another checkpoint of the same tower shape.

python examples/tiny-vlm/graft.py BASE RUN OUT
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from sightline.errors import SightlineError
from sightline.files import replacing_folder


def graft(base: Path, run: Path, output: Path) -> None:
    """Write `base` with tower and merger of the adapter folder `run`, which must hold them whole."""
    weights = load_file(base / "model.safetensors")
    places = {_place(name): name for name in weights if "visual." in name}
    trained = {
        _place(name): tensor
        for name, tensor in load_file(run / "adapter_model.safetensors").items()
        if "visual." in name
    }
    if set(trained) != set(places):
        odd = sorted(set(trained) ^ set(places))[0]
        raise SightlineError(f"the towers of {run} and {base} differ in {odd}")
    for place, tensor in trained.items():
        weights[places[place]] = tensor.to(weights[places[place]].dtype)
    with replacing_folder(output) as folder:
        for path in base.iterdir():
            if path.name != "model.safetensors":
                shutil.copy(path, folder / path.name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _place(name: str) -> str:
    """The name from `visual.` on: what stands before it differs between PEFT and versions of transformers."""
    return name[name.index("visual.") :]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    graft(options.base, options.run, options.output)

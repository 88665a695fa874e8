"""The store's faults: each is one sentence that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError


def make_sharded(folder: Path) -> None:
    folder.mkdir()
    save_file({"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}, folder / "one.safetensors")
    save_file({"b": torch.ones(4), "c": torch.tensor(3)}, folder / "two.safetensors")
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_reads_shards_lazily(tmp_path: Path) -> None:
    make_sharded(tmp_path / "model")
    store = Store(tmp_path / "model")
    assert sorted(store) == ["a", "b", "c"]
    assert (store.shape("a"), store.dtype("a")) == ((2, 3), "BF16")
    assert store.bytes == 12 + 16 + 8
    assert torch.equal(store.get("a"), torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))
    assert "z" not in store


def test_reads_one_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert len(Store(tmp_path / "x.safetensors")) == 1


def cut(folder: Path) -> None:
    file = folder / "two.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def misplace(folder: Path) -> None:
    places = {"a": "two.safetensors", "b": "two.safetensors", "d": "one.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def duplicate(folder: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, folder / "one.safetensors")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda folder: (folder / "two.safetensors").unlink(), "lacks the shard two.safetensors"),
        (cut, "two.safetensors is cut off"),
        (misplace, "which does not hold it"),
        (duplicate, "b stands in both"),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "no model.safetensors.index.json",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "weight_map"),
        (lambda folder: (folder / "one.safetensors").write_text(""), "cut off or not a safetensors"),
        (
            lambda folder: (folder / "one.safetensors").write_bytes(b"\x04" + bytes(7) + b"oops"),
            "cannot be read",
        ),
    ],
)
def test_faults(tmp_path: Path, fault: object, words: str) -> None:
    make_sharded(tmp_path / "model")
    fault(tmp_path / "model")  # type: ignore[operator]
    with pytest.raises(SightlineError, match=words):
        Store(tmp_path / "model")


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="does not exist"):
        Store(tmp_path / "nowhere")
    with pytest.raises(SightlineError, match="no weights"):
        Store(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(SightlineError, match="pickled"):
        Store(tmp_path)
    with pytest.raises(SightlineError, match=r"no config\.json"):
        read_config(tmp_path)
    with pytest.raises(SightlineError, match="not a folder"):
        read_config("Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize("header", [b"[1, 2]", b'{"a": 1}', b'{"a": {"dtype": "F32"}}'])
def test_a_header_of_another_kind_is_named(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(SightlineError, match="not a safetensors file"):
        Store(tmp_path)

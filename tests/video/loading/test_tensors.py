"""Files of weights are opened by their headers, and none of them can do harm."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sightline.errors import SightlineError
from sightline.video.loading.names import renamed, swapped
from sightline.video.loading.tensors import open_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def refused(path: Path, text: str) -> None:
    with pytest.raises(SightlineError, match=text) as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pt", "x.bin", "x"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_either_kind_of_file_gives_its_tensors_by_name(tmp_path: Path, name: str, prefix: str) -> None:
    state = {prefix + key: value for key, value in STATE.items()}
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    tensors = open_tensors(tmp_path / name)
    assert set(tensors.entries) == set(STATE)
    assert tensors.bytes == 24 + 8
    for key, value in STATE.items():
        assert torch.equal(tensors.read(key), value)
        assert tensors.shape(key) == tuple(value.shape)
    with pytest.raises(SightlineError, match="has no tensor c; it is not the file it was taken for"):
        tensors.shape("c")


def test_a_state_inside_of_what_a_trainer_saves(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3}, tmp_path / "a.pth")
    assert set(open_tensors(tmp_path / "a.pth").entries) == set(STATE)
    torch.save({"generator": STATE, "critic": STATE}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", "has generator.a.weight where tensors by name were expected")
    torch.save({"state_dict": STATE, "b": torch.zeros(1)}, tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "where tensors by name were expected")


@pytest.mark.parametrize("blocked", [True, False])
def test_a_pickle_with_code_in_it_runs_nothing(tmp_path: Path, blocked: bool) -> None:
    (tmp_path / "source").write_text("")
    harmed = tmp_path / "harmed"

    class Harm:
        def __reduce__(self) -> Any:
            if blocked:  # torch knows this module as harmful
                return os.system, (f"touch {harmed}",)
            return shutil.copyfile, (str(tmp_path / "source"), str(harmed))

    torch.save({**STATE, "harm": Harm()}, tmp_path / "evil.pth")
    if blocked:
        refused(tmp_path / "evil.pth", "objects that only their own code can read .*posix.system")
    else:
        assert set(open_tensors(tmp_path / "evil.pth").entries) == set(STATE)
    torch.save(Harm(), tmp_path / "worse.pth")
    refused(tmp_path / "worse.pth", "only their own code can read|holds no tensors")
    assert not harmed.exists()
    torch.load(tmp_path / "worse.pth", weights_only=False)
    assert harmed.exists()  # it would have been


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 30):
        cut.write_bytes(whole[:length])
        refused(cut, "cut off or is not a file of torch.save")
    cut.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(cut, "git lfs pull")
    cut.write_bytes(b"<html>not found</html>")
    refused(cut, "not a file of torch.save")
    cut.unlink()
    cut.mkdir()
    refused(cut, "has no weights")
    refused(tmp_path / "nowhere", "does not exist; give a file of weights")
    torch.save({}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "holds no tensors")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no tensors|where tensors by name")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "torch's old format|cut off")
    torch.save({"a": torch.ones(4, 4).T}, tmp_path / "view.pth")
    refused(tmp_path / "view.pth", "is a view of another tensor")
    torch.save({"a": torch.ones(2, dtype=torch.complex128)}, tmp_path / "complex.pth")
    refused(tmp_path / "complex.pth", "of the type complex128; save it again in bfloat16")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.pth", "not a file of torch.save")


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(64)
    with pytest.raises(SightlineError, match="was cut off while it was read"):
        tensors.read("a.weight")


def test_a_header_that_names_a_tensor_twice(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = f'{{"a": {json.dumps(entry)}, "a": {json.dumps(entry)}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    refused(tmp_path / "a.safetensors", "a stands in it twice")


def test_the_file_of_diffusers_counts_among_others(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "diffusion_pytorch_model.safetensors")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert set(open_tensors(tmp_path).entries) == set(STATE)


def test_renaming_loses_and_doubles_nothing(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    table = (("a.", "c.d."), ("b", "e"))
    assert [swapped(name, table) for name in ("a.weight", "b", "bb", "x")] == ["c.d.weight", "e", None, None]
    moved = renamed(tensors, ((name, swapped(name, table)) for name in tensors.entries), "a thing")
    assert torch.equal(moved.read("c.d.weight"), STATE["a.weight"])
    with pytest.raises(SightlineError, match="holds b, which is no tensor of a thing"):
        renamed(tensors, ((name, swapped(name, table[:1])) for name in tensors.entries), "a thing")
    with pytest.raises(SightlineError, match="holds same twice"):
        renamed(tensors, ((name, "same") for name in tensors.entries), "a thing")

"""The video command: the table of attention kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.cli.app import main
from sightline.hardware.operators.dense_attention import attention_forward, choice, forget, measured


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    forget()


def tune(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["video", "tune", "--device", "cpu", *arguments])
    return int(left.value.code or 0)


def test_prints_a_table_with_the_chosen_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--shape", "1x2x24x16", "--keys", "10", "--dtype", "fp32", "--mask", "keys") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fp32 b1 n2 q24 k10 d16 BSND mask:k on cpu (")
    assert lines[1].split() == ["kernel", "layout", "ms", "TFLOP/s", "share", "error"]
    names = [line.split()[0] for line in lines[2:5]]
    assert names == ["sdpa", "sdpa_copied", "chunked"]
    assert sum(line.endswith("chosen") for line in lines[2:5]) == 1
    assert "of a large matrix product in fp32 here" in lines[5]


def test_a_call_takes_what_was_tuned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune("--shape", "1*2*24*16", "--dtype", "fp32", "--head_first", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["key"] == "fp32 b1 n2 q24 k24 d16 BNSD"
    (chosen,) = [trial for trial in value["trials"] if trial["chosen"]]
    assert value["chosen"] == {"name": chosen["name"], "layout": chosen["layout"]}
    assert chosen["share_of_product_rate"] == pytest.approx(
        value["operations"] / chosen["seconds"] / value["product_flops"]
    )
    forget()
    monkeypatch.setattr(choice, "measure", None)  # not again
    attention_forward(*(torch.randn(1, 2, 24, 16) for _ in range(3)), head_first=True)
    assert tune("--shape", "1x2x24x16", "--dtype", "fp32", "--head-first") == 0


def test_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune() == 0
    assert "Nothing was measured" in capsys.readouterr().out
    tune("--shape", "1x2x24x16", "--dtype", "bf16")
    tune("--shape", "1x2x24x16", "--dtype", "fp32", "--again")
    capsys.readouterr()
    assert tune() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "bf16 b1 n2 q24 k24 d16 BSND",
        "fp32 b1 n2 q24 k24 d16 BSND",
    ]
    assert tune("--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_says_why_a_kernel_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.hardware.operators.dense_attention.forms import Form

    def broken(*arguments: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(choice, "forms_for", lambda kind: [Form("broken", "BSND", broken)])
    assert tune("--shape", "1x2x24x16") == 0
    printed = capsys.readouterr().out
    assert "broken                  BSND      failed: no such kernel" in printed
    assert "attention_forward takes the definition" in printed


def test_again_measures_anew() -> None:
    assert tune("--shape", "1x2x24x16", "--dtype", "fp32") == 0
    problem = choice.measurements(torch.device("cpu"))[0].problem
    first = measured(problem, torch.device("cpu"), "cpu")
    assert tune("--shape", "1x2x24x16", "--dtype", "fp32") == 0
    assert measured(problem, torch.device("cpu"), "cpu") is first
    assert tune("--shape", "1x2x24x16", "--dtype", "fp32", "--again") == 0
    assert measured(problem, torch.device("cpu"), "cpu") is not first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "1x2x24"), "is not BATCHxHEADSxTOKENSxHEAD_SIZE"),
        (("--shape", "0x2x24x16"), "is not BATCHxHEADSxTOKENSxHEAD_SIZE"),
        (("--shape", "1x2x24x16", "--kv-heads", "3"), "2 query heads cannot share 3 key heads"),
        (("--shape", "1x2x24x16", "--mask", "causal"), "is not one of none, keys, samples, full"),
        (("--shape", "1x2x24x16", "--dtype", "int8"), "not one of auto, bf16, fp16, fp32"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())

"""A batch: every prompt becomes a video once, whatever happens in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wan_folder import make_wan_folder

from sightline.errors import SightlineError
from sightline.files import only_user
from sightline.video.batch import Batch, Item, run_batch
from sightline.video.builders import fixed_interval
from sightline.video.making import Maker
from sightline.video.pipeline import VideoPipeline
from sightline.video.prompts import BadRow, Row
from sightline.video.setting import Setting
from sightline.video.writing import save as saving
from sightline.video.writing.record import Record

SETTINGS = {"width": 16, "height": 16, "frames": 1, "steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "model", layers=2)


@pytest.fixture(scope="module")
def maker(folder: Path) -> Maker:
    pipeline = VideoPipeline.load(folder, dtype="fp32", device="cpu")
    return Maker(pipeline, {"model": str(folder), "dtype": "float32"}, lambda request: None)


def rows(*prompts: str, **settings: Any) -> list[Row]:
    return [Row(n, n, prompt, settings, f"{n:04d}-{prompt}") for n, prompt in enumerate(prompts, 1)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(maker: Maker, rows: list[Row], folder: Path, **options: Any) -> Batch:
    return run_batch(maker, rows, options.pop("bad", []), folder, settings=SETTINGS, **options)


def test_each_prompt_becomes_a_video_with_its_record(maker: Maker, tmp_path: Path) -> None:
    batch = run(maker, rows("one", "two"), tmp_path / "out")
    assert names(tmp_path / "out") == [
        "0001-one.json",
        "0001-one.mp4",
        "0002-two.json",
        "0002-two.mp4",
        "results.jsonl",
    ]
    assert (batch.count("done"), batch.failures) == (2, [])
    lines = results(tmp_path / "out")
    assert [(line["line"], line["file"], line["status"], line["seed"]) for line in lines] == [
        (1, "0001-one.mp4", "done", 0),
        (2, "0002-two.mp4", "done", 0),
    ]
    record = Record.read(tmp_path / "out" / "0002-two.json")
    assert record.request.prompt == "two"
    # The same as this prompt alone.
    alone = maker.make(maker.order("two", **SETTINGS), tmp_path / "alone.mp4")
    assert alone is not None
    assert alone.frames_sha256 == record.frames_sha256 == lines[1]["frames_sha256"]


def test_a_second_run_makes_only_what_is_not_there_whole(maker: Maker, tmp_path: Path) -> None:
    run(maker, rows("one", "two", "three"), tmp_path)
    kept = (tmp_path / "0001-one.mp4").stat().st_mtime_ns
    (tmp_path / "0002-two.mp4").unlink()
    cut = (tmp_path / "0003-three.mp4").read_bytes()[:-3]
    (tmp_path / "0003-three.mp4").write_bytes(cut)
    batch = run(maker, rows("one", "two", "three", "four"), tmp_path)
    assert [item.status for item in batch.items] == ["skipped", "done", "done", "done"]
    assert (tmp_path / "0001-one.mp4").stat().st_mtime_ns == kept
    assert [line["status"] for line in results(tmp_path)] == ["skipped", "done", "done", "done"]
    assert run(maker, rows("one", "two", "three", "four"), tmp_path).count("skipped") == 4


def test_more_videos_of_a_prompt_keep_the_first_ones(maker: Maker, tmp_path: Path) -> None:
    run(maker, rows("one", seed=5), tmp_path)
    batch = run(maker, rows("one", seed=5), tmp_path, count=3)
    assert [(item.path.name, item.status) for item in batch.items] == [
        ("0001-one.mp4", "skipped"),
        ("0001-one-2.mp4", "done"),
        ("0001-one-3.mp4", "done"),
    ]
    assert [line["seed"] for line in results(tmp_path)] == [5, 6, 7]


def test_names_of_copies_do_not_meet_those_of_rows(maker: Maker, tmp_path: Path) -> None:
    given = [Row(1, 1, "one", {}, "cat"), Row(2, 2, "two", {}, "cat-2")]
    batch = run(maker, given, tmp_path, count=2)
    assert batch.failures == ["line 2: name 'cat-2' is that of a video of line 1 too; give another"]
    assert Record.read(tmp_path / "cat-2.json").request.prompt == "one"


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("straße", "STRASSE")])
def test_names_that_some_disks_take_for_one_are_not_given_twice(
    maker: Maker, tmp_path: Path, pair: tuple[str, str]
) -> None:
    given = [Row(n, n, "one", {}, name) for n, name in enumerate(pair, 1)]
    batch = run(maker, given, tmp_path)
    assert batch.failures == [f"line 2: name {pair[1]!r} is that of a video of line 1 too; give another"]
    assert batch.count("done") == 1


@pytest.mark.parametrize("text", ['{"answer": "a cat"}\n', "line,status\n", "[1]"])
def test_results_of_something_else_are_not_replaced(maker: Maker, tmp_path: Path, text: str) -> None:
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(SightlineError, match=r"results.jsonl is there and not of a batch of videos"):
        run(maker, rows("one"), tmp_path)
    assert names(tmp_path) == ["results.jsonl"]
    assert (tmp_path / "results.jsonl").read_text() == text


def test_videos_of_other_settings_are_not_mixed_in(maker: Maker, tmp_path: Path) -> None:
    run(maker, rows("one", "two"), tmp_path)
    with pytest.raises(
        SightlineError,
        match=r"0001-one.mp4 was made with other settings: steps \(2, here 3\) \(and 1 more\); .* give --overwrite",
    ):
        run_batch(maker, rows("one", "two", "three"), [], tmp_path, settings={**SETTINGS, "steps": 3})
    assert "0003-three.mp4" not in names(tmp_path)
    other = replace(maker, overwrite=True)
    batch = run_batch(other, rows("one", "two"), [], tmp_path, settings={**SETTINGS, "steps": 3})
    assert batch.count("done") == 2
    assert Record.read(tmp_path / "0001-one.json").request.steps == 3


def test_another_plan_or_model_is_another_setting(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(maker, rows("one"), tmp_path)
    plan = fixed_interval(Setting(steps=2), 2)
    with pytest.raises(SightlineError, match=r"other settings: plan \(None, here another\)"):
        run(replace(maker, plan_for=lambda request: plan), rows("one"), tmp_path)
    monkeypatch.setitem(vars(maker), "parts", {**maker.parts, "vae": "ef"})
    with pytest.raises(SightlineError, match=r"other settings: weights of vae \('.*, here 'ef'\)"):
        run(maker, rows("one"), tmp_path)
    with pytest.raises(SightlineError, match=r"other settings: tile_vae \(False, here True\)"):
        run(replace(maker, load={**maker.load, "tile_vae": True}), rows("one"), tmp_path)


def test_a_video_of_someone_else_is_left_alone(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "0001-one.mp4").write_bytes(b"mine")
    with pytest.raises(SightlineError, match=r"0001-one.mp4 is there without 0001-one.json"):
        run(maker, rows("one"), tmp_path)
    assert (tmp_path / "0001-one.mp4").read_bytes() == b"mine"
    assert run(replace(maker, overwrite=True), rows("one"), tmp_path).count("done") == 1


def test_bad_rows_are_told_with_their_lines_and_the_others_are_made(
    maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = rows("one", "two", "three")
    given[0] = replace(given[0], settings={"width": 20})
    plan = fixed_interval(Setting(steps=2), 2)
    given[1] = replace(given[1], settings={"steps": 4})
    with_plan = replace(maker, plan_for=lambda request: plan)
    batch = run(with_plan, given, tmp_path, bad=[BadRow(9, "not JSON")])
    failures = batch.failures
    assert failures[0] == "line 1: width must be a multiple of 8 for this model, not 20; take 16 or 24"
    assert failures[1].startswith("line 2: the plan is for another generation: steps (2, here 4)")
    assert failures[2:] == ["line 9: not JSON"]
    assert (batch.count("failed"), batch.count("done")) == (3, 1)
    assert [line["status"] for line in results(tmp_path)] == ["failed", "failed", "done", "failed"]
    assert results(tmp_path)[3] == {"line": 9, "status": "failed", "error": "not JSON"}
    told = capsys.readouterr().err
    assert all(failure in told for failure in failures)


def test_a_video_that_fails_does_not_stop_the_next(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = VideoPipeline.decode

    def broken(self: VideoPipeline, latents: Any) -> Any:
        frames = decode(self, latents)
        if not (tmp_path / "0001-one.mp4").exists():
            return frames
        return frames * float("nan") if not (tmp_path / "0003-three.mp4").exists() else frames

    calls: list[Item] = []

    def on_video(item: Item, number: int, count: int) -> AbstractContextManager[None]:
        calls.append(item)
        if number == 3:
            monkeypatch.setattr(VideoPipeline, "decode", decode)
        return nullcontext()

    monkeypatch.setattr(VideoPipeline, "decode", broken)
    batch = run(maker, rows("one", "two", "three"), tmp_path, on_video=on_video)
    assert [item.status for item in batch.items] == ["done", "failed", "done"]
    assert "holds numbers that are infinite or none" in batch.failures[0]
    assert [item.path.name for item in calls] == ["0001-one.mp4", "0002-two.mp4", "0003-three.mp4"]
    assert run(maker, rows("one", "two", "three"), tmp_path).count("done") == 1


def test_a_full_disk_ends_the_batch(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write_record", full)
    with pytest.raises(SightlineError, match=r"cannot write .*0001-one.mp4: No space left on device"):
        run(maker, rows("one", "two"), tmp_path)
    assert names(tmp_path) == []


def test_two_runs_do_not_share_a_folder(maker: Maker, tmp_path: Path) -> None:
    with (
        only_user(tmp_path, ""),
        pytest.raises(SightlineError, match=r"another process is making videos in .*; wait for it"),
    ):
        run(maker, rows("one"), tmp_path)


def test_an_offloaded_text_encoder_reads_all_prompts_first(
    folder: Path, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = VideoPipeline.load(folder, dtype="fp32", device="cpu", offload="model")
    done: list[str] = []

    def told(name: str) -> Callable[..., Any]:
        method = getattr(VideoPipeline, name)

        def tell(self: VideoPipeline, request: Any, *arguments: Any, **options: Any) -> Any:
            done.append(f"{name} {request.prompt}")
            return method(self, request, *arguments, **options)

        return tell

    for name in ("encode", "denoise"):
        monkeypatch.setattr(VideoPipeline, name, told(name))
    run(replace(maker, pipeline=pipeline), rows("one", "two"), tmp_path / "offloaded")
    assert done == ["encode one", "encode two", "denoise one", "denoise two"]
    run(maker, rows("one", "two"), tmp_path / "plain")
    for name in ("0001-one.json", "0002-two.json"):
        records = [Record.read(tmp_path / place / name) for place in ("offloaded", "plain")]
        assert records[0].frames_sha256 == records[1].frames_sha256


def test_a_killed_run_is_taken_up_again(maker: Maker, folder: Path, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(6)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "sightline",
        "video",
        "generate",
        "--model",
        str(folder),
        "--device",
        "cpu",
    ]
    command += [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "-o",
        str(out),
        "--size",
        "16x16",
        "--frames",
        "1",
    ]
    command += ["--steps", "2", "--dtype", "fp32", "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    try:
        while len(list(out.glob("*.mp4"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    whole = {path.name: path.read_bytes() for path in out.glob("*.mp4")}
    assert 2 <= len(whole) < 6
    batch = run_batch(
        maker,
        [Row(n, n, prompt, {}, f"{n:04d}-{prompt.replace(' ', '-')}") for n, prompt in enumerate(prompts, 1)],
        [],
        out,
        settings=SETTINGS,
    )
    assert batch.count("skipped") == len(whole)
    assert batch.count("done") == 6 - len(whole)
    assert all((out / name).read_bytes() == content for name, content in whole.items())
    assert not [name for name in names(out) if name.startswith(".")]
    assert len(names(out)) == 13


def test_a_batch_with_a_drawn_seed_goes_on_with_it(maker: Maker, tmp_path: Path) -> None:
    drawn = {**SETTINGS, "seed": -1}
    given = [
        *rows("one", "two"),
        Row(3, 3, "three", {"seed": -1}, "three"),
        Row(4, 4, "four", {"seed": 7}, "four"),
    ]
    run_batch(maker, given, [], tmp_path, settings=drawn)
    seeds = [line["seed"] for line in results(tmp_path)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[3] == 7
    for name in ("0001-one.mp4", "0001-one.json"):
        (tmp_path / name).unlink()
    batch = run_batch(maker, given, [], tmp_path, settings=drawn, count=2)
    assert [item.status for item in batch.items] == ["done", "done", "skipped", "done"] + [
        "skipped",
        "done",
    ] * 2
    again = [line["seed"] for line in results(tmp_path)]
    assert again == [seed + copy for seed in seeds for copy in (0, 1)]
    batch = run_batch(replace(maker, overwrite=True), given[:1], [], tmp_path, settings=drawn)
    assert batch.count("done") == 1
    assert results(tmp_path)[0]["seed"] != seeds[0]


def test_a_damaged_record_says_what_to_do(maker: Maker, tmp_path: Path) -> None:
    run(maker, rows("one"), tmp_path)
    (tmp_path / "0001-one.json").write_text('{"schema"')
    with pytest.raises(
        SightlineError, match=r"0001-one.json is not readable.*; remove it and 0001-one.mp4 to make"
    ):
        run(maker, rows("one"), tmp_path)
    for name in ("0001-one.mp4", "0001-one.json"):
        (tmp_path / name).unlink()
    assert run(maker, rows("one"), tmp_path).count("done") == 1


def test_half_written_results_are_removed(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / ".results.jsonl.abc").write_text("{")
    run(maker, rows("one"), tmp_path)
    assert names(tmp_path) == ["0001-one.json", "0001-one.mp4", "results.jsonl"]

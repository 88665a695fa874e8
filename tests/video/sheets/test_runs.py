"""Runs on disk: found, paired by name, and read without loss where that is possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from films import film
from video_runs import write_run

from sightline.errors import SightlineError, UsageError
from sightline.video.sheets.runs import CODEC_NOISE, pair


def test_png_frames_are_read_before_the_video_and_without_loss(tmp_path: Path) -> None:
    frames = write_run(tmp_path / "a.mp4")
    write_run(tmp_path / "b.mp4", frames=False)
    ((one, other),) = pair(tmp_path / "a.mp4", tmp_path / "b.mp4").pairs
    assert torch.equal(one.shown().frames, frames)
    assert one.shown().note == ""
    decoded = other.shown()
    assert decoded.note == CODEC_NOISE
    assert 0 < float((decoded.frames - frames).abs().mean()) < 0.02


def test_colours_of_a_video_are_read_by_the_matrix_it_names(tmp_path: Path) -> None:
    """A video of flat colour: BT.601 in place of BT.709 would move green by more than 5 of 255."""
    from sightline.video.writing.encode import encode, to_bytes

    flat = torch.tensor([0.2, 0.7, 0.3]).view(1, 3, 1, 1).expand(3, 3, 32, 32)
    write_run(tmp_path / "other.mp4")
    encode(to_bytes(flat), tmp_path / "flat.mp4", 16)
    ((run, _),) = pair(tmp_path / "flat.mp4", tmp_path / "other.mp4").pairs
    assert float((run.shown().frames - flat).abs().max()) < 3 / 255


@pytest.mark.parametrize("given", ["a.mp4", "a.json", "a.frames"])
def test_a_run_goes_by_its_video_its_record_or_its_frames(tmp_path: Path, given: str) -> None:
    frames = write_run(tmp_path / "a.mp4", planned=True)
    write_run(tmp_path / "b.mp4")
    ((run, _),) = pair(tmp_path / given, tmp_path / "b.mp4").pairs
    assert (run.name, run.title, run.fps) == ("a", "a disc moving right", 16)
    assert run.seconds["denoise"] == 4.0
    assert run.settings["plan"] == "every 2 from 2 (cond output 6 of 10, uncond output 6 of 10)"
    assert run.settings["steps"] == 10
    assert torch.equal(run.shown().frames, frames)


def test_a_run_without_a_record_is_read_all_the_same(tmp_path: Path) -> None:
    frames = write_run(tmp_path / "a.mp4")
    write_run(tmp_path / "b.mp4")
    (tmp_path / "a.json").unlink()
    (tmp_path / "b.json").write_text('{"schema": "of something else"}')
    ((one, other),) = pair(tmp_path / "a.mp4", tmp_path / "b.mp4").pairs
    assert (one.settings, one.seconds, one.title, one.note) == ({}, {}, "", "")
    assert other.settings == {}
    assert "b.json is no record of a video" in other.shown().note
    assert torch.equal(one.shown().frames, frames)


def test_a_folder_of_any_png_frames_is_a_run(tmp_path: Path) -> None:
    frames = write_run(tmp_path / "a.mp4")
    shutil.copytree(tmp_path / "a.frames", tmp_path / "mine")
    ((one, other),) = pair(tmp_path / "mine", tmp_path / "a.mp4").pairs
    assert (one.name, other.name) == ("mine", "a")
    assert torch.equal(one.shown().frames, frames)


def test_runs_of_two_folders_are_paired_by_name(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_run(tmp_path / "exact" / f"{name}.mp4", frames=name != "two")
    for name in ("two", "one", "four"):
        write_run(tmp_path / "fast" / f"{name}.mp4")
    (tmp_path / "fast" / "one.mp4").unlink()  # its frames are left
    found = pair(tmp_path / "exact", tmp_path / "fast")
    assert [(one.stem, other.stem) for one, other in found.pairs] == [("one", "one"), ("two", "two")]
    assert {(one.name, other.name) for one, other in found.pairs} == {("exact", "fast")}
    assert found.only == (("three",), ("four",))


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "cat.mp4")
    write_run(tmp_path / "y" / "cat.mp4")
    ((one, other),) = pair(tmp_path / "x" / "cat.mp4", tmp_path / "y" / "cat.mp4").pairs
    assert (one.name, other.name) == (str(tmp_path / "x" / "cat.mp4"), str(tmp_path / "y" / "cat.mp4"))


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_run(tmp_path / "all" / "a.mp4")
    write_run(tmp_path / "others" / "b.mp4")
    run = tmp_path / "all" / "a.mp4"
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("no video")
    (tmp_path / "lost.json").write_text(json.dumps({"schema": "sightline-video", "file": "gone.mp4"}))
    (tmp_path / "bare.json").write_text("{}")
    for path, error, kind in (
        ("nothing.mp4", "nothing.mp4 does not exist", SightlineError),
        ("empty", "empty holds neither videos nor PNG frames", SightlineError),
        ("words.txt", "words.txt is no video", SightlineError),
        ("lost.json", "gone.mp4 does not exist, which its JSON names", SightlineError),
        ("bare.json", "bare.json names no video", SightlineError),
        ("others", "others is a folder of videos and .*a.mp4 one run", UsageError),
    ):
        with pytest.raises(kind, match=error):
            pair(run, tmp_path / path)
    with pytest.raises(UsageError, match="no video in .*all has the name of one in .*others"):
        pair(tmp_path / "all", tmp_path / "others")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    ((run, other),) = pair(broken, tmp_path / "a.mp4").pairs
    with pytest.raises(SightlineError, match="cannot read .*broken.mp4 as a video"):
        run.shown()
    picture = tmp_path / "a.frames" / "00003.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    with pytest.raises(SightlineError, match="cannot read .*00003.png"):
        other.shown()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SightlineError, match="cannot read .*00003.png"):
        other.shown()

    from sightline.video.sheets.picture import to_picture

    to_picture(film()[0], 64).save(picture)
    with pytest.raises(SightlineError, match="00003.png is 64x64 and 00000.png 32x32"):
        other.shown()

"""All of a video's files or none of them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import SightlineError, UsageError
from sightline.video.request import Request
from sightline.video.result import Video
from sightline.video.setting import Setting
from sightline.video.writing import save as saving
from sightline.video.writing.encode import to_bytes
from sightline.video.writing.record import Record, digest_of
from sightline.video.writing.reserve import free_path, reserved
from sightline.video.writing.save import check_target, made, remove_leftovers, save

REQUEST = Request("a cat", 64, 48, 5, 10, 5.0, 3.0)
SETTING = Setting(steps=10, weights="ab12", dtype="float32", device="cpu")


def make_video(noise: bool = False) -> Video:
    frames = torch.rand(5, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    if not noise:
        frames = frames.mean(dim=(2, 3), keepdim=True).expand(5, 3, 48, 64).contiguous()
    return Video(frames, torch.zeros(1), REQUEST, SETTING, None, {"denoise": 1.0})


def keep(path: Path, video: Video | None = None, **options: Any) -> Record:
    video = video or make_video()
    return save(video, path, Record(REQUEST, {}, SETTING, seconds=video.seconds), **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_video_its_record_and_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cat.mp4"
    record = keep(path, save_frames=True)
    assert names(path.parent) == ["cat.frames", "cat.json", "cat.mp4"]
    assert names(path.parent / "cat.frames") == [f"{number:05d}.png" for number in range(5)]
    pictures = to_bytes(make_video().frames)
    back = np.stack([np.asarray(Image.open(file)) for file in sorted((path.parent / "cat.frames").iterdir())])
    assert np.array_equal(back, pictures)
    assert Record.read(path.with_suffix(".json")) == replace(
        record, seconds={part: round(value, 4) for part, value in record.seconds.items()}
    )
    assert (record.file, record.frames_sha256) == ("cat.mp4", digest_of(pictures))
    assert made(path, save_frames=True) == Record.read(path.with_suffix(".json"))
    # As any new file: not the private rights of a temporary one.
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode, path.with_suffix(".json").stat().st_mode} == {plain.stat().st_mode}


def test_what_is_there_is_only_replaced_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    keep(path, save_frames=True)
    before = path.read_bytes()
    with pytest.raises(SightlineError, match=r"cat.mp4 already exists; .* or give --overwrite"):
        check_target(path)
    with pytest.raises(SightlineError, match="already exists"):
        keep(path, make_video(noise=True))
    assert path.read_bytes() == before
    keep(path, make_video(noise=True), overwrite=True, save_frames=True)
    assert path.read_bytes() != before
    assert names(tmp_path) == ["cat.frames", "cat.json", "cat.mp4"]
    assert made(path, save_frames=True) is not None


def test_a_record_that_is_none_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "cat.json").write_text('{"mine": 1}')
    with pytest.raises(
        SightlineError, match=r"cat.json is there and no record of a video; choose another name"
    ):
        check_target(tmp_path / "cat.mp4", overwrite=True)


def test_the_record_of_another_video_is_kept(tmp_path: Path) -> None:
    keep(tmp_path / "cat.mp4")
    with pytest.raises(SightlineError, match=r"cat.json belongs to cat.mp4; choose another name"):
        keep(tmp_path / "cat.gif", overwrite=True)
    (tmp_path / "cat.mp4").unlink()
    keep(tmp_path / "cat.gif")


@pytest.mark.parametrize("there", ["cat.mp4/", "cat.frames"])
def test_what_is_in_the_way_is_named(tmp_path: Path, there: str) -> None:
    if there.endswith("/"):
        (tmp_path / there).mkdir()
    else:
        (tmp_path / there).touch()
    with pytest.raises(SightlineError, match=f"{there.strip('/')} is in the way"):
        check_target(tmp_path / "cat.mp4", overwrite=True, save_frames=True)


def test_where_nothing_can_be_written_it_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SightlineError, match=r"cannot write .*file/cat.mp4: .*choose another name"):
        check_target(tmp_path / "file" / "cat.mp4")
    with pytest.raises(SightlineError, match=r"cannot write /proc/cat.mp4: /proc: "):
        check_target(Path("/proc/cat.mp4"))
    with pytest.raises(UsageError, match="no suffix of a video"):
        check_target(tmp_path / "cat")
    check_target(tmp_path / "a" / "b" / "cat.mp4")
    assert names(tmp_path) == ["file"]


def test_pictures_of_several_frames_are_not_one_png(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is one picture and the video has 5 frames"):
        keep(tmp_path / "cat.png")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "gif"])
@pytest.mark.parametrize("kilobytes", [0, 1, 8])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str, kilobytes: int) -> None:
    """A limit on the size of files stands for the full disk; Python ignores its signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, limits[1]))
    try:
        with pytest.raises(SightlineError, match=rf"cannot write .*cat.{suffix}: "):
            keep(tmp_path / f"cat.{suffix}", make_video(noise=True), save_frames=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_a_failure_behind_the_video_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(saving, "_write_record", fail)
    with pytest.raises(SightlineError if isinstance(error, OSError) else type(error)) as raised:
        keep(tmp_path / "cat.mp4", save_frames=True)
    if isinstance(error, OSError):
        assert str(raised.value) == f"cannot write {tmp_path / 'cat.mp4'}: No space left on device"
    assert names(tmp_path) == []


# Not a fork of this process: its libraries have threads, and a fork may wait for ever for what they held.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_save
test_save.saving._write_record = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
test_save.keep(Path({path!r}))
"""


def test_a_process_that_is_killed_leaves_no_video_and_its_rest_is_removed(tmp_path: Path) -> None:
    program = KILLED.format(paths=[str(Path(__file__).parent)], path=str(tmp_path / "cat.mp4"))
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".sightline-video.")
    assert made(tmp_path / "cat.mp4") is None
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_video_is_whole_only_with_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    assert made(path) is None
    keep(path)
    assert made(path) is not None
    assert made(path, save_frames=True) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert made(path) is None
    path.unlink()
    assert made(path) is None
    check_target(path)  # the record alone is in nobody's way
    keep(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(SightlineError, match=r"cat.mp4 is there without cat.json"):
        made(path)


def test_the_pictures_of_the_video_before_are_not_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    keep(path, save_frames=True)
    keep(path, make_video(noise=True), overwrite=True)  # its pictures are not asked for
    assert len(names(tmp_path / "cat.frames")) == 5
    assert made(path) is not None
    assert made(path, save_frames=True) is None
    keep(path, make_video(noise=True), overwrite=True, save_frames=True)
    assert made(path, save_frames=True) is not None
    (tmp_path / "cat.frames" / "00002.png").write_bytes(b"no picture")
    assert made(path, save_frames=True) is None


def test_what_another_process_is_writing_is_no_leftover(tmp_path: Path) -> None:
    with saving._staging(tmp_path / "cat.mp4") as folder:
        remove_leftovers(tmp_path)
        assert folder.is_dir()
    assert names(tmp_path) == []


def test_a_name_that_no_disk_takes_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="cannot write .*: File name too long; choose another name"):
        check_target(tmp_path / f"{'a' * 300}.mp4")


def test_names_that_are_not_utf_8_cost_no_video(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    record = save(make_video(), path, Record(REQUEST, {"model": os.fsdecode(b"/mod\xe8le")}, SETTING))
    again = Record.read(path.with_suffix(".json"))
    assert (again.file, again.load) == (path.name, record.load)
    assert made(path) == again


def test_the_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    video = replace(make_video(), request=replace(REQUEST, prompt="猫"))
    record = Record(video.request, {}, SETTING)
    save(video, tmp_path / "cat.mp4", record)
    text = (tmp_path / "cat.json").read_text(encoding="utf-8")
    assert '"prompt": "猫"' in text
    assert json.loads(text)["file"] == "cat.mp4"


def test_a_name_is_kept_while_a_video_of_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cat.mp4"
    with reserved(path):
        with (
            pytest.raises(SightlineError, match=r"another process is making .*cat.mp4; wait for it"),
            reserved(path),
        ):
            pass
        with reserved(path.with_name("dog.mp4")):
            pass
    assert names(tmp_path) == []
    with reserved(path):
        pass


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    assert free_path(path) == path
    path.touch()
    (tmp_path / "cat-2.json").write_text("{}")
    assert free_path(path) == tmp_path / "cat-3.mp4"
    assert free_path(path, overwrite=True) == path


def test_a_video_writes_itself_without_a_record(tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    make_video().save(path)
    assert names(tmp_path) == ["cat.mp4"]
    with pytest.raises(SightlineError, match=r"cat.mp4 already exists"):
        make_video().save(str(path))
    keep(path, overwrite=True)
    make_video(noise=True).save(path, overwrite=True, quality=40)
    assert names(tmp_path) == ["cat.mp4"]  # what the record said is not true of it
    with pytest.raises(UsageError, match="has no suffix of a video"):
        make_video().save(tmp_path / "cat")

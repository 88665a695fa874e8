"""`sightline video compare`: figures, sheet, and every way in which two runs do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from films import film
from video_runs import write_run

from sightline.cli.app import main
from sightline.video.fidelity import compare


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["video", "compare", *map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    write_run(tmp_path / "exact.mp4")
    write_run(tmp_path / "plan.mp4", 0.05, seconds=2.0, planned=True)
    return tmp_path / "exact.mp4", tmp_path / "plan.mp4"


def test_two_runs_are_compared_and_shown(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*pair, "-o", tmp_path / "sheet") == 0
    printed = capsys.readouterr().out
    exact, other = ((film(noise) * 255).round() / 255 for noise in (0.0, 0.05))
    found = compare(other, exact)
    lines = {line.split("  ")[1].strip(): line for line in printed.splitlines() if line.startswith("  ")}
    assert lines["PSNR, dB"].split()[2:] == [
        f"{found.psnr:.2f}",
        f"{found.psnr_worst:.2f}",
        "(frame",
        f"{found.worst_frame})",
    ]
    assert lines["denoise"].endswith("4 s and 2 s, 2.00x")
    assert "plan: none and every 2 from 2" in printed
    assert "steps:" not in printed
    assert "note:" not in printed
    told = json.loads((tmp_path / "sheet" / "compare.json").read_text())
    assert told["pairs"][0]["fidelity"] == pytest.approx(found.numbers())
    assert told["pairs"][0]["times_as_fast"] == 2.0
    assert (tmp_path / "sheet" / "sheet.png").stat().st_size > 1000
    page = (tmp_path / "sheet" / "sheet.html").read_text()
    assert f"PSNR {found.psnr:.1f} dB, {found.psnr_worst:.1f} dB in the worst frame" in page


def test_json_has_every_figure_and_nothing_else_on_stdout(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*pair, "--json", "-o", tmp_path / "sheet") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"][0]["seconds"]["other"]["denoise"] == 2.0
    assert told["pairs"][0]["settings_that_differ"]["plan"][0] == "none"
    assert told["psnr_worst"] == told["psnr_median"] == told["pairs"][0]["fidelity"]["psnr"]
    assert told["sheet"] == str(tmp_path / "sheet" / "sheet.html")


def test_decoding_says_that_the_codec_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "exact.mp4")
    write_run(tmp_path / "plan.mp4", frames=False)
    (tmp_path / "plan.json").unlink()
    assert run(tmp_path / "exact.mp4", tmp_path / "plan.mp4", "-o", tmp_path / "sheet") == 0
    printed = capsys.readouterr().out
    assert "note: plan: frames were decoded from an encoded video" in printed
    assert "note: exact" not in printed
    assert "denoise" not in printed  # one of the times is not known
    assert "plan: none" not in printed
    assert "frames were decoded" in (tmp_path / "sheet" / "sheet.html").read_text()


def test_two_folders_are_compared_by_name_and_the_rest_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("one", "two", "three")):
        write_run(tmp_path / "exact" / f"{name}.mp4", seed=number)
    for number, name in enumerate(("one", "two")):
        write_run(tmp_path / "fast" / f"{name}.mp4", 0.05 * (number + 1), seconds=2.0, seed=number)
    write_run(tmp_path / "fast" / "four.mp4")
    arguments = (tmp_path / "exact", tmp_path / "fast", "--show", "1", "-o", tmp_path / "sheet")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["one", "two"]
    assert "The worst is two." in printed
    assert "1 only in A: three" in printed
    assert "1 only in B: four" in printed
    assert "2.00x" in printed
    page = (tmp_path / "sheet" / "sheet.html").read_text()
    assert page.count('class="part"') == 1
    assert "the frames of the worst are shown below" in page
    assert "<h2>two: a disc moving right</h2>" in page
    told = json.loads((tmp_path / "sheet" / "compare.json").read_text())
    assert told["unpaired"] == {"reference": ["three"], "other": ["four"]}
    assert told["worst"] == "two"


def test_a_sheet_is_not_replaced_unless_asked(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet"
    assert run(*pair, "-o", sheet) == 0
    before = (sheet / "sheet.html").read_bytes()
    assert run(pair[1], pair[0], "-o", sheet) == 1
    assert "sheet.html already exists; choose another folder with -o or give --overwrite" in " ".join(
        capsys.readouterr().err.split()
    )
    assert (sheet / "sheet.html").read_bytes() == before
    assert run(pair[1], pair[0], "-o", sheet, "--overwrite") == 0
    assert (sheet / "sheet.html").read_bytes() != before


def test_runs_that_do_not_fit_are_refused_in_one_sentence(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sightline.video.sheets.picture import to_picture

    short, small = tmp_path / "short", tmp_path / "small"
    for folder, side, count in ((short, 32, 4), (small, 16, 5)):
        folder.mkdir()
        for number, frame in enumerate(film(frames=count, side=side)):
            to_picture(frame).save(folder / f"{number}.png")
    (tmp_path / "file").write_text("in the way")
    for other, output, error, code in (
        (short, "sheet", "exact has 5 frames and short 4", 2),
        (small, "sheet", "exact is 32x32 and small 16x16", 2),
        (tmp_path / "none.mp4", "sheet", "none.mp4 does not exist", 1),
        (pair[1], "file", "file is a file; choose another folder", 1),
    ):
        assert run(pair[0], other, "-o", tmp_path / output) == code
        said = " ".join(capsys.readouterr().err.split())
        assert error in said
        assert said.count("error:") == 1
    assert not (tmp_path / "sheet").exists()


def test_without_a_folder_only_figures_are_printed(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    for _ in range(2):
        assert run(*pair) == 0
        assert "PSNR, dB" in (printed := capsys.readouterr().out)
        assert "sheet" not in printed
    assert run(*pair, "--json") == 0
    assert "sheet" not in json.loads(capsys.readouterr().out)
    assert list(place.iterdir()) == []


def test_a_note_counts_pairs_and_not_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / "videos" / f"{name}.mp4", frames=False)
    assert run(tmp_path / "videos", tmp_path / "videos") == 0
    assert "(2 of 2 pairs)" in capsys.readouterr().out


def test_a_damaged_video_is_named_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "exact.mp4", frames=False)
    data = (tmp_path / "exact.mp4").read_bytes()
    for name, broken in (("no.mp4", b"no video"), ("cut.mp4", data[: len(data) // 2])):
        (tmp_path / name).write_bytes(broken)
        assert run(tmp_path / "exact.mp4", tmp_path / name) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert (
            "as a video: invalid data found when processing input; it is damaged or of another format" in said
        )
        assert "Errno" not in said

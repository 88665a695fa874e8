"""`sightline video generate`, as it is typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from wan_folder import make_wan_folder

from sightline.cli.app import main
from sightline.cli.video.options import with_bare_offload
from sightline.cli.video.showing import Steps
from sightline.errors import SightlineError
from sightline.video import tiny
from sightline.video.builders import fixed_interval
from sightline.video.denoise import Step
from sightline.video.pipeline import VideoPipeline
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.writing.record import Record

SMALL = ("--size", "32*16", "--frame_num", "5", "--sample_steps", "4", "--device", "cpu", "--dtype", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "model", layers=3)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Typed:
    """What a command line gives."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model = ("--model", str(folder))
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str, model: bool = True) -> int:
        with pytest.raises(SystemExit) as left:
            main(["video", "generate", *(self.model if model else ()), *arguments])
        printed = self._capsys.readouterr()
        self.out, self.err = printed.out, " ".join(printed.err.split())
        return int(left.value.code or 0)


@pytest.fixture
def typed(folder: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(folder, capsys)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_prompt_becomes_a_file_and_one_line(typed: Typed, place: Path) -> None:
    assert typed("--prompt", "a three moving left", *SMALL, "-o", "out/three.mp4", "--fps", "8") == 0
    assert typed.out.startswith("out/three.mp4: 32x16, 5 frames at 8/s, seed 0, ")
    assert [f" {part} " in typed.out for part in ("load", "text", "denoise", "decode", "write")] == [True] * 5
    assert re.search(r"denoise \S+ m?s \(\S+ s/step, \d+% of the machine's rate\)", typed.out)
    assert len(typed.out.splitlines()) == 1
    assert names(place / "out") == ["three.json", "three.mp4"]
    with av.open("out/three.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.frames, stream.average_rate) == (32, 16, 5, 8)
    record = Record.read("out/three.json")
    assert record.request.prompt == "a three moving left"
    assert record.command[0] == "sightline"
    assert record.load == {"model": typed.model[1], "device": "cpu", "dtype": "float32"}
    assert record.parallel == {"processes": 1, "ulysses": 1, "cfg": 1, "vae": False}


def test_the_originals_options_work(typed: Typed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the original and of MindIE's page, with a smaller video and on one card."""
    line = (
        "--task t2v-1.3B --size 32*16 --frame-num 5 --sample-steps 8 --sample-guide-scale 5 --sample-shift 3 "
    )
    line += "--ulysses-size 1 --cfg-size 1 --vae-parallel --use-attentioncache --start-step 2 "
    line += "--attentioncache-interval 2 --end-step 6 --offload-model --base_seed 3 --sample_solver dpm++ "
    line += "--save_file o.mp4 --device cpu --dit_fsdp --t5_fsdp --t5_cpu --attentioncache_ratio 1.2 --ring_size 1 "
    line += "--convert_model_dtype --prompt"
    monkeypatch.setattr(tiny, "tiny_wan_folder", lambda: folder)
    assert typed(*line.split(), "a cat", model=False) == 0
    record = Record.read("o.json")
    request = record.request
    assert (request.width, request.height, request.frames, request.steps, request.seed) == (32, 16, 5, 8, 3)
    assert (request.guidance, request.shift, request.scheduler) == (5.0, 3.0, "dpm++")
    assert (record.load["offload"], record.load["text_encoder_device"]) == ("model", "cpu")
    assert record.plan is not None
    assert {str(site): "".join(row) for site, row in record.plan.actions["uncond"].items()} == {
        "attention[0:3]": "CCCRCRCC"
    }
    assert "--vae-parallel changes nothing: this is one process" in typed.err
    assert (
        "warning: without --model (--ckpt-dir) it is not t2v-1.3B that makes the video, but the small"
        in typed.err
    )
    assert "--dit-fsdp changes nothing: every card holds the whole transformer" in typed.err
    assert typed.err.count("--t5-fsdp changes nothing") == 1
    assert "--attentioncache-ratio changes nothing: `sightline video search --budget`" in typed.err


def test_the_issues_line_needs_torchrun_and_says_how(
    typed: Typed, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "--task t2v-1.3B --size 832*480 --frame-num 81 --sample-steps 50 --sample-guide-scale 5 --sample-shift 3 "
    line += "--ulysses-size 4 --cfg-size 2 --vae-parallel --use-attentioncache --start-step 20 "
    line += "--attentioncache-interval 2 --end-step 47 --offload-model --prompt"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sightline", "video", "generate", *line.split(), "a cat"])
    assert typed(*line.split(), "a cat") == 2
    assert "--ulysses-size 4 --cfg-size 2 needs 8 processes and this is one alone: run torchrun" in typed.err
    assert "torchrun --nproc_per_node=8 -m sightline video generate --task t2v-1.3B" in typed.err
    assert names(place) == []


def test_a_video_is_made_again_from_its_json(typed: Typed, place: Path) -> None:
    cache = (
        "--block-cache",
        "--start-step",
        "0",
        "--cache-interval",
        "2",
        "--block-start",
        "1",
        "--block-end",
        "2",
    )
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4", "--seed", "7", "--no-operators", *cache) == 0
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.json").write_bytes((place / "a.json").read_bytes())
    os.chdir(elsewhere)
    assert typed("--from", "a.json", "-o", "b.mp4", model=False) == 0
    assert "the same frames as a.json says, bit for bit" in typed.err
    first, again = Record.read("a.json"), Record.read("b.json")
    assert first.frames_sha256 == again.frames_sha256
    assert again.differences(first.request, first.setting, first.load, first.plan) == []
    assert again.load["operators"] is False
    # What is given counts more.
    assert typed("--from", "a.json", "-o", "c.mp4", "--seed", "8", "--prompt", "a dog", model=False) == 0
    assert "another video than a.json says: prompt ('a cat', here 'a dog'); seed (7, here 8)" in typed.err
    assert (Record.read("c.json").request.seed, Record.read("c.json").request.prompt) == (8, "a dog")


def test_other_frames_than_the_json_says_are_told(typed: Typed) -> None:
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 0
    data = json.loads(Path("a.json").read_text())
    Path("x.json").write_text(
        json.dumps(
            data | {"frames_sha256": "0", "versions": {"torch": "2.9.9"}, "parallel": {"processes": 4}}
        )
    )
    assert typed("--from", "x.json", "-o", "b.mp4") == 0
    assert (
        "warning: not bit for bit the frames of x.json: processes (4, here 1); torch (2.9.9, here 2."
        in typed.err
    )


def test_other_weights_do_not_make_it_again(typed: Typed, tmp_path: Path) -> None:
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 0
    other = make_wan_folder(tmp_path / "other", layers=3, seed=1)
    assert typed("--from", "a.json", "--model", str(other), "-o", "b.mp4", model=False) == 1
    assert "a.json was made by model with other weights than other has; give that --model" in typed.err


def test_json_is_one_line_with_all_of_it(typed: Typed) -> None:
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.gif", "--json", "--save-frames") == 0
    data = json.loads(typed.out)
    path = data.pop("path")
    assert path == "a.gif"
    assert data["encoding"] == "gif, 256 colours a frame"
    assert {**data, "seconds": None} == {**json.loads(Path("a.json").read_text()), "seconds": None}
    assert len(names(Path("a.frames"))) == 5


def test_without_model_prompt_and_output_it_is_the_built_in_model(
    typed: Typed, folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "tiny_wan_folder", lambda: folder)
    assert typed(*SMALL, model=False) == 0
    assert names(place) == [f"a-three-moving-left-and-a-seven-moving-up-0.{end}" for end in ("json", "mp4")]
    assert "model" not in Record.read(place / names(place)[0]).load
    assert typed(*SMALL, model=False) == 1
    assert "already exists; choose another name with -o or give --overwrite" in typed.err
    assert typed(*SMALL, "--overwrite", "--seed", "-1", model=False) == 0
    assert len(names(place)) == 4


def test_a_plan_is_used_and_refused_where_it_does_not_fit(typed: Typed) -> None:
    fixed_interval(Setting(steps=4, guidance=5.0), 2).save("plan.json")
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4", "--plan", "plan.json") == 0
    record = Record.read("a.json")
    assert record.plan == Plan.load("plan.json")
    assert typed("--prompt", "a", *SMALL, "-o", "b.mp4", "--plan", "plan.json", "--guidance", "3") == 1
    assert "the plan is for another generation: guidance (5.0, here 3.0)" in typed.err
    assert (
        typed(
            "--prompt", "a", *SMALL, "-o", "b.mp4", "--plan", "plan.json", "--guidance", "3", "--plan-anyway"
        )
        == 0
    )
    assert Record.read("b.json").plan_anyway
    assert "warning: " in typed.err
    assert typed("--from", "b.json", "-o", "c.mp4") == 0
    assert "bit for bit" in typed.err


def test_the_steps_are_those_of_the_plan_where_none_are_given(typed: Typed) -> None:
    fixed_interval(Setting(steps=3), 2).save("fewer.json")
    unsaid = [word for word in SMALL if word not in ("--sample_steps", "4")]
    assert typed("--prompt", "a cat", *unsaid, "-o", "a.mp4", "--plan", "fewer.json") == 0
    assert Record.read("a.json").request.steps == 3
    assert typed("--prompt", "a cat", *SMALL, "-o", "b.mp4", "--plan", "fewer.json") == 1
    assert "steps (3, here 4)" in typed.err


def test_a_batch(typed: Typed, place: Path) -> None:
    Path("p.jsonl").write_text('{"prompt": "a cat", "seed": 4}\n{"prompt": "b", "size": "30x16"}\nx\n')
    assert typed("--prompts", "p.jsonl", "-o", "out", *SMALL, "--num-videos", "2") == 1
    assert typed.out.startswith("out: 2 made, 0 there already, 3 failed, in ")
    assert "error: 3 of 5 videos failed; the first: line 2: width must be a multiple of 8" in typed.err
    assert "line 3: not JSON" in typed.err
    assert Record.read("out/0001-a-cat-2.json").request.seed == 5
    Path("p.jsonl").write_text('{"prompt": "a cat", "seed": 4}\n')
    assert typed("--prompts", "p.jsonl", "-o", "out", *SMALL, "--num-videos", "2", "--json") == 0
    data = json.loads(typed.out)
    assert (data["folder"], data["done"], data["skipped"], data["failed"]) == ("out", 0, 2, 0)
    assert typed("--prompts", "p.jsonl", "-o", "out", *SMALL, "--seed", "9") == 0  # the row's own seed counts
    assert typed("--prompts", "p.jsonl", "-o", "out", *SMALL, "--fps", "9") == 1
    assert (
        "out/0001-a-cat.mp4 was made with other settings: fps (16, here 9); choose another folder"
        in typed.err
    )
    # A video of a batch is like one alone.
    assert typed("--from", "out/0001-a-cat-2.json", "-o", "alone.mp4") == 0
    assert "bit for bit" in typed.err


def test_ctrl_c_leaves_nothing(typed: Typed, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoPipeline, "decode", interrupted)
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 130
    assert typed.err.endswith("interrupted")
    assert names(place) == []


def test_without_diffusers_it_says_what_to_install(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 1
    assert 'the library diffusers is not installed; run: pip install "sightline[video]"' in typed.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "there is nothing to show; give --prompt, --prompts or --from"),
        ("--prompt=", 2, "--prompt is empty; say what the video shall show"),
        ("--prompt a -o caf\udce9.mp4", 2, "--output is not UTF-8 text at character 3"),
        ("--prompt a --size 832", 2, "size '832' is not WIDTHxHEIGHT, such as 832x480"),
        ("--prompt a --size 1000000x64", 2, "width must be a whole number from 1 to 16384, not 1000000"),
        ("--prompt a --seed -2", 2, "--seed -2 is none; give 0 or more, or -1 to draw one"),
        (
            "--prompt a --model plan.json",
            1,
            "give the model's folder, or the file as --transformer-file together",
        ),
        ("--prompt a --size 30x16", 2, "width must be a multiple of 8 for this model, not 30; take 24 or 32"),
        ("--prompt a --frames 6", 2, "frames must be 4n + 1 for this model, not 6; take 5 or 9"),
        ("--prompt a --sample_solver ddim", 2, "scheduler must be unipc, dpm++, euler, not 'ddim'"),
        ("--prompt a --steps 0", 2, "steps must be a whole number from 1 to 1000, not 0"),
        ("--prompt a --dtype int8", 2, "dtype 'int8' is not one of auto, bf16, fp16, fp32"),
        ("--prompt a --offload half", 2, "--offload 'half' is not one of none, model, group, true or false"),
        ("--prompt a -o a.avi", 2, "a.avi has no suffix of a video; name it a.mp4"),
        ("--prompt a -o /proc/a.mp4", 1, "cannot write /proc/a.mp4: /proc: "),
        (
            "--prompt a -o a.mp4 --crf 70",
            2,
            "error: --crf 70 is not one of libx264; take 0 (nearest) to 51 (smallest)",
        ),
        ("--prompt a --plan absent.json", 1, "cannot read absent.json: No such file or directory"),
        (
            "--prompt a --plan p.json --block-cache",
            2,
            "--plan and --block-cache exclude one another; give one",
        ),
        ("--prompt a --end-step 3", 2, "--end-step says how a cache works; give --use-attentioncache or"),
        (
            "--prompt a --size 32x16 --steps 9 --use-attentioncache",
            2,
            "the step cache takes nothing in 9 steps of 3 blocks: a step after --start-step 12, up to --end-step 37",
        ),
        (
            "--prompts p.txt --prompt a -o out",
            2,
            "--prompts brings its own prompts; leave --prompt and --from out",
        ),
        ("--prompts p.txt", 2, "many videos need a folder; name it with -o"),
        ("--prompts p.txt -o a.mp4", 2, "with --prompts -o is a folder, not a.mp4; name it a"),
        ("--prompts absent.txt -o out", 1, "cannot read absent.txt: No such file or directory"),
        ("--prompt a --num-videos 2", 2, "many videos need a folder; name it with -o"),
        ("--prompt a --num-videos 2 -o a.mp4", 2, "with --num-videos -o is a folder, not a.mp4; name it a"),
        ("--from absent.json", 1, "cannot read absent.json: No such file or directory"),
        (
            "--from plan.json",
            1,
            "plan.json is no record of a video: schema must be 'sightline-video', not 'x'",
        ),
        (
            "--prompt a --task i2v-14B",
            2,
            "--task i2v-14B is not offered; there is text to video: t2v-1.3B and t2v-14B",
        ),
        ("--prompt a --ring_size 2", 2, "--ring-size: ring attention is not offered; spread the tokens with"),
        ("--prompt a --tp-size 2", 2, "--tp-size: tensor parallelism is not offered"),
        ("--prompt a --use_prompt_extend", 2, "--use-prompt-extend: no language model rewrites prompts here"),
        ("--prompt a --fp8", 2, "--fp8: there are no products in 8 bits here; --cast-weights keeps"),
        ("--prompt a --use_rainfusion", 2, "--use-rainfusion: sparse attention is not offered"),
        ("--prompt a --quant_mode 3", 2, "--quant-mode: quantized video models are not offered"),
        ("--prompt a --image i.jpg", 2, "--image: only text makes a video here, not a picture"),
        ("--prompt a --ulysses-size 0", 2, "--ulysses-size"),
        ("--prompt a --cfg-size 3", 2, "--cfg-size"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    typed: Typed, place: Path, arguments: str, code: int, message: str
) -> None:
    Path("p.txt").write_text("a\n")
    Path("plan.json").write_text('{"schema": "x"}')
    assert typed("--device", "cpu", *arguments.split()) == code
    assert message in typed.err
    assert typed.err.count("error: ") == 1
    assert names(place) == ["p.txt", "plan.json"]


def test_one_frame_is_a_picture_and_several_are_none(
    typed: Typed, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed("--prompt", "a", *SMALL, "--frames", "1", "-o", "a.png") == 0
    with Image.open("a.png") as image:
        assert image.size == (32, 16)
    monkeypatch.setattr(VideoPipeline, "generate", None)  # it is seen before
    assert typed("--prompt", "a", *SMALL, "-o", "b.png") == 2
    assert "b.png is one picture and the video has 5 frames; name it b.mp4" in typed.err
    assert names(place) == ["a.json", "a.png"]


@pytest.mark.parametrize("wrong", ["--steps=0", "--scheduler=ddim", "--plan=absent.json"])
def test_what_no_model_has_is_seen_before_one_is_loaded(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(VideoPipeline, "load", None)
    assert typed("--prompt", "a", wrong) in (1, 2)
    assert wrong[2:].partition("=")[2] in typed.err


def test_what_is_there_is_seen_before_the_model_is_loaded(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.mp4").touch()
    monkeypatch.setattr(VideoPipeline, "load", None)
    assert typed("--prompt", "a", "-o", "a.mp4") == 1
    assert "a.mp4 already exists; choose another name with -o or give --overwrite" in typed.err


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("--offload-model --prompt a", "--offload-model model --prompt a"),
        ("--offload-model", "--offload-model model"),
        ("--offload-model True --x", "--offload-model True --x"),
        ("--offload-model false", "--offload-model false"),
        ("--offload-model group -o a", "--offload-model group -o a"),
        ("--offload group", "--offload group"),
    ],
)
def test_offload_model_takes_a_value_or_none(given: str, taken: str) -> None:
    assert " ".join(with_bare_offload(given.split())) == taken


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (("--offload_model", "True"), "model"),
        (("--offload_model", "False"), "none"),
        (("--offload-model=true",), "model"),
        (("--offload", "group"), "group"),
    ],
)
def test_each_way_to_offload_is_understood(typed: Typed, words: tuple[str, ...], kept: str) -> None:
    assert typed("--prompt", "a", *SMALL, *words, "-o", "a.mp4") == 0
    assert Record.read("a.json").load["offload"] == kept


def test_the_task_must_be_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from sightline.cli.video.theirs import check_task

    def model(heads: int, layers: int) -> Any:
        config = SimpleNamespace(num_attention_heads=heads, attention_head_dim=128, num_layers=layers)
        parts = SimpleNamespace(name="Wan", transformer=SimpleNamespace(config=config))
        return SimpleNamespace(components=parts)

    check_task("t2v-1.3B", model(12, 30))
    check_task("t2v-14B", model(40, 40))
    with pytest.raises(
        SightlineError, match=r"--task t2v-14B, but Wan is the model of t2v-1.3B; give the other"
    ):
        check_task("t2v-14B", model(12, 30))
    with pytest.raises(
        SightlineError, match=r"--task t2v-14B, but Wan is of another size \(width 256 in 3 blocks\)"
    ):
        check_task("t2v-14B", model(2, 3))


def test_the_bar_tells_the_pace_of_the_steps_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("sightline.cli.video.showing.time.monotonic", lambda: next(times))
    bar = Steps("a, steps", 4)
    shown = []
    for index in range(3):
        bar.take(Step(index, 4, 0.0, 0.0, None, {}, 0.0))  # type: ignore[arg-type]
        shown.append(bar._detail())
    assert shown == ["1 of 4 (25%)", "2 of 4 (50%), 2 s/step", "3 of 4 (75%), 2 s/step"]


@pytest.mark.parametrize("wrong", ["--no-such-option", "--steps=x", "--size=832"])
def test_another_rank_waits_before_it_says_what_is_typed_wrong(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("sightline.cli.video.showing.time.sleep", waited.append)
    assert typed("--prompt", "a", wrong) == 2
    assert waited == []
    monkeypatch.setenv("RANK", "1")
    assert typed("--prompt", "a", wrong) == 2
    assert waited == [3.0]
    assert typed("--help") == 0
    assert waited == [3.0]


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "sightline",
    ]
    command += [
        "video",
        "generate",
        "--ckpt_dir",
        str(folder),
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


def test_under_torchrun_one_rank_writes_and_speaks(typed: Typed, folder: Path, place: Path) -> None:
    Path("p.txt").write_text("a three\n")
    assert typed("--prompts", "p.txt", "-o", "one", *SMALL) == 0
    result = torchrun(folder, "--prompts", "p.txt", "-o", "two", "--cfg_size", "2", *SMALL[:6])
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert names(place / "two") == ["0001-a-three.json", "0001-a-three.mp4", "results.jsonl"]
    one, two = (Record.read(f"{name}/0001-a-three.json") for name in ("one", "two"))
    assert two.parallel == {"processes": 2, "ulysses": 1, "cfg": 2, "vae": False}
    assert two.frames_sha256 == one.frames_sha256


def test_under_torchrun_what_is_typed_wrong_is_said_once(folder: Path, place: Path) -> None:
    result = torchrun(folder, "--prompt", "a", "--cfg_size", "2", "--size", "832", "-o", "a.mp4")
    assert result.returncode != 0
    assert result.stderr.count("error: size '832' is not WIDTHxHEIGHT, such as 832x480") == 1
    assert names(place) == []


def test_a_video_is_not_lost_where_its_name_is_taken_meanwhile(
    typed: Typed, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = VideoPipeline.generate

    def taken(self: VideoPipeline, *arguments: Any, **options: Any) -> Any:
        Path("a.mp4").write_bytes(b"of another")
        return generate(self, *arguments, **options)

    monkeypatch.setattr(VideoPipeline, "generate", taken)
    assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 0
    assert "warning: something took a.mp4 while its video was made, so that went into a-2.mp4" in typed.err
    assert typed.out.startswith("a-2.mp4: ")
    assert names(place) == ["a-2.json", "a-2.mp4", "a.mp4"]
    assert Path("a.mp4").read_bytes() == b"of another"


def test_two_do_not_make_the_same_file_at_once(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.video.writing.reserve import reserved

    monkeypatch.setattr(VideoPipeline, "load", None)  # it is seen before
    with reserved(Path("a.mp4")):
        assert typed("--prompt", "a cat", *SMALL, "-o", "a.mp4") == 1
    assert "a.mp4; wait for it, or choose another name with -o" in typed.err


def test_several_videos_of_one_prompt_go_into_a_folder(typed: Typed, place: Path) -> None:
    arguments = ("--prompt", "a cat", *SMALL, "--num-videos", "2", "-o", "out", "--seed", "-1")
    assert typed(*arguments) == 0
    assert typed.out.startswith("out: 2 made, ")
    assert names(place / "out") == ["a-cat-2.json", "a-cat-2.mp4", "a-cat.json", "a-cat.mp4", "results.jsonl"]
    first, second = (Record.read(f"out/a-cat{number}.json").request.seed for number in ("", "-2"))
    assert second == first + 1
    assert typed(*arguments) == 0
    assert typed.out.startswith("out: 0 made, 2 there already, ")
    assert typed("--from", "out/a-cat.json", "--num-videos", "2", "-o", "out") == 2
    assert "--from makes one video; leave --num-videos out" in typed.err

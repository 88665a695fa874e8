"""Interrupted, disturbed and impossible outputs: the target is absent or whole, and one sentence says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import make_config, make_folder, make_layout
from safetensors.torch import load_file, save_file

from sightline.checkpoints.job import Job
from sightline.checkpoints.megatron.convert import hf_to_mm
from sightline.checkpoints.merge import merge
from sightline.errors import SightlineError

PREFIX = "base_model.model.model.layers."
KILLS = 20


def make_base(folder: Path, *, layers: int = 4, hidden: int = 256) -> None:
    config = make_config(
        layers=layers,
        hidden=hidden,
        ffn=2 * hidden,
        vision_layers=2,
        vision_hidden=128,
        vision_ffn=256,
        vocab=512,
    )
    config["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    make_folder(folder, config)


def make_adapter(folder: Path, *, layers: int = 4, hidden: int = 256) -> None:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    random = torch.Generator().manual_seed(4)
    tensors = {}
    for layer in range(layers):
        for module, out in (("self_attn.q_proj", hidden), ("mlp.up_proj", 2 * hidden)):
            name = f"{PREFIX}{layer}.{module}.lora_"
            tensors[f"{name}A.weight"] = torch.randn(4, hidden, generator=random)
            tensors[f"{name}B.weight"] = torch.randn(out, 4, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    make_adapter(tmp_path / "adapter")
    return tmp_path


@pytest.fixture(autouse=True)
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests in this process disturb `os.pwrite`, so all is written by it; others copy by the system."""
    monkeypatch.delattr(os, "copy_file_range", raising=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_merge(root: Path, output: str = "out", **settings: Any) -> None:
    merge(root / "base", root / "adapter", root / output, max_shard_size="300KB", **settings)


def run_convert(root: Path, output: str = "out", **settings: Any) -> None:
    from sightline.checkpoints.megatron.output import Run

    layout = make_layout("1,1,2", "2,0,0")
    hf_to_mm(root / "base", root / output, layout, Run(**settings))


# A process that has imported everything, and runs the job once for each line that it reads.
SERVER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from sightline.checkpoints.torch_file import prepare
from sightline.progress import set_quiet
import test_job
set_quiet()
prepare()
print("ready", flush=True)
for line in sys.stdin:
    if test_job.os.fork() == 0:
        print(test_job.os.getpid(), flush=True)
        run = getattr(test_job, line.split()[0])
        run(Path({root!r}), resume=len(line.split()) > 1)
        test_job.os._exit(0)
    _, status = test_job.os.wait()
    print("ended", status, flush=True)
"""


@pytest.mark.parametrize("job", ["run_merge", "run_convert"])
def test_killed_at_any_moment_the_target_is_absent_or_whole(made: Path, job: str) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = SERVER.format(paths=paths, root=str(made))
    out, partial = made / "out", made / ".out.partial"
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    assert server.stdin
    assert server.stdout

    def start(line: str) -> int:
        server.stdin.write(line + "\n")  # type: ignore[union-attr]
        return int(server.stdout.readline())  # type: ignore[union-attr]

    def end() -> int:
        return int(server.stdout.readline().split()[1])  # type: ignore[union-attr]

    try:
        assert server.stdout.readline() == "ready\n"
        begun = time.perf_counter()
        start(job)
        assert end() == 0
        duration = time.perf_counter() - begun
        expected = contents(out)
        shutil.rmtree(out)
        random = torch.Generator().manual_seed(1)
        killed = resumed = 0
        for _ in range(KILLS):
            process = start(job)
            time.sleep(float(torch.rand((), generator=random)) * duration)
            with contextlib.suppress(ProcessLookupError):  # it was quicker
                os.kill(process, 9)
            died = end() != 0
            killed += died
            if not died:  # the machine is faster than it was; the next moments are earlier
                duration *= 0.8
            if out.exists():
                assert contents(out) == expected
            else:
                begun_to_write = partial.exists() and any(partial.rglob("*0*"))
                resumed += begun_to_write
                if not begun_to_write:
                    duration *= 1.1
                start(f"{job} resume")
                assert end() == 0
                assert contents(out) == expected
            assert not partial.exists()
            shutil.rmtree(out)
        assert killed > KILLS // 2
        assert resumed > KILLS // 4
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # and with it a job that hangs
        server.wait()


@pytest.mark.parametrize("run", [run_merge, run_convert])
def test_interrupted_by_hand_and_gone_on_with(
    made: Path, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(made, "whole")
    expected = contents(made / "whole")
    write, calls, stop = os.pwrite, 0, 60 if run is run_merge else 45

    def interrupted(*given: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(made)
    assert "the same command with --resume goes on from there" in capsys.readouterr().err
    assert not (made / "out").exists()
    done = {name for name in contents(made / ".out.partial") if name in expected}
    assert 0 < len(done) < len(expected)
    # What would be in the way: leftovers of small files that were being written.
    (made / ".out.partial/.config.json.x1").write_text("half")
    times = {name: (made / ".out.partial" / name).stat().st_mtime_ns for name in done}
    run(made, resume=True)
    assert contents(made / "out") == expected
    assert {name: (made / "out" / name).stat().st_mtime_ns for name in times} == times  # not written again
    assert names(made) == {"base", "adapter", "whole", "out"}


def test_what_was_done_is_thrown_away_with_a_word(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (made / ".out.partial").mkdir()
    (made / ".out.partial/model-00001-of-00099.safetensors").write_text("old")
    run_merge(made)
    assert "is removed; --resume would have gone on with it" in capsys.readouterr().err
    assert "model-00001-of-00099.safetensors" not in names(made / "out")


def half_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = os.pwrite, 0

    def fails(*given: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        with pytest.raises(SightlineError, match="cannot write .*out: No space left on device"):
            run_merge(root)


def test_a_full_disk(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done(made, monkeypatch)
    left = names(made / ".out.partial")
    assert not any(name.endswith(".part") for name in left)  # its room is given back
    run_merge(made, resume=True)
    run_merge(made, "whole")
    assert contents(made / "out") == contents(made / "whole")


def test_a_limit_of_the_system_on_the_size_of_a_file(made: Path) -> None:
    """A real failure of the disk, in a process of its own: the file cannot grow beyond 100 kB."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from sightline.cli.app import main; main(sys.argv[1:])"
    )
    for command in (
        ("merge", "--model", made / "base", "--adapter", made / "adapter"),
        ("convert", "hf-to-mm", "--hf-dir", made / "base"),
    ):
        arguments = [sys.executable, "-c", program, *map(str, command), "-o", str(made / "out")]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert "cannot write" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert names(made) == {"base", "adapter"}


def test_room_is_asked_for_before(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(made)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(SightlineError, match=r"out needs .* MB, but its disk has 1\.0 kB free; make room"):
        run_merge(made)
    assert names(made) == {"base", "adapter"}


def change_source(root: Path) -> None:
    file = root / "base/model.safetensors"
    os.utime(file, ns=(1, 1))


def change_alpha(root: Path) -> None:
    file = root / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 99}))


@pytest.mark.parametrize(("change", "word"), [(change_source, "sources"), (change_alpha, "adapters")])
def test_another_job_is_not_gone_on_with(
    made: Path, change: Callable[[Path], None], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(made, monkeypatch)
    change(made)
    with pytest.raises(SightlineError, match=f"was another one: its {word} differs; run without --resume"):
        run_merge(made, resume=True)
    with pytest.raises(SightlineError, match="was another one"):
        run_convert(made, resume=True)
    run_merge(made)  # anew
    assert (made / "out").is_dir()


def test_another_process_at_the_same_target(made: Path) -> None:
    with pytest.raises(KeyError), Job(made / "out", {}, bytes=1) as job:
        job.file("a", lambda path: path.write_text("a") and None)
        with pytest.raises(SightlineError, match="another process is writing .*out; wait for it"):
            run_merge(made)
        raise KeyError
    assert names(made / ".out.partial") == {"a", "job.json"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_target(made: Path) -> None:
    (made / "locked").mkdir(mode=0o500)
    with pytest.raises(SightlineError, match="cannot write .*out: Permission denied"):
        run_merge(made, "locked/out")


def test_a_target_where_nothing_can_be(made: Path) -> None:
    with pytest.raises(SightlineError, match="cannot write .*: Not a directory"):
        run_merge(made, "base/config.json/out")
    (made / "taken").write_text("mine")
    for run in (run_merge, run_convert):
        for settings in ({}, {"dry_run": True}):
            with pytest.raises(SightlineError, match="taken already exists; choose another output folder"):
                run(made, "taken", **settings)
    assert (made / "taken").read_text() == "mine"


def test_a_source_that_is_cut_off_while_it_is_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made / "base/model.safetensors"
    size, write, calls = file.stat().st_size, os.pwrite, 0

    def cutting(*given: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.truncate(file, size // 4)
        return write(*given)

    monkeypatch.setattr(os, "pwrite", cutting)
    for run in (run_merge, run_convert):
        with pytest.raises(SightlineError, match=r"model.safetensors was cut off while it was read"):
            run(made)
        assert not (made / "out").exists()
        shutil.rmtree(made / "base")
        make_base(made / "base")
        calls = 0


def test_copied_by_the_system_is_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_merge(made)
    monkeypatch.undo()
    run_merge(made, "copied")
    assert contents(made / "copied") == contents(made / "out")

    def across(*given: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", across, raising=False)
    run_merge(made, "across")
    assert contents(made / "across") == contents(made / "out")
    monkeypatch.setattr(os, "copy_file_range", lambda *given: 0)
    with pytest.raises(SightlineError, match="was cut off while it was read"):
        run_merge(made, "cut")


def test_an_empty_folder_is_filled_and_permissions_are_ordinary(made: Path) -> None:
    (made / "out").mkdir()
    old = os.umask(0o027)
    try:
        run_convert(made)
    finally:
        os.umask(old)
    for path in [made / "out", *(made / "out").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


MEASURED = """
import sys
from sightline.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
status = open("/proc/self/status").read()  # not ru_maxrss, which a process inherits from its parent
print(status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak")
@pytest.mark.parametrize("command", ["merge", "hf-to-mm", "mm-to-hf"])
def test_memory_does_not_grow_with_the_model(tmp_path: Path, command: str) -> None:
    """A checkpoint of holes, with one tensor of 256 MB: the bound is 1 GB and that tensor."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(base)
    make_adapter(adapter)
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": 2**19}
    (base / "config.json").write_text(json.dumps(config))
    enlarge(base / "model.safetensors", {"model.embed_tokens.weight": 2**19, "lm_head.weight": 2**19})
    arguments = {
        "merge": ["merge", "--model", base, "--adapter", adapter],
        "hf-to-mm": ["convert", "hf-to-mm", "--hf-dir", base, "--tp", 2],
        "mm-to-hf": ["convert", "mm-to-hf", "--hf-dir", base, "--mm-dir", tmp_path / "mm"],
    }[command]
    if command == "mm-to-hf":
        hf_to_mm(base, tmp_path / "mm", make_layout("2,2", "2,0", 2))
    command_line = [sys.executable, "-c", MEASURED, *map(str, arguments), "-o", str(tmp_path / "out")]
    result = subprocess.run(command_line, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout.splitlines()[-1]) * 1024
    assert peak < 10**9 + 2**28


def enlarge(file: Path, rows: dict[str, int]) -> None:
    """Give tensors of a file more rows, all of them a hole."""
    tensors = load_file(file)
    header, end = {}, 0
    for name, tensor in tensors.items():
        shape = [rows.get(name, tensor.shape[0]), *tensor.shape[1:]]
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)

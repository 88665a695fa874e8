"""Whatever happens to a rank, all of them end within seconds and the user reads one sentence."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import watched_ranks as ranks
from watched_ranks import Ended, everyone, only, run, says

from sightline.errors import SightlineError
from sightline.video.parallel.lookout import LAST_WORDS, Line, Lookout, gone
from sightline.video.parallel.watch import _is_of_connection

Body = Callable[[int, Path], None]
DIED = "was killed or crashed, and the other 2 ranks ended with it"


def check(ended: Ended, sentence: str) -> None:
    assert None not in ended.codes, f"still running after 20 s: {ended.codes}, {ended.text}"
    assert ended.seconds < 15  # about five at most on a machine that has nothing else to do
    assert len(says(ended)) == 1, ended.text
    assert sentence in ended.text


def test_an_error_of_one_rank_is_told_with_its_number(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.raises_on_1)
    check(ended, "error: rank 1: the disk of this machine is full; free some room")
    assert ended.codes == [1, 1, 1]


def test_an_error_of_rank_0_and_of_the_system(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.raises_on_0)
    check(ended, "error: weights.safetensors: No such file or directory (rank 0)")
    assert ended.codes == [1, 1, 1]


def test_an_error_of_all_ranks_is_told_once_without_a_number(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.raises_on_all)
    check(ended, "error: width 481 is no multiple of 16; take 480")
    assert ended.codes == [2, 2, 2]


def test_out_of_memory_on_one_rank(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.no_memory_on_2)
    check(ended, "error: out of memory; ")
    assert "(rank 2: " in ended.text
    assert ended.codes == [1, 1, 1]


def test_a_rank_that_hangs_while_its_error_is_on_the_way_to_the_user(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.hangs_on_its_way_out)
    check(ended, "error: rank 1: ValueError: a wrong number")
    assert ended.codes == [1, 1, 1]


def test_leaving_with_a_code_ends_the_others_with_it(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.leaves_on_1)
    assert ended.codes == [7, 7, 7]
    assert ended.seconds < 15  # about five at most on a machine that has nothing else to do
    assert says(ended) == []  # whoever leaves so has spoken


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_killed_amid_an_all_to_all(tmp_path: Path, rank: int) -> None:
    ended = run(tmp_path, ranks.works, send=only(rank, signal.SIGKILL))
    check(ended, f"error: rank {rank} (process {ended.pids[rank]} on ")
    assert DIED in ended.text
    assert ended.codes == [-9 if each == rank else 1 for each in range(3)]


def test_a_rank_killed_while_nobody_talks_to_it(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.dies_while_others_compute)
    check(ended, DIED)
    assert ended.codes == [1, 1, -9]


def test_a_rank_killed_when_the_others_are_through(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.works_on_after_the_others, send=only(0, signal.SIGKILL))
    check(ended, "error: rank 0 (process ")
    assert ended.codes == [-9, 1, 1]


@pytest.mark.parametrize("body", [ranks.works, ranks.hangs_in_a_collective])
def test_ctrl_c(tmp_path: Path, body: Body) -> None:
    ended = run(tmp_path, body, send=everyone(signal.SIGINT))
    check(ended, "interrupted")
    assert ended.codes == [130, 130, 130]


def test_an_interrupt_of_one_rank_ends_all(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.waits_for_2, send=only(1, signal.SIGINT))
    check(ended, "interrupted")
    assert ended.codes == [130, 130, 130]


def test_a_rank_told_to_end(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.hangs_in_a_collective, send=only(1, signal.SIGTERM))
    check(ended, "error: rank 1: ended by SIGTERM")
    assert ended.codes == [143, 143, 143]


def test_a_launcher_that_ends_the_others_at_once_does_not_take_the_message(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.works, send=(signal.SIGTERM, signal.SIGTERM, signal.SIGKILL))
    check(ended, DIED)
    assert "rank 2" in ended.text


def test_ranks_that_succeed_say_nothing(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks.slow_end)
    assert ended.codes == [0, 0, 0]
    assert ended.text == ""


def test_a_death_explains_the_lost_connections_that_were_reported_before_it() -> None:
    first, second, third = lines = connect(3)
    second.send({"say": "failed", "sentence": "Connection closed by peer", "code": 1, "doubtful": True})
    third.close()
    told = first.receive()
    assert told is not None
    assert told[0]["text"] == gone(2, "process 2", 3)
    assert second.receive() == [{"do": "be quiet", "code": 1}]
    for line in lines:
        line.close()


@pytest.mark.parametrize("doubtful", [True, False])
def test_without_a_death_the_first_sure_failure_is_told(doubtful: bool) -> None:
    _, second, third = lines = connect(3)
    second.send({"say": "failed", "sentence": "timed out", "code": 1, "doubtful": doubtful})
    time.sleep(0.1)
    third.send({"say": "failed", "sentence": "no memory", "code": 5, "doubtful": False})
    speaker, silent = (third, second) if doubtful else (second, third)
    assert silent.receive() == [{"do": "be quiet", "code": 5 if doubtful else 1}]
    assert speaker.receive() == [{"do": "speak", "alone": True}]
    begun = time.monotonic()
    time.sleep(0.3)
    speaker.close()  # it has spoken
    assert silent.receive() == [{"do": "end"}]
    assert 0.3 <= time.monotonic() - begun < LAST_WORDS
    for line in lines:
        line.close()


def test_a_rank_that_dies_with_its_error_unsaid_is_spoken_for() -> None:
    first, second, third = lines = connect(3)
    second.send({"say": "failed", "sentence": "no memory", "code": 1, "doubtful": False})
    second.close()
    assert third.receive() == [{"do": "be quiet", "code": 1}]
    assert first.receive() == [{"do": "speak", "text": "rank 1: no memory"}]
    for line in lines:
        line.close()


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:25480"),
            True,
        ),
        (
            torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp, remote process exited"),
            True,
        ),
        (ConnectionResetError("reset"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (SightlineError("the connection timed out"), False),
    ],
)
def test_which_errors_may_follow_from_another_rank(error: Exception, follows: bool) -> None:
    assert _is_of_connection(error) == follows


def connect(size: int) -> list[Line]:
    lookout = Lookout(size, "secret")
    lookout.start()
    lines = []
    for rank in range(size):
        line = Line(socket.create_connection(("127.0.0.1", lookout.port), timeout=5))
        line.send({"token": "secret", "rank": rank, "name": f"process {rank}"})
        assert line.receive() == [{"do": "welcome"}]
        lines.append(line)
    return lines


def test_strangers_at_the_door_are_sent_away() -> None:
    lookout = Lookout(1, "secret")
    lookout.start()
    for stranger in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"5\n",
        b'{"token": "\xc3\xa4", "rank": 0}\n',
        b'{"say": "done"}\n',
    ):
        with socket.create_connection(("127.0.0.1", lookout.port), timeout=5) as connection:
            connection.sendall(stranger)
            assert connection.recv(100) == b""
    with socket.create_connection(("127.0.0.1", lookout.port), timeout=5) as connection:
        connection.sendall(b'{"token": "secret", "rank": 0, "name": "me"}\n')
        assert connection.recv(100) == b'{"do": "welcome"}\n'
        connection.sendall(b'{"say": "done"}\n')
        assert connection.recv(100) == b'{"do": "go"}\n'
    lookout.join(5)
    assert not lookout.is_alive()

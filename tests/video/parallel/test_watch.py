"""Whatever happens to a rank, all of them end within seconds and the user reads one sentence."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import watched_ranks as ranks
from watched_ranks import Ended, everyone, only, run, says

from sightline.video.parallel.lookout import Lookout

Body = Callable[[int, Path], None]
DIED = "was killed or crashed, and the other 2 ranks ended with it"


def check(ended: Ended, sentence: str) -> None:
    assert None not in ended.codes, f"still running after 20 s: {ended.codes}, {ended.text}"
    assert ended.seconds < 10
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
    assert ended.seconds < 10
    assert says(ended) == []  # whoever leaves so has spoken


@pytest.mark.parametrize("rank", [0, 1, 2])
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


@pytest.mark.parametrize("body", [ranks.works, ranks.waits_for_2, ranks.hangs_in_a_collective])
def test_ctrl_c(tmp_path: Path, body: Body) -> None:
    ended = run(tmp_path, body, send=everyone(signal.SIGINT))
    check(ended, "interrupted")
    assert ended.codes == [130, 130, 130]


@pytest.mark.parametrize("body", [ranks.waits_for_2, ranks.hangs_in_a_collective])
def test_an_interrupt_of_one_rank_ends_all(tmp_path: Path, body: Body) -> None:
    ended = run(tmp_path, body, send=only(1, signal.SIGINT))
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


def test_strangers_at_the_door_are_sent_away(tmp_path: Path) -> None:
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

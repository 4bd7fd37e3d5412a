"""One process at a time, whatever becomes of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from harness.base.errors import UserError
from harness.base.locks import lock
from tests.harness.conftest import until

CONTEXT = multiprocessing.get_context("fork")


def hold(path: Path, seconds: float) -> None:
    with lock(path, "the work"):
        (path.parent / "held").touch()
        time.sleep(seconds)
        (path.parent / "held").unlink()


def test_the_second_waits_and_says_for_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sub" / "a.lock"
    owner = CONTEXT.Process(target=hold, args=(path, 1.0))
    owner.start()
    until((path.parent / "held").exists)
    with lock(path, "NLA seed 0"):
        assert not (path.parent / "held").exists()
    owner.join()
    told = capsys.readouterr().err
    who = f"process {owner.pid} on {socket.gethostname()} (since 20"
    assert told.startswith(f"NLA seed 0: already running in {who}")
    assert told.endswith("; waiting\n")
    with lock(path, "NLA seed 0"):
        pass
    assert capsys.readouterr().err == ""  # nobody has it any more


def test_a_lock_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    owner = CONTEXT.Process(target=hold, args=(path, 60))
    owner.start()
    until((tmp_path / "held").exists)
    assert owner.pid is not None
    threading.Timer(0.3, os.kill, (owner.pid, signal.SIGKILL)).start()
    start = time.monotonic()
    with lock(path, "the work"):
        assert 0.2 < time.monotonic() - start < 10
    owner.join()
    assert owner.exitcode == -signal.SIGKILL


def add_one(path: Path) -> None:
    for _ in range(20):
        with lock(path.with_suffix(".lock"), "counting"):
            path.write_text(str(int(path.read_text()) + 1))


def test_many_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    workers = [CONTEXT.Process(target=add_one, args=(path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert path.read_text() == "80"


def test_a_folder_that_cannot_be_locked_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.lock"
    told = r"cannot write .*a\.lock: .*choose a folder"
    with pytest.raises(UserError, match=told), lock(path, ""):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock(tmp_path / "a.lock", "x"):
            raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a.lock"]

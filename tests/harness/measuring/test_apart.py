"""Calls in a process of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from harness.base.progress import OnRun
from harness.measuring.apart import ProcessEnded, run_in_subprocess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")


def told(words: tuple[str, ...], on_run: OnRun) -> tuple[int, str]:
    for index, word in enumerate(words):
        on_run(index / len(words), word)
    return os.getpid(), "".join(words)


def fail(message: str, on_run: OnRun) -> None:
    on_run(0.5, "then")
    raise ValueError(message)


def end(signum: int, on_run: OnRun) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(60)


def leave(code: int, on_run: OnRun) -> None:
    os._exit(code)


def interrupted(path: Path, on_run: OnRun) -> None:
    os.kill(os.getpid(), signal.SIGINT)  # as of a terminal's Ctrl-C: not this process's concern
    path.write_text("still here")


def wait(path: Path, on_run: OnRun) -> None:
    path.write_text(str(os.getpid()))
    on_run(0.0, "waiting")
    time.sleep(60)


def test_result_and_progress() -> None:
    heard: list[tuple[float, str]] = []
    pid, text = run_in_subprocess(told, ("a", "b"), on_run=lambda *both: heard.append(both))
    assert text == "ab"
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)
    assert heard == [(0.0, "a"), (0.5, "b")]
    assert run_in_subprocess(told, ("a", "b"))[1] == "ab"  # nobody need listen


def threads(_: OnRun) -> int:
    return torch.get_num_threads()


@pytest.mark.usefixtures("one_thread")
def test_as_many_threads_of_torch_as_here() -> None:
    torch.set_num_threads(3)
    assert run_in_subprocess(threads) == 3


def test_error_is_raised_here() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        run_in_subprocess(fail, "no such thing")


@pytest.mark.parametrize(
    ("function", "argument", "code"),
    [(end, signal.SIGKILL, -9), (end, signal.SIGTERM, -15), (leave, 3, 3)],
)
def test_end_of_the_process(function: Callable[..., None], argument: int, code: int) -> None:
    with pytest.raises(ProcessEnded, match=f"ended early, with exit status {code}$") as caught:
        run_in_subprocess(function, argument)
    assert caught.value.code == code


def test_interrupt_is_for_the_first_process(tmp_path: Path) -> None:
    run_in_subprocess(interrupted, tmp_path / "said")
    assert (tmp_path / "said").read_text() == "still here"


def test_it_ends_when_the_first_is_stopped(tmp_path: Path) -> None:
    def stop(share: float, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess(wait, tmp_path / "pid", on_run=stop)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's state of a process")
def test_it_ends_when_the_first_is_killed(tmp_path: Path) -> None:
    """Nothing tells it: it ends at the next progress that nobody can hear."""
    first = multiprocessing.get_context("spawn").Process(target=first_process, args=(tmp_path,))
    first.start()
    pid = wait_for(tmp_path / "pid")
    second = psutil.Process(pid)
    first.kill()
    first.join()
    for _ in range(200):
        if not second.is_running() or second.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    second.kill()
    raise AssertionError("it was still there after 20 s")


def first_process(folder: Path) -> None:
    run_in_subprocess(tick, folder / "pid")


def tick(path: Path, on_run: OnRun) -> None:
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    while True:
        on_run(0.0, "ticking")
        time.sleep(0.1)


def wait_for(path: Path) -> int:
    for _ in range(600):
        if path.exists():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path.name} was not written within 30 s")

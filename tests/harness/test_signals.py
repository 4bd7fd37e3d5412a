"""SIGINT and SIGTERM end the main job with its state saved and the line that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.checkpoints import find_checkpoints
from harness.records import load_records
from harness.signals import Stopped, held, resumable
from tests.harness.survival import command


def test_held_signals_come_at_the_end() -> None:
    seen = []

    def work() -> None:
        with held() as stopped:
            seen.append(bool(stopped))
            signal.raise_signal(signal.SIGTERM)
            seen.append(bool(stopped))

    with pytest.raises(Stopped) as stop:
        work()
    assert seen == [False, True]
    assert stop.value.signum == signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held() as stopped:
            signal.raise_signal(signal.SIGINT)
        assert not stopped
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def work() -> None:
        with held():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_line_that_goes_on(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @resumable("harness.run")
    def main() -> None:
        signal.raise_signal(signum)

    monkeypatch.setattr(sys, "argv", ["run.py", "--data", "/my images"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 128 + signum
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"stopped by {signum.name}; this line goes on:"
    assert shlex.split(told[1]) == [sys.executable, "-m", "harness.run", "--data", "/my images"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_error_within_goes_before_the_signal() -> None:
    def work() -> None:
        with held():
            signal.raise_signal(signal.SIGTERM)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        work()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_printed_line_finishes_the_run(
    signum: signal.Signals, tmp_path: Path, image_folder: Path
) -> None:
    words = command(image_folder, tmp_path, steps=400, save_every=0.5)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (states := list((tmp_path / "runs").glob("*/state-*.safetensors"))):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, told
    # The one that was seen, and the one at the end.
    assert [p == states[0] for p in find_checkpoints(states[0].parent)] == [True, False]
    assert load_records(tmp_path, "run") == []
    line = told.strip().splitlines()[-1]
    done = subprocess.run(shlex.split(line), check=True, capture_output=True, env=os.environ)
    assert b"400/400" in done.stdout
    assert len(load_records(tmp_path, "run")) == 1


def test_the_line_that_goes_on_names_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    @resumable("harness.run", lambda: "torchrun --nproc-per-node=2 -m --")
    def main() -> None:
        raise Stopped(signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 143
    line = capsys.readouterr().err.splitlines()[1]
    assert line.startswith("torchrun --nproc-per-node=2 -m -- harness.run")

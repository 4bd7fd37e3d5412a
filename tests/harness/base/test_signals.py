"""SIGINT and SIGTERM end the main job with its state saved and the command that resumes it."""

from __future__ import annotations

import importlib
import json
import random
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.base.commands import command_line
from harness.base.signals import Stopped, defer_signals, resumable
from harness.records.shapes import Run
from harness.records.store import load_all_records, load_records
from tests.harness import killable
from tests.harness.conftest import Cli, write_image
from tests.harness.survival import command, differences, outcome, words


def test_deferred_signals_come_at_the_end() -> None:
    seen = []

    def work() -> None:
        with defer_signals() as stopped:
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
        with defer_signals() as stopped:
            signal.raise_signal(signal.SIGINT)
        assert not stopped
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    def work() -> object:
        with defer_signals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "resumes"),
    [
        ("approximation --synthetic", False),
        ("evaluate --weights some-run", False),
        ("latency --attn nla", False),
        ("redraws --runs some-run", True),
        ("run --attn nla", True),
        ("scaling --attn nla", False),
        ("speed --only core", False),
    ],
)
def test_only_commands_that_continue_their_work_say_how_to_resume(
    command: str,
    resumes: bool,
    signum: signal.Signals,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    results: Path,
) -> None:
    name, *words = [*shlex.split(command), "--results", str(results / "of mine")]
    module = importlib.import_module(f"harness.{name}")
    monkeypatch.setattr(module.machine, "use_threads", lambda _: signal.raise_signal(signum))
    told, *line = cli(name, *words, status=128 + signum).err.splitlines()
    assert told == f"stopped by {signum.name}" + ("; resume with:" if resumes else "")
    resumed_by = [sys.executable, "-m", f"harness.{name}", *words]
    assert [shlex.split(words) for words in line] == ([resumed_by] if resumes else [])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_command_that_resumes_names_the_launcher(cli: Cli) -> None:
    @command_line
    @resumable("harness.run", lambda: "torchrun --nproc-per-node=2 -m --")
    def main() -> None:
        raise Stopped(signal.SIGTERM)

    line = cli(main, status=143).err.splitlines()[1]
    assert line.startswith("torchrun --nproc-per-node=2 -m -- harness.run")


def test_an_error_within_goes_before_the_signal() -> None:
    def work() -> None:
        with defer_signals():
            signal.raise_signal(signal.SIGTERM)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        work()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_any_phase_of_the_main_job(
    signum: signal.Signals, one_thread: None, tmp_path: Path, image_folder: Path
) -> None:
    """The command that it prints ends as if no signal had come."""
    chance = random.Random(signum)
    values = {"steps": 12, "save_every": 0}

    def start(folder: Path) -> Any:
        options = words(image_folder, folder / "results", **values)
        return killable.start(folder, options, forked=True)

    whole = tmp_path / "whole"
    assert start(whole).wait() == 0, (whole / "told").read_text()
    expected = outcome(whole / "results")
    measured = json.loads((whole / "measured.json").read_text())
    for phase in killable.PHASES[1:]:
        for attempt in range(9):  # some phases last a few milliseconds
            folder = tmp_path / f"{phase}-{attempt}"
            process = start(folder)
            after = chance.uniform(0, measured["seconds"][phase] / 2)
            killable.send(process, folder, phase, after, signum)
            if process.wait():
                break
        told = (folder / "told").read_text()
        assert process.returncode == 128 + signum, told
        assert not list(folder.rglob("*.tmp"))
        said, line = told.splitlines()[-2:]
        assert said == f"stopped by {signum.name}; resume with:"
        options = words(image_folder, folder / "results", **values)
        assert shlex.split(line) == [sys.executable, "-m", "harness.run", *options]
        assert start(folder).wait() == 0, (folder / "told").read_text()
        assert not differences(outcome(folder / "results"), expected), phase


SHORT = {
    "latency": "--attn conv --sizes 32x32 --max-seconds 1",
    "scaling": "--attn conv --sizes 32x32 48x48 --size-seconds 1 --fit-from 1",
    "approximation": "--synthetic --sizes 24 --images 1",
    "speed": "--only core-criss-cross --seconds 1",
    "redraws": "--draws 2 --runs {run} --data {data}",
    "evaluate": "--output {results}/evaluation.json --weights {run} --data {data}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_signal_leaves_nothing_half_written(
    name: str, tmp_path: Path, image_folder: Path
) -> None:
    """Real processes and random moments; the same command then does the work."""
    chance = random.Random(name)
    subprocess.run(command(image_folder, tmp_path, steps=2, save_every=9), check=True)
    (run,) = load_records(tmp_path, Run)
    # Work of some seconds: the moments below vary as much as imports do.
    write_image(tmp_path / "data" / "Large" / "HR" / "e0.png", 1440, 1920, 0)
    options = SHORT[name].format(results=tmp_path, run=run.id, data=tmp_path / "data").split()
    line = [sys.executable, "-m", f"harness.{name}", *options, "--results", str(tmp_path)]
    stopped = 0
    begin = time.monotonic()
    subprocess.run([*line, "--help"], check=True, capture_output=True)
    imports = time.monotonic() - begin
    for attempt in range(20):
        signum = (signal.SIGINT, signal.SIGTERM)[attempt % 2]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            process.wait(imports + chance.uniform(-0.5, 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signum)
        _, told = process.communicate(timeout=120)
        assert process.returncode in (0, -signum, 128 + signum), told
        assert not list(tmp_path.rglob("*.tmp"))
        load_all_records(tmp_path)
        if process.returncode == 128 + signum:
            assert told.splitlines()[-1 - ("resume with:" in told)].startswith("stopped by SIG")
            if "resume with:" in told:
                assert shlex.split(told.splitlines()[-1]) == line
            stopped += 1
        if stopped == 3:
            break
    assert stopped
    subprocess.run(line, check=True, capture_output=True)
    load_all_records(tmp_path)

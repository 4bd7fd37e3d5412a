"""What other processes do while something is timed."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest

from harness.measuring import load
from harness.measuring.load import warn_of_load, watch_load

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest")


def test_others_are_all_but_this_process_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ten seconds three cores' worth of work: this process 12 s, a child 8 s, others 10 s."""
    now = {"clock": 0.0, "all": 0.0, "own": 0.0, "child": 0.0}

    def times(seconds: float) -> Any:
        return Times(seconds, 0, 0, 900, 5, 0, 0, 0, seconds)

    child = SimpleNamespace(cpu_times=lambda: (now["child"], 0, 0, 0))
    own = SimpleNamespace(
        cpu_times=lambda: (now["own"], 0, 0, 0), children=lambda recursive: [child]
    )
    monkeypatch.setattr(load.time, "monotonic", lambda: now["clock"])
    monkeypatch.setattr(load.psutil, "cpu_times", lambda: times(now["all"]))
    monkeypatch.setattr(load.psutil, "Process", lambda: own)
    cores = watch_load()
    now.update(clock=10.0, all=30.0, own=12.0, child=8.0)
    assert cores() == pytest.approx(1.0)


def test_another_process_is_seen_and_a_child_is_not() -> None:
    """A busy child is own work; the same process seen from another one is load."""
    busy = "import time; end = time.monotonic() + 5\nwhile time.monotonic() < end: pass"
    watcher = (
        "import time, sys; sys.path.insert(0, '.'); from harness.measuring.load import watch_load\n"
        "cores = watch_load(); time.sleep(1); print(cores())"
    )
    child = subprocess.Popen([sys.executable, "-c", busy])
    try:
        seen = subprocess.run([sys.executable, "-c", watcher], capture_output=True, text=True)
        assert float(seen.stdout) > 0.2
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(("cores", "told"), [(0.05, ""), (0.83, "kept 0.83 cores busy")])
def test_a_warning_above_a_tenth_of_a_core(
    cores: float, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_load(cores)
    err = capsys.readouterr().err
    assert told in err
    assert bool(err) == bool(told)

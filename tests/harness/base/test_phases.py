"""Where the time of a command goes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time

import pytest

from harness.base.phases import REST, START_UP, Phases


def test_phases_and_the_rest_add_up_to_all_time() -> None:
    program = (
        "import time; time.sleep(0.3)\n"
        "from harness.base.phases import Phases, since_start\n"
        "phases = Phases()\n"
        "with phases.phase('a'): time.sleep(0.2)\n"
        "time.sleep(0.1)\n"
        "with phases.phase('b'): time.sleep(0.1)\n"
        "with phases.phase('a'): time.sleep(0.2)\n"
        "print(phases.seconds(), since_start())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    *_, whole = out.stdout.split()
    found = ast.literal_eval(out.stdout.rpartition("}")[0] + "}")
    assert list(found) == [START_UP, "a", "b", REST]
    assert found[START_UP] >= 0.28
    assert found["a"] >= 0.4
    assert found["b"] >= 0.1
    assert found[REST] >= 0.08
    assert sum(found.values()) == pytest.approx(float(whole), abs=0.02)


def test_a_phase_that_fails_counts() -> None:
    phases = Phases()

    def fail() -> None:
        with phases.phase("a"):
            time.sleep(0.02)
            raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        fail()
    assert phases.seconds()["a"] >= 0.02
    assert re.fullmatch(r"[\d.]+ s: start-up [\d.]+, a [\d.]+, the rest [\d.]+", str(phases))

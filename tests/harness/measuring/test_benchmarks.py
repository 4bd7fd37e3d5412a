"""The suite for pytest-benchmark: what stands in its groups, and in which unit and letters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_groups_are_in_ms_with_readable_names_and_without_what_does_nothing() -> None:
    pytest.importorskip("pytest_benchmark")
    words = "benchmarks --benchmark-only --benchmark-columns=min -q -p no:cacheprovider"
    chosen = ["-k", "core-forward and not backward and (Nystr or RCAN or Baseline or Mean)"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words.split(), *chosen],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        # A worker of pytest-xdist would switch the benchmarks off.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"PYTHONUTF8": "1"},
    )
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert text.count("Name (time in ms)") == 1
    assert "\nNyström-8x8 " in text
    assert "Baseline" not in text
    assert "\nMean " not in text
    assert "RCAN CA" in text

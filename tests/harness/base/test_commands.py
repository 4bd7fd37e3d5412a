"""The commands: what can be typed after ``python -m harness.``, and what ``--help`` costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.completion import commands

#: Packages that no command needs for its help.
HEAVY = {"fvcore", "matplotlib", "pandas", "ptflops", "scipy", "seaborn", "skimage"}
#: Commands that name the attention modules, and so import torch.
WITH_MODULES = {
    f"harness.{name}" for name in ("check", "latency", "probe", "run", "scaling", "sweep")
}
HELP = """
import runpy, sys
sys.argv = [{command!r}, "--help"]
try:
    runpy.run_module({command!r}, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print(stop.code or 0, *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize("command", commands())
def test_help_loads_no_heavy_package(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(command=command)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr
    *text, last = done.stdout.splitlines()
    status, *modules = last.split()
    assert status == "0"
    assert any("usage" in line for line in text)
    assert not HEAVY & set(modules)
    assert ("torch" in modules) == (command in WITH_MODULES)

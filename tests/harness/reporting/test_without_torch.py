"""Commands that read records alone import neither torch nor what measures, and start fast."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic_records as synthetic

from harness.records.shapes import KINDS
from harness.records.store import load_all_records, save_record

resource = pytest.importorskip("resource")
ROOT = Path(__file__).parents[3]
COMMANDS = ["tables", "figures", "report"]
HEAVY = ("torch", "attention_zoo")
HEAVY += tuple(f"harness.{wing}" for wing in ("measuring", "network", "training", "images", "runs"))
#: Runs a command, then fails with the names of what it should not have imported.
RUN = f"""
import contextlib, importlib, sys
sys.argv = sys.argv[1:]
with contextlib.suppress(SystemExit):
    importlib.import_module(f"harness.{{sys.argv[0]}}").main()
sys.exit(", ".join(name for name in {HEAVY} if name in sys.modules) or None)
"""


@pytest.fixture(scope="module")
def every_kind(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of each kind."""
    folder = tmp_path_factory.mktemp("every-kind")
    shutil.copytree(results, folder, dirs_exist_ok=True)
    save_record(folder, synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)]))
    save_record(folder, synthetic.implementations())
    save_record(folder, synthetic.redraw([27.0, 27.1, 26.9]))
    save_record(folder, synthetic.gpu([{"name": "compile-enla", "milliseconds": 1.5}]))
    assert {type(record) for record in load_all_records(folder)} == {*KINDS.values()}
    return folder


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_reads_records_imports_nothing_that_measures(
    command: str, every_kind: Path, tmp_path: Path
) -> None:
    done = run("-c", RUN, command, "--results", every_kind, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert any((tmp_path / "out").rglob("*.*"))


def test_an_import_of_torch_would_be_found(results: Path, tmp_path: Path) -> None:
    words = ("tables", "--results", results, "--output", tmp_path / "out")
    done = run("-c", f"import torch{RUN}", *words)
    assert done.returncode == 1
    assert done.stderr.strip() == "torch"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_little_time_of_the_processor(command: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-c", RUN, command, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, "--results" in done.stdout) == (0, True)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1.5

"""What a user sees of an error: one line, and an exit status."""

from __future__ import annotations

import errno
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention_zoo import AttentionError
from harness import DELETED
from harness.base.commands import command_line
from harness.base.errors import UserError
from harness.base.signals import Stopped
from tests.harness.conftest import Cli


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (AttentionError("no such option"), 2, "error: no such option"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: not enough memory"),
        (torch.OutOfMemoryError("full"), 2, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: not enough memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, "error: not en"),
        (MemoryError(), 2, "error: not enough memory"),
        (OSError(errno.ENOSPC, "No space left"), 2, "error: No space left; free space or"),
        (OSError(errno.EACCES, "Denied", "/a"), 2, "error: /a: Denied; give the rights to it"),
        (OSError(errno.ENAMETOOLONG, "Too long", "/a"), 2, "error: /a: Too long; give a shorter"),
    ],
)
def test_one_line_and_a_status(error: BaseException, status: int, told: str, cli: Cli) -> None:
    @command_line
    def main() -> None:
        raise error

    (line,) = cli(main, status=status).err.splitlines()
    assert line.startswith(told)


def test_a_folder_that_was_deleted_under_the_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    @command_line
    def main() -> None:
        raise AssertionError("not reached")

    assert "the folder in which this runs was deleted" in cli(main, status=2).err


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a file's name that is not UTF-8, and signs that ASCII has not."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))

    @command_line
    def main() -> None:
        print("×4 \udce9", flush=True)

    main()
    assert shown.getvalue() == b"x4 \\udce9\n"


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_a_fault_of_the_program_keeps_its_traceback(kind: type[Exception]) -> None:
    @command_line
    def main() -> None:
        raise kind("shapes do not fit")

    with pytest.raises(kind, match="shapes do not fit"):
        main()


def test_ctrl_c_during_imports_shows_one_line(tmp_path: Path) -> None:
    """A fake torch reports that its import has begun, and waits."""
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert error == "stopped by SIGINT\n"
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("harness.base", "torch numpy attention_zoo"),
        ("harness.images", "torch attention_zoo skimage scipy pooch"),
    ],
)
def test_importing_a_wing_is_light(package: str, heavy: str) -> None:
    """Every file of the wing, in a process of its own."""
    code = f"""
import importlib, pkgutil, sys
import {package} as wing
for module in pkgutil.iter_modules(wing.__path__):
    importlib.import_module(f"{package}.{{module.name}}")
print(*(set({heavy.split()}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only there a working directory can vanish")
def test_a_deleted_working_directory_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    root = Path(__file__).parents[3]
    line = f"cd {folder} && rmdir {folder} && exec {sys.executable} -m harness.run --steps 1"
    process = subprocess.run(
        ["sh", "-c", line], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert process.returncode == 2
    assert process.stderr == f"error: {DELETED}\n"

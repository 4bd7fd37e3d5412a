"""What a user sees of an error: one line, and an exit status."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.base.errors import UserError, command_line


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: the memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: the memory does"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, "error: the mem"),
        (MemoryError(), 2, "error: the memory does not suffice"),
    ],
)
def test_one_line_and_a_status(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command_line
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(told)


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a file's name that is not UTF-8, and signs that ASCII has not."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))

    @command_line
    def main() -> None:
        print("×4 \udce9", flush=True)

    main()
    assert shown.getvalue() == b"\\xd74 \\udce9\n"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    @command_line
    def main() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main()


def test_ctrl_c_while_modules_are_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    """torch is stood in for by a module that says that it is being imported, and waits."""
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert error == "interrupted\n"
    assert process.returncode == -signal.SIGINT

"""What a user sees of an error: one line, and an exit status."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UserError, command_line


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no such thing"), 2, "error: no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: the memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: the memory does"),
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


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    @command_line
    def main() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main()

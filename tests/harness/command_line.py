"""Commands as a user types them, run in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def enter(main: Callable[[], object], *words: str | Path) -> list[str]:
    """Run a command with these words; returns the lines that it prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", [main.__module__, *map(str, words)])
        main()
    return out.getvalue().splitlines()


def mistake(main: Callable[[], object], *words: str | Path) -> str:
    """The error of a command line: one line, exit status 2, nothing else printed."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", [main.__module__, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
    (line,) = err.getvalue().splitlines()
    assert (stop.value.code, out.getvalue(), line[:7]) == (2, "", "error: ")
    return line

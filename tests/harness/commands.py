"""Commands run in this process, and the progress that they report."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Command:
    """Runs ``python -m harness.<name>`` in this process; the fixture ``command`` gives it."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, line: str, *words: object) -> str:
        """What a command prints on standard output.

        Args:
            line: its name and options, as they are typed.
            words: further words, which may have spaces.
        """
        self.capsys.readouterr()
        name, *options = line.split()
        self.monkeypatch.setattr(sys, "argv", [f"harness.{name}", *options, *map(str, words)])
        importlib.import_module(f"harness.{name}").main()
        return self.capsys.readouterr().out

    def refused(self, line: str, *words: object) -> str:
        """The one line of a command that ends with status 2 and prints nothing else."""
        with pytest.raises(SystemExit) as stop:
            self(line, *words)
        assert stop.value.code == 2
        out, error = self.capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1), error
        assert error.startswith("error: ")
        return error


def texts_of(progress: list[tuple[float, str]]) -> set[str]:
    """Texts of what ``on_run`` heard; its shares grow from 0 to at most 1."""
    shares = [share for share, _ in progress]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 <= shares[-1] <= 1
    return {text for _, text in progress}

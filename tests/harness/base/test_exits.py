"""A user's file that calls sys.exit(): one line names it, and the status is not 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.conftest import Cli

MODULE = """
import sys
from torch import nn
from attention_zoo.none import Baseline
from harness.tasks.recall import Recall

class Init(nn.Module):
    def __init__(self, channels):
        super().__init__()
        raise SystemExit

class Core(Baseline):
    name = ""
    def __init__(self, channels):
        super().__init__(channels)
        sys.exit("no GPU")

class Forward(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        sys.exit()

class Label(Baseline):
    name = ""
    @classmethod
    def label(cls, **options):
        exit(0)

class Task(Recall):
    name = ""
    def __init__(self, **options):
        sys.exit()
"""


@pytest.fixture(autouse=True)
def _quits(import_folder: Path) -> None:
    (import_folder / "quits.py").write_text(MODULE)
    (import_folder / "quits_at_once.py").write_text("raise SystemExit\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "run --attn quits:Init",
            "quits:Init cannot be built with 32 channels: it calls sys.exit",
        ),
        (
            "sweep --attn quits:Init",
            "quits:Init cannot be built with 32 channels: it calls sys.exit",
        ),
        (
            "check quits:Core",
            "quits:Core cannot be built with 16 channels: it calls sys.exit('no GPU')",
        ),
        ("run --attn quits_at_once:Mine", "cannot import 'quits_at_once' for attention "),
        ("run --task quits_at_once:Mine", "cannot import 'quits_at_once' for task "),
        ("check quits:Forward", "quits.py, line 22, ended the program: raise an error there"),
        ("run --attn quits:Label", "quits.py, line 28, ended the program with 0: raise an error"),
        ("run --task quits:Task", "quits.py, line 33, ended the program: raise an error there"),
    ],
)
def test_an_exit_elsewhere_is_no_silent_end(
    words: str, message: str, cli: Cli, results: Path
) -> None:
    more = () if words.startswith("check") else ("--results", results)
    assert message in cli(words, *more, status=2).err.splitlines()[-1]


def test_a_commands_own_end_keeps_its_status(cli: Cli) -> None:
    assert "usage" in cli("data --help").out
    assert "usage" in cli("run --help").out

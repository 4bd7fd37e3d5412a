"""``python -m harness`` and ``attention-zoo``: the list of commands, and commands run by name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from harness.__main__ import main, tell
from harness.base.doors import doors
from tests.harness.conftest import Cli

ROOT = Path(__file__).parents[3]


def test_every_command_has_a_line(cli: Cli) -> None:
    lines = cli(main).out.splitlines()
    files = {path.stem for path in (ROOT / "harness").glob("*.py")} - {"__init__", "__main__"}
    assert set(doors()) == files
    for name, text in doors().items():
        assert len(text) > 20
        assert text.endswith(".")
        assert any(line.split()[:1] == [name] and line.endswith(text) for line in lines)


def test_a_command_runs_as_it_does_alone() -> None:
    """Its own help, exit status and messages; nothing heavy is imported for the list."""
    for words in (["run", "--help"], ["tables", "--what"], ["harness.check"]):
        alone = [sys.executable, "-m", f"harness.{words[0].removeprefix('harness.')}", *words[1:]]
        by_name = [sys.executable, "-m", "harness", *words]
        first, second = (
            subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            for command in (alone, by_name)
        )
        assert (first.returncode, first.stdout, first.stderr) == (
            second.returncode,
            second.stdout,
            second.stderr,
        )
    code = "import sys, harness.__main__ as m; m.main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [("rnu", "there is no command 'rnu': did you mean run?"), ("--attn", "choose from approx")],
)
def test_what_is_no_command(word: str, message: str, cli: Cli) -> None:
    printed = cli(tell, word, status=2)
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_the_console_script_is_this() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["attention-zoo"].partition(":")
    assert getattr(import_module(module), function) is main

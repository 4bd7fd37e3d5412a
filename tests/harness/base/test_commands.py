"""The commands: what can be typed after ``python -m harness.``, and what ``--help`` costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Span, Text

from harness.base.printing import in_encoding, print_table
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


def test_brackets_in_a_cell_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("set")
    table.add_row("My [set] $q_1$ [/x]")
    print_table(table)
    assert "My [set] $q_1$ [/x]" in capsys.readouterr().out


def run_in(locale: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a locale, in a process of its own, whatever tox says of its encoding."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    root = str(Path(__file__).parents[3])
    own = {"PYTHONPATH": root, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    command = [sys.executable, script]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=os.environ | own)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_no_locale_ends_a_command(locale: str, tmp_path: Path) -> None:
    """Where an encoding lacks a character, its nearest in ASCII stands."""
    code = (
        "from harness.base.commands import command_line\n"
        "@command_line\n"
        "def main():\n"
        "    print('25.05 ± 0.01, −0.5, ×4, λ')\n"
        "    from rich.table import Table\n"
        "    from harness.base.printing import print_table\n"
        "    table = Table('a ×4'); table.add_row('−1'); print_table(table)\n"
        "main()\n"
    )
    done = run_in(locale, code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    plain = "25.05 +- 0.01, -0.5, x4, \\u03bb"
    assert text.splitlines()[0] == ("25.05 ± 0.01, −0.5, ×4, λ" if "UTF" in locale else plain)
    assert ("−1" if "UTF" in locale else "-1") in text


def test_columns_are_as_wide_as_what_stands_for_letters_that_an_encoding_lacks(
    tmp_path: Path,
) -> None:
    code = (
        "from rich.table import Table\n"
        "from rich.text import Text\n"
        "from harness.base.commands import command_line\n"
        "from harness.base.printing import aligned, print_table\n"
        "@command_line\n"
        "def main():\n"
        "    table = Table('methode λ', 'PSNR ±')\n"
        "    table.add_row('λ-attention [é]', Text('25.05 ± 0.01', 'bold'))\n"
        "    table.add_row('NLA', '−0.5')\n"
        "    print_table(table)\n"
        "    grid = '| λ   |    ± |\\n| --- | ---: |\\n| a\\\\|b | −0.5 |\\n'\n"
        "    print(aligned(grid), end='')\n"
        "main()\n"
    )
    done = run_in("C", code, tmp_path)
    assert done.stderr == ""
    *table, one, two, three = done.stdout.splitlines()
    assert {len(line) for line in table} == {len(table[0])}
    assert any(r"\u03bb-attention [\xe9] | 25.05 +- 0.01 |" in line for line in table)
    assert [one, two, three] == [
        r"| \u03bb |   +- |",
        r"| ------ | ---: |",
        r"| a\|b   | -0.5 |",
    ]


def test_styles_stay_where_they_are() -> None:
    table = Table("a")
    table.add_row(Text.assemble("λ", ("b", "bold"), "c"))
    (cell,) = in_encoding(table, "ascii").columns[0]._cells
    assert isinstance(cell, Text)
    assert (cell.plain, cell.spans) == (r"\u03bbbc", [Span(6, 7, "bold")])

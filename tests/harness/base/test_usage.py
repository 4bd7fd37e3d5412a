"""Misspelt commands, options and values: one line, with the nearest known word."""

from __future__ import annotations

import re
import sys

import pytest

from harness.base.commands import usage_errors
from harness.base.errors import UserError
from tests.harness.conftest import Cli


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data lst", "there is no command 'lst' in harness.data: did you mean list?"),
        ("data nothing", "'nothing' in harness.data: choose from list, verify, download"),
        ("data", "name a command: python -m harness.data list | verify | download"),
        ("data verify --dat x", "unknown option --dat (did you mean --data?); see --help"),
        ("data verify extra", "unexpected argument 'extra'; see --help"),
        (
            "data download --data x --sets div2",
            "'--sets'. Expected one of benchmark, div2k (did you mean div2k?); see --help",
        ),
        ("sweep --engine loca", "one of local, ray, slurm (did you mean local?); see --help"),
        ("run --preset quik", "choose from quick, small, base, paper; did you mean quick?"),
        ("run --impl navite", "did you mean native?"),
        ("run --impl enla=tritn", "did you mean triton?"),
        ("probe --tasks recal", "did you mean recall?"),
        ("speed --onli core", "unknown option --onli (did you mean --only?); see --help"),
        ("check --taks x", "unknown option --taks (did you mean --task?); see --help"),
        ("redraws --draw 3", "unknown option --draw (did you mean --draws?); see --help"),
        ("maps --hrr", "unknown option --hrr (did you mean --hr?); see --help"),
        ("maps --xyz", "unknown option --xyz; see --help"),
        ("speed --seconds ten", "--seconds: could not convert string to float: 'ten'; see --help"),
        ("convert a b c", "unexpected argument 'c'; see --help"),
    ],
)
def test_a_misspelt_word(words: str, message: str, cli: Cli) -> None:
    assert message in cli.refused(words)


@pytest.mark.parametrize(
    "command",
    [
        *("run --attn", "sweep --plan --attn", "probe --plan --attn", "run --task recall --attn"),
        *("latency --sizes 8x8 --attn", "scaling --attn", "speed --attn", "check"),
    ],
)
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("enlca:m=0", "m must be at least 1, got 0"),
        ("enlca:m=x", "m takes an integer, got 'x'"),
        ("enlca:m=4,k=nan", "k = nan cannot be kept in a record"),
        ("nlsa:rounds=-1", "rounds must be at least 1, got -1"),
        ("enlca:reduction=7", "reduction 7 does not divide the "),
    ],
)
def test_a_bad_value_is_told_with_its_entry(
    command: str, entry: str, message: str, cli: Cli
) -> None:
    if command in ("scaling --attn", "speed --attn") and "reduction" in entry:
        return  # a core alone has no reduction
    line = cli.refused(f"{command} {entry}")
    assert re.search(rf"{re.escape(entry)}\S*: .*{re.escape(message)}", line)
    line = cli.refused(f"{command} nla enlca:m=16 {entry}")
    assert re.search(rf"{re.escape(entry)}\S*: .*{re.escape(message)}", line)


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Invalid choice ─╮\n│ no x │\n│ ──── │\n│ see --help │\n╰──────────╯\n",
        " Invalid choice \n ---------------- \n  no x  \n  ------------\n  see --help \n \n",
    ],
)
def test_a_box_of_lines_and_one_in_ascii(box: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        with usage_errors():
            print(box, file=sys.stderr)
            raise SystemExit(2)

    with pytest.raises(UserError) as error:
        refuse()
    assert (str(error.value), capsys.readouterr().err) == ("no x; see --help", "")

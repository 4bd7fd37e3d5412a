"""Completion in a real shell, and options that are those of the commands."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from attention_zoo import find_attention
from attention_zoo.implementations import AUTO, list_implementations
from harness.completion import commands, completion, options_of
from harness.config.run import PRECISIONS, PROTOCOLS, SCHEDULES
from tests.harness.conftest import Cli

SCRIPT = completion("bash")
RUN = ["python", "-m", "harness.run"]


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _harness_complete"
    done = subprocess.run(
        [bash, "-c", f'{SCRIPT}\n{ask}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


def test_every_command_is_known() -> None:
    assert {"harness.run", "harness.sweep", "harness.tables", "harness.data"} <= {*commands()}
    for command in commands():
        assert "--help" in options_of(command), command


def test_options_and_choices_are_those_of_the_code() -> None:
    registered = {name for names in list_implementations().values() for name in names}
    for command in ("harness.run", "harness.sweep", "harness.latency"):
        first, *others = options_of(command)["--impl"]
        assert (first, {first, *others}) == (AUTO, registered)
    options = options_of("harness.run")
    assert {"--m", "--chunk-size", "--no-skip-latency"} <= {*options}
    assert {"nla", "enlca", "all"} <= {*options["--attn"]}
    assert "table4" in options["--rows"]
    assert options["--results"] == []
    for option, choices in (
        ("--protocol", PROTOCOLS),
        ("--schedule", SCHEDULES),
        ("--precision", PRECISIONS),
    ):
        assert options[option] == list(choices)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["python", "-m", "harness.swe"], ["harness.sweep"]),
        (["python3", "-m", "harness.run", "--chunk"], ["--chunk-size"]),
        (["python", "-m", "harness.run", "--attn", "criss"], ["criss-cross"]),
        (["python", "-m", "harness.run", "--attn", "nla", "enlc"], ["enlca"]),
        (["python", "-m", "harness.run", "--attn", "nla", "--preset", "pa"], ["paper"]),
        # As bash splits nystrom:s, nlrn: and enlca:m=16 enlca:n1.
        ([*RUN, "--attn", "nystrom", ":", "s"], ["steps=", "skip="]),
        ([*RUN, "--attn", "enlca", ":", "m", "=", "16", "enlca", ":", "n1"], ["n1="]),
        ([*RUN, "--attn", "nlrn", ":"], [f"{o}=" for o in find_attention("nlrn").options()]),
        ([*RUN, "--preset", "enlca", ":", "m"], []),
        (["python", "-m", "harness.sweep", "--engine", "r"], ["ray"]),
        (["python", "-m", "harness.latency", "--impl", "nat"], ["native"]),
        (["python", "-m", "harness.data", "ver"], ["verify"]),
        (["python", "-m", "harness.completion", "ba"], ["bash"]),
        (
            ["torchrun", "--nproc-per-node=2", "-m", "--", "harness.run", "--learni"],
            ["--learning-rate"],
        ),
        (["python", "-m", "harness.tables", "--chunk"], []),
        (["python", "-m", "http.server", "--b"], []),
        (["python", "script.p"], []),
        (["python", "-m", "harness.run", "--results", "resul"], []),
    ],
)
def test_bash_completes(words: list[str], offered: list[str]) -> None:
    assert complete(*words) == offered


def test_the_command_prints_the_script_of_a_known_shell(cli: Cli) -> None:
    printed = cli("completion", "zsh").out
    assert printed.startswith("autoload")
    assert printed.endswith(SCRIPT)
    assert "bash" in cli.refused("completion", "csh")

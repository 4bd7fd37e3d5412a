"""The documentation's examples: Python is run, commands are parsed by the commands themselves."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from attention_zoo import find_attention, list_attentions
from harness.completion import commands
from harness.data import COMMANDS
from harness.new import write_module

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
#: A command line in a code block or between backticks, up to what is put there by the reader.
COMMAND = re.compile(r"(?:python|torchrun [^`\n]*?) -m (?:-- )?(harness\.\w+)([^`\n…)]*)")
TYPED = [
    pytest.param(name, module, words, id=f"{name}: {module}{words}")
    for name, text in TEXTS.items()
    for module, words in dict.fromkeys(COMMAND.findall(text))
    if not words.startswith(".")
]


class Parsed(Exception):
    """The command line was understood."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", TEXTS)
def test_python_examples_run(name: str, import_folder: Path) -> None:
    """In the order of the page; one that begins with its file's name is imported by later ones."""
    names: dict[str, Any] = {}
    for code in blocks(TEXTS[name], "python"):
        if path := re.match(r"# (\S+\.py)\n", code):
            file = import_folder / path[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
        else:
            exec(compile(code, name, "exec"), names)


@pytest.mark.parametrize(("name", "module", "words"), TYPED)
def test_commands_are_understood(
    name: str, module: str, words: str, import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module in commands()
    for code in blocks(TEXTS[name], "python"):
        if path := re.match(r"# (\S+\.py)\n", code):
            (import_folder / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (import_folder / path[1]).write_text(code)
    write_module("my_attention", import_folder)
    argv = [word for word in shlex.split(words, comments=True) if word != "\\"]
    monkeypatch.setattr(sys, "argv", [module, *argv])
    parse = tyro.cli

    def parsed(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", parsed)
    for subcommand, function in COMMANDS.items():

        @functools.wraps(function)
        def stub(*_: Any, **__: Any) -> None:
            raise Parsed

        monkeypatch.setitem(COMMANDS, subcommand, stub)
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", TEXTS[name]):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), target


def test_every_module_is_documented() -> None:
    described = re.findall(r"^## (\S+)$", TEXTS["docs/modules.md"], re.MULTILINE)
    here = [
        name
        for name in list_attentions()
        if find_attention(name).__module__.startswith("attention_zoo.")
    ]
    assert sorted(described) == here

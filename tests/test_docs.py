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
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention, find_attention, list_attentions
from harness.completion import commands
from harness.data import COMMANDS
from harness.new import write_module

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/**/README.md")])
PAGES += sorted(ROOT.glob("results/notes/*.md"))
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


#: A file or folder of this repository between backticks, without what the reader puts there.
PATH = re.compile(r"`((?:attention_zoo|docs|examples|harness|tests|results)/[\w./-]+)`")
#: What only a reader's own runs write.
LOCAL = ("results/runs", "results/report")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write_examples(name: str, folder: Path) -> list[str]:
    """Write the examples that begin with their file's name; returns the others."""
    others = []
    for code in blocks(TEXTS[name], "python"):
        if path := re.match(r"# (\S+\.py)\n", code):
            (folder / path[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / path[1]).write_text(code)
        else:
            others.append(code)
    return others


@pytest.mark.parametrize("name", TEXTS)
def test_python_examples_run(name: str, import_folder: Path) -> None:
    """In the order of the page, beside the files that it names."""
    names: dict[str, Any] = {}
    for code in write_examples(name, import_folder):
        exec(compile(code, name, "exec"), names)


@pytest.mark.parametrize(("name", "module", "words"), TYPED)
def test_commands_are_understood(
    name: str, module: str, words: str, import_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module in commands()
    write_examples(name, import_folder)
    write_module("my_attention", import_folder)
    write_module("my_task", import_folder, task=True)
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
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)]*)?\)", TEXTS[name]):
        if "://" in target:
            continue
        path = ROOT / name if not target else (ROOT / name).parent / target
        assert path.exists(), target
        if anchor:
            assert anchor[1:] in anchors(path.read_text(encoding="utf-8")), (target, anchor)


def anchors(text: str) -> set[str]:
    """What links into a page may name: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    for path in PATH.findall(TEXTS[name]):
        assert path.startswith(LOCAL) or (ROOT / path).exists(), path


def test_the_index_names_every_page_and_every_command_is_listed() -> None:
    linked = re.findall(r"\]\((\w[\w-]*\.md)\)", TEXTS["docs/README.md"])
    pages = {name.removeprefix("docs/") for name in TEXTS if name.startswith("docs/")}
    assert {*linked} == pages - {"README.md"}
    assert not [name for name in commands() if name not in TEXTS["docs/commands.md"]]


def test_the_first_module_of_the_documentation_has_gradients_and_its_cost(
    import_folder: Path,
) -> None:
    write_examples("docs/adding-a-module.md", import_folder)
    module = create_attention("my_package.pooled:PooledAttention", channels=16, grid=4)
    x = torch.rand(2, 16, 5, 7, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.empty(1, 16, 5, 7, device="meta"))
    assert counter.get_total_flops() == 2 * module.cost(5, 7).module


def test_every_module_is_documented() -> None:
    described = re.findall(r"^## (\S+)$", TEXTS["docs/modules.md"], re.MULTILINE)
    here = [
        n for n in list_attentions() if find_attention(n).__module__.startswith("attention_zoo.")
    ]
    assert sorted(described) == here

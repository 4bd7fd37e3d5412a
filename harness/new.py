"""The file of a new attention module, or of a new task.

``python -m harness.new my_attention`` and ``python -m harness.new my_task --task``.
"""

from __future__ import annotations

import inspect
import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.files import write_text

# Modules that the suite needs; a file of the same name would hide them.
_TAKEN = (
    "attention_zoo",
    "harness",
    "numpy",
    "torch",
    "msgspec",
    "scipy",
    "tyro",
    "rich",
    "safetensors",
)
_TEMPLATE = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Options:
    """Write a working attention module, or a working task, as a start, and its test.

    Examples:
      python -m harness.new my_attention
      python -m harness.new my_task --task
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the file, e.g. my_attention; the class is then MyAttention."""
    task: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write a task (docs/tasks.md) instead of an attention module."""
    folder: Path = Path()
    """Where the files go."""


def write_module(name: str, folder: Path, *, task: bool = False) -> list[Path]:
    """Write ``<name>.py`` and ``test_<name>.py`` from the templates; returns both.

    The file holds an attention module, or a task.

    Raises:
        UserError: Python cannot import the name, a file exists, or the folder does not.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(
            f"{name!r} cannot be a file's name: use small letters, digits and underscores, "
            "e.g. my_attention"
        )
    if name in sys.stdlib_module_names or name in _TAKEN:
        raise UserError(
            f"{name!r} is the name of a module that Python or the suite needs: choose another"
        )
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist: create it, or choose another --folder")
    words = [word for word in name.split("_") if word]
    values = {
        "module": name,
        "cls": "".join(word.capitalize() for word in words),
        "label": " ".join(words).capitalize(),
    }
    paths = [folder / f"{name}.py", folder / f"test_{name}.py"]
    if there := [str(path) for path in paths if path.exists()]:
        names, verb, them = " and ".join(there), "exist", "them"
        if len(there) == 1:
            verb, them = "exists", "it"
        raise UserError(f"{names} {verb} already: choose another name, or delete {them}")
    templates = ("task", "test_task") if task else ("module", "test")
    for path, template in zip(paths, templates, strict=True):
        text = (_TEMPLATE / f"{template}.py.txt").read_text(encoding="utf-8")
        write_text(path, Template(text).substitute(values))
    return paths


@command_line
def main() -> None:
    """Entry point of ``python -m harness.new``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.new", description=inspect.getdoc(Options)
        )
    paths = write_module(options.name, options.folder, task=options.task)
    cls = re.search(r"^class (\w+)", paths[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert cls is not None
    spec = f"{options.name}:{cls[1]}"
    print(f"Wrote {paths[0]} and {paths[1].name}. Next, in that folder:")
    if options.task:
        print(f"  python -m harness.check --task {spec}")
        print(f"  python -m harness.run --task {spec} --attn none oracle nla")
    else:
        print(f"  python -m harness.check {spec}")
        print(f"  python -m harness.run --attn {spec}")


if __name__ == "__main__":
    main()

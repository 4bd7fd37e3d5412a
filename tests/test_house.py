"""The house: who may import whom. docs/architecture.md draws it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folder, or door, and what it may import beside itself.
MAY = {
    "base": {"attention_zoo"},
    "config": {"base", "attention_zoo"},
    "images": {"base"},
    "records": {"base"},
    "tasks": {"images", "config", "base"},
    "network": {"config", "base", "attention_zoo"},
    "training": {"network", "tasks", "images", "config", "base"},
    "reporting": {"records", "config", "base"},
    "measuring": {
        *("training", "network", "records", "tasks", "images", "config", "base"),
        "attention_zoo",
    },
    "pictures": {
        *("measuring", "reporting", "network", "images", "records", "config", "base"),
        "attention_zoo",
    },
    "runs": {
        *("measuring", "training", "network", "records", "tasks", "images", "config", "base"),
    },
}
#: Doors import everything but each other; attention_zoo knows no harness.
MAY |= {"door": {*MAY, "attention_zoo"}, "attention_zoo": set()}
MOST_FLOORS = 9


def read_files() -> dict[str, str]:
    """The text of every module of both packages, by its dotted name."""
    files = {}
    for package in ("harness", "attention_zoo"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            files[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return files


#: Trees by text: every test asks for most files again.
parse = cache(ast.parse)


def imports(files: Mapping[str, str], *, for_types: bool = True) -> dict[str, set[str]]:
    """Modules of both packages that each imports, wherever in its text.

    Without ``for_types`` those are left out that only a type checker reads.
    """
    packages = {name.rpartition(".")[0] for name in files}
    found: dict[str, set[str]] = {}
    for name, text in files.items():
        found[name] = set()
        tree = parse(text)
        if not for_types:
            blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If))
            unread = {
                id(n) for b in blocks if "TYPE_CHECKING" in ast.unparse(b.test) for n in b.body
            }
        folder = (name if name in packages else name.rpartition(".")[0]).split(".")
        for node in ast.walk(tree):
            if not for_types and id(node) in unread:
                continue
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom):
                above = folder[: len(folder) + 1 - node.level] if node.level else []
                module = ".".join(filter(None, [*above, node.module]))
                for alias in node.names:
                    whole = f"{module}.{alias.name}"
                    found[name] |= {whole if whole in files else module} & files.keys()
        found[name] -= {name, "harness"}  # the package itself holds its version alone
    return found


def room(module: str) -> str:
    """Wing of a module, "door" or "attention_zoo"."""
    package, *inner = module.split(".")
    if package == "attention_zoo":
        return package
    return inner[0] if inner and inner[0] in MAY else "door"


def violations(files: Mapping[str, str]) -> list[str]:
    """Imports that the plan does not allow."""
    return [
        f"{module} imports {other}"
        for module, others in imports(files).items()
        for other in sorted(others)
        if (room(other) != room(module) or room(module) == "door")
        and room(other) not in MAY[room(module)]
    ]


def floors(files: Mapping[str, str]) -> dict[str, int]:
    """Floor of every module of harness: one above the highest that it imports."""
    graph = imports(files, for_types=False)
    height: dict[str, int] = {}
    for module in graphlib.TopologicalSorter(graph).static_order():  # a circle is an error
        below = [height[other] for other in graph[module] if room(other) != "attention_zoo"]
        height[module] = 1 + max(below, default=0)
    return height


def test_every_import_is_one_that_the_plan_allows() -> None:
    assert violations(read_files()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("harness.reporting.cells", "from ..training.trainer import Trainer"),
        ("harness.reporting.tables.claims", "import attention_zoo"),
        ("harness.records.store", "def late():\n    from ..config import Variant"),
        ("harness.base.files", "from harness import run"),
        ("harness.sweep", "from .run import main"),
        ("attention_zoo.nla", "from harness.base.errors import UserError"),
    ],
)
def test_an_import_that_is_not_allowed_is_found(module: str, line: str) -> None:
    files = read_files()
    before = violations(files)
    files[module] += f"\n{line}\n"
    assert len(violations(files)) == len(before) + 1
    assert any(found.startswith(f"{module} imports") for found in violations(files))


def test_there_is_no_circle_and_few_floors() -> None:
    height = floors(read_files())
    highest = max(height, key=height.__getitem__)
    assert height[highest] <= MOST_FLOORS, highest


def test_a_circle_is_found() -> None:
    files = read_files()
    files["harness.base.errors"] += "\nfrom .signals import KILLED\nfrom .files import write_text\n"
    with pytest.raises(graphlib.CycleError):
        floors(files)


def test_only_commands_stand_at_the_door() -> None:
    for path in (ROOT / "harness").glob("*.py"):
        if path.name != "__init__.py":
            assert '__name__ == "__main__"' in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("formula", ["nla", "nlsa", "criss_cross", "enla", "enlca"])
def test_a_formula_file_is_short_and_does_not_know_how_it_is_computed(formula: str) -> None:
    files = read_files()
    assert not any(".cores" in other for other in imports(files)[f"attention_zoo.{formula}"])
    assert len(files[f"attention_zoo.{formula}"].splitlines()) <= 310


def test_cores_of_one_method_import_none_of_another() -> None:
    methods = ("nlsa", "nla", "criss_cross", "enla", "contrast")

    def method(module: str) -> str | None:
        name = module.rpartition(".")[2]
        return next((m for m in methods if name == m or name.startswith(f"{m}_")), None)

    for module, others in imports(read_files()).items():
        if module.startswith("attention_zoo.cores.") and (own := method(module)):
            cores = [other for other in others if other.startswith("attention_zoo.cores.")]
            assert {method(other) for other in cores} <= {own, None}, module

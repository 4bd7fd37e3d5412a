"""Entries for the leaderboard: what is complete, and each thing that can be missing, by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import check
from harness.base import machine
from harness.base.errors import UserError
from harness.base.names import digest
from harness.config import profile
from harness.config.profile import PROFILE, RATES
from harness.config.variants import Variant
from harness.measuring import latency
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import FOLDERS, load_records, new_record, record_path, save_record
from harness.runs.entry import Entry
from harness.runs.jobs import Job
from harness.runs.options import TrainingOptions
from harness.runs.probe import find_cells
from harness.runs.run import measure_cost
from harness.tasks.base import SyntheticTask
from tests.harness import synthetic_records as synthetic
from tests.harness.conftest import Cli

CPU = torch.device("cpu")
NAME = "my_entry:Mine"
MODULE = """
from attention_zoo.conv import Conv

class Mine(Conv):
    label_format = "Mine"
"""


def forget() -> None:
    for name in ("my_entry", "helper"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    forget()


def record_run(job: Job, folder: Path) -> None:
    """What a training would have recorded, with made-up scores."""
    config = job.config
    assert isinstance(job.task, SyntheticTask)
    content = {
        "command": "python -m harness.probe",
        "machine": machine.describe(CPU),
        "variant": config.variant.describe(),
        "source_sha256": config.variant.source_sha256,
        "config": config.setting,
        "training": {"parameters": 1000, "seconds": 2.0, "curve": [[100, 0.5]]},
        "quality": {},
        "scores": {name: synthetic.score(0.5) for name in job.task.test_sets},
        "validation": synthetic.score(config.learning_rate * 100),  # the last rate is the best
    }
    save_record(folder, new_record(Run, config.run_id, content))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete entry by the writers that the probe has; nothing was trained."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "my_entry.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    try:
        variant = Variant(NAME)
        options = TrainingOptions(results=folder)
        for cell in find_cells([variant], PROFILE, profile.SEEDS, options, CPU, []):
            for job in (*cell.first, *cell.others(RATES[-1])):
                record_run(job, folder)
        measure_cost(variant, folder, "python -m harness.probe")
        times = latency.measure(
            [variant, Variant("nla")],
            device=CPU,
            sizes=((100, 100),),
            parts=("core",),
            passes=("forward",),
            min_runs=1,
            max_seconds=0.0,
            warn=False,
        )
        save_record(folder, times)
    finally:
        sys.path.remove(str(folder))
        forget()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "entry"))


def missing(folder: Path) -> list[str]:
    return list(Entry(folder, find_cells).missing())


def delete(folder: Path, kind: type, keep: Callable[[Any], bool]) -> int:
    """Delete the records that are not to be kept; gives how many."""
    gone = [record for record in load_records(folder, kind) if not keep(record)]
    for record in gone:
        record_path(folder, kind, record.id).unlink()
    return len(gone)


def change(folder: Path, kind: type, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit every record of a kind, checksums included: a careful forger's work."""
    for record in load_records(folder, kind):
        path = record_path(folder, kind, record.id)
        content = json.loads(path.read_text())
        edit(content)
        del content["sha256"]
        path.write_text(json.dumps(content | {"sha256": digest(content)}))


def test_a_complete_entry_lacks_nothing(folder: Path) -> None:
    entry = Entry(folder, find_cells)
    assert (entry.module, entry.variants) == (NAME, [Variant(NAME)])
    assert list(entry.missing()) == []


def test_the_command_says_yes_after_the_contracts_verdict(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SIDES", (16, 24, 32))
    printed = cli("check", "--entry", folder).out
    assert printed.startswith(f"Mine: {NAME}\n")
    assert "ok      cost equals the counter: " in printed
    assert "growth of time: as N^(" in printed
    assert printed.endswith("All contract checks passed.\nYes, the entry is complete.\n")


def test_the_command_lists_what_is_missing_and_a_broken_contract(cli: Cli, folder: Path) -> None:
    """The module's file was changed after its records were made, and breaks the contract."""
    (folder / "my_entry.py").write_text(
        MODULE + "\n    def attend(self, q, k, v):\n        return v / 0\n"
    )
    shutil.rmtree(folder / "records" / "latency")
    printed = cli("check", "--entry", folder, "--skip-timing", status=1).out
    assert "FAILED  any size: " in printed
    lines = [line.split("  ", 1)[1] for line in printed.splitlines() if line[:7] == "missing"]
    assert lines == [
        "the contract: a check failed, see above",
        *(line for line in lines[1:-1] if line.startswith("my_entry.py: ")),
        "Mine: no time of the core at 100x100, forward, on a CPU in float32",
    ]
    assert len(lines) == 4  # runs and costs are of the other version
    assert printed.endswith("4 missing\n")


@pytest.mark.parametrize(
    ("keep", "lines"),
    [
        (
            lambda run: run.config.task.name != "phase",
            [f"phase: no run with rate {rate:g}, seed 0" for rate in RATES],
        ),
        (
            lambda run: (run.config.task.name, run.config.seed) != ("stack", 2),
            ["stack: no run with rate 0.008, seed 2"],
        ),
        (
            lambda run: (
                run.config.task.options.get("pairs") != 16
                or run.config.learning_rate not in RATES[:2]
            ),
            [f"recall D=16: no run with rate {rate:g}, seed 0" for rate in RATES[:2]],
        ),
    ],
)
def test_runs_that_are_missing_are_named(
    folder: Path, keep: Callable[[Run], bool], lines: list[str]
) -> None:
    assert delete(folder, Run, keep)
    assert missing(folder) == [f"Mine, {line}" for line in lines]


def test_a_rate_that_diverged_is_not_missing(folder: Path) -> None:
    assert delete(folder, Run, lambda run: run.config.learning_rate != RATES[0]) == len(PROFILE)
    assert missing(folder) == []


@pytest.mark.parametrize("kind", [Run, Cost, Latency])
def test_records_of_another_version_of_the_file_are_named(folder: Path, kind: type) -> None:
    other = "0" * 64

    def edit(content: dict[str, Any]) -> None:
        if "source_sha256" in content:
            content["source_sha256"] = other
        for row in [content, *content.get("rows", [])]:
            if row.get("variant", {}).get("name") == NAME:
                row["variant"]["source_sha256"] = other

    change(folder, kind, edit)
    (line,) = missing(folder)
    name = FOLDERS[load_records(folder, kind)[0].kind]
    assert line.startswith("my_entry.py: ")
    assert f" in records/{name} of another version of it (" in line


def test_a_run_of_fewer_steps_under_the_right_name_is_found(folder: Path) -> None:
    change(folder, Run, lambda content: content["config"].update(steps=30))
    lines = missing(folder)
    assert len(lines) == len(PROFILE) * (len(RATES) + 2)
    assert all("holds another run than its name says" in line for line in lines)


def test_counts_are_made_again(folder: Path) -> None:
    change(folder, Cost, lambda content: content["parts"]["core"].update(paper_gflops=0.001))
    (line,) = missing(folder)
    assert "has 0.001 GFLOPs of the core, now there are 0.7" in line
    assert delete(folder, Cost, lambda _: False)
    assert missing(folder) == ["Mine: no record of operation counts at 100x100"]


def test_times_need_the_core_and_nla_beside_it(folder: Path) -> None:
    def without(name: str) -> Callable[[dict[str, Any]], None]:
        def edit(content: dict[str, Any]) -> None:
            content["rows"] = [r for r in content["rows"] if r["variant"]["name"] != name]

        return edit

    change(folder, Latency, without("nla"))
    assert missing(folder) == ["Mine: NLA was not timed beside it, which tells the machine's speed"]
    change(folder, Latency, lambda content: content["rows"][0].update(height=64))
    assert missing(folder) == ["Mine: no time of the core at 100x100, forward, on a CPU in float32"]


def test_a_record_without_its_machine_is_named(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["machine"]["cpu"] = None
        content["machine"]["packages"]["torch"] = None

    change(folder, Cost, edit)
    (cost,) = load_records(folder, Cost)
    assert missing(folder) == [
        f"{cost.id} does not name its machine: no processor and no version of torch"
    ]


def test_a_second_file_is_named(folder: Path) -> None:
    """Its changes would escape the digest."""
    (folder / "helper.py").write_text("")
    source = folder / "my_entry.py"
    source.write_text(f"import helper\n{MODULE}")
    lines = missing(folder)
    assert lines[0] == (
        "helper.py: the module imports it, but no digest covers it: put all into my_entry.py"
    )
    assert all(line.startswith("my_entry.py: ") for line in lines[1:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f / "records"), "needs runs of one module of your own; make them"),
        (lambda f: (f / "my_entry.py").unlink(), "my_entry.py is missing: the records are of my_"),
        (
            lambda f: (f / "my_entry.py").write_text("def"),
            "cannot import 'my_entry' for attention 'my_entry:Mine': SyntaxError",
        ),
        (
            lambda f: (f / "my_entry.py").write_text(
                "from torch import nn\nclass Mine(nn.Conv2d):\n"
                "    def __init__(self, channels):\n        super().__init__(channels, channels, 1)"
            ),
            "my_entry:Mine is a plain module without a core",
        ),
        (
            lambda f: next(iter((f / "records" / "runs").iterdir())).write_text("{}"),
            "is no valid record",
        ),
    ],
)
def test_what_is_no_entry_is_told_in_one_line(
    cli: Cli, folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    first, last = cli("check", "--entry", folder, status=1).out.splitlines()
    assert first.startswith("missing  ")
    assert message in first
    assert last == "1 missing"


def test_a_module_of_that_name_from_elsewhere_is_not_judged(
    folder: Path, import_folder: Path
) -> None:
    (import_folder / "my_entry.py").write_text(MODULE)
    Variant(NAME).check()  # imported from there
    with pytest.raises(UserError, match=r"is imported from .*importable.*, not from .*entry"):
        Entry(folder, find_cells)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--entry", "nowhere"], "nowhere is no folder"),
        (["--entry", ".", "--attn", "nla"], "--attn applies only to modules and tasks, not to"),
        (["--entry", ".", "--task", "recall"], "--task applies only to modules and tasks, not to"),
        (["--entry", ".", "--channels", 0], "--channels must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line(cli: Cli, words: list[object], message: str) -> None:
    assert message in cli.refused("check", *words)

"""What the README and the published results say must be so."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import load_records
from harness.reporting.tables.all import write_tables
from harness.reporting.tables.printed import summary

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed(folder: str | Path) -> list[Path]:
    """Files under a folder that git keeps: what a reader's own runs add is not published."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", str(folder)], cwd=ROOT, capture_output=True, check=True
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: what is published cannot be told from local runs")
    paths = [Path(name) for name in listed.split("\0") if name]
    assert paths, f"{folder} holds no committed file"
    return paths


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_own_module_of_the_readme_works(import_folder: Path) -> None:
    (code,) = code_blocks("python")
    path = re.match(r"# (\S+\.py)\n", code)
    assert path is not None
    file = import_folder / path[1]
    file.parent.mkdir(parents=True)
    file.write_text(code)
    module = create_attention("my_package.my_module:ChannelGate", channels=16, squeeze=8)
    x = torch.rand(2, 16, 5, 7, requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(torch.empty(1, 16, 5, 7, device="meta"))
    assert counter.get_total_flops() == 2 * module.cost(5, 7).module


def test_what_the_main_job_prints_is_that_of_its_records() -> None:
    example = ROOT / "results" / "example"
    (run,), (latency,) = load_records(example, Run), load_records(example, Latency)
    costs = [c for c in load_records(example.parent, Cost) if c.variant == run.variant]
    console = Console(width=70)
    with console.capture() as printed:
        console.print(summary([run], costs, latency))
    shown = README.split("leaves records in `results/records/`:\n\n```\n")[1].split("```")[0]
    lines = [[line.rstrip() for line in t.rstrip().splitlines()] for t in (shown, printed.get())]
    assert lines[0] == lines[1]


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    block = README.split("<!-- test command -->\n", 1)[1]
    assert block.startswith("```bash\n")
    assert "tox" in block.split("```")[1]
    assert "<!-- test command -->" in script.read_text()


def test_published_tables_are_those_of_the_records(tmp_path: Path) -> None:
    """Rebuilt from the committed records alone, to the last byte."""
    for record in committed("results/records"):
        copy = tmp_path / record
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / record, copy)
    output = tmp_path / "tables"
    built = write_tables(tmp_path / "results", output=output)
    paths = {p.relative_to(output) for _, files in built for p in files}
    published = Path("results/tables")
    assert paths == {p.relative_to(published) for p in committed(published)}
    for path in paths:
        assert (ROOT / published / path).read_bytes() == (output / path).read_bytes(), path


def test_tables_in_the_readme_are_the_published_ones() -> None:
    shown = re.findall(r"<!-- (results/\S+\.md) -->\n\n(.*?)\n\n", README, re.DOTALL)
    assert shown
    for path, table in shown:
        assert table in (ROOT / path).read_text(encoding="utf-8"), path

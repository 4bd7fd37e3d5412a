"""What the README, the documentation and the published results say must be so."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.base.printing import Fitted
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import load_records
from harness.reporting.tables.all import write_tables
from harness.reporting.tables.leaderboard import BEGIN, END, page_block
from harness.reporting.tables.printed import summary
from harness.reporting.tables.render import Table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
STUDY = (ROOT / "results" / "notes" / "latency-and-speed.md").read_text(encoding="utf-8")
PAGES = [README, RESULTS, *(p.read_text(encoding="utf-8") for p in ROOT.glob("*/notes/*.md"))]
PASSES = {"forward": "fwd", "forward+backward": "fwd+bwd", "step": "step"}


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


def before_sections(text: str) -> list[str]:
    """The lines before the first heading of the second level."""
    return text.partition("\n## ")[0].splitlines()


def speed_rows(identifier: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a speed record by name and pass."""
    path = ROOT / "results" / "records" / "speed" / f"cpu-float32-{identifier}.json"
    return {(row["name"], row["passes"]): row for row in json.loads(path.read_text())["rows"]}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readme_is_short_and_its_first_screen_holds_what_a_stranger_needs() -> None:
    assert len(README.splitlines()) <= 150
    first = before_sections(README)
    assert len(first) <= 40
    assert sum(line.startswith("![") for line in first) == 1  # the picture
    assert sum(line.startswith("<!-- results/tables/") for line in first) == 1
    assert sum(line == "```bash" for line in first) == 3  # main job, tests, a module of one's own
    assert any(line.startswith(">") for line in first)  # what is measured and what is not


def test_what_the_main_job_prints_is_that_of_its_records() -> None:
    example = ROOT / "results" / "example"
    (run,), (latency,) = load_records(example, Run), load_records(example, Latency)
    costs = [c for c in load_records(example.parent, Cost) if c.variant == run.variant]
    console = Console(width=80)
    with console.capture() as printed:
        console.print(Fitted(summary([run], costs, latency)))
    shown = README.partition("## What the main job does")[2].split("```\n")[1]
    lines = [[line.rstrip() for line in t.rstrip().splitlines()] for t in (shown, printed.get())]
    assert lines[0] == lines[1]


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    block = README.split("<!-- test command -->\n", 1)[1]
    assert block.startswith("```bash\n")
    assert "tox" in block.split("```")[1]
    assert "<!-- test command -->" in script.read_text()


@pytest.fixture(scope="module")
def rebuilt(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[tuple[Table, list[Path]]]]:
    """All tables of the committed records alone: their folder, and each with its files."""
    folder = tmp_path_factory.mktemp("rebuilt")
    for record in committed("results/records"):
        copy = folder / record
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / record, copy)
    return folder / "tables", write_tables(folder / "results", output=folder / "tables")


def test_published_tables_are_those_of_the_records(
    rebuilt: tuple[Path, list[tuple[Table, list[Path]]]],
) -> None:
    """To the last byte."""
    output, built = rebuilt
    paths = {p.relative_to(output) for _, files in built for p in files}
    published = Path("results/tables")
    assert paths == {p.relative_to(published) for p in committed(published)}
    for path in paths:
        assert (ROOT / published / path).read_bytes() == (output / path).read_bytes(), path


def test_the_page_of_the_leaderboard_is_that_of_the_records(
    rebuilt: tuple[Path, list[tuple[Table, list[Path]]]],
) -> None:
    (board,) = [table for table, _ in rebuilt[1] if table.name == "leaderboard"]
    page = (ROOT / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == f"\n\n{page_block(board)}\n"


def test_tables_in_the_text_are_the_published_ones() -> None:
    pattern = re.compile(r"<!-- (results/tables/\S+\.md) -->\n\n(.*?)\n\n", re.DOTALL)
    shown = [match for text in PAGES for match in pattern.findall(text)]
    assert shown
    for path, table in shown:
        assert table in (ROOT / path).read_text(encoding="utf-8"), path


def test_results_open_with_seven_findings_of_one_number_each() -> None:
    bullets = "\n".join(before_sections(RESULTS)).split("\n- ")[1:]
    assert len(bullets) == 7
    bullets[-1] = bullets[-1].partition("\n\n")[0]
    numbers = [re.findall(r"\*\*([\d.]+)(?: dB)?\*\*", bullet) for bullet in bullets]
    assert all(len(found) == 1 for found in numbers), numbers


def test_the_index_names_every_published_table_and_figure() -> None:
    """Settings by their folders; files without a setting by their names, or how these begin."""
    index = "\n".join(re.findall(r"^\| (`.*?) \|", RESULTS.partition("## Index")[2], re.MULTILINE))
    names = set(re.findall(r"`(?:tables/|figures/)?([\w.-]+)(?:-\*)?`", index))
    seen = set()
    for path in [*committed("results/tables"), *committed("results/figures")]:
        name = path.parts[2] if len(path.parts) > 3 else path.stem
        found = {known for known in names if name == known or name.startswith(f"{known}-")}
        assert found, path
        seen |= found
    assert seen == names


def test_ratios_of_the_study_of_speed_are_those_of_its_records() -> None:
    lines = [cells(line) for line in STUDY.splitlines() if line.startswith("| ")]
    records = [speed_rows(name) for name in re.findall(r"`(\w{12})`", "|".join(lines[0]))]
    expected = [
        [row["case"], PASSES[row["passes"]], f"{row['ratio_target']:g}"]
        + [f"{record[key]['ratio']:.2f}" if key in record else "" for record in records]
        for key, row in records[0].items()
    ]
    assert lines[1:] == expected


def test_the_table_of_speed_is_that_of_its_record() -> None:
    match = re.search(r"<!-- \S+/cpu-float32-(\w+)\.json -->\n\n(.*?)\n\n", SPEED, re.DOTALL)
    assert match is not None
    rows = speed_rows(match[1])
    expected = []
    for name in ("nla", "nlsa", "criss-cross", "enlca"):
        parts = [f"{part}-{name}-100" for part in ("core", "module")]
        ratios = [rows[part, p]["ratio"] for part in parts for p in ("forward", "forward+backward")]
        core = rows[parts[0], "forward"]
        memory = [core[side]["peak_memory_mb"] for side in ("ours", "obvious")]
        share = 100 * core["limit_ms"] / core["ours"]["median_ms"]
        shown = [*(f"{ratio:.1f}" for ratio in ratios), *(f"{mb:.0f}" for mb in memory)]
        expected.append([core["variant"]["label"], *shown, f"{share:.0f} %"])
    assert [cells(line) for line in match[2].splitlines()[2:]] == expected

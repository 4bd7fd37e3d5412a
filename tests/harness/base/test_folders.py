"""A user's own results, with the published ones behind them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import synthetic_records as synthetic
from msgspec.structs import replace
from safetensors.numpy import save_file

from harness.base import folders
from harness.base.errors import UserError
from harness.base.folders import OWN, sources, tables_command
from harness.network.weights import find_weights, weights_path
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import find_record, load_record, load_records, record_path, save_record
from tests.harness.conftest import Cli

SAME, OTHER = synthetic.run("NLA"), synthetic.run("NLA", preset="quick")
MINE = synthetic.run(synthetic.variant("enlca", m=16))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published runs of two settings, a cost and a latency; the working folder is empty."""
    folder, here = tmp_path / "published", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(folders, "PUBLISHED", folder)
    for record in (SAME, OTHER, synthetic.cost("NLA", 25.6), synthetic.cost("NLSA-r4", 5.1)):
        save_record(folder, record)
    save_record(folder, synthetic.latency([synthetic.latency_row("NLA", 12.0)]))
    return folder


def test_only_the_default_folder_has_published_results_behind_it(published: Path) -> None:
    assert sources(OWN) == (OWN, published)
    assert sources(OWN.absolute()) == (OWN.absolute(), published)  # as jobs of a sweep name it
    assert sources(Path("elsewhere")) == (Path("elsewhere"),)
    assert sources(published) == (published,)


def test_the_command_for_tables_names_another_folder() -> None:
    assert tables_command(OWN) == "python -m harness.tables"
    assert tables_command(Path("my runs")) == "python -m harness.tables --results 'my runs'"


def test_where_nothing_is_published_the_default_folder_stands_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(folders, "PUBLISHED", tmp_path / "not-there")
    assert sources(OWN) == (OWN,)


def test_published_runs_of_the_same_setting_and_costs_join_own_records(published: Path) -> None:
    assert not load_records(OWN, Run)  # no record of one's own: nothing to stand beside
    assert not load_records(OWN, Cost)
    save_record(OWN, MINE)
    assert {run.id for run in load_records(OWN, Run)} == {MINE.id, SAME.id}
    assert {cost.variant.label for cost in load_records(published, Cost)} == {"NLA", "NLSA-r4"}
    assert {cost.variant.label for cost in load_records(OWN, Cost)} == {"NLA"}
    assert not load_records(OWN, Latency)  # times of another machine
    assert load_records(Path("elsewhere"), Run) == []


@pytest.mark.usefixtures("published")
def test_of_one_id_the_own_record_is_read() -> None:
    assert load_record(OWN, Run, SAME.id) == SAME
    assert find_record(OWN, Run, SAME.id) != record_path(OWN, Run, SAME.id)
    newer = replace(SAME, command="python -m harness.run --mine")
    save_record(OWN, newer)
    assert load_record(OWN, Run, SAME.id) == newer
    assert load_records(OWN, Run) == [newer]
    with pytest.raises(UserError, match="cannot read"):
        load_record(OWN, Run, "nowhere")


def test_weights_are_found_in_both(published: Path) -> None:
    (published / "weights").mkdir()
    save_file({}, published / "weights" / "baseline-a.safetensors")
    assert weights_path(OWN, "baseline-a").parent == published / "weights"
    assert find_weights("baseline", OWN).parent == published / "weights"
    own = OWN / "runs" / "baseline-a" / "weights.safetensors"
    own.parent.mkdir(parents=True)
    save_file({}, own)
    assert find_weights("baseline", OWN) == own
    with pytest.raises(UserError, match="no weights of run 'nla'"):
        find_weights("nla", OWN)


def test_tables_go_to_the_own_folder_and_leave_the_published_one_alone(
    published: Path, cli: Cli
) -> None:
    assert f"no records under {OWN / 'records'}" in cli.refused("tables")
    before = {path: path.read_bytes() for path in published.rglob("*.*")}
    save_record(OWN, MINE)
    printed = cli("tables").out.splitlines()
    told = f"Beside your 1 run: 1 published run of the same settings, from {published}; †"
    assert [line for line in printed if line.startswith(told)]
    (quality,) = OWN.glob("tables/small*/quality.md")  # a table of one setting, the user's
    assert "| ENLCA-m16 " in quality.read_text()
    assert "| NLA † " in quality.read_text()
    assert "\n- † Published runs" in quality.read_text()
    with quality.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        origins = {row["method"]: row["runs_from"] for row in csv.DictReader(file)}
    assert origins == {"Bicubic": "", "ENLCA-m16": "own", "NLA": "published"}
    table4 = (OWN / "tables" / "table4.md").read_text()
    assert "| NLA † " in table4
    assert "| ENLCA-m16 " in table4
    assert {path: path.read_bytes() for path in published.rglob("*.*")} == before
    assert len(printed) < 30

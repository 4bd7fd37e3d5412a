"""The leaderboard: who has a rank, what stands beside it, and the page that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic

from harness import tables
from harness.base.errors import UserError
from harness.config.profile import PROFILE, RATES, SEEDS
from harness.records.shapes import Cost, Latency, Run
from harness.records.store import save_record
from harness.reporting.settings import find_settings
from harness.reporting.tables.leaderboard import (
    BEGIN,
    END,
    leaderboard_table,
    page_block,
    write_page,
)
from harness.reporting.tables.render import Table
from tests.harness.conftest import Cli


def described(label: str) -> dict[str, Any]:
    """The variant of a label with the tasks' weight of the attention."""
    found = synthetic.VARIANTS.get(label) or synthetic.variant(label)
    weight = {"res_scale": 1.0} if "res_scale" in found["options"] else {}
    return synthetic.variant(found["name"], **weight) if weight else found


def row(variant: str, score: float, *, settings: int = len(PROFILE), seeds: int = 3) -> list[Run]:
    """Runs of a module in settings of the profile: all rates of the first seed, then others."""
    tried = [(rate, SEEDS[0]) for rate in RATES] + [(RATES[0], seed) for seed in SEEDS[1:seeds]]
    return [
        synthetic.task_run(
            described(variant),
            # Not of the aggregate: the score at the size of the training.
            scores=(0.0, *[score + 0.02 * (seed - 1)] * 2),
            rate=rate,
            seed=seed,
            validation=1 - rate,
            task=task.task,
            options=dict(task.options),
        )
        for task in PROFILE[:settings]
        for rate, seed in tried
    ]


def board(
    runs: Sequence[Run], costs: Sequence[Cost] = (), latency: Sequence[Latency] = ()
) -> Table:
    table = leaderboard_table(runs, costs, latency, find_settings(runs, costs))
    assert table is not None
    return table


def test_rows_are_ranked_by_the_aggregate_and_equal_ones_share_a_rank() -> None:
    runs = [
        *row("NLSA-r4", 0.5),
        *row("NLA", 0.5004),
        *row("User_Attention-8", 0.7),
        *row("Criss-Cross", 0.2),
    ]
    found = board(runs)
    assert [r[:3] for r in found.rows] == [
        ["User_Attention-8", "1", "0.70 ± 0.05"],
        ["NLA", "2", "0.50 ± 0.05"],
        ["NLSA-r4", "2", "0.50 ± 0.05"],
        ["Criss-Cross", "4", "0.20 ± 0.05"],
    ]
    data = synthetic.csv_rows(found)
    assert [r["rank"] for r in data] == ["1", "2", "2", "4"]
    assert float(data[1]["aggregate"]) == pytest.approx(0.5004)
    assert {r["lacks"] for r in data} == {""}


def test_controls_and_unfinished_rows_stand_below_without_a_rank() -> None:
    runs = [
        *row("oracle", 1.0),
        *row("none", 0.0),
        *row("NLSA-r4", 0.9, settings=3),
        *row("Criss-Cross", 0.8, seeds=1),
        *row("NLA", 0.1),
    ]
    found = board(runs)
    ranks = {r[0]: r[1] for r in found.rows}
    assert next(iter(ranks)) == "NLA"
    assert ranks == {"NLA": "1"} | dict.fromkeys(
        ("Baseline", "Oracle", "NLSA-r4", "Criss-Cross"), "–"
    )
    (lacking,) = [note for note in found.notes if note.startswith("Lacking: ")]
    assert "NLSA-r4 (no stack)" in lacking
    assert "Criss-Cross (recall D=4: 3 of 3 rates, 1 of 3 seeds; recall D=16: 3 of" in lacking
    assert "Oracle" not in lacking


def test_beside_the_rank_stand_gain_cost_and_parameters() -> None:
    photos = [synthetic.run(), synthetic.run("NLA", values=[26.5, 27.6, 28.7])]
    times = synthetic.latency([synthetic.latency_row("NLA", 9.0)])
    runs = [*row("NLA", 0.6), *row("NLSA-r4", 0.5), *photos]
    found = synthetic.cells(board(runs, [synthetic.cost("NLA", 25.6)], [times]))
    assert found["NLA"][2].startswith("+0.600 [")
    assert found["NLA"][3:] == ["25.6", "9.00", "1000"]
    assert found["NLSA-r4"][2:] == ["", "", "", "1000"]


def test_a_time_of_another_machine_is_marked_and_nla_tells_its_speed() -> None:
    machine = synthetic.MACHINE | {"cpu": {"model": "Fast CPU"}}
    names = ("NLA", "NLSA-r4", "Criss-Cross")
    common = synthetic.latency([synthetic.latency_row(name, 9.0) for name in names], "common")
    rows = [synthetic.latency_row("NLA", 4.5), synthetic.latency_row("User_Attention-8", 2.0)]
    own = synthetic.latency(rows, "own", machine=machine)
    runs = [run for name in (*names, "User_Attention-8") for run in row(name, 0.5)]
    found = board(runs, [], [common, own])
    times = {label: cells[4] for label, cells in synthetic.cells(found).items()}
    assert times == dict.fromkeys(names, "9.00") | {"User_Attention-8": "2.00°"}
    (note,) = [note for note in found.notes if note.startswith("°")]
    assert "User_Attention-8: timed in another session" in note
    assert "Fast CPU" in note
    assert note.endswith("where NLA takes 4.50 ms.")
    sessions = {r["method"]: r["core_ms_session"] for r in synthetic.csv_rows(found)}
    assert sessions == dict.fromkeys(names, "common") | {"User_Attention-8": "own"}


def test_only_what_stands_between_the_marks_is_rewritten(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Rules\n\n{BEGIN}\nold\n{END}\n\nBy hand.\n")
    found = board(row("NLA", 0.5))
    for _ in range(2):  # twice the same
        write_page(page, found)
        assert page.read_text() == (
            f"# Rules\n\n{BEGIN}\n\n{page_block(found)}\n{END}\n\nBy hand.\n"
        )
    assert "| NLA    |    1 | 0.50 ± 0.05 |" in page.read_text()
    page.write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(UserError, match="needs the lines <!-- leaderboard: begin --> and"):
        write_page(page, found)
    assert page.read_text() == f"{END}\n{BEGIN}\n"
    with pytest.raises(UserError, match="cannot read"):
        write_page(tmp_path / "nowhere.md", found)


def test_the_command_writes_the_page_of_the_published_results_alone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, page = tmp_path / "results", tmp_path / "leaderboard.md"
    for run in row("NLA", 0.5):
        save_record(results, run)
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(tables, "PAGE", page)
    cli("tables", "--results", results)
    assert "NLA" not in page.read_text()
    assert (results / "tables" / "leaderboard.csv").exists()
    monkeypatch.setattr(tables, "PUBLISHED", results)
    cli("tables", "--results", results, "--output", tmp_path / "elsewhere")
    assert "NLA" not in page.read_text()
    assert f"The leaderboard stands in {page}, too." in cli("tables", "--results", results).out
    assert "| NLA    |    1 |" in page.read_text()

"""Implementations side by side: what is timed, the record, its table and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attention_zoo.implementations import list_implementations, use_implementation
from harness.config.variants import Variant
from harness.measuring.by_implementation import CORES, by_implementation
from harness.measuring.implementations import WHOLE, measure
from harness.measuring.latency import Case
from harness.records.shapes import Implementations
from harness.records.store import load_records, save_record
from harness.reporting.tables.all import all_tables
from harness.reporting.tables.implementations import implementation_tables
from tests.harness.conftest import Cli

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measuring.speed._MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr("harness.measuring.speed._COPY_NUMBERS", 2**12)


@pytest.mark.parametrize("core", CORES)
def test_every_implementation_computes_the_same(core: str) -> None:
    case = Case("core", "forward", 9, 7, device=CPU, seed=0)
    variant = Variant(CORES[core])
    functions, notes = by_implementation(core, variant, case)
    assert {*functions, *notes} == {*list_implementations()[core]} - {"auto"}
    with use_implementation("reference"):
        wanted = case.function(variant)()
    for function in functions.values():
        torch.testing.assert_close(function(), wanted, rtol=1e-4, atol=1e-5)
    assert all(notes.values()), notes


def test_a_record_and_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "harness.measuring.implementations.run_in_subprocess",
        lambda function, *arguments, on_run: function(*arguments, on_run),
    )
    shares: list[float] = []
    record = measure(
        [5, 6],
        device=CPU,
        max_seconds=0.0,
        min_runs=2,
        on_run=lambda share, _: shares.append(share),
    )
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    save_record(tmp_path, record)
    (loaded,) = load_records(tmp_path, Implementations)
    assert loaded == record
    assert len(record.rows) == 2 * len(CORES) * 2
    for row in record.rows:
        assert not {*row.times} & {*WHOLE}
        assert row.times[row.auto].runs == 2
        assert row.limit_ms > 0
    (table,) = implementation_tables([record])
    assert [table.name] == [t.name for _, t in all_tables(tmp_path)]
    over_best = [float(cells[-3]) for cells in table.rows]
    assert min(over_best) >= 1.0
    assert {row["implementation"] for row in table.data} >= {"tiled", "sdpa"}


def test_the_newest_record_of_each_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measuring.implementations.CORES", {"enla": "enlca"})
    old, new = (
        measure([3], device=CPU, max_seconds=0.0, min_runs=1, max_runs=1, command=text)
        for text in ("old", "new")
    )
    (table,) = implementation_tables([old, new])
    assert {row["session"] for row in table.data} == {new.id}


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    line = "speed --implementations --sides 4 --seconds 0.01 --threads 1 --results"
    assert "Implementations of the cores" in cli(line, tmp_path).out
    (record,) = load_records(tmp_path, Implementations)
    assert "MALLOC_TRIM_THRESHOLD_" in str(record.machine.torch and record.machine.torch.allocator)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only core", "--implementations is all cores"),
        ("--sides 0", "sides must be whole numbers from 1 on"),
        ("--seconds 0", "seconds must be above 0"),
    ],
)
def test_bad_words(cli: Cli, words: str, message: str) -> None:
    assert message in cli(f"speed --implementations {words}", status=2).err

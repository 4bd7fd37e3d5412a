"""The tables of the published records: names, titles and notes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from harness.reporting.benches import HISTORY
from harness.reporting.tables.all import all_tables
from harness.reporting.tables.render import Table

pytestmark = pytest.mark.slow

#: Words that are methods' labels and that notes use for something else: the network, and names that
#: begin like a longer one (RCAN CA, RNAN mask).
WORDS = {"EDSR", "RCAN", "RNAN"}


@pytest.fixture(scope="module")
def tables() -> list[tuple[str, Table]]:
    return all_tables(Path(__file__).parents[3] / "results")


@pytest.fixture(scope="module")
def own(tables: list[tuple[str, Table]]) -> list[tuple[str, Table]]:
    """Without the canonical copies of a setting's tables."""
    names = {table.name for folder, table in tables if folder not in ("", HISTORY)}
    return [(folder, table) for folder, table in tables if folder or table.name not in names]


def test_every_table_has_a_title_of_its_own(own: list[tuple[str, Table]]) -> None:
    captions = Counter(table.caption for _, table in own)
    assert [caption for caption, count in captions.items() if count > 1] == []


def test_hashes_stand_in_names_of_history_alone(own: list[tuple[str, Table]]) -> None:
    names = {table.name for folder, table in own if folder != HISTORY}
    assert [name for name in names if re.search(r"-[0-9a-f]{12}\b", name)] == []
    assert {"scaling-cpu", "scaling-others-cpu", "scaling-h200", "speed-cpu"} <= names
    paths = Counter((folder, table.name) for folder, table in own)
    assert set(paths.values()) == {1}


def test_at_most_three_short_lines_stand_below_a_table(tables: list[tuple[str, Table]]) -> None:
    for folder, table in tables:
        lines = [line for line in table.markdown().splitlines() if line.startswith("- ")]
        assert 0 < len(lines) <= 3, (folder, table.name)
        assert max(map(len, lines)) <= 162, (folder, table.name)


def test_notes_name_only_rows_of_their_table(own: list[tuple[str, Table]]) -> None:
    labels = {row[0] for _, table in own for row in table.rows} - WORDS
    labels = {label for label in labels if re.match(r"[A-Z][\w()-]{3,}", label)}
    assert {"ENLCA-m128", "Criss-Cross", "NLSA-r4", "ENLCN"} <= labels
    for folder, table in own:
        rows = " ".join(" ".join(row) for row in table.rows)
        for label in labels:
            named = rf"(?<![\w-]){re.escape(label)}(?![\w-])"
            if re.search(named, " ".join(table.notes)):
                assert re.search(named, rows), (folder, table.name, label)

"""The rows of an approximation record as a table."""

from __future__ import annotations

from ...records.shapes import Approximation
from .render import Table


def table(record: Approximation) -> str:
    """All rows as CSV: ``part``, what a row is of, then every quantity; empty where it has none."""
    parts = ("exact", "enla", "nlsa", "network")
    rows = [{"part": part} | row for part in parts for row in getattr(record, part)]
    keys = ("part", "features", "attention", "n", "k", "m", "rounds", "chunk_size")
    columns = dict.fromkeys([*keys, *(key for row in rows for key in row)])
    return Table("approximation", "", [], [], [], [columns | row for row in rows]).csv()

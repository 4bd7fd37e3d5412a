"""Runs that are killed: the command, and what must be the same in the end."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path
from typing import Any

from harness.records.shapes import Run, untyped
from harness.records.store import load_records
from harness.reporting.tables.all import write_tables


def words(
    images: Path,
    results: Path,
    *,
    steps: int,
    save_every: float,
    seed: int = 0,
    redraw_every: int = 2,
) -> list[str]:
    """Options of a tiny main job: ENLCA redraws its projections every third step, an epoch.

    And every ``redraw_every`` forwards, which it counts.
    """
    module = ["--attn", "enlca", "--m", "4", "--redraw-every", str(redraw_every)]
    module += ["--steps-per-epoch", "3"]
    sizes = ["--blocks", "4", "--channels", "8", "--batch", "2", "--patch", "8"]
    times = ["--steps", str(steps), "--save-every", str(save_every), "--seeds", str(seed)]
    places = ["--data", str(images), "--results", str(results), "--device", "cpu", "--threads", "1"]
    return [*module, *sizes, *times, *places, "--skip-latency"]


def command(images: Path, results: Path, **values: Any) -> list[str]:
    """The main job as a command line."""
    return [sys.executable, "-m", "harness.run", *words(images, results, **values)]


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Places where two outcomes differ."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        parts = [differences(found[key], expected[key], f"{place}/{key}") for key in found]
        return [difference for part in parts for difference in part]
    return [] if found == expected else [f"{place}: {str(found)[:200]} != {str(expected)[:200]}"]


def _without_times(path: Path) -> str:
    """A table without dates and times of training, whose length decides on a column's width."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        text = str([row | {"training_seconds": ""} for row in rows])
    text = re.sub(r"\b[\d.]+ (s|min|h)\b", "TIME", text)
    return re.sub(r"[ :-]+", " ", re.sub(r"20\d\d-\d\d-\d\d", "DATE", text))


def outcome(results: Path) -> dict[str, Any]:
    """What runs leave, without times and dates: weights, log, quality, tables, file names."""
    records = [untyped(record) for record in load_records(results, Run)]
    for record in records:
        for key in ("seconds", "steps_per_second"):
            del record["training"][key]
        del record["created"], record["command"]  # the command holds the folder's name
    write_tables(results)
    files = {
        str(path.relative_to(results)): path
        for path in sorted(results.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }
    tables = {n: _without_times(p) for n, p in files.items() if n.startswith("tables/")}
    weights = {n: p.read_bytes() for n, p in files.items() if p.name == "weights.safetensors"}
    assert records
    assert tables
    assert len(weights) == len(records)
    return {
        "records": {record["id"]: record for record in records},
        "weights": weights,
        "tables": tables,
        "files": list(files),
    }

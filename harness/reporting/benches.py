"""Benches: latencies that were measured under the same conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..base.names import canonical_json, digest, slug
from ..config.labels import variant_key, variant_labels
from ..records.origin import Record, by_age, plural
from .settings import PART_CHANNELS

_PASSES = {"forward": "fwd", "forward+backward": "fwd+bwd"}
_SIZES = (100, 150)
_FIGURES = ("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs", "peak_memory_mb")
_PARTS = ("core", "module", "network")
#: Variant key, part, passes, height, width, batch, channels and, for whole networks, the session:
#: what a network is, is the session's matter.
Cell = tuple[str, str, str, int, int, int, int, str]


@dataclass(frozen=True)
class Bench:
    """Latencies that may stand in one table: same machine, threads, device, dtype, settings.

    Attributes:
        key: what they have in common, as canonical JSON.
        cells: the newest row of each cell, with its record.
    """

    key: str
    cells: dict[Cell, tuple[dict[str, Any], Record]]

    @cached_property
    def records(self) -> list[Record]:
        """Sessions that the rows come from, oldest first."""
        return by_age({r["id"]: r for _, r in self.cells.values()}.values())

    @property
    def row(self) -> dict[str, Any]:
        """Any row: device and dtype are common to all."""
        return next(iter(self.cells.values()))[0]

    @property
    def label(self) -> str:
        """File name, e.g. ``table5-cpu-2-threads-float32-60s-0a1b2c``."""
        return table_label("table5", self.key, self.records[0], self.row)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Row labels by variant key."""
        return variant_labels(row["variant"] for row, _ in self.cells.values())

    def find(
        self, key: str | None, part: str, passes: str, size: int
    ) -> tuple[dict[str, Any], Record] | tuple[None, None]:
        """Row and record of a square map at the paper's channels, batch 1; None if not measured."""
        cell = (key or "", part, passes, size, size, 1, PART_CHANNELS[part], "")
        return self.cells.get(cell, (None, None))


def find_benches(latency: Iterable[Record]) -> list[Bench]:
    """Latency records, regrouped into tables."""
    benches: dict[str, Bench] = {}
    for record in by_age(latency):
        for row in record["rows"]:
            key = canonical_json(conditions(record, row))
            cell = (
                variant_key(row["variant"]),
                row["part"],
                row["passes"],
                row["height"],
                row["width"],
                row["batch"],
                row["channels"],
                record["id"] if row["part"] == "network" else "",
            )
            benches.setdefault(key, Bench(key, {})).cells[cell] = (row, record)
    return [benches[key] for key in sorted(benches)]


def table_label(title: str, key: str, record: Record, row: dict[str, Any]) -> str:
    """File name of a table of times that were measured under the conditions ``key``."""
    machine, settings = record["machine"], record["settings"]
    gpu = (machine.get("gpu") or {}).get("name")
    where = gpu or plural((machine.get("torch") or {}).get("threads", 0), "thread")
    text = f"{title}-{row['device']}-{where}-{row['dtype']}".lower()
    if settings.get("max_seconds") is not None:
        text += f"-{settings['max_seconds']:g}s"
    return f"{slug(text)}-{digest(key)[:6]}"


def conditions(record: Record, row: dict[str, Any]) -> dict[str, Any]:
    """What must agree for two latencies to stand in one table."""
    machine = record["machine"]
    cpu, gpu, torch = (machine.get(part) or {} for part in ("cpu", "gpu", "torch"))
    return {
        "device": row["device"],
        "dtype": row["dtype"],
        "cpu": [cpu.get("model"), cpu.get("logical_cores"), cpu.get("vector_instructions")],
        "gpu": [gpu.get("name"), gpu.get("driver")],
        "torch": [
            torch.get("threads"),
            torch.get("wait_policy"),
            (machine.get("packages") or {}).get("torch"),
            *filter(None, [torch.get("allocator")]),
        ],
        "settings": {k: v for k, v in record["settings"].items() if k != "seed"},
    }


def _rank(order: Sequence[str], item: str) -> int:
    return order.index(item) if item in order else len(order)

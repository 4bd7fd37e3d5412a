"""Benches: latencies that were measured under the same conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..base.names import canonical_json, digest, slug
from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant
from ..records.origin import by_age, plural
from ..records.shapes import (
    Cpu,
    Latency,
    LatencyRow,
    Machine,
    RecordedVariant,
    Speed,
    SpeedRow,
    Torch,
    untyped,
)
from .labels import recorded_labels, variant_of

#: Passes, and how tables name them.
PASSES = {"forward": "fwd", "forward+backward": "fwd+bwd"}
#: Channels at which the paper counts and times each part.
PART_CHANNELS = {"core": CORE_CHANNELS, "module": MODULE_CHANNELS}
#: Variant, part, passes, height, width, batch, channels and, for whole networks, the session,
#: whose settings say what the network is.
Cell = tuple[Variant, str, str, int, int, int, int, str]


@dataclass(frozen=True)
class Bench:
    """Latencies that may stand in one table: same machine, threads, device, dtype, settings.

    Attributes:
        key: their common conditions, as canonical JSON.
        cells: the newest row of each cell, with its record.
    """

    key: str
    cells: dict[Cell, tuple[LatencyRow, Latency]]

    @cached_property
    def records(self) -> list[Latency]:
        """Sessions that the rows come from, oldest first."""
        return by_age({record.id: record for _, record in self.cells.values()}.values())

    @property
    def row(self) -> LatencyRow:
        """Any row: device and dtype are common to all."""
        return next(iter(self.cells.values()))[0]

    @property
    def label(self) -> str:
        """File name, e.g. ``table5-cpu-2-threads-float32-60s-0a1b2c``."""
        return table_label("table5", self.key, self.records[0], self.row)

    @cached_property
    def recorded(self) -> dict[Variant, RecordedVariant]:
        """What the rows say of each variant."""
        return {variant_of(row.variant): row.variant for row, _ in self.cells.values()}

    @cached_property
    def labels(self) -> dict[Variant, str]:
        """Row label of each variant."""
        return recorded_labels(self.recorded.values())

    def find(
        self, variant: Variant | None, part: str, passes: str, size: int
    ) -> tuple[LatencyRow, Latency] | tuple[None, None]:
        """Row and record of a square map at the paper's channels, batch 1; None if not measured."""
        if variant is None:
            return None, None
        cell = (variant, part, passes, size, size, 1, PART_CHANNELS[part], "")
        return self.cells.get(cell, (None, None))


def find_benches(latency: Iterable[Latency]) -> list[Bench]:
    """Latency records, regrouped into tables."""
    benches: dict[str, Bench] = {}
    for record in by_age(latency):
        for row in record.rows:
            key = canonical_json(conditions(record, row))
            cell = (
                variant_of(row.variant),
                row.part,
                row.passes,
                row.height,
                row.width,
                row.batch,
                row.channels,
                record.id if row.part == "network" else "",
            )
            benches.setdefault(key, Bench(key, {})).cells[cell] = (row, record)
    return [benches[key] for key in sorted(benches)]


def table_label(title: str, key: str, record: Latency | Speed, row: LatencyRow | SpeedRow) -> str:
    """File name of a table of times that were measured under the conditions ``key``."""
    machine, seconds = record.machine, record.settings.max_seconds
    threads = plural((machine.torch or Torch()).threads or 0, "thread")
    text = f"{title}-{row.device}-{_gpu(machine, 'name') or threads}-{row.dtype}".lower()
    if seconds is not None:
        text += f"-{seconds:g}s"
    return f"{slug(text)}-{digest(key)[:6]}"


def conditions(record: Latency | Speed, row: LatencyRow | SpeedRow) -> dict[str, Any]:
    """What must agree for two latencies to stand in one table."""
    machine = record.machine
    cpu, torch = machine.cpu or Cpu(), machine.torch or Torch()
    settings = untyped(record.settings)
    settings.pop("seed", None)
    return {
        "device": row.device,
        "dtype": row.dtype,
        "cpu": [cpu.model, cpu.logical_cores, cpu.vector_instructions],
        "gpu": [_gpu(machine, "name"), _gpu(machine, "driver")],
        "torch": [
            torch.threads,
            torch.wait_policy,
            (machine.packages or {}).get("torch"),
            *filter(None, [torch.allocator]),
        ],
        "settings": settings,
    }


def timing_text(record: Latency | Speed) -> str:
    """The settings of a session, as ``warmup 1, min runs 5``."""
    settings = untyped(record.settings).items()
    return ", ".join(f"{name.replace('_', ' ')} {v}" for name, v in settings if v is not None)


def _gpu(machine: Machine, key: str) -> Any:
    return (machine.gpu or {}).get(key)


def rank(order: Iterable[str], item: str) -> int:
    """Place of an item in an order; behind all where the order does not have it."""
    return [*order, item].index(item)

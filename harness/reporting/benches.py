"""Benches: latencies of one session, and which session is the canonical one of a device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from ..base.names import slug
from ..config.rows import TABLE5_SIZES, table_rows
from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant
from ..records.origin import by_age
from ..records.shapes import (
    UNSET,
    Cpu,
    Latency,
    LatencyRow,
    RecordedVariant,
    Scaling,
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
#: Variant, part, passes, height, width, batch, channels.
Cell = tuple[Variant, str, str, int, int, int, int]
#: Folder of tables that a newer or fuller session has replaced.
HISTORY = "history"
# Words of a GPU's name that tell no GPU from another.
_VENDORS = {"nvidia", "geforce", "tesla", "amd", "radeon", "graphics"}
_PRECISION = "float32"

T = TypeVar("T", Latency, Speed)
Row = LatencyRow | SpeedRow


@dataclass(frozen=True)
class Bench:
    """Latencies that may stand in one table: one session's, on one device, in one dtype.

    Methods of one session were timed in turn; those of two sessions never share a table.

    Attributes:
        record: the session.
        cells: its rows.
        label: file name of its table, e.g. ``table5-cpu``.
        folder: folder of its table: "", or :data:`HISTORY` where another is the canonical one.
    """

    record: Latency
    cells: dict[Cell, LatencyRow]
    label: str
    folder: str = ""

    @property
    def session(self) -> str:
        """What its captions add, so that no two are alike: its name if it is history."""
        return f", session {self.record.id}" if self.folder == HISTORY else ""

    @property
    def row(self) -> LatencyRow:
        """Any row: device and dtype are common to all."""
        return next(iter(self.cells.values()))

    @property
    def place(self) -> str:
        """Device and dtype as file names have them, e.g. ``cpu`` or ``h200-bfloat16``."""
        return place(self.record, self.row)

    @cached_property
    def recorded(self) -> dict[Variant, RecordedVariant]:
        """What the rows say of each variant."""
        return {variant_of(row.variant): row.variant for row in self.cells.values()}

    @cached_property
    def labels(self) -> dict[Variant, str]:
        """Row label of each variant."""
        return recorded_labels(self.recorded.values())

    def find(self, variant: Variant | None, part: str, passes: str, size: int) -> LatencyRow | None:
        """Row of a square map at the paper's channels, batch 1; None if not measured."""
        if variant is None:
            return None
        return self.cells.get((variant, part, passes, size, size, 1, PART_CHANNELS[part]))

    def count(self, variants: Iterable[Variant]) -> int:
        """How many cells of Table 5 this session has of these variants."""
        return sum(
            self.find(variant, part, passes, size) is not None
            for variant in variants
            for part in PART_CHANNELS
            for passes in PASSES
            for size, _ in TABLE5_SIZES
        )

    def cores(self) -> int:
        """How many cores were timed forward at the first of Table 5's sizes."""
        size = TABLE5_SIZES[0][0]
        return sum(self.find(v, "core", "forward", size) is not None for v in self.recorded)


def find_benches(latency: Iterable[Latency]) -> list[Bench]:
    """Sessions that have a table each, the canonical ones of each device and dtype first.

    ``table5-<device>`` is the session that timed the most of Table 5, ``latency-<device>`` the one
    that timed the most methods, if that is another; of several the newest. Sessions that force an
    implementation come behind the others. All others are history, but for those whose
    every cell a newer session of the same conditions repeats.
    """
    groups: dict[str, list[Bench]] = {}
    for session, rows in sessions(latency):
        cells = {
            (
                *(variant_of(row.variant), row.part, row.passes),
                *(row.height, row.width, row.batch, row.channels),
            ): row
            for row in rows
        }
        bench = Bench(session, cells, history_name("table5", session, rows[0]), HISTORY)
        groups.setdefault(bench.place, []).append(bench)
    found = []
    for where in sorted(groups, key=lambda name: (name != "cpu", name)):
        found += _canonical(where, groups[where])
    return found


def _canonical(where: str, benches: Sequence[Bench]) -> list[Bench]:
    """Names for the sessions of one device and dtype, oldest first; canonical ones come first."""
    rows = table_rows("table5")

    def free(bench: Bench) -> bool:
        return bench.record.settings.implementation is UNSET

    newest = list(reversed(benches))
    main = max(newest, key=lambda bench: (free(bench), bench.count(rows)))
    fullest = max(newest, key=lambda bench: (free(bench), bench.cores()))
    chosen = []
    if main.count(rows):
        chosen.append(replace(main, label=f"table5-{where}", folder=""))
    if not chosen or fullest.cores() > main.cores():
        chosen.append(replace(fullest, label=f"latency-{where}", folder=""))
    shown = {bench.record.id for bench in chosen}
    rest = [bench for bench in newest if bench.record.id not in shown]
    by_conditions = [(conditions(b.record, b.row), set(b.cells)) for b in newest]
    return [*chosen, *(bench for bench in rest if not _repeated(bench, newest, by_conditions))]


def _repeated(
    bench: Bench, newest: Sequence[Bench], known: Sequence[tuple[dict[str, Any], set[Cell]]]
) -> bool:
    """Whether a newer session has all its cells under the same conditions."""
    place = newest.index(bench)
    own, cells = known[place]
    return any(own == other and cells <= more for other, more in known[:place])


def sessions(records: Iterable[T]) -> Iterator[tuple[T, list[Any]]]:
    """Each record's rows of one device and dtype, oldest record first."""
    for record in by_age(records):
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in record.rows:
            groups.setdefault((row.device, row.dtype), []).append(row)
        for rows in groups.values():
            yield record, rows


def place(record: Latency | Speed | Scaling, row: Row) -> str:
    """Device and, but for float32, dtype, as file names have them: ``cpu``, ``h200-bfloat16``."""
    words = str((record.machine.gpu or {}).get("name") or "").lower().split()
    gpu = " ".join(word for word in words if word not in _VENDORS)
    device = row.device.partition(":")[0].lower()
    name = device if device == "cpu" or not gpu else gpu
    return slug(name if row.dtype == _PRECISION else f"{name}-{row.dtype}")


def history_name(title: str, record: Latency | Speed | Scaling, row: Row) -> str:
    """File name of a session's table that is not the canonical one, e.g. ``table5-cpu-0a1b2c``."""
    return f"{title}-{place(record, row)}-{record.id.rpartition('-')[2]}"


def conditions(record: Latency | Speed, row: Row) -> dict[str, Any]:
    """What must agree for one session to be a repetition of another."""
    machine = record.machine
    cpu, torch = machine.cpu or Cpu(), machine.torch or Torch()
    settings = untyped(record.settings)
    settings.pop("seed", None)
    gpu = machine.gpu or {}
    return {
        "device": row.device,
        "dtype": row.dtype,
        "cpu": [cpu.model, cpu.logical_cores, cpu.vector_instructions],
        "gpu": [gpu.get("name"), gpu.get("driver")],
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


def rank(order: Iterable[str], item: str) -> int:
    """Place of an item in an order; behind all where the order does not have it."""
    return [*order, item].index(item)

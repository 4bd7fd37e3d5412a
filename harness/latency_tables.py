"""Table 5: latency of the attention modules, one table for each machine, device and precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .cells import (
    PAPER_PSNR,
    measured_header,
    milliseconds,
    number,
    psnr_cell,
    setting_text,
    variant_columns,
)
from .records import canonical_json, digest, slug
from .render import Table
from .settings import (
    PART_CHANNELS,
    Record,
    Setting,
    by_age,
    describe_code,
    describe_machine,
    origin_note,
    paper_table,
    plural,
    row_order,
    variant_key,
    variant_labels,
)

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


def table5(bench: Bench, setting: Setting) -> Table:
    """Mean latency at the paper's two sizes: its rows, then further variants.

    Args:
        bench: the latencies.
        setting: where the PSNR column comes from; without runs it is empty.
    """
    paper = {row["method"]: row for row in paper_table(5)}
    psnr_of = setting.psnr_by_key
    rows, data = [], []
    for label, key in row_order(bench.labels, list(paper)):
        printed = paper.get(label, {})
        psnr = psnr_of.get(key or "")
        cells, columns, sessions = [label], variant_columns(label, key), []
        for size in _SIZES:
            cells.append(printed.get(f"latency_ms_{size}x{size}", ""))
            columns[f"latency_ms_{size}x{size}_paper"] = number(cells[-1])
            for part in PART_CHANNELS:
                for passes in _PASSES:
                    row, record = bench.find(key, part, passes, size)
                    cells.append(milliseconds(row["mean_ms"] if row else None))
                    prefix = f"{part}_{passes.replace('+', '_')}_{size}x{size}"
                    columns |= {f"{prefix}_{figure}": row and row[figure] for figure in _FIGURES}
                    sessions += [record["id"]] if record else []
        cells += [printed.get("psnr_db", ""), psnr_cell(psnr)]
        rows.append(cells)
        columns |= {
            "psnr_db_paper": number(printed.get("psnr_db", "")),
            "psnr_db_measured": psnr and psnr.mean,
            "seeds": psnr and psnr.seeds,
            "test_set": setting.test_set,
            "setting": setting.label if setting.runs else None,
        }
        data.append(columns | _bench_columns(bench) | {"sessions": "+".join(sorted({*sessions}))})
    return Table(
        name=bench.label,
        caption=f"Table 5: latency in ms (mean) on {describe_machine(bench.records[-1])}, "
        f"device {bench.row['device']}, {bench.row['dtype']}",
        notes=[
            "Columns marked paper are published figures, not measured here: mean of 1000 runs on "
            "an RTX 2080 Ti, and PSNR on Urban100 ×4. Its text speaks of 0.2 dB between ENLCA-m128 "
            "and NLSA-r4; its table has 0.16 dB.",
            "Core: the attention operation alone, 64 channels; module: with its projections, 256 "
            "channels. fwd: forward; bwd: backward. Median, interquartile range, runs and peak "
            f"memory are in {bench.label}-details and in the CSV.",
            *_bench_notes(bench),
            f"Measured PSNR: {setting_text(setting)}; setting {setting.label}."
            if setting.runs
            else "No variant was trained: measured PSNR is empty.",
        ],
        headers=[
            ("", "Method"),
            *(
                (f"{size}×{size}", header)
                for size in _SIZES
                for header in (
                    "paper",
                    *(f"{part} {short}" for part in PART_CHANNELS for short in _PASSES.values()),
                )
            ),
            ("PSNR (dB)", PAPER_PSNR),
            ("PSNR (dB)", measured_header(setting)),
        ],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


def latency_details(bench: Bench) -> Table:
    """Every latency with all its figures, one row each."""
    paper = [row["method"] for row in paper_table(5)]
    position = {key: i for i, (_, key) in enumerate(row_order(bench.labels, paper)) if key}

    def order(cell: Cell) -> tuple[Any, ...]:
        key, part, passes, *rest = cell
        return (_rank(_PARTS, part), part, _rank(tuple(_PASSES), passes), *rest, position[key])

    rows, data = [], []
    for cell in sorted(bench.cells, key=order):
        row, record = bench.cells[cell]
        label = bench.labels[cell[0]]
        shape = f"{row['batch']}×{row['channels']}×{row['height']}×{row['width']}"
        times = [milliseconds(row[figure]) for figure in _FIGURES[:4]]
        runs, memory = row["runs"], row["peak_memory_mb"]
        passes = _PASSES.get(row["passes"], row["passes"])
        count = str(runs) if runs else row.get("note", "")
        rows.append([label, row["part"], passes, shape, *times, count, milliseconds(memory)])
        shown = ("part", "passes", "batch", "channels", "height", "width", *_FIGURES)
        data.append(
            variant_columns(label, cell[0])
            | {name: row[name] for name in shown}
            | {"note": row.get("note")}
            | _bench_columns(bench)
            | {"session": record["id"], "code": describe_code(record)}
        )
    return Table(
        name=f"{bench.label}-details",
        caption=f"Latency in detail on {describe_machine(bench.records[-1])}, "
        f"device {bench.row['device']}, {bench.row['dtype']}",
        notes=_bench_notes(bench),
        headers=[
            ("", "Method"),
            *(("", h) for h in ("part", "passes", "input")),
            *(("ms", h) for h in ("mean", "median", "IQR", "least")),
            *(("", h) for h in ("runs", "peak MB")),
        ],
        rows=rows,
        data=data,
    )


def _bench_columns(bench: Bench) -> dict[str, Any]:
    return {
        "device": bench.row["device"],
        "dtype": bench.row["dtype"],
        "machine": describe_machine(bench.records[-1]),
    }


def _bench_notes(bench: Bench) -> list[str]:
    settings = bench.records[-1]["settings"]
    said = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None
    )
    notes = [f"{origin_note(bench.records, 'Measured')} Timing: {said}."]
    if len(bench.records) > 1:
        notes.append(
            f"The rows come from {len(bench.records)} sessions: only methods of one session were "
            "timed in turn; the CSV names the session of each."
        )
    return notes


def _rank(order: Sequence[str], item: str) -> int:
    return order.index(item) if item in order else len(order)

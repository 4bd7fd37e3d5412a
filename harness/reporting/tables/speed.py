"""The speed of the released implementations and of ours, side by side, from speed records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...records.origin import describe_code, describe_machine, origin_note, plural
from ...records.shapes import Speed, SpeedRow
from ..benches import (
    HISTORY,
    PASSES,
    conditions,
    history_name,
    place,
    rank,
    sessions,
    timing_text,
)
from ..cells import columns_of, fixed, milliseconds
from .render import Table

_PARTS = ("core", "module", "contrast", "step")
_FIGURES = ("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs", "peak_memory_mb")


@dataclass(frozen=True)
class Session:
    """Rows of one speed record on one device, in one dtype, in the order of the parts.

    Attributes:
        record: the session.
        rows: its rows.
        label: file name of its table, e.g. ``speed-cpu``.
        folder: "", or history where another session is the canonical one.
    """

    record: Speed
    rows: Sequence[SpeedRow]
    label: str
    folder: str = ""

    @property
    def cases(self) -> set[tuple[str, str]]:
        """What was timed."""
        return {(row.name, row.passes) for row in self.rows}


def find_speeds(records: Iterable[Speed]) -> list[Session]:
    """Sessions that have a table each, the canonical ones of each device and dtype first.

    ``speed-<device>`` is the session with the most cases, of several the newest. All others are
    history, but for those whose every case a newer session of the same conditions repeats.
    """
    groups: dict[str, list[Session]] = {}
    for record, rows in sessions(records):
        label = history_name("speed", record, rows[0])
        session = Session(record, sorted(rows, key=_place), label, HISTORY)
        groups.setdefault(place(record, rows[0]), []).insert(0, session)  # newest first
    found = []
    for where in sorted(groups, key=lambda name: (name != "cpu", name)):
        newest = groups[where]
        main = max(newest, key=lambda session: len(session.cases))
        found.append(replace(main, label=f"speed-{where}", folder=""))
        under = [conditions(one.record, one.rows[0]) for one in newest]
        for index, session in enumerate(newest):
            repeated = any(
                under[index] == under[other] and session.cases <= newest[other].cases
                for other in range(index)
            )
            if session is not main and not repeated:
                found.append(session)
    return found


def _place(row: SpeedRow) -> int:
    return rank(_PARTS, row.name.partition("-")[0])


def speed_table(session: Session) -> Table:
    """Time and memory of both, their ratio beside its target, and the machine's limit."""
    row, record = session.rows[0], session.record
    verdicts = [verdict for row in session.rows for verdict in _verdicts(row) if verdict]
    rates = (
        f"{milliseconds(record.machine_limits.matmul_gflops)} GFLOP/s and "
        f"{milliseconds(record.machine_limits.copy_gb_per_s)} GB/s"
    )
    return Table(
        name=session.label,
        caption="Speed: the released implementation, tensor for tensor that of the authors' code, "
        f"and ours on {describe_machine(record)}, device {row.device}, {row.dtype}"
        f"{f', session {record.id}' if session.folder else ''}",
        notes=[
            "Ratio: median time of the released implementation over that of ours, in turn, with "
            "its 95 % interval. MB: peak memory above the inputs. "
            f"{verdicts.count('met')} of {plural(len(verdicts), 'target')} met, "
            f"{verdicts.count('missed')} missed.",
            "Both sides of a ratio run in turn in one process; its interval is that of a bootstrap "
            "over rounds.",
            "MB is the peak memory of one call above its inputs (1e6 bytes). For the contrastive "
            "loss its bound is the N × N matrices of the batch.",
            "Limit is the longer of two times: the closed-form FLOPs of the matrix products (three "
            "times the forward's with the backward) at the measured rate of matrix products, and "
            "the bytes of inputs, parameters and outputs (twice with the backward) at the measured "
            f"rate of copying. Share is the limit's part of our time. Measured: {rates}. "
            "The limit ignores exp, sorting and cache misses, and Winograd's convolutions, in "
            "training steps, need fewer products than it counts.",
            f"{origin_note([record], 'Measured')} Timing: {timing_text(record)}. All rows are of "
            f"one session, {record.id}.",
        ],
        headers=[
            ("", "Case"),
            ("", "passes"),
            *(("ms (median)", side) for side in ("released", "ours")),
            *(("Ratio", header) for header in ("released / ours", "at least")),
            *(("MB", header) for header in ("released", "ours", "ours at most")),
            *(("Limit", header) for header in ("ms", "share")),
        ],
        rows=[_cells(row) for row in session.rows],
        data=[_columns(row, record) for row in session.rows],
    )


def _cells(row: SpeedRow) -> list[str]:
    ratio = fixed(row.ratio, 2) or row.note or ""
    if row.ratio_low is not None:
        ratio += f" [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
    targets = (row.ratio_target, row.memory_target_mb)
    at_least, at_most = (
        "" if target is None else f"{target:.3g} {verdict}".strip()
        for target, verdict in zip(targets, _verdicts(row), strict=True)
    )
    sides, share = (row.obvious, row.ours), _share(row)
    return [
        row.case,
        PASSES.get(row.passes, row.passes),
        *(milliseconds(side.median_ms) for side in sides),
        *(ratio, at_least),
        *(milliseconds(side.peak_memory_mb) for side in sides),
        at_most,
        milliseconds(row.limit_ms),
        "" if share is None else f"{share:.0%}",
    ]


def _columns(row: SpeedRow, record: Speed) -> dict[str, Any]:
    ratio_verdict, memory_verdict = _verdicts(row)
    return (
        columns_of(row, "name", "case", "passes")
        | {f"obvious_{name}": getattr(row.obvious, name) for name in _FIGURES}
        | {f"ours_{name}": getattr(row.ours, name) for name in _FIGURES}
        | columns_of(row, "ratio_target", "memory_target_mb", "ratio", "ratio_low", "ratio_high")
        | {"ratio_verdict": ratio_verdict, "memory_verdict": memory_verdict}
        | {"limit_ms": row.limit_ms, "limit_share": _share(row), "note": row.note}
        | columns_of(record.machine_limits, "matmul_gflops", "copy_gb_per_s")
        | columns_of(row, "device", "dtype")
        | {
            "session": record.id,
            "machine": describe_machine(record),
            "code": describe_code(record),
        }
    )


def _verdicts(row: SpeedRow) -> tuple[str, str]:
    """Verdicts on ratio and memory: "met", "missed", or "" without a target or a figure."""
    return (
        _verdict(row.ratio, row.ratio_target),
        _verdict(row.memory_target_mb, row.ours.peak_memory_mb),
    )


def _verdict(larger: float | None, smaller: float | None) -> str:
    if larger is None or smaller is None:
        return ""
    return "met" if larger >= smaller else "missed"


def _share(row: SpeedRow) -> float | None:
    median = row.ours.median_ms
    return row.limit_ms / median if median else None

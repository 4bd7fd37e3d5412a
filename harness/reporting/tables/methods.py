"""The README's table of methods: growth, operations, time and memory of each core."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.variants import CORE_CHANNELS, Variant
from ...records.origin import by_age, describe_machine, origin_note
from ...records.shapes import Cost, Latency, LatencyRow
from ..cells import fixed, milliseconds, number, variant_columns
from ..labels import variant_of
from ..settings import Setting, paper_table
from .render import Table

_SIZES = (100, 150)
_METHODS = (
    Variant("none"),
    Variant("conv"),
    Variant("nla"),
    Variant("nlsa"),
    Variant("criss-cross"),
    Variant("enlca"),
    Variant("enlca", {"m": 16}),
)


def methods_table(costs: Sequence[Cost], latency: Sequence[Latency]) -> Table | None:
    """A row for each of the main methods that records name.

    Times and memory come from one record: the one that timed the most of these methods, of
    several the newest.

    Returns:
        None if no core was timed on a CPU in float32.
    """
    timed = max(
        ((_cores(record), record) for record in latency),
        key=lambda found: (len(found[0]), found[1].created),
        default=None,
    )
    if timed is None or not timed[0]:
        return None
    cores, record = timed
    setting = Setting([], costs)
    recorded = {
        variant_of(row.variant): row.variant for each in by_age(latency) for row in each.rows
    } | setting.recorded
    paper = {row["method"]: row["gflops"] for row in paper_table(4)}
    rows, data = [], []
    for variant in _METHODS:
        if variant not in recorded:
            continue
        described, cost = recorded[variant], setting.cost_of.get(variant)
        printed = paper.get(described.label, "")
        gflops = cost.parts.core.paper_gflops if cost else None
        at = [cores.get((variant, size)) for size in _SIZES]
        times = [row.mean_ms if row else None for row in at]
        memory = at[0].peak_memory_mb if at[0] else None
        rows.append(
            [
                *(described.label, described.growth, printed, fixed(gflops, 2)),
                *map(milliseconds, times),
                milliseconds(memory),
            ]
        )
        data.append(
            variant_columns(described.label, described)
            | {"complexity": described.growth}
            | {"gflops_paper": number(printed), "gflops": gflops}
            | {f"mean_ms_{s}x{s}": ms for s, ms in zip(_SIZES, times, strict=True)}
            | {f"peak_memory_mb_{_SIZES[0]}x{_SIZES[0]}": memory}
            | {"machine": describe_machine(record), "session": record.id}
        )
    return Table(
        name="methods",
        caption="The methods where they differ: the attention operation alone, 64 channels, "
        f"forward, float32, on {describe_machine(record)}",
        notes=[
            "Growth with the number of positions N as the authors state it. GFLOPs at 100×100 = "
            "2 × multiply-accumulates / 1e9, in the paper's convention; columns marked paper are "
            "published figures, not measured here.",
            f"ms: mean time of a call; MB: peak memory above the inputs at {_SIZES[0]}×{_SIZES[0]} "
            "(1e6 bytes). All methods were timed in turn; an empty cell was not measured. See "
            f"latency record {record.id}.",
            origin_note([record], "Measured"),
        ],
        headers=[
            ("", "Method"),
            ("", "Growth"),
            ("GFLOPs", "(paper)"),
            ("", "GFLOPs"),
            *(("ms", f"{size}×{size}") for size in _SIZES),
            ("", "Peak MB"),
        ],
        rows=rows,
        data=data,
    )


def _cores(record: Latency) -> dict[tuple[Variant, int], LatencyRow]:
    """Rows of the methods' cores, forward on a CPU in float32, by variant and side."""
    return {
        (variant, row.height): row
        for row in record.rows
        if (row.part, row.passes, row.device) == ("core", "forward", "cpu")
        and (row.dtype, row.batch, row.channels) == ("float32", 1, CORE_CHANNELS)
        and row.height == row.width
        and (variant := variant_of(row.variant)) in _METHODS
    }

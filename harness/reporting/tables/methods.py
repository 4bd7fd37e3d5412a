"""The README's table of methods: growth, operations, time and memory of each core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention_zoo import find_attention

from ...config.labels import variant_key
from ...config.variants import Variant
from ...records.origin import Record, describe_machine, origin_note
from ..cells import fixed, milliseconds, number, variant_columns
from ..settings import PART_CHANNELS, Setting, paper_table
from .render import Table

_SIZES = (100, 150)
_METHODS = (
    Variant("none"),
    Variant("conv"),
    Variant("nla"),
    Variant("nlsa"),
    Variant("criss-cross"),
    Variant("enlca", {"m": 128}),
    Variant("enlca", {"m": 16}),
)


def methods_table(costs: Sequence[Record], latency: Sequence[Record]) -> Table | None:
    """A row for each of the main methods; None if no core was timed on a CPU in float32.

    Times and memory come from one record: the one that timed the most of these methods, of
    several the newest.
    """
    keys = {variant_key(variant.to_dict()): variant for variant in _METHODS}
    timed = max(
        ((_cores(record, keys), record) for record in latency),
        key=lambda found: (len(found[0]), found[1]["created"]),
        default=None,
    )
    if timed is None or not timed[0]:
        return None
    cores, record = timed
    paper = {row["method"]: row["gflops"] for row in paper_table(4)}
    cost_of = Setting([], costs).cost_of
    rows, data = [], []
    for key, variant in keys.items():
        growth = find_attention(variant.name).complexity
        printed = paper.get(variant.label, "")
        gflops = cost_of[key]["parts"]["core"]["paper_gflops"] if key in cost_of else None
        at = [cores.get((key, size), {}) for size in _SIZES]
        times = [row.get("mean_ms") for row in at]
        memory = at[0].get("peak_memory_mb")
        rows.append(
            [
                variant.label,
                growth,
                printed,
                fixed(gflops, 2),
                *map(milliseconds, times),
                milliseconds(memory),
            ]
        )
        data.append(
            variant_columns(variant.label, key)
            | {"complexity": growth, "gflops_paper": number(printed), "gflops": gflops}
            | {f"mean_ms_{s}x{s}": ms for s, ms in zip(_SIZES, times, strict=True)}
            | {f"peak_memory_mb_{_SIZES[0]}x{_SIZES[0]}": memory}
            | {"machine": describe_machine(record), "session": record["id"]}
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
            f"latency record {record['id']}.",
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


def _cores(record: Record, keys: dict[str, Variant]) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of the methods' cores, forward on a CPU in float32, by variant key and side."""
    return {
        (key, row["height"]): row
        for row in record["rows"]
        if (row["part"], row["passes"], row["device"]) == ("core", "forward", "cpu")
        and (row["dtype"], row["batch"], row["channels"]) == ("float32", 1, PART_CHANNELS["core"])
        and row["height"] == row["width"]
        and (key := variant_key(row["variant"])) in keys
    }

"""What ``python -m harness.gpu`` measured on a CUDA device: its newest record of every piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...base.names import slug
from ...records.origin import by_age, describe_code, describe_machine, origin_note
from ...records.shapes import Gpu
from ..cells import fixed, milliseconds
from .render import Table

_ERRORS = ("value_rms_error", "gradient_rms_error")
_Named = Mapping[str, Gpu]


def gpu_tables(records: Iterable[Gpu]) -> list[Table]:
    """Tables of each GPU: limits, implementations, training rates. Records of a CPU are tries."""
    newest: dict[str, dict[str, Gpu]] = {}
    for record in by_age(records):
        if record.machine.gpu:
            newest.setdefault(str(record.machine.gpu["name"]), {})[record.piece] = record
    tables = []
    for name in sorted(newest):
        make = (_limits, _implementations, _training)
        tables += [table for one in make if (table := one(name, newest[name]))]
    return tables


def _of(pieces: _Named, prefix: str) -> list[Gpu]:
    return [pieces[name] for name in sorted(pieces) if name.startswith(prefix)]


def _limits(gpu: str, pieces: _Named) -> Table | None:
    """Cores beside the device's limit, and their errors; NLA beside the plain flash kernel."""
    records = _of(pieces, "limits-")
    rows = [(row, record) for record in records for row in record.rows]
    if not rows:
        return None
    rates = "; ".join(
        f"{record.piece.removeprefix('limits-')} {record.rows[0]['matmul_gflops'] / 1e3:.0f} "
        f"TFLOP/s and {record.rows[0]['copy_gb_per_s'] / 1e3:.1f} TB/s"
        for record in records
    )
    notes = [
        "Call is the median time between CUDA events around one call; graph is the same call "
        "replayed as a CUDA graph, without the launches from Python. Limit is the longer of two "
        "times: FLOPs of the matrix products (three times the forward's with the backward) at the "
        f"measured rate, and inputs and outputs moved once. Measured: {rates}. Share is the "
        "limit's part of the faster one.",
        "Error is the root mean square of the difference to the reference in float64 on the same "
        "inputs, over that of the reference; NLSA's in TF32 includes positions that rounding "
        "sorts into other chunks.",
        *_flash_notes(pieces),
        _origin(records, pieces),
    ]
    return Table(
        name=f"gpu-limits-{slug(gpu).lower()}",
        caption=f"The cores of Table 5 beside the limit of an {gpu}",
        notes=notes,
        headers=[
            ("", "Method"),
            *(("", name) for name in ("size", "passes", "dtype")),
            *(("ms (median)", name) for name in ("call", "graph")),
            *(("Limit", name) for name in ("ms", "share")),
            *(("Error", name) for name in ("value", "gradient")),
        ],
        rows=[
            [
                row["variant"]["label"],
                _size(row),
                row["passes"],
                row["dtype"],
                milliseconds(row.get("median_ms")) or row.get("note", ""),
                milliseconds(row.get("graph_ms")),
                milliseconds(row.get("limit_ms")),
                fixed(row.get("share"), 3),
                *(f"{row[name]:.1e}" if name in row else "" for name in _ERRORS),
            ]
            for row, _ in rows
        ],
        data=[_data(row, record) for row, record in rows],
    )


def _flash_notes(pieces: _Named) -> list[str]:
    if "flash" not in pieces:
        return []
    ratios = [
        f"{row['ratio']:.2f} times its time at {row['height']}×{row['width']}"
        for row in pieces["flash"].rows
    ]
    return [
        "NLA from maps to map takes, in turn with torch's flash kernel alone on prepared rows "
        f"(bfloat16): {', '.join(ratios)}."
    ]


def _implementations(gpu: str, pieces: _Named) -> Table | None:
    """Every implementation of every core, in turn."""
    records = _of(pieces, "implementations-")
    rows = [(row, record) for record in records for row in record.rows]
    names = list(
        dict.fromkeys(
            key.removesuffix(" graph")
            for row, _ in rows
            for key, value in row.items()
            if isinstance(value, float)
        )
    )
    if not rows:
        return None
    return Table(
        name=f"gpu-implementations-{slug(gpu).lower()}",
        caption=f"Implementations of the cores on an {gpu}: ms (median) of a call / of its "
        "CUDA graph",
        notes=[
            "All implementations of a row run in turn, in one process, batch 1, 64 channels. A "
            "call is timed by CUDA events around it, launches from Python included; a graph has "
            "none. What is empty does not exist, or cannot run there.",
            _origin(records, pieces),
        ],
        headers=[
            ("", "Method"),
            *(("", name) for name in ("size", "passes", "dtype")),
            *(("ms, call / graph", name) for name in names),
            ("", "rounds"),
        ],
        rows=[
            [
                row["variant"]["label"],
                _size(row),
                row["passes"],
                row["dtype"],
                *(_pair(row, name) for name in names),
                str(row["runs"]),
            ]
            for row, _ in rows
        ],
        data=[_data(row, record) for row, record in rows],
    )


def _pair(row: Mapping[str, Any], name: str) -> str:
    pair = [milliseconds(row.get(key)) for key in (name, f"{name} graph")]
    return " / ".join(filter(None, pair))


def _training(gpu: str, pieces: _Named) -> Table | None:
    """Steps per second of the GPU presets, and what their schedules would take."""
    records = _of(pieces, "train-")
    rows = [(row, record) for record in records for row in record.rows]
    if not rows:
        return None
    return Table(
        name=f"gpu-training-{slug(gpu).lower()}",
        caption=f"Training on an {gpu}: steps per second, and the projected hours of the schedule",
        notes=[
            "Steps include drawing the patches; images are noise. With ENLCA the contrastive loss "
            "sets in after 15 % of the steps: steps per second are those with it. Hours are "
            "projected from the measured rates; no schedule was run.",
            _origin(records, pieces),
        ],
        headers=[
            ("", "Method"),
            ("", "preset"),
            ("", "dtype"),
            ("Steps/s", "without the loss"),
            ("Steps/s", "with it"),
            ("Schedule", "steps"),
            ("Schedule", "GPU hours"),
        ],
        rows=[
            [
                row["variant"]["label"] if "variant" in row else row["name"],
                row.get("preset", ""),
                row.get("dtype", ""),
                fixed(row.get("steps_per_second_before_auxiliary"), 1) or row.get("note", ""),
                fixed(row.get("steps_per_second"), 1),
                f"{row['schedule_steps']:,}" if "schedule_steps" in row else "",
                fixed(row.get("projected_gpu_hours"), 1),
            ]
            for row, _ in rows
        ],
        data=[_data(row, record) for row, record in rows],
    )


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['height']}×{row['width']}"


def _data(row: Mapping[str, Any], record: Gpu) -> dict[str, Any]:
    plain = {
        key.replace(" ", "_"): value
        for key, value in row.items()
        if isinstance(value, (str, int, float)) or value is None
    }
    return plain | {
        "piece": record.piece,
        "machine": describe_machine(record),
        "session": record.id,
        "code": describe_code(record),
    }


def _origin(records: Sequence[Gpu], pieces: _Named) -> str:
    """Where the numbers come from, and how the tests of CUDA ended there."""
    driver = (records[-1].machine.gpu or {}).get("driver")
    text = origin_note(records, "Measured")
    text += f" Driver {driver}." if driver else ""
    if "tests" in pieces:
        text += f" Tests that need CUDA, there and then: {pieces['tests'].rows[0]['result']}."
    return text

"""Made-up records, and tables read back, for tests of what reads records. Nothing was measured."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from harness.base.names import slug
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.records.shapes import (
    SCHEMA,
    Approximation,
    Cost,
    Gpu,
    Implementations,
    Latency,
    Record,
    Redraw,
    Run,
    Scaling,
    Speed,
    typed,
    untyped,
)
from harness.reporting.tables.render import Table

MACHINE = {
    "device": "cpu",
    "cpu": {"model": "Made-up CPU", "logical_cores": 2},
    "gpu": None,
    "packages": {"torch": "2.9.1"},
    "torch": {"threads": 2},
    "code": {"version": "0.1.0", "commit": "abc1234"},
}
GPU_MACHINE = MACHINE | {"device": "cuda", "gpu": {"name": "Made-up GPU", "driver": "1.2"}}


def variant(name: str, **options: Any) -> dict[str, Any]:
    """What a record says of a variant of this suite."""
    return Variant.of(name, options).describe()


VARIANTS: dict[str, dict[str, Any]] = {
    **{one["label"]: one for one in map(variant, ("none", "nla", "nlsa", "criss-cross"))},
    "User_Attention-8": {"name": "my_package.my_module:User", "options": {"size": 8}}
    | dict.fromkeys(("label", "row_label"), "User_Attention-8")
    | {"changed": {}, "source": "", "growth": "O(N)", "built_in": False},
}

#: A label that is HTML.
AWKWARD = "</td><script>alert(1)</script>&amp;"

DATA = {"name": "data", "train": ["train"], "train_images": 40, "train_sha256": "0" * 64}
CONFIG: dict[str, Any] = (
    {"preset": "small", "protocol": "scratch", "scale": 4, "seed": 0}
    | {"blocks": 8, "channels": 32, "patch": 28, "batch": 16, "steps": 4000}
    | {"precision": "float32", "device": "cpu", "tile": None}
    | {"data": DATA | {"test": ["Set5", "Urban100"]}}
)

R = TypeVar("R", bound=Record)


def _record(shape: type[R], kind: str, identifier: str, content: dict[str, Any]) -> R:
    """A record of this content, which may replace what all records have."""
    record = typed(
        {
            "schema": SCHEMA,
            "kind": kind,
            "id": identifier,
            "created": "2026-01-02T03:04:05+00:00",
            "command": "python -m harness.run",
            "machine": MACHINE,
        }
        | content
    )
    assert isinstance(record, shape)
    return record


def edited(record: R, change: Callable[[dict[str, Any]], object]) -> R:
    """The record after a change to its JSON."""
    content = untyped(record)
    change(content)
    found = typed(content)
    assert isinstance(found, type(record))
    return found


def csv_rows(table: Table | None) -> list[dict[str, str]]:
    """The rows for programs."""
    assert table is not None
    return list(csv.DictReader(io.StringIO(table.csv())))


def cells(table: Table | None) -> dict[str, list[str]]:
    """The cells for readers by their row's name, which no other row has."""
    assert table is not None
    found = {row[0]: list(row[1:]) for row in table.rows}
    assert len(found) == len(table.rows)
    return found


def headers(table: Table | None) -> list[str]:
    """What stands above each column."""
    assert table is not None
    return [" ".join(header).strip() for header in table.headers]


def quality(values: list[float], bicubic: float = 25.0) -> dict[str, Any]:
    """One test set whose images have these PSNRs; SSIM is PSNR / 40."""
    beside = {"bicubic_psnr": bicubic, "bicubic_ssim": bicubic / 40}
    images = [
        {"name": f"img{index}.png", "psnr": value, "ssim": value / 40, "tile": None} | beside
        for index, value in enumerate(values)
    ]
    mean = float(np.mean(values))
    return {"images": images, "psnr": mean, "ssim": mean / 40} | beside


def run(
    variant: str | dict[str, Any] = "Baseline",
    seed: int = 0,
    values: list[float] | dict[str, list[float]] | None = None,
    sets: list[str] | None = None,
    *,
    created: str = "2026-01-02T03:04:05+00:00",
    identifier: str | None = None,
    machine: dict[str, Any] | None = None,
    **config: Any,
) -> Run:
    """A run record; the PSNRs are those of every test set, or given for each."""
    variant = VARIANTS[variant] if isinstance(variant, str) else variant
    settings = copy.deepcopy(CONFIG) | {"seed": seed} | config
    sets = sets or settings["data"]["test"]
    settings["data"] = settings["data"] | {"test": sets}
    if not isinstance(values, dict):
        values = dict.fromkeys(sets, values or [26.0, 27.0, 28.0])
    name = identifier or f"{variant['label'].lower()}-{settings['preset']}-s{seed}"
    content = {
        "created": created,
        "machine": machine or MACHINE,
        "variant": variant,
        "config": settings,
        "training": {"parameters": 1, "seconds": 2.0, "steps_per_second": 3.0, "log": []},
        "quality": {name: quality(values[name]) for name in sets},
    }
    return _record(Run, "run", name, content)


def score(value: float, **changes: Any) -> dict[str, Any]:
    """A score from 0 to 1 of a synthetic task; the controls are shares of it."""
    return (
        {"metric": "R²", "score": value, "floor": 0.0, "ceiling": 1.0, "weight": 100.0}
        | {"as_mean": value / 10, "deleted": -0.01, "details": {"signs": 0.9}}
        | {"by_distance": [[8, value, 40.0], [16, value - 0.01, 60.0]]}
        | changes
    )


def task_run(
    variant: str | dict[str, Any] = "NLA",
    scores: Sequence[float | dict[str, Any]] = (0.9, 0.8, 0.7),
    *,
    seed: int = 0,
    rate: float = 0.002,
    validation: float = 0.75,
    task: str = "recall",
    options: dict[str, Any] | None = None,
    curve: Sequence[tuple[int, float]] = ((100, 0.1), (200, 0.6), (300, 0.9)),
    **config: Any,
) -> Run:
    """A run of a synthetic task: scores on the test sets n6, n12, n24, and on validation images."""
    described = VARIANTS[variant] if isinstance(variant, str) else variant
    options = {"pairs": 4} if options is None and task == "recall" else options or {}
    of_task = {"name": task, "options": options, "loss": "mse", "positions": [1]}
    names = [f"n{6 * 2**size}" for size in range(len(scores))]
    settings = (
        copy.deepcopy(CONFIG)
        | {"preset": "quick", "scale": 2, "blocks": 2, "steps": 300, "seed": seed}
        | {"learning_rate": rate, "task": of_task}
        | {"data": {"name": f"{task}-made-up", "train": [task], "train_images": 0, "test": names}}
        | config
    )
    found = [one if isinstance(one, dict) else score(one) for one in scores]
    what = "-".join(map(str, options.values()))
    content = {
        "variant": described,
        "config": settings,
        "training": {"parameters": 1000, "seconds": 2.0, "curve": [list(row) for row in curve]},
        "quality": {},
        "scores": dict(zip(names, found, strict=True)),
        "validation": score(validation),
    }
    name = f"{described['row_label'].lower()}-{task}-{what}-{rate:g}-s{seed}"
    return _record(Run, "run", slug(name), content)


def ablation(table: str, seeds: int = 1, only: set[int] | None = None) -> list[Run]:
    """Runs of a table's rows, or only some: row i, seed s, image j has 20 + i + s / 10 + j dB."""
    return [
        run(
            variant.describe(),
            seed,
            [20.0 + index + seed / 10 + image for image in range(3)],
            identifier=f"{table}-{index}-{seed}",
        )
        for index, variant in enumerate(table_rows(table))
        for seed in range(seeds)
        if only is None or index in only
    ]


def figure6(*ks: float) -> list[Run]:
    """A baseline of 26 dB and ENLCA with each k."""
    runs = [run(values=[25.0, 26.0, 27.0])]
    for k in ks:
        values = [25.5 + k / 100, 26.4, 27.6]
        runs.append(run(variant("enlca", k=k), values=values, identifier=f"enlca-k{k:g}"))
    return runs


def cost(variant: str | dict[str, Any], gflops: float, **changes: Any) -> Cost:
    """A cost record: the closed form is gflops, the others are simple multiples of it."""
    variant = VARIANTS[variant] if isinstance(variant, str) else variant

    def part(scale: float, channels: int) -> dict[str, Any]:
        executed = 2 * gflops * scale
        return (
            {"channels": channels, "paper_gflops": gflops * scale, "fvcore_gflops": None}
            | {"executed_gflops": executed, "torch_gflops": executed}
            | {"ptflops_gflops": 3 * gflops * scale}
        )

    content = {
        "variant": variant,
        "height": 100,
        "width": 100,
        "parts": {"core": part(1, 64), "module": part(5, 256) | {"embedding": 64}},
        "notes": ["core: fvcore failed: made up"],
        **changes,
    }
    return _record(Cost, "cost", f"cost-{variant['label'].lower()}", content)


def latency_row(
    variant: str,
    mean: float | None,
    part: str = "core",
    passes: str = "forward",
    size: int = 100,
    **changes: Any,
) -> dict[str, Any]:
    """One row: median, IQR and minimum are 0.9, 0.1 and 0.5 of the mean."""
    shares = {"mean_ms": 1.0, "median_ms": 0.9, "iqr_ms": 0.1, "min_ms": 0.5}
    times = {name: None if mean is None else share * mean for name, share in shares.items()}
    sizes = {"height": size, "width": size, "batch": 1, "channels": 64 if part == "core" else 256}
    return (
        {"variant": VARIANTS[variant], "part": part, "passes": passes, **sizes, **times}
        | {"dtype": "float32", "device": "cpu", "runs": None if mean is None else 7}
        | {"peak_memory_mb": None, **changes}
    )


def latency(
    rows: list[dict[str, Any]], identifier: str = "cpu-float32-1", **changes: Any
) -> Latency:
    settings = {"warmup": 1, "min_runs": 5, "max_seconds": 60.0, "seed": 0}
    return _record(Latency, "latency", identifier, {"settings": settings, "rows": rows} | changes)


def speed_row(
    name: str, obvious: float | None, ours: float | None, **changes: Any
) -> dict[str, Any]:
    """Median times in ms; the target is 3, memory 300 MB against 20 of at most 30."""

    def side(median: float | None, memory: float) -> dict[str, Any]:
        measured = {"median_ms": median, "runs": 7, "peak_memory_mb": memory}
        return measured if median is not None else dict.fromkeys(measured)

    ratio = None if obvious is None or ours is None else obvious / ours
    ends = {"ratio_low": -0.5, "ratio_high": 0.5}
    return (
        {"name": name, "case": f"made-up {name}", "variant": VARIANTS["NLA"]}
        | {"passes": "forward", "dtype": "float32", "device": "cpu"}
        | {"obvious": side(obvious, 300.0), "ours": side(ours, 20.0), "ratio": ratio}
        | {end: None if ratio is None else ratio + off for end, off in ends.items()}
        | {"ratio_target": 3.0, "memory_target_mb": 30.0, "limit_ms": 2.5}
        | changes
    )


def speed(rows: list[dict[str, Any]], identifier: str = "cpu-float32-2", **changes: Any) -> Speed:
    content = {
        "settings": {"min_runs": 5, "max_seconds": 10.0, "seed": 0},
        "machine_limits": {"matmul_gflops": 80.0, "copy_gb_per_s": 10.0},
        "rows": rows,
    }
    return _record(Speed, "speed", identifier, content | changes)


def implementations(**changes: Any) -> Implementations:
    """NLA by two implementations; a third cannot run."""
    none = {"mean_ms": None, "median_ms": None, "iqr_ms": None, "min_ms": None}
    times = {
        "native": {"median_ms": 2.0, "runs": 3, "peak_memory_mb": 1.0},
        "tiled": {"median_ms": 4.0, "runs": 3, "peak_memory_mb": 2.0},
        "triton": none | {"runs": None, "peak_memory_mb": None, "note": "needs CUDA"},
    }
    row = {
        "variant": VARIANTS["NLA"],
        "passes": "forward",
        "height": 32,
        "width": 32,
        "dtype": "float32",
        "device": "cpu",
        "auto": "native",
        "limit_ms": 1.0,
        "times": times,
    }
    content = {
        "settings": {"max_seconds": 1.0, "min_runs": 2, "max_runs": 1000, "seed": 0},
        "machine_limits": {"matmul_gflops": 80.0, "copy_gb_per_s": 10.0},
        "rows": [row],
        "other_cores": 0.0,
    }
    return _record(Implementations, "implementations", "cpu-float32-9", content | changes)


def scaling(
    laws: dict[str, tuple[float, float]],
    sides: tuple[int, ...] = (50, 100, 150, 200),
    skipped: dict[str, int] | None = None,
    *,
    fit_from: int = 10_000,
    identifier: str = "cpu-float32-2",
    **changes: Any,
) -> Scaling:
    """A scaling record: time and memory of each variant are 2 N^a and 3 N^b times 1e-6.

    A variant of ``skipped`` has no numbers from that side on.
    """
    rows = []
    for side in sides:
        for variant, (time, memory) in laws.items():
            if side >= (skipped or {}).get(variant, side + 1):
                rows.append(latency_row(variant, None, size=side, note="skipped, as it is slow"))
                continue
            n = side**2
            row = latency_row(variant, 2e-6 * n**time / 0.9, size=side)
            rows.append(row | {"peak_memory_mb": 3e-6 * n**memory})
    settings = {"warmup": 1, "min_runs": 3, "max_seconds": 20.0, "fit_from": fit_from}
    return _record(Scaling, "scaling", identifier, {"settings": settings, "rows": rows} | changes)


def gpu(rows: list[dict[str, Any]], **changes: Any) -> Gpu:
    """A piece of the GPU benchmark."""
    content = {"piece": "made-up", "settings": {"seconds": 1.0}, "rows": rows}
    return _record(Gpu, "gpu", "gpu-made-up", content | changes)


def redraw(psnrs: list[float], identifier: str = "made-up", **changes: Any) -> Redraw:
    """Quality of a network under draws; the first is the draw that it was trained with."""
    row = {"test_set": "Set5", "m": None, "ssim": 0.5, "images": 3}
    content = {
        "variant": VARIANTS["NLSA-r4"],
        "settings": {"network": "nlsa-r4-small-x4-s0", "draws": len(psnrs) - 1, "tile": None},
        "rows": [row | {"draw": draw, "psnr": psnr} for draw, psnr in enumerate(psnrs)],
    }
    return _record(Redraw, "redraw", identifier, content | changes)


def approximation(network: str | None, **changes: Any) -> Approximation:
    """An approximation record of a network's features, or of synthetic ones."""
    rows = [
        {"features": name, "n": n, "k": float(k), "m": m, "variance_closed": 10.0**k * n}
        | {"variance_orthogonal": 2.0 * k, "variance_orthogonal_std": 0.5}
        | {"variance_independent": 3.0 * k, "variance_independent_std": 0.5}
        for name in ("module 1", "all modules")
        for n in (16, 64)
        for m in (2, 128)
        for k in (2, 4)
    ]
    settings = {"sides": [4, 8], "draws": 2, "rounds": 8, "top": 16}
    described = network and {"name": network, "variant": VARIANTS["NLA"]}
    content = {"settings": settings | {"network": described}, "enla": rows}
    content |= {"exact": [], "nlsa": [], "network": []}
    return _record(Approximation, "approximation", "made-up", content | changes)

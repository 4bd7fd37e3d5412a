"""The table of modules: what each is, costs and gains."""

from __future__ import annotations

from collections.abc import Sequence

from ...config.variants import CORE_CHANNELS, Variant
from ...records.origin import describe_machine
from ...records.shapes import LatencyRow, RecordedVariant
from ..benches import Bench
from ..cells import (
    difference_cell,
    milliseconds,
    setting_text,
    variant_columns,
)
from ..settings import PAPER_SET, Setting, photographs, photographs_header
from .render import Table

_SIZE = 100


def modules_table(settings: Sequence[Setting], benches: Sequence[Bench]) -> Table | None:
    """A row for each module of ``attention_zoo`` that some record measured at its defaults.

    GFLOPs come from its cost record. Latency comes from the bench of a CPU in float32 with the most
    of these rows, then the newest. The PSNR difference comes from :func:`.settings.photographs`.

    Args:
        settings: all; they share the cost records.
        benches: all.

    Returns:
        None where no record is of such a module.
    """
    recorded = _recorded(settings, benches)
    if not recorded:
        return None
    costs = settings[0].cost_of if settings else {}
    bench = max(
        (b for b in benches if (b.row.device, b.row.dtype) == ("cpu", "float32")),
        key=lambda b: (
            sum(_timed_core(b, variant) is not None for variant in recorded),
            b.record.created,
        ),
        default=None,
    )
    setting = photographs(settings)
    rows, data = [], []
    for variant, module in recorded.items():
        cost = costs.get(variant)
        gflops = cost.parts.core.paper_gflops if cost else None
        timed = _timed_core(bench, variant) if bench else None
        latency = timed.mean_ms if timed else None
        psnr = setting.summary(variant, PAPER_SET) if setting else None
        rows.append(
            [
                *(module.name, module.label, module.source, module.growth),
                "" if gflops is None else f"{gflops:.3g}",
                milliseconds(latency),
                difference_cell(psnr),
                str(psnr.seeds) if psnr else "",
            ]
        )
        data.append(
            variant_columns(module.label, module)
            | {
                "source": module.source,
                "complexity": module.growth,
                "gflops": gflops,
                "latency_ms": latency,
                "psnr_db_difference": psnr and psnr.difference,
                "psnr_db_difference_low": psnr and psnr.low,
                "psnr_db_difference_high": psnr and psnr.high,
                "seeds": psnr and psnr.seeds,
            }
        )
    notes = [
        f"GFLOPs are those of the core at {_SIZE}×{_SIZE} with {CORE_CHANNELS} channels, in the "
        "paper's convention. Growth with N is what the method's authors state."
    ]
    if bench:
        notes.append(
            f"Latency is the mean of the core's forward pass at {_SIZE}×{_SIZE}, float32, on "
            f"{describe_machine(bench.record)}; see {bench.label}."
        )
    if setting:
        notes.append(
            f"PSNR is the difference to the baseline on {photographs_header(setting)} with "
            f"its 95 % interval; {setting_text(setting)}; see {setting.label}."
        )
    return Table(
        name="modules",
        caption="Modules of this suite, with their default options",
        notes=notes,
        headers=[
            ("", "--attn"),
            ("", "Method"),
            ("", "Source"),
            ("", "Growth"),
            ("Core", "GFLOPs"),
            ("Core", "ms"),
            (f"PSNR (dB) {photographs_header(setting)}", "difference to baseline"),
            ("", "seeds"),
        ],
        rows=rows,
        data=data,
    )


def _recorded(
    settings: Sequence[Setting], benches: Sequence[Bench]
) -> dict[Variant, RecordedVariant]:
    """Modules of the suite at their defaults as records describe them, in the order of names."""
    sources: list[Bench | Setting] = [*benches, *settings]
    found = {
        variant: module
        for source in sources
        for variant, module in source.recorded.items()
        if module.built_in and not module.changed
    }
    return {variant: found[variant] for variant in sorted(found, key=lambda v: v.name)}


def _timed_core(bench: Bench, variant: Variant) -> LatencyRow | None:
    return bench.find(variant, "core", "forward", _SIZE)

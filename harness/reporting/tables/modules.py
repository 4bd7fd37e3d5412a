"""The table of modules: what each is, costs and gains; from the registry and the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention_zoo import find_attention

from ...config.labels import built_in_attentions, variant_key
from ...config.variants import CORE_CHANNELS, Variant, create_core
from ...records.origin import describe_machine
from ..benches import Bench
from ..cells import difference_cell, milliseconds, setting_text, variant_columns
from ..settings import PAPER_SET, Setting
from .render import Table

_SIZE = 100


def modules_table(settings: Sequence[Setting], benches: Sequence[Bench]) -> Table:
    """A row for each module of ``attention_zoo`` with its default options.

    Latency is that of a CPU in float32 with the most of these rows, then the newest; the PSNR
    difference that of the setting with the most runs among those at x4 with Urban100 and a
    baseline.
    """
    keys = {name: variant_key(Variant(name).to_dict()) for name in built_in_attentions()}

    def timed_core(bench: Bench, name: str) -> dict[str, Any] | None:
        return bench.find(keys[name], "core", "forward", _SIZE)[0]

    bench = max(
        (b for b in benches if (b.row["device"], b.row["dtype"]) == ("cpu", "float32")),
        key=lambda b: (
            sum(timed_core(b, name) is not None for name in keys),
            b.records[-1]["created"],
        ),
        default=None,
    )
    setting = max(
        (
            s
            for s in settings
            if s.runs and s.config["scale"] == 4 and PAPER_SET in s.test_sets and s.baseline
        ),
        key=lambda s: (len(s.runs), s.label),
        default=None,
    )
    rows, data = [], []
    for name in keys:
        cls = find_attention(name)
        variant = Variant(name)
        gflops = 2 * create_core(variant).cost(_SIZE, _SIZE).core / 1e9
        timed = timed_core(bench, name) if bench else None
        latency = timed["mean_ms"] if timed else None
        psnr = setting.summary(keys[name], PAPER_SET) if setting else None
        rows.append(
            [
                name,
                variant.label,
                cls.source,
                cls.complexity,
                f"{gflops:.3g}",
                milliseconds(latency),
                difference_cell(psnr),
                str(psnr.seeds) if psnr else "",
            ]
        )
        data.append(
            variant_columns(variant.label, keys[name])
            | {
                "source": cls.source,
                "complexity": cls.complexity,
                "gflops": gflops,
                "latency_ms": latency,
                "psnr_db_difference": psnr and psnr.difference,
                "psnr_db_difference_low": psnr and psnr.low,
                "psnr_db_difference_high": psnr and psnr.high,
                "seeds": psnr and psnr.seeds,
            }
        )
    notes = [
        f"GFLOPs of the core at {_SIZE}×{_SIZE}, {CORE_CHANNELS} channels, in the paper's "
        "convention; growth with N as the method's authors state it."
    ]
    if bench:
        notes.append(
            f"Latency: mean of the core's forward pass at {_SIZE}×{_SIZE}, float32, on "
            f"{describe_machine(bench.records[-1])}; see {bench.label}."
        )
    if setting:
        notes.append(
            f"PSNR: difference to the baseline on {PAPER_SET} ×4 with its 95 % interval; "
            f"{setting_text(setting)}; see {setting.label}."
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
            (f"PSNR (dB) {PAPER_SET} ×4", "difference to baseline"),
            ("", "seeds"),
        ],
        rows=rows,
        data=data,
    )

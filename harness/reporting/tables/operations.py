"""Table 4: operation counts and quality."""

from __future__ import annotations

from ...records.origin import origin_note
from ...records.shapes import Cost, Counts
from ..cells import (
    INPUTS,
    PAPER_PSNR,
    READ,
    TRAINING_HEADERS,
    caption,
    fixed,
    measured_columns,
    number,
    quality_cells,
    quality_headers,
    setting_notes,
    training_cells,
    training_columns,
    variant_columns,
)
from ..labels import row_order
from ..settings import Setting, paper_table
from .render import Table

# Executed operations: by closed form, and by three public counters.
_COUNTED = ("executed", "fvcore", "ptflops", "torch")


def inserted_gflops(module: Counts | None) -> float | None:
    """GFLOPs of a module by the method's definition; older records have the executed ones alone."""
    if module is None:
        return None
    inserted = module.inserted_gflops
    return module.executed_gflops if inserted is None else inserted


def inserted_source(cost: Cost | None) -> str:
    """``closed form``, or ``counted``: by torch, of a plain module, which has no core either."""
    if cost is None:
        return ""
    return "counted" if cost.parts.core.executed_gflops is None else "closed form"


def inserted_cell(cost: Cost | None) -> str:
    """GFLOPs of a module, and a mark where they were counted."""
    cell = fixed(inserted_gflops(cost.parts.module if cost else None), 2)
    return f"{cell} (counted)" if cell and inserted_source(cost) == "counted" else cell


def table4(setting: Setting) -> Table:
    """Operation counts and quality: the paper's rows, then further variants, then the input."""
    paper = {row["method"]: row for row in paper_table(4)}
    rows, data, summaries = [], [], []
    order = row_order(setting.counted_labels, list(paper))
    for label, variant in order:
        trained = setting.runs_of.get(variant, []) if variant else []
        printed = paper.get(label, {"gflops": "", "psnr_db": ""})
        cost = setting.cost_of.get(variant) if variant else None
        core, module = (cost.parts.core, cost.parts.module) if cost else (None, None)
        psnr, ssim = setting.qualities(variant, setting.test_set)
        summaries.append(psnr)
        gflops, inserted = _gflops(core, "paper"), inserted_gflops(module)
        rows.append(
            [
                label,
                printed["gflops"],
                fixed(gflops, 2),
                *(fixed(_gflops(core, name), 3) for name in _COUNTED),
                inserted_cell(cost),
                printed["psnr_db"],
                *quality_cells(psnr, ssim),
                *training_cells(trained),
            ]
        )
        data.append(
            variant_columns(label, setting.recorded[variant] if variant else None)
            | {"gflops_paper": number(printed["gflops"]), "gflops": gflops}
            | {f"gflops_{name}": _gflops(core, name) for name in _COUNTED}
            | {"gflops_inserted": inserted, "gflops_inserted_source": inserted_source(cost) or None}
            | {f"gflops_inserted_{name}": _gflops(module, name) for name in _COUNTED}
            | {"psnr_db_paper": number(printed["psnr_db"])}
            | training_columns(trained)
            | measured_columns(setting, psnr, ssim)
        )
    notes = [
        "Columns marked paper are published figures, all others measured here. GFLOPs are 2 × "
        "multiply-accumulates / 1e9 at 100×100. " + READ,
        "GFLOPs are 2 × multiply-accumulates / 1e9 of one forward pass over 100×100 positions.",
        "Core is the attention operation alone, with 64 channels: as the paper prints it; ours, by "
        "closed form in the paper's convention; the matrix products executed; and three public "
        "counters, whose blind spots the cost records name. Inserted is the whole module with its "
        "projections, with 256 channels, by the method's definition; the CSV also has the executed "
        "and counted ones.",
        "The paper's text calls ENLCA-m16 100 times more efficient than NLSA; its table has "
        "5.08 / 0.08 = 64 times.",
        *setting_notes(setting, summaries, variants=[variant for _, variant in order]),
    ]
    if any(inserted_source(cost) == "counted" for cost in setting.cost_of.values()):
        notes.insert(0, "(counted): by torch's counter, as a plain module has no closed form.")
    if setting.cost_of:
        notes.append(origin_note(list(setting.cost_of.values()), "Operation counts"))
    if setting.test_set:
        untrained = INPUTS[setting.input_name]
        psnr, ssim = (
            setting.input_quality(setting.test_set, metric) for metric in ("psnr", "ssim")
        )
        rows.append([untrained, *[""] * 8, *quality_cells(psnr, ssim, seeds=False), "", ""])
        empty = dict.fromkeys(data[0]) | {"method": untrained}
        data.append(empty | measured_columns(setting, psnr, ssim, seeds=False))
    return Table(
        name="table4",
        label=f"{setting.label}-table4",
        caption=caption("Table 4: operation counts and quality", setting),
        notes=notes,
        headers=[
            ("", "Method"),
            *(("Core GFLOPs", h) for h in ("paper", "ours", *_COUNTED)),
            ("Inserted", "GFLOPs"),
            ("PSNR (dB)", PAPER_PSNR),
            *quality_headers(setting),
            *TRAINING_HEADERS,
        ],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


def _gflops(part: Counts | None, name: str) -> float | None:
    return getattr(part, f"{name}_gflops") if part else None

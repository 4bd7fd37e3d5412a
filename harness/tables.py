"""Tables 1 to 6 of the ENLCA paper, quality, scaling and speed, from the records alone.

``python -m harness.tables`` writes each as CSV, Markdown and LaTeX, with the paper's figures
beside the measured ones. A cell that was not measured is empty. No model, image or GPU is used,
and the same records give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from .cells import (
    PAPER_NOTE,
    PAPER_PSNR,
    caption,
    fixed,
    measured_columns,
    milliseconds,
    number,
    quality_cells,
    quality_headers,
    setting_notes,
    variant_columns,
)
from .claims import claims_table
from .errors import UserError, command_line, usage_errors
from .latency_tables import find_benches, latency_details, table5
from .module_tables import modules_table
from .quality_tables import quality_table, table1, table2, table3
from .records import load_records
from .redraws import redraw_table
from .render import Table, write_table
from .scaling_report import scaling_table
from .settings import (
    PAPER_SET,
    Record,
    Setting,
    find_settings,
    origin_note,
    paper_table,
    row_order,
    variant_key,
    variant_labels,
)
from .signals import resumable
from .speed_tables import find_speeds, speed_table
from .statistics import Summary

# Rows of Table 6 as the paper names them, and their labels here.
_TABLE6 = {
    "baseline": "Baseline",
    "Non-Local": "NLA",
    "Criss-Cross": "Criss-Cross",
    "NLSA": "NLSA-r4",
    "ENLCA": "ENLCA-m128",
}
_COUNTERS = ("fvcore", "ptflops", "torch")


def inserted_gflops(module: dict[str, Any]) -> float | None:
    """GFLOPs of a cost record's module by the method's definition; older records have no others."""
    found: float | None = module.get("inserted_gflops", module.get("executed_gflops"))
    return found


def table4(setting: Setting) -> Table:
    """Operation counts and quality: the paper's rows, then further variants, then bicubic."""
    paper = {row["method"]: row for row in paper_table(4)}
    rows, data, summaries = [], [], []
    for label, key in row_order(setting.counted_labels, list(paper)):
        printed = paper.get(label, {"gflops": "", "psnr_db": ""})
        parts = setting.cost_of[key]["parts"] if key in setting.cost_of else {}
        core, module = parts.get("core", {}), parts.get("module", {})
        psnr = setting.summary(key, setting.test_set)
        ssim = setting.summary(key, setting.test_set, "ssim")
        summaries.append(psnr)
        rows.append(
            [
                label,
                printed["gflops"],
                fixed(core.get("paper_gflops"), 2),
                fixed(core.get("executed_gflops"), 3),
                *(fixed(core.get(f"{counter}_gflops"), 3) for counter in _COUNTERS),
                fixed(inserted_gflops(module), 2),
                printed["psnr_db"],
                *quality_cells(psnr, ssim),
            ]
        )
        data.append(
            variant_columns(label, key)
            | {
                "gflops_paper": number(printed["gflops"]),
                "gflops": core.get("paper_gflops"),
                "gflops_executed": core.get("executed_gflops"),
                **{f"gflops_{counter}": core.get(f"{counter}_gflops") for counter in _COUNTERS},
                "gflops_inserted": inserted_gflops(module),
                "gflops_inserted_executed": module.get("executed_gflops"),
                **{
                    f"gflops_inserted_{counter}": module.get(f"{counter}_gflops")
                    for counter in _COUNTERS
                },
                "psnr_db_paper": number(printed["psnr_db"]),
            }
            | measured_columns(setting, psnr, ssim)
        )
    notes = [
        "GFLOPs = 2 × multiply-accumulates / 1e9 of one forward pass over 100×100 positions. "
        "Core: the attention operation alone, 64 channels (paper: as printed; ours: closed form in "
        "the paper's convention; executed: matrix products really run; then three public "
        "counters, whose blind spots the cost records name). Inserted: the whole module with its "
        "projections, 256 channels, by the method's definition; the CSV also has what is executed.",
        "The paper's text calls ENLCA-m16 100 times more efficient than NLSA; its table has "
        "5.08 / 0.08 = 64 times.",
        *setting_notes(setting, summaries),
    ]
    if setting.cost_of:
        notes.append(origin_note(list(setting.cost_of.values()), "Operation counts"))
    if setting.test_set:
        psnr, ssim = (setting.bicubic(setting.test_set, metric) for metric in ("psnr", "ssim"))
        rows.append(["Bicubic", *[""] * 8, *quality_cells(psnr, ssim, seeds=False)])
        empty = dict.fromkeys(data[0]) | {"method": "Bicubic"}
        data.append(empty | measured_columns(setting, psnr, ssim, seeds=False))
    return Table(
        name="table4",
        label=f"{setting.label}-table4",
        caption=caption("Table 4: operation counts and quality", setting),
        notes=notes,
        headers=[
            ("", "Method"),
            *(("Core GFLOPs", h) for h in ("paper", "ours", "executed", *_COUNTERS)),
            ("Inserted", "GFLOPs"),
            ("PSNR (dB)", PAPER_PSNR),
            *quality_headers(setting),
        ],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


def table6(setting: Setting) -> Table:
    """PSNR with Criss-Cross attention: the paper's five rows, then other Criss-Cross variants."""
    paper = {_TABLE6[row["method"]]: row for row in paper_table(6)}
    others = {
        key: label
        for key, label in setting.labels.items()
        if json.loads(key)[0] == "criss-cross" or label in paper
    }
    rows, data, summaries = [], [], []
    for label, key in row_order(others, list(paper)):
        printed = paper.get(label, {"method": "", "psnr_db": ""})
        psnr = setting.summary(key, setting.test_set)
        ssim = setting.summary(key, setting.test_set, "ssim")
        summaries.append(psnr)
        rows.append([label, printed["psnr_db"], *quality_cells(psnr, ssim)])
        data.append(
            variant_columns(label, key)
            | {
                "method_paper": printed["method"] or None,
                "psnr_db_paper": number(printed["psnr_db"]),
            }
            | measured_columns(setting, psnr, ssim)
        )
    return Table(
        name="table6",
        label=f"{setting.label}-table6",
        caption=caption("Table 6: comparison with Criss-Cross attention", setting),
        notes=[
            "The paper's baseline, Non-Local, NLSA and ENLCA are the rows Baseline, NLA, NLSA-r4 "
            "and ENLCA-m128. It does not say how often Criss-Cross is repeated; once here.",
            *setting_notes(setting, summaries),
        ],
        headers=[("", "Method"), ("PSNR (dB)", PAPER_PSNR), *quality_headers(setting)],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


# -- the short table of a run -----------------------------------------------------------------


def summary(runs: Sequence[Record], costs: Sequence[Record], latency: Record | None) -> RichTable:
    """The short table that a run prints: cost, latency and quality beside the paper's figures.

    Args:
        runs: run records of one setting; may be empty.
        costs: cost records.
        latency: one latency record.
    """
    setting = Setting(runs, costs)
    rows = latency["rows"] if latency else []
    times = {
        variant_key(row["variant"]): row["mean_ms"]
        for row in rows
        if (row["part"], row["passes"], row["height"], row["width"], row["batch"])
        == ("core", "forward", 100, 100, 1)
    }
    labels = variant_labels(r["variant"] for r in (*runs, *costs, *rows))
    paper = {row["method"]: row for row in paper_table(4)}
    table = RichTable(
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=PAPER_NOTE,
        caption_justify="left",
    )
    words = ["method", *(word for label in labels.values() for word in label.split())]
    table.add_column("method", min_width=max(map(len, words)))  # so that no word is broken
    for header in ("core\nGFLOPs", "paper's\nGFLOPs", "module\nGFLOPs", "core ms\n100×100"):
        table.add_column(header, justify="right", no_wrap=True)
    for name in setting.test_sets:
        title = Text(f"{name}\n×{setting.config['scale']}\nPSNR / SSIM")
        # A narrow terminal wraps after the slash.
        table.add_column(title, justify="right", min_width=max(7, len(name)))
    table.add_column(f"paper's\n{PAPER_SET}\n×4 PSNR", justify="right", no_wrap=True)
    for label, key in row_order(labels, list(paper)):
        if key is None:
            continue
        parts = setting.cost_of[key]["parts"] if key in setting.cost_of else {}
        printed = paper.get(label, {})
        table.add_row(
            Text(label),
            fixed(parts.get("core", {}).get("paper_gflops"), 2),
            printed.get("gflops", ""),
            fixed(inserted_gflops(parts.get("module", {})), 2),
            milliseconds(times.get(key)),
            *(
                _pair(setting.summary(key, name), setting.summary(key, name, "ssim"))
                for name in setting.test_sets
            ),
            printed.get("psnr_db", ""),
        )
    if setting.runs:
        pairs = ((setting.bicubic(n), setting.bicubic(n, "ssim")) for n in setting.test_sets)
        table.add_section()
        table.add_row("bicubic", "", "", "", "", *(_pair(*pair) for pair in pairs), "")
    return table


def _pair(psnr: Summary | None, ssim: Summary | None) -> str:
    return f"{psnr.mean:.2f} / {ssim.mean:.4f}" if psnr and ssim else ""


# -- command line -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Write Tables 1 to 6, quality and speed as CSV, Markdown and LaTeX from the records alone."""

    results: Path = Path("results")
    """Folder that holds records/."""
    preset: str | None = None
    """Only runs of this preset."""
    output: Path | None = None
    """Where the tables go; by default tables/ in the results folder."""


def build(
    runs: Sequence[Record], costs: Sequence[Record], latency: Sequence[Record]
) -> list[tuple[str, Table]]:
    """Every table that the records give, each with its folder ("" or the setting's)."""
    settings = find_settings(runs, costs)
    tables = []
    for setting in settings:
        made = [table4(setting)]
        if setting.runs:
            few = [make(setting) for make in (claims_table, table1, table2, table3)]
            made = [*filter(None, few), *made, table6(setting), quality_table(setting)]
        tables += [(setting.label, table) for table in made]
    nearest = settings[0] if settings else Setting([], [])
    benches = find_benches(latency)
    for bench in benches:
        tables += [("", table5(bench, nearest)), ("", latency_details(bench))]
    return [*tables, ("", modules_table(settings, benches))]


def all_tables(options: Options) -> list[tuple[str, Table]]:
    """Every table of a results folder, each with its folder ("" or the setting's).

    Raises:
        UserError: no records, none of the preset, or a bad record.
    """
    kinds = ("run", "cost", "latency", "scaling", "speed", "redraw")
    records = [load_records(options.results, kind) for kind in kinds]
    if not any(records):
        raise UserError(
            f"no records under {options.results / 'records'}; run python -m harness.run first"
        )
    runs, costs, latency, scaling, speed, redraws = records
    if options.preset is not None:
        found = sorted({run["config"]["preset"] for run in runs})
        runs = [run for run in runs if run["config"]["preset"] == options.preset]
        if not runs:
            raise UserError(
                f"no runs of preset {options.preset!r} under {options.results / 'records'}; "
                f"there are runs of: {', '.join(found) or 'no preset'}"
            )
    tables = build(runs, costs, latency) + [("", scaling_table(record)) for record in scaling]
    tables += [("", speed_table(rows)) for rows in find_speeds(speed)]
    return tables + ([("", redraw_table(redraws))] if redraws else [])


def write_tables(options: Options) -> list[tuple[Table, list[Path]]]:
    """Build and write all tables; returns each with its files.

    Raises:
        UserError: as :func:`all_tables`, or a folder that cannot be written.
    """
    output = options.output or options.results / "tables"
    return [(table, write_table(table, output / folder)) for folder, table in all_tables(options)]


@command_line
@resumable("harness.tables", anew=True)
def main() -> None:
    """``python -m harness.tables``."""
    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.tables")
    written = write_tables(options)
    for _, paths in written:
        for path in paths:
            print(path)
    for table, _ in written:
        if table.name == "table4":
            print(f"\n{table.caption}\n\n{table.markdown_grid()}", end="")


if __name__ == "__main__":
    main()

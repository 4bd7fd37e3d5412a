"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...records.shapes import Cost, Gpu, Latency, LatencyRow, Run
from ...records.store import setting_label
from ..cells import INPUTS, PAPER_NOTE, difference_cell, fixed, milliseconds, training_cells
from ..labels import recorded_labels, row_order, task_labels, variant_of
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary
from .operations import inserted_cell
from .render import minus
from .tasks import task_summary


def summary(runs: Sequence[Run], costs: Sequence[Cost], latency: Latency | None) -> RichTable:
    """The short table that a run prints: cost, latency and quality beside the paper's figures.

    Print it with :func:`.base.printing.print_table`. A task other than the default is the table's
    title. It has no figures of the paper, and costs only where they were counted. Seeds, intervals
    and differences have columns where there is something to say.

    Args:
        runs: run records of one setting; may be empty.
        costs: cost records.
        latency: one latency record.
    """
    setting = Setting(runs, costs)
    task = setting.config.image_task if runs else None
    printed = task is None
    rows = latency.rows if latency else []
    times = {
        setting.variant_of(row.variant): row.mean_ms
        for row in rows
        if (row.part, row.passes, row.height, row.width, row.batch)
        == ("core", "forward", 100, 100, 1)
    }
    described: list[Run | Cost | LatencyRow] = [*runs, *costs, *rows]
    variants, weight = [one.variant for one in described], setting.res_scale
    labels = recorded_labels(variants) if weight is None else task_labels(variants, weight)
    paper = {row["method"]: row for row in paper_table(4)}
    names = setting.test_sets
    inputs = {
        name: (setting.input_quality(name), setting.input_quality(name, "ssim")) for name in names
    }
    found = [psnr for variant in labels for n in names if (psnr := setting.summary(variant, n))]
    compared = any(psnr.difference is not None for psnr in found)
    several = any(psnr.seeds > 1 for psnr in found)
    heads = {
        "params": bool(runs),
        "training\ntime": bool(runs),
        "core\nGFLOPs": bool(costs),
        "paper's\nGFLOPs": printed,
        "module\nGFLOPs": bool(costs),
        "core ms\n100×100": bool(times),
        "seeds": several,
    }
    shown = list(heads.values())
    table = RichTable(
        title=Text(task.label) if task else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=Text(_caption(found, printed, compared)),
        caption_justify="left",
    )
    table.add_column("method")
    for header, is_shown in heads.items():
        if is_shown:
            table.add_column(header, justify="right", no_wrap=True)
    # The paper's PSNR stands beside ours of its test set, if there is one.
    beside = PAPER_SET if printed and PAPER_SET in names and setting.config.scale == 4 else None
    for name in names:
        scale = f" ×{setting.config.scale}" if setting.config.scale > 1 else ""
        of_set = ["PSNR / SSIM", *(["difference"] if compared else [])]
        for header in [*of_set, *(["paper's PSNR"] if name == beside else [])]:
            table.add_column(Text(f"{name}{scale}\n{header}"), justify="right", no_wrap=True)
    if printed and not beside:
        table.add_column(f"paper's PSNR\n{PAPER_SET} ×4", justify="right", no_wrap=True)

    def quality(
        of: Callable[[str], tuple[Summary | None, Summary | None]], of_paper: str
    ) -> Iterator[str]:
        for name in names:
            psnr, ssim = of(name)
            yield _pair(psnr, ssim)
            if compared:
                yield minus(difference_cell(psnr))
            if name == beside:
                yield of_paper
        if printed and not beside:
            yield of_paper

    for label, variant in row_order(labels, list(paper)):
        if variant is None:
            continue
        cost, of_paper = setting.cost_of.get(variant), paper.get(label, {})
        trained = setting.runs_of.get(variant, [])
        cells = [
            *training_cells(trained),
            fixed(cost.parts.core.paper_gflops if cost else None, 2),
            of_paper.get("gflops", ""),
            inserted_cell(cost),
            milliseconds(times.get(variant)),
            str(len(trained)) if trained else "",
        ]
        table.add_row(
            Text(label),
            *(cell for cell, is_shown in zip(cells, shown, strict=True) if is_shown),
            *quality(partial(setting.qualities, variant), of_paper.get("psnr_db", "")),
        )
    if setting.runs:
        table.add_section()
        table.add_row(
            INPUTS[setting.input_name].lower(), *[""] * sum(shown), *quality(inputs.__getitem__, "")
        )
    return table


def summaries(runs: Sequence[Run], costs: Sequence[Cost]) -> Iterator[RichTable]:
    """A table as a run prints it for each setting and task of these runs.

    The baseline of a warm start alone is another setting, which says nothing here.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting_label(run), []).append(run)
    for members in groups.values():
        alone = len(groups) > 1 and {run.variant.name for run in members} == {"none"}
        if alone:
            continue
        if any(run.scores for run in members):
            yield task_summary(members)
            continue
        wanted = {variant_of(run.variant) for run in members}
        yield summary(members, [cost for cost in costs if variant_of(cost.variant) in wanted], None)


def _caption(summaries: Sequence[Summary], printed: bool, compared: bool) -> str:
    """What the columns do not say themselves."""
    notes = [PAPER_NOTE] if printed else []
    if compared:
        note = "Differences to the baseline are paired, with 95 % intervals."
        if any(psnr.paired_seeds == 1 for psnr in summaries):
            note += " Those of one seed leave out the noise of training."
        notes.append(note)
    return "\n".join(notes)


def latency_tables(record: Latency) -> Iterator[RichTable]:
    """A table for each part, pass and size of a latency record, with the speed relative to NLA."""
    labels = recorded_labels(row.variant for row in record.rows)
    for title, rows in groupby(
        record.rows, key=lambda row: f"{row.part}, {row.passes}, {row.height}x{row.width}"
    ):
        table = RichTable(title=Text(title), title_justify="left")
        table.add_column("Method")
        for heading in ("Median ms", "Mean", "IQR", "Min", "Runs", "Peak MB", "NLA / it"):
            table.add_column(heading, justify="right")
        members = list(rows)
        exact = [row for row in members if row.variant.name == "nla"]
        plain = min(exact, key=lambda row: len(variant_of(row.variant).options), default=None)
        nla = plain and plain.median_ms
        for row in members:
            times = (row.median_ms, row.mean_ms, row.iqr_ms, row.min_ms)
            table.add_row(
                Text(labels[variant_of(row.variant)]),
                *(fixed(time, 3) for time in times),
                Text(str(row.runs) if row.runs else row.note or ""),
                fixed(row.peak_memory_mb, 1),
                fixed(nla / row.median_ms if nla and row.median_ms else None, 2),
            )
        yield table


def gpu_tables(record: Gpu | Latency) -> Iterator[RichTable]:
    """What a piece of the GPU benchmark measured, a column for each number."""
    if isinstance(record, Latency):
        yield from latency_tables(record)
        return
    texts = ("name", "result", "note", "graph_note")
    columns = dict.fromkeys(
        key
        for row in record.rows
        for key, value in row.items()
        if key in texts or isinstance(value, float)
    )
    table = RichTable(title=Text(record.piece), title_justify="left")
    for column in columns:
        header = Text(column.replace("_", " "))
        table.add_column(header, justify="left" if column in texts else "right")
    for row in record.rows:
        values = (row.get(column) for column in columns)
        table.add_row(*(Text(f"{v:.4g}" if isinstance(v, float) else str(v or "")) for v in values))
    yield table


def _pair(psnr: Summary | None, ssim: Summary | None) -> str:
    return f"{psnr.mean:.2f} / {ssim.mean:.4f}" if psnr and ssim else ""

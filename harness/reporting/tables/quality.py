"""Tables 1, 2, 3 and 6 of the ENLCA paper, and every trained variant on every test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ...config.rows import TableName, table_rows
from ...config.variants import Variant, with_options
from ...records.origin import plural
from ..cells import (
    INPUTS,
    PAPER_PSNR,
    READ,
    TRAINING_HEADERS,
    caption,
    measured_columns,
    measured_header,
    number,
    paper_note,
    psnr_cell,
    quality_cells,
    quality_headers,
    setting_notes,
    training_cells,
    training_columns,
    variant_columns,
)
from ..labels import row_order
from ..published import SOURCE, beside, not_comparable
from ..settings import Setting, paper_table
from ..statistics import Summary, summarise, versus
from .render import Table

#: How to read a table with the paper's columns.
READ_PAPER = f"Columns marked paper are published. {READ}"
# Test set of the paper's Tables 2 and 3.
_ABLATION_SET = "Set5"
_ABLATION_PSNR = f"{_ABLATION_SET} ×4 (paper)"
_TABLE2 = {"base": "base", "enla": "ENLA", "k": "k", "contrastive_learning": "contrastive learning"}
# Labels of the ablations' modules, for rows that no record describes.
_LABELS = {"none": "Baseline", "enla": "ENLA-m128", "enlca": "ENLCA-m128"}
# Rows of Table 6 as the paper names them, and their labels here.
_TABLE6 = {
    "baseline": "Baseline",
    "Non-Local": "NLA",
    "Criss-Cross": "Criss-Cross",
    "NLSA": "NLSA-r4",
    "ENLCA": "ENLCA-m128",
}
_IN_CSV = "The CSV also has the differences to the baseline in PSNR and SSIM, with their intervals."


def table1(setting: Setting) -> Table | None:
    """Published methods, then those measured, on the five benchmarks at the setting's scale.

    None where the paper lacks the scale, or the setting all of the benchmarks.
    """
    scale = setting.config.scale
    paper = {
        (row["method"], row["dataset"]): row for row in paper_table(1) if row["scale"] == str(scale)
    }
    sets = list(dict.fromkeys(dataset for _, dataset in paper))
    if not set(sets) & set(setting.test_sets):
        return None
    rows, data, summaries = [], [], []
    methods = list(dict.fromkeys(method for method, _ in paper))
    for method in methods:
        cells = [method, f"×{scale}"]
        for name in sets:
            printed = paper[method, name]
            cells.append(_joined([printed["psnr_db"], printed["ssim"]]))
            data.append(
                variant_columns(method, None)
                | {
                    "source": "published",
                    "psnr_db_paper": number(printed["psnr_db"]),
                    "ssim_paper": number(printed["ssim"]),
                }
                | training_columns([])
                | dict.fromkeys(measured_columns(setting, None, None))
                | {"test_set": name, "scale": scale}
            )
        rows.append([*cells, "", "", ""])
    ablations = {variant for table in get_args(TableName) for variant in table_rows(table)}
    shown = [
        (label, variant)
        for label, variant in setting.trained
        if variant not in ablations or label == setting.recorded[variant].label
    ]
    for label, variant in shown:
        cells = [f"{label} (measured, preset {setting.config.preset})", f"×{scale}"]
        for name in sets:
            psnr, ssim = setting.qualities(variant, name if name in setting.test_sets else None)
            summaries.append(psnr)
            cells.append(_joined(quality_cells(psnr, ssim)[:2]))
            data.append(
                variant_columns(label, setting.recorded[variant])
                | {"source": "measured", "psnr_db_paper": None, "ssim_paper": None}
                | training_columns(setting.runs_of[variant])
                | measured_columns(setting, psnr, ssim, test_set=name)
            )
        trained = setting.runs_of[variant]
        rows.append([*cells, str(len(trained)), *training_cells(trained)])
    left_out = len(setting.trained) - len(shown)
    return Table(
        name="table1",
        label=f"{setting.label}-table1",
        caption=caption(
            "Table 1: published methods and those measured here",
            setting,
            ", ".join(setting.test_sets),
        ),
        notes=[
            f"Rows not marked measured are published, not measured here. {READ}",
            *setting_notes(
                setting,
                summaries,
                "EDSR, NLSN and ENLCN have 32 blocks × 256 channels and learned from DIV2K, ENLCN "
                "for 1000 epochs.",
                variants=[variant for _, variant in shown],
            ),
            _IN_CSV,
            *(
                [
                    f"Not shown: {plural(left_out, 'variant')} of the ablations, with options that "
                    "the plain label does not name; the table quality has them."
                ]
                if left_out
                else []
            ),
        ],
        headers=[
            *(("", header) for header in ("Method", "Scale")),
            *((name, "PSNR / SSIM") for name in sets),
            ("", "seeds"),
            *TRAINING_HEADERS,
        ],
        rows=rows,
        data=data,
        rule_after=len(methods),
    )


def table2(setting: Setting) -> Table | None:
    """ENLCA's components switched on one after the other; None without two rows of its own."""
    ablation = _ablation(setting, 2)
    if not ablation:
        return None
    name = setting.nearest_set(_ABLATION_SET)
    rows, data = [], []
    for row in ablation:
        on = [row.printed[column] == "1" for column in _TABLE2]
        rows.append(
            [
                row.label,
                *("✓" if component else "–" for component in on),
                row.printed["psnr_db"],
                *quality_cells(row.psnr, row.ssim),
            ]
        )
        data.append(
            _variant_columns(setting, row)
            | {column: int(component) for column, component in zip(_TABLE2, on, strict=True)}
            | {"psnr_db_paper": number(row.printed["psnr_db"])}
            | measured_columns(setting, row.psnr, row.ssim, test_set=name)
        )
    return Table(
        name="table2",
        label=f"{setting.label}-table2",
        caption=caption("Table 2: components of ENLCA", setting, name),
        notes=[
            READ_PAPER,
            "Rows without k have k = 1, no amplification, in the attention (Eq. 3) and in the "
            "contrastive loss (Eq. 8).",
            *setting_notes(
                setting,
                [row.psnr for row in ablation],
                paper_note(
                    _ABLATION_SET,
                    "; the paper does not say for how long, but the last row's 32.48 dB is Table "
                    "3's after 200 epochs and not Table 1's after 1000 epochs (32.67 dB)",
                ),
                variants=[row.variant for row in ablation],
            ),
        ],
        headers=[
            ("", "Method"),
            *(("Components", component) for component in _TABLE2.values()),
            ("PSNR (dB)", _ABLATION_PSNR),
            *quality_headers(setting, name),
        ],
        rows=rows,
        data=data,
    )


def table3(setting: Setting) -> Table | None:
    """PSNR over n1 (rows) and n2 (columns); None without two rows of its own."""
    ablation = _ablation(setting, 3)
    if not ablation:
        return None
    name = setting.nearest_set(_ABLATION_SET)
    best = _best(setting, ablation, name or "")
    grid: dict[str, list[str]] = {}
    data = []
    for row in ablation:
        n1, n2 = row.printed["n1_percent"], row.printed["n2_percent"]
        measured = psnr_cell(row.psnr) + (" *" if row.variant == best else "")
        grid.setdefault(n1, []).extend([row.printed["psnr_db"], measured])
        data.append(
            _variant_columns(setting, row)
            | {
                "n1_percent": number(n1),
                "n2_percent": number(n2),
                "psnr_db_paper": number(row.printed["psnr_db"]),
            }
            | measured_columns(setting, row.psnr, row.ssim, test_set=name)
        )
    return Table(
        name="table3",
        label=f"{setting.label}-table3",
        caption=caption("Table 3: PSNR (dB) by n1 and n2 of the contrastive loss", setting, name),
        notes=[
            "* best: its paired difference to every other measured cell is above 0, by 95 % "
            "intervals over images and seeds."
            if best
            else "No cell is best: that takes paired differences above 0 to all others, by 95 % "
            "intervals over two or more seeds.",
            "Columns marked paper are published figures.",
            *setting_notes(
                setting,
                [row.psnr for row in ablation],
                paper_note(
                    _ABLATION_SET,
                    " for 200 epochs, which are 200000 steps of the preset paper",
                ),
                variants=[row.variant for row in ablation],
            ),
            _IN_CSV,
        ],
        headers=[
            ("", "n1"),
            *(
                (f"n2 = {n2} %", header)
                for n2 in dict.fromkeys(row.printed["n2_percent"] for row in ablation)
                for header in ("paper", measured_header(setting, name))
            ),
        ],
        rows=[[f"{n1} %", *cells] for n1, cells in grid.items()],
        data=data,
    )


def table6(setting: Setting) -> Table:
    """PSNR with Criss-Cross attention: the paper's five rows, then other Criss-Cross variants."""
    paper = {_TABLE6[row["method"]]: row for row in paper_table(6)}
    shown = {
        variant: label
        for variant, label in setting.labels.items()
        if variant.name == "criss-cross" or label in paper
    }
    rows, data, summaries = [], [], []
    order = row_order(shown, list(paper))
    for label, variant in order:
        printed = paper.get(label, {"method": "", "psnr_db": ""})
        psnr, ssim = setting.qualities(variant, setting.test_set)
        summaries.append(psnr)
        trained = setting.runs_of.get(variant, []) if variant else []
        rows.append(
            [label, printed["psnr_db"], *quality_cells(psnr, ssim), *training_cells(trained)]
        )
        data.append(
            variant_columns(label, setting.recorded[variant] if variant else None)
            | {
                "method_paper": printed["method"] or None,
                "psnr_db_paper": number(printed["psnr_db"]),
            }
            | training_columns(trained)
            | measured_columns(setting, psnr, ssim)
        )
    return Table(
        name="table6",
        label=f"{setting.label}-table6",
        caption=caption("Table 6: comparison with Criss-Cross attention", setting),
        notes=[
            READ_PAPER,
            "The paper's baseline, Non-Local, NLSA and ENLCA are the rows Baseline, NLA, NLSA-r4 "
            "and ENLCA-m128. The paper does not say how often it repeats Criss-Cross; here it "
            "runs once.",
            *setting_notes(setting, summaries, variants=[variant for _, variant in order]),
        ],
        headers=[
            ("", "Method"),
            ("PSNR (dB)", PAPER_PSNR),
            *quality_headers(setting),
            *TRAINING_HEADERS,
        ],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


def quality_table(setting: Setting) -> Table:
    """PSNR and SSIM of every trained variant on every test set; the CSV has one row for each.

    Published methods stand above them, if their figures are of the same images.
    """
    rows, data, summaries = [], [], []
    others = _published(setting)
    source = {"source": "measured"} if others else {}
    untrained = INPUTS[setting.input_name]
    variants: list[tuple[str, Variant | None]] = [(untrained, None), *setting.trained]
    for label, variant in variants:
        cells = [label]
        for name in setting.test_sets:
            psnr, ssim = (
                setting.summary(variant, name, metric)
                if variant
                else setting.input_quality(name, metric)
                for metric in ("psnr", "ssim")
            )
            summaries.append(psnr if variant else None)
            cells += quality_cells(psnr, ssim)[:3]
            data.append(
                variant_columns(label, setting.recorded[variant] if variant else None)
                | source
                | measured_columns(setting, psnr, ssim, seeds=variant is not None, test_set=name)
            )
        rows.append([*cells, str(len(setting.runs_of[variant])) if variant else ""])
        if not variant:
            rows += [row for row, _ in others]
            data += [columns for _, more in others for columns in more]
    return Table(
        name="quality",
        label=f"{setting.label}-quality",
        caption=caption("Quality of every trained variant", setting, ", ".join(setting.test_sets)),
        # Without the note on the paper's columns.
        notes=[
            READ,
            *(_published_notes(setting) if others else []),
            *_task_notes(setting),
            *setting_notes(setting, summaries, variants=setting.runs_of)[1:],
        ],
        headers=[
            ("", "Method"),
            *(
                (measured_header(setting, name), header)
                for name in setting.test_sets
                for header in ("PSNR (dB)", "SSIM", "difference to baseline")
            ),
            ("", "seeds"),
        ],
        rows=rows,
        data=data,
        rule_after=1 + len(others),
    )


def _published_notes(setting: Setting) -> list[str]:
    """Where the published rows are from."""
    notes = [f"Rows marked published are figures of {SOURCE}."]
    for name in setting.test_sets:
        if beside(setting.runs, name) and not_comparable(name):
            notes.append(
                f"{name}'s greyscale file is in these rows' means with its grey values as luma, "
                "which costs bicubic 1.3 dB there; their differences leave it out."
            )
    return notes


def _published(setting: Setting) -> list[tuple[list[str], list[dict[str, Any]]]]:
    """Cells and CSV columns of each published method but bicubic, on every test set."""
    of_set = {name: beside(setting.runs, name) for name in setting.test_sets}
    methods = dict.fromkeys(method for found in of_set.values() for method in found)
    made = []
    for method in methods:
        if method == "Bicubic":
            continue
        cells, data = [f"{method} (published)"], []
        for name, found in of_set.items():
            figures = found.get(method, {})
            psnr, ssim = (
                versus(
                    setting.baseline,
                    {i: getattr(one, metric) for i, one in figures.items()},
                    name,
                    metric,
                    without=not_comparable(name),
                )
                for metric in ("psnr", "ssim")
            )
            cells += quality_cells(psnr, ssim)[:3]
            data.append(
                variant_columns(cells[0], None)
                | {"source": "published"}
                | measured_columns(setting, psnr, ssim, seeds=False, test_set=name)
            )
        made.append(([*cells, ""], data))
    return made


def _task_notes(setting: Setting) -> list[str]:
    """What the numbers of a task other than the default are of."""
    if setting.input_name == "noisy":
        return [
            "Denoising of grey images (luma of BT.601 in full range). The noise is neither rounded "
            "nor clipped. PSNR and SSIM are those of the 8-bit result on the whole image."
        ]
    if task := setting.config.image_task:
        return [f"LR images were made as the task says: {task.label}."]
    return []


def _joined(cells: Sequence[str]) -> str:
    """PSNR and SSIM in one cell; "" where there is neither."""
    return " / ".join(cells) if any(cells) else ""


@dataclass(frozen=True)
class _Row:
    """One configuration of an ablation: the paper's line, and what was measured."""

    printed: Mapping[str, str]
    label: str
    variant: Variant
    psnr: Summary | None
    ssim: Summary | None


def _ablation(setting: Setting, table: int) -> list[_Row]:
    """Rows of Table 2 or 3; none unless two that are no rows of Table 4 were trained."""
    variants = table_rows(f"table{table}")
    own = {*variants} - {*table_rows("table4")}
    if len(own & setting.runs_of.keys()) < 2:
        return []
    on = setting.nearest_set(_ABLATION_SET)
    return [
        _Row(
            printed,
            setting.labels.get(variant, with_options(_LABELS[variant.name], variant.options)),
            variant,
            *setting.qualities(variant, on),
        )
        for printed, variant in zip(paper_table(table), variants, strict=True)
    ]


def _variant_columns(setting: Setting, row: _Row) -> dict[str, Any]:
    """Columns of a row that no record may describe: only its module is known then."""
    recorded = setting.recorded.get(row.variant)
    return variant_columns(row.label, recorded) | {"variant": row.variant.name}


def _best(setting: Setting, ablation: Sequence[_Row], test_set: str) -> Variant | None:
    """The variant that is certainly ahead of every other measured one; None if none is.

    Certainly: the 95 % interval of the paired difference, over images and at least two seeds, is
    above 0.
    """
    means = {row.variant: row.psnr.mean for row in ablation if row.psnr}
    best = max(means, key=means.__getitem__)
    for other in means.keys() - {best}:
        ahead = summarise(setting.runs_of[best], setting.runs_of[other], test_set)
        if ahead.paired_seeds < 2 or ahead.low is None or ahead.low <= 0:
            return None
    return best

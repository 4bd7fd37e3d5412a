"""What the report's page is made of: tables and figures, and what the page's filters go by."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from matplotlib.figure import Figure

from ...base.names import slug
from ...records.origin import Record, describe_machine, plural
from ..cells import setting_text
from ..figures.style import PAGE, figure_bytes
from ..settings import Setting
from ..tables.render import Table

#: Values by filter (preset, data, device). A filter that is not named here does not apply.
Tags = Mapping[str, Sequence[str]]

_PUBLISHED = ("paper", "published", "at least", "at most")
_TEXT = re.compile(r"[^\W\d]{2}|[✓–]")
#: What each kind of figure shows: title, description. A name is matched by its longest beginning.
_FIGURES = {
    "figure6": (
        "PSNR and variance against the amplification k (Figure 6)",
        "Above ENLCA's PSNR with the 95 % interval of its difference to the baseline (dotted), "
        "below the variance of the approximation where it was measured, both against k.",
    ),
    "psnr-m": (
        "PSNR against the number of random features m",
        "Above what was measured, with the 95 % interval of the difference to the baseline "
        "(dotted); below, in outline, the paper's Table 4.",
    ),
    "paired-differences": (
        "Every image's difference to the baseline",
        "A panel for each test set, a row for each variant; a dot is an image's difference in "
        "PSNR, the marker their mean, the bar its 95 % interval.",
    ),
    "training-curves": (
        "Training curves",
        "The baseline's L1 loss against the step, then each variant's loss relative to it, seed "
        "by seed and step by step; running means.",
    ),
    "pareto-gflops": (
        "PSNR against GFLOPs with the Pareto front",
        "Above what was measured, with 95 % intervals; below, in outline, the paper's Table 4. "
        "GFLOPs are the core's at 100×100; the grey steps are the Pareto front.",
    ),
    "pareto-latency": (
        "PSNR against latency with the Pareto front",
        "Above what was measured, with 95 % intervals; below, in outline, the paper's Table 5, "
        "from another device. Latency is the core's at 100×100; the grey steps are the front.",
    ),
    "scaling": (
        "Cost against the number of positions N",
        "Time and peak memory of each method's core against N, both logarithmic, with the fitted "
        "exponents.",
    ),
    "error": (
        "Relative error of ENLA's output",
        "Against the number of random features m (above) and of positions N (below), for several "
        "amplifications k; bars are standard deviations over redraws.",
    ),
    "variance": (
        "Variance and error of ENLA's kernel values",
        "Variance of φ(q)·φ(k) against k and against m: Eq. 7's closed form, and redraws with "
        "independent and with orthogonal features. Bottom: median relative error of a value.",
    ),
    "positions": (
        "Positions that exact attention and ENLA attend to",
        "Effective number of positions, as exp(entropy) and as 1 / sum of squares of the weights, "
        "against k, m and N.",
    ),
    "output": (
        "What ENLA keeps of the exact output",
        "Above the share of the output's norm that lies away from the plain mean of all values, "
        "and that varies over queries; below the cosine of ENLA's variation and the exact one.",
    ),
    "nlsa": (
        "What NLSA's hash buckets catch",
        "Share of the softmax, of its part on other positions, of the 16 largest weights, and of "
        "the positions seen, against the rounds r and the positions N.",
    ),
    "modules": (
        "The attention modules of the trained network, one by one",
        "Attended positions and distance from the plain mean of the exact attention, and the "
        "cosine of ENLA's variation, against k.",
    ),
    "psnr": (
        "PSNR with the attention replaced",
        "PSNR of the trained network with its attention exact, approximated with another m, "
        "replaced by the mean of all values, or left out.",
    ),
    "maps": (
        "Correlation maps (Figures 1, 7 and 8)",
        "To which positions one query attends: weight × N on a logarithmic scale; 1 is uniform, "
        "black is none.",
    ),
    "visual": (
        "Visual comparison (Figure 5)",
        "A crop chosen by a rule: HR, bicubic, and each variant, with PSNR and SSIM of the crop.",
    ),
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table's body; kind is its CSS classes."""

    text: str
    kind: str = ""
    code: bool = False


@dataclass(frozen=True)
class Head:
    """A head over some columns; with a column's number it is one that can be sorted by."""

    text: str
    column: int | None
    group: str = ""
    kind: str = ""
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Row:
    """A row of a table; tags are None where filters do not look at rows."""

    cells: Sequence[Cell]
    tags: Tags | None = None
    rule: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table for the page."""

    anchor: str
    title: str
    about: str
    head: Sequence[Sequence[Head]]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True)
class FigureBlock:
    """A picture for the page; width and height in pixels, png in base64."""

    anchor: str
    title: str
    about: str
    alt: str
    png: str
    width: int
    height: int
    tags: Tags = field(default_factory=dict)
    command: str = ""

    @property
    def wide(self) -> bool:
        """Whether it fills the page's width rather than a column's."""
        return self.width > 200 * PAGE / 2


def hardware(record: Record) -> str:
    """Device and hardware of a record, for the filter: ``cpu: AMD EPYC``."""
    machine = record["machine"]
    gpu = (machine.get("gpu") or {}).get("name")
    model = gpu or (machine.get("cpu") or {}).get("model") or "unknown"
    return f"{machine.get('device') or ('cuda' if gpu else 'cpu')}: {model}"


def data_text(config: Mapping[str, object]) -> str:
    """Training data of a run, for the filter."""
    data = config["data"]
    assert isinstance(data, dict)
    sets = " + ".join(data["train"])
    return f"{data['name']}: {sets} ({plural(data['train_images'], 'image')})"


def record_tags(record: Record) -> dict[str, list[str]]:
    """Device of a record and, if it is a run, preset and data."""
    tags = {"device": [hardware(record)]}
    if record["kind"] == "run":
        config = record["config"]
        tags |= {"preset": [config["preset"]], "data": [data_text(config)]}
    return tags


def setting_tags(setting: Setting) -> dict[str, list[str]]:
    """Preset, data and all devices of a setting's runs."""
    if not setting.runs:
        return {}
    config = setting.config
    devices = sorted({hardware(run) for run in setting.runs})
    return {"preset": [config["preset"]], "data": [data_text(config)], "device": devices}


def devices_by_machine(records: Iterable[Record]) -> dict[str, str]:
    """:func:`hardware` by :func:`.settings.describe_machine`, which the tables name."""
    return {describe_machine(record): hardware(record) for record in records}


def table_tags(table: Table, devices: Mapping[str, str]) -> dict[str, list[str]]:
    """Devices of a table that belongs to no setting, by the machines that its rows name."""
    named = {name for row in table.data for name in str(row.get("machine") or "").split("; ")}
    found = sorted({devices[name] for name in named if name in devices})
    return {"device": found} if found else {}


def table_block(
    table: Table, folder: str, tags: Tags, setting: Setting | None = None
) -> TableBlock:
    """A table for the page; its caption is split into what it shows and on what.

    The setting's own text, which begins its section, is left out.
    """
    title, about = table.caption, ""
    if setting and setting.runs and (text := setting_text(setting)) in title:
        title, _, about = title.partition(f": {text}")
        about = about.removeprefix("; ")
    elif " on " in title:
        title, _, about = title.partition(" on ")
        title, about = title.rstrip(","), f"on {about}"
    elif ": " in title and not title.startswith("Table "):
        title, _, about = title.partition(": ")
    kinds = column_kinds(table.headers, table.rows)
    return TableBlock(
        anchor=slug(f"{folder}-{table.name}"),
        title=title,
        about=about,
        head=table_head(table.headers, kinds),
        rows=[
            Row(
                [Cell(text, kind) for text, kind in zip(row, kinds, strict=True)],
                rule=number == table.rule_after < len(table.rows),
            )
            for number, row in enumerate(table.rows, 1)
        ],
        notes=table.notes,
        tags=tags,
    )


def column_kinds(headers: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> list[str]:
    """CSS classes of each column: ``paper`` for published figures, ``text`` for words."""
    kinds = []
    for column, (group, header) in enumerate(headers):
        words = f"{group} {header}".split()
        kind = ["paper"] if any(w.strip("()") in ("paper", "published") for w in words) else []
        cells = [row[column] for row in rows if row[column]]
        if cells and sum(bool(_TEXT.match(cell)) for cell in cells) > len(cells) / 2:
            kind.append("text")
        kinds.append(" ".join(kind))
    return kinds


def table_head(headers: Sequence[tuple[str, str]], kinds: Sequence[str]) -> list[list[Head]]:
    """One row of heads, or two where columns are grouped."""
    if not any(group for group, _ in headers):
        return [
            [
                Head(header, column, kind=kind)
                for column, ((_, header), kind) in enumerate(zip(headers, kinds, strict=True))
            ]
        ]
    above: list[Head] = []
    below: list[Head] = []
    numbered = list(enumerate(zip(headers, kinds, strict=True)))
    for group, found in groupby(numbered, key=lambda item: item[1][0][0]):
        members = list(found)
        if not group:
            above += [Head(h, column, kind=kind, rows=2) for column, ((_, h), kind) in members]
            continue
        above.append(Head(group, None, columns=len(members)))
        below += [Head(h, column, group, kind) for column, ((_, h), kind) in members]
    return [above, below]


def figure_text(name: str) -> tuple[str, str]:
    """Title and description of a figure by its file's name, without a record's id."""
    kinds = [kind for kind in _FIGURES if name == kind or name.startswith(f"{kind}-")]
    return _FIGURES[max(kinds, key=len)] if kinds else (name, "")


def figure_block(
    stem: str, kind: str, where: str, figure: Figure, tags: Tags, title: str = ""
) -> FigureBlock:
    """A drawn figure for the page.

    Args:
        stem: its file's path without suffix.
        kind: its name without setting and record, which tells what it shows.
        where: what was measured: the setting, or machine and record.
        figure: what was drawn.
        tags: for the filters.
        title: what sets it apart from others of its kind.
    """
    return _picture(stem, kind, figure_bytes(figure, "png"), where, tags, title)


def published_figure(stem: str, png: bytes, where: str, tags: Tags, command: str) -> FigureBlock:
    """A figure that needed weights or images: as it lies in the results folder."""
    title = stem.partition("-")[2]
    return _picture(stem, stem, png, where, tags, title, command)


def _picture(
    stem: str, kind: str, png: bytes, where: str, tags: Tags, suffix: str, command: str = ""
) -> FigureBlock:
    title, about = figure_text(kind)
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # the IHDR chunk
    alt = f"{title}. {about} Measured: {where}."
    return FigureBlock(
        anchor=slug(f"figure-{stem}"),
        title=f"{title}{f': {suffix}' if suffix else ''}",
        about=about,
        alt=alt,
        png=base64.b64encode(png).decode(),
        width=width,
        height=height,
        tags=tags,
        command=command,
    )

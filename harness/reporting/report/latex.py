"""The report's folder for LaTeX: tables for ``\\input``, figures as PDF, and one document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, pairwise
from pathlib import Path

from matplotlib.figure import Figure

from ...base.files import write_atomic, write_text
from ...base.names import slug
from ..figures.style import write_figure
from ..tables.render import Table, latex_escape
from .blocks import LONG, column_kinds
from .captions import CAPTIONS

#: Width of the text in points, and the smallest scale at which a table still fits it.
_TEXT_WIDTH, _LEAST_SCALE = 498.0, 0.72
#: Points of an average character at 10 pt, and between two columns.
_CHARACTER, _BETWEEN = 5.0, 12.0
#: Characters of a line in a column that wraps.
_WRAPPED = 50
#: Most rows of a table on one page.
_ROWS = 36
#: Scales down what is wider than the text; nothing is scaled up.
_FITTED = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
_HEAD = r"""% WHICH tables and figures of the report; compile with pdflatex, twice.
% A single table: \input{tables/NAME} with the packages booktabs and graphicx.
\documentclass[10pt]{article}
\usepackage[a4paper,textwidth=6.9in,textheight=9.9in]{geometry}
\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx}
\extrafloats{400}
\emergencystretch=4em
\setlength{\belowcaptionskip}{6pt}
\renewcommand{\topfraction}{1}
\renewcommand{\bottomfraction}{1}
\renewcommand{\textfraction}{0}
\renewcommand{\floatpagefraction}{0.7}
\setcounter{topnumber}{9}
\setcounter{totalnumber}{9}
\title{attention-zoo: what was measured}
\author{}
\date{}
\begin{document}
\maketitle
Columns marked \emph{paper} are published figures; everything else was measured here. An empty cell
was not measured. The notes below each table name its machine and settings.
\tableofcontents
\clearpage
"""


@dataclass(frozen=True)
class LatexFigure:
    """A figure, drawn or as a PDF that exists already.

    Attributes:
        stem: its file's path without suffix.
        kind: of ``CAPTIONS``.
        where: what was measured.
        source: the figure, or where its PDF lies.
    """

    stem: str
    kind: str
    where: str
    source: Figure | Path


def write_latex(
    folder: Path,
    tables: Sequence[tuple[str, Table]],
    figures: Sequence[LatexFigure],
    titles: dict[str, str],
    *,
    everything: bool,
) -> Path:
    """Write ``tables/*.tex``, ``figures/*.pdf`` and ``main.tex``, which includes them all.

    Args:
        folder: where.
        tables: as :func:`.tables.all_tables` gives them.
        figures: all of them.
        everything: whether these are all tables and figures of the report, and not the main ones.
        titles: heading of each setting's section by its folder's name; of what has no folder by its
            own.

    Returns:
        The document's path.

    Raises:
        UserError: the folder cannot be written.
    """
    sections: dict[str, list[str]] = {title: [] for title in titles.values()}
    for where, table in tables:
        name = slug(f"{where}-{table.name}")
        write_text(folder / "tables" / f"{name}.tex", latex_table(table))
        section = titles.get(where or table.name, "Modules, latency, speed and scaling")
        sections.setdefault(section, []).append(rf"\input{{tables/{name}}}")
    for figure in figures:
        name = slug(figure.stem)
        _write_pdf(figure.source, folder / "figures" / f"{name}.pdf")
        section = titles.get(figure.stem.partition("/")[0], "Further figures")
        sections.setdefault(section, []).append(_latex_figure(figure, name))
    body = [
        "\n".join([rf"\section{{{latex_escape(title)}}}", *parts, r"\clearpage", ""])
        for title, parts in sections.items()
        if parts
    ]
    path = folder / "main.tex"
    head = _HEAD.replace("WHICH", "All" if everything else "The main", 1)
    write_text(path, head + "\n".join(body) + "\\end{document}\n")
    return path


def latex_table(table: Table) -> str:
    """A table as one float, or as several if it is too wide or too long for a page.

    Each begins with the first column. Only the first has the label, only the last the notes.
    """
    parts = [part for columns in _by_columns(table) for part in _by_rows(columns)]
    # LaTeX gives its own numbers to tables.
    caption = re.sub(r"^(Table \d)", r"The paper's \1", table.caption)
    floats = []
    for number, part in enumerate(parts, 1):
        of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        lines = [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex_escape(caption)}{of}}}",
            *([rf"\label{{tab:{table.label or table.name}}}"] if number == 1 else []),
            _FITTED,
            part.latex_tabular(_alignment(part)) + "}",
            *(part.latex_notes() if number == len(parts) else []),
            r"\end{table}",
        ]
        floats.append("\n".join(lines))
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(floats) + "\n"


def _alignment(table: Table) -> str:
    kinds = column_kinds(table.headers, table.rows)
    wrapped = rf"p{{{_CHARACTER * _WRAPPED:.0f}pt}}"
    if not any("long" in kind.split() for kind in kinds):
        return "l" + "".join("l" if "text" in kind.split() else "r" for kind in kinds[1:])
    letters = ["l" if "text" in kind.split() else "r" for kind in ["text", *kinds[1:]]]
    return "".join(
        wrapped if _longest(table, column) > _WRAPPED else letter
        for column, letter in enumerate(letters)
    )


def _longest(table: Table, column: int) -> int:
    return max(len(row[column]) for row in table.rows)


def _by_columns(table: Table) -> Iterator[Table]:
    """The table, or parts that fit the width: the first column and some groups of columns each."""
    longest = [
        max(len(text) for text in (header, *(row[column] for row in table.rows)))
        for column, (_, header) in enumerate(table.headers)
    ]
    if max(longest) > LONG:
        longest = [min(length, _WRAPPED) for length in longest]
    widths = [_CHARACTER * length + _BETWEEN for length in longest]
    most = _TEXT_WIDTH / _LEAST_SCALE
    if sum(widths) <= most:
        yield table
        return
    groups: list[list[int]] = []
    numbered = list(enumerate(table.headers))[1:]
    for group, found in groupby(numbered, key=lambda item: item[1][0]):
        members = [column for column, _ in found]
        # Columns without a group may be separated.
        groups += [members] if group else [[column] for column in members]
    # The fewest parts that fit, as even as possible.
    for count in range(1, len(groups) + 1):
        ways = [
            [[column for group in groups[start:end] for column in group] for start, end in runs]
            for cuts in combinations(range(1, len(groups)), count - 1)
            for runs in [pairwise((0, *cuts, len(groups)))]
        ]
        width, parts = min((max(sum(widths[c] for c in part) for part in way), way) for way in ways)
        if widths[0] + width <= most:
            break
    yield from (_columns(table, part) for part in parts)


def _columns(table: Table, kept: Sequence[int]) -> Table:
    columns = [0, *kept]
    return replace(
        table,
        headers=[table.headers[c] for c in columns],
        rows=[[row[c] for c in columns] for row in table.rows],
    )


def _by_rows(table: Table) -> Iterator[Table]:
    count = len(table.rows)
    pages = -(-count // _ROWS) or 1
    each = -(-count // pages)
    for start in range(0, max(count, 1), each or 1):
        rows = table.rows[start : start + each]
        yield replace(table, rows=rows, rule_after=table.rule_after - start)


def _write_pdf(source: Figure | Path, path: Path) -> None:
    if isinstance(source, Figure):
        write_figure(source, path)
    else:
        content = source.read_bytes()
        write_atomic(path, lambda file: file.write(content))


def _latex_figure(figure: LatexFigure, name: str) -> str:
    title, about = CAPTIONS.get(figure.kind, (figure.kind, ""))
    text = latex_escape(f"{title}. {about} Measured: {figure.where}.")
    lines = [
        r"\begin{figure}[htbp]",
        r"\centering",
        _FITTED,
        rf"\includegraphics{{figures/{name}.pdf}}}}",
        rf"\caption{{{text}}}",
        rf"\label{{fig:{name}}}",
        r"\end{figure}",
    ]
    return "\n".join(lines)

"""A table as CSV (every figure, for programs) and as Markdown and LaTeX (for readers)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from ...base.files import write_text

# Wider tables are scaled to the text width in LaTeX.
_WIDE = 7
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "Δ": r"$\Delta$",
    "²": r"$^2$",
    "✓": r"$\surd$",
    "√": r"$\sqrt{}$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "φ": r"$\varphi$",
    "σ": r"$\sigma$",
    "…": r"\dots{}",
    "†": r"\dag{}",
    "’": "'",
    "“": "``",
    "”": "''",
    "\n": " ",
    "\0": "{}",
}
# Of what lies beyond ASCII, letters with accents up to here are LaTeX's own.
_LAST_ACCENT = "ž"
# A hyphen before a number, but in 1e-4, in dates and in names.
_MINUS = re.compile(r"(?<![\w.\-])-(?=\.?\d)")
#: Folder of all notes of the tables whose notes do not fit below them.
NOTES = "notes"
#: Lines of notes below a table, and their length; what is more stands in a file of its own.
NOTE_LINES, NOTE_LENGTH = 3, 160
# Between two sentences.
_SENTENCES = re.compile(r"(?<=\.) (?=[A-Z±*])")
_MARKDOWN = {ord(c): f"\\{c}" for c in "\\|*`<"} | {ord("\n"): " "}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name: file name without suffix.
        caption: what it shows.
        notes: how to read it first, then where its figures come from. Few of them are shown
            below it, see :attr:`short_notes`.
        headers: (group, header) of each column for readers; the group "" stands alone.
        rows: cells for readers, the first column a name; "" where nothing was measured.
        data: one mapping of machine-readable columns a row; None where nothing was measured.
        label: LaTeX label; by default the name.
        rule_after: number of first rows that a rule in LaTeX sets off from the others; 0 for none.
    """

    name: str
    caption: str
    notes: Sequence[str]
    headers: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    data: Sequence[Mapping[str, Any]]
    rule_after: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        texts = {
            "caption": minus(self.caption),
            "notes": [minus(note) for note in self.notes],
            "rows": [[minus(cell) for cell in row] for row in self.rows],
        }
        for name, text in texts.items():
            object.__setattr__(self, name, text)

    @property
    def short_notes(self) -> list[str]:
        """Whole sentences in lines of :data:`NOTE_LENGTH`: all of the notes, or the first lines.

        These are :data:`NOTE_LINES`, or one less beside the line that says where all notes are.
        """
        lines = [line for note in self.notes for line in _lines(note)]
        if len(lines) <= NOTE_LINES and all(len(line) <= NOTE_LENGTH for line in lines):
            return lines
        return list(takewhile(lambda line: len(line) <= NOTE_LENGTH, lines))[: NOTE_LINES - 1]

    @property
    def more_notes(self) -> bool:
        """Whether :attr:`short_notes` leave something out."""
        return " ".join(self.short_notes) != " ".join(self.notes)

    def csv(self) -> str:
        """Comma-separated values with ten significant digits; empty where None."""
        cells = [{key: _csv_cell(value) for key, value in row.items()} for row in self.data]
        return pd.DataFrame(cells, dtype=str).to_csv(index=False, lineterminator="\n")

    def markdown_grid(self) -> str:
        """The rows alone as a Markdown table."""
        headers = [f"{group} {header}".strip() for group, header in self.headers]
        grid = [[cell.translate(_MARKDOWN) for cell in row] for row in (headers, *self.rows)]
        widths = [max(3, *(len(row[i]) for row in grid)) for i in range(len(headers))]
        grid.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in grid]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def markdown(self) -> str:
        """Caption, rows and notes in Markdown."""
        notes = _bullets(self.short_notes)
        if self.more_notes:
            notes += f"- [All notes]({NOTES}/{self.name}.md)\n"
        return f"**{self.caption.translate(_MARKDOWN)}**\n\n{self.markdown_grid()}\n{notes}"

    def markdown_notes(self) -> str:
        """All notes in Markdown."""
        return f"**{self.caption.translate(_MARKDOWN)}**\n\n{_bullets(self.notes)}"

    def latex(self) -> str:
        """A floating table in LaTeX; needs the packages booktabs and graphicx."""
        wide = len(self.headers) > _WIDE
        lines = [
            "% needs \\usepackage{booktabs,graphicx}",
            r"\begin{table*}" if wide else r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escape(self.caption)}}}",
            rf"\label{{tab:{self.label or self.name}}}",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            self.latex_tabular() + ("}" if wide else ""),
            *self.latex_notes(),
            r"\end{table*}" if wide else r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def latex_tabular(self, alignment: str = "") -> str:
        """The rows alone as a tabular of LaTeX; needs the package booktabs.

        Args:
            alignment: a letter for each column; by default the first is left, the others right.
        """
        alignment = alignment or "l" + "r" * (len(self.headers) - 1)
        body = [_latex_row(row) for row in self.rows]
        if 0 < self.rule_after < len(body):
            body.insert(self.rule_after, r"\midrule")
        lines = [
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            *self._latex_headers(),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines)

    def latex_notes(self) -> list[str]:
        """The short notes as small paragraphs of LaTeX, a line each."""
        return [
            r"\par\smallskip",
            r"{\footnotesize\raggedright",
            *(latex_escape(note) + r"\par" for note in self.short_notes),
            "}",
        ]

    def _latex_headers(self) -> list[str]:
        headers = _latex_row([header for _, header in self.headers])
        if not any(group for group, _ in self.headers):
            return [headers]
        cells, rules, column = [], [], 1
        for group, members in groupby(group for group, _ in self.headers):
            width = len(list(members))
            if group:
                cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(group)}}}")
                rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
            else:
                cells += [""] * width
            column += width
        return [" & ".join(cells) + r" \\", " ".join(rules), headers]


def write_table(table: Table, folder: Path, *, latex: bool = False) -> list[Path]:
    """Write ``<folder>/<name>.csv`` and ``.md``, and ``.tex`` if asked for; returns the paths.

    Notes that do not fit below the table go to ``<folder>/notes/<name>.md``.

    Raises:
        UserError: the folder cannot be written.
    """
    texts = {"csv": table.csv(), "md": table.markdown()} | ({"tex": table.latex()} if latex else {})
    paths = []
    for suffix, text in texts.items():
        paths.append(folder / f"{table.name}.{suffix}")
        write_text(paths[-1], text)
    if table.more_notes:
        paths.append(folder / NOTES / f"{table.name}.md")
        write_text(paths[-1], table.markdown_notes())
    return paths


def minus(text: str) -> str:
    """The text with minus signs before its negative numbers, in place of hyphens."""
    return _MINUS.sub("−", text)


def _lines(note: str) -> list[str]:
    """A note's sentences, as many in a line as fit."""
    lines = [""]
    for sentence in _SENTENCES.split(note):
        longer = f"{lines[-1]} {sentence}".lstrip()
        lines[-1:] = [longer] if len(longer) <= NOTE_LENGTH else [lines[-1], sentence]
    return [line for line in lines if line]


def escaped(text: str) -> str:
    """Text in which Markdown's special characters stand for themselves."""
    return text.translate(_MARKDOWN)


def _bullets(notes: Sequence[str]) -> str:
    return "".join(f"- {escaped(note)}\n" for note in notes)


def latex_escape(text: str) -> str:
    """Text in which LaTeX's special characters, and a few of Unicode, stand for themselves.

    What pdflatex's own fonts do not have is named by its number, so that any text compiles.
    """
    text = re.sub("-(?=-)", "-\0", text)  # two hyphens would become a dash
    return "".join(_LATEX.get(character) or _latex_character(character) for character in text)


def _latex_character(character: str) -> str:
    known = character.isascii() or (character.isalpha() and character <= _LAST_ACCENT)
    return character if known else f"[U+{ord(character):04X}]"


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(latex_escape(cell) for cell in cells) + r" \\"
    # The line end before would take a leading "[" or "*" for its own option.
    return f"{{}}{row}" if row.startswith(("[", "*")) else row


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)

"""Tables on a terminal or in a file: every cell is shown whole, whatever the width."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Span, Text

from .commands import PLAIN

# More than any table needs.
_WIDEST = 10_000
# Before the lines of a row whose cells stand below each other.
_INDENT = 2


def print_table(table: Table) -> None:
    """Print a table on standard output: on a terminal in its width, else in full width."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDEST)
    console.print(Fitted(in_encoding(table, console.encoding)))


def in_encoding(table: Table, encoding: str) -> Table:
    """The table with what the encoding lacks replaced, so that its columns are wide enough."""
    shown = copy.copy(table)
    shown.columns = [
        dataclasses.replace(
            column,
            header=_shown(column.header, encoding),
            _cells=[_shown(cell, encoding) for cell in column._cells],
        )
        for column in table.columns
    ]
    return shown


def aligned(grid: str) -> str:
    """A Markdown table with what standard output lacks replaced, and its columns aligned again.

    Args:
        grid: lines of cells between bars, of which the second is the rule.
    """
    encoding = sys.stdout.encoding or "utf-8"
    if _in(grid, encoding) == grid:
        return grid
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", _in(line, encoding))[1:-1]]
        for line in grid.splitlines()
    ]
    rule = rows.pop(1)
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    right = [cell.endswith(":") for cell in rule]
    rows.insert(1, ["-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)])
    lines = (
        " | ".join(
            cell.rjust(w) if r else cell.ljust(w)
            for cell, w, r in zip(row, widths, right, strict=True)
        )
        for row in rows
    )
    return "".join(f"| {line} |\n" for line in lines)


def _in(text: str, encoding: str) -> str:
    return text.encode(encoding, PLAIN).decode(encoding)


def _shown(cell: RenderableType, encoding: str) -> RenderableType:
    """A cell with what the encoding lacks replaced; styles stay where they are."""
    text = _text(cell)
    if (plain := _in(text.plain, encoding)) == text.plain:
        return cell
    ends = [0]
    for character in text.plain:
        ends.append(ends[-1] + len(_in(character, encoding)))
    found = text.blank_copy(plain)
    found.spans = [Span(ends[span.start], ends[span.end], span.style) for span in text.spans]
    return found


class Fitted:
    """A table that is never cut, and whose labels are never abridged.

    Where it is too wide, its columns are spread over several tables, one below the other, each of
    which begins with the first column; columns whose headers begin with the same line stay
    together. Where even these are too wide, the cells of a row stand below each other.
    """

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(width=_WIDEST)
        most, columns = options.max_width, range(len(self.table.columns))
        # A table's title and caption would be wrapped to its own width.
        if self.table.title:
            yield _text(self.table.title)
        parts: list[list[list[int]]] = [[]]  # of groups of columns
        for group in self._groups(columns[1:]):
            together = self._width(console, wide, [group]) <= most
            for piece in [group] if together else [[column] for column in group]:
                if self._width(console, wide, [*parts[-1], piece]) <= most:
                    parts[-1].append(piece)
                elif self._width(console, wide, [piece]) <= most:
                    parts.append([piece])
                else:
                    yield from self._lines()
                    return
        last = parts[-1]
        if len(parts) > 1 and len(last) == 1 and len(parts[-2]) > 2:  # no column stands alone
            moved = [parts[-2][-1], *last]
            if self._width(console, wide, moved) <= most:
                parts[-2:] = [parts[-2][:-1], moved]
        shown = [part for part in parts if part] or [[]]
        for number, part in enumerate(shown):
            if number:
                yield Text()
            yield self._part(part)
        if self.table.caption:
            yield _text(self.table.caption)

    def _groups(self, columns: Sequence[int]) -> Iterator[list[int]]:
        """Columns in a row whose headers begin with the same of two lines."""

        def first(column: int) -> tuple[str, int]:
            line, more, _ = _text(self.table.columns[column].header).plain.partition("\n")
            return (line, -1) if more else ("", column)

        for _, members in groupby(columns, key=first):
            yield list(members)

    def _width(
        self, console: Console, options: ConsoleOptions, groups: Sequence[Sequence[int]]
    ) -> int:
        return Measurement.get(console, options, self._part(groups)).maximum

    def _part(self, groups: Sequence[Sequence[int]]) -> Table:
        """A table of the first column and some groups, none of which wraps.

        Rows without a cell are left out where there are other parts.
        """
        whole = self.table
        part = Table(
            box=whole.box,
            padding=whole.padding,
            collapse_padding=whole.collapse_padding,
            pad_edge=whole.pad_edge,
            show_edge=whole.show_edge,
        )
        columns = [0, *(column for group in groups for column in group)]
        cells = [[_text(cell) for cell in whole.columns[index]._cells] for index in columns]
        kept = [
            row
            for row in range(whole.row_count)
            if len(columns) in (1, len(whole.columns)) or any(c[row].plain for c in cells[1:])
        ]
        for index, found in zip(columns, cells, strict=True):
            column = whole.columns[index]
            part.columns.append(
                Column(
                    header=column.header,
                    header_style=column.header_style,
                    style=column.style,
                    justify=column.justify,
                    vertical=column.vertical,
                    no_wrap=True,
                    overflow="fold",
                    _index=len(part.columns),
                    _cells=[found[row] for row in kept],
                )
            )
        part.rows = [whole.rows[row] for row in kept]
        return part

    def _lines(self) -> Iterator[Text]:
        """Each row's label, and below it its cells with their headers."""
        headers = [" ".join(_text(c.header).plain.split()) for c in self.table.columns]
        for cells in zip(*(column._cells for column in self.table.columns), strict=True):
            label, *values = map(_text, cells)
            label.overflow = "fold"
            yield label
            for header, value in zip(headers[1:], values, strict=True):
                if value.plain:
                    yield Text(" " * _INDENT + f"{header}: {value.plain}", overflow="fold")
        if self.table.caption:
            yield _text(self.table.caption)


def _text(cell: object) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(str(cell))  # names may hold brackets

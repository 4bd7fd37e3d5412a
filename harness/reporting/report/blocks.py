"""What the report's page is made of: tables and figures, with the values that its filters match."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from ...base.names import slug
from ...records.origin import describe_machine, plural
from ...records.shapes import Config, Cpu, Record, Run
from ..cells import setting_text
from ..figures.style import DPI, PAGE
from ..settings import Setting
from ..tables.render import Table
from .captions import CAPTIONS

#: Values by filter (preset, data, device). A filter without values here does not apply.
Tags = Mapping[str, Sequence[str]]

# Most pixels of a picture's width, and the quality of one with photographs.
_PIXELS, _QUALITY = 800, 75
#: Most columns of a table with letters of the usual size.
WIDE = 9
#: Characters of a cell from which on its column wraps.
LONG = 100
_TEXT = re.compile(r"[^\W\d]{2}|[✓–]")


@dataclass(frozen=True)
class Cell:
    """A cell of a table's body; ``kind`` holds its CSS classes."""

    text: str
    kind: str = ""
    code: bool = False


@dataclass(frozen=True)
class Head:
    """A head over some columns; the head of one column sorts by it."""

    text: str
    column: int | None
    group: str = ""
    kind: str = ""
    columns: int = 1
    rows: int = 1


@dataclass(frozen=True)
class Row:
    """A row of a table; ``tags`` are None where filters leave rows alone."""

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

    @property
    def wide(self) -> bool:
        """Whether its letters are to be small."""
        return len(self.rows[0].cells) > WIDE if self.rows else False


@dataclass(frozen=True)
class Picture:
    """A WebP in base64, a third smaller than a PNG; width and height in pixels, dots per inch."""

    webp: str
    width: int
    height: int
    dpi: int

    @classmethod
    def drawn(cls, png: bytes, dpi: int = DPI) -> Picture:
        """Of a plot, pixel by pixel."""
        with Image.open(io.BytesIO(png)) as image:
            return cls._of(image.convert("RGB"), dpi, lossless=True, quality=100)

    @classmethod
    def shrunk(cls, path: Path) -> Picture:
        """Of a file with photographs in it, not wider than the page needs."""
        with Image.open(path) as image:
            size = (_PIXELS, round(image.height * _PIXELS / image.width))
            small = image.convert("RGB")
        if small.width > _PIXELS:
            small = small.resize(size, Image.Resampling.LANCZOS)
        return cls._of(small, DPI, quality=_QUALITY)

    @classmethod
    def _of(cls, image: Image.Image, dpi: int, **how: Any) -> Picture:
        content = io.BytesIO()
        image.save(content, "webp", method=6, **how)
        return cls(base64.b64encode(content.getvalue()).decode(), *image.size, dpi)

    @property
    def wide(self) -> bool:
        """Whether it fills the page's width rather than a column's."""
        return self.width > self.dpi * PAGE / 2


@dataclass(frozen=True)
class FigureBlock:
    """A figure for the page.

    Attributes:
        image: a picture, or an ``svg`` element.
        alt: the picture in words.
        points: the points of a plot as a table.
        command: what drew it, if it needed more than the records.
        wide: whether an ``svg`` fills the page's width rather than a column's.
    """

    anchor: str
    title: str
    about: str
    image: Picture | str
    alt: str
    tags: Tags = field(default_factory=dict)
    points: TableBlock | None = None
    command: str = ""
    wide: bool = False


def hardware(record: Record) -> str:
    """Device and hardware of a record, for the filter: ``cpu: AMD EPYC``."""
    machine = record.machine
    gpu = (machine.gpu or {}).get("name")
    model = gpu or (machine.cpu or Cpu()).model or "unknown"
    return f"{machine.device or ('cuda' if gpu else 'cpu')}: {model}"


def data_text(config: Config) -> str:
    """Training data of a run, for the filter."""
    data = config.data
    return f"{data.name}: {' + '.join(data.train)} ({plural(data.train_images, 'image')})"


def record_tags(*records: Record) -> Tags:
    """Devices of the records, and presets and data of the runs among them."""
    runs = [record for record in records if isinstance(record, Run)]
    tags = {
        "preset": {run.config.preset for run in runs},
        "data": {data_text(run.config) for run in runs},
        "device": {hardware(record) for record in records},
    }
    return {name: sorted(values) for name, values in tags.items() if values}


def setting_tags(setting: Setting) -> Tags:
    """Preset, data and all devices of a setting's runs."""
    return record_tags(*setting.runs)


def devices_by_machine(records: Iterable[Record]) -> dict[str, str]:
    """:func:`hardware` by :func:`.origin.describe_machine`, which tables name."""
    return {describe_machine(record): hardware(record) for record in records}


def table_tags(table: Table, devices: Mapping[str, str]) -> Tags:
    """Devices of a table that belongs to no setting, from the machines that its rows name."""
    named = {name for row in table.data for name in str(row.get("machine") or "").split("; ")}
    found = sorted({devices[name] for name in named if name in devices})
    return {"device": found} if found else {}


def table_block(
    table: Table, folder: str, tags: Tags, setting: Setting | None = None
) -> TableBlock:
    """A table for the page; its caption is split into a title and what was measured.

    The setting's own text begins its section and is left out here.
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
    """CSS classes of each column: ``paper`` for published figures, ``text`` for words, ``long``."""
    kinds = []
    for column, (group, header) in enumerate(headers):
        words = f"{group} {header}".split()
        kind = ["paper"] if any(w.strip("()") in ("paper", "published") for w in words) else []
        cells = [row[column] for row in rows if row[column]]
        if any(len(cell) > LONG for cell in cells):
            kind += ["text", "long"]
        elif cells and sum(bool(_TEXT.match(cell)) for cell in cells) > len(cells) / 2:
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


def figure_block(
    stem: str,
    kind: str,
    image: Picture | str,
    where: str,
    tags: Tags,
    *,
    which: str = "",
    command: str = "",
) -> FigureBlock:
    """A figure for the page.

    Args:
        stem: its file's path without suffix.
        kind: of ``CAPTIONS``.
        image: a picture, or an ``svg`` element.
        where: what was measured.
        tags: for the filters.
        which: tells it from others of its kind.
        command: what drew it, if it needed more than the records.
    """
    title, about = CAPTIONS.get(kind, (kind, ""))
    return FigureBlock(
        anchor=slug(f"figure-{stem}"),
        title=f"{title}{f': {which}' if which else ''}",
        about=about,
        image=image,
        alt=f"{title}. {about} Measured: {where}.",
        tags=tags,
        command=command,
    )

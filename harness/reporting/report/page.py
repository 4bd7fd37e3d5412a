"""The report: all tables, figures and records on one HTML page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import __version__
from ...base.errors import UserError
from ...base.files import read_json, write_text
from ...base.names import slug
from ...records.origin import Record, describe_code, describe_machine, plural
from ...records.store import load_records, setting_label
from ..benches import find_benches
from ..cells import setting_text
from ..figures.all import all_figures
from ..settings import Setting, find_settings
from ..tables.all import all_tables
from ..tables.claims import find_claims
from ..tables.render import Table
from .blocks import (
    Cell,
    FigureBlock,
    Row,
    TableBlock,
    Tags,
    devices_by_machine,
    figure_block,
    hardware,
    published_figure,
    record_tags,
    setting_tags,
    table_block,
    table_head,
    table_tags,
)
from .latex import LatexFigure, write_latex
from .plots import Plot, setting_plots

_TEMPLATES = Path(__file__).parent / "templates"
_MEASURING = "measuring.md"
_FILTERS = {"preset": "Preset", "data": "Training data", "device": "Device"}
_KINDS = {
    "run": "trained variant",
    "cost": "operation counts",
    "redraw": "other random draws",
    "gpu": "GPU measurement",
}


@dataclass(frozen=True)
class Section:
    """A part of the page: what one setting, or one kind of measurement, gave."""

    anchor: str
    title: str
    about: str = ""
    plots: Sequence[Plot] = ()
    tables: Sequence[TableBlock] = ()
    figures: Sequence[FigureBlock] = ()


@dataclass(frozen=True)
class Findings:
    """A setting's sentences on the paper's claims."""

    title: str
    about: str
    sentences: Sequence[str]
    tags: Tags


@dataclass(frozen=True)
class Machine:
    """What the records say of one machine."""

    title: str
    facts: Sequence[tuple[str, str]]
    tags: Tags


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    summary: str
    contents: Sequence[tuple[str, str]]
    findings: Sequence[Findings]
    filters: Sequence[tuple[str, str, Sequence[str]]]
    sections: Sequence[Section]
    measuring: Any
    machines: Sequence[Machine]
    records: TableBlock
    command: str
    version: str = __version__


def write_report(results: Path, output: Path | None = None) -> list[Path]:
    """Write ``index.html`` and ``latex/``; returns the page and the LaTeX document.

    Args:
        results: folder that holds records/.
        output: where both go; ``report/`` in the results folder if not given.

    Raises:
        UserError: no records, a bad record, the extra ``report`` is not installed, or a folder
            cannot be written.
    """
    plotly = _plotly_script()
    tables = all_tables(results)
    drawn = [(stem, figure) for stem, figure in all_figures(results)]
    published = list(_published(results))
    records = load_records(results)
    page = build_page(records, tables, drawn, published)
    output = output or results / "report"
    path = output / "index.html"
    write_text(path, render_page(page, plotly))
    settings = _settings(records)
    pictures = [
        LatexFigure(stem.as_posix(), *_described(stem, settings, records), figure)
        for stem, figure in drawn
    ]
    pictures += [
        LatexFigure(stem, stem, _pictured(stem, content), pdf)
        for stem, content in published
        if (pdf := results / "figures" / f"{stem}.pdf").exists()
    ]
    titles = {label: _setting_title(setting) for label, setting in settings.items()}
    return [path, write_latex(output / "latex", tables, pictures, titles)]


def build_page(
    records: Sequence[Record],
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[tuple[Path, Any]],
    published: Sequence[tuple[str, dict[str, Any]]] = (),
) -> Page:
    """Everything that the page shows.

    Args:
        records: all records.
        tables: as :func:`.tables.all_tables` gives them.
        drawn: as :func:`.figures.all_figures` gives them.
        published: name and JSON of the figures that need weights, with their ``png``.
    """
    settings = _settings(records)
    benches = find_benches(r for r in records if r["kind"] == "latency")
    sections = [
        _setting_section(setting, tables, drawn, benches, records) for setting in settings.values()
    ]
    sections += _other_sections(records, tables, drawn, settings)
    if published:
        figures = [_with_weights(name, content, records) for name, content in published]
        sections.append(
            Section(
                "pictures",
                "Maps and visual comparisons",
                "Drawn from trained weights, by the command that stands below each.",
                figures=figures,
            )
        )
    findings = [found for setting in settings.values() if (found := _findings(setting))]
    machines = _machines(records)
    values: dict[str, set[str]] = {name: set() for name in _FILTERS}
    for record in records:
        for name, several in record_tags(record).items():
            values[name].update(several)
    contents = [
        ("guide", "How to read this page"),
        *([("findings", "The paper’s claims, and what these data say")] if findings else []),
        *((section.anchor, section.title) for section in sections),
        ("measuring", "How each number was measured"),
        ("machines", "Machines"),
        ("records", "Records and their commands"),
    ]
    days = sorted(record["created"][:10] for record in records)
    runs = sum(record["kind"] == "run" for record in records)
    figures_shown = sum(len(section.figures) for section in sections)
    return Page(
        title="attention-zoo: what was measured",
        summary=f"Non-local attention for image super-resolution: {plural(len(records), 'record')} "
        f"from {days[0]} to {days[-1]}, among them {plural(runs, 'training run')} in "
        f"{plural(len(settings), 'setting')}, on {plural(len(machines), 'machine model')}; "
        f"{plural(len(tables), 'table')}, {plural(figures_shown, 'figure')}.",
        contents=contents,
        findings=findings,
        filters=[(name, title, sorted(values[name])) for name, title in _FILTERS.items()],
        sections=sections,
        measuring=_measuring(),
        machines=machines,
        records=_records_table(records),
        command="python -m harness.report",
    )


def render_page(page: Page, plotly: str) -> str:
    """The page as HTML, with plotly's script in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    template = environment.get_template("report.html")
    style, script = (
        (_TEMPLATES / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js")
    )
    return template.render(page=page, css=style, script=script, plotly=plotly) + "\n"


def _plotly_script() -> str:
    """Plotly's script, so that it can stand inside a script element.

    Raises:
        UserError: a package of the extra ``report`` is missing.
    """
    try:
        import jinja2  # noqa: F401
        import markdown_it  # noqa: F401
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(
            f"the report needs {package}: pip install 'attention-zoo[report]'"
        ) from None
    return re.sub(r"</(?=script)", r"<\\/", get_plotlyjs(), flags=re.IGNORECASE)


def _settings(records: Sequence[Record]) -> dict[str, Setting]:
    """Settings with runs by their folder's name, nearest to the paper's first."""
    runs, costs = ([r for r in records if r["kind"] == kind] for kind in ("run", "cost"))
    return {setting.label: setting for setting in find_settings(runs, costs) if setting.runs}


def _described(
    stem: Path, settings: Mapping[str, Setting], records: Sequence[Record]
) -> tuple[str, str]:
    """What kind of figure one of :func:`.figures.all_figures` is, and what was measured."""
    if setting := settings.get(stem.parent.as_posix()):
        return stem.name, setting_text(setting)
    record = _record_of(stem, records)
    if record is None:
        return stem.name, stem.name
    kind, _, rest = stem.name.partition("-")
    shown = rest.removeprefix(record["id"]).lstrip("-")
    return shown or kind, f"{record['id']}, {describe_machine(record)}"


def _record_of(stem: Path, records: Sequence[Record]) -> Record | None:
    """The record that a figure outside the settings' folders names."""
    rest = stem.name.partition("-")[2]
    return next((r for r in records if f"{rest}-".startswith(f"{r['id']}-")), None)


def _setting_section(
    setting: Setting,
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[tuple[Path, Any]],
    benches: Sequence[Any],
    records: Sequence[Record],
) -> Section:
    tags, where = setting_tags(setting), setting_text(setting)
    figures = [
        figure_block(
            stem.as_posix(),
            *_described(stem, {setting.label: setting}, records),
            figure,
            tags,
            _device_of(stem.name),
        )
        for stem, figure in drawn
        if stem.parent.as_posix() == setting.label
    ]
    return Section(
        anchor=slug(f"setting-{setting.label}"),
        title=_setting_title(setting),
        about=f"{where[0].upper()}{where[1:]}. Folder of its tables: {setting.label}.",
        plots=list(setting_plots(setting, benches)),
        tables=[
            table_block(table, folder, tags, setting)
            for folder, table in tables
            if folder == setting.label
        ],
        figures=figures,
    )


def _setting_title(setting: Setting) -> str:
    config = setting.config
    start = config.get("start")
    steps = f"{start['steps']} + {config['steps']}" if start else f"{config['steps']}"
    rate = f", rate {config['learning_rate']:g}" if "learning_rate" in config else ""
    return (
        f"Preset {config['preset']}, ×{config['scale']}, {config['protocol']}, {steps} steps{rate} "
        f"({setting.label.rpartition('-')[2]})"
    )


def _device_of(name: str) -> str:
    """What a figure's name tells of the machine."""
    return name.removeprefix("pareto-latency-") if name.startswith("pareto-latency-") else ""


def _other_sections(
    records: Sequence[Record],
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[tuple[Path, Any]],
    settings: Mapping[str, Setting],
) -> Iterator[Section]:
    """What belongs to no setting: modules, counts, latency, speed, scaling; approximation."""
    devices = devices_by_machine(records)
    figures: dict[str, list[FigureBlock]] = {"scaling": []}
    for stem, figure in drawn:
        if stem.parent.as_posix() in settings:
            continue
        record = _record_of(stem, records)
        block = figure_block(
            stem.as_posix(),
            *_described(stem, settings, records),
            figure,
            record_tags(record) if record else {},
            record["id"] if record else stem.name,
        )
        figures.setdefault(stem.name.partition("-")[0], []).append(block)
    yield Section(
        "cost",
        "Modules, latency, speed and scaling",
        "What belongs to no training. Compare latencies within one table only.",
        tables=[
            table_block(table, folder, table_tags(table, devices))
            for folder, table in tables
            if folder not in settings
        ],
        figures=figures.pop("scaling"),
    )
    for kind, found in figures.items():
        title = "ENLA’s approximation and NLSA’s buckets"
        yield Section(kind, title if kind == "approximation" else kind.capitalize(), figures=found)


def _findings(setting: Setting) -> Findings | None:
    """The claims of a setting in plain sentences."""
    found = find_claims(setting)
    if not found:
        return None
    counts = dict.fromkeys(("reproduced", "not reproduced", "not decided"), 0)
    for finding in found:
        counts[finding.verdict.partition(" (")[0]] += 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return Findings(
        _setting_title(setting),
        f"{plural(len(found), 'claim')} on {setting.test_set}: {told}.",
        [f"{finding.sentence}." for finding in found],
        setting_tags(setting),
    )


def _published(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures under ``figures/`` that a JSON describes: those drawn from weights."""
    for path in sorted((results / "figures").glob("*.json")):
        picture = path.with_suffix(".png")
        content = read_json(path)
        if picture.exists() and isinstance(content, dict) and "command" in content:
            yield path.stem, content | {"png": picture.read_bytes()}


def _with_weights(name: str, content: dict[str, Any], records: Sequence[Record]) -> FigureBlock:
    """A figure of trained networks, with the tags of their runs."""
    drawn = set(content.get("runs", []))
    runs = [r for r in records if r["id"] in drawn]
    tags: dict[str, list[str]] = {}
    for run in runs:
        for key, values in record_tags(run).items():
            tags[key] = sorted({*tags.get(key, []), *values})
    where = _pictured(name, content)
    return published_figure(name, content["png"], where, tags, content["command"])


def _pictured(name: str, content: dict[str, Any]) -> str:
    """Image and runs of a figure of trained networks."""
    return f"{content.get('image', name)}; runs {', '.join(sorted(content.get('runs', [])))}"


def measuring_text() -> str:
    """The documentation's page on measuring: of the checkout, or as it was installed.

    Raises:
        UserError: it is in neither place.
    """
    path = Path(__file__).parents[3] / "docs" / _MEASURING
    if not path.exists():
        try:
            files = metadata.distribution("attention-zoo").files or []
        except metadata.PackageNotFoundError:
            files = []
        found = [Path(str(f.locate())) for f in files if f.name == _MEASURING]
        if not found:
            raise UserError(f"{path} is missing: install attention-zoo again, or restore the file")
        path = found[0]
    return path.read_text(encoding="utf-8")


def _measuring() -> Any:
    """:func:`measuring_text` as HTML, its headings below the page's."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(measuring_text())
    start = next((i for i, t in enumerate(tokens) if t.type == "heading_close"), -1) + 1
    kept = tokens[start:]
    for index, token in enumerate(kept):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
        elif token.type == "th_open":
            if kept[index + 1].content:
                token.attrSet("scope", "col")
            else:  # a head without words is none
                token.tag = kept[index + 2].tag = "td"
    html = parser.renderer.render(kept, parser.options, {})
    html = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", html)
    before = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
    return Markup(html.replace("<table>", before).replace("</table>", "</table></div>"))


def _machines(records: Sequence[Record]) -> list[Machine]:
    """The machines as the records describe them, each with all values that occur."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(hardware(record), []).append(record)
    machines = []
    for title, found in sorted(groups.items()):
        values: dict[str, set[str]] = {}
        for record in found:
            for key, value in _flat(record["machine"]):
                values.setdefault(key, set()).add(value)
        kinds = Counter(record["kind"] for record in found)
        facts = [("records", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))]
        facts += [(key, ", ".join(sorted(several))) for key, several in values.items()]
        machines.append(Machine(title, facts, {"device": [title]}))
    return machines


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested objects in words; those that are unknown are left out."""
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            yield from _flat(value, f"{name} ")
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif value is not None:
            yield name, str(value)


def _records_table(records: Sequence[Record]) -> TableBlock:
    """A row for each record: what it is, when, where, by which command."""
    headers = ("Record", "Command", "Kind", "Setting", "Measured", "Machine", "Code")
    rows = []
    for record in records:
        cells = [
            _KINDS.get(record["kind"], record["kind"]),
            setting_label(record) if record["kind"] == "run" else "",
            record["created"][:16].replace("T", " "),
            describe_machine(record),
            describe_code(record),
        ]
        rows.append(
            Row(
                [
                    Cell(record["id"], "text"),
                    Cell(record["command"], "text long", code=True),
                    *(Cell(text, "text") for text in cells),
                ],
                tags=record_tags(record),
            )
        )
    return TableBlock(
        anchor="records-table",
        title="All records",
        about="By kind and id",
        head=table_head([("", header) for header in headers], ["text"] * len(headers)),
        rows=rows,
    )

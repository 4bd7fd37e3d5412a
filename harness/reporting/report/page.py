"""The report: all tables, figures and records on one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...base.errors import UserError
from ...base.files import read_json, write_text
from ...base.names import slug
from ...records.origin import describe_code, describe_machine, plural
from ...records.shapes import UNSET, Approximation, Cost, Record, Run, Scaling, untyped
from ...records.store import load_all_records, setting_label
from ..cells import setting_text
from ..figures.all import Drawn, draw_all
from ..figures.style import COLUMN, figure_bytes
from ..profile import Profile
from ..settings import Setting, find_settings, image_task_settings, of_task, super_resolution
from ..tables.all import all_tables
from ..tables.claims import VERDICTS, find_claims
from ..tables.profile import PROFILE_TABLES, profile_text
from ..tables.render import Table, minus
from ..tables.tasks import task_settings
from .blocks import (
    Cell,
    FigureBlock,
    Picture,
    Row,
    TableBlock,
    Tags,
    devices_by_machine,
    figure_block,
    hardware,
    record_tags,
    setting_tags,
    table_block,
    table_head,
    table_tags,
)
from .latex import LatexFigure, write_latex
from .measuring import measuring_html
from .svg import inline_svg, plot_svg, points_table

_TEMPLATES = Path(__file__).parent / "templates"
_PROFILE = "Capability profile"
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
class MachineFacts:
    """What the records say of one machine."""

    title: str
    facts: Sequence[tuple[str, str]]
    tags: Tags


@dataclass(frozen=True)
class Published:
    """A figure that needed weights or images, as it lies in the results folder.

    Attributes:
        stem: its files' path without suffix.
        command: what drew it.
        image: name of the image it shows; the figure's own name if it shows several.
        runs: ids of the networks.
    """

    stem: Path
    command: str
    image: str
    runs: Sequence[str]

    @property
    def kind(self) -> str:
        """``maps`` or ``visual``."""
        return self.stem.name.partition("-")[0]

    @property
    def where(self) -> str:
        """Image and runs."""
        return f"{self.image}; runs {', '.join(sorted(self.runs))}"


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
    machines: Sequence[MachineFacts]
    records: TableBlock
    command: str = "python -m harness.report"
    version: str = __version__


def write_report(results: Path, output: Path | None = None, task: str | None = None) -> list[Path]:
    """Write ``index.html`` and ``latex/``; returns the page and the LaTeX document.

    Args:
        results: folder that holds records/.
        output: where both go; ``report/`` in the results folder if not given.
        task: only this task; of any but the default, only its own tables, figures and runs.

    Raises:
        UserError: no records, none of the task, a bad record, the extra ``report`` is not
            installed, or a folder cannot be written.
    """
    _check_extra()
    tables = all_tables(results, task=task)
    records = load_all_records(results)
    drawn, published = list(draw_all(records, task)), list(find_published(results))
    if task is not None:
        records = of_task(records, task)
        if task != "sr":
            records = [record for record in records if isinstance(record, Run)]
            published = [one for one in published if {*one.runs} & {r.id for r in records}]
    output = output or results / "report"
    path = output / "index.html"
    write_text(path, render_page(build_page(records, tables, drawn, published)))
    figures = [LatexFigure(d.stem.as_posix(), d.kind, _where(d.source), d.figure) for d in drawn]
    figures += [
        LatexFigure(picture.stem.name, picture.kind, picture.where, pdf)
        for picture in published
        if (pdf := picture.stem.with_name(f"{picture.stem.name}.pdf")).exists()
    ]
    titles = {setting.label: _setting_title(setting) for setting in _settings(records)}
    titles |= {d.stem.name: _PROFILE for d in drawn if isinstance(d.source, Profile)}
    titles |= {table.name: _PROFILE for _, table in tables if table.name in PROFILE_TABLES}
    return [path, write_latex(output / "latex", tables, figures, titles)]


def find_published(results: Path) -> Iterator[Published]:
    """Figures under ``figures/`` with a JSON beside them: those drawn from weights."""
    for path in sorted((results / "figures").glob("*.json")):
        content = read_json(path)
        if path.with_suffix(".png").exists() and isinstance(content, dict) and "command" in content:
            image, runs = content.get("image", path.stem), content.get("runs", [])
            yield Published(path.with_suffix(""), content["command"], image, runs)


def build_page(
    records: Sequence[Record],
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[Drawn],
    published: Sequence[Published] = (),
) -> Page:
    """Everything that the page shows.

    Args:
        records: all records.
        tables: as :func:`.tables.all.all_tables` gives them.
        drawn: as :func:`.figures.all.draw_all` gives them.
        published: the figures that need weights.
    """
    settings = _settings(records)
    sections = [
        *(_setting_section(setting, tables, drawn) for setting in settings),
        *_other_sections(records, tables, drawn, {setting.label for setting in settings}),
        *_pictures_section(records, published),
    ]
    findings = [found for setting in settings if (found := _findings(setting))]
    machines = _machines(records)
    tags = record_tags(*records)
    contents = [
        ("guide", "How to read this page"),
        *([("findings", "The paper’s claims, and what these data say")] if findings else []),
        *((section.anchor, section.title) for section in sections),
        ("measuring", "How each number was measured"),
        ("machines", "Machines"),
        ("records", "Records and their commands"),
    ]
    days = sorted(record.created[:10] for record in records)
    runs = sum(isinstance(record, Run) for record in records)
    figures = sum(len(section.figures) for section in sections)
    return Page(
        title="attention-zoo: what was measured",
        summary=f"Non-local attention for image super-resolution: {plural(len(records), 'record')} "
        f"from {days[0]} to {days[-1]}, among them {plural(runs, 'training run')} in "
        f"{plural(len(settings), 'setting')}, on {plural(len(machines), 'machine model')}; "
        f"{plural(len(tables), 'table')}, {plural(figures, 'figure')}.",
        contents=contents,
        findings=findings,
        filters=[(name, title, tags.get(name, [])) for name, title in _FILTERS.items()],
        sections=sections,
        measuring=measuring_html(),
        machines=machines,
        records=_records_table(records),
    )


def render_page(page: Page) -> str:
    """The page as HTML."""
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
    return template.render(page=page, css=style, script=script) + "\n"


def _check_extra() -> None:
    """Raise UserError if a package of the extra ``report`` is missing."""
    try:
        import jinja2  # noqa: F401
        import markdown_it  # noqa: F401
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(
            f"the report needs {package}: pip install 'attention-zoo[report]'"
        ) from None


def _settings(records: Sequence[Record]) -> list[Setting]:
    """Settings with runs, nearest to the paper's first."""
    runs = super_resolution(records)
    costs = [record for record in records if isinstance(record, Cost)]
    return find_settings(runs, costs) if runs else []


def _setting_section(
    setting: Setting, tables: Sequence[tuple[str, Table]], drawn: Sequence[Drawn]
) -> Section:
    tags, where = setting_tags(setting), setting_text(setting)
    return Section(
        anchor=slug(f"setting-{setting.label}"),
        title=_setting_title(setting),
        about=f"{where[0].upper()}{where[1:]}. Folder of its tables: {setting.label}.",
        tables=[
            table_block(table, folder, tags, setting)
            for folder, table in tables
            if folder == setting.label
        ],
        figures=[_drawn_block(d, tags) for d in drawn if d.stem.parent.name == setting.label],
    )


def _setting_title(setting: Setting) -> str:
    config = setting.config
    start = "" if config.start is UNSET else f"{config.start.steps} + "
    rate = "" if config.learning_rate is UNSET else f", rate {config.learning_rate:g}"
    return (
        f"Preset {config.preset}, ×{config.scale}, {config.protocol}, {start}{config.steps} "
        f"steps{rate} ({setting.label.rpartition('-')[2]})"
    )


def _other_sections(
    records: Sequence[Record],
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[Drawn],
    settings: Iterable[str],
) -> Iterator[Section]:
    """What belongs to no setting: profile, tasks; modules, counts, latency, …; approximation."""
    devices = devices_by_machine(records)
    figures: dict[str, list[FigureBlock]] = {"scaling": [], "approximation": []}
    for one in drawn:
        if isinstance(one.source, Approximation | Scaling):
            figures[one.source.kind].append(_drawn_block(one, record_tags(one.source)))
    yield from _profile_section(tables, drawn)
    runs = [record for record in records if isinstance(record, Run)]
    tasks = {setting.label for setting in task_settings(runs)}
    if tasks:
        yield Section(
            "tasks",
            "Synthetic tasks",
            "Scores of networks that learned something else than super-resolution, for which they "
            "must match.",
            tables=[
                table_block(table, folder, table_tags(table, devices))
                for folder, table in tables
                if folder in tasks
            ],
        )
    on_images = {setting.label for setting in image_task_settings(runs)}
    if on_images:
        yield Section(
            "image-tasks",
            "Denoising and other LR images",
            "Quality of networks that restore images from something else than bicubic LR images.",
            tables=[
                table_block(table, folder, table_tags(table, devices))
                for folder, table in tables
                if folder in on_images
            ],
        )
    measured = [
        table_block(table, folder, table_tags(table, devices))
        for folder, table in tables
        if folder not in {*settings, *tasks, *on_images} and table.name not in PROFILE_TABLES
    ]
    if measured or figures["scaling"]:
        yield Section(
            "cost",
            "Modules, latency, speed and scaling",
            "What belongs to no training. Compare latencies within one table only.",
            tables=measured,
            figures=figures["scaling"],
        )
    if found := figures["approximation"]:
        title = "ENLA’s approximation and NLSA’s buckets"
        yield Section("approximation", title, figures=found)


def _profile_section(
    tables: Sequence[tuple[str, Table]], drawn: Sequence[Drawn]
) -> Iterator[Section]:
    found = [table for _, table in tables if table.name in PROFILE_TABLES]
    if found:
        figures = [one for one in drawn if isinstance(one.source, Profile)]
        tags = _source_tags(figures[0].source) if figures else {}
        yield Section(
            "capability",
            _PROFILE,
            "What each module can do that needs matching: small networks, trained on pictures of "
            "side n and tested on larger ones.",
            tables=[table_block(table, "", tags) for table in found],
            figures=[_drawn_block(one, tags) for one in figures],
        )


def _source_tags(source: Setting | Record | Profile) -> Tags:
    if isinstance(source, Profile):
        return record_tags(*(run for runs in source.runs.values() for run in runs))
    return setting_tags(source) if isinstance(source, Setting) else record_tags(source)


def _pictures_section(
    records: Sequence[Record], published: Sequence[Published]
) -> Iterator[Section]:
    figures = [
        figure_block(
            picture.stem.name,
            picture.kind,
            Picture.of(picture.stem.with_name(f"{picture.stem.name}.png").read_bytes()),
            picture.where,
            record_tags(*(record for record in records if record.id in picture.runs)),
            which=picture.stem.name.partition("-")[2],
            command=picture.command,
        )
        for picture in published
    ]
    if figures:
        yield Section(
            "pictures",
            "Maps and visual comparisons",
            "Drawn from trained weights by the command below each.",
            figures=figures,
        )


def _drawn_block(drawn: Drawn, tags: Tags) -> FigureBlock:
    stem, plot = drawn.stem.as_posix(), drawn.plot
    image: Picture | str
    if isinstance(drawn.source, Profile):
        image = inline_svg(drawn.figure, {}, stem)
    elif plot is None:
        image = Picture.of(figure_bytes(drawn.figure, "png"))
    else:
        image = plot_svg(plot, drawn.figure, stem)
    where = _where(drawn.source)
    block = figure_block(stem, drawn.kind, image, where, tags, which=drawn.which)
    if isinstance(drawn.source, Profile):
        return replace(block, wide=drawn.figure.get_figwidth() > COLUMN)
    if plot is None:
        return block
    return replace(block, points=points_table(plot, block.title, f"{block.anchor}-points"))


def _where(source: Setting | Record | Profile) -> str:
    """What was measured for a figure."""
    if isinstance(source, Setting):
        return setting_text(source)
    if isinstance(source, Profile):
        return profile_text(source)
    return f"{source.id}, {describe_machine(source)}"


def _findings(setting: Setting) -> Findings | None:
    """The claims of a setting in plain sentences."""
    found = find_claims(setting)
    if not found:
        return None
    counts = Counter(finding.verdict.partition(" (")[0] for finding in found)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return Findings(
        _setting_title(setting),
        f"{plural(len(found), 'claim')} on {setting.test_set}: {verdicts}.",
        [minus(f"{finding.sentence}.") for finding in found],
        setting_tags(setting),
    )


def _machines(records: Sequence[Record]) -> list[MachineFacts]:
    """The machines as the records describe them, each with all values that occur."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(hardware(record), []).append(record)
    machines = []
    for title, found in sorted(groups.items()):
        values: dict[str, set[str]] = {}
        for record in found:
            for key, value in _flat(untyped(record.machine)):
                values.setdefault(key, set()).add(value)
        kinds = Counter(record.kind for record in found)
        facts = [("records", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))]
        facts += [(key, ", ".join(sorted(several))) for key, several in values.items()]
        machines.append(MachineFacts(title, facts, {"device": [title]}))
    return machines


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested objects in words; unknown values are left out."""
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
            _KINDS.get(record.kind, record.kind),
            setting_label(record) if isinstance(record, Run) else "",
            record.created[:16].replace("T", " "),
            describe_machine(record),
            describe_code(record),
        ]
        rows.append(
            Row(
                [
                    Cell(record.id, "text"),
                    Cell(record.command, "text long", code=True),
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

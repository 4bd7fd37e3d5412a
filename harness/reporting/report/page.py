"""The report: all tables, figures and records on one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ... import __version__
from ...base.errors import UserError
from ...base.extras import install_extra
from ...base.files import read_json, write_text
from ...base.names import canonical_json, slug
from ...records.origin import describe_code, describe_machine, plural
from ...records.shapes import UNSET, Approximation, Cost, Latency, Record, Run, Scaling, untyped
from ...records.store import load_all_records, setting_label
from ..benches import HISTORY, find_benches
from ..cells import (
    difference_cell,
    fixed,
    measured_header,
    milliseconds,
    psnr_cell,
    setting_text,
    training_cells,
)
from ..figures.all import Drawn, draw_all
from ..figures.style import COLUMN, figure_bytes, glyphs_told
from ..profile import Profile
from ..settings import Setting, find_settings, image_task_settings, of_task, super_resolution
from ..tables.aggregate import profile_text
from ..tables.all import all_tables
from ..tables.claims import VERDICTS, find_claims
from ..tables.joined import MARK, NOTE, joined_runs
from ..tables.profile import PROFILE_TABLES
from ..tables.render import Table, minus
from ..tables.tasks import task_settings
from .blocks import (
    Cell,
    FigureBlock,
    Picture,
    Row,
    TableBlock,
    Tags,
    column_kinds,
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
from .svg import plot_svg, points_table

_TEMPLATES = Path(__file__).parent / "templates"
_PROFILE = "Capability profile"
_FILTERS = {"preset": "Preset", "data": "Training data", "device": "Device"}
#: Beginnings of the main tables' names; those that belong to no training.
MEASURED = (
    *("table5", "latency", "speed", "methods", "modules"),
    *("profile", "leaderboard", "gpu"),
)
MAIN = ("table", "claims", *MEASURED)
#: Dots per inch and colours of pictures, and methods of the first screen.
PICTURE_DPI, COLOURS, RANKED = 108, 64, 8
#: Most bytes of the page: figures that do not fit are named instead.
MOST_BYTES = 2_900_000
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
class Glance:
    """The first screen: who is ahead, one figure, and what the paper's claims come to."""

    about: str
    verdicts: str
    ranking: TableBlock
    figure: FigureBlock | None


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
    glance: Glance | None = None
    left_out: Sequence[str] = ()
    command: str = "python -m harness.report"
    version: str = __version__


@glyphs_told()
def write_report(
    results: Path,
    output: Path | None = None,
    task: str | None = None,
    *,
    everything: bool = False,
) -> list[Path]:
    """Write ``index.html`` and ``latex/``; returns the page and the LaTeX document.

    Args:
        results: folder that holds records/.
        output: where both go; ``report/`` in the results folder if not given.
        task: only this task; of any but the default, only its own tables, figures and runs.
        everything: whether ``latex/`` has all tables and figures, and not only the main ones.

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
    joined = joined_runs(results, [record for record in records if isinstance(record, Run)])
    write_text(path, render_page(build_page(records, tables, drawn, published, joined)))
    main = None if everything else _main_setting(records)
    if main:
        tables = [(folder, t) for folder, t in tables if not folder and _is_main(t)]
        drawn = [
            d
            for d in drawn
            if d.stem.parent.name == main.label or d.kind in ("profile-capacity", "profile-gflops")
        ]
        published = []
    figures = [LatexFigure(d.stem.as_posix(), d.kind, _where(d.source), d.figure) for d in drawn]
    figures += [
        LatexFigure(picture.stem.name, picture.kind, picture.where, pdf)
        for picture in published
        if (pdf := picture.stem.with_name(f"{picture.stem.name}.pdf")).exists()
    ]
    titles = {setting.label: _setting_title(setting) for setting in _settings(records)}
    titles |= {d.stem.name: _PROFILE for d in drawn if isinstance(d.source, Profile)}
    if main:
        own = {table.name for _, table in tables if not table.name.startswith(MEASURED)}
        titles |= dict.fromkeys(own, _setting_title(main))
    titles |= {table.name: _PROFILE for _, table in tables if table.name in PROFILE_TABLES}
    folder = output / "latex"
    return [path, write_latex(folder, tables, figures, titles, everything=main is None)]


def _main_setting(records: Sequence[Record]) -> Setting | None:
    """The setting with the canonical tables; None without runs."""
    return next(iter(_settings(records)), None)


def _is_main(table: Table) -> bool:
    """Whether a table that stands in no folder is one of those that a paper has."""
    return table.name.startswith(MAIN) and not table.name.endswith("-details")


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
    joined: Collection[str] = (),
) -> Page:
    """Everything that the page shows.

    Args:
        records: all records.
        tables: as :func:`.tables.all.all_tables` gives them.
        drawn: as :func:`.figures.all.draw_all` gives them.
        published: the figures that need weights.
        joined: ids of published runs beside a user's own.
    """
    settings = _settings(records)
    main = settings[0].label if settings else None
    # History, and the canonical copies of the main setting's tables, stand in the folder alone.
    drawn = [one for one in drawn if one.stem.parent.name != HISTORY]
    own = {table.name for folder, table in tables if folder == main}
    tables = [
        (folder, table)
        for folder, table in tables
        if folder != HISTORY and not (folder == "" and table.name in own)
    ]
    sections = [
        *(_setting_section(setting, tables, drawn, main) for setting in settings),
        *_other_sections(records, tables, drawn, {setting.label for setting in settings}),
        *_pictures_section(records, published),
    ]
    glance = _glance(settings[0], records, sections[0].figures, joined) if settings else None
    first = glance.figure if glance else None
    sections = [
        replace(section, figures=[one for one in section.figures if one is not first])
        for section in sections
    ]
    sections = _with_own_titles(sections)
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
    page = Page(
        title="attention-zoo: what was measured",
        summary=f"Non-local attention for image super-resolution: {plural(len(records), 'record')} "
        f"from {days[0]} to {days[-1]}, among them {plural(runs, 'training run')} in "
        f"{plural(len(settings), 'setting')}, on {plural(len(machines), 'machine model')}; "
        f"{plural(len(tables), 'table')}, {plural(len(drawn) + len(published), 'figure')}.",
        contents=contents,
        findings=findings,
        filters=[(name, title, tags.get(name, [])) for name, title in _FILTERS.items()],
        sections=sections,
        measuring=measuring_html(),
        machines=machines,
        records=_records_table(records),
        glance=glance,
    )
    return _within_limit(page)


def _glance(
    setting: Setting,
    records: Sequence[Record],
    figures: Sequence[FigureBlock],
    joined: Collection[str],
) -> Glance:
    """The ranking of the setting nearest to the paper's, its plot against GFLOPs, its verdicts."""
    benches = find_benches(record for record in records if isinstance(record, Latency))
    of_cpu = [bench for bench in benches if not bench.folder and bench.place == "cpu"]
    ranked, baseline, above = [], [], []
    for label, variant in setting.trained:
        if (psnr := setting.psnr_of.get(variant)) is None:
            continue
        cost = setting.cost_of.get(variant)
        timed = [row for bench in of_cpu if (row := bench.find(variant, "core", "forward", 100))]
        mixed = any(run.id in joined for run in setting.runs_of[variant])
        cells = [
            f"{label} {MARK}" if mixed else label,
            psnr_cell(psnr),
            minus(difference_cell(psnr)),
            fixed(cost.parts.core.paper_gflops if cost else None, 2),
            milliseconds(timed[-1].mean_ms) if timed else "",
            training_cells(setting.runs_of[variant])[0],
            str(psnr.seeds),
        ]
        if variant.name == "none":
            baseline.append(cells)
            continue
        ranked.append((psnr.mean if psnr.difference is None else psnr.difference, cells))
        if psnr.low is not None and psnr.low > 0:
            above.append(label)
    ranked.sort(key=lambda found: -found[0])
    rows = [*(cells for _, cells in ranked[:RANKED]), *baseline]
    heads = ("Method", "PSNR (dB)", "difference to baseline", "core GFLOPs", "core ms, CPU")
    headers = [("", head) for head in (*heads, "parameters", "seeds")]
    kinds = column_kinds(headers, rows)
    about = [f"{_setting_title(setting)}."]
    if len(ranked) > RANKED:
        about.append(f"The first {RANKED} of {len(ranked)} methods.")
    if above:
        about.append(f"Above the baseline by their 95 % intervals: {', '.join(above)}.")
    elif setting.baseline:
        about.append("No method's 95 % interval lies above the baseline.")
    if any(run.id in joined for run in setting.runs):
        about.append(NOTE)
    found = _findings(setting)
    return Glance(
        about=" ".join(about),
        verdicts=f"The paper’s claims: {found.about}" if found else "",
        ranking=TableBlock(
            anchor="ranking",
            title=f"Ranking on {measured_header(setting)}",
            about="By difference to the baseline",
            head=table_head(headers, kinds),
            rows=[Row([Cell(t, k) for t, k in zip(row, kinds, strict=True)]) for row in rows],
            tags=setting_tags(setting),
        ),
        figure=next((f for f in figures if f.points and "GFLOPs" in f.title), None),
    )


def _within_limit(page: Page) -> Page:
    """The page without the last figures that would make it larger than :data:`MOST_BYTES`.

    It names them instead. Tables all stay.
    """
    bare = replace(page, sections=[replace(section, figures=[]) for section in page.sections])
    total = len(render_page(bare).encode())
    sections, left_out = [], []
    for section in page.sections:
        figures = []
        for figure in section.figures:
            if total + _size(figure) > MOST_BYTES:
                left_out.append(figure.title)
                continue
            total += _size(figure)
            figures.append(figure)
        sections.append(replace(section, figures=figures))
    return replace(page, sections=sections, left_out=left_out)


def _size(figure: FigureBlock) -> int:
    """Bytes of a figure on the page, about: its image, its words, and the table of its points."""
    image = figure.image if isinstance(figure.image, str) else figure.image.webp
    cells = [cell for row in (figure.points.rows if figure.points else ()) for cell in row.cells]
    return len(image.encode()) + 1500 + sum(len(cell.text) + 30 for cell in cells)


def _with_own_titles(sections: Sequence[Section]) -> list[Section]:
    """Sections in which no two tables or figures are called alike."""
    blocks = [one for s in sections for one in (*s.tables, *s.figures)]
    titles = Counter(one.title for one in cast(list[TableBlock | FigureBlock], blocks))
    titles.update(section.title for section in sections)
    seen: Counter[str] = Counter()

    def own(title: str, section: Section, anchor: str) -> str:
        if titles[title] > 1:
            title = f"{title}: {section.title}"
        seen[title] += 1
        return title if seen[title] == 1 else f"{title}, {anchor}"

    return [
        replace(
            section,
            tables=[replace(t, title=own(t.title, section, t.anchor)) for t in section.tables],
            figures=[_renamed(f, own(f.title, section, f.anchor)) for f in section.figures],
        )
        for section in sections
    ]


def _renamed(figure: FigureBlock, title: str) -> FigureBlock:
    points = figure.points and replace(figure.points, title=f"Points: {title}")
    return replace(figure, title=title, points=points)


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
    numbered: list[Tags] = []  # each once: many rows have the same

    def number(tags: Tags) -> int:
        if tags not in numbered:
            numbered.append(tags)
        return numbered.index(tags)

    style, script = (
        (_TEMPLATES / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js")
    )
    found = template.render(page=page, css=style, script=script, number=number, numbered=numbered)
    return found + "\n"


def _check_extra() -> None:
    """Raise UserError if a package of the extra ``report`` is missing."""
    try:
        import jinja2  # noqa: F401
        import markdown_it  # noqa: F401
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise UserError(f"the report needs {package}: {install_extra('report')}") from None


def _settings(records: Sequence[Record]) -> list[Setting]:
    """Settings with runs, nearest to the paper's first."""
    runs = super_resolution(records)
    costs = [record for record in records if isinstance(record, Cost)]
    return find_settings(runs, costs) if runs else []


def _setting_section(
    setting: Setting,
    tables: Sequence[tuple[str, Table]],
    drawn: Sequence[Drawn],
    main: str | None,
) -> Section:
    """Tables and figures of a setting; against latency only for ``main``, the nearest to the paper.

    There are as many such plots as timed devices and dtypes, of the same cores in every setting.
    """
    tags, where = setting_tags(setting), setting_text(setting)
    own = [one for one in drawn if one.stem.parent.name == setting.label]
    shown = [one for one in own if setting.label == main or one.kind != "pareto-latency"]
    about = f"{where[0].upper()}{where[1:]}. Folder of its tables: {setting.label}."
    if len(shown) < len(own):
        about += f" Its plots against latency are in figures/{setting.label}."
    return Section(
        anchor=slug(f"setting-{setting.label}"),
        title=_setting_title(setting),
        about=about,
        tables=[
            table_block(table, folder, tags, setting)
            for folder, table in tables
            if folder == setting.label
        ],
        figures=[_drawn_block(one, tags) for one in shown],
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
    on_images = {setting.label for setting in image_task_settings(runs, [])}
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
            Picture.shrunk(picture.stem.with_name(f"{picture.stem.name}.png")),
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
    if plot is None:
        png = figure_bytes(drawn.figure, "png", dpi=PICTURE_DPI, colours=COLOURS)
        image = Picture.drawn(png, PICTURE_DPI)
    else:
        image = plot_svg(plot, drawn.figure, stem)
    block = figure_block(stem, drawn.kind, image, _where(drawn.source), tags, which=drawn.which)
    if plot is None:
        return block
    points = points_table(plot, block.title, f"{block.anchor}-points")
    return replace(block, points=points, wide=drawn.figure.get_figwidth() > COLUMN)


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
        f"Claims: {_setting_title(setting)}",
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
    """A row for each record: what it is, when, where, by which command.

    Runs of a variant in a synthetic task, which has hundreds, share a row for each machine and
    version of the code.
    """
    headers = ("Record", "Command", "Kind", "Setting", "Measured", "Machine", "Code")
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key: tuple[str, ...] = (record.kind, record.id)
        if isinstance(record, Run) and record.scores:
            row = canonical_json([record.variant.name, record.variant.options])
            key = (setting_label(record), row, describe_machine(record), describe_code(record))
        groups.setdefault(key, []).append(record)
    rows = []
    for record, *others in groups.values():
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
                    Cell(f"{record.id} and {len(others)} more" if others else record.id),
                    Cell(record.command, code=True),
                    *(Cell(text) for text in cells),
                ],
                tags=record_tags(record),
            )
        )
    return TableBlock(
        anchor="records-table",
        title="All records",
        about="By kind and id; of runs in a row the first one's command and time",
        head=table_head([("", header) for header in headers], ["text"] * len(headers)),
        rows=rows,
    )

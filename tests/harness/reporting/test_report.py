"""The report from made-up records: its HTML, its folder for LaTeX, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import synthetic_records as synthetic
from PIL import Image

from harness.base.errors import UserError
from harness.records.shapes import Run
from harness.records.store import load_all_records, load_records, save_record
from harness.reporting.figures.all import Drawn, draw_all
from harness.reporting.figures.style import figure_bytes
from harness.reporting.report.latex import latex_table
from harness.reporting.report.measuring import measuring_text
from harness.reporting.report.page import (
    COLOURS,
    PICTURE_DPI,
    build_page,
    render_page,
    write_report,
)
from harness.reporting.report.svg import plot_svg
from harness.reporting.settings import find_settings
from harness.reporting.tables.all import all_tables
from harness.reporting.tables.claims import find_claims
from harness.reporting.tables.render import Table, latex_escape, minus
from tests.harness.conftest import Cli

VOID = {"meta", "link", "img", "br", "hr", "input"}
#: Attributes whose value a browser fetches by itself.
LOADED = {"src", "srcset", "data", "poster", "background", "formaction", "action", "xlink:href"}


class Element:
    """An element with its attributes, children, and all text within."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element] = []
        self.text = ""

    def all(self, tag: str | None = None, **wanted: str) -> list[Element]:
        found = [self] if tag in (None, self.tag) else []
        found = [e for e in found if all(e.attributes.get(k) == v for k, v in wanted.items())]
        return found + [e for child in self.children for e in child.all(tag, **wanted)]


class Tree(HTMLParser):
    """The elements of a page; an element that is not closed in turn is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.open = Element("", {}, None)
        self.feed(html)
        self.close()
        assert self.open is self.root, f"<{self.open.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs), self.open)
        self.open.children.append(element)
        if tag not in VOID:
            self.open = element

    def handle_endtag(self, tag: str) -> None:
        assert self.open.tag == tag, f"</{tag}> closes <{self.open.tag}>"
        assert self.open.parent is not None
        self.open = self.open.parent

    def handle_data(self, data: str) -> None:
        element: Element | None = self.open
        while element is not None:
            element.text += data
            element = element.parent


@pytest.fixture(scope="module")
def results(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those records, and some of the capability profile."""
    folder = tmp_path_factory.mktemp("results-and-profile")
    shutil.copytree(results, folder, dirs_exist_ok=True)
    rows: list[tuple[dict[str, Any], list[float]]] = [
        (synthetic.variant("none"), [0.0, 0.01, 0.02]),
        (synthetic.variant("nla", res_scale=1.0), [0.95, 0.94, 0.93]),
        *((synthetic.variant("enlca", m=m, res_scale=1.0), [m / 300] * 3) for m in (2, 16, 128)),
    ]
    for variant, scores in rows:
        for seed in range(2):
            values = [score + seed / 50 for score in scores]
            save_record(folder, synthetic.task_run(variant, values, seed=seed))
    return folder


@pytest.fixture(scope="module")
def drawn(results: Path) -> list[Drawn]:
    return list(draw_all(load_all_records(results)))


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_report(results, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: list[Path]) -> str:
    return written[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def root(page: str) -> Element:
    return Tree(page).root


def words(text: str) -> str:
    return " ".join(text.split())


def body(element: Element) -> list[list[str]]:
    """The cells of the element's table, without its head."""
    rows = element.all("tbody")[0].all("tr")
    return [[words(cell.text) for cell in row.children] for row in rows]


# -- the page -----------------------------------------------------------------------------------


def test_every_cell_of_every_table_is_in_the_page(results: Path, root: Element) -> None:
    blocks = root.all("div", **{"class": "table-block"})
    blocks = [block for block in blocks if block.attributes["id"] != "ranking"]
    shown = [body(table) for block in blocks for table in block.all("table")]
    found = all_tables(results)
    of_settings = {table.name for folder, table in found if folder.startswith("small-")}
    # The canonical copies of a setting's tables stand in the folder alone.
    built = [table for folder, table in found if folder or table.name not in of_settings]
    assert 10 < len(built) < len(found)
    wanted = [[[words(cell) for cell in row] for row in table.rows] for table in built]
    assert sorted(shown) == sorted(wanted)
    for block, table in zip(blocks, shown, strict=True):
        heads = [head for head in block.all("th") if "scope" in head.attributes]
        columns = sum(1 for head in heads if head.all("button"))
        assert {columns} == {len(row) for row in table}
        (caption,) = block.all("caption")
        assert caption.text.strip()
    notes = [words(note) for table in built for note in table.notes]
    items = Counter(words(item.text) for item in root.all("li"))
    assert not Counter(notes) - items


def pixels(picture: bytes) -> bytes:
    with Image.open(io.BytesIO(picture)) as image:
        return image.convert("RGB").tobytes()


def test_every_figure_is_in_the_page(drawn: list[Drawn], root: Element) -> None:
    images = root.all("img")
    shown = {pixels(base64.b64decode(str(i.attributes["src"]).split(",")[1])) for i in images}
    main = drawn[0].stem.parent  # other settings show no plots against latency
    drawn = [d for d in drawn if d.kind != "pareto-latency" or d.stem.parent == main]
    inline = [d for d in drawn if d.plot is not None]
    assert shown == {
        pixels(figure_bytes(d.figure, "png", dpi=PICTURE_DPI, colours=COLOURS))
        for d in drawn
        if d not in inline
    }
    assert len(images) == len(shown) > 3
    assert len(root.all("svg")) == len(inline) > 1
    assert all(int(image.attributes["width"] or 0) > 100 for image in images)
    plots = [p for p in root.all("div", **{"class": "picture"}) if p.all("svg")]
    words = [p.attributes["aria-label"] for p in plots] + [i.attributes["alt"] for i in images]
    assert all(len(str(text)) > 20 for text in words)


def test_every_record_stands_with_its_command(results: Path, root: Element) -> None:
    (section,) = root.all("section", id="records")
    records = load_all_records(results)
    alone = [r for r in records if not (isinstance(r, Run) and r.scores)]
    rows = [row[:2] for row in body(section)]
    assert [row for row in rows if row[0] in {r.id for r in alone}] == [
        [r.id, r.command] for r in alone
    ]
    (machines,) = root.all("section", id="machines")
    assert {h.text for h in machines.all("h3")} == {"cpu: Made-up CPU", "cuda: Made-up GPU"}


def test_the_profile_is_the_first_of_the_tasks(root: Element) -> None:
    anchors = [str(section.attributes.get("id")) for section in root.all("section")]
    assert anchors.index("capability") == anchors.index("tasks") - 1
    (section,) = root.all("section", id="capability")
    names = ["Scores of the capability profile", "Controls of the capability profile"]
    headings = [words(heading.text) for heading in section.all("h3")]
    assert headings[:2] == names
    assert len(section.all("figure")) == len(section.all("img")) == 4  # NLA alone has GFLOPs
    assert all("sortable" in str(t.attributes["class"]).split() for t in section.all("table"))
    long = section.all("td", **{"class": "text long"})
    assert any("conditions not measured" in cell.text for cell in long)


def test_a_page_of_one_task_has_nothing_else(cli: Cli, results: Path, tmp_path: Path) -> None:
    found = cli("report", "--results", results, "--output", tmp_path, "--task", "recall").out
    root = Tree(Path(found.splitlines()[0]).read_text(encoding="utf-8")).root
    anchors = [str(section.attributes.get("id")) for section in root.all("section")]
    assert anchors == ["guide", "capability", "tasks", "measuring", "machines", "records"]
    (records,) = root.all("section", id="records")
    rows = [re.fullmatch(r"(\S+)(?: and (\d+) more)?", row[0]) for row in body(records)]
    runs = [run for run in load_records(results, Run) if run.scores]
    assert {row[1] for row in rows if row} <= {run.id for run in runs}
    assert sum(1 + int(row[2] or 0) for row in rows if row) == len(runs) == 10
    assert 1 < len(rows) < 10  # runs that differ in seed or rate share a row
    main = (tmp_path / "latex" / "main.tex").read_text(encoding="utf-8")
    assert main.count(r"\section{Capability profile}") == 1
    assert "profile-capacity" in main


def test_claims_stand_in_sentences(results: Path, root: Element) -> None:
    settings = find_settings(load_records(results, Run), [])
    sentences = [minus(f"{f.sentence}.") for s in settings for f in find_claims(s)]
    assert any("not decided (one seed)" in s for s in sentences)
    assert any(s.endswith(": reproduced.") for s in sentences)
    (section,) = root.all("section", id="findings")
    assert [words(item.text) for item in section.all("li")] == [words(s) for s in sentences]


def test_points_of_plots_show_their_numbers_and_stand_in_a_table(root: Element) -> None:
    plots = [figure for figure in root.all("figure") if figure.all("svg") and figure.all("table")]
    assert len(plots) >= 2
    for plot in plots:
        titles = [title.text.splitlines() for title in plot.all("title")]
        assert {"NLA", "NLSA-r4"} <= {label for label, *_ in titles}
        told = {
            (label, cost.rpartition(": ")[2], f"{float(psnr.split()[1]):.2f}", "seeds" in rest[-1])
            for label, cost, psnr, *rest in titles
        }
        assert told == {(row[0], row[2], row[3], row[5] != "") for row in body(plot)}
    titles = [title.text for plot in plots for title in plot.all("title")]
    nla = r"NLA\ncore GFLOPs: 2\.00\nPSNR: 26\.333 dB\nto baseline: .* dB\nseeds: 1"
    assert any(re.fullmatch(nla, title) for title in titles)
    assert any(title.endswith("paper, not measured here") for title in titles)
    assert any(title.startswith(synthetic.AWKWARD) for title in titles)


def test_measuring_is_that_of_the_documentation(root: Element) -> None:
    (section,) = root.all("section", id="measuring")
    shown = words(section.text)
    text = (Path(__file__).parents[3] / "docs" / "measuring.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [h.text for h in section.all("h3")]
    for sentence in re.findall(r"^- ([A-Z][\w ,]{20,})", text, re.MULTILINE):
        assert words(sentence) in shown


def test_measuring_is_found_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = measuring_text()
    installed = tmp_path / "share" / "measuring.md"
    installed.parent.mkdir()
    installed.write_text(wanted, encoding="utf-8")
    files = [SimpleNamespace(name="measuring.md", locate=lambda: installed)]
    distribution = SimpleNamespace(files=files)
    module = tmp_path / "site-packages" / "harness" / "reporting" / "report" / "measuring.py"
    monkeypatch.setattr("harness.reporting.report.measuring.__file__", str(module))
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: distribution)
    assert measuring_text() == wanted
    files.clear()
    with pytest.raises(UserError, match=r"measuring\.md is missing: install"):
        measuring_text()


def test_nothing_is_loaded_from_elsewhere(page: str, root: Element) -> None:
    for element in root.all():
        for name, value in element.attributes.items():
            if name in LOADED or (name == "href" and element.tag != "a"):
                assert str(value).startswith(("data:", "#")), (element.tag, name, value)
    (policy,) = root.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in str(policy.attributes["content"])
    styles = "".join(style.text for style in root.all("style"))
    assert styles
    assert "url(" not in styles
    assert "@import" not in styles
    assert len(page.encode()) < 1e6


def test_text_of_records_stays_text(root: Element) -> None:
    assert any(head.text == synthetic.AWKWARD for head in root.all("th", scope="row"))
    for script in root.all("script"):
        assert "alert(1)" not in script.text


def test_the_page_is_sound_html(root: Element) -> None:
    ids = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for element in root.all():
        found = {name: str(value or "") for name, value in element.attributes.items()}
        targets = [*found.get("aria-labelledby", "").split(), *found.get("for", "").split()]
        if found.get("href", "").startswith("#"):
            targets.append(found["href"][1:])
        if clip := found.get("clip-path"):
            targets.append(clip.removeprefix("url(#").removesuffix(")"))
        assert {*targets} <= {*ids}
    (html,) = root.all("html")
    assert html.attributes["lang"] == "en"
    levels = [int(e.tag[1]) for e in root.all() if re.fullmatch(r"h[1-6]", e.tag)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after - before <= 1 for before, after in pairwise(levels))
    known = {
        str(select.attributes["name"]): [o.attributes["value"] for o in select.all("option")]
        for select in root.all("select")
    }
    assert known["preset"] == ["", "quick", "small"]
    assert known["device"] == ["", "cpu: Made-up CPU", "cuda: Made-up GPU"]
    (numbered,) = root.all("script", id="tags")
    tags = json.loads(numbered.text)
    assert len({json.dumps(one) for one in tags}) == len(tags) > 3
    used = {e.attributes["data-tags"] for e in root.all() if "data-tags" in e.attributes}
    assert used == {*map(str, range(len(tags)))}
    for one in tags:
        for name, values in one.items():
            assert values
            assert {*values} <= {*known[name]}


def test_the_first_screen_ranks_and_no_two_headings_are_alike(root: Element) -> None:
    (glance,) = root.all("section", id="glance")
    rows = body(glance.all("div", id="ranking")[0])
    gains = [float(row[2].split()[0].replace("−", "-")) for row in rows if row[2]]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == len(rows) - 1 == min(8, len(rows) - 1)
    assert rows[-1][0] == "Baseline"
    assert len(glance.all("svg")) == 1
    assert "claims on Urban100" in words(glance.text) or "claim on Urban100" in words(glance.text)
    headings = [words(e.text) for e in root.all() if re.fullmatch(r"h[1-6]", e.tag)]
    assert not [text for text, count in Counter(headings).items() if count > 1]


def test_figures_that_would_make_the_page_large_are_named_instead(
    results: Path, drawn: list[Drawn], page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = len(page.encode()) - 60_000
    monkeypatch.setattr("harness.reporting.report.page.MOST_BYTES", most)
    small = render_page(build_page(load_all_records(results), all_tables(results), drawn))
    root = Tree(small).root
    assert 0 < len(root.all("figure")) < len(drawn)
    (footer,) = root.all("footer")
    left_out = footer.text.partition("draws them: ")[2].partition(".")[0].split("; ")
    assert len(root.all("figure")) + len(left_out) == len(drawn)
    assert most - 40_000 < len(small.encode()) <= most


def test_svg_is_small_and_its_texts_stay_texts(drawn: list[Drawn]) -> None:
    plots = [(one, plot_svg(one.plot, one.figure, "salt")) for one in drawn if one.plot]
    for one, svg in plots:
        assert len(svg) < 40_000
        assert not re.search(r'd="[^"]*\.\d{3}|<g>|>\s+<', svg)
        texts = "".join(Tree(svg).root.text.split())
        shown = [t.get_text() for axes in one.figure.axes for t in axes.texts]
        for text in shown:
            assert "".join(text.split()) in texts
    labels = [text for one, _ in plots for axes in one.figure.axes for text in axes.texts]
    assert any(label.get_path_effects() for label in labels)


@pytest.mark.slow
def test_the_page_of_the_published_records_is_at_most_three_megabytes(tmp_path: Path) -> None:
    path, _ = write_report(Path(__file__).parents[3] / "results", tmp_path)
    page = path.read_text(encoding="utf-8")
    assert len(page.encode()) <= 3e6
    assert "Left out, so that" not in page


def test_the_same_records_give_the_same_page(results: Path, page: str) -> None:
    records = load_all_records(results)
    again = build_page(records, all_tables(results), list(draw_all(records)))
    assert render_page(again) == page


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (None, "no records under .*records; run python -m harness.run first"),
        ("jinja2", r"the report needs jinja2: pip install -e '\.\[report\]'"),
        ("markdown_it", r"the report needs markdown_it: pip install -e '\.\[.*"),
    ],
)
def test_mistakes_are_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str | None, message: str
) -> None:
    if missing:
        for name in [n for n in sys.modules if n.partition(".")[0] == missing]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, missing, None)
    assert re.fullmatch(f"error: {message}", cli.refused("report", "--results", tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_command_writes_beside_the_records(cli: Cli, tmp_path: Path) -> None:
    """Without runs too: operation counts alone."""
    save_record(tmp_path, synthetic.cost("NLA", 2.0))
    printed = [Path(line) for line in cli("report", "--results", tmp_path).out.splitlines()]
    assert printed == [tmp_path / "report" / name for name in ("index.html", "latex/main.tex")]
    tree = Tree(printed[0].read_text(encoding="utf-8"))
    assert "operation counts and quality" in tree.root.text


# -- LaTeX --------------------------------------------------------------------------------------


def wide_table(columns: int, rows: int) -> Table:
    return Table(
        name="wide",
        caption="Table 4: many columns",
        notes=["One note."],
        headers=[("", "Method"), *((f"Group {c // 3}", f"column {c}") for c in range(columns))],
        rows=[[f"row {r}", *(f"{r}.{c} [-1, 1]" for c in range(columns))] for r in range(rows)],
        data=[],
        rule_after=rows // 3,
    )


def test_long_cells_wrap() -> None:
    table = Table("x", "X", [], [("", "a"), ("", "b"), ("", "c")], [["a", "1", "word " * 40]], [])
    text = latex_table(table)
    assert r"\begin{tabular}{lrp{250pt}}" in text
    assert text.count(r"\begin{table}") == 1


@pytest.mark.parametrize(("columns", "rows"), [(2, 3), (4, 80), (14, 4), (30, 50)])
def test_parts_of_a_latex_table_hold_every_cell_once(columns: int, rows: int) -> None:
    table = wide_table(columns, rows)
    text = latex_table(table)
    tabulars = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tabulars) == text.count(r"\begin{table}") == text.count(r"\end{table}")
    found: Counter[str] = Counter()
    for letters, body in tabulars:
        lines = [line for line in body.splitlines() if line.startswith("row ")]
        assert 0 < len(lines) <= 40
        for line in lines:
            cells = line.removesuffix(r" \\").split(" & ")
            assert len(cells) == len(letters)
            found.update(cells[1:])
    assert found == Counter(latex_escape(cell) for row in table.rows for cell in row[1:])
    assert text.count(r"\label{") == text.count("One note.") == 1
    assert (len(tabulars) > 1) == (columns > 6 or rows > 40)
    assert text.count(r"\midrule") - len(tabulars) >= 1


def test_the_latex_folder_has_the_main_tables_alone(written: list[Path], tmp_path: Path) -> None:
    text = written[1].read_text(encoding="utf-8")
    assert text.startswith("% The main tables and figures of the report;")
    tables = re.findall(r"^\\input\{tables/(\S+)\}", text, re.MULTILINE)
    assert {"table1", "table4", "table6", "claims", "table5-cpu", "profile"} <= {*tables}
    assert not [name for name in tables if name.endswith("-details") or "steps" in name]
    assert {path.stem for path in (written[1].parent / "tables").iterdir()} == {*tables}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_document_compiles_and_fits(
    results: Path, drawn: list[Drawn], tmp_path: Path
) -> None:
    folder = write_report(results, tmp_path, everything=True)[1].parent
    extra = latex_table(wide_table(30, 50)) + latex_table(wide_table(5, 3))
    main = folder / "main.tex"
    text = main.read_text(encoding="utf-8")
    for _, table in all_tables(results):
        assert re.search(rf"\\input\{{tables/[^}}]*{re.escape(table.name)}\}}", text), table.name
    for one in drawn:
        assert re.search(rf"figures/[^}}]*{re.escape(one.stem.name)}\.pdf", text), one.stem
    main.write_text(text.replace(r"\end{document}", extra + r"\end{document}"), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", main.name]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
        log = done.stdout.decode(errors="replace")
        assert done.returncode == 0, log[-2000:]
    assert not re.findall(r"Overfull \\hbox \((?:[2-9]|\d\d)\S*pt too wide\)[^\n]*", log)
    assert "too large for page" not in log
    assert "undefined" not in log


# -- in a browser -------------------------------------------------------------------------------


class Browser:
    """A headless Chromium that shows the page."""

    def __init__(self, driver: Any, page: Path) -> None:
        self.driver, self.url, self.run = driver, page.as_uri(), driver.execute_script

    def open(self, width: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what was before
        self.driver.get(self.url)
        self.wait("return document.readyState === 'complete'")

    def wait(self, script: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)


@pytest.fixture(scope="module")
def browser(written: list[Path]) -> Iterator[Browser]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with its chromedriver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as opened:
        opened.set_script_timeout(120)
        yield Browser(opened, written[0])


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_loads_quietly_and_fits(browser: Browser, width: int) -> None:
    browser.open(width)
    messages = [json.loads(e["message"])["message"] for e in browser.driver.get_log("performance")]
    asked = {
        m["params"]["request"]["url"].partition(",")[0][:200]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {browser.url}
    assert browser.driver.get_log("browser") == []
    reach = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"
    assert browser.run(reach) == 0
    # Nothing sticks out, save within what scrolls.
    assert not browser.run(
        "return [...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll > *, .picture > *, .unseen, .skip'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 100))"
    )


COLUMN = """
const table = [...document.querySelectorAll('.table-block table')]
    .find(t => t.caption.textContent.includes(arguments[0]));
const button = [...table.querySelectorAll('thead button')]
    .find(b => b.textContent.trim().replace(/\\s+/g, ' ') === arguments[1]);
"""
READ = """
return [[...table.tBodies[0].rows].map(r => r.cells[button.dataset.column].textContent.trim()),
        button.closest('th').getAttribute('aria-sort')];
"""


@pytest.mark.parametrize("key", [None, "\ue007", " "], ids=["click", "enter", "space"])
def test_tables_sort_by_click_and_by_key(browser: Browser, key: str | None) -> None:
    browser.open(1280)
    where = ("Table 4", "Core GFLOPs paper")
    button = browser.run(COLUMN + "return button", *where)
    original, state = browser.run(COLUMN + READ, *where)
    assert state is None

    def press() -> tuple[list[str], str | None]:
        if key is None:
            browser.run("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
        else:
            button.send_keys(key)
        return tuple(browser.run(COLUMN + READ, *where))

    filled = [cell for cell in original if cell]
    empty = [""] * (len(original) - len(filled))
    assert len(filled) > 5
    assert empty
    assert press() == (sorted(filled, key=float) + empty, "ascending")
    assert "sorted by Core GFLOPs paper, ascending" in browser.run(
        "return document.getElementById('said').textContent"
    )
    assert press() == (sorted(filled, key=float, reverse=True) + empty, "descending")
    assert press() == (original, None)


def test_intervals_sort_by_their_middle_and_words_as_words(browser: Browser) -> None:
    browser.open(1280)

    def sorted_by(column: str) -> list[str]:
        browser.run(COLUMN + "button.click()", "Table 4", column)
        return list(browser.run(COLUMN + READ, "Table 4", column)[0])

    cells = sorted_by("PSNR (dB) difference to baseline")
    values = [float(cell.split()[0]) for cell in cells if cell]
    assert len(values) > 2
    assert values == sorted(values)
    names = sorted_by("Method")
    assert names.index("ENLCA-m2") < names.index("ENLCA-m16") < names.index("ENLCA-m128")


VISIBLE = """
return [...document.querySelectorAll('[data-tags]')]
    .filter(e => e.offsetParent !== null || e.tagName === 'TR' && !e.hidden)
    .map(e => JSON.parse(document.getElementById('tags').textContent)[e.dataset.tags])
    .map(tags => tags[arguments[0]] || null);
"""


@pytest.mark.parametrize(
    ("name", "value"), [("preset", "quick"), ("device", "cuda: Made-up GPU"), ("data", "")]
)
def test_filters_show_what_fits_and_what_belongs_to_all(
    browser: Browser, name: str, value: str
) -> None:
    browser.open(1280)
    value = value or browser.run("return document.getElementById('filter-data').options[1].value")
    before = browser.run(VISIBLE, name)
    shown = browser.run("return document.querySelector('#filters output').textContent")
    browser.run(
        "const s = document.getElementById('filter-' + arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change', {bubbles: true}))",
        name,
        value,
    )
    after = browser.run(VISIBLE, name)
    assert after == [tags for tags in before if tags is None or value in tags]
    if name != "data":  # all made-up runs have the same
        assert len(after) < len(before)
        assert browser.run("return document.querySelector('#filters output').textContent") != shown
        hidden = "return [...document.querySelectorAll('nav li')].filter(l => l.hidden).length"
        assert browser.run(hidden) > 0
    browser.run("document.querySelector('#filters button[type=reset]').click()")
    browser.wait("return [...document.querySelectorAll('[data-tags]')].every(e => !e.hidden)")
    assert browser.run(VISIBLE, name) == before


def test_the_pointer_finds_points(browser: Browser) -> None:
    """Also inside outlines and in front of lines: the title of a point shows where it stands."""
    browser.open(1280)
    found = browser.run(
        "return [...document.querySelectorAll('svg use')].filter(u => u.querySelector('title'))"
        ".map(u => { u.scrollIntoView({block: 'center'}); const b = u.getBoundingClientRect();"
        "const e = document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2);"
        "return e && e.querySelector('title') ? e.querySelector('title').textContent : e.outerHTML;"
        "})"
    )
    assert len(found) > 10
    assert all("PSNR: " in text for text in found), found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing(browser: Browser, width: int, scheme: str) -> None:
    if not os.environ.get("AXE_JS"):
        pytest.skip("AXE_JS does not name axe-core's axe.min.js")
    axe = Path(os.environ["AXE_JS"]).read_text(encoding="utf-8")
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        browser.open(width)
        # Closed notes are read too.
        browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
        browser.run(axe)
        found = browser.driver.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then(r => done("
            "r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html.slice(0, 200))])))"
        )
        assert found == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_is_reached_without_a_mouse(browser: Browser) -> None:
    from selenium.webdriver import ActionChains

    browser.open(1280)
    seen: list[str] = []
    for _ in range(40):
        ActionChains(browser.driver).send_keys("\ue004").perform()
        seen.append(
            browser.run("const e = document.activeElement; return e.className || e.tagName")
        )
    assert seen[0] == "skip"
    assert {"A", "SELECT", "BUTTON", "SUMMARY", "scroll"} <= set(seen)

"""The command draws every figure that the records give, as PNG and PDF."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import synthetic_records as synthetic
from matplotlib.figure import Figure
from PIL import Image

from harness.records.shapes import Record
from harness.records.store import load_all_records, save_record
from harness.reporting.figures.all import draw_all
from harness.reporting.figures.style import (
    COLUMN,
    PAGE,
    figure_bytes,
    fit_labels,
    has_room,
    house_style,
    log_scale,
    new_figure,
    save_figure,
    sized,
)
from tests.harness.conftest import Cli


def test_the_command_writes_png_and_pdf(cli: Cli, results: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    printed = [
        Path(line)
        for line in cli("figures", "--results", results, "--output", first).out.splitlines()
    ]
    assert sorted(printed) == sorted(p for p in first.rglob("*") if p.is_file())
    names = {path.with_suffix("").name for path in printed}
    of_setting = {"figure6", "paired-differences", "pareto-gflops"}
    others = {"pareto-latency-cpu", "scaling-cpu"}
    assert names == of_setting | others
    assert len(printed) == 2 * len({path.with_suffix("") for path in printed})
    for path in printed:
        if path.suffix == ".pdf":
            assert b"/FontFile2" in path.read_bytes(), path  # TrueType, embedded
            assert b"/Subtype /Type3" not in path.read_bytes(), path
        else:
            with Image.open(path) as image:
                assert image.width in (round(200 * COLUMN), round(200 * PAGE)), path
    cli("figures", "--results", results, "--output", second)
    for path in printed:
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes()


def test_figures_are_written_beside_each_other_whatever_their_stem(tmp_path: Path) -> None:
    with house_style():
        figure = new_figure(height=2.0)
        figure.subplots().plot([0, 1], [1, 2])
    paths = save_figure(figure, tmp_path / "a" / "x.y")
    assert paths == [tmp_path / "a" / name for name in ("x.y.png", "x.y.pdf")]
    assert Image.open(paths[0]).size == (round(200 * COLUMN), 400)
    drawn = [figure_bytes(figure, suffix) for suffix in ("png", "pdf")]
    assert [path.read_bytes() for path in paths] == drawn


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records under .*records; run"),
        ([synthetic.run()], "records under .* suffice for no figure: train"),
    ],
)
def test_nothing_to_draw_is_one_line(
    cli: Cli, tmp_path: Path, records: Sequence[Record], message: str
) -> None:
    for record in records:
        save_record(tmp_path, record)
    assert re.search(message, cli.refused("figures", "--results", tmp_path))
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("label", ["$", "$a_$", "$x$", r"\$", "a_b^c"])
def test_dollars_in_labels_and_sets_are_text(label: str) -> None:
    """No figure takes them for a formula."""
    module = synthetic.VARIANTS["User_Attention-8"] | dict.fromkeys(("label", "row_label"), label)
    sets = [f"Set {label}", "Urban100"]
    variants = ("Baseline", "NLA", "NLSA-r4", module)
    runs = [synthetic.run(v, sets=sets, identifier=f"r{i}") for i, v in enumerate(variants)]
    costs = [synthetic.cost(v, float(i + 1), id=f"c{i}") for i, v in enumerate(variants)]
    found = list(draw_all([*runs, *costs]))
    assert {drawn.kind for drawn in found} >= {"paired-differences", "pareto-gflops"}
    for drawn in found:
        assert label in words_of(drawn.figure)


def words_of(figure: Figure) -> str:
    """All text of a figure, as it is drawn."""
    svg = figure_bytes(figure, "svg").decode()
    return html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)", svg)))


def test_labels_of_powers_are_plain_text() -> None:
    with house_style():
        figure = new_figure()
        axis = figure.subplots()
        log_scale(axis, "x")
        axis.set_xlim(1e-2, 1e3)
    assert all(power in words_of(figure) for power in ("10⁻²", "10⁰", "10³"))


def test_figures_are_chosen_by_name_and_module(cli: Cli, results: Path, tmp_path: Path) -> None:
    words = ["figures", "--results", results, "--output", tmp_path]
    out = cli(*words, "--only", "pareto", "paired", "--format", "svg", "--size", "5x4").out
    paths = [Path(line) for line in out.splitlines()]
    assert {path.suffix for path in paths} == {".svg"}
    assert {path.stem for path in paths} >= {"paired-differences", "pareto-gflops"}
    assert all(path.stem.startswith(("pareto", "paired")) for path in paths)
    pair = next(p for p in paths if (p.stem, p.parent.name[:5]) == ("paired-differences", "small"))
    text = pair.read_text(encoding="utf-8")
    assert 'width="360pt" height="288pt"' in text
    assert "small (8×32)" in text
    out = cli(*words, "--only", "paired", "--format", "svg", "--attn", "nla", "--no-title").out
    (pair,) = (Path(line) for line in out.splitlines() if "/small" in line)
    text = pair.read_text(encoding="utf-8")
    assert (">NLA<" in text, "NLSA-r4" in text, "small (8×32)" in text) == (True, False, False)


def test_a_pdf_has_no_title(tmp_path: Path) -> None:
    with house_style():
        figure = new_figure()
        figure.subplots()
        figure.suptitle("A title")
    shown, hidden = (figure_bytes(figure, "svg", titled=titled) for titled in (True, False))
    assert (b"A title" in shown, b"A title" in hidden) == (True, False)
    assert figure_bytes(figure, "svg") == shown  # it is there again
    (path,) = save_figure(figure, tmp_path / "x", ("pdf",))
    assert path.read_bytes() == figure_bytes(figure, "pdf", titled=False)


@pytest.mark.parametrize("size", [None, (3.3, 2.4), (2.5, 3.4)])
def test_labels_of_axes_are_whole_and_apart(
    results: Path, size: tuple[float, float] | None
) -> None:
    """At any size they lie within the figure and cover neither each other nor another panel."""
    with sized(size):
        found = [
            drawn
            for drawn in draw_all(load_all_records(results))
            if drawn.kind.startswith(("pareto", "psnr-m", "figure6"))
        ]
    assert {drawn.kind for drawn in found} >= {"pareto-gflops", "pareto-latency"}
    for drawn in found:
        if size:
            assert tuple(drawn.figure.get_size_inches()) == size
            fit_labels(drawn.figure)
        assert has_room(drawn.figure)
        drawn.figure.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in drawn.figure.axes]
        for axes in drawn.figure.axes:
            texts = [axes.xaxis.label, axes.yaxis.label]
            boxes += [text.get_window_extent() for text in texts if text.get_text()]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.padded(-1).overlaps(second.padded(-1)), drawn.stem
        for box in boxes:
            assert box.x0 > -1, drawn.stem
            assert box.y0 > -1, drawn.stem
            assert box.x1 < drawn.figure.bbox.x1 + 1, drawn.stem
            assert box.y1 < drawn.figure.bbox.y1 + 1, drawn.stem


def test_no_panel_has_a_title_that_a_pdf_would_keep(results: Path) -> None:
    for drawn in draw_all(load_all_records(results)):
        assert [axes.get_title() for axes in drawn.figure.axes if axes.get_title()] == []


def test_a_size_that_is_too_small_is_told(cli: Cli, results: Path, tmp_path: Path) -> None:
    words = ["figures", "--results", results, "--output", tmp_path, "--format", "png"]
    done = cli(*words, "--only", "figure6", "pareto", "--size", "1x0.8")
    assert done.err.count("\n") == 1
    assert done.err.startswith("warning: 1x0.8 inches are too small for small-x4")
    assert done.out
    assert cli(*words, "--only", "pareto-gflops", "--size", "3.3x2.4").err == ""


def test_figures_of_too_few_points_are_told(cli: Cli, results: Path, tmp_path: Path) -> None:
    words = ["--results", results, "--output", tmp_path, "--format", "png"]
    told = cli.refused("figures", *words, "--only", "pareto", "--attn", "nla")
    assert told == (
        "error: pareto: not drawn, as it needs 3 points or more, which there are not with --attn "
        "nla: name more modules"
    )
    told = cli.refused("figures", *words, "--only", "paired", "psnr-m")
    assert told.startswith("error: psnr-m: not drawn, as it needs 3 points or more")
    assert list(tmp_path.rglob("paired-differences.png"))
    done = cli.refused("figures", *words, "--only", "paired", "nonsense")
    assert done.startswith("error: no figure is called nonsense; there are: ")


def test_letters_that_the_font_lacks_are_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    module = synthetic.VARIANTS["User_Attention-8"] | dict.fromkeys(("label", "row_label"), "注意")
    variants = ("Baseline", "NLA", "NLSA-r4", module)
    for i, variant in enumerate(variants):
        save_record(tmp_path, synthetic.run(variant, identifier=f"r{i}"))
        save_record(tmp_path, synthetic.cost(variant, float(i + 1), id=f"c{i}"))
    done = cli("figures", "--results", tmp_path)
    assert done.err.count("\n") == 1
    assert done.err.startswith("warning: boxes stand in the figures for 意 注, which their font")
    assert list(tmp_path.rglob("pareto-gflops.pdf"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--only parety", "no figure is called parety; there are: "),
        ("--attn nlaa", "no record is of nlaa; there are records of: "),
        ("--size 3", "--size takes inches from 0.5 to 50, width x height such as 3.3x2.4"),
        ("--size 0x3", "--size takes inches"),
        ("--format", "--format needs png, pdf or svg"),
    ],
)
def test_mistakes_of_choice_are_one_line(cli: Cli, results: Path, words: str, message: str) -> None:
    done = cli(f"figures --results {results} {words}", status=2)
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1

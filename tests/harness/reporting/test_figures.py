"""The command draws every figure that the records give, as PNG and PDF."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import synthetic_records as synthetic
from PIL import Image
from test_quality_figures import runs

from harness import figures
from harness.records.shapes import Record
from harness.records.store import save_record
from harness.reporting.benches import find_benches
from harness.reporting.figures.style import (
    COLUMN,
    PAGE,
    figure_bytes,
    house_style,
    new_figure,
    save_figure,
)

TIMED = synthetic.latency(
    [synthetic.latency_row("NLA", 9.0), synthetic.latency_row("NLSA-r4", 3.0)]
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Records that suffice for a figure of each kind."""
    laws = {"NLA": (2.0, 1.0), "NLSA-r4": (1.0, 1.0)}
    trained = [*runs(2.0, 4.0), synthetic.run("NLA"), synthetic.run("NLSA-r4")]
    counted = [synthetic.cost("NLA", 2.0), synthetic.cost("NLSA-r4", 1.0)]
    others = [synthetic.approximation("enlca-k2"), synthetic.scaling(laws), TIMED]
    for record in [*trained, *counted, *others]:
        save_record(tmp_path, record)
    return tmp_path


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.figures", *map(str, words)])
    figures.main()


def test_the_command_writes_png_and_pdf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    run_main(monkeypatch, "--results", results)
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(printed) == sorted(p for p in (results / "figures").rglob("*") if p.is_file())
    (bench,) = (f"pareto-latency-{b.label[7:]}" for b in find_benches([TIMED]))
    stems = {path.with_suffix("").name for path in printed}
    assert stems == {
        *("figure6", "paired-differences", "pareto-gflops", bench),
        "scaling-cpu-float32-2",
    }
    assert len(printed) == 2 * len(stems)
    for path in printed:
        if path.suffix == ".pdf":
            assert b"/FontFile2" in path.read_bytes(), path  # TrueType, embedded
            assert b"/Subtype /Type3" not in path.read_bytes(), path
        else:
            with Image.open(path) as image:
                assert image.width in (round(200 * COLUMN), round(200 * PAGE)), path
    run_main(monkeypatch, "--results", results, "--output", results / "elsewhere")
    for path in printed:
        again = results / "elsewhere" / path.relative_to(results / "figures")
        assert again.read_bytes() == path.read_bytes()


def test_figures_are_written_beside_each_other_whatever_their_stem(tmp_path: Path) -> None:
    with house_style():
        figure = new_figure(height=2.0)
        figure.subplots().plot([0, 1], [1, 2])
    paths = save_figure(figure, tmp_path / "a" / "x.y")
    assert paths == [tmp_path / "a" / name for name in ("x.y.png", "x.y.pdf")]
    assert Image.open(paths[0]).size == (round(200 * COLUMN), 400)
    assert [path.read_bytes() for path in paths] == [
        figure_bytes(figure, s) for s in ("png", "pdf")
    ]


PROBE = """
import contextlib, importlib, sys, time
sys.argv = sys.argv[1:]
with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
    importlib.import_module(sys.argv[0]).main()
print("torch" in sys.modules, time.process_time())
"""


@pytest.mark.parametrize("name", ["figures", "report"])
def test_the_command_is_quick_to_help_and_does_not_import_torch(results: Path, name: str) -> None:
    def probe(*words: str | Path) -> list[str]:
        command = [sys.executable, "-c", PROBE, f"harness.{name}", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout.split()

    torch, seconds = probe("--help")
    assert (torch, float(seconds) < 1.5) == ("False", True)
    torch, _ = probe("--results", results, "--output", results / "out")
    assert torch == "False"
    assert [*(results / "out").iterdir()]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records under .*records; run"),
        ([synthetic.run()], "records under .* suffice for no figure: train"),
    ],
)
def test_nothing_to_draw_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    records: Sequence[Record],
    message: str,
) -> None:
    for record in records:
        save_record(tmp_path, record)
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, "--results", tmp_path)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "figures").exists()

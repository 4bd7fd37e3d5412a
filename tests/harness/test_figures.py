"""The command draws every figure that the records give, as PNG and PDF."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from PIL import Image
from test_quality_figures import runs

from harness import figures
from harness.records.store import save_record
from harness.reporting.benches import find_benches
from harness.reporting.figures.style import COLUMN, PAGE


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.figures", *map(str, words)])
    figures.main()


def test_the_command_writes_png_and_pdf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    laws = {"NLA": (2.0, 1.0), "NLSA-r4": (1.0, 1.0)}
    trained = [*runs(2.0, 4.0), synthetic.run("NLA"), synthetic.run("NLSA-r4")]
    counted = [synthetic.cost("NLA", 2.0), synthetic.cost("NLSA-r4", 1.0)]
    timed = synthetic.latency(
        [synthetic.latency_row("NLA", 9.0), synthetic.latency_row("NLSA-r4", 3.0)]
    )
    others = [synthetic.approximation("enlca-k2"), synthetic.scaling(laws), timed]
    for record in [*trained, *counted, *others]:
        save_record(tmp_path, record)
    run_main(monkeypatch, "--results", tmp_path)
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(printed) == sorted(p for p in (tmp_path / "figures").rglob("*") if p.is_file())
    (bench,) = (f"pareto-latency-{b.label[7:]}" for b in find_benches([timed]))
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
    run_main(monkeypatch, "--results", tmp_path, "--output", tmp_path / "elsewhere")
    for path in printed:
        again = tmp_path / "elsewhere" / path.relative_to(tmp_path / "figures")
        assert again.read_bytes() == path.read_bytes()


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
    records: list[dict[str, Any]],
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

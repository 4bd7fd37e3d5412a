"""Figures of the paper from made-up records."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic

from harness import figures
from harness.config import Variant, table_rows
from harness.figures import figure6
from harness.records import save_record
from harness.settings import Setting


def enlca(k: float, **options: Any) -> dict[str, Any]:
    return Variant("enlca", {"k": k, **options}).to_dict()


def runs(*ks: float) -> list[dict[str, Any]]:
    found = [synthetic.run(values=[25.0, 26.0, 27.0])]
    for k in ks:
        values = [25.5 + k / 100, 26.4, 27.6]
        found.append(synthetic.run(enlca(k), values=values, identifier=f"enlca-k{k:g}"))
    return found


def test_rows_of_figure_6() -> None:
    none, *rows = table_rows("figure6")
    assert none.label == "Baseline"
    assert [row.resolved["k"] for row in rows] == [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    # At the default k it is the variant that the tables have, hence the same run.
    assert rows[3].to_dict() == Variant("enlca", {"m": 128}).to_dict()


def test_figure_6_shows_psnr_with_intervals_against_k() -> None:
    setting = Setting(runs(2.0, 4.0), [])
    figure = figure6(setting, [synthetic.approximation("another"), synthetic.approximation(None)])
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_ylabel() == "PSNR (dB), Set5 ×4"
    line, baseline = axis.get_lines()[0], axis.get_lines()[-1]
    assert line.get_xydata().tolist() == [
        [2.0, pytest.approx((25.52 + 26.4 + 27.6) / 3)],
        [4.0, pytest.approx((25.54 + 26.4 + 27.6) / 3)],
    ]
    assert list(baseline.get_ydata()) == [26.0, 26.0]
    summary = setting.summary(next(k for k in setting.runs_of if '"k":2.0' in k), "Set5")
    assert summary is not None
    assert summary.low is not None
    (bars,) = (c for c in axis.collections if hasattr(c, "get_segments"))
    (_, low), (_, high) = bars.get_segments()[0]
    assert (low, high) == pytest.approx((26 + summary.low, 26 + (summary.high or 0)))


def test_figure_6_adds_the_variance_of_the_settings_own_network() -> None:
    records = [
        synthetic.approximation("enlca-k4", created="2026-02-01T00:00:00+00:00"),
        synthetic.approximation("another", created="2026-03-01T00:00:00+00:00"),
    ]
    figure = figure6(Setting(runs(2.0, 4.0), []), records)
    assert figure is not None
    panel = figure.axes[1]
    assert panel.get_yscale() == "log"
    closed = panel.get_lines()[0]
    assert closed.get_xydata().tolist() == [[2.0, 6400.0], [4.0, 640_000.0]]
    assert len(panel.containers) == 3


def test_figure_6_needs_several_k_and_no_other_option() -> None:
    others = [synthetic.run(enlca(2.0, m=16), identifier="m16")]
    assert figure6(Setting([*runs(4.0), *others], []), []) is None
    assert figure6(Setting([synthetic.run()], []), []) is None


def test_without_a_baseline_there_are_no_intervals() -> None:
    figure = figure6(Setting(runs(2.0, 4.0)[1:], []), [])
    assert figure is not None
    (axis,) = figure.axes
    (bars,) = (c for c in axis.collections if hasattr(c, "get_segments"))
    assert all(low[1] == high[1] for low, high in bars.get_segments())


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.figures", *map(str, words)])
    figures.main()


def test_the_command_writes_png_and_pdf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for record in [*runs(2.0, 4.0), synthetic.approximation("enlca-k2")]:
        save_record(tmp_path, record)
    run_main(monkeypatch, "--results", tmp_path)
    printed = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in printed] == ["figure6.png", "figure6.pdf"]
    assert all(path.stat().st_size > 1000 for path in printed)
    assert printed[0].parent.parent == tmp_path / "figures"
    run_main(monkeypatch, "--results", tmp_path, "--output", tmp_path / "elsewhere")
    again = next((tmp_path / "elsewhere").rglob("figure6.png"))
    assert again.read_bytes() == printed[0].read_bytes()


@pytest.mark.parametrize(
    ("records", "message"),
    [([], "no run records under"), (runs(2.0), "no setting under .* has runs for a figure")],
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

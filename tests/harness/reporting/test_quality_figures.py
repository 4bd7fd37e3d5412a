"""Figures of quality from made-up records: PSNR against k and m, and every image's difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from matplotlib.axes import Axes

from attention_zoo import list_attentions
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.records.shapes import Run
from harness.reporting.figures.marks import FAMILIES, style_of
from harness.reporting.figures.quality import figure6, paired_figure, psnr_m
from harness.reporting.figures.style import look
from harness.reporting.settings import Setting, paper_table


def intervals(axis: Axes) -> list[Any]:
    """The ends of all error bars."""
    bars = [c.get_segments() for c in axis.collections if hasattr(c, "get_segments")]
    return [ends for segments in bars for ends in segments]


def test_rows_of_figure_6() -> None:
    none, *rows = table_rows("figure6")
    assert none.label == "Baseline"
    assert [row.resolved["k"] for row in rows] == [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    # At the default k it is the variant that the tables have, hence the same run.
    assert rows[3].to_dict() == Variant("enlca", {"m": 128}).to_dict()


def test_figure_6_shows_psnr_with_intervals_against_k() -> None:
    setting = Setting(synthetic.figure6(2.0, 4.0, 8.0), [])
    figure = figure6(setting, [synthetic.approximation("another"), synthetic.approximation(None)])
    (axis,) = figure.axes
    assert axis.get_ylabel() == "PSNR (dB), Set5 ×4"
    line, baseline = axis.get_lines()[0], axis.get_lines()[-1]
    ours = [[k, pytest.approx((25.5 + k / 100 + 26.4 + 27.6) / 3)] for k in (2.0, 4.0, 8.0)]
    assert line.get_xydata().tolist() == ours
    assert list(baseline.get_ydata()) == [26.0, 26.0]
    summary = setting.summary(Variant("enlca", {"k": 2.0}), "Set5")
    ((_, low), (_, high)), *_ = intervals(axis)
    assert (low, high) == pytest.approx((26 + summary.low, 26 + summary.high))


def test_figure_6_adds_the_variance_of_the_settings_own_network() -> None:
    records = [
        synthetic.approximation("enlca-k4", created="2026-02-01T00:00:00+00:00"),
        synthetic.approximation("another", created="2026-03-01T00:00:00+00:00"),
    ]
    figure = figure6(Setting(synthetic.figure6(2.0, 4.0, 8.0), []), records)
    panel = figure.axes[1]
    assert panel.get_yscale() == "log"
    closed = panel.get_lines()[0]
    assert closed.get_xydata().tolist() == [[2.0, 6400.0], [4.0, 640_000.0]]
    assert len(panel.containers) == 3


def test_figure_6_needs_several_k_and_no_other_option() -> None:
    others = [synthetic.run(synthetic.variant("enlca", k=2.0, m=16), identifier="m16")]
    assert figure6(Setting([*synthetic.figure6(4.0, 8.0), *others], []), []) is None
    assert figure6(Setting([synthetic.run()], []), []) is None


def test_without_a_baseline_there_are_no_intervals() -> None:
    figure = figure6(Setting(synthetic.figure6(2.0, 4.0, 8.0)[1:], []), [])
    (axis,) = figure.axes
    assert all(low[1] == high[1] for low, high in intervals(axis))


def over_m(*ms: int, seeds: int = 1, **options: Any) -> list[Run]:
    """A baseline of 26 dB, and ENLCA of 26 + log2(m) / 10 dB on average."""
    values = np.array([25.0, 26.0, 27.0])
    found = [synthetic.run(seed=seed, values=values.tolist()) for seed in range(seeds)]
    for m in ms:
        variant = Variant("enlca", {"m": m, **options}).describe()
        better = values + np.log2(m) / 10 + np.array([-0.1, 0, 0.1])
        found += [
            synthetic.run(variant, seed, better.tolist(), identifier=f"enlca-m{m}-s{seed}")
            for seed in range(seeds)
        ]
    return found


def test_psnr_against_m_with_intervals_above_the_papers() -> None:
    setting = Setting(over_m(16, 2, 128), [])
    figure = psnr_m(setting)
    ours, paper = figure.axes
    assert " ".join(ours.get_ylabel().split()) == "measured PSNR (dB), Urban100 ×4"
    assert " ".join(paper.get_ylabel().split()) == "paper's PSNR (dB), Urban100 ×4"
    assert ours.get_lines()[0].get_xydata().tolist() == [
        [m, pytest.approx(26 + np.log2(m) / 10)] for m in (2, 16, 128)
    ]
    assert list(ours.get_lines()[-1].get_ydata()) == [26.0, 26.0]
    for (low, high), m in zip(intervals(ours), (2, 16, 128), strict=True):
        assert low[1] < 26 + np.log2(m) / 10 < high[1]
        # Student's t of three images, 0.1 dB apart, reaches 4.303 standard errors.
        assert high[1] - low[1] == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, abs=1e-3)
    printed = {int(r["m"]): float(r["psnr_db"]) for r in paper_table(4) if r["m"]}
    assert dict(paper.get_lines()[0].get_xydata()) == printed
    assert paper.get_lines()[0].get_fillstyle() == "none"
    assert psnr_m(Setting(over_m(16), [])) is None
    assert psnr_m(Setting(over_m(16, 2, k=2.0), [])) is None


def test_paired_differences_show_every_image_and_the_tables_interval() -> None:
    runs = over_m(16, 2, seeds=2) + [synthetic.run("NLA", s, [25.0, 26.5, 26.0]) for s in (0, 1)]
    setting = Setting(runs, [])
    figure = paired_figure(setting)
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["Set5 ×4 (3 images)", "Urban100 ×4 (3 images)"]
    first, axis = figure.axes
    names = [tick.get_text() for tick in first.get_yticklabels()]
    assert names == ["NLA", "ENLCA-m16", "ENLCA-m2"]
    dots = [line for line in axis.get_lines() if line.get_marker() == "."]
    differences = np.array([[0, 0.5, -1.0], [0.3, 0.4, 0.5], [0.0, 0.1, 0.2]])
    assert np.array([line.get_xdata() for line in dots]) == pytest.approx(differences)
    for row, line in enumerate(dots):  # dots stay in their own row, apart from each other
        heights = line.get_ydata()
        assert np.all(np.abs(heights - row) < 0.5)
        assert len({*heights}) == len(heights)
    for (_, variant), bar in zip(setting.trained[1:], intervals(axis), strict=True):
        (low, _), (high, _) = bar
        summary = setting.summary(variant, "Urban100")
        assert (low, high) == pytest.approx((summary.low, summary.high))


def test_paired_differences_need_a_baseline_of_the_same_seed() -> None:
    assert paired_figure(Setting([synthetic.run("NLA")], [])) is None
    assert paired_figure(Setting([synthetic.run(), synthetic.run("NLA", 1)], [])) is None


def test_no_two_modules_look_alike() -> None:
    assert {*FAMILIES} <= {*list_attentions()}
    looks = [look(style_of(name)) for name in (*list_attentions(), "my.module:My")]
    assert all(looks.count(one) == 1 for one in looks)
    own = ["my.module:My", "other.module:Other", "nla"]
    assert len({style_of(name, own) for name in own}) == 3

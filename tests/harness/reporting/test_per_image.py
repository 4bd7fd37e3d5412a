"""Published methods in the tables of quality, and gains by image, from made-up records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from synthetic_records import cells, csv_rows, edited

from harness.records.shapes import Run
from harness.reporting.published import beside, of_images, published
from harness.reporting.settings import Setting
from harness.reporting.statistics import _weights, difference_interval, rank_correlation
from harness.reporting.tables.all import build
from harness.reporting.tables.per_image import BASELINE_RULE, LOCAL_RULE, per_image_table
from harness.reporting.tables.quality import quality_table

FIGURES = published("Urban100", 4)
NAMES = sorted(FIGURES["Bicubic"])
RNG = np.random.default_rng(0)
#: PSNR of a baseline that is as good as A+, but for noise.
BASE = {name: FIGURES["A+"][name].psnr + RNG.normal(0, 0.3) for name in NAMES}
GAIN = {name: FIGURES["SelfExSR"][name].psnr - FIGURES["A+"][name].psnr for name in NAMES}
DENOISE: dict[str, Any] = {
    "scale": 1,
    "task": {"name": "denoise", "options": {"sigma": 50.0}, "loss": "l1", "positions": [0]},
}


def on_urban(
    name: str,
    seed: int,
    psnr: dict[str, float],
    added: dict[str, list[Any]] | None = None,
    **config: Any,
) -> Run:
    """A run with the published images of Urban100; ``added`` are further values by image."""

    def put(content: dict[str, Any]) -> None:
        for index, (image, name) in enumerate(
            zip(content["quality"]["Urban100"]["images"], NAMES, strict=True)
        ):
            image["name"] = name
            image["bicubic_psnr"] = FIGURES["Bicubic"][name].psnr
            image |= {key: values[index] for key, values in (added or {}).items()}

    run = synthetic.run(name, seed, [psnr[i] for i in NAMES], ["Urban100"], **config)
    return edited(run, put)


def two_seeds(**config: Any) -> list[Run]:
    """NLA gains a tenth of what searching gains, and 0.01 dB a seed."""
    runs = []
    for seed in (0, 1):
        base = {i: BASE[i] + 0.02 * seed for i in NAMES}
        runs.append(on_urban("Baseline", seed, base, **config))
        gained = {i: base[i] + 0.1 * GAIN[i] + 0.01 * seed for i in NAMES}
        runs.append(on_urban("NLA", seed, gained, **config))
    return runs


# -- published methods beside our own ---------------------------------------------------------


def test_published_methods_stand_in_the_table_of_quality() -> None:
    table = quality_table(Setting(two_seeds(), []))
    rows = cells(table)
    assert next(iter(rows)) == "Bicubic"
    assert list(rows)[-2:] == ["Baseline", "NLA"]
    assert table.rule_after == 8
    means = {
        method: np.mean([one.psnr for one in found.values()]) for method, found in FIGURES.items()
    }
    for method in ("ScSR", "Kim", "Sub-band", "Glasner", "SRCNN", "A+", "SelfExSR"):
        row = rows[f"{method} (published)"]
        assert row[0] == f"{means[method]:.2f}"
        ours = np.mean([*BASE.values()]) + 0.01
        assert row[2].startswith(f"{means[method] - ours:+.3f} [".replace("-", "−"))
        assert row[-1] == ""
    assert any("Huang, Singh and Ahuja" in note for note in table.notes)
    sources = {row["method"]: row["source"] for row in csv_rows(table)}
    assert sources["NLA"] == sources["Bicubic"] == "measured"
    assert sources["A+ (published)"] == "published"


def test_only_where_task_scale_names_and_pixels_are_theirs() -> None:
    assert beside(two_seeds(), "Urban100") is FIGURES
    assert beside(two_seeds(**DENOISE), "Urban100") == {}
    assert beside(two_seeds(scale=2), "Urban100") == {}  # Urban100 is published at x4 alone
    assert beside([synthetic.run()], "Urban100") == {}  # other names
    assert beside(two_seeds(), "Set5") == {}
    run = two_seeds()[0]
    other = edited(
        run, lambda content: content["quality"]["Urban100"]["images"][7].update(bicubic_psnr=30.0)
    )
    assert beside([other], "Urban100") == {}
    assert "source" not in csv_rows(quality_table(Setting([synthetic.run()], [])))[0]


def test_the_greyscale_file_is_left_out_of_differences() -> None:
    figures = published("Set14", 4)
    names = sorted(figures["Bicubic"])

    def put(content: dict[str, Any]) -> None:
        for image, name in zip(content["quality"]["Set14"]["images"], names, strict=True):
            image |= {"name": name, "bicubic_psnr": figures["Bicubic"][name].psnr}

    values = [figures["Kim"][name].psnr for name in names]
    values[2] += 1.3
    run = edited(synthetic.run(values=values, sets=["Set14"]), put)
    table = quality_table(Setting([run], []))
    row = cells(table)["Kim (published)"]
    assert row[0] == f"{np.mean(values) - 1.3 / 14:.2f}"
    assert row[2] == "+0.000 [+0.000, +0.000]"
    assert any("greyscale file" in note for note in table.notes)


def test_figures_of_images_are_those_of_x4_where_there_are_no_others() -> None:
    assert of_images(NAMES, "Urban100", 1) is FIGURES
    assert of_images([*published("B100", 2)["A+"]], "B100", 2) is published("B100", 2)
    assert of_images(NAMES[:-1], "Urban100", 1) == {}
    assert of_images(NAMES, "Manga109", 4) == {}


# -- gains by image ---------------------------------------------------------------------------


def test_gains_where_searching_is_better_than_the_baseline() -> None:
    (row,) = csv_rows(per_image_table(Setting(two_seeds(), [])))
    better = [i for i in NAMES if FIGURES["SelfExSR"][i].psnr > BASE[i] + 0.01]
    assert 0 < len(better) < 100
    assert row["rule"] == BASELINE_RULE
    assert row["difference_chosen_images"] == str(len(better))
    wanted = 0.1 * np.mean([GAIN[i] for i in better]) + 0.005
    assert float(row["difference_chosen_db"]) == pytest.approx(wanted, abs=1e-9)
    table = np.array([[0.1 * GAIN[i] + 0.01 * seed for i in better] for seed in (0, 1)])
    low, high = difference_interval(table)
    assert float(row["difference_chosen_low_db"]) == pytest.approx(low, abs=1e-9)
    assert float(row["difference_chosen_high_db"]) == pytest.approx(high, abs=1e-9)
    everywhere = 0.1 * np.mean([*GAIN.values()]) + 0.005
    assert float(row["difference_db"]) == pytest.approx(everywhere, abs=1e-9)
    assert float(row["rank_correlation"]) == pytest.approx(1)
    assert row["paired_seeds"] == "2"
    assert row["lost_as_mean_db"] == row["difference_self_similar_db"] == ""


def test_over_seeds_is_students_t_of_the_seeds_means_on_these_images() -> None:
    table = per_image_table(Setting(two_seeds(), []))
    (row,) = csv_rows(table)
    mean, reach = float(row["difference_db"]), 12.7062 * 0.005  # t of one degree of freedom
    assert float(row["difference_over_seeds_low_db"]) == pytest.approx(mean - reach, abs=1e-5)
    assert float(row["difference_over_seeds_high_db"]) == pytest.approx(mean + reach, abs=1e-5)
    assert table is not None
    assert "over seeds" in [header for _, header in table.headers]
    assert f"± {reach:.3f}" in table.rows[0]
    few = per_image_table(Setting(two_seeds()[:2], []))
    assert few is not None
    assert "over seeds" not in [header for _, header in few.headers]
    assert csv_rows(few)[0]["difference_over_seeds_low_db"] == ""


def test_of_other_tasks_the_images_are_those_of_x4() -> None:
    (row,) = csv_rows(per_image_table(Setting(two_seeds(**DENOISE), [])))
    better = [i for i in NAMES if GAIN[i] > 0]
    assert row["rule"] == LOCAL_RULE
    assert row["difference_chosen_images"] == str(len(better))
    assert float(row["rank_correlation"]) == pytest.approx(1)
    (table,) = (
        table for _, table in build(two_seeds(**DENOISE), [], []) if table.name == "per-image"
    )
    assert any("a property of the image" in note for note in table.notes)


def test_one_seed_of_the_baseline_is_named() -> None:
    few = per_image_table(Setting(two_seeds()[:2], []))
    many = per_image_table(Setting(two_seeds(), []))
    assert few is not None
    assert many is not None
    assert [sum("share the noise" in note for note in t.notes) for t in (few, many)] == [1, 0]


def test_no_table_without_a_baseline_or_anything_known_by_image() -> None:
    assert per_image_table(Setting(two_seeds()[1::2], [])) is None
    assert per_image_table(Setting([synthetic.run(), synthetic.run("NLA")], [])) is None
    assert per_image_table(Setting([two_seeds()[0]], [])) is None


def test_the_self_similar_part_and_elsewhere() -> None:
    """Squared errors of part and rest add up to those of the image."""
    share = 0.25

    def added(part: float) -> dict[str, list[Any]]:
        parts: list[Any] = [part] * 60 + [None] * 40
        return {"self_similar_psnr": parts, "self_similar_share": [share] * 100}

    def whole(part: float, rest: float) -> dict[str, float]:
        mse = share * 10 ** (-part / 10) + (1 - share) * 10 ** (-rest / 10)
        return dict.fromkeys(NAMES, float(-10 * np.log10(mse)))

    runs = [
        on_urban("Baseline", 0, whole(20.0, 25.0), added(20.0)),
        on_urban("NLA", 0, whole(21.0, 25.1), added(21.0)),
    ]
    table = per_image_table(Setting(runs, []))
    (row,) = csv_rows(table)
    assert float(row["self_similar_share"]) == share
    assert float(row["difference_self_similar_db"]) == pytest.approx(1)
    assert float(row["difference_elsewhere_db"]) == pytest.approx(0.1)
    assert row["difference_self_similar_images"] == row["difference_elsewhere_images"] == "60"
    assert table is not None
    assert table.rows[0][5].startswith("+1.000")
    assert len(table.headers) == len(table.rows[0]) == 8


def test_parts_are_those_of_the_seeds_that_were_measured() -> None:
    """Weights of seed 0 alone are published: the other seeds do not hide its parts."""
    added: dict[str, list[Any]] = {
        "self_similar_psnr": [20.0] * 25 + [None] * 75,
        "self_similar_share": [0.25] * 100,
    }
    values = dict.fromkeys(NAMES, 21.0)
    runs = [
        on_urban(name, seed, values, added if seed == 0 else {})
        for seed in (0, 1)
        for name in ("Baseline", "NLA")
    ]
    (row,) = csv_rows(per_image_table(Setting(runs, [])))
    assert row["paired_seeds"] == "2"
    for part in ("self_similar", "elsewhere"):
        assert row[f"difference_{part}_images"] == "25"
        assert float(row[f"difference_{part}_db"]) == 0


def test_non_local_use_needs_no_published_images() -> None:
    runs = [synthetic.run(sets=["Own"]), synthetic.run("NLA", sets=["Own"])]

    def lose(content: dict[str, Any]) -> None:
        for image in content["quality"]["Own"]["images"]:
            image |= {"lost_as_mean": 0.5, "lost_confined": 0.125}

    table = per_image_table(Setting([runs[0], edited(runs[1], lose)], []))
    (row,) = csv_rows(table)
    assert (row["lost_as_mean_db"], row["lost_confined_db"]) == ("0.5", "0.125")
    assert row["rule"] == row["rank_correlation"] == ""
    count = len(runs[0].quality["Own"].images)
    shown = [f"+{lost} [+{lost}, +{lost}] ({count})" for lost in ("0.500", "0.125")]
    assert cells(table)["NLA"][4:6] == shown


# -- rank correlation -------------------------------------------------------------------------


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(3, 12), st.integers(1, 3), st.integers(0, 2**16))
def test_rank_correlation_is_scipys_on_each_resample(images: int, seeds: int, seed: int) -> None:
    """Small integers tie often."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (seeds, images)).astype(float)
    covariate = rng.integers(0, 4, images).astype(float)
    found = rank_correlation(table, covariate, resamples=40)
    mean = table.mean(0).round(9)
    if np.ptp(mean) == 0 or np.ptp(covariate) == 0:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(spearmanr(mean, covariate).statistic)
    values = []
    drawn = _weights(seeds, 40, 0, 0), _weights(images, 40, 0, 1)
    for some_seeds, some_images in zip(*drawn, strict=True):
        counts = np.rint(some_images * images).astype(int)
        a, b = (np.repeat(x, counts) for x in ((some_seeds @ table).round(9), covariate))
        if np.ptp(a) and np.ptp(b):
            values.append(spearmanr(a, b).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_rank_correlation_of_two_images_is_none() -> None:
    assert rank_correlation(np.array([[1.0, 2.0]]), np.array([1.0, 2.0])) is None

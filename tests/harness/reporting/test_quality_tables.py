"""Tables 1, 2 and 3, built from made-up records.

The paper's figures, headers, captions and notes are those of the published tables, which
tests/test_readme.py builds again to the last byte.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from synthetic_records import cells, csv_rows

from harness.config.rows import table_rows
from harness.records.shapes import Run
from harness.reporting.settings import Setting, paper_table
from harness.reporting.tables.all import build
from harness.reporting.tables.operations import table4
from harness.reporting.tables.quality import quality_table, table1, table2, table3
from harness.reporting.tables.render import Table

BENCHMARKS = ["Set5", "Set14", "B100", "Urban100", "Manga109"]


def markdown(table: Table | None) -> str:
    assert table is not None
    return table.markdown() + table.markdown_notes()


@pytest.fixture
def ablation() -> Setting:
    """Both ablations, complete, with three seeds; Table 3's cells are 1 dB apart."""
    second = synthetic.ablation("table2", 3, only={0, 1, 2, 3})  # the fifth is Table 3's too
    return Setting([*synthetic.ablation("table3", 3), *second], [])


@pytest.mark.data
@pytest.mark.parametrize("number", range(1, 7))
def test_the_papers_tables_are_the_transcribed_ones(number: int, sr_data: Path) -> None:
    transcribed = sr_data.parent / "paper_tables" / f"table{number}.csv"
    if not transcribed.is_file():
        pytest.skip("the transcribed tables are not beside the benchmark images")
    with transcribed.open(encoding="utf-8", newline="") as file:
        assert paper_table(number) == list(csv.DictReader(file))


def test_what_the_notes_say_of_the_paper_is_so() -> None:
    published = {
        (row["method"], row["scale"], row["dataset"]): row["psnr_db"] for row in paper_table(1)
    }
    assert len(published) == 14 * 2 * 5
    assert list(dict.fromkeys(name for _, _, name in published)) == BENCHMARKS
    of_table4 = {row["method"]: row["psnr_db"] for row in paper_table(4)}
    for network, module in (("EDSR", "Baseline"), ("NLSN", "NLSA-r4"), ("ENLCN", "ENLCA-m128")):
        assert published[network, "4", "Urban100"] == of_table4[module]
    assert published["ENLCN", "4", "Set5"] == "32.67"


def test_table1_puts_measured_rows_under_the_papers_headers() -> None:
    sets = ["B100", "Set5", "Holdout"]
    runs = []
    for variant, start in (("Baseline", 26.0), ("NLSA-r4", 28.0)):
        values = {name: [start + i, start + i + 1.0] for i, name in enumerate(sets)}
        runs.append(synthetic.run(variant, 0, values, sets))
    table = table1(Setting(runs, [synthetic.cost("NLA", 1.0)]))
    rows = cells(table)
    assert len(rows) == 14 + 2
    assert table.rule_after == 14
    measured = [rows[f"{name} (measured, preset small)"] for name in ("Baseline", "NLSA-r4")]
    assert measured[0] == ["×4", "27.50 / 0.6875", "", "26.50 / 0.6625", "", "", "1", "1", "2.00 s"]
    assert measured[1][3] == "28.50 / 0.7125"


def test_table1_columns_for_programs_never_mix_published_and_measured() -> None:
    runs = [synthetic.run(v, seed) for v in ("Baseline", "NLA") for seed in (0, 1)]
    rows = csv_rows(table1(Setting(runs, [])))
    published = [r for r in rows if r["source"] == "published"]
    assert len(published) == 14 * 5
    for row in published:
        assert (row["preset"], row["steps"], row["psnr_db_measured"]) == ("", "", "")
        assert row["ssim_measured"] == row["seeds"] == ""
    measured = [r for r in rows if r["source"] == "measured"]
    assert len(measured) == 2 * 5
    for row in measured:
        assert row["psnr_db_paper"] == row["ssim_paper"] == ""
        found = ("27", "0.675", "2") if row["test_set"] in ("Set5", "Urban100") else ("",) * 3
        assert (row["psnr_db_measured"], row["ssim_measured"], row["seeds"]) == found
        assert (row["preset"], row["steps"]) == ("small", "4000")


def test_table1_has_the_figures_of_the_settings_scale() -> None:
    rows = cells(table1(Setting([synthetic.run("NLA", scale=2, sets=["Manga109"])], [])))
    assert rows["ENLCN"][:2] == ["×2", "38.37 / 0.9618"]
    assert rows["NLA (measured, preset small)"] == [
        "×2",
        *[""] * 4,
        "27.00 / 0.6750",
        "1",
        "1",
        "2.00 s",
    ]


@pytest.mark.parametrize("config", [{"scale": 3}, {"sets": ["Embedded", "Holdout"]}])
def test_table1_is_left_out_where_nothing_can_be_compared(config: dict[str, Any]) -> None:
    setting = Setting([synthetic.run("NLA", **config)], [])
    assert table1(setting) is None
    names = {table.name for _, table in build(setting.runs, [], [])}
    assert names == {"table4", "table6", "quality", "modules"}


def test_table1_leaves_the_grids_of_the_ablations_to_the_overview(ablation: Setting) -> None:
    user = synthetic.run("User_Attention-8")
    unusual = synthetic.run(synthetic.variant("enlca", eps=0.0))
    setting = Setting([*ablation.runs, user, unusual], [])
    measured = [row.split(" (measured")[0] for row in cells(table1(setting)) if "(measured" in row]
    shown = ["Baseline", "ENLCA-m128", "ENLA-m128", "ENLCA-m128 (eps=0.0)", "User_Attention-8"]
    assert sorted(measured) == sorted(shown)
    assert "17 variants of the ablations" in markdown(table1(setting))
    assert len(quality_table(setting).rows) == 1 + len(shown) + 17
    assert "ablations" not in markdown(table1(Setting([user], [])))


def test_table2(ablation: Setting) -> None:
    table = table2(ablation)
    # Rows 0 to 3 have 21, 22, 23 and 24 dB with seed 0; the default ENLCA is row 9 of Table 3.
    means = [21.1, 22.1, 23.1, 24.1, 30.1]
    rows = cells(table)
    assert [row[:5] for row in rows.values()] == [
        ["✓" if on == "1" else "–" for on in switches] + [psnr]
        for *switches, psnr in (row.values() for row in paper_table(2))
    ]
    spread = np.std([0, 0.1, 0.2], ddof=1)
    assert [row[5] for row in rows.values()] == [f"{mean:.2f} ± {spread:.2f}" for mean in means]
    assert [row[6] for row in rows.values()] == [f"{mean / 40:.4f}" for mean in means]
    differences = ["", *(f"{m - 21.1:+.3f} [{m - 21.1:+.3f}, {m - 21.1:+.3f}]" for m in means[1:])]
    assert [row[7:] for row in rows.values()] == [[text, "3"] for text in differences]
    names = "Baseline, ENLA-m128 (k=1.0), ENLA-m128, ENLCA-m128 (k=1.0), ENLCA-m128"
    assert ", ".join(rows) == names
    for row, mean, variant in zip(csv_rows(table), means, table_rows("table2"), strict=True):
        assert float(row["psnr_db_measured"]) == pytest.approx(mean)
        assert (row["variant"], json.loads(row["options"])) == (variant.name, variant.recorded)


def test_table2_leaves_empty_what_was_not_trained() -> None:
    table = table2(Setting(synthetic.ablation("table2", only={1, 3}), []))
    rows = cells(table)
    assert list(rows) == [variant.row_label for variant in table_rows("table2")]
    modules = [(row["variant"], bool(row["options"])) for row in csv_rows(table)]
    assert modules == [(v.name, i in (1, 3)) for i, v in enumerate(table_rows("table2"))]
    assert rows["ENLA-m128 (k=1.0)"][4:] == ["32.37", "22.00", "0.5500", "", "1"]
    for label in ("Baseline", "ENLA-m128", "ENLCA-m128"):
        assert rows[label][5:] == [""] * 4
    assert [r["psnr_db_measured"] for r in csv_rows(table)] == ["", "22", "", "24", ""]
    assert "No baseline (none) was trained" in markdown(table)


def test_the_measured_set_is_named_when_it_is_not_the_papers() -> None:
    runs = [
        synthetic.run(variant.describe(), sets=["B100", "Holdout"], scale=2, identifier=f"run-{i}")
        for i, variant in enumerate(table_rows("table2"))
    ]
    setting = Setting(runs, [])
    for table, papers in ((table2(setting), "Set5"), (table4(setting), "Urban100")):
        names = {f"PSNR (dB) {papers} ×4 (paper)", "PSNR (dB) B100 ×2"}
        assert names <= {*synthetic.headers(table)}
        assert table.caption.endswith("tested on B100")
        assert {row["test_set"] for row in csv_rows(table) if row["options"]} == {"B100"}


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (synthetic.ablation("table4"), set()),
        (synthetic.ablation("table2", only={0, 2, 4}), set()),
        (synthetic.ablation("table2", only={1, 2}), {"table2"}),
        (synthetic.ablation("table3", only={0, 9}), set()),
        (synthetic.ablation("table3", only={0, 15}), {"table3"}),
    ],
)
def test_an_ablation_takes_two_rows_of_its_own(runs: list[Run], names: set[str]) -> None:
    """The baseline and the default ENLCA are rows of Table 4 too."""
    built = {table.name for _, table in build(runs, [], [])}
    assert built - {"claims", "modules"} == {"table1", "table4", "table6", "quality"} | names


@settings(max_examples=20)
@given(st.sets(st.integers(0, 15)), st.integers(1, 3))
def test_every_value_lands_in_its_cell(chosen: set[int], seeds: int) -> None:
    """Cell i of the grid, row by row, has 21 + i dB with seed 0, and 0.1 dB more with each seed."""
    chosen |= {3, 12}  # two cells of its own make the table
    table = table3(Setting(synthetic.ablation("table3", seeds, chosen), []))
    columns = [f"n2 = {n2} % {of}" for n2 in (4, 8, 13, 20) for of in ("paper", "Set5 ×4")]
    assert synthetic.headers(table) == ["n1", *columns]
    assert [row[0] for row in table.rows] == ["1 %", "1.5 %", "2 %", "3 %"]
    shown = [cell for row in table.rows for cell in row[1:]]
    assert shown[::2] == [row["psnr_db"] for row in paper_table(3)]
    for index, (cell, row) in enumerate(zip(shown[1::2], csv_rows(table), strict=True)):
        n1, n2, psnr = paper_table(3)[index].values()
        assert (row["n1_percent"], row["n2_percent"]) == (n1, n2)
        assert float(row["psnr_db_paper"]) == float(psnr)
        assert row["method"] == table_rows("table3")[index].row_label
        if index not in chosen:
            assert cell == row["psnr_db_measured"] == row["ssim_measured"] == row["seeds"] == ""
            assert row["options"] == ""  # which no record names
            continue
        values = [21 + index + seed / 10 for seed in range(seeds)]
        spread = f" ± {np.std(values, ddof=1):.2f}" if seeds > 1 else ""
        best = " *" if seeds > 1 and index == max(chosen) else ""
        assert cell == f"{np.mean(values):.2f}{spread}{best}"
        options = json.loads(row["options"])
        assert (options["n1"], options["n2"]) == (float(n1) / 100, float(n2) / 100)
        assert float(row["psnr_db_measured"]) == pytest.approx(np.mean(values))
        assert row["seeds"] == str(seeds)


def test_table3_has_differences_to_the_baseline(ablation: Setting) -> None:
    rows = csv_rows(table3(ablation))
    assert [float(row["difference_db"]) for row in rows] == pytest.approx(range(16))
    assert {(row["paired_seeds"], row["paired_images"]) for row in rows} == {("3", "3")}


def marked(runs: list[Run]) -> list[str]:
    text = markdown(table3(Setting(runs, []))).replace("\\", "")
    found = re.findall(r"([\d.]+) ± [\d.]+ \*", text)
    assert bool(found) == ("* best: " in text) != ("No cell is best" in text)
    return found


def test_the_best_cell_is_marked_only_if_the_intervals_allow() -> None:
    clear = synthetic.ablation("table3", 3)
    assert marked(clear) == ["36.10"]
    assert marked(synthetic.ablation("table3", 1)) == []
    assert marked([run for run in clear if run.config.seed == 0]) == []

    # Cell 14 beats cell 15 with one of the seeds: what is ahead on average is not for certain.
    ahead = synthetic.run(
        table_rows("table3")[14].describe(), 2, [37.0, 38.0, 39.0], identifier="table3-14-2"
    )
    assert marked([ahead if run.id == ahead.id else run for run in clear]) == []

    # Two cells with equal results: neither is best.
    best = {run.config.seed: run.quality for run in clear if run.id.startswith("table3-15-")}
    tied = [
        replace(run, quality=best[run.config.seed]) if run.id.startswith("table3-14-") else run
        for run in clear
    ]
    assert marked(tied) == []


ANOTHER_CPU = synthetic.MACHINE | {"cpu": synthetic.MACHINE["cpu"] | {"model": "Another"}}


def rounded_apart(runs: list[Run]) -> list[str]:
    """What the note on rounding lists."""
    notes = quality_table(Setting(runs, [])).notes
    return [note.partition(": ")[2] for note in notes if "ounding differs" in note]


SEEDS = {0, 1, 2}
THREE = dict.fromkeys(("Baseline", "NLA", "Criss-Cross"), SEEDS)


@pytest.mark.parametrize(
    ("trained", "elsewhere", "named"),
    [
        (THREE, {}, []),
        (THREE, {"Baseline": {1}, "NLA": SEEDS, "Criss-Cross": {1}}, ["NLA (seeds 0, 2)."]),
        ({"Baseline": SEEDS, "Criss-Cross": {1, 2}}, {"Baseline": {1}}, ["Criss-Cross (seed 1)."]),
    ],
)
def test_notes_name_runs_whose_rounding_is_not_their_baselines(
    trained: dict[str, set[int]], elsewhere: dict[str, set[int]], named: list[str]
) -> None:
    runs = [
        synthetic.run(name, seed, machine=ANOTHER_CPU if seed in elsewhere.get(name, ()) else None)
        for name, seeds in trained.items()
        for seed in seeds
    ]
    assert rounded_apart(runs) == named


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("cpu", {"vector_instructions": "AVX2"}),
        ("torch", {"products_by_onednn": True}),
        ("compiler", "gcc 12"),
    ],
)
def test_notes_name_other_instructions_and_products(part: str, change: Any) -> None:
    """Virtual machines name processors of several generations alike."""
    changed = synthetic.MACHINE[part] | change if isinstance(change, dict) else change
    machine = synthetic.MACHINE | {part: changed}
    runs = [synthetic.run("Baseline"), synthetic.run("NLA", machine=machine)]
    assert rounded_apart(runs) == ["NLA (seed 0)."]


def test_notes_name_images_that_went_through_in_tiles() -> None:
    def tiled(*sets: str, images: int) -> list[str]:
        def change(content: dict[str, Any]) -> None:
            for name in sets:
                for image in content["quality"][name]["images"][:images]:
                    image["tile"] = 37

        runs = [synthetic.run(), synthetic.edited(synthetic.run("NLA"), change)]
        notes = quality_table(Setting(runs, [])).notes
        return [note.partition(": ")[2] for note in notes if "in tiles" in note]

    assert tiled(images=0) == []
    assert tiled("Set5", images=2) == ["Set5/img0.png, Set5/img1.png."]
    (note,) = tiled("Set5", "Urban100", images=3)
    assert note.endswith("Set5/img2.png and 3 more.")

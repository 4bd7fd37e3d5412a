"""The tables that are built from records; every record here is made up.

Headers, captions, notes and columns are those of the published tables, which tests/test_readme.py
builds again to the last byte.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console
from synthetic_records import cells, csv_rows

from attention_zoo import find_attention
from harness.base.errors import UserError
from harness.base.printing import Fitted
from harness.records.shapes import Run
from harness.records.store import save_record
from harness.reporting.benches import find_benches
from harness.reporting.settings import Setting, find_settings, paper_table
from harness.reporting.statistics import summarise
from harness.reporting.tables.all import build, write_tables
from harness.reporting.tables.latency import latency_details, table5
from harness.reporting.tables.operations import table4
from harness.reporting.tables.printed import gpu_tables, latency_tables, summaries, summary
from harness.reporting.tables.quality import quality_table, table1, table2, table3, table6
from harness.reporting.tables.redraws import redraw_table
from harness.reporting.tables.render import Table, latex_escape, write_table
from harness.reporting.tables.speed import find_speeds, speed_table
from tests.harness.conftest import Cli

TABLE4_ROWS = ["Baseline", "NLA", "Conv", "NLSA-r4"]
TABLE4_ROWS += [f"ENLCA-m{2**i}" for i in range(8, 0, -1)]
BASE = [26.0, 27.0, 28.0]
NLA = [26.5, 27.2, 28.2]


@pytest.fixture
def setting() -> Setting:
    runs = [
        synthetic.run("Baseline", 0, BASE),
        synthetic.run("NLA", 0, NLA),
        synthetic.run("User_Attention-8", 0, BASE),
    ]
    return Setting(runs, [synthetic.cost("NLA", 25.6), synthetic.cost("Criss-Cross", 0.512)])


def test_table4_cells_for_readers(setting: Setting) -> None:
    table = table4(setting)
    rows = cells(table)
    assert list(rows) == [*TABLE4_ROWS, "Criss-Cross", "User_Attention-8", "Bicubic"]
    assert list(rows) == [row["method"] for row in csv_rows(table)]
    counted = ["25.60", "25.60", "51.200", "", "76.800", "51.200", "256.00"]
    # 0.2, 0.2 and 0.5 dB: Student's t of three reaches 4.303 standard errors of 0.1 dB.
    interval = "+0.300 [−0.130, +0.730]"
    trained = ["1", "2.00 s"]
    assert rows["NLA"] == [*counted, "26.87", "27.30", "0.6825", interval, "1", *trained]
    baseline = ["0", *[""] * 6, "26.64", "27.00", "0.6750", "", "1", *trained]
    assert rows["Baseline"] == baseline
    assert rows["Conv"] == ["0.74", *[""] * 13]
    assert rows["ENLCA-m2"] == ["0.01", *[""] * 6, "26.88", *[""] * 6]
    counted = ["", "0.51", "1.024", "", "1.536", "1.024", "5.12"]
    assert rows["Criss-Cross"] == [*counted, *[""] * 7]
    assert rows["User_Attention-8"][:-4] == [*[""] * 8, "27.00", "0.6750"]
    assert rows["Bicubic"][:10] == [*[""] * 8, "25.00", "0.6250"]
    assert rows["Bicubic"][10].startswith("−2.000 [")
    assert rows["Bicubic"][11:] == ["", "", ""]


def test_table4_columns_for_programs(setting: Setting) -> None:
    rows = {row["method"]: row for row in csv_rows(table4(setting))}
    expected = summarise([setting.runs[1]], [setting.runs[0]], "Urban100")
    nla = rows["NLA"]
    counts = {"": 1, "_executed": 2, "_ptflops": 3, "_torch": 2, "_inserted": 10}
    counts |= {"_inserted_executed": 10, "_inserted_ptflops": 15}
    assert {name: float(nla[f"gflops{name}"]) / 25.6 for name in counts} == pytest.approx(counts)
    names = ("psnr_db_measured", "difference_db", "difference_low_db", "difference_high_db")
    quality = [expected.mean, expected.difference, expected.low, expected.high]
    assert [float(nla[name]) for name in names] == pytest.approx(quality)
    assert float(nla["difference_ssim"]) == pytest.approx(0.3 / 40)
    assert nla["gflops_fvcore"] == nla["psnr_db_std_over_seeds"] == ""
    assert json.loads(nla["options"]) == synthetic.VARIANTS["NLA"]["options"]
    measured = ("gflops", "psnr", "ssim", "diff", "seeds", "pair")
    found = {n: cell for n, cell in rows["Conv"].items() if cell and n.startswith(measured)}
    assert found == {"gflops_paper": "0.74"}
    assert rows["Bicubic"]["seeds"] == rows["Bicubic"]["gflops_paper"] == ""


def test_intervals_over_seeds_are_said_to_be_so() -> None:
    runs = [synthetic.run(v, s, x) for v, x in (("Baseline", BASE), ("NLA", NLA)) for s in (0, 1)]
    table = table4(Setting(runs, []))
    assert "noise of training" not in table.markdown_notes()
    assert [cells(table)[row][8] for row in ("NLA", "Bicubic")] == ["27.30 ± 0.00", "25.00"]
    mixed = table4(Setting([*runs, synthetic.run("Criss-Cross", 0, NLA)], [])).markdown_notes()
    assert "images (3) and seeds" in mixed
    assert "Rows with one seed" in mixed


def test_without_a_baseline_differences_are_empty() -> None:
    table = table4(Setting([synthetic.run("NLA", 0, NLA)], []))
    assert cells(table)["NLA"][8:] == ["27.30", "0.6825", "", "1", "1", "2.00 s"]
    assert "No baseline" in table.markdown_notes()


def test_costs_alone_make_table4_without_quality() -> None:
    (setting,) = find_settings([], [synthetic.cost("NLA", 25.6)])
    table = table4(setting)
    assert cells(table)["NLA"][:2] == ["25.60", "25.60"]
    assert cells(table)["NLA"][8:] == [""] * 6
    assert "Bicubic" not in cells(table)
    built = build([], [synthetic.cost("NLA", 1.0)], [])
    found = [(folder, table.name) for folder, table in built]
    assert found == [("costs-only", "table4"), ("", "modules")]


def test_costs_at_another_size_are_not_the_papers() -> None:
    other = synthetic.cost("NLA", 99.0, height=150)
    assert cells(table4(Setting([], [other])))["NLA"][:7] == ["25.60", *[""] * 6]


def test_the_newest_of_repeated_records_counts() -> None:
    newer: Any = {"created": "2026-02-01T00:00:00+00:00"}
    runs = [synthetic.run("NLA", 0, [psnr] * 3, identifier=f"{psnr}") for psnr in (30.0, 20.0)]
    runs[0] = replace(runs[0], **newer)
    costs = [synthetic.cost("NLA", 2.0, id="a", **newer), synthetic.cost("NLA", 1.0, id="b")]
    table = table4(Setting(runs, costs))
    assert (cells(table)["NLA"][1], cells(table)["NLA"][8]) == ("2.00", "30.00")
    assert "1 older repeat" in table.markdown_notes()
    assert "2026-01-02 to 2026-02-01" in table.markdown_notes()


def test_an_unusual_option_is_never_taken_for_the_papers_row() -> None:
    unusual = synthetic.variant("nlsa", chunk_size=64)
    rows = cells(table4(Setting([synthetic.run(unusual)], [])))
    name = "NLSA-r4 (chunk_size=64)"
    assert [rows["NLSA-r4"][8], rows[name][8], rows[name][0]] == ["", "27.00", ""]


USER = synthetic.VARIANTS["User_Attention-8"]
USER_16 = USER | {"row_label": "User_Attention-8 (size=16)", "changed": {"size": 16}}
USERS_OTHER = USER | {"name": "another.module:User"}
#: Variants of records older than row labels.
OLDER = [
    {"name": "enlca", "label": "ENLCA-m128", "options": {"m": 128, "n1": n1}} for n1 in (0.01, 0.02)
]


@pytest.mark.parametrize(
    ("variants", "labels"),
    [
        ([synthetic.variant("nlsa"), synthetic.variant("nlsa", rounds=2)], ["NLSA-r2", "NLSA-r4"]),
        ([synthetic.variant("nla"), synthetic.variant("nla", reduction=4)], ["NLA"]),  # the default
        ([USER, USER_16], ["User_Attention-8", "User_Attention-8 (size=16)"]),
        ([USER, USERS_OTHER], [f"User_Attention-8, {v['name']}" for v in (USERS_OTHER, USER)]),
        (OLDER[:1], ["ENLCA-m128"]),
        (OLDER, [f"ENLCA-m128 (m=128, n1={n1})" for n1 in (0.01, 0.02)]),
        ([{"name": "not-installed", "label": "Gone", "options": {"x": 1}}], ["Gone"]),
    ],
)
def test_variants_are_told_apart(variants: list[dict[str, Any]], labels: list[str]) -> None:
    setting = Setting([], [synthetic.cost(variant, 1.0) for variant in variants])
    assert sorted(setting.labels.values()) == labels


def test_further_rows_are_in_natural_order() -> None:
    user = {"name": "my.module:A"}
    runs = [synthetic.run(user | {"label": f"A-m{m}", "options": {"m": m}}) for m in (128, 8, 16)]
    labels = list(cells(table4(Setting(runs, []))))
    assert labels[len(TABLE4_ROWS) : -1] == ["A-m8", "A-m16", "A-m128"]


def test_every_row_of_the_paper_is_reached_by_the_modules_own_label() -> None:
    options: list[dict[str, Any]] = [{"m": 2**i} for i in range(8, 0, -1)]
    made = [(name, {}) for name in ("none", "nla", "conv", "nlsa")]
    made += [("enlca", option) for option in options] + [("criss-cross", {})]
    labels = [find_attention(name).label(**option) for name, option in made]
    assert labels == [*TABLE4_ROWS, "Criss-Cross"]


def test_settings_are_never_mixed() -> None:
    runs = [
        synthetic.run("Baseline", 0, BASE),
        synthetic.run("NLA", 0, NLA),
        synthetic.run("NLA", 0, BASE, preset="paper", identifier="p"),
        synthetic.run("NLA", 1, BASE, batch=4, identifier="q"),
    ]
    settings = find_settings(runs, [])
    assert [len(s.runs) for s in settings] == [1, 2, 1]
    assert [s.config.preset for s in settings] == ["paper", "small", "small"]
    assert cells(table4(settings[1]))["NLA"][8] == "27.30"
    assert cells(table4(settings[2]))["NLA"][8:] == ["27.00", "0.6750", "", "1", "1", "2.00 s"]
    folders = {folder for folder, _ in build(runs, [], [])}
    assert folders == {s.label for s in settings} | {""}
    assert find_settings([], []) == []


def test_table6(setting: Setting) -> None:
    repeated = synthetic.variant("criss-cross", recurrence=2)
    runs = [*setting.runs, synthetic.run(repeated, 0, NLA)]
    table = table6(Setting(runs, setting.costs))
    rows = cells(table)
    names = ["Baseline", "NLA", "Criss-Cross", "NLSA-r4", "ENLCA-m128"]
    assert list(rows) == [*names, "Criss-Cross-R2"]
    assert [row[0] for row in rows.values()] == [*(r["psnr_db"] for r in paper_table(6)), ""]
    assert rows["NLA"][1:3] == ["27.30", "0.6825"]
    assert rows["Criss-Cross"][1:] == rows["ENLCA-m128"][1:] == [""] * 6
    assert rows["Criss-Cross-R2"][1] == "27.30"


def test_quality_has_every_set_and_only_what_was_trained(setting: Setting) -> None:
    psnrs = {"Baseline": {"Set5": [29.0, 31.0], "Urban100": BASE}}
    psnrs |= {"NLA": {"Set5": [30.0, 31.0], "Urban100": NLA}, "User_Attention-8": psnrs["Baseline"]}
    runs = [synthetic.run(name, 0, values) for name, values in psnrs.items()]
    table = quality_table(Setting(runs, setting.costs))
    rows = cells(table)
    assert list(rows) == ["Bicubic", "Baseline", "NLA", "User_Attention-8"]
    interval = "+0.500 [−5.853, +6.853]"  # t of two reaches 12.71 errors of 0.5 dB
    assert rows["NLA"][:5] == ["30.50", "0.7625", interval, "27.30", "0.6825"]
    assert rows["Bicubic"][:2] == ["25.00", "0.6250"]
    assert [row[-1] for row in table.rows] == ["", "1", "1", "1"]
    data = [(row["method"], row["test_set"]) for row in csv_rows(table)]
    assert data == list(itertools.product(rows, ["Set5", "Urban100"]))


def test_table5(setting: Setting) -> None:
    rows = [
        synthetic.latency_row("NLA", 12.34),
        synthetic.latency_row("NLA", 1234.5, "module", "forward+backward", 150),
        synthetic.latency_row("NLA", 1.0, "core", "forward", 77),
        synthetic.latency_row("NLA", 1.0, "core", "forward", 100, batch=2),
        synthetic.latency_row("Criss-Cross", 0.01234, peak_memory_mb=5.5),
        synthetic.latency_row("NLSA-r4", None, note="out of memory"),
        synthetic.latency_row("NLA", 7.0, "network", channels=3),
    ]
    (bench,) = find_benches([synthetic.latency(rows)])
    table = table5(bench, setting)
    expected = {
        "NLA": ["42.8", "12.3", "", "", "", "107.2", "", "", "", "1234", "26.87", "27.30"],
        "NLSA-r4": ["3.9", *[""] * 4, "8.8", *[""] * 4, "26.96", ""],
        "ENLCA-m128": ["0.9", *[""] * 4, "1.6", *[""] * 4, "27.12", ""],
        "Criss-Cross": ["", "0.0123", *[""] * 10],
    }
    assert list(cells(table).items()) == list(expected.items())
    assert setting.label in table.markdown_notes()
    details = latency_details(bench)
    assert len(details.rows) == len(rows)
    oom = next(row for row in details.rows if row[0] == "NLSA-r4")
    assert list(oom[4:]) == ["", "", "", "", "out of memory", ""]


def test_table5_without_runs_has_no_measured_psnr() -> None:
    (bench,) = find_benches([synthetic.latency([synthetic.latency_row("NLA", 1.0)])])
    table = table5(bench, Setting([], []))
    assert cells(table)["NLA"][-2:] == ["26.87", ""]
    assert "No variant was trained" in table.markdown_notes()


def test_latencies_of_other_machines_devices_and_precisions_stand_apart() -> None:
    row = synthetic.latency_row("NLA", 1.0)
    torch: dict[str, dict[str, Any]] = {
        "b": {"threads": 8},
        "d": {"threads": 2, "wait_policy": "ACTIVE"},
        "e": {"threads": 2, "allocator": "libtcmalloc.so"},
    }
    machines = {name: synthetic.MACHINE | {"torch": one} for name, one in torch.items()}
    vectors = synthetic.MACHINE["cpu"] | {"vector_instructions": "AVX2"}
    machines["f"] = synthetic.MACHINE | {"cpu": vectors}
    on_gpu = synthetic.latency([row | {"device": "cuda"}], "c", machine=synthetic.GPU_MACHINE)
    benches = find_benches(
        [
            *(synthetic.latency([row, row | {"dtype": "bfloat16"}]), on_gpu),
            *(synthetic.latency([row], name, machine=one) for name, one in machines.items()),
        ]
    )
    captions = [table5(bench, Setting([], [])).caption for bench in benches]
    assert len(captions) == len(benches) == 7
    for part in ("2 threads (waiting: active)", "2 threads, libtcmalloc.so", "with AVX2, 2 thr"):
        assert sum(part in caption for caption in captions) == 1, part
    canonical = [bench.label for bench in benches if not bench.folder]
    assert canonical == ["table5-cpu", "table5-cpu-bfloat16", "table5-made-up-gpu"]
    assert len({bench.label for bench in benches}) == 7


def test_a_table_is_one_whole_session() -> None:
    """NLSA's 92.6 ms stay beside the 380 ms of NLA in that session, not the 211 ms of another."""
    both = [synthetic.latency_row("NLA", 380.0), synthetic.latency_row("NLSA-r4", 92.6)]
    newer = synthetic.latency(
        [synthetic.latency_row("NLA", 211.0)], "b", created="2026-03-01T00:00:00+00:00"
    )
    benches = find_benches([newer, synthetic.latency(both, "a")])
    shown = {bench.label: table5(bench, Setting([], [])) for bench in benches}
    assert {name: (table.name, csv_rows(table)[0]["session"]) for name, table in shown.items()} == {
        "table5-cpu": ("table5-cpu", "a"),
        "table5-cpu-b": ("table5-cpu-b", "b"),
    }
    times = [[cells(table)[m][1] for m in ("NLA", "NLSA-r4")] for table in shown.values()]
    assert times == [["380", "92.6"], ["211", ""]]
    assert [bench.folder for bench in benches] == ["", "history"]


def test_a_repeated_session_takes_the_place_of_the_older() -> None:
    rows = [synthetic.latency_row("NLA", 1.0), synthetic.latency_row("NLSA-r4", 2.0)]
    slower = [row | {"mean_ms": 5.0} for row in rows]
    later = {"created": "2026-03-01T00:00:00+00:00"}
    (bench,) = find_benches([synthetic.latency(slower, "b", **later), synthetic.latency(rows, "a")])
    assert bench.record.id == "b"
    threads = synthetic.MACHINE | {"torch": {"threads": 8}}
    other = synthetic.latency(slower, "b", machine=threads, **later)
    benches = find_benches([synthetic.latency(rows, "a"), other])
    assert [bench.label for bench in benches] == ["table5-cpu", "table5-cpu-a"]


def test_the_session_with_most_methods_has_a_table_beside_table5() -> None:
    methods = ("NLA", "NLSA-r4", "Criss-Cross", "Baseline")
    every = synthetic.latency([synthetic.latency_row(name, 1.0) for name in methods], "a")
    parts = ("core", "module")
    few = synthetic.latency(
        [synthetic.latency_row(m, 2.0, p) for m in methods[:2] for p in parts], "b"
    )
    labels = [bench.label for bench in find_benches([every, few])]
    assert labels == ["table5-cpu", "latency-cpu"]


def test_speed_table() -> None:
    rows = [
        synthetic.speed_row("module-nla-100", 10.0, 4.0, ratio_target=2.5, memory_target_mb=19.9),
        synthetic.speed_row("core-nla-100", 370.0, 125.0, passes="forward+backward"),
        synthetic.speed_row("step-8x32-none", 9.0, 3.0, passes="step", memory_target_mb=None),
        synthetic.speed_row("core-nla-150", None, None, note="out of memory"),
    ]
    rows[2] |= {"ratio_low": None, "ratio_high": None}
    (session,) = find_speeds([synthetic.speed(rows)])
    table = speed_table(session)
    names = ["core-nla-100", "core-nla-150", "module-nla-100", "step-8x32-none"]
    assert list(cells(table)) == [f"made-up {name}" for name in names]
    memory, limit = ("300", "20.0"), ("2.50", "62%")
    assert [list(row[1:]) for row in table.rows] == [
        ["fwd+bwd", "370", "125", "2.96 [2.46, 3.46]", "3 missed", *memory, "30 met", "2.50", "2%"],
        ["fwd", "", "", "out of memory", "3", "", "", "30", "2.50", ""],
        ["fwd", "10.0", "4.00", "2.50 [2.00, 3.00]", "2.5 met", *memory, "19.9 missed", *limit],
        ["step", "9.00", "3.00", "3.00", "3 met", *memory, "", "2.50", "83%"],
    ]
    assert "3 of 5 targets met, 2 missed" in table.notes[0]
    first, second, *_ = csv_rows(table)
    assert (first["ratio_verdict"], first["memory_verdict"]) == ("missed", "met")
    assert (second["ratio"], second["ratio_verdict"], second["note"]) == ("", "", "out of memory")


def test_a_table_of_speed_is_one_whole_session() -> None:
    one, other = (synthetic.speed_row("core-nla-100", ms, 3.0) for ms in (12.0, 15.0))
    further = synthetic.speed_row("module-nla-100", 5.0, 3.0)
    days = [f"2026-01-0{day}T03:04:05+00:00" for day in (1, 2, 3)]
    on_gpu = {"device": "cuda"}
    records = [
        synthetic.speed([one, further], "a", created=days[0]),
        synthetic.speed([other], "b", created=days[1]),
        synthetic.speed([one | on_gpu], "c", created=days[2], machine=synthetic.GPU_MACHINE),
    ]
    found = find_speeds(records)
    released_ms = {one.label: [row[2] for row in speed_table(one).rows] for one in found}
    assert released_ms == {
        "speed-cpu": ["12.0", "5.00"],
        "speed-cpu-b": ["15.0"],
        "speed-made-up-gpu": ["12.0"],
    }
    assert [one.folder for one in found] == ["", "history", ""]
    repeated = synthetic.speed([other, further], "d", created=days[2])
    assert [one.record.id for one in find_speeds([*records[:2], repeated])] == ["d"]


def test_redraw_table() -> None:
    later = "2026-01-03T00:00:00+00:00"
    records = [
        synthetic.redraw([28.0, 28.5], "b", created=later),
        synthetic.redraw([27.0, 27.2, 26.9, 27.1], "a"),
    ]
    table = redraw_table(records)
    assert [list(row[2:]) for row in table.rows] == [
        ["Set5", "", "27.000", "+0.0667", "0.1528", "−0.1000 … +0.2000", "3"],
        ["Set5", "", "28.000", "+0.5000", "", "+0.5000 … +0.5000", "1"],
    ]
    row, _ = table.data
    assert row["psnr_db_redrawn_mean"] == pytest.approx(statistics.fmean([27.2, 26.9, 27.1]))
    assert redraw_table(records[::-1]).csv() == table.csv()


# -- formats ----------------------------------------------------------------------------------

AWKWARD = r"a_b & 50% #1 $x$ {y} \z ~ ^ <t> | × ± Δ [q]*"


def awkward_table() -> Table:
    return Table(
        name="awkward",
        caption=AWKWARD,
        notes=[AWKWARD, "two\nlines"],
        headers=[("", "Method"), ("G_1", "a%"), ("G_1", "b"), ("", "c")],
        rows=[
            *(["[x] first", "1", AWKWARD, ""], ["*", "2", "", "3"], ["last", "", "", ""]),
            *(["λ-attention", "", "", ""], ["注意", "ж", "", ""], ["", "≈", "∞", "🙂"]),
        ],
        data=[{"method": 'a,"b"', "x": 1 / 3, "n": 3}, {"method": "é", "x": None, "n": None}],
        rule_after=2,
    )


def check_latex(text: str) -> None:
    """Environments and braces balance, and every row has as many cells as the table columns."""
    bare = re.sub(r"\\[\\{}$&#%_]", "", text.replace(r"\textbackslash{}", ""))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    columns = len(re.search(r"\\begin\{tabular\}\{(l r*)\}".replace(" ", ""), text)[1])  # type: ignore[index]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert lines
    for line in lines:
        spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
        assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans) == columns, line
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{tab:"):
        assert rule in text
    assert r"\hline" not in text


def test_latex_escapes_every_special_character() -> None:
    assert latex_escape(r"a_b & 50% #1 $x$ {y} \z ~ ^") == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{}"
    )
    assert latex_escape("2×3 ± 1 ✓ –") == r"2$\times$3 $\pm$ 1 $\surd$ --"
    named = r"Nyström O(N$\sqrt{}$N) [U+6CE8] -{}-attn"  # what LaTeX has no letter for
    assert latex_escape("Nyström O(N√N) 注 --attn") == named
    text = awkward_table().latex()
    check_latex(text)
    assert "{}[x] first & 1 &" in text
    assert r"\multicolumn{2}{c}{G\_1}" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert text.index("{}* & 2") < text.rindex(r"\midrule") < text.index("last & ")


def all_tables(setting: Setting) -> list[Table]:
    (bench,) = find_benches([synthetic.latency([synthetic.latency_row("NLA", 1.0)])])
    tables = [table4(setting), table6(setting), quality_table(setting), awkward_table()]
    ablations = Setting([*synthetic.ablation("table2"), *synthetic.ablation("table3")], [])
    tables += [t for make in (table1, table2, table3) if (t := make(ablations))]
    (speed,) = find_speeds([synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)])])
    return [*tables, table5(bench, setting), latency_details(bench), speed_table(speed)]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(setting: Setting, tmp_path: Path) -> None:
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    text = "".join(table.latex() + "\\clearpage\n" for table in all_tables(setting))
    (tmp_path / "t.tex").write_text(f"{head}\\begin{{document}}{text}\\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_is_well_formed_and_markdown_has_as_many_cells_as_headers(setting: Setting) -> None:
    for table in all_tables(setting):
        check_latex(table.latex())
        assert not re.search(r"(\\\\|rule)\s*[\[*]", table.latex())  # taken for an option
        lines = table.markdown_grid().splitlines()
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert counts == {len(table.headers) + 1}
        assert len({len(line) for line in lines}) == 1
        assert re.fullmatch(r"\| -+ (\| -+: )+\|", lines[1])
    assert "two lines" in awkward_table().markdown()


def test_notes_below_a_table_take_three_lines_and_all_stand_in_a_file(
    setting: Setting, tmp_path: Path
) -> None:
    for table in all_tables(setting):
        paths = write_table(table, tmp_path)
        notes = table.markdown().rpartition("|\n")[2].strip().splitlines()
        assert 1 <= len(notes) <= 3
        assert all(len(note.removeprefix("- ")) <= 160 for note in notes)
        more = tmp_path / "notes" / f"{table.name}.md"
        assert (more in paths) == ("[All notes]" in notes[-1]) == more.exists()
        if more.exists():
            assert notes[-1] == f"- [All notes](notes/{table.name}.md)"
            assert more.read_text(encoding="utf-8").count("\n- ") == len(table.notes)


SENTENCES = st.lists(st.integers(1, 240).map(lambda n: "A" + "b" * n + "."), min_size=1, max_size=6)


@given(st.lists(SENTENCES, min_size=1, max_size=4))
def test_short_notes_are_whole_sentences_from_the_first_on(notes: list[list[str]]) -> None:
    table = Table("x", "X", [" ".join(note) for note in notes], [("", "a")], [["1"]], [])
    short = table.short_notes
    assert len(short) <= 3 - table.more_notes
    assert all(len(line) <= 160 for line in short)
    told = " ".join(short).split()
    wanted = [sentence for note in notes for sentence in note]
    assert told == wanted[: len(told)]
    if not table.more_notes:
        assert told == wanted
    elif len(short) < 2:
        assert len(wanted[len(told)]) > 160


def test_notes_name_only_rows_of_their_table() -> None:
    """The processor of NLA's and of a window's run is another; Table 6 has only the first."""
    other = synthetic.MACHINE | {"cpu": {"model": "Other CPU"}}
    variants = ("NLA", synthetic.variant("window"))
    runs = [synthetic.run(v, machine=other) for v in variants]
    setting = Setting([synthetic.run("Baseline"), *runs], [])
    named = {
        table.name: [label for label in ("NLA (seed", "Window-w8 (seed") if label in notes]
        for table in (table4(setting), table6(setting))
        if (notes := table.markdown_notes())
    }
    assert named == {"table4": ["NLA (seed", "Window-w8 (seed"], "table6": ["NLA (seed"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-0.5 [-0.6, -.4]", "−0.5 [−0.6, −.4]"),
        ("rate 1e-4, 2026-01-02, ENLCA-m128, x-1", "rate 1e-4, 2026-01-02, ENLCA-m128, x-1"),
        ("--seeds -1", "--seeds −1"),
    ],
)
def test_minus_signs_are_minus_signs(text: str, shown: str) -> None:
    table = Table("t", text, [text], [("", "Method")], [[text]], [{"method": text}])
    assert (table.caption, table.notes, table.rows) == (shown, [shown], [[shown]])
    assert csv_rows(table) == [{"method": text}]  # programs read hyphens


def test_the_nearest_setting_has_the_canonical_tables() -> None:
    runs = [synthetic.run(preset=p, identifier=p) for p in ("small", "paper")]
    tables = {(folder, table.name): table for folder, table in build(runs, [], [])}
    nearest = find_settings(runs, [])[0]
    assert nearest.config.preset == "paper"
    table = tables["", "table4"]
    assert (table.rows, table.label) == (tables[nearest.label, "table4"].rows, "table4")


def test_csv_keeps_digits_and_leaves_gaps_empty() -> None:
    rows = list(csv.reader(io.StringIO(awkward_table().csv())))
    assert rows == [["method", "x", "n"], ['a,"b"', "0.3333333333", "3"], ["é", "", ""]]


# -- the short table --------------------------------------------------------------------------


def printed(table: Any) -> list[tuple[str, ...]]:
    """Its rows."""
    return list(zip(*(map(str, column.cells) for column in table.columns), strict=True))


def render(table: Any, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(Fitted(table))
    return captured.get()


def test_summary_of_a_run(setting: Setting) -> None:
    rows = [synthetic.latency_row("NLA", 12.3), synthetic.latency_row("NLA", 9.0, size=150)]
    table = summary(setting.runs, setting.costs, synthetic.latency(rows))
    shown = {line[0]: list(line[1:]) for line in printed(table)}
    both = ["27.30 / 0.6825", "+0.300 [−0.130, +0.730]"] * 2
    assert shown["NLA"] == ["1", "2.00 s", "25.60", "25.60", "256.00", "12.3", *both, "26.87"]
    assert shown["Baseline"][:6] == ["1", "2.00 s", "", "0", "", ""]
    bicubic = ["25.00 / 0.6250", "−2.000 [−4.484, +0.484]"] * 2
    assert shown["bicubic"] == ["", "", "", "", "", "", *bicubic, ""]
    assert shown["Criss-Cross"] == ["", "", "0.51", "", "5.12", "", "", "", "", "", ""]
    assert "Those of one seed leave out the noise of training" in str(table.caption)


def test_summary_of_several_seeds_tells_their_number() -> None:
    runs = [synthetic.run(name, seed) for name in ("Baseline", "NLA") for seed in range(3)]
    table = summary(runs, [], None)
    (seeds,) = (list(c.cells) for c in table.columns if str(c.header) == "seeds")
    assert seeds == ["3", "3", ""]
    assert "one seed" not in str(table.caption)


def test_summaries_of_a_sweep_are_one_for_each_setting() -> None:
    one, other = (
        [synthetic.run(name, preset=preset) for name in ("Baseline", "NLA")]
        for preset in ("small", "quick")
    )
    start = synthetic.run("Baseline", steps=10)  # of a warm start
    tables = list(summaries([*one, start, *other], [synthetic.cost("NLA", 25.6)]))
    assert [[line[0] for line in printed(table)] for table in tables] == [
        ["Baseline", "NLA", "bicubic"]
    ] * 2


@pytest.mark.parametrize("width", [40, 60, 80, 100, 1000])
def test_nothing_of_the_summary_is_cut(width: int) -> None:
    """Six test sets, labels that begin alike, and whatever stands in a cell."""
    variants = [synthetic.variant("enlca", m=m, n1=n) for m in (2, 16) for n in (0.01, 0.015)]
    sets = ["Set5", "Set14", "B100", "Urban100", "Manga109", "[a] $x$"]
    runs = [synthetic.run(v, seed, sets=sets) for v in ("Baseline", *variants) for seed in (0, 1)]
    table = summary(runs, [synthetic.cost("NLA", 25.6)], None)
    text = render(table, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    whole = " ".join(text.split())
    first, *others = table.columns
    cells = [*first.cells, *(cell for c in others for cell in (c.header, *c.cells))]
    for word in " ".join(map(str, cells)).split():
        assert word in whole, word
    labels = [str(cell) for cell in table.columns[0].cells]
    assert len({*labels}) == len(labels)
    begins = {line.rpartition(")")[0] + ")" for line in text.splitlines()}
    assert width < 60 or {label for label in labels if "(" in label} <= begins
    assert (len(text.splitlines()) < 15) == (width == 1000)


@pytest.mark.parametrize("label", ["NLA [ours]", "[/x]", "[red]", "\\[a]"])
def test_brackets_of_labels_and_notes_are_text(label: str) -> None:
    module = synthetic.VARIANTS["User_Attention-8"] | dict.fromkeys(("label", "row_label"), label)
    row = synthetic.latency_row("NLA", None) | {"variant": module, "note": "[/failed]"}
    record = synthetic.latency([row])
    for text in map(render, latency_tables(record)):
        assert label in text
        assert "[/failed]" in text
    (table,) = gpu_tables(synthetic.gpu([{"name": label, "result": "[/y]"}], piece="[/z]"))
    assert all(part in render(table) for part in (label, "[/y]", "[/z]"))
    assert label in render(summary([synthetic.run(module, identifier="a")], [], None))


def test_summary_without_training_or_latency() -> None:
    text = render(summary([], [synthetic.cost("NLA", 25.6)], None))
    assert "25.60" in text
    assert "bicubic" not in text
    assert "NLA" in render(summary([], [], synthetic.latency([synthetic.latency_row("NLA", 1.0)])))


def test_latency_tables_show_the_ratio_to_nla() -> None:
    rows = [
        synthetic.latency_row("NLA", 30.0, size=9),
        synthetic.latency_row("NLSA-r4", 4.0, size=9, peak_memory_mb=1.25),
        synthetic.latency_row("Criss-Cross", None, size=9, note="out of memory"),
        synthetic.latency_row("NLSA-r4", 4.0, "module", size=9),
    ]
    core, module = latency_tables(synthetic.latency(rows))
    assert str(core.title) == "core, forward, 9x9"
    assert printed(core) == [
        ("NLA", "27.000", "30.000", "3.000", "15.000", "7", "", "1.00"),
        ("NLSA-r4", "3.600", "4.000", "0.400", "2.000", "7", "1.2", "7.50"),
        ("Criss-Cross", "", "", "", "", "out of memory", "", ""),
    ]
    assert list(module.columns[-1].cells) == [""]  # NLA was not timed there


def test_gpu_tables_have_a_column_for_each_number() -> None:
    rows = [
        {"name": "compile", "seconds": 1.23456, "runs": 3},
        {"name": "train", "result": "failed", "note": "no such kernel"},
    ]
    (table,) = gpu_tables(synthetic.gpu(rows))
    assert str(table.title) == "made-up"
    headers = [str(column.header) for column in table.columns]
    assert headers == ["name", "seconds", "result", "note"]
    further = ("train", "", "failed", "no such kernel")
    assert printed(table) == [("compile", "1.235", "", ""), further]
    latency = synthetic.latency([synthetic.latency_row("NLA", 1.0)])
    assert [str(table.title) for table in gpu_tables(latency)] == ["core, forward, 100x100"]


# -- the command line -------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, setting: Setting) -> Path:
    for record in (*setting.runs, *setting.costs):
        save_record(tmp_path, record)
    save_record(tmp_path, synthetic.latency([synthetic.latency_row("NLA", 1.0)]))
    save_record(tmp_path, synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)]))
    return tmp_path


@pytest.mark.parametrize("suffixes", [("csv", "md"), ("csv", "md", "tex")], ids=len)
def test_main_writes_all_tables_and_prints_a_summary(
    cli: Cli, results: Path, setting: Setting, suffixes: tuple[str, ...]
) -> None:
    lines = cli("tables", "--results", results, *["--latex"] * ("tex" in suffixes)).out.splitlines()
    folder = results / "tables" / setting.label
    names = itertools.product(("table1", "table4", "table6", "quality"), suffixes)
    written = {path for path in (results / "tables").rglob("*.*") if path.is_file()}
    assert {folder / ".".join(name) for name in names} <= written
    tables = {path.stem for path in written if path.parent.name != "notes"}
    count = int(lines[0].split()[0])
    assert lines[0] == f"{count} tables in {len(written)} files under {results / 'tables'}:"
    assert count >= len(tables)
    shown = {Path(line) for line in lines if line.endswith(".md")}
    assert shown <= written
    readable = [path for path in written if path.suffix == ".md"]
    assert f"... and {len(readable) - len(shown)} more" in lines
    assert {path.suffix[1:] for path in written} == set(suffixes)
    assert len(list((results / "tables").glob("table5-*"))) == 2 * len(suffixes)
    assert any(line.startswith("| ENLCA-m128 ") for line in lines)


def test_preset_picks_runs(results: Path, tmp_path: Path) -> None:
    save_record(results, synthetic.run("NLA", 0, NLA, preset="quick"))
    output = tmp_path / "out"
    write_tables(results, preset="quick", output=output)
    assert {p.name.split("-")[0] for p in output.glob("*/")} == {"quick", "notes"}
    with pytest.raises(UserError, match=r"no runs of preset 'base' .* quick, small"):
        write_tables(results, preset="base", output=output)


@pytest.mark.parametrize(
    ("spoiled", "text", "message"),
    [
        (None, "", "run python -m harness.run first"),
        ("records/runs/x.json", '{"schema": 1, ', "x.json"),
        ("tables", "a file in the way", "cannot write"),
    ],
)
def test_users_mistakes_are_one_line(
    cli: Cli, results: Path, spoiled: str | None, text: str, message: str
) -> None:
    if spoiled:
        (results / spoiled).write_text(text)
    assert message in cli.refused(
        "tables", "--results", results if spoiled else results / "nowhere"
    )


def test_an_option_that_changes_no_count_adds_no_row_of_counts() -> None:
    """Counted ablations would repeat ENLCA-m128's row in every Table 4; trained ones stay."""
    counted = synthetic.variant("enlca", n1=0.01)
    costs = [
        synthetic.cost(synthetic.variant("enlca"), 0.6),
        synthetic.cost(counted, 0.6),
        synthetic.cost(synthetic.variant("enlca", n1=0.03), 0.7),
    ]
    runs = [synthetic.run("Baseline"), synthetic.run("NLA")]

    def further(runs: list[Run]) -> list[str]:
        rows = cells(table4(Setting(runs, costs)))
        return [row for row in rows if row.startswith("ENLCA-m128 ")]

    assert further(runs) == ["ENLCA-m128 (n1=0.03)"]
    trained = synthetic.run(counted)
    assert further([*runs, trained]) == ["ENLCA-m128 (n1=0.01)", "ENLCA-m128 (n1=0.03)"]

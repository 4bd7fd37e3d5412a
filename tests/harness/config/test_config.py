from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_zoo import AttentionError, find_attention, list_attentions
from harness.base.errors import UserError
from harness.config.network import NetworkConfig, quarters, spread
from harness.config.presets import PRESETS, find_preset
from harness.config.rows import rows_to_run, table_rows
from harness.config.run import DataConfig, RunConfig, StartConfig, TaskConfig
from harness.config.variants import Variant
from harness.records.shapes import Cost, Run, untyped
from harness.records.store import load_records
from harness.training.trainer import learning_rate
from tests.harness.tiny import make_config


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("table1", "Baseline NLA NLSA-r4 ENLCA-m128"),
        (
            "table4",
            "Baseline NLA Conv NLSA-r4 ENLCA-m256 ENLCA-m128 ENLCA-m64 ENLCA-m32 ENLCA-m16 ENLCA-m8"
            " ENLCA-m4 ENLCA-m2",
        ),
        ("table5", "NLA NLSA-r4 ENLCA-m128 ENLCA-m16 Criss-Cross Conv"),
        ("table6", "Baseline NLA Criss-Cross NLSA-r4 ENLCA-m128"),
    ],
)
def test_rows_of_a_table_are_the_papers_in_its_order(table: str, labels: str) -> None:
    assert [v.label for v in table_rows(table)] == labels.split()


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(UserError, match="table4, table5, table6"):
        table_rows("table9")


def test_rows_of_table_2_switch_the_components_on() -> None:
    rows = [(v.name, v.resolved.get("k")) for v in table_rows("table2")]
    assert rows == [("none", None), ("enla", 1.0), ("enla", 6.0), ("enlca", 1.0), ("enlca", 6.0)]
    assert all(v.resolved["m"] == 128 for v in table_rows("table2")[1:])


def test_rows_of_table_3_are_the_grid_of_shares() -> None:
    grid = [(v.name, v.resolved["n1"], v.resolved["n2"]) for v in table_rows("table3")]
    assert grid == [
        ("enlca", n1, n2) for n1 in (0.01, 0.015, 0.02, 0.03) for n2 in (0.04, 0.08, 0.13, 0.2)
    ]


@pytest.mark.parametrize("table", ["table2", "table3"])
def test_the_default_enlca_is_run_once_for_all_tables(table: str) -> None:
    def run_ids(rows: list[Variant]) -> list[str]:
        return [make_config(v.name, v.options).run_id for v in rows]

    default = make_config("enlca").run_id
    assert run_ids(table_rows(table)).count(default) == 1
    assert run_ids(table_rows("table4")).count(default) == 1
    assert len(set(run_ids(table_rows(table)))) == len(table_rows(table))


def test_names_of_files_are_plain() -> None:
    names = [v.file_name for v in table_rows("rivals")]
    assert {"nla-flash", "nystrom-8x8", "shifted-window-w16", "rcan-ca"} <= set(names)
    assert all(name.isascii() and " " not in name for name in names)
    assert [v.file_name for v in table_rows("table5")][1:3] == ["nlsa-r4", "enlca-m128"]


def test_every_module_is_a_row_and_windows_are_of_both_sizes() -> None:
    """ENLA is a row of Table 2. One command trains, times or scales all rivals."""
    rivals = rows_to_run("rivals")
    assert rivals[0].name == "none"
    tables = [
        v for t in ("table2", "table4", "table5", "rivals", "controls") for v in rows_to_run(t)
    ]
    built_in = {
        name
        for name in list_attentions(installed=False)
        if find_attention(name).__module__.startswith("attention_zoo.")
    }
    assert built_in <= {v.name for v in tables}
    labels = [v.label for v in rivals]
    assert len(labels) == len(set(labels))
    for kind in ("Window", "Shifted window"):
        sizes = [label for label in labels if label.startswith(kind)]
        assert sizes == [f"{kind}-w8", f"{kind}-w16"]


def test_a_new_module_is_a_rival_without_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.config.rows.built_in_attentions", lambda: ["nla", "new-one"])
    assert rows_to_run("rivals") == [*table_rows("rivals"), Variant("new-one")]
    assert rows_to_run("table4") == table_rows("table4")


def test_variant_refuses_an_option_of_another_module() -> None:
    with pytest.raises(AttentionError, match=r"nlsa has no option 'm'.*rounds"):
        Variant.of("nlsa", {"m": 16})
    with pytest.raises(AttentionError, match="no option 'm'"):
        make_config("nlsa", {"m": 16})


def test_variant_resolves_its_options() -> None:
    variant = Variant("enlca", {"m": 16})
    assert variant.resolved["m"] == 16
    assert variant.resolved["k"] == 6.0
    assert variant.to_dict()["label"] == "ENLCA-m16"
    assert variant.create(8, m=4).m == 4


@pytest.mark.parametrize("on", [False, True])
def test_numbers_for_a_switch_are_no_variants_of_their_own(on: bool) -> None:
    variants = {Variant.of("nla", {"shared": value}) for value in (on, int(on), float(on))}
    assert variants == {Variant("nla", {"shared": True} if on else {})}
    assert Variant.of("enlca", {"m": 2, "k": 1.0}).options == {"m": 2, "k": 1.0}


def test_the_paper_preset_is_the_papers() -> None:
    paper = find_preset("paper")
    assert paper.network == NetworkConfig(32, 256, 0.1)
    assert (paper.steps, paper.steps_per_epoch, paper.learning_rate) == (1_000_000, 1000, 1e-4)
    assert paper.patch == {2: 46, 3: 28, 4: 28}
    assert paper.batch == 16
    with pytest.raises(UserError, match=", ".join(PRESETS)):
        find_preset("huge")


def test_halving_follows_the_paper() -> None:
    """1e-4, halved after each 200 of 1000 epochs."""
    config = make_config(steps=1000, learning_rate=1e-4, schedule="halving")
    rates = [learning_rate(config, step) for step in (0, 199, 200, 400, 999)]
    assert rates == [1e-4, 1e-4, 0.5e-4, 0.25e-4, 1e-4 / 16]


def test_one_cycle_rises_to_its_peak_and_falls() -> None:
    config = make_config(steps=1000)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert max(rates) == rates[100] == pytest.approx(1e-3)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] < 2e-5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"blocks": 3}, "blocks must be at least 4"),
        ({"scale": 5}, "scale must be 2, 3 or 4, got 5"),
        ({"scale": 1}, "scale must be 2, 3 or 4, got 1"),
        ({"scale": 0, "task": TaskConfig("t", {}, "mse", (1,))}, "scale must be 1, 2, 3 or 4"),
        ({"learning_rate": float("nan")}, "learning rate"),
        ({"auxiliary_warmup": 1.5}, "warm-up"),
        ({"protocol": "cold"}, "unknown protocol 'cold': choose from scratch, warm-start"),
        ({"schedule": "cosine"}, "halving, one-cycle"),
        ({"precision": "int8"}, "float32, tf32, bfloat16"),
        ({"tile": 3}, "tile must be at least 16"),
        ({"attention_rate": 0.0}, "attention rate must be a finite number above 0, got 0.0"),
        ({"attention_rate": float("nan")}, "attention rate must be a finite number above 0"),
        ({"seed": -1}, "seed must be 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be 0 to 4294967295"),
        ({"auxiliary_weight": float("nan")}, "auxiliary weight must be a finite number"),
        ({"auxiliary_weight": -0.1}, "auxiliary weight must be a finite number, at least 0"),
        ({"block_res_scale": float("inf")}, "block res scale must be finite"),
    ],
)
def test_bad_values_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_config(**values)


def test_scale_1_is_for_tasks_alone() -> None:
    task = TaskConfig("stack", {}, "mse", (1,))
    assert make_config(scale=1, task=task).scale == 1
    preset = dataclasses.replace(PRESETS["quick"], patch={1: 16})
    words: dict[str, Any] = {"found": preset, "variant": Variant("none"), "seed": 0}
    words |= {"device": "cpu", "data": make_config().data, "task": task}
    assert RunConfig.of_preset("quick", scale=1, **words).patch == 16
    with pytest.raises(UserError, match="scale must be 1, got 2"):
        RunConfig.of_preset("quick", scale=2, **words)


def test_the_id_depends_on_every_value() -> None:
    config = make_config()
    configs = [
        config,
        make_config(seed=1),
        make_config("conv"),
        make_config(steps=7),
        make_config(data=dataclasses.replace(config.data, train_sha256="1" * 64)),
        make_config("enla", {"m": 4}),
        make_config("enla", {"m": 8}),
    ]
    assert len({c.run_id for c in configs}) == len(configs)


PUBLISHED = Path(__file__).parents[3] / "results"


def configuration(run: Run) -> RunConfig:
    """The configuration that a record describes."""
    values = untyped(run.config)
    sizes = {name: values.pop(name) for name in ("blocks", "channels", "block_res_scale")}
    if "start" in values:
        values["start"] = StartConfig(**values["start"])
    if "task" in values:
        positions = tuple(values["task"]["positions"])
        values["task"] = TaskConfig(**values["task"] | {"positions": positions})
    if "positions" in values:
        values["positions"] = tuple(values["positions"])
    return RunConfig(
        **values
        | {
            "variant": Variant.of(run.variant.name, run.variant.options),
            "network": NetworkConfig(**sizes),
            "betas": tuple(values["betas"]),
            "data": DataConfig(**values["data"]),
        }
    )


def test_published_runs_keep_their_ids() -> None:
    """Ids depend on names, options and values, not on how the code arranges them."""
    runs = load_records(PUBLISHED, Run)
    assert len(runs) > 100
    assert {run.config.protocol for run in runs} == {"scratch", "warm-start"}
    for run in runs:
        config = configuration(run)
        setting = json.loads(json.dumps(config.setting))  # it has no tuples
        assert (config.run_id, setting) == (run.id, untyped(run.config))


def test_options_of_records_are_those_that_would_be_recorded() -> None:
    """So a published variant is found, and not counted again."""
    for record in (*load_records(PUBLISHED, Run), *load_records(PUBLISHED, Cost)):
        one = record.variant
        assert Variant.of(one.name, one.options).recorded == one.options


def test_what_concerns_modules_is_recorded_unless_it_is_the_default() -> None:
    plain = make_config("nla")
    data = dataclasses.replace(plain.data, holdout_crop=64)
    changed: dict[str, Any] = {"positions": (1, 3), "learn_res_scale": True, "attention_rate": 3.0}
    others = [make_config("nla", **{name: value}) for name, value in changed.items()]
    others.append(make_config("nla", data=data))
    assert not changed.keys() & plain.setting.keys()
    assert "holdout_crop" not in plain.setting["data"]
    assert len({plain.run_id, *(one.run_id for one in others)}) == 5
    for (name, value), one in zip(changed.items(), others, strict=False):
        assert one.setting == plain.setting | {name: value}
    assert others[-1].setting["data"] == plain.setting["data"] | {"holdout_crop": 64}


def test_one_baseline_serves_all_rates_of_the_modules() -> None:
    start = StartConfig(3, 1e-3, "one-cycle")
    words: dict[str, Any] = {"protocol": "warm-start", "start": start}
    plain = make_config("nla", **words)
    other = make_config("nla", **words, learn_res_scale=True, attention_rate=3.0)
    assert plain.run_id != other.run_id
    assert plain.baseline == other.baseline


@given(st.integers(1, 64), st.integers(1, 64))
def test_modules_stand_in_the_middle_of_equal_parts(blocks: int, modules: int) -> None:
    if modules > blocks and modules != 5:
        with pytest.raises(UserError, match=f"modules must be 1 to {blocks}, .* got {modules}"):
            spread(blocks, modules)
        return
    places = spread(blocks, modules)
    assert len(places) == modules
    if modules == 5:
        assert places == quarters(blocks)
        return
    assert len({*places}) == modules
    ends = [part * blocks / modules for part in range(modules + 1)]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    assert all(0 <= m - place < 1 for m, place in zip(middles, places, strict=True))


def test_two_modules_stand_after_the_first_and_third_quarter() -> None:
    assert [spread(blocks, 2) for blocks in (4, 8, 16, 32)] == [(1, 3), (2, 6), (4, 12), (8, 24)]
    assert spread(8, 1) == (4,)  # as in a synthetic task


def test_only_a_chosen_implementation_is_part_of_the_id() -> None:
    auto, chosen = make_config(), make_config(implementation="reference")
    assert "implementation" not in auto.setting
    assert chosen.setting == auto.setting | {"implementation": "reference"}
    assert chosen.run_id != auto.run_id

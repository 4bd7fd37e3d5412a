"""Settings in which attention is tried on photographs: their weight, their tables, their gain."""

from __future__ import annotations

from typing import Any

import pytest
import synthetic_records as synthetic

from harness.base.names import digest
from harness.config.presets import PHOTOGRAPHS
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.records.shapes import Run
from harness.reporting.cells import setting_text
from harness.reporting.settings import Setting, find_settings, image_task_settings, photographs
from harness.reporting.tables.all import build, build_tasks
from harness.reporting.tables.claims import SMALLER, UNDECIDED, find_claims
from harness.reporting.tables.profile import findings_table

DENOISE: dict[str, Any] = {
    "scale": 1,
    "task": {"name": "denoise", "options": {"sigma": 50.0}, "loss": "l1", "positions": [1, 3]},
    "blocks": 4,
}
WEIGHT = 1.0


def named(name: str, **options: Any) -> dict[str, Any]:
    return synthetic.variant(name, **options)


def denoised(variant: dict[str, Any], seed: int = 0, gain: float = 0.0, **config: Any) -> Run:
    values = [27.0 + gain, 28.0 + gain + 0.01 * seed, 29.0 + gain]
    identifier = digest([variant["name"], variant["options"], seed, config])
    return synthetic.run(variant, seed, values, identifier=identifier, **DENOISE | config)


def weighted(gain: float = 0.1, **config: Any) -> list[Run]:
    """Baseline, NLA and two ENLCA with a weight of 1, two seeds each."""
    rows = [
        named("none"),
        named("nla", res_scale=WEIGHT),
        named("enlca", res_scale=WEIGHT),
        named("enlca", res_scale=WEIGHT, m=16),
    ]
    return [
        denoised(row, seed, gain * index, **config)
        for index, row in enumerate(rows)
        for seed in (0, 1)
    ]


def test_the_usual_weight_of_a_setting_is_no_option_of_its_rows() -> None:
    odd = denoised(named("nla"))
    setting = Setting([*weighted(), odd], [])
    assert setting.res_scale == WEIGHT
    labels = [label for label, _ in setting.trained]
    assert labels == ["Baseline", "NLA", "ENLCA-m128", "ENLCA-m16", "NLA (res_scale=0.1)"]
    assert set(table_rows("table4")) > {Variant("nla"), Variant("enlca", {"m": 16})}
    assert len(setting.runs_of[Variant("nla")]) == 2
    assert len(setting.runs_of[Variant("nla", {"res_scale": 0.1})]) == 1
    few = setting.only([Variant("nla", {"res_scale": 0.1})])
    assert few.res_scale == WEIGHT  # rows keep their names
    assert few.labels == setting.labels


def test_with_the_modules_own_weight_it_is_an_option() -> None:
    own = [denoised(named(name)) for name in ("none", "nla", "enlca")]
    setting = Setting([*own, denoised(named("nla", res_scale=WEIGHT))], [])
    labels = [label for label, _ in setting.trained]
    assert labels == ["Baseline", "NLA", "ENLCA-m128", "NLA (res_scale=1.0)"]
    assert Setting(own[:1], []).res_scale is None


def test_text_names_what_is_unusual() -> None:
    def text(runs: list[Run]) -> str:
        return setting_text(Setting(runs, []))

    assert "4 blocks × 32 channels), 2 modules of weight 1, protocol" in text(weighted())
    learned = weighted(learn_res_scale=True, attention_rate=0.3)
    assert "2 modules learned weight from 1 rate of the modules ×0.3" in text(learned)
    five = {"task": {**DENOISE["task"], "positions": [0, 1, 2, 3, 4]}}
    assert ", modules of weight 1, protocol" in text(weighted(**five))
    own = [denoised(named(name), **five) for name in ("none", "nla")]
    assert "channels), protocol" in text(own)


@pytest.mark.parametrize("runs", [weighted(), weighted()[:4]])
def test_tables_of_the_papers_rows(runs: list[Run]) -> None:
    made = {table.name: table for _, table in build_tasks(runs, [], [])}
    whole = len(runs) > 4
    assert made.keys() == {"claims", "quality", *(("table4", "table6") if whole else ())}
    assert len(made["claims"].rows) == (4 if whole else 1)
    if whole:
        nla = next(row for row in made["table4"].rows if row[0] == "NLA")
        difference = made["table4"].headers.index(("PSNR (dB)", "difference to baseline"))
        assert nla[difference].startswith("+0.100")


def test_the_papers_differences_are_no_measure_of_another_task() -> None:
    gains = {"none": 0.0, "nla": 0.0, "enlca": 0.001}  # the paper has +0.23 for both

    def verdicts(**config: Any) -> set[str]:
        runs = [
            denoised(named(name), seed, gain + 1e-4 * seed * index, **config)
            for index, (name, gain) in enumerate(gains.items())
            for seed in (0, 1, 2)
        ]
        return {found.verdict for found in find_claims(Setting(runs, []))}

    assert UNDECIDED in verdicts()
    assert SMALLER not in verdicts()
    assert SMALLER in verdicts(scale=4)


def test_gain_on_photographs_is_of_the_preset_of_this_name() -> None:
    sr = [synthetic.run(name, seed) for name in ("Baseline", "NLA") for seed in range(9)]
    runs = [*sr, *weighted()]
    settings = [*find_settings(runs, []), *image_task_settings(runs, [])]
    found = photographs(settings)
    assert found is not None
    assert found.config.scale == 4
    regime = weighted(preset=PHOTOGRAPHS)
    settings += image_task_settings(regime, [])
    found = photographs(settings)
    assert found is not None
    assert found.runs == regime
    more = [synthetic.run(name, 0) for name in ("NLSA-r4", "Criss-Cross", "User_Attention-8")]
    found = photographs([*find_settings([*sr, *more], []), *image_task_settings(regime, [])])
    assert found is not None
    assert found.config.scale == 4  # more rows
    table = next(t for _, t in build([*runs, *regime], [], []) if t.name == "modules")
    assert ("PSNR (dB) Urban100, denoise sigma 50", "difference to baseline") in table.headers
    nla = next(row for row in table.rows if row[0] == "nla")
    assert nla[-2].startswith("+0.100")


def test_the_profile_is_compared_with_the_gain() -> None:
    scores = {"nla": 0.3, "enlca": 0.6, "enlca m16": 0.9}
    runs = [
        synthetic.task_run(
            named(name.split()[0], res_scale=1.0, **({"m": 16} if "m16" in name else {})),
            scores=(score,) * 3,
            seed=seed,
        )
        for name, score in scores.items()
        for seed in (0, 1)
    ]

    def taus(gain: float) -> list[str]:
        table = findings_table([*runs, *weighted(gain, preset=PHOTOGRAPHS)])
        assert table is not None
        found = {row[0]: row[-1] for row in table.rows if "gain on Urban100" in row[0]}
        assert [key.partition(": ")[2] for key in found] == [
            f"{what} and gain on Urban100, denoise sigma 50"
            for what in ("recall D=4 at 2n", "aggregate")
        ]
        return [*found.values()]

    rising, aggregate = taus(0.1)
    assert rising.startswith("1.00 ")
    assert aggregate == "0 common rows"
    assert taus(-0.1)[0].startswith("−1.00 ")
    table = findings_table(runs)
    assert table is not None
    assert not any("gain on" in row[0] for row in table.rows)

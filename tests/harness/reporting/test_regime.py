"""How the preset photographs was chosen: the page's numbers are those of the published records."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

from harness.images.sources import HOLDOUT
from harness.records.shapes import UNSET, Run
from harness.records.store import load_records
from harness.tasks.denoise import Denoise

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "photographs.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return load_records(ROOT / "results" / "regime", Run)


def psnr(run: Run) -> float:
    return fmean(image.psnr for image in run.quality[HOLDOUT].images)


def by_name(runs: list[Run], steps: int, tile: int | None) -> dict[str, float]:
    """PSNR of the networks with two modules of weight 1."""
    return {
        run.variant.name: psnr(run)
        for run in runs
        if (run.config.steps, run.config.tile) == (steps, tile)
        and run.config.task is not UNSET
        and run.config.task.options == {"sigma": 50.0}
        and run.config.task.positions == [1, 3]
        and run.variant.options.get("res_scale", 1.0) == 1.0
        and (run.config.learn_res_scale, run.config.attention_rate) == (UNSET, UNSET)
    }


def test_no_test_image_had_a_part(runs: list[Run]) -> None:
    for run in runs:
        assert [*run.quality] == run.config.data.test == [HOLDOUT]
        assert run.config.data.train_images == 799


def test_numbers_by_length(runs: list[Run]) -> None:
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines()]
    table = {
        int(line[0].replace(",", "")): [*map(float, line[1:])]
        for line in lines
        if len(line) == 6 and re.fullmatch(r"\d,000", line[0])
    }
    assert table.keys() == {2000, 3000, 6000}
    for steps, (*found, gain) in table.items():
        tiled = by_name(runs, steps, Denoise.presets["photographs"].tile)
        for name, value in zip(("none", "conv", "nla", "nlsa"), found, strict=True):
            assert tiled[name] == pytest.approx(value, abs=5e-4), (steps, name)
        best = max(tiled["nla"], tiled["nlsa"]) - max(tiled["none"], tiled["conv"])
        assert best == pytest.approx(gain, abs=5e-4)


def test_tiles_change_no_local_network(runs: list[Run]) -> None:
    whole, tiled = by_name(runs, 2000, None), by_name(runs, 2000, 32)
    for name in ("none", "conv"):
        assert abs(whole[name] - tiled[name]) < 1e-3


def test_numbers_of_the_second_round(runs: list[Run]) -> None:
    """NLA evaluated whole, by weight, rate and number of modules."""
    second = [run for run in runs if run.config.steps == 2000 and run.config.tile is None]
    (row,) = (line for line in PAGE.splitlines() if line.startswith("| 2 | `none` 26.40"))
    stated = [float(number) for number in re.findall(r"26\.\d{3}", row)]
    found = [psnr(run) for run in second if run.variant.name == "nla"]
    assert sorted(round(value, 3) for value in found) == sorted(stated)

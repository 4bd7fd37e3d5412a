"""Settings: groups of comparable runs, and what the records hold of each."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ..config.labels import variant_key, variant_labels
from ..records.origin import Record, by_age
from ..records.store import setting_label, setting_of
from .statistics import Summary, summarise

#: Test set of every PSNR in the paper's Tables 4 to 6.
PAPER_SET = "Urban100"
#: Presets, nearest to the paper's setting first.
PRESETS = ("paper", "base", "small", "quick")
#: Channels at which the paper counts and times each part.
PART_CHANNELS = {"core": 64, "module": 256}


@cache
def paper_table(number: int) -> list[dict[str, str]]:
    """The paper's table as printed, one mapping a row; "" where it prints a dash."""
    path = Path(__file__).parent / "paper" / f"table{number}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row_order(
    labels: Mapping[str, str], paper_labels: Sequence[str]
) -> list[tuple[str, str | None]]:
    """(label, key) of each row: the paper's in its order, key None if not measured, then others."""
    keys = {label: key for key, label in labels.items()}
    further = sorted(keys.keys() - set(paper_labels), key=_natural)
    return [(label, keys.get(label)) for label in (*paper_labels, *further)]


def _natural(label: str) -> list[tuple[str, int]]:
    """Sort key under which m8 comes before m16."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", label)]


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, all comparable, and the operation counts of every variant."""

    runs: Sequence[Record]
    costs: Sequence[Record]

    @property
    def label(self) -> str:
        return setting_label(self.runs[0]) if self.runs else "costs-only"

    @property
    def config(self) -> dict[str, Any]:
        return setting_of(self.runs[0]) if self.runs else {}

    @property
    def test_sets(self) -> list[str]:
        return list(self.config["data"]["test"]) if self.runs else []

    @property
    def test_set(self) -> str | None:
        """Where Tables 4 to 6 are measured."""
        return self.nearest_set(PAPER_SET)

    def nearest_set(self, name: str) -> str | None:
        """The paper's test set where the setting has it, otherwise its first."""
        sets = self.test_sets
        return name if name in sets else next(iter(sets), None)

    @cached_property
    def runs_of(self) -> dict[str, list[Record]]:
        """Runs by variant key, one a seed, in the order of seeds; of repeats the newest."""
        newest = {(variant_key(r["variant"]), r["config"]["seed"]): r for r in by_age(self.runs)}
        groups: dict[str, list[Record]] = {}
        for (key, _), run in sorted(newest.items()):
            groups.setdefault(key, []).append(run)
        return groups

    @cached_property
    def cost_of(self) -> dict[str, Record]:
        """Operation counts at the paper's sizes by variant key; the newest."""
        return {
            variant_key(cost["variant"]): cost
            for cost in by_age(self.costs)
            if (cost["height"], cost["width"]) == (100, 100)
            and all(cost["parts"][part]["channels"] == c for part, c in PART_CHANNELS.items())
        }

    @cached_property
    def labels(self) -> dict[str, str]:
        return variant_labels(r["variant"] for r in (*self.runs, *self.costs))

    @cached_property
    def counted_labels(self) -> dict[str, str]:
        """:attr:`labels` of what is worth a row of operation counts.

        Left out is a variant that was not trained in this setting and whose counts repeat those
        of the variant with the same recorded label: an option that changes no count.
        """
        parts = {
            label: self.cost_of.get(key, {}).get("parts") for key, label in self.labels.items()
        }
        recorded = {key: cost["variant"]["label"] for key, cost in self.cost_of.items()}
        return {
            key: label
            for key, label in self.labels.items()
            if key in self.runs_of
            or label == recorded.get(key)
            or parts[label] != parts.get(recorded.get(key, ""))
        }

    @cached_property
    def trained(self) -> list[tuple[str, str]]:
        """(label, key) of every trained variant, Table 4's first."""
        labels = {key: label for key, label in self.labels.items() if key in self.runs_of}
        order = row_order(labels, [row["method"] for row in paper_table(4)])
        return [(label, key) for label, key in order if key]

    @cached_property
    def baseline(self) -> list[Record]:
        found = (runs for runs in self.runs_of.values() if runs[0]["variant"]["name"] == "none")
        return next(found, [])

    def summary(
        self, key: str | None, test_set: str | None, metric: str = "psnr"
    ) -> Summary | None:
        """Quality on a test set, the baseline's without a difference; None if not trained."""
        runs = self.runs_of.get(key or "", [])
        if not runs or test_set is None:
            return None
        return summarise(runs, [] if runs is self.baseline else self.baseline, test_set, metric)

    @cached_property
    def psnr_by_key(self) -> dict[str, Summary]:
        """PSNR of every trained variant on :attr:`test_set`."""
        found = {key: self.summary(key, self.test_set) for key in self.runs_of}
        return {key: summary for key, summary in found.items() if summary}

    def bicubic(self, test_set: str, metric: str = "psnr") -> Summary:
        """Quality of bicubic up-sampling, as the run records have it."""
        like = self.baseline or next(iter(self.runs_of.values()))
        runs = [_bicubic_run(run, test_set) for run in like]
        return replace(
            summarise(runs, self.baseline, test_set, metric), std_over_seeds=None
        )  # the same image whatever the seed


def _bicubic_run(run: Record, test_set: str) -> Record:
    images = [
        {"name": i["name"], "psnr": i["bicubic_psnr"], "ssim": i["bicubic_ssim"]}
        for i in run["quality"][test_set]["images"]
    ]
    return {"config": run["config"], "quality": {test_set: {"images": images}}}


def find_settings(runs: Sequence[Record], costs: Sequence[Record]) -> list[Setting]:
    """One Setting for each configuration among the runs, nearest to the paper's first.

    Nearest is the larger preset, then more runs, then the label. Without runs it is one Setting
    of the costs alone; without any record, none.
    """
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(setting_label(run), []).append(run)
    settings = [Setting(group, costs) for group in groups.values()]
    settings.sort(key=lambda s: (_preset_rank(s.config["preset"]), -len(s.runs), s.label))
    return settings or ([Setting([], costs)] if costs else [])


def _preset_rank(preset: str) -> int:
    return PRESETS.index(preset) if preset in PRESETS else len(PRESETS)

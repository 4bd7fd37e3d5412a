"""Settings: groups of comparable runs, and what the records hold of each.

Tables and figures start from here.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TypeVar

from ..base.errors import UserError
from ..base.names import canonical_json
from ..config.presets import PHOTOGRAPHS, PRESETS
from ..config.variants import Variant
from ..records.origin import by_age, plural
from ..records.shapes import UNSET, Config, Cost, Record, RecordedVariant, Run, input_of
from ..records.store import setting_label
from .labels import paper_costs, recorded_labels, row_order, task_labels, task_variant, variant_of
from .statistics import Summary, summarise

R = TypeVar("R", bound=Record)

#: Test set of every PSNR in the paper's Tables 4 to 6.
PAPER_SET = "Urban100"


@cache
def paper_table(number: int) -> list[dict[str, str]]:
    """The paper's table as printed, one mapping a row; "" where it prints a dash."""
    path = Path(__file__).parent / "paper" / f"table{number}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Setting:
    """The runs of one setting, all comparable, and the operation counts of every variant."""

    runs: Sequence[Run]
    costs: Sequence[Cost]

    @property
    def label(self) -> str:
        return setting_label(self.runs[0]) if self.runs else "costs-only"

    @property
    def config(self) -> Config:
        """The configuration of the first run; only its seed is not the setting's."""
        return self.runs[0].config

    @property
    def test_sets(self) -> list[str]:
        return list(self.config.data.test) if self.runs else []

    @property
    def test_set(self) -> str | None:
        """Where Tables 4 to 6 are measured."""
        return self.nearest_set(PAPER_SET)

    def nearest_set(self, name: str) -> str | None:
        """The paper's test set where the setting has it, otherwise its first."""
        sets = self.test_sets
        return name if name in sets else next(iter(sets), None)

    @cached_property
    def res_scale(self) -> float | None:
        """The attention's weight in most rows of a task on images; None if no row has one.

        A variant names it as an option only where its own is another. Synthetic tasks have tables
        of their own, which know their weight.
        """
        weights = {
            variant_of(run.variant): run.variant.options["res_scale"]
            for run in self.runs
            if "res_scale" in run.variant.options
            and (run.config.task is UNSET or run.config.image_task)
        }
        # Of equally frequent ones the smallest, so that the order of the records changes nothing.
        count = Counter(weights.values())
        return min(count, key=lambda weight: (-count[weight], weight), default=None)

    def variant_of(self, recorded: RecordedVariant) -> Variant:
        """The row that a run of the setting belongs to."""
        if self.res_scale is None:
            return variant_of(recorded)
        return task_variant(recorded, self.res_scale)

    @cached_property
    def runs_of(self) -> dict[Variant, list[Run]]:
        """Runs by variant, one a seed, in the order of seeds; of repeats the newest."""
        newest = {(self.variant_of(run.variant), run.config.seed): run for run in by_age(self.runs)}
        groups: dict[Variant, list[Run]] = {}
        for run in sorted(newest.values(), key=_by_variant):
            groups.setdefault(self.variant_of(run.variant), []).append(run)
        return groups

    def only(self, variants: Collection[Variant | None]) -> Setting:
        """The setting with the runs of these variants, and of the baseline, alone."""
        kept = [
            run
            for run in self.runs
            if run.variant.name == "none" or self.variant_of(run.variant) in variants
        ]
        setting = Setting(kept, self.costs)
        # Rows keep their names.
        vars(setting).update(labels=self.labels, res_scale=self.res_scale)
        return setting

    @property
    def seed_count(self) -> str:
        """How many seeds the variants have, e.g. ``3 seeds`` or ``1 to 3 seeds``."""
        seeds = sorted({len(runs) for runs in self.runs_of.values()})
        return plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"

    @cached_property
    def cost_of(self) -> dict[Variant, Cost]:
        """Operation counts at the paper's sizes by variant; the newest.

        They do not depend on the weight: counts of a variant with the usual one are its row's too.
        """
        found = paper_costs(by_age(self.costs))
        weighted = {self.variant_of(cost.variant): cost for cost in found.values()}
        return weighted | found

    @cached_property
    def recorded(self) -> dict[Variant, RecordedVariant]:
        """What the records say of each variant: the newest run, else the newest count."""
        counted = {variant_of(cost.variant): cost.variant for cost in by_age(self.costs)}
        return counted | {self.variant_of(run.variant): run.variant for run in by_age(self.runs)}

    @cached_property
    def labels(self) -> dict[Variant, str]:
        """Row label of every variant."""
        counted = recorded_labels(self.recorded.values())
        if self.res_scale is None:
            return counted
        trained = [self.recorded[self.variant_of(run.variant)] for run in self.runs]
        return {
            variant: counted[variant_of(recorded)] for variant, recorded in self.recorded.items()
        } | task_labels(trained, self.res_scale)

    @cached_property
    def counted_labels(self) -> dict[Variant, str]:
        """:attr:`labels` of what is worth a row of operation counts.

        Left out is a variant that was not trained in this setting and whose counts repeat those
        of the variant with the same recorded label: an option that changes no count.
        """
        parts = {
            label: self.cost_of[variant].parts if variant in self.cost_of else None
            for variant, label in self.labels.items()
        }
        plain = {variant: cost.variant.label for variant, cost in self.cost_of.items()}
        return {
            variant: label
            for variant, label in self.labels.items()
            if variant in self.runs_of
            or label == plain.get(variant)
            or parts[label] != parts.get(plain.get(variant, ""))
        }

    @cached_property
    def trained(self) -> list[tuple[str, Variant]]:
        """(label, variant) of every trained variant, Table 4's first."""
        labels = {v: label for v, label in self.labels.items() if v in self.runs_of}
        order = row_order(labels, [row["method"] for row in paper_table(4)])
        return [(label, variant) for label, variant in order if variant]

    @cached_property
    def baseline(self) -> list[Run]:
        """The baseline's runs; none if it was not trained."""
        return next((runs for v, runs in self.runs_of.items() if v.name == "none"), [])

    def summary(
        self, variant: Variant | None, test_set: str | None, metric: str = "psnr"
    ) -> Summary | None:
        """Quality on a test set, the baseline's without a difference; None if not trained."""
        runs = self.runs_of.get(variant, []) if variant else []
        if not runs or test_set is None:
            return None
        return summarise(runs, [] if runs is self.baseline else self.baseline, test_set, metric)

    def qualities(
        self, variant: Variant | None, test_set: str | None
    ) -> tuple[Summary | None, Summary | None]:
        """PSNR and SSIM on a test set; None if not trained."""
        return self.summary(variant, test_set), self.summary(variant, test_set, "ssim")

    @cached_property
    def psnr_of(self) -> dict[Variant, Summary]:
        """PSNR of every trained variant on :attr:`test_set`."""
        found = {variant: self.summary(variant, self.test_set) for variant in self.runs_of}
        return {variant: summary for variant, summary in found.items() if summary}

    @property
    def input_name(self) -> str:
        """What stands beside the networks' quality: ``bicubic`` or ``noisy``."""
        return input_of(self.runs[0].quality[self.test_sets[0]])

    def input_quality(self, test_set: str, metric: str = "psnr") -> Summary:
        """Quality of bicubic up-sampling or of the noisy image, as the run records have it."""
        like = self.baseline or next(iter(self.runs_of.values()))
        name = f"{self.input_name}_{metric}"
        summary = summarise(like, self.baseline, test_set, name, baseline_metric=metric)
        return replace(summary, std_over_seeds=None)  # the same image whatever the seed


def super_resolution(records: Iterable[Record]) -> list[Run]:
    """The runs among records that were trained in the default task."""
    return [one for one in records if isinstance(one, Run) and one.config.task is UNSET]


def task_name(run: Run) -> str:
    """The task as ``--task`` names it."""
    return "sr" if run.config.task is UNSET else run.config.task.name


def of_task(records: Sequence[R], task: str) -> list[R]:
    """The records but for the runs of other tasks.

    A user's task may be named by its class alone.

    Raises:
        UserError: none is a run of the task.
    """
    runs = [record for record in records if isinstance(record, Run)]
    names = {task_name(run) for run in runs}
    wanted = {name for name in names if task in (name, name.rpartition(":")[2])}
    if not wanted:
        known = ", ".join(sorted(names)) or "no task"
        raise UserError(f"no runs of task {task!r} among the records; there are runs of: {known}")
    return [one for one in records if not isinstance(one, Run) or task_name(one) in wanted]


def find_settings(runs: Sequence[Run], costs: Sequence[Cost]) -> list[Setting]:
    """One Setting for each configuration among the runs, nearest to the paper's first.

    Runs of other tasks are left out: they have tables of their own. Nearest is the larger preset,
    then more runs, then the label. Without runs it is one Setting of the costs alone; without any
    record, none.
    """
    settings = _settings(super_resolution(runs), costs)
    settings.sort(key=lambda s: (_preset_rank(s.config.preset), -len(s.runs), s.label))
    return settings or ([Setting([], costs)] if costs else [])


def image_task_settings(runs: Sequence[Run], costs: Sequence[Cost]) -> list[Setting]:
    """One Setting for each configuration of a task on image files but the default, by label."""
    found = _settings([run for run in runs if run.config.image_task], costs)
    return sorted(found, key=lambda setting: setting.label)


def photographs(settings: Sequence[Setting]) -> Setting | None:
    """The setting that says what a module gains on photographs: with Urban100 and a baseline.

    It is of the preset of this name or of super-resolution at x4; of several the one with the most
    rows, of these that of the preset, then the one with the most runs.
    """

    def counts(setting: Setting) -> bool:
        config = setting.config
        x4 = config.task is UNSET and config.scale == 4
        wanted = x4 or config.preset == PHOTOGRAPHS
        return wanted and PAPER_SET in setting.test_sets and bool(setting.baseline)

    return max(
        (s for s in settings if s.runs and counts(s)),
        key=lambda s: (len(s.runs_of), s.config.preset == PHOTOGRAPHS, len(s.runs), s.label),
        default=None,
    )


def photographs_header(setting: Setting | None) -> str:
    """Test set of the gain on photographs, with the scale or the task."""
    if setting is None:
        return PAPER_SET
    task, scale = setting.config.image_task, setting.config.scale
    return f"{PAPER_SET}{f' ×{scale}' if scale > 1 else ''}{f', {task.label}' if task else ''}"


def _settings(runs: Sequence[Run], costs: Sequence[Cost]) -> list[Setting]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting_label(run), []).append(run)
    return [Setting(group, costs) for group in groups.values()]


def _by_variant(run: Run) -> tuple[str, int]:
    return canonical_json([run.variant.name, run.variant.options]), run.config.seed


def _preset_rank(preset: str) -> int:
    """0 for the largest preset."""
    sizes = list(reversed(PRESETS))
    return sizes.index(preset) if preset in PRESETS else len(sizes)

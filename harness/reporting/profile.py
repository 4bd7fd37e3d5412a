"""The capability profile, read from the records of runs: rows, chosen rates, scores, aggregate.

A row is a module with its options, a setting one of ``config.profile.PROFILE``. Of each row the
learning rates are compared by validation scores alone; test scores have no part in the choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..base.names import canonical_json
from ..config.profile import PROFILE, PROFILE_PRESET, RATES, SEEDS, ProfileTask
from ..config.rows import table_rows
from ..config.variants import CORE_CHANNELS, Variant
from ..records.origin import by_age
from ..records.shapes import UNSET, Config, Cost, Latency, RecordedVariant, Run, Score
from .labels import natural, paper_costs, task_labels, task_variant, variant_of
from .statistics import Estimate, estimate

#: Validation scores of which a row's steps are counted.
LEVELS = (0.5, 0.8)
#: Side of the feature maps at which a row's GFLOPs and milliseconds are taken.
SIDE = 100


@dataclass(frozen=True)
class ProfileCell:
    """The runs of a row in a setting, at all its rates.

    Attributes:
        runs: by learning rate and seed, at least one; of repeats the newest.
    """

    runs: Mapping[tuple[float, int], Run]

    @cached_property
    def first_seed(self) -> int:
        """The seed with the most rates, of several the smallest: it decides on the rate."""
        seeds = [seed for _, seed in self.runs]
        return min(seeds, key=lambda seed: (-seeds.count(seed), seed))

    @cached_property
    def validation(self) -> dict[float, float]:
        """Validation score of the first seed by rate, in the order of rates."""
        return {
            rate: run.validation.score
            for (rate, seed), run in sorted(self.runs.items())
            if seed == self.first_seed and run.validation
        }

    @cached_property
    def rates(self) -> list[float]:
        """Every rate that was tried, in order."""
        return sorted({rate for rate, _ in self.runs})

    @cached_property
    def rate(self) -> float:
        """The rate with the best validation score of the first seed; of equal ones the smallest.

        Of the rates with the most seeds: where a seed diverged the next best rate has more.
        """
        if not self.validation:
            return self.rates[0]
        seeds = Counter(rate for rate, _ in self.runs)
        return min(self.validation, key=lambda rate: (-seeds[rate], -self.validation[rate], rate))

    @cached_property
    def chosen(self) -> dict[int, Run]:
        """Runs at the chosen rate by seed, in order."""
        return {seed: run for (rate, seed), run in sorted(self.runs.items()) if rate == self.rate}

    @property
    def config(self) -> Config:
        """The configuration of any run; rate and seed are this run's alone."""
        return next(iter(self.runs.values())).config

    @property
    def device(self) -> str:
        """Type of the device on which all of them were trained, e.g. ``cpu``."""
        return self.config.device

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets: n, 2n and 4n."""
        return list(self.config.data.test)

    @property
    def finished(self) -> bool:
        """Whether the row has as many seeds as the protocol demands.

        They are trained once every rate has ended: a rate without a score is one that diverged.
        """
        return len(self.validation) > 1 and len(self.chosen) >= len(SEEDS)

    @property
    def state(self) -> str:
        """What it has, e.g. ``1 of 3 rates, 1 of 3 seeds``; "" if it is finished."""
        if self.finished:
            return ""
        rates, seeds = len(self.validation), len(self.chosen)
        return f"{rates} of {len(RATES)} rates, {seeds} of {len(SEEDS)} seeds"

    def found(self, size: int) -> dict[int, Score]:
        """Scores at the chosen rate by seed; ``size`` is 0 for n, 1 for 2n, 2 for 4n."""
        if size >= len(self.test_sets):
            return {}
        return {seed: run.scores[self.test_sets[size]] for seed, run in self.chosen.items()}

    def score(self, size: int) -> Estimate | None:
        """Score over seeds on a test set; None if there is no such set."""
        return estimate(one.score for one in self.found(size).values())

    def control(self, name: str, size: int) -> Estimate | None:
        """``as_mean``, ``deleted`` or ``all_references`` over seeds; None where there is none."""
        values = (getattr(one, name) for one in self.found(size).values())
        return estimate(value for value in values if value is not None)

    def chosen_validation(self) -> Estimate | None:
        """Validation score at the chosen rate over seeds."""
        runs = self.chosen.values()
        return estimate(run.validation.score for run in runs if run.validation)

    def normalised(self) -> dict[int, float]:
        """By seed, the mean of :func:`normalised` over the test sets larger than the training's."""
        sizes = range(1, len(self.test_sets))
        by_seed = {
            seed: [normalised(self.found(size)[seed]) for size in sizes] for seed in self.chosen
        }
        return {seed: sum(all_) / len(all_) for seed, all_ in by_seed.items() if all_}

    def steps_to(self, level: float) -> dict[int, int | None]:
        """By seed, the first step of the learning curve at or above the level; None for never."""
        return {seed: steps_to(run, level) for seed, run in self.chosen.items()}

    def curve(self) -> list[tuple[int, Estimate]]:
        """Step and validation score over seeds, at the steps that all seeds have."""
        curves = [dict(_pairs(run.training.curve)) for run in self.chosen.values()]
        return _merged(curves)

    def by_distance(self, size: int) -> list[tuple[int, Estimate]]:
        """Distance in input pixels (the bin's end) and score over seeds on a test set."""
        return _merged([dict(_pairs(one.by_distance)) for one in self.found(size).values()])


@dataclass(frozen=True)
class ProfileRow:
    """One module with its options.

    Attributes:
        variant: see :func:`.labels.task_variant`.
        recorded: what its newest run says of it.
        label: unlike that of every other row.
        cells: by the label of the setting; those without a run are not there. Each has the runs of
            one device: a finished cell rather than another, then that with more runs, then a CPU's.
        repeats: cells of the same settings on other devices.
    """

    variant: Variant
    recorded: RecordedVariant
    label: str
    cells: Mapping[str, ProfileCell]
    repeats: Mapping[str, Sequence[ProfileCell]] = field(default_factory=dict)

    @cached_property
    def aggregate_by_seed(self) -> dict[int, float]:
        """Mean over all settings of the profile, of each seed that all have; see the docs."""
        if any(task.label not in self.cells for task in PROFILE):
            return {}
        each = [self.cells[task.label].normalised() for task in PROFILE]
        seeds = sorted(set.intersection(*(set(found) for found in each)))
        return {seed: sum(found[seed] for found in each) / len(each) for seed in seeds}

    @property
    def aggregate(self) -> Estimate | None:
        """The aggregate over seeds; None unless the row has all settings."""
        return estimate(self.aggregate_by_seed.values())

    @property
    def parameters(self) -> int:
        """Of the network."""
        cell = next(iter(self.cells.values()))
        return next(iter(cell.chosen.values())).training.parameters

    def score(self, setting: str, size: int) -> Estimate | None:
        """Score over seeds at the chosen rate; None where the row was not run."""
        return self.cells[setting].score(size) if setting in self.cells else None


@dataclass(frozen=True)
class RowCost:
    """Cost of a row's core on a map of :data:`SIDE` by :data:`SIDE`, 64 channels.

    Attributes:
        gflops: 2 · multiply-accumulates / 1e9 in the paper's convention; None if not counted.
        milliseconds: mean time of a forward pass on a CPU in float32; None if not timed.
        session: the latency record.
    """

    gflops: float | None = None
    milliseconds: float | None = None
    session: Latency | None = None


@dataclass(frozen=True)
class Profile:
    """All rows, in the order of the profile's rows, and what else the runs say.

    Attributes:
        rows: those with a run.
        tasks: settings with a run, in the order of ``PROFILE``.
        runs: of each of these settings, all that the profile shows, by label.
        left_out: number of runs of these settings with other sizes, steps or data.
    """

    rows: Sequence[ProfileRow]
    tasks: Sequence[ProfileTask]
    runs: Mapping[str, Sequence[Run]]
    left_out: int

    @property
    def missing(self) -> list[Variant]:
        """Variants of the profile without any run."""
        known = {row.variant for row in self.rows}
        return [variant for variant in table_rows("profile") if variant not in known]

    def row(self, name: str, **options: float) -> ProfileRow | None:
        """The row of a module with these options off its defaults; None if it has no run."""
        wanted = Variant(name, options)
        return next((row for row in self.rows if row.variant == wanted), None)


def find_profile(runs: Iterable[Run]) -> Profile:
    """The profile of these runs; those of other tasks and presets have no part in it.

    Only runs that agree in all but rate, seed and device are comparable. If those of a setting do
    not, the ones with the most rows are shown, of as many the ones with the most runs.
    """
    settings: dict[str, list[Run]] = {}
    left_out = 0
    known = by_age(runs)
    for task in PROFILE:
        groups: dict[str, list[Run]] = {}
        for run in known:
            if _is_of(run.config, task):
                groups.setdefault(conditions(run.config), []).append(run)
        if groups:
            shown = max(groups.values(), key=_size)
            settings[task.label] = shown
            left_out += sum(map(len, groups.values())) - len(shown)
    rows = _rows(settings)
    return Profile(rows, [task for task in PROFILE if task.label in settings], settings, left_out)


def profile_rows(runs: Iterable[Run]) -> list[ProfileRow]:
    """The rows of the profile that have a run, in its order; others follow by their labels."""
    return list(find_profile(runs).rows)


def rows_beside(
    own: Sequence[Run], others: Iterable[Run], variants: Collection[Variant]
) -> list[ProfileRow]:
    """Rows of some runs, and beside them those of others' runs of the same settings.

    Args:
        own: of any variant.
        others: of which only these variants have a part.
        variants: see :func:`.labels.task_variant`.
    """
    same = {conditions(run.config) for run in own}
    beside = [
        run
        for run in others
        if task_variant(run.variant) in variants and conditions(run.config) in same
    ]
    return profile_rows({run.id: run for run in (*beside, *own)}.values())


def normalised(score: Score) -> float:
    """(score - floor) / (ceiling - floor), clipped to 0 ... 1."""
    return min(1.0, max(0.0, (score.score - score.floor) / (score.ceiling - score.floor)))


def steps_to(run: Run, level: float) -> int | None:
    """First step at which the validation score is at or above the level; None for never."""
    return next((int(row[0]) for row in run.training.curve if row[1] >= level), None)


def row_costs(
    rows: Iterable[ProfileRow], costs: Sequence[Cost], latency: Sequence[Latency]
) -> dict[Variant, RowCost]:
    """Cost of each row, by its variant; ``res_scale`` does not change it.

    Times are those of one session: that with the cores of the most rows, forward, on a CPU in
    float32; of several the newest.
    """
    gflops = {
        variant.without_weight: cost.parts.core.paper_gflops
        for variant, cost in paper_costs(by_age(costs)).items()
    }
    rows = list(rows)
    wanted = {row.variant.without_weight for row in rows}
    timed: dict[Variant, tuple[float, Latency]] = {}
    for record in by_age(latency):
        session = {
            key: (float(row.mean_ms), record)
            for row in record.rows
            if (row.part, row.passes, row.device, row.dtype)
            == ("core", "forward", "cpu", "float32")
            and (row.height, row.width, row.batch, row.channels) == (SIDE, SIDE, 1, CORE_CHANNELS)
            and row.mean_ms is not None
            and (key := variant_of(row.variant).without_weight) in wanted
        }
        if len(session) >= max(1, len(timed)):
            timed = session
    found = {}
    for row in rows:
        key = row.variant.without_weight
        found[row.variant] = RowCost(gflops.get(key), *timed.get(key, (None, None)))
    return found


def _is_of(config: Config, task: ProfileTask) -> bool:
    return (
        config.task is not UNSET
        and config.preset == PROFILE_PRESET
        and config.task.name == task.task
        and all(config.task.options.get(o) == value for o, value in task.options.items())
    )


def conditions(config: Config) -> str:
    """What runs of one setting have to have in common: all but rate, seed and device."""
    apart = ("learning_rate", "device")
    return canonical_json({k: v for k, v in config.setting.items() if k not in apart})


def _size(runs: Sequence[Run]) -> tuple[int, int]:
    return len({task_variant(run.variant) for run in runs}), len(runs)


def _rows(settings: Mapping[str, Sequence[Run]]) -> list[ProfileRow]:
    """Rows of runs by setting, each oldest first."""
    runs = by_age(run for found in settings.values() for run in found)
    recorded = {task_variant(run.variant): run.variant for run in runs}
    labels = task_labels(recorded.values())
    cells: dict[Variant, dict[str, list[ProfileCell]]] = {}
    for label, found in settings.items():
        by_device: dict[tuple[Variant, str], dict[tuple[float, int], Run]] = {}
        for run in found:
            on = by_device.setdefault((task_variant(run.variant), run.config.device), {})
            on[float(run.config.learning_rate or 0), run.config.seed] = run
        for (variant, _), each in by_device.items():
            cells.setdefault(variant, {}).setdefault(label, []).append(ProfileCell(each))
    for of_row in cells.values():
        for on_devices in of_row.values():
            on_devices.sort(key=lambda c: (not c.finished, -len(c.runs), c.device != "cpu"))
    rows = [
        ProfileRow(
            variant,
            recorded[variant],
            labels[variant],
            {label: each[0] for label, each in of.items()},
            {label: each[1:] for label, each in of.items() if len(each) > 1},
        )
        for variant, of in cells.items()
    ]
    order = table_rows("profile")

    def place(row: ProfileRow) -> tuple[int, bool, list[tuple[str, int]]]:
        plain = row.variant.without_weight
        return (
            order.index(plain) if plain in order else len(order),
            row.variant != plain,
            natural(row.label),
        )

    return sorted(rows, key=place)


def _pairs(rows: Iterable[Sequence[float]]) -> list[tuple[int, float]]:
    return [(int(row[0]), float(row[1])) for row in rows]


def _merged(each: Sequence[Mapping[int, float]]) -> list[tuple[int, Estimate]]:
    """Estimates at the places that all seeds have."""
    common = sorted(set.intersection(*(set(one) for one in each))) if each else []
    found = ((place, estimate(one[place] for one in each)) for place in common)
    return [(place, value) for place, value in found if value]

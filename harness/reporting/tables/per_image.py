"""Where a module gains: on which images, and on which part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config.variants import Variant
from ...records.shapes import Run, measured
from ..cells import fixed, setting_columns, setting_notes, setting_text, variant_columns
from ..published import (
    LOCAL,
    SCALE,
    SEARCHING,
    SOURCE,
    beside,
    not_comparable,
    of_images,
    published,
)
from ..settings import Setting
from ..statistics import (
    Correlation,
    Estimate,
    FloatArray,
    by_seed,
    compare,
    difference_interval,
    estimate,
    paired_differences,
    rank_correlation,
    shared_images,
)
from .render import Table

#: Rules by which images are chosen, as the CSV names them.
BASELINE_RULE, LOCAL_RULE = "SelfExSR above baseline", f"SelfExSR above A+ (x{SCALE})"
_GAIN = f"{SEARCHING} − {LOCAL}"


@dataclass(frozen=True)
class _Mean:
    """Mean of a table ``[seeds, images]`` in dB with its interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    images: int

    @classmethod
    def of(cls, table: FloatArray) -> _Mean:
        """The mean and :func:`.difference_interval` of the table."""
        if not table.size:
            return cls(None, None, None, 0)
        low, high = difference_interval(table)
        return cls(float(table.mean()), low, high, table.shape[1])

    @property
    def cell(self) -> str:
        """As the cells of differences."""
        return _cell(self.value, self.low, self.high)

    @property
    def counted_cell(self) -> str:
        """The same with the number of images."""
        return f"{self.cell} ({self.images})" if self.images else ""

    def columns(self, name: str) -> dict[str, Any]:
        """CSV columns."""
        return {
            f"{name}_db": self.value,
            f"{name}_low_db": self.low,
            f"{name}_high_db": self.high,
            f"{name}_images": self.images or None,
        }


@dataclass(frozen=True)
class _Row:
    """One module on one test set."""

    label: str
    variant: Variant
    test_set: str
    everywhere: _Mean
    rule: str | None
    chosen: _Mean
    correlation: Correlation | None
    over_seeds: Estimate | None
    share: float | None
    part: _Mean
    rest: _Mean
    lost_as_mean: _Mean
    lost_confined: _Mean
    seeds: int


def per_image_table(setting: Setting) -> Table | None:
    """Every module against the baseline, by image and by part of the images.

    None without a baseline, or without a test set of which anything is known by image.
    """
    if not setting.baseline:
        return None
    rows = [
        _row(setting, label, variant, name)
        for name in setting.test_sets
        if _is_known(setting, name)
        for label, variant in setting.trained
        if variant.name != "none"
    ]
    rows = [row for row in rows if row.everywhere.images]
    if not rows:
        return None
    # Without the paper's columns, parameters and training time.
    _, measured_where, _, *origin = setting_notes(
        setting, [], variants=[row.variant for row in rows]
    )
    groups = {
        "seeds": any(row.seeds > 1 for row in rows),
        "part": any(row.part.images for row in rows),
        "lost": any(row.lost_as_mean.images for row in rows),
    }
    return Table(
        name="per-image",
        label=f"{setting.label}-per-image",
        caption=f"Where modules gain, by image: {setting_text(setting)}",
        notes=[*_notes(setting, rows, groups), measured_where, *origin],
        headers=[
            *(("", header) for header in ("Method", "Test set")),
            ("Difference to baseline (dB)", "all images"),
            *(("Difference to baseline (dB)", "over seeds") for _ in range(groups["seeds"])),
            ("Difference to baseline (dB)", f"where {SEARCHING} is better"),
            ("Rank correlation", f"with {_GAIN}"),
            *(
                ("Difference to baseline (dB)", header)
                for header in ("self-similar part", "elsewhere")
                if groups["part"]
            ),
            *(
                ("Non-local use (dB lost)", header)
                for header in ("as mean", "confined")
                if groups["lost"]
            ),
            ("", "seeds"),
        ],
        rows=[_cells(row, groups) for row in rows],
        data=[_columns(setting, row) for row in rows],
    )


def _is_known(setting: Setting, test_set: str) -> bool:
    """Whether the images' self-similarity is published, or was measured with a run."""
    if LOCAL in of_images(_names(setting.baseline[0], test_set), test_set, setting.config.scale):
        return True
    images = (image for run in setting.runs for image in run.quality[test_set].images)
    return any(
        measured(image, name) is not None
        for image in images
        for name in ("self_similar_share", "lost_as_mean")
    )


def _names(run: Run, test_set: str) -> list[str]:
    return [image.name for image in run.quality[test_set].images]


def _row(setting: Setting, label: str, variant: Variant, test_set: str) -> _Row:
    runs, baseline = setting.runs_of[variant], setting.baseline
    table = compare(runs, baseline, test_set)
    names = shared_images(*(by_seed(some, test_set, "psnr") for some in (runs, baseline)))
    names = names if table.size else []
    rule, chosen = _chosen(setting, test_set, names)
    figures = of_images(_names(baseline[0], test_set), test_set, setting.config.scale)
    correlation = None
    if names and LOCAL in figures:
        gains = [figures[SEARCHING][i].psnr - figures[LOCAL][i].psnr for i in names]
        correlation = rank_correlation(table, np.array(gains))
    share = [
        value
        for image in runs[0].quality[test_set].images
        if (value := measured(image, "self_similar_share")) is not None
    ]
    part, rest = _parts(runs, baseline, test_set)
    return _Row(
        label=label,
        variant=variant,
        test_set=test_set,
        everywhere=_Mean.of(table),
        rule=rule,
        chosen=_Mean.of(table[:, [i in chosen for i in names]] if names else table),
        correlation=correlation,
        over_seeds=estimate(table.mean(axis=1)) if table.size else None,
        share=float(np.mean(share)) if share else None,
        part=part,
        rest=rest,
        lost_as_mean=_lost(runs, test_set, "lost_as_mean"),
        lost_confined=_lost(runs, test_set, "lost_confined"),
        seeds=table.shape[0],
    )


def _chosen(setting: Setting, test_set: str, names: Sequence[str]) -> tuple[str | None, set[str]]:
    """The rule and the images on which searching the image itself is known to be better."""
    if found := beside(setting.baseline, test_set):
        of_seed = by_seed(setting.baseline, test_set, "psnr").values()
        return BASELINE_RULE, {
            i
            for i in {*names} - not_comparable(test_set)
            if found[SEARCHING][i].psnr > np.mean([one[i] for one in of_seed])
        }
    found = published(test_set, SCALE)
    if LOCAL in found and names and {*names} <= found[LOCAL].keys():
        return LOCAL_RULE, {i for i in names if found[SEARCHING][i].psnr > found[LOCAL][i].psnr}
    return None, set()


def _parts(runs: Sequence[Run], baseline: Sequence[Run], test_set: str) -> tuple[_Mean, _Mean]:
    """Paired differences on the self-similar part, and on the rest of the same images."""
    part = [by_seed(some, test_set, "self_similar_psnr") for some in (runs, baseline)]
    rest = [_elsewhere(some, test_set) for some in (runs, baseline)]
    whole, elsewhere = (
        paired_differences(*({seed: v for seed, v in one.items() if v} for one in both))
        for both in (part, rest)
    )
    return _Mean.of(whole), _Mean.of(elsewhere)


def _elsewhere(runs: Sequence[Run], test_set: str) -> dict[int, dict[str, float]]:
    """PSNR of the rest of images with a self-similar part: squared errors add up."""
    found: dict[int, dict[str, float]] = {}
    for run in runs:
        values = found.setdefault(run.config.seed, {})
        for image in run.quality[test_set].images:
            psnr, share = (measured(image, f"self_similar_{what}") for what in ("psnr", "share"))
            if psnr is None or share is None or share >= 1:
                continue
            rest = (10 ** (-image.psnr / 10) - share * 10 ** (-psnr / 10)) / (1 - share)
            if rest > 0:
                values[image.name] = -10 * float(np.log10(rest))
    return found


def _lost(runs: Sequence[Run], test_set: str, name: str) -> _Mean:
    """Mean of what was lost over the seeds and images that have it."""
    of_seed = {seed: values for seed, values in by_seed(runs, test_set, name).items() if values}
    zero = {seed: dict.fromkeys(values, 0.0) for seed, values in of_seed.items()}
    return _Mean.of(paired_differences(of_seed, zero))


def _cell(value: float | None, low: float | None, high: float | None) -> str:
    text = fixed(value, 3, "+")
    return text if low is None else f"{text} [{fixed(low, 3, '+')}, {fixed(high, 3, '+')}]"


def _reach_cell(found: Estimate | None) -> str:
    return "" if found is None or found.high is None else f"± {fixed(found.reach, 3)}"


def _cells(row: _Row, groups: Mapping[str, bool]) -> list[str]:
    count = f"({row.chosen.images})" if row.rule else ""
    found = row.correlation
    correlation = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found else ""
    return [
        row.label,
        row.test_set,
        row.everywhere.cell,
        *([_reach_cell(row.over_seeds)] if groups["seeds"] else []),
        f"{row.chosen.cell} {count}".strip(),
        correlation,
        *([row.part.counted_cell, row.rest.counted_cell] if groups["part"] else []),
        *(
            [row.lost_as_mean.counted_cell, row.lost_confined.counted_cell]
            if groups["lost"]
            else []
        ),
        str(row.seeds),
    ]


def _columns(setting: Setting, row: _Row) -> dict[str, Any]:
    found = row.correlation
    return {
        **variant_columns(row.label, setting.recorded[row.variant]),
        "test_set": row.test_set,
        **row.everywhere.columns("difference"),
        "difference_over_seeds_low_db": row.over_seeds and row.over_seeds.low,
        "difference_over_seeds_high_db": row.over_seeds and row.over_seeds.high,
        "rule": row.rule,
        **row.chosen.columns("difference_chosen"),
        "rank_correlation": found and found.value,
        "rank_correlation_low": found and found.low,
        "rank_correlation_high": found and found.high,
        "self_similar_share": row.share,
        **row.part.columns("difference_self_similar"),
        **row.rest.columns("difference_elsewhere"),
        **row.lost_as_mean.columns("lost_as_mean"),
        **row.lost_confined.columns("lost_confined"),
        "paired_seeds": row.seeds,
        **setting_columns(setting),
    }


def _notes(setting: Setting, rows: Sequence[_Row], groups: Mapping[str, bool]) -> list[str]:
    """How to read the table, the shortest first."""
    rules = {row.rule for row in rows}
    notes = ["Differences in PSNR are paired over images and seeds, with 95 % intervals."]
    if groups["seeds"]:
        notes.append(
            "Over seeds: how far the 95 % interval of Student's t of the seeds' means reaches, for "
            "these images alone. Another training may differ by so much, other images by more."
        )
    if BASELINE_RULE in rules:
        notes.append(
            f"Where {SEARCHING} is better: images on which its published PSNR exceeds the mean of "
            "the baseline's over all seeds here (their number in brackets)."
        )
        if len(setting.baseline) == 1:
            notes.append(
                "With one seed that choice and the difference share the noise of the baseline, "
                "which favours the module a little."
            )
    if LOCAL_RULE in rules:
        notes.append(
            f"Where {SEARCHING} is better: images on which its published PSNR at ×{SCALE} exceeds "
            f"that of {LOCAL} (their number in brackets), whatever the task here: a property of "
            "the image."
        )
    if any(row.correlation for row in rows):
        notes.append(
            "Rank correlation: Spearman's, of the difference by image, mean over seeds, with the "
            f"gain of {SEARCHING} over {LOCAL}, a local method. Its interval is a bootstrap's over "
            "seeds and images."
        )
    if rules - {None}:
        notes.append(f"Published figures: {SOURCE}.")
    if groups["part"]:
        notes.append(
            "Self-similar part: pixels whose patch recurs beyond the reach of the convolutions, in "
            "images where it is 1 % or more (their number in brackets); elsewhere: the rest of the "
            "same images."
        )
    if groups["lost"]:
        notes.append(
            "Non-local use: PSNR that the trained network loses when every module's attention is "
            "replaced by the mean of its values, or confined to the reach of the convolutions; in "
            "brackets the number of images on which it was measured, of the seeds for which it was."
        )
    return notes

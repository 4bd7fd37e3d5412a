"""Tables of synthetic tasks: the score of every trained variant on every test set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...config.variants import Variant
from ...records.origin import by_age, origin_note
from ...records.shapes import UNSET, Run, Score
from ...records.store import setting_label
from ..cells import fixed, setting_columns, variant_columns
from ..labels import RES_SCALE, task_labels, task_variant, variant_of
from ..settings import Setting
from .render import Table


def task_settings(runs: Sequence[Run]) -> list[Setting]:
    """One Setting for each configuration of a synthetic task, by label; it has all rates."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config.task is not UNSET and not run.config.image_task:
            groups.setdefault(setting_label(run), []).append(run)
    return [Setting(groups[label], []) for label in sorted(groups)]


def task_table(setting: Setting) -> Table:
    """Scores of a setting, with both controls of each row; a row of floors, a row of ceilings.

    A variant has a row for each learning rate.
    """
    config = setting.config
    assert config.task is not UNSET
    metric = _score(setting.runs[0], setting.test_sets[0]).metric
    labels = task_labels(setting.recorded.values())
    rows, data = [], []
    for (variant, rate), runs in _by_rate(setting).items():
        cells = [labels[variant], f"{rate:g}"]
        for name in setting.test_sets:
            found = [_score(run, name) for run in runs]
            means = [one.as_mean for one in found if one.as_mean is not None]
            cells += [_cell([one.score for one in found]), _cell(means)]
            cells.append(_cell([one.deleted for one in found]))
            data += [
                variant_columns(cells[0], runs[-1].variant)
                | {
                    "task": config.task.name,
                    "test_set": name,
                    "seed": run.config.seed,
                    "score": one.score,
                    "floor": one.floor,
                    "ceiling": one.ceiling,
                    "score_as_mean": one.as_mean,
                    "score_deleted": one.deleted,
                    **one.details,
                    "validation_score": run.validation and run.validation.score,
                    "parameters": run.training.parameters,
                    "learning_rate": rate or None,
                    **setting_columns(setting),
                }
                for run, one in zip(runs, found, strict=True)
            ]
        validation = [run.validation.score for run in runs if run.validation]
        cells += [_cell(validation), str(runs[0].training.parameters), str(len(runs))]
        rows.append(cells)
    for bound in ("floor", "ceiling"):
        limits = [getattr(_score(setting.runs[0], name), bound) for name in setting.test_sets]
        shown = [cell for limit in limits for cell in (fixed(limit, 2), "", "")]
        rows.append([bound, "", *shown, "", "", ""])
    options = ", ".join(f"{option} {value}" for option, value in config.task.options.items())
    return Table(
        name=config.task.name.rpartition(":")[2],
        caption=f"Task {config.task.name} ({options}): {config.blocks} blocks × "
        f"{config.channels} channels, {config.steps} steps, device {config.device}, "
        f"{setting.seed_count}",
        notes=[
            f"{metric} counts only what lies beyond the reach of the backbone's convolutions. "
            "As mean: the trained attention is replaced by the plain mean of its values. Deleted: "
            "the images lack what the network has to find. Validation: images on which learning "
            f"rates are chosen. The weight of the attention (res_scale) is {RES_SCALE:g} where "
            "the label names no other. ± is the standard deviation over seeds.",
            origin_note(setting.runs, "Runs"),
        ],
        headers=[
            ("", "Method"),
            ("", "rate"),
            *(
                (name, header)
                for name in setting.test_sets
                for header in (metric, "as mean", "deleted")
            ),
            ("", "validation"),
            ("", "parameters"),
            ("", "seeds"),
        ],
        rows=rows,
        data=data,
    )


def task_summary(runs: Sequence[Run]) -> RichTable:
    """The short table that a run prints: the score on each test set, with floor and ceiling."""
    setting = Setting(runs, [])
    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method")
    for name in setting.test_sets:
        metric = _score(runs[0], name).metric
        table.add_column(f"{name}\n{metric}", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right")
    labels = task_labels(setting.recorded.values())
    for found in setting.runs_of.values():
        scores = ([_score(run, name).score for run in found] for name in setting.test_sets)
        label = labels[task_variant(found[-1].variant)]
        table.add_row(Text(label), *map(_cell, scores), str(found[0].training.parameters))
    table.add_section()
    for bound in ("floor", "ceiling"):
        limits = (getattr(_score(runs[0], name), bound) for name in setting.test_sets)
        table.add_row(bound, *(fixed(limit, 3) for limit in limits), "")
    return table


def _score(run: Run, test_set: str) -> Score:
    return run.scores[test_set]


def _cell(values: Sequence[float]) -> str:
    """Mean, and the standard deviation of several."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _by_rate(setting: Setting) -> dict[tuple[Variant, float], list[Run]]:
    """Runs by variant and learning rate, one a seed, in the order of all three; the newest."""
    newest = {
        (variant_of(run.variant), run.config.learning_rate or 0.0, run.config.seed): run
        for run in by_age(setting.runs)
    }
    groups: dict[tuple[Variant, float], list[Run]] = {}
    for variant in setting.runs_of:
        for key in sorted((k for k in newest if k[0] == variant), key=lambda k: k[1:]):
            groups.setdefault((task_variant(newest[key].variant), key[1]), []).append(newest[key])
    return groups

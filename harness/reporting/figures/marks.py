"""Marks shared by figures: family styles, error bars, the baseline."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo import list_attentions

from ...records.origin import Record
from ..cells import seed_count
from ..settings import Setting
from ..statistics import Summary

#: Modules in the order of their colours and markers, the same in all figures.
FAMILIES = ("enlca", "nla", "nlsa", "criss-cross", "conv", "enla")
#: Title of what was measured.
MEASURED = "measured, bars: 95 % interval"
#: What the paper trained; said where its points are drawn.
PAPER_NETWORK = "32×256, 1000 epochs of DIV2K"


def style_of(name: str) -> int:
    """Index of a module's colour and marker: FAMILIES first, the suite's others, then users'."""
    known = list(dict.fromkeys([*FAMILIES, *list_attentions()]))
    return known.index(name) if name in known else len(known)


def plain_variants(setting: Setting) -> list[tuple[str, str]]:
    """(label, key) of the trained variants with no option beyond what the label tells.

    The others are the ablations', which have tables of their own.
    """
    return [
        (label, key)
        for label, key in setting.trained
        if label == setting.runs_of[key][0]["variant"]["label"]
    ]


def draw_title(figure: Figure, setting: Setting) -> None:
    """Preset, scale, protocol, steps, device, seeds and training data above a figure."""
    config = setting.config
    start = config.get("start")
    steps = f"{start['steps']}+{config['steps']}" if start else config["steps"]
    lines = (
        f"{config['preset']} ({config['blocks']}×{config['channels']}), ×{config['scale']}, "
        f"{config['protocol']}, {steps} steps, {config['device']}, {seed_count(setting)}",
        f"trained on {' + '.join(config['data']['train'])}",
    )
    columns = round(20.3 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, columns) for line in lines), fontsize=6.3)


def error_bars(summaries: Sequence[Summary]) -> list[list[float]]:
    """How far the 95 % intervals of the differences to the baseline reach below and above.

    Zero where there is none.
    """
    bars: list[list[float]] = [[], []]
    for s in summaries:
        known = s.difference is not None and s.low is not None and s.high is not None
        bars[0].append(s.difference - s.low if known else 0.0)  # type: ignore[operator]
        bars[1].append(s.high - s.difference if known else 0.0)  # type: ignore[operator]
    return bars


def draw_baseline(axis: Axes, level: float | None) -> None:
    """The baseline's PSNR as a dotted line; nothing for None."""
    if level is not None:
        axis.axhline(level, color="0.2", ls=":", lw=1, label="baseline", zorder=1)


def baseline_psnr(setting: Setting, test_set: str | None) -> float | None:
    """Mean PSNR of the baseline in dB; None if it was not trained."""
    key = next((k for k, runs in setting.runs_of.items() if runs is setting.baseline), None)
    summary = setting.summary(key, test_set)
    return summary.mean if summary else None


def _network(approximation: Record) -> str | None:
    """Id of the run whose features were measured; None for synthetic features."""
    network = approximation["settings"]["network"]
    return network and network["name"]

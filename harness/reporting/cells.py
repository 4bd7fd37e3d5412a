"""What the tables share: cells for readers, columns for programs, and notes on their origin.

None is a value that was not measured: an empty cell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Any

from ..base.names import canonical_json
from ..config.network import quarters
from ..config.variants import Variant
from ..records.origin import describe_code, describe_machine, origin_note, plural, rounding_of
from ..records.shapes import UNSET, RecordedVariant, Run
from .settings import PAPER_SET, Setting
from .statistics import Summary

PAPER_PSNR = f"{PAPER_SET} ×4 (paper)"


def paper_note(test_set: str, trained: str) -> str:
    """Note on the paper's column of PSNRs; ``trained`` ends its sentence."""
    return (
        f"Columns marked paper are published figures, not measured here: PSNR on {test_set} ×4, "
        f"EDSR with 32 blocks × 256 channels trained on DIV2K{trained}."
    )


PAPER_NOTE = paper_note(PAPER_SET, " for 1000 epochs")


def caption(title: str, setting: Setting, test_set: str | None = None) -> str:
    """Title, setting and measured test set."""
    if not setting.runs:
        return f"{title}: operation counts alone, nothing trained"
    return f"{title}: {setting_text(setting)}; tested on {test_set or setting.test_set}"


def setting_text(setting: Setting) -> str:
    """Task, preset, scale, protocol, steps, rate, data, device and seeds of a setting with runs.

    The default task is not named.
    """
    config = setting.config
    data, task = config.data, config.image_task
    steps = f"{config.steps} steps"
    if config.start is not UNSET:
        steps = f"{config.steps} further steps after the baseline's {config.start.steps}"
    if config.learning_rate is not UNSET:
        steps += f", rate {config.learning_rate:g}"
    return (
        f"{f'{task.label}, ' if task else ''}"
        f"preset {config.preset} ({config.blocks} blocks × {config.channels} channels), "
        f"{_enlargement(config.scale, ', ')}{_attention_text(setting)}"
        f"protocol {config.protocol}, {steps}, trained on "
        f"{' + '.join(data.train)} ({plural(data.train_images, 'image')} of {data.name}), "
        f"device {config.device}, {config.precision or 'float32'}, {setting.seed_count}"
    )


def _attention_text(setting: Setting) -> str:
    """``2 modules of weight 1, ``; nothing of what is usual: five modules of their own weight."""
    config, weight = setting.config, setting.res_scale
    given = {(run.variant.changed or {}).get("res_scale") for run in setting.runs} - {None}
    places = config.positions if config.task is UNSET else config.task.positions
    usual = UNSET if config.task is UNSET else [*quarters(config.blocks)]
    parts = [] if places == usual else [plural(len(places or ()), "module")]
    if config.learn_res_scale is True:
        parts.append(f"learned weight from {weight:g}" if weight else "learned weight")
    elif weight in given:
        parts.append(f"{'of ' if parts else 'modules of '}weight {weight:g}")
    if config.attention_rate is not UNSET:
        parts.append(f"rate of the modules ×{config.attention_rate:g}")
    return f"{' '.join(parts)}, " if parts else ""


def _enlargement(scale: int, after: str = "") -> str:
    """``×4``; nothing for tasks that do not enlarge."""
    return f"×{scale}{after}" if scale > 1 else ""


def setting_columns(setting: Setting) -> dict[str, Any]:
    """CSV columns of a setting; none without runs. The default task is not named."""
    if not setting.runs:
        return {}
    config = setting.config
    task = config.image_task
    return {
        **({"task": task.label} if task else {}),
        "setting": setting.label,
        "preset": config.preset,
        "protocol": config.protocol,
        "scale": config.scale,
        "steps": config.steps,
        "start_steps": None if config.start is UNSET else config.start.steps,
        "blocks": config.blocks,
        "network_channels": config.channels,
        "data": config.data.name,
        "train_sets": "+".join(config.data.train),
        "device": config.device,
        "precision": config.precision or None,
        "machine": "; ".join(sorted({describe_machine(r) for r in setting.runs})),
        "code": ", ".join(sorted({describe_code(r) for r in setting.runs})),
    }


#: Row of what a network's input gives.
INPUTS = {"bicubic": "Bicubic", "noisy": "Noisy image"}
#: How to read a table of qualities, in a line.
READ = "Differences to the baseline are paired, with 95 % intervals; ± is over seeds."
_TRAINED = (
    "Parameters are those of the whole network; training time is the mean over seeds, on the "
    "machines below, some of them shared."
)


def setting_notes(
    setting: Setting,
    summaries: Sequence[Summary | None],
    published: str = PAPER_NOTE,
    *,
    variants: Collection[Variant | None],
) -> list[str]:
    """Notes of a table of qualities and differences, the one on published figures first.

    Args:
        setting: all runs.
        summaries: of the table's cells.
        published: the first note.
        variants: the table's rows; notes name no others.
    """
    setting = setting.only(variants)
    if not setting.runs:
        return [published, "No variant was trained: measured PSNR and SSIM are empty."]
    notes = [published, f"Measured: {setting_text(setting)}."]
    notes += [_TRAINED, origin_note(setting.runs, "Runs")]
    shown = [s for s in summaries if s and s.low is not None]
    if not setting.baseline:
        notes.append("No baseline (none) was trained in this setting: differences are empty.")
    elif shown:
        notes.append(_interval_note(shown))
    if apart := _trained_apart(setting):
        notes.append(
            "Rounding differs from that of the baseline with the same seed, because of another "
            "processor, library of matrix products, number of threads or version of torch: "
            f"{', '.join(apart)}."
        )
    if tiled := sorted({name for r in setting.runs for name in _tiled_images(r)}):
        more = f" and {len(tiled) - 3} more" if len(tiled) > 3 else ""
        notes.append(f"Images evaluated in tiles, not whole: {', '.join(tiled[:3])}{more}.")
    if any(s and s.seeds > 1 for s in summaries):
        notes.append("± is the standard deviation over seeds.")
    if len({len(runs) for runs in setting.runs_of.values()}) > 1:
        notes.append(
            "Rows have different numbers of seeds: compare the differences, which are paired, not "
            "the means."
        )
    repeats = len(setting.runs) - sum(len(runs) for runs in setting.runs_of.values())
    if repeats:
        notes.append(f"Not shown: {plural(repeats, 'older repeat')} of a run with the same seed.")
    return notes


def _trained_apart(setting: Setting) -> list[str]:
    rounding = {run.config.seed: rounding_of(run) for run in setting.baseline}
    apart = []
    for label, variant in setting.trained:
        seeds = [
            str(run.config.seed)
            for run in setting.runs_of[variant]
            if rounding.get(run.config.seed, rounding_of(run)) != rounding_of(run)
        ]
        if seeds:
            apart.append(f"{label} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)})")
    return apart


def _tiled_images(run: Run) -> list[str]:
    images = ((name, image) for name, found in run.quality.items() for image in found.images)
    return [f"{name}/{image.name}" for name, image in images if image.tile is not None]


def _interval_note(summaries: Sequence[Summary]) -> str:
    several = {s.paired_seeds > 1 for s in summaries}
    counts = "/".join(str(count) for count in sorted({s.images for s in summaries}))
    over, of = f"images ({counts})", "the images'"
    if True in several:
        over, of = f"{over} and seeds", "the seeds' or the images'"
    note = (
        "Differences to the baseline are paired over the same images and seeds. Their 95 % "
        f"intervals come from a paired bootstrap over {over}, or from Student's t of {of} means "
        "where it reaches further."
    )
    if several == {False}:
        note += " With one seed they leave out the noise of training."
    elif several == {True, False}:
        note += " Rows with one seed use the images alone, which leaves out the noise of training."
    return note


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """A number with this many decimals; "" for None."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def psnr_cell(summary: Summary | None) -> str:
    """Mean in dB, and its spread over seeds where there are several."""
    if summary is None:
        return ""
    spread = summary.std_over_seeds
    return fixed(summary.mean, 2) + ("" if spread is None else f" ± {spread:.2f}")


def difference_cell(summary: Summary | None) -> str:
    """Difference to the baseline in dB with its interval."""
    if summary is None or summary.difference is None:
        return ""
    text = fixed(summary.difference, 3, "+")
    if summary.low is None:
        return text
    return f"{text} [{fixed(summary.low, 3, '+')}, {fixed(summary.high, 3, '+')}]"


def milliseconds(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if not value:
        return "" if value is None else "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def parameters_cell(count: float | None) -> str:
    """Three digits and a unit, as SR papers print them: ``155K``, ``43.1M``; "" for None."""
    if count is None:
        return ""
    for unit, size in (("M", 1e6), ("K", 1e3)):
        if count >= 0.9995 * size:
            return milliseconds(count / size) + unit
    return f"{count:.0f}"


def duration_cell(seconds: float | None) -> str:
    """Three digits and a unit: ``42.0 s``, ``6.20 min``, ``13.5 h``; "" for None."""
    if seconds is None:
        return ""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{milliseconds(seconds / length)} {unit}"
    return f"{milliseconds(seconds)} s"


def training_cells(runs: Sequence[Run]) -> list[str]:
    """Parameters of the network, and mean time of training over seeds; "" without runs."""
    parameters, seconds = training_of(runs)
    return [parameters_cell(parameters), duration_cell(seconds)]


#: Headers of :func:`training_cells`.
TRAINING_HEADERS = (("", "parameters"), ("", "training time"))


def training_columns(runs: Sequence[Run]) -> dict[str, Any]:
    """CSV columns of :func:`training_of`."""
    parameters, seconds = training_of(runs)
    return {"parameters": parameters, "training_seconds": seconds}


def training_of(runs: Sequence[Run]) -> tuple[int | None, float | None]:
    """Parameters of the network and seconds of training, the mean over seeds; None without runs."""
    if not runs:
        return None, None
    return runs[0].training.parameters, fmean(run.training.seconds for run in runs)


def number(printed: str) -> float | None:
    """A printed figure of the paper as a number; None for its dash."""
    return float(printed) if printed else None


def _quality_columns(summary: Summary | None, unit: str, name: str) -> dict[str, Any]:
    """CSV columns of a summary, e.g. psnr_db_measured … with name psnr and unit _db."""
    kind = "difference" if name == "psnr" else f"difference_{name}"
    return {
        f"{name}{unit}_measured": summary and summary.mean,
        f"{name}{unit}_std_over_seeds": summary and summary.std_over_seeds,
        f"{kind}{unit}": summary and summary.difference,
        f"{kind}_low{unit}": summary and summary.low,
        f"{kind}_high{unit}": summary and summary.high,
    }


def measured_columns(
    setting: Setting,
    psnr: Summary | None,
    ssim: Summary | None,
    *,
    test_set: str | None = None,
    seeds: bool = True,
) -> dict[str, Any]:
    """CSV columns of a measured quality and of its setting; bicubic has no seeds."""
    return {
        "test_set": test_set or setting.test_set,
        **_quality_columns(psnr, "_db", "psnr"),
        **_quality_columns(ssim, "", "ssim"),
        "seeds": psnr.seeds if psnr and seeds else None,
        "paired_seeds": psnr.paired_seeds or None if psnr and seeds else None,
        "paired_images": psnr.images or None if psnr else None,
        **setting_columns(setting),
    }


def variant_columns(label: str, recorded: RecordedVariant | None) -> dict[str, Any]:
    """CSV columns that name the variant of a row with all its options."""
    return {
        "method": label,
        "variant": recorded and recorded.name,
        "options": recorded and canonical_json(recorded.options),
    }


def columns_of(part: Any, *names: str) -> dict[str, Any]:
    """CSV columns with the names and values of these attributes."""
    return {name: getattr(part, name) for name in names}


def measured_header(setting: Setting, test_set: str | None = None) -> str:
    """Measured test set and scale."""
    if not setting.runs:
        return "measured"
    return f"{test_set or setting.test_set} {_enlargement(setting.config.scale)}".rstrip()


def quality_headers(setting: Setting, test_set: str | None = None) -> list[tuple[str, str]]:
    """Headers of :func:`quality_cells`, which name the measured test set."""
    name = measured_header(setting, test_set)
    return [
        ("PSNR (dB)", name),
        ("SSIM", name),
        ("PSNR (dB)", "difference to baseline"),
        ("", "seeds"),
    ]


def quality_cells(psnr: Summary | None, ssim: Summary | None, *, seeds: bool = True) -> list[str]:
    """PSNR, SSIM, difference in PSNR with its interval, number of seeds."""
    return [
        psnr_cell(psnr),
        fixed(ssim.mean if ssim else None, 4),
        difference_cell(psnr),
        str(psnr.seeds) if psnr and seeds else "",
    ]

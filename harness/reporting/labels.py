"""Rows of tables and figures: which variant a record is of, and what the row is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..config.labels import apart
from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant, with_options
from ..records.shapes import Cost, RecordedVariant

#: Weight of the attention in every synthetic task, unless a row's label names another.
RES_SCALE = 1.0


def variant_of(recorded: RecordedVariant) -> Variant:
    """What tells variants apart, and is the key everywhere: name and options off the defaults."""
    return Variant(recorded.name, recorded.changed or {})


def paper_costs(costs: Iterable[Cost]) -> dict[Variant, Cost]:
    """Operation counts at the paper's sizes by variant; of several the last."""
    sizes = (100, 100, CORE_CHANNELS, MODULE_CHANNELS)
    return {
        variant_of(cost.variant): cost
        for cost in costs
        if (cost.height, cost.width, cost.parts.core.channels, cost.parts.module.channels) == sizes
    }


def recorded_labels(recorded: Iterable[RecordedVariant]) -> dict[Variant, str]:
    """Row label of each variant that records name; no two are alike."""
    found = {variant_of(one): one for one in recorded}
    labels = {variant: one.row_label for variant, one in found.items()}
    labels = apart(labels, [variant for variant, one in found.items() if not one.built_in])
    # Variants of records older than ``row_label`` may still share one.
    count = Counter(labels.values())
    return {
        variant: with_options(label, variant.options) if count[label] > 1 else label
        for variant, label in labels.items()
    }


def task_variant(recorded: RecordedVariant, res_scale: float = RES_SCALE) -> Variant:
    """As :func:`variant_of`, with ``res_scale`` an option where it is not the usual weight.

    Args:
        recorded: what a record says.
        res_scale: the usual weight; that of every synthetic task.

    Modules without that option are as they are.
    """
    plain = variant_of(recorded).without_weight
    weight = recorded.options.get("res_scale", res_scale)
    return (
        plain
        if weight == res_scale
        else Variant(plain.name, {**plain.options, "res_scale": weight})
    )


def task_labels(
    recorded: Iterable[RecordedVariant], res_scale: float = RES_SCALE
) -> dict[Variant, str]:
    """Row label of each :func:`task_variant`; of ``res_scale`` it shows what is not usual."""
    found = {task_variant(one, res_scale): one for one in recorded}
    labels = recorded_labels(found.values())
    return {key: _task_label(labels[variant_of(one)], one, res_scale) for key, one in found.items()}


def _task_label(label: str, recorded: RecordedVariant, res_scale: float) -> str:
    weight = recorded.options.get("res_scale", res_scale)
    if weight == res_scale:
        shown = re.escape(f"res_scale={weight}")
        return re.sub(rf" \({shown}\)|, {shown}(?=[,)])|(?<=\(){shown}, ", "", label)
    if "res_scale" not in (recorded.changed or {}):
        return with_options(label, {"res_scale": weight})
    return label


def row_order(
    labels: Mapping[Variant, str], paper_labels: Sequence[str]
) -> list[tuple[str, Variant | None]]:
    """(label, variant) of each row: the paper's in its order, None if not measured, then others."""
    variants = {label: variant for variant, label in labels.items()}
    further = sorted(variants.keys() - set(paper_labels), key=natural)
    return [(label, variants.get(label)) for label in (*paper_labels, *further)]


def natural(label: str) -> list[tuple[str, int]]:
    """Sort key under which m8 comes before m16."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", label)]

"""Row labels: no variant is taken for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from .variants import Variant, built_in_attentions


def row_labels(variants: Iterable[Variant]) -> dict[Variant, str]:
    """Row label of each variant; see :func:`apart`."""
    labels = {variant: variant.row_label for variant in variants}
    built_in = built_in_attentions()
    return apart(labels, [variant for variant in labels if variant.name not in built_in])


def apart(labels: Mapping[Variant, str], foreign: Collection[Variant]) -> dict[Variant, str]:
    """The labels, with the module's name behind each that several variants share.

    Args:
        labels: row label of each variant.
        foreign: those whose module is not attention_zoo's; only theirs are changed.
    """
    count = Counter(labels.values())
    return {
        variant: f"{label}, {variant.name}" if variant in foreign and count[label] > 1 else label
        for variant, label in labels.items()
    }


def numbered(labels: Sequence[str]) -> list[str]:
    """Labels of a row of panels; those that several share are numbered."""
    return [
        label if labels.count(label) == 1 else f"{label}, run {i}"
        for i, label in enumerate(labels, 1)
    ]

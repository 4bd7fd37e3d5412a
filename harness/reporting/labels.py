"""Rows of tables and figures: which variant a record is of, and what the row is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..config.labels import apart
from ..config.variants import Variant, with_options
from ..records.shapes import RecordedVariant


def variant_of(recorded: RecordedVariant) -> Variant:
    """What tells variants apart, and is the key everywhere: name and options off the defaults."""
    return Variant(recorded.name, recorded.changed or {})


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


def row_order(
    labels: Mapping[Variant, str], paper_labels: Sequence[str]
) -> list[tuple[str, Variant | None]]:
    """(label, variant) of each row: the paper's in its order, None if not measured, then others."""
    variants = {label: variant for variant, label in labels.items()}
    further = sorted(variants.keys() - set(paper_labels), key=_natural)
    return [(label, variants.get(label)) for label in (*paper_labels, *further)]


def _natural(label: str) -> list[tuple[str, int]]:
    """Sort key under which m8 comes before m16."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", label)]

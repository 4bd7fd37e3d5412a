"""Labels of the trained networks that a picture compares."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.labels import numbered, row_labels
from ..network.weights import TrainedNetwork


def network_labels(networks: Sequence[TrainedNetwork]) -> list[str]:
    """Row label of each network; equal labels are numbered."""
    variants = [network.architecture.variant for network in networks]
    labels = row_labels(variants)
    return numbered([labels[variant] for variant in variants])

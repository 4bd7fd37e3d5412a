"""Labels of the trained networks that a picture compares."""

from __future__ import annotations

from collections.abc import Sequence

from ..config.labels import numbered, row_labels
from ..network.weights import TrainedNetwork


def network_labels(networks: Sequence[TrainedNetwork]) -> list[str]:
    """Row label of each network; equal labels are numbered.

    A weight of the attention that all networks have is not shown.
    """
    variants = [network.architecture.variant for network in networks]
    weights = {v.resolved["res_scale"] for v in variants if "res_scale" in v.resolved}
    if len(weights) == 1:
        variants = [variant.without_weight for variant in variants]
    labels = row_labels(variants)
    return numbered([labels[variant] for variant in variants])

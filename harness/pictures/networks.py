"""The trained networks that a picture compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import UserError
from ..config.labels import numbered, row_labels
from ..network.weights import TrainedNetwork, find_weights, load_weights


def load_networks(names: Sequence[str], results: Path) -> list[TrainedNetwork]:
    """Networks of one scale, each once, in evaluation mode on the CPU.

    Args:
        names: of option ``--runs``; see :func:`.weights.find_weights`.
        results: folder that holds runs/.

    Raises:
        UserError: no names, weights that cannot be loaded, or networks of different scales.
    """
    if not names:
        raise UserError("--runs needs at least one run")
    networks = [load_weights(find_weights(name, results)) for name in dict.fromkeys(names)]
    scales = {network.name: network.architecture.scale for network in networks}
    if len({*scales.values()}) > 1:
        found = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UserError(f"the runs are of different scales ({found}): give runs of one")
    return networks


def network_labels(networks: Sequence[TrainedNetwork]) -> list[str]:
    """Row label of each network; equal labels are numbered."""
    variants = [network.architecture.variant for network in networks]
    labels = row_labels(variants)
    return numbered([labels[variant] for variant in variants])

"""True matches of test images, for networks with an oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from ..base.errors import UserError
from ..images.sources import TestImage
from ..network.edsr import EDSR
from ..tasks.matches import find_matches


def with_references(
    network: nn.Module, images: Iterable[TestImage], *, cut: bool = False
) -> Iterator[TestImage]:
    """The images; an oracle in the network is told the matches of each before it comes.

    Args:
        network: an EDSR with or without an oracle, or any other.
        images: with their HR pixels, in which the matches are found.
        cut: whether the images will pass the network in parts.

    Raises:
        UserError: the network has an oracle, and the images are cut.
    """
    if not (isinstance(network, EDSR) and network.has_oracle):
        yield from images
        return
    if cut:
        raise UserError("an oracle takes matches of whole images: leave out --tile and --chop")
    device = next(network.parameters()).device
    try:
        for image in images:
            found = find_matches(image.hr[None], network.scale, network.reach)
            network.set_references(torch.from_numpy(found).to(device))
            yield image
    finally:
        network.set_references(None)


def refuse_oracle(network: nn.Module, name: str, command: str) -> None:
    """Refuse a network whose oracle nobody can tell the matches.

    Raises:
        UserError: it has an oracle.
    """
    if isinstance(network, EDSR) and network.has_oracle:
        raise UserError(
            f"{name} has an oracle, which must be told the true matches, and {command} tells it "
            "none: use harness.evaluate"
        )

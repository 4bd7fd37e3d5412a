"""Quality of trained networks under other random draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from attention_zoo.enla import EfficientNonLocalAttention, orthogonal_gaussian
from attention_zoo.nlsa import NonLocalSparseAttention

from ..base.errors import UserError
from ..images.sources import TestSet
from ..network.weights import TrainedNetwork
from ..records.shapes import RedrawRow
from .quality import evaluate


@contextlib.contextmanager
def redrawn(network: nn.Module, draw: int, m: int | None = None) -> Iterator[None]:
    """Give the network's attention other random draws within the block.

    Args:
        network: with ENLA, ENLCA or NLSA modules; others do not change.
        draw: seed of the draws; each module of ENLA has a draw of its own, as in training.
        m: random features of ENLA; by default each module's own.
    """
    generator = torch.Generator().manual_seed(draw)
    enla = [x for x in network.modules() if isinstance(x, EfficientNonLocalAttention)]
    nlsa = [x for x in network.modules() if isinstance(x, NonLocalSparseAttention)]
    projections = [module.projection for module in enla]
    seeds = [module.evaluation_seed for module in nlsa]
    try:
        for module in enla:
            drawn = orthogonal_gaussian(m or module.m, module.embedding, generator)
            module.projection = drawn.to(module.projection)
        for hashing in nlsa:
            hashing.evaluation_seed = draw
        yield
    finally:
        for module, projection in zip(enla, projections, strict=True):
            module.projection = projection
        for hashing, seed in zip(nlsa, seeds, strict=True):
            hashing.evaluation_seed = seed


def measure(
    trained: TrainedNetwork,
    test_sets: Sequence[TestSet],
    *,
    draws: int,
    m: Sequence[int] = (),
    tile: int | None = None,
) -> list[RedrawRow]:
    """Quality as trained (draw 0) and under draws 1, 2, …, for each m and test set.

    Returns:
        Rows of means over the images, in dB and 1; m is None for NLSA.

    Raises:
        UserError: the network has no random draws, an m for one without ENLA, or an m below 1.
    """
    network, scale = trained.network, trained.architecture.scale
    own = next((x.m for x in network.modules() if isinstance(x, EfficientNonLocalAttention)), None)
    if own is None and not any(isinstance(x, NonLocalSparseAttention) for x in network.modules()):
        raise UserError(
            f"{trained.name}: {trained.label} has no random projection or hashing to redraw"
        )
    if own is None and m:
        raise UserError(f"--m applies to ENLA and ENLCA; {trained.name} is {trained.label}")
    if min(m, default=1) < 1:
        raise UserError(f"--m must be at least 1, got {min(m)}")
    rows = []
    for features in dict.fromkeys((own, *m)):
        for draw in range(0 if features == own else 1, draws + 1):
            what = f"{trained.label}, draw {draw}" + (f", m = {features}" if features else "")
            for images in test_sets:
                with redrawn(network, draw, features) if draw else contextlib.nullcontext():
                    found = evaluate(
                        network, images, len(images), scale, f"{what} on {images.name}", tile
                    )
                rows.append(
                    RedrawRow(
                        test_set=images.name,
                        m=features,
                        draw=draw,
                        psnr=found.psnr,
                        ssim=found.ssim,
                        images=len(images),
                    )
                )
    return rows

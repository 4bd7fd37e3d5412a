"""Features for measurements of attention: what a network's modules see, and synthetic ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from attention_zoo import Attention

from ..base.errors import UserError
from ..images.sources import TestImage, TestSet
from ..network.edsr import EDSR, to_tensor

#: Channels of synthetic queries, keys and values: the paper's embedding (256 / 4).
SYNTHETIC_CHANNELS = 64
#: Clusters of the synthetic mixture, and the noise around each centre.
CLUSTERS, CLUSTER_NOISE = 16, 0.5


@dataclass(frozen=True)
class Features:
    """Inputs of one attention operation, before any normalisation.

    Attributes:
        name: ``module 1`` … in a network's order, or the kind of synthetic features.
        q, k: ``[1, c, H, W]``.
        v: ``[1, c_out, H, W]``.
    """

    name: str
    q: Tensor
    k: Tensor
    v: Tensor


@torch.inference_mode()
def network_features(network: EDSR, image: TestImage) -> list[Features]:
    """q, k, v of each attention module, in order, as the image's LR passes through the network."""
    features: list[Features] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, Attention)
        features.append(Features(f"module {len(features) + 1}", *module.project(*inputs)))

    hooks = [m.register_forward_pre_hook(note) for m in network.attention_modules]
    try:
        network.eval()(to_tensor(image.lr[None], next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return features


def cropped(images: TestSet, count: int, side: int) -> Iterator[TestImage]:
    """The first ``count`` images of a test set, LR cropped to ``side`` x ``side`` in the middle.

    Raises:
        UserError: an image is smaller, or cannot be read.
    """
    for image in islice(images, count):
        height, width = image.lr.shape[:2]
        if min(height, width) < side:
            raise UserError(
                f"LR image {image.name} of {images.name} is {width}x{height}, smaller than a crop "
                f"of {side}: give smaller --sizes, or another test set"
            )
        top, left, scale = (height - side) // 2, (width - side) // 2, images.scale
        lr = image.lr[top : top + side, left : left + side]
        hr = image.hr[scale * top : scale * (top + side), scale * left : scale * (left + side)]
        yield replace(image, lr=lr.copy(), hr=hr.copy(), sha256=b"")


def synthetic_features(side: int, seed: int) -> list[Features]:
    """Gaussian and clustered features on a map of ``side`` x ``side``, drawn from ``seed``.

    ``Gaussian``: every entry of q, k and v is N(0, 1), all independent, so that no position is
    related to another. ``clustered``: each position belongs to one of 16 clusters, drawn
    uniformly; its q and k are the cluster's centre (entries N(0, 1)), its v the cluster's value
    (likewise), each with independent noise of standard deviation 0.5. The cosine of q and k is then
    about 0.8 within a cluster and 0 ± 0.125 between two.
    """
    generator = torch.Generator().manual_seed(seed)
    n, c = side**2, SYNTHETIC_CHANNELS

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, c, generator=generator)

    def to_maps(name: str, rows: list[Tensor]) -> Features:
        return Features(name, *(r.T.reshape(1, c, side, side) for r in rows))

    gaussian = [normal(n) for _ in range(3)]
    member = torch.randint(CLUSTERS, (n,), generator=generator)
    centres, values = normal(CLUSTERS)[member], normal(CLUSTERS)[member]
    clustered = [u + CLUSTER_NOISE * normal(n) for u in (centres, centres, values)]
    return [to_maps("Gaussian", gaussian), to_maps("clustered", clustered)]

"""Oracle of cross-scale attention: the published operation, patch by patch, then made smaller.

Patches of 3s x 3s of the full map are laid s positions apart into a map that is s times as large,
where they overlap; a convolution of s x s in steps of s brings that back to the map's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import weighted_mean


def clamp(at: int, length: int) -> int:
    """The nearest index that there is: borders are repeated."""
    return min(max(at, 0), length - 1)


def shrink(x: Tensor, scale: int) -> Tensor:
    """Means ``[c, h, w]`` of the blocks of ``[c, H, W]``, of what of them there is."""
    rows = [
        torch.stack(
            [
                x[:, i : i + scale, j : j + scale].flatten(1).mean(1)
                for j in range(0, x.shape[2], scale)
            ],
            dim=1,
        )
        for i in range(0, x.shape[1], scale)
    ]
    return torch.stack(rows, dim=1)


def patch(x: Tensor, row: int, column: int) -> Tensor:
    """The 3 x 3 patch around a position of ``[c, H, W]``, as a vector."""
    parts = [
        x[:, clamp(row + i, x.shape[1]), clamp(column + j, x.shape[2])]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    return torch.cat(parts)


def patch_weights(q: Tensor, k: Tensor, scale: int, sharpness: float) -> dict[tuple, list]:  # type: ignore[type-arg]
    """``exp`` of the scores of each patch of q with all patches of the smaller k."""
    small = shrink(k, scale)
    positions = [(i, j) for i in range(small.shape[1]) for j in range(small.shape[2])]
    keys = [patch(small, *at) for at in positions]
    keys = [key / max(5e-5, torch.sqrt(torch.sum(key * key))) for key in keys]
    weights = {}
    for row in range(q.shape[1]):
        for column in range(q.shape[2]):
            query = patch(q, row, column)
            scores = [sharpness * torch.dot(query, key) for key in keys]
            weights[row, column] = [torch.exp(score) for score in scores]
    return weights


def cross_scale_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: int = 2, sharpness: float = 10.0
) -> Tensor:
    """Of values that are at every scale-th row and column: no convolution is needed."""
    q, k, v = q.double(), k.double(), v.double()
    images = []
    for b in range(len(q)):
        values = v[b, :, ::scale, ::scale]
        h, w = values.shape[1:]
        weights = patch_weights(q[b], k[b], scale, sharpness)
        height, width = q.shape[2:]
        sums = {at: [] for at in weights}  # type: ignore[var-annotated]
        for (row, column), of_patch in weights.items():
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < height and 0 <= column + j < width:
                        seen = [
                            values[:, clamp(y + i, h), clamp(x + j, w)]
                            for y in range(h)
                            for x in range(w)
                        ]
                        sums[row + i, column + j].append(weighted_mean(of_patch, seen))
        means = [torch.stack(parts).mean(0) for parts in sums.values()]
        images.append(torch.stack(means, dim=1).reshape(-1, height, width))
    return torch.stack(images)


def published_and_made_smaller(
    q: Tensor,
    k: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: int = 2,
    sharpness: float = 10.0,
) -> Tensor:
    """Patches of 3s x 3s of x, folded into a map s times as large, which is then convolved.

    H and W are multiples of the scale. Of what lies beyond the map patches repeat the outermost
    block, and the larger map is divided by how many patches cover a position.
    """
    batch, channels, height, width = x.shape
    h, w = height // scale, width // scale
    large = torch.zeros(batch, channels, height * scale, width * scale, dtype=x.dtype)
    cover = torch.zeros(height * scale, width * scale, dtype=x.dtype)
    for b in range(batch):

        def block(y: int, z: int, b: int = b) -> Tensor:
            rows, columns = clamp(y, h) * scale, clamp(z, w) * scale
            return x[b, :, rows : rows + scale, columns : columns + scale]

        patches = [
            torch.cat(
                [torch.cat([block(y + i, z + j) for j in (-1, 0, 1)], dim=2) for i in (-1, 0, 1)],
                dim=1,
            )
            for y in range(h)
            for z in range(w)
        ]
        weights = patch_weights(q[b], k[b], scale, sharpness)
        for (row, column), of_patch in weights.items():
            mixed = weighted_mean(of_patch, patches)  # [C, 3s, 3s]
            for y in range(3 * scale):
                for z in range(3 * scale):
                    to = (row - 1) * scale + y, (column - 1) * scale + z
                    if 0 <= to[0] < height * scale and 0 <= to[1] < width * scale:
                        large[b, :, to[0], to[1]] += mixed[:, y, z]
                        cover[to] += 1 / batch
    return torch.nn.functional.conv2d(large / cover, weight, bias, stride=scale)

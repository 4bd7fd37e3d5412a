"""Which part of an image is self-similar: its patches recur beyond the reach of convolutions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import zlib
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.names import digest
from ..images.bicubic import crop_to_multiple, downscale
from ..images.cache import cache_folder
from ..images.files import Pixels
from ..images.metrics import rgb_to_y

Mask = NDArray[np.bool_]

#: Increase it when the same pixels give another mask.
VERSION = 1
# Most numbers of a tile of correlations: 64 MiB.
_TILE = 2**24


@dataclass(frozen=True)
class Rule:
    """When a patch recurs.

    Attributes:
        side: of a patch in pixels of the small image, odd.
        most: largest share of a patch's variance in which a copy, with mean and contrast of its
            own, may differ.
        contrast: least standard deviation of a patch in grey levels; flat ones recur everywhere.
        corners: least ratio of the two eigenvalues of a patch's structure tensor; a straight edge,
            whose ratio is 0, recurs wherever there is another one.
        pixels: a small image with more pixels than this is reduced further.
    """

    side: int = 7
    most: float = 0.1
    contrast: float = 4.0
    corners: float = 0.1
    pixels: int = 2**16


RULE = Rule()


def self_similar(hr: Pixels, scale: int, reach: int, rule: Rule = RULE) -> Mask:
    """Which HR pixels lie in the middle of a patch that recurs beyond the reach.

    Patches are compared in the image reduced by ``scale``, or by the least multiple of it at which
    ``rule.pixels`` are enough, with the reach reduced likewise and rounded up. A small file under
    the cache folder keeps the mask; if it cannot be written, nothing is kept.

    Args:
        hr: uint8 ``[H, W, 3]``, sides at least ``scale``; clean also where the input is noisy.
        scale: s.
        reach: of the network's convolutions in input pixels.
        rule: when a patch recurs.

    Returns:
        ``[H, W]``.
    """
    height, width = hr.shape[:2]
    further = 1
    while (height // (scale * further)) * (width // (scale * further)) > rule.pixels:
        further += 1
    factor = scale * further
    small = crop_to_multiple(hr, factor)
    small = downscale(small, factor) if factor > 1 else small
    found = _kept(small, math.ceil(reach / further), rule)
    whole = np.zeros((height, width), dtype=bool)
    enlarged = found.repeat(factor, axis=0).repeat(factor, axis=1)
    whole[: enlarged.shape[0], : enlarged.shape[1]] = enlarged
    return whole


def _kept(image: Pixels, reach: int, rule: Rule) -> Mask:
    """:func:`recurrence`, from its file if there is one."""
    pixels = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
    key = digest([VERSION, pixels, list(image.shape), reach, asdict(rule)])
    path = cache_folder() / "self-similar" / f"{key[:32]}.json"
    shape = image.shape[:2]
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError, zlib.error):
        content = read_json(path)
        if content["sha256"] == digest([key, content["mask"]]):
            packed = np.frombuffer(zlib.decompress(base64.b85decode(content["mask"])), np.uint8)
            return np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)
    found = recurrence(image, reach, rule)
    with contextlib.suppress(UserError):
        text = base64.b85encode(zlib.compress(np.packbits(found).tobytes())).decode()
        write_json(path, {"mask": text, "sha256": digest([key, text])})
    return found


def recurrence(image: Pixels, reach: int, rule: Rule = RULE) -> Mask:
    """Which pixels lie in the middle of a patch that recurs beyond the reach.

    Two patches are one if the correlation of their lumas is at least ``sqrt(1 - most)``: then the
    best multiple of one, plus a constant, leaves the share ``most`` of the other's variance. They
    lie more than ``reach`` pixels apart in height or width. Patches without contrast or corners
    neither recur nor are copies.

    Args:
        image: uint8 ``[h, w, 3]``.
        reach: in its pixels.
        rule: when a patch recurs.

    Returns:
        ``[h, w]``; False where the patch leaves the image.
    """
    height, width = image.shape[:2]
    found = np.zeros((height, width), dtype=bool)
    if min(height, width) < rule.side:
        return found
    luma = torch.from_numpy(np.ascontiguousarray(rgb_to_y(image), dtype=np.float32))
    patches = F.unfold(luma[None, None], rule.side)[0].T  # [positions, side²]
    patches = patches - patches.mean(1, keepdim=True)
    counts = patches.square().mean(1).sqrt() >= rule.contrast
    counts &= _corners(patches.unflatten(1, (rule.side, rule.side))) >= rule.corners
    rows, columns = height - rule.side + 1, width - rule.side + 1
    recurs = torch.zeros(rows, columns, dtype=torch.bool)
    directions = F.normalize(patches[counts], dim=1)
    _search(directions, counts.view(rows, columns), reach, (1 - rule.most) ** 0.5, recurs)
    edge = rule.side // 2
    found[edge : edge + rows, edge : edge + columns] = recurs.numpy()
    return found


def _corners(patches: Tensor) -> Tensor:
    """Smaller over larger eigenvalue of the structure tensor of patches ``[n, side, side]``."""
    down = patches[:, 1:, :-1] - patches[:, :-1, :-1]
    right = patches[:, :-1, 1:] - patches[:, :-1, :-1]
    a, b, c = (x.mean((1, 2)) for x in (down.square(), right.square(), down * right))
    half, apart = (a + b) / 2, ((a - b).square() / 4 + c.square()).sqrt()
    return (half - apart) / (half + apart).clamp_min(1e-12)


def _search(directions: Tensor, counts: Tensor, reach: int, least: float, recurs: Tensor) -> None:
    """Fill ``recurs [rows, columns]``: whose direction is near one of those farther than reach.

    Args:
        directions: unit vectors ``[n, d]`` of the positions that count, row by row.
        counts: ``[rows, columns]``, which positions these are.
        reach: in rows and columns.
        least: cosine from which directions are near.
        recurs: of positions that do not count it stays False.
    """
    x = torch.nonzero(counts)[:, 1].to(torch.int32)
    starts = [0, *counts.sum(1).cumsum(0).tolist()]  # the first of each row, and the end
    step = max(1, _TILE // max(len(x), 1))
    for row in range(len(counts)):
        # What lies within reach is one range of directions, but for the columns.
        near = slice(starts[max(0, row - reach)], starts[min(len(counts), row + reach + 1)])
        result = torch.zeros(starts[row + 1] - starts[row], dtype=torch.bool)
        for start in range(starts[row], starts[row + 1], step):
            tile = slice(start, min(start + step, starts[row + 1]))
            cosines = directions[tile] @ directions.T
            within = (x[tile, None] - x[near]).abs_() <= reach
            cosines[:, near].masked_fill_(within, -1.0)
            result[tile.start - starts[row] : tile.stop - starts[row]] = cosines.amax(1) >= least
        recurs[row, counts[row]] = result


def shaded(hr: Pixels, mask: Mask) -> Pixels:
    """The image with everything but the masked part dark, to look at a mask.

    Args:
        hr: uint8 ``[H, W, 3]``.
        mask: ``[H, W]``.
    """
    return np.where(mask[..., None], hr, hr // 4).astype(np.uint8)

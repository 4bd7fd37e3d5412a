"""Neural nearest neighbours: k softmaxes in a row, each without what the ones before have taken.

Paper: Neural Nearest Neighbors Networks (N3Net), Plötz and Roth, NeurIPS 2018, Section 3.
Equation: ``y_i = W [sum_j w_j^1 v_j, …, sum_j w_j^k v_j]``, ``w^r = softmax_j(a_j^r / T)``, where
``a_j^1 = -|q_i - k_j|²`` and ``a^(r+1) = a^r + log(1 - w^r)``. j runs over the square window around
i, without i. As T goes to 0, neighbour r becomes the value of the r-th nearest key.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, neighbours ``[B, k, C, H, W]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..cores.softmax import LOG2_E, refuse_second_derivative
from ..cores.tiles import added_up, scratch, share_tiles
from ..implementations import outside_graphs, refuse_transforms
from ..registry import register_attention
from .nlrn import Tile, add_block, put_block, side_cuts, take_block, window_scores, window_tiles

# Logits are in units of log 2. None falls lower but those beyond the window, which are −inf.
_LOWEST = -1e37
# What 1 − w is at least, where it divides.
_LEAST = 1e-30


@outside_graphs
def nearest_neighbours(
    q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, count: int = 7, window: int = 45
) -> Tensor:
    """The continuous relaxation of the k nearest neighbours, by the tiles of :mod:`.nlrn`.

    The distance is ``|k_j|² - 2 q_i·k_j``; what is the same for all j cancels. Where T is low and
    there are fewer neighbours than rounds, the rounds left over take the mean of all. The one
    position of a 1x1 map is its own neighbour.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        temperature: T, a scalar above 0.
        count: rounds.
        window: side of the search window, odd, 3 at least.

    Returns:
        ``[B, rounds, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or count or window is out of range.
    """
    refuse_transforms("patch-knn")
    check_qkv(q, k, v)
    _check(count, window)
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, keys, values = (t.permute(0, 2, 3, 1).to(dtype) for t in (q, k, v))
        sharpness = 1 / temperature.to(dtype)
        queries = F.pad(2 * queries, (0, 1), value=-1.0) * sharpness
        keys = torch.cat([keys, keys.square().sum(-1, keepdim=True)], dim=-1)
        out = _Neighbours.apply(queries, keys, values, sharpness, count, window // 2)
        return out.permute(0, 3, 4, 1, 2).to(v.dtype)


def _check(count: int, window: int) -> None:
    require_at_least("k", count, 1)
    require_at_least("window", window, 3)
    if window % 2 == 0:
        raise AttentionError(f"window must be odd, to have a centre, got {window}")


class _Neighbours(torch.autograd.Function):
    """Rows ``[B, H, W, ·]`` to ``[B, H, W, rounds, c_out]``; the backward pass repeats the rounds.

    The product of a query and a key is their logit, a / T; the sharpness is 1 / T.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sharpness: Tensor, count: int, reach: int
    ) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        ctx.count, ctx.reach = count, reach
        ctx.save_for_backward(q, k, v, sharpness)
        out = v.new_empty(*v.shape[:3], count, v.shape[3])

        def worker(_: int) -> Callable[[Tile], None]:
            def attend(tile: Tile) -> None:
                logits, values = _logits(q, k, tile), take_block(v, tile.keys)
                weights, space = (scratch(f"round {r}", q, *logits.shape) for r in range(2))
                for r in range(count):
                    is_last = r == count - 1
                    found = _next_round(logits, weights, sharpness, None if is_last else space)
                    put_block(out[..., r, :], tile.queries, torch.bmm(found.weights, values))

            return attend

        share_tiles(window_tiles(q, reach), q.device, worker)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("nearest_neighbours")
        q, k, v, sharpness = ctx.saved_tensors
        count: int = ctx.count
        grad = grads[0].contiguous()
        grad_q = torch.empty_like(q)
        sums: dict[int, list[Tensor]] = {}  # keys of several tiles are the same

        def worker(number: int) -> Callable[[Tile], None]:
            grad_k, grad_v, grad_sharpness = sums[number] = [
                torch.zeros_like(t) for t in (k, v, sharpness)
            ]

            def attend(tile: Tile) -> None:
                queries, keys = tile.queries, tile.keys
                logits, values = _logits(q, k, tile), take_block(v, keys)
                *kept, space, logs, of_weights = (
                    scratch(f"round {r}", q, *logits.shape) for r in range(count + 3)
                )
                rounds = [
                    _next_round(logits, weights, sharpness, space if r < count - 1 else None)
                    for r, weights in enumerate(kept)
                ]
                of_logits = logits.zero_()
                for r in reversed(range(count)):
                    of_mean = take_block(grad[..., r, :], queries)
                    add_block(grad_v, keys, torch.bmm(rounds[r].weights.mT, of_mean))
                    torch.bmm(of_mean, values.mT, out=of_weights)
                    memory = space, logs
                    grad_sharpness.add_(
                        _through_round(of_logits, of_weights, rounds[r], sharpness, memory)
                    )
                put_block(grad_q, queries, torch.bmm(of_logits, take_block(k, keys)))
                add_block(grad_k, keys, torch.bmm(of_logits.mT, take_block(q, queries)))

            return attend

        share_tiles(window_tiles(q, ctx.reach), q.device, worker, fixed=True)
        return grad_q, *added_up([sums[number] for number in sorted(sums)]), None, None


def _logits(q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """``[images, queries, keys]`` in units of log 2, −inf out of reach and of a query itself."""
    logits = window_scores(q, k, tile)
    if q.shape[1] * q.shape[2] > 1:
        _, rows, columns = tile.queries
        _, key_rows, key_columns = tile.keys
        down = torch.arange(rows.start, rows.stop, device=q.device) - key_rows.start
        across = torch.arange(columns.start, columns.stop, device=q.device) - key_columns.start
        own = down[:, None] * (key_columns.stop - key_columns.start) + across
        logits.scatter_(2, own.view(1, -1, 1).expand(len(logits), -1, -1), -torch.inf)
    return logits


class _Round(NamedTuple):
    """A round of a tile.

    Attributes:
        weights: w ``[images, queries, keys]``.
        top: number of the key with the largest weight, ``[images, queries, 1]``.
        left: 1 − w of that key, exact even where its w rounds to 1.
        kept: whether the next logit of that key is above the lowest, 1 or 0; None at last.
    """

    weights: Tensor
    top: Tensor
    left: Tensor
    kept: Tensor | None


def _next_round(logits: Tensor, weights: Tensor, sharpness: Tensor, space: Tensor | None) -> _Round:
    """The round of these logits, which are then those of the next round.

    Args:
        logits: ``[images, queries, keys]``, overwritten.
        weights: memory for the weights.
        sharpness: 1 / T.
        space: memory as large; if None, there is no next round.
    """
    largest, top = logits.max(2, keepdim=True)
    torch.sub(logits, largest, out=weights).exp2_().scatter_(2, top, 0.0)
    rest = weights.sum(2, keepdim=True)
    norm = rest + 1
    weights.div_(norm)
    left, kept = rest / norm, None
    if space is not None:
        logits.addcmul_(torch.neg(weights, out=space).add_(1).log2_(), sharpness)
        lowered = torch.addcmul(largest, left.log2(), sharpness)
        kept = (lowered > _LOWEST).to(lowered.dtype)
        logits.scatter_(2, top, lowered.clamp_min_(_LOWEST))
    weights.scatter_(2, top, 1 / norm)
    return _Round(weights, top, left, kept)


def _through_round(
    of_logits: Tensor,
    of_weights: Tensor,
    found: _Round,
    sharpness: Tensor,
    memory: tuple[Tensor, Tensor],
) -> Tensor:
    """The gradient of a round's logits, in place of that of the next round's, A.

    It is ``A + w (g - sum w g) - t + w sum t``, ``t = A w / (1 - w) / T``. The t of the largest
    weight can be so large that it would hide all others in the sum, so it is kept apart.

    Args:
        of_logits: A ``[images, queries, keys]``, zero after the last round; overwritten.
        of_weights: g, the gradient of the weights; overwritten.
        found: the round.
        sharpness: 1 / T.
        memory: as large, twice.

    Returns:
        The gradient of the sharpness.
    """
    weights, top, left, kept = found
    space, logs = memory
    of_weights.sub_(torch.mul(weights, of_weights, out=space).sum(2, keepdim=True))
    if kept is None:
        of_logits.addcmul_(weights, of_weights)
        return torch.zeros_like(sharpness)
    torch.neg(weights, out=space).add_(1).scatter_(2, top, 1.0)
    of_top, left = of_logits.gather(2, top).mul_(kept), left.clamp_min(_LEAST)
    of_logits.scatter_(2, top, 0.0)
    of_sharpness = torch.log2(space, out=logs).mul_(of_logits).sum() + (of_top * left.log2()).sum()
    torch.div(weights, space, out=space).mul_(of_logits).mul_(sharpness)
    others, largest = space.sum(2, keepdim=True), weights.gather(2, top)
    own = of_weights.gather(2, top).add_(others)
    of_weights.add_(others.addcmul_(of_top * largest / left, sharpness)).scatter_(2, top, own)
    of_logits.sub_(space).scatter_(2, top, of_top * (1 - sharpness * largest))
    of_logits.addcmul_(weights, of_weights)
    return of_sharpness / LOG2_E


@register_attention("patch-knn")
class PatchNeighbourAttention(Attention):
    """N3Net's block for every position: the k nearest 3x3 patches of a window, merged.

    A 3x3 convolution embeds the patch around each position, for query and key alike. N3Net embeds
    with three convolutions, compares patches of 10 x 10 at every fifth position, within 15 x 15
    patches (80 x 80 positions), and averages patches where they overlap. There a network gives T
    for every patch; here T is one learned number, which divides in every round, as in the paper
    (the released code divides the distances alone). The batch normalisation of distances is left
    out. A 1x1 convolution merges the k neighbours; N3Net hands them on beside the input, which is
    subtracted from them, to a network that starts with a convolution.

    Args:
        channels: channels C of input and output.
        k: neighbours, which are rounds of softmax.
        window: side of the search window, odd.
        reduction: query and key have C / reduction channels (N3Net has 8 of each).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "N3Net-k{k}"
    source: ClassVar[str] = "Neural Nearest Neighbors Networks, Plötz and Roth, NeurIPS 2018"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        k: int = 7,
        window: int = 45,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        _check(k, window)
        self.k, self.window = k, window
        self.embedding = embedding_channels(channels, reduction)
        self.match = nn.Conv2d(channels, self.embedding, 3, padding=1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(k * channels, channels, 1)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q = k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        match = self.match(x)
        return match, match, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`nearest_neighbours`, merged."""
        temperature = self.log_temperature.to(sum_dtype(v)).exp()
        found = nearest_neighbours(q, k, v, temperature, self.k, self.window)
        return self.output(found.flatten(1, 2))

    def cost(self, height: int, width: int) -> Cost:
        """Core (c + k C) MACs for each pair within reach, N (w² - 1) pairs far from the border.

        Executed: (c + 1 + k C) MACs for each pair that a tile scores, and N k C² to merge.
        """
        n, channels = height * width, self.channels
        pairs, scored = 1, 1
        for length in (height, width):
            cuts = side_cuts(length, self.window // 2)
            scored *= sum((i.stop - i.start) * (j.stop - j.start) for i, j in cuts)
            pairs *= sum(
                min(at + self.window // 2 + 1, length) - max(0, at - self.window // 2)
                for at in range(length)
            )
        values = self.k * channels
        return Cost(
            projections=n * channels * (9 * self.embedding + channels),
            core=(pairs - n) * (self.embedding + values),
            executed=scored * (self.embedding + 1 + values) + n * values * channels,
        )

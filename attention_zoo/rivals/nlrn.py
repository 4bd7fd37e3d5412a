"""Neighbourhood non-local attention of NLRN: every position attends to the square around it.

Paper: Non-Local Recurrent Network, Liu et al., NeurIPS 2018, Section 3 (embedded Gaussian).
Equation: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``, j in the w x w window centred on i.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``; scores are not scaled by 1/sqrt(c).
Numerics, see :mod:`attention_zoo.base`: error up to ``(2 u + 2 min(1, g)) max|v|``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..base import AttentionError, Cost, check_qkv, no_autocast, require_at_least, sum_dtype
from ..cores.softmax import LOG2_E, refuse_second_derivative, tile_size
from ..cores.tiles import added_up, num_workers, scratch, share_tiles, step_length
from ..implementations import outside_graphs, refuse_transforms
from ..nla import NonLocalAttention, position_scores
from ..registry import register_attention

# Side of a tile of queries: wider tiles score more useless pairs, narrower ones have slow products.
_SIDE = 10


@outside_graphs
def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, window: int = 45) -> Tensor:
    """Softmax attention of every position to the part of its window that lies in the map.

    A tile of 10 x 10 queries attends to all positions within reach of any of them; scores are -inf
    beyond a query's own reach. No neighbourhood is copied.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        window: side of the neighbourhood, odd.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled by 1/sqrt(c).

    Raises:
        AttentionError: the shapes do not fit together, or the window is even or below 1.
    """
    refuse_transforms("nlrn")
    check_qkv(q, k, v)
    reach = _reach(window)
    dtype = sum_dtype(v)
    with no_autocast(v):
        rows = (t.permute(0, 2, 3, 1).to(dtype) for t in (q, k, v))
        return _Neighbourhood.apply(*rows, reach).permute(0, 3, 1, 2).to(v.dtype)


def _reach(window: int) -> int:
    """Number of positions on either side of a window's centre."""
    require_at_least("window", window, 1)
    if window % 2 == 0:
        raise AttentionError(f"window must be odd, to have a centre, got {window}")
    return window // 2


Cut = tuple[slice, slice]


def side_cuts(length: int, reach: int) -> list[Cut]:
    """(queries, keys within reach of any of them) of each tile along one side of the map."""
    return [
        (
            slice(start, min(start + _SIDE, length)),
            slice(max(0, start - reach), min(start + _SIDE + reach, length)),
        )
        for start in range(0, length, _SIDE)
    ]


def _out_of_reach(queries: slice, keys: slice, reach: int, like: Tensor) -> Tensor:
    """-inf where query and key are further apart than ``reach``, else 0: ``[queries, keys]``."""
    rows, columns = (
        torch.arange(s.start, s.stop, device=like.device, dtype=like.dtype) for s in (queries, keys)
    )
    apart = (rows[:, None] - columns).abs_() > reach
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, -math.inf)


class _Neighbourhood(torch.autograd.Function):
    """Rows ``[B, H, W, ·]`` in the dtype of sums; the backward pass does each tile again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, reach: int) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        ctx.reach = reach
        out, lse = torch.empty_like(v), torch.empty_like(v[..., :1])

        def worker(_: int) -> Callable[[Tile], None]:
            def attend(tile: Tile) -> None:
                scores = window_scores(q, k, tile)
                top = scores.amax(-1, keepdim=True)
                weights = scores.sub_(top).exp2_()
                norm = weights.sum(-1, keepdim=True)
                means = torch.bmm(weights, take_block(v, tile.keys)).div_(norm)
                put_block(out, tile.queries, means)
                put_block(lse, tile.queries, norm.log2_().add_(top))

            return attend

        share_tiles(window_tiles(q, reach), q.device, worker)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("neighbourhood_attention")
        q, k, v, out, lse = ctx.saved_tensors
        grad = grads[0].contiguous()
        deltas = (grad * out).sum(-1, keepdim=True)
        grad_q = torch.empty_like(q)
        sums: dict[int, tuple[Tensor, Tensor]] = {}  # keys of several tiles are the same

        def worker(number: int) -> Callable[[Tile], None]:
            grad_k, grad_v = sums[number] = torch.zeros_like(k), torch.zeros_like(v)

            def attend(tile: Tile) -> None:
                queries, keys = tile.queries, tile.keys
                # Rounding of a huge score must not lift it above the sum that holds it.
                weights = (
                    window_scores(q, k, tile).sub_(take_block(lse, queries)).clamp_max_(0).exp2_()
                )
                grad_out = take_block(grad, queries)
                add_block(grad_v, keys, torch.bmm(weights.mT, grad_out))
                grad_weights = torch.bmm(grad_out, take_block(v, keys).mT)
                grad_scores = grad_weights.sub_(take_block(deltas, queries)).mul_(weights)
                put_block(grad_q, queries, torch.bmm(grad_scores, take_block(k, keys)))
                add_block(grad_k, keys, torch.bmm(grad_scores.mT, take_block(q, queries)))

            return attend

        share_tiles(window_tiles(q, ctx.reach), q.device, worker, fixed=True)
        grad_k, grad_v = added_up([sums[number] for number in sorted(sums)])
        return grad_q, grad_k, grad_v, None


#: Images, rows and columns.
Block = tuple[slice, slice, slice]


class Tile(NamedTuple):
    """What attends to what; ``far`` is of rows and of columns, see :func:`_out_of_reach`."""

    queries: Block
    keys: Block
    far: tuple[Tensor, Tensor]


def window_tiles(q: Tensor, reach: int) -> list[Tile]:
    """Tiles of all queries ``[B, H, W, c]``, each with the keys within reach of any of them."""
    batch, height, width, _ = q.shape
    down, across = (
        [(*cut, _out_of_reach(*cut, reach, q)) for cut in side_cuts(length, reach)]
        for length in (height, width)
    )
    workers = num_workers(q.device)
    tiles = []
    for rows, key_rows, far_rows in down:
        for columns, key_columns, far_columns in across:
            size = far_rows.numel() * far_columns.numel()
            group = step_length(batch, size, tile_size(q.device) // workers)
            for b in range(0, batch, group):
                images = slice(b, min(b + group, batch))
                queries, keys = (images, rows, columns), (images, key_rows, key_columns)
                tiles.append(Tile(queries, keys, (far_rows, far_columns)))
    return tiles


def window_scores(q: Tensor, k: Tensor, tile: Tile) -> Tensor:
    """``[images, queries, keys]`` in units of log 2, in memory that the thread keeps."""
    queries, keys = take_block(q, tile.queries) * LOG2_E, take_block(k, tile.keys)
    (h, key_h), (w, key_w) = (far.shape for far in tile.far)
    workspace = scratch("scores", q, len(queries), h, w, key_h, key_w)
    torch.add(tile.far[0][:, None, :, None], tile.far[1][:, None], out=workspace[0])
    workspace[1:] = workspace[:1]
    scores = workspace.view(len(queries), h * w, key_h * key_w)
    # Not in place by name: torch's counter of operations does not know that.
    return torch.baddbmm(scores, queries, keys.mT, out=scores)


def take_block(x: Tensor, block: Block) -> Tensor:
    """A block of rows ``[B, H, W, c]`` as ``[images, positions, c]``."""
    return x[block].flatten(1, 2)


def put_block(x: Tensor, block: Block, part: Tensor) -> None:
    """The reverse of :func:`take_block`, also of rows ``[B, H, W, k, c]``."""
    into = x[block]
    into.copy_(part.view(into.shape))


def add_block(x: Tensor, block: Block, part: Tensor) -> None:
    """As :func:`put_block`, added to what is there."""
    into = x[block]
    into.add_(part.view(into.shape))


@register_attention("nlrn")
class NeighbourhoodAttention(NonLocalAttention):
    """NLRN's non-local module: embedded Gaussian within a 45 x 45 neighbourhood, 1x1 embeddings.

    NLRN applies it 12 times in a row and adds the scores of each time to those of the next. Here it
    stands alone, with its own scores. NLRN's batch normalisation is left out.

    Args:
        channels: channels C of input and output.
        window: side of the neighbourhood, odd (NLRN: 45).
        reduction: query and key have C / reduction channels (2 in NLRN).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "NLRN-{window}x{window}"
    source: ClassVar[str] = (
        "Non-Local Recurrent Network, Liu et al., NeurIPS 2018, Section 3 (embedded Gaussian)"
    )
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, window: int = 45, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, reduction=reduction, res_scale=res_scale)
        self.reach = _reach(window)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`neighbourhood_attention`."""
        return neighbourhood_attention(q, k, v, 2 * self.reach + 1)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax weights ``[B, H, W]`` of the query at (row, col), zero out of its reach."""
        scores = position_scores(q, k, row, col)
        near = torch.zeros_like(scores, dtype=torch.bool)
        rows, columns = (slice(max(0, at - self.reach), at + self.reach + 1) for at in (row, col))
        near[:, rows, columns] = True
        return scores.masked_fill(~near, -math.inf).flatten(1).softmax(1).view_as(scores)

    def cost(self, height: int, width: int) -> Cost:
        """Core: (c + C) MACs for each pair within reach, N w² pairs far from the border.

        Executed: (c + C) MACs for each pair that a tile scores.
        """
        pairs, scored = 1, 1
        for length in (height, width):
            pairs *= sum(
                min(at + self.reach + 1, length) - max(0, at - self.reach) for at in range(length)
            )
            scored *= sum(
                (queries.stop - queries.start) * (keys.stop - keys.start)
                for queries, keys in side_cuts(length, self.reach)
            )
        width_of_all = self.embedding + self.channels
        return Cost(
            projections=super().cost(height, width).projections,
            core=pairs * width_of_all,
            executed=scored * width_of_all,
        )

"""Content-aware token aggregation: positions of like content attend to each other and to centres.

Paper: CATANet, Liu et al., CVPR 2025, Section 3 (CATA, IASA and IRCA).
Equation: ``y = W (sum_j softmax_j(q_i·k_j / sqrt(d)) v_j + sum_m softmax_m(q_i·a_m / sqrt(d))
u_m)``. Positions are sorted by the centre t_m that is nearest to them, by cosine, and cut in
groups; j runs over i's group and the next one. a_m and u_m are linear maps of t_m; W joins the
heads of d channels.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, t ``[M, 2 c]``, a ``[M, c]``, u ``[M, C]``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    embedding_channels,
    is_repeated,
    no_autocast,
    require_at_least,
    split_heads,
    sum_dtype,
    to_map,
    to_rows,
)
from ..cores.softmax_rows import softmax_attention_lse
from ..implementations import outside_graphs, refuse_transforms
from ..layers import call_in_dtype, call_together
from ..nlsa import normalise_keys
from ..registry import register_attention


def nearest_centres(features: Tensor, centres: Tensor) -> Tensor:
    """The centre of the largest cosine, the first of equal ones; no gradient flows through it.

    Args:
        features: ``[B, N, d]``.
        centres: ``[M, d]``, of the same dtype.

    Returns:
        Their numbers, ``[B, N]``.
    """
    with torch.no_grad(), no_autocast(features):
        # The length of a feature does not change the order of its cosines.
        return torch.matmul(normalise_keys(centres), features.mT).argmax(1)


def moved_centres(directions: Tensor, centres: Tensor, empty: Tensor) -> Tensor:
    """One step of spherical k-means: each centre becomes the mean direction of its features.

    The gradient flows through the mean.

    Args:
        directions: features of length 1, ``[B, N, d]``; all images share the centres.
        centres: ``[M, d]``, of the same dtype.
        empty: ``[M, d]``, for centres without features.
    """
    clusters = nearest_centres(directions, centres).flatten()
    with no_autocast(directions):
        # A product, not an addition by index, whose order is open on a GPU.
        member = torch.arange(len(centres), device=clusters.device)[:, None] == clusters
        sums = torch.mm(member.to(directions.dtype), directions.flatten(0, 1))
        return torch.where(member.any(1, keepdim=True), normalise_keys(sums), empty)


@outside_graphs
def group_attention(
    q: Tensor, k: Tensor, v: Tensor, clusters: Tensor, heads: int, size: int = 128
) -> Tensor:
    """Intra-group multi-head self-attention: sorted positions attend to their group and the next.

    Positions are sorted by cluster and cut in groups of S. The sort is stable; the released one
    leaves the order within a cluster open. Beyond its end the sorted list is read backwards, as in
    the released code, so that the last group has keys of a next one too. A map with fewer positions
    than S is one group.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        clusters: ``[B, N]``, whole numbers.
        heads: attention heads.
        size: positions S of a group.

    Returns:
        ``[B, c_out, H, W]``. Scores are divided by the root of a head's channels.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    refuse_transforms("token-cluster")
    check_qkv(q, k, v)
    check_heads(heads, q.shape[1], v.shape[1])
    require_at_least("size", size, 1)
    batch, n = v.shape[0], int(v.shape[2]) * int(v.shape[3])  # a trace knows this size alone
    if clusters.shape != (batch, n):
        raise AttentionError(f"clusters must be [{batch}, {n}], got {list(clusters.shape)}")
    size = min(size, n)
    order = torch.sort(clusters, dim=-1, stable=True).indices
    back = order.argsort(-1)
    groups, rest = divmod(n, size)
    whole, extended = groups * size, (groups + 1 + (rest > 0)) * size
    q_rows, k_rows, v_rows = (
        _Sorted.apply(to_rows(t).contiguous(), order, back, stop).unflatten(2, (heads, -1))
        for t, stop in ((q, n), (k, extended), (v, extended))
    )
    q_rows = q_rows.to(sum_dtype(v)) / math.sqrt(q_rows.shape[3])
    seen = (t[:, : whole + size].unfold(1, 2 * size, size).movedim(4, 2) for t in (k_rows, v_rows))
    parts = [_attend(q_rows[:, :whole].unflatten(1, (-1, size)), *seen)]
    if rest:
        seen = (t[:, None, whole : whole + 2 * size] for t in (k_rows, v_rows))
        parts.append(_attend(q_rows[:, None, whole:], *seen))
    return to_map(_Sorted.apply(torch.cat(parts, dim=1), back, order, n), like=v)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Groups ``[B, G, positions, heads, ·]`` to ``[B, positions of all groups, c_out]``."""
    rows = (t.transpose(2, 3).flatten(0, 2) for t in (q, k, v))
    out, _ = softmax_attention_lse(*rows)
    out = out.unflatten(0, (q.shape[0], q.shape[1], -1))  # [B, G, heads, positions, ·]
    return out.transpose(2, 3).flatten(3).flatten(1, 2)


class _Sorted(torch.autograd.Function):
    """Rows ``[B, N, c]`` in another order ``[B, N]``, which ``back`` undoes: ``[B, stop, c]``.

    Beyond their end they are read backwards: ranks n − 1, n − 2, …, 0, 0, 1, …
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor, stop: int) -> Tensor:
        ctx.save_for_backward(back)
        images = torch.arange(len(rows), device=rows.device).unsqueeze(1)
        places = images * rows.shape[1] + order
        while places.shape[1] < stop:
            missing = stop - places.shape[1]
            places = torch.cat([places, places.flip(1)[:, :missing]], dim=1)
        taken = rows.flatten(0, 1).index_select(0, places.flatten())
        return taken.view(len(rows), stop, rows.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        n = back.shape[1]
        whole, *mirrored = grads[0].split(n, dim=1)
        if mirrored:
            whole = whole.clone()
        for turn, part in enumerate(mirrored):
            ranks = slice(0, part.shape[1]) if turn % 2 else slice(n - part.shape[1], n)
            whole[:, ranks] += part if turn % 2 else part.flip(1)
        return _Sorted.apply(whole.contiguous(), back, back, n), None, None, None


def centre_attention(q: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Inter-group cross-attention: ``sum_m softmax_m(q_i·a_m / sqrt(d)) u_m`` in each head.

    Args:
        q: queries ``[B, c, H, W]``.
        keys: keys a of the centres ``[M, c]``, float32 or float64 like the values.
        values: values u of the centres ``[M, c_out]``.
        heads: attention heads.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of the values.
    """
    with no_autocast(q):
        queries = split_heads(q, heads).flatten(3).to(keys.dtype)  # [B, heads, d, N]
        keys, values = (t.unflatten(1, (heads, -1)).permute(1, 0, 2) for t in (keys, values))
        weights = torch.matmul(keys / math.sqrt(keys.shape[2]), queries).softmax(2)
        return torch.matmul(values.mT, weights).flatten(1, 2).unflatten(2, q.shape[2:])


@register_attention("token-cluster")
class TokenClusterAttention(Attention):
    """IASA and IRCA added up, as in CATANet's token-aggregation block: a learned NLSA.

    Positions are assigned to centres by their query and key together, which stand for the block's
    input. In training, ``iterations`` steps of k-means over the batch make the centres; gradients
    flow through the last. Their moving average, a buffer, serves in evaluation, which changes
    nothing. In CATANet k-means starts at that average. Here it starts at the average of the last
    epoch (:meth:`redraw`), because a forward must not change what the next one computes; a centre
    that ends without positions returns there. In the first epoch it starts at fixed random
    directions around the mean of the batch; CATANet takes means over runs of positions then. Over
    several processes each averages its own images.

    The block's other parts, LayerNorm, feed-forward network and attention within overlapping
    patches, are left out. Its two maps after the attention are one 1x1 convolution.

    Args:
        channels: channels C of input and output.
        centres: centres M (16 to 128 in the paper's layers).
        group_size: positions S of a group (256 to 32 in the paper's layers, 128 with 32 centres).
        heads: attention heads.
        iterations: steps of k-means in a training forward.
        decay: of the moving average of the centres.
        reduction: query and key have C / reduction channels (1.1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "CATANet-g{group_size}"
    source: ClassVar[str] = "CATANet, Liu et al., CVPR 2025, Section 3"
    complexity: ClassVar[str] = "O(N)"

    start: Tensor
    started: Tensor
    average: Tensor
    averaged: Tensor

    def __init__(
        self,
        channels: int,
        *,
        centres: int = 32,
        group_size: int = 128,
        heads: int = 4,
        iterations: int = 5,
        decay: float = 0.999,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("centres", centres, 1)
        require_at_least("group_size", group_size, 1)
        require_at_least("iterations", iterations, 1)
        if not 0 <= decay <= 1:
            raise AttentionError(f"decay must be between 0 and 1, got {decay!r}")
        self.group_size, self.heads = group_size, heads
        self.iterations, self.decay = iterations, decay
        self.embedding = embedding_channels(channels, reduction)
        check_heads(heads, self.embedding, channels)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.centre_key = nn.Linear(2 * self.embedding, self.embedding)
        self.centre_value = nn.Linear(2 * self.embedding, channels)
        #: Where k-means starts: centres if ``started``, else directions around a batch's mean.
        self.register_buffer("start", normalise_keys(torch.randn(centres, 2 * self.embedding)))
        self.register_buffer("started", torch.tensor(False))
        #: The centres of evaluation; ``averaged`` after the first training forward.
        self.register_buffer("average", self.start.clone())
        self.register_buffer("averaged", torch.tensor(False))

    def redraw(self) -> None:
        """Let k-means start at the averages from now on; without a forward before, nothing."""
        self.start.copy_(torch.where(self.averaged, self.average, self.start))
        self.started.copy_(self.averaged)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`group_attention` plus :func:`centre_attention`, with their heads joined."""
        check_qkv(q, k, v)
        clusters, keys, values = self._assign(q, k, sum_dtype(v))
        out = group_attention(q, k, v, clusters, self.heads, self.group_size)
        return self.output(out + centre_attention(q, keys, values, self.heads).to(v.dtype))

    @outside_graphs
    def _assign(self, q: Tensor, k: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Clusters ``[B, N]``, keys ``[M, c]`` and values ``[M, C]`` of the centres."""
        refuse_transforms("token-cluster")
        features = to_rows(torch.cat([q, k], dim=1).to(dtype))
        centres = self.fit(features) if self.training else self.average.to(dtype)
        with no_autocast(q):
            keys, values = (call_in_dtype(f, centres) for f in (self.centre_key, self.centre_value))
        return nearest_centres(features, centres.detach()), keys, values

    def fit(self, features: Tensor) -> Tensor:
        """The centres ``[M, 2 c]`` of a batch ``[B, N, 2 c]``, which join the moving average."""
        directions = normalise_keys(features)
        with torch.no_grad():
            mean = directions.mean((0, 1))
            spread = (directions - mean).square().sum(2).mean().sqrt()
            start = self.start.to(features.dtype)
            centres = torch.where(self.started, start, normalise_keys(mean + spread * start))
            for _ in range(self.iterations - 1):
                centres = moved_centres(directions, centres, centres)
        # Of the last step's centres none may depend on the batch without a gradient.
        centres = moved_centres(directions, centres, start)
        if not is_repeated():
            with torch.no_grad():
                moved = torch.lerp(centres.to(self.average), self.average, self.decay)
                self.average.copy_(torch.where(self.averaged, moved, centres.to(self.average)))
                self.averaged.fill_(True)
        return centres

    def cost(self, height: int, width: int) -> Cost:
        """Core N (2 S (c + C) + M (3 c + C)) MACs: groups, centres, and cosines with the centres.

        Executed: S at most N, plus the centres' maps and N C². K-means in training is not counted.
        """
        n, c, channels = height * width, self.embedding, self.channels
        centres = len(self.average)
        of_centres = n * centres * (3 * c + channels)
        return Cost(
            projections=n * channels * (2 * c + channels),
            core=n * 2 * self.group_size * (c + channels) + of_centres,
            executed=n * 2 * min(n, self.group_size) * (c + channels)
            + of_centres
            + centres * 2 * c * (c + channels)
            + n * channels**2,
        )

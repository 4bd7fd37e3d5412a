"""Non-Local Sparse Attention: attention within buckets of spherical locality-sensitive hashing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    require_at_least,
    to_map,
    to_rows,
)
from .registry import register_attention
from .softmax import merge, no_autocast, softmax_attention_lse

#: Keys are divided by their norm, but by no less than this.
MIN_NORM = 5e-5


def num_buckets(n: int, chunk_size: int) -> int:
    """Hash buckets for n positions: n // S, made even, between 2 and 128."""
    return max(2, min(n // chunk_size + (n // chunk_size) % 2, 128))


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """Spherical LSH: the arg-max of [xR, −xR] for each round, in float32 at least.

    Args:
        x: embeddings ``[B, N, c]``.
        rotations: random rotations ``[r, c, nb / 2]``.

    Returns:
        Bucket codes ``[B, r, N]`` in 0 … nb − 1; no gradient flows through them.
    """
    r, c, half = rotations.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    flat = rotations.to(dtype).permute(1, 0, 2).reshape(c, r * half)
    with no_autocast(x):
        rotated = torch.matmul(x.detach().to(dtype), flat)
    rotated = rotated.unflatten(-1, (r, half)).transpose(1, 2)
    return torch.cat([rotated, -rotated], dim=-1).argmax(-1)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int = 144
) -> Tensor:
    """Non-Local Sparse Attention (Mei, Fan, Zhou, CVPR 2021).

    Per round, positions are sorted by hash code (stable) and cut into chunks of S; each chunk
    attends to itself and its two neighbours, circularly. A last incomplete chunk is filled with
    the last sorted entries repeated. Rounds are merged by their log-sum-exps.

    Args:
        q: queries ``[B, c, H, W]``; they are hashed as well.
        k: keys ``[B, c, H, W]``, divided here by max(norm, 5e-5).
        v: values ``[B, c_out, H, W]``.
        rotations: one random rotation per round, ``[r, c, nb / 2]``.
        chunk_size: S.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.

    Numerics: error up to ``(6 u + 2 min(1, g)) max|v|`` for the same buckets, see
    :mod:`.softmax`; S is the largest norm of a query.
    """
    check_qkv(q, k, v)
    if rotations.dim() != 3 or rotations.shape[1] != q.shape[1]:
        raise AttentionError(
            f"rotations must be [rounds, {q.shape[1]}, buckets / 2], got {list(rotations.shape)}"
        )
    queries, values = to_rows(q), to_rows(v)
    keys = normalise_keys(to_rows(k))
    order = torch.sort(hash_codes(queries, rotations), dim=-1, stable=True).indices
    outputs, lses = [], []
    for r in range(rotations.shape[0]):  # one round at a time bounds the memory
        out, lse = _attend_chunks(queries, keys, values, order[:, r], chunk_size)
        outputs.append(out)
        lses.append(lse)
    return to_map(merge(outputs, lses), like=v)


def normalise_keys(k: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` divided by max(norm, 5e-5), float32 at least: a half's norm overflows."""
    k = k.to(torch.promote_types(k.dtype, torch.float32))
    return k / torch.linalg.vector_norm(k, dim=-1, keepdim=True).clamp_min(MIN_NORM)


def padded_order(order: Tensor, chunk_size: int) -> Tensor:
    """Sorted positions ``[B, N]``, filled up to whole chunks with the last ones repeated."""
    n = order.shape[1]
    padding = -n % chunk_size
    slots = torch.arange(n + padding, device=order.device)
    slots[n:] = (slots[n:] - padding) % n
    return order[:, slots]


def _attend_chunks(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """One hash round over rows ``[B, N, ·]``: (output ``[B, N, c_out]``, lse ``[B, N]``)."""
    batch, n, _ = q.shape
    positions = padded_order(order, chunk_size)
    chunks = positions.shape[1] // chunk_size
    # One chunk more on either side closes the circle; each chunk then sees a window of three.
    around = torch.cat([positions[:, -chunk_size:], positions, positions[:, :chunk_size]], dim=1)

    def windows(rows: Tensor) -> Tensor:
        sorted_rows = _take(rows, around)
        return sorted_rows.unfold(1, 3 * chunk_size, chunk_size).mT.flatten(0, 1)

    queries = _take(q, positions).unflatten(1, (chunks, chunk_size)).flatten(0, 1)
    out, lse = softmax_attention_lse(queries, windows(k), windows(v))
    out = out.view(batch, chunks * chunk_size, -1)[:, :n]
    lse = lse.view(batch, chunks * chunk_size)[:, :n]
    back = torch.empty_like(order).scatter_(
        1, order, torch.arange(n, device=order.device).expand(batch, n)
    )
    return _take(out, back), lse.gather(1, back)


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` at positions ``[B, M]``: ``[B, M, c]``."""
    return rows.gather(1, positions.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


@register_attention("nlsa")
class NonLocalSparseAttention(Attention):
    """NLSA: one 3x3 embedding serves query and key, a 1x1 convolution makes the value.

    Rotations are drawn per forward in training, from torch's global generator; in evaluation they
    come from a generator seeded with ``evaluation_seed``, so a number can be reproduced.

    Args:
        channels: channels C of input and output.
        rounds: hash rounds r.
        chunk_size: S.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "NLSA-r{rounds}"
    source: ClassVar[str] = "Image Super-Resolution with Non-Local Sparse Attention, CVPR 2021"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        rounds: int = 4,
        chunk_size: int = 144,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("rounds", rounds, 1)
        require_at_least("chunk_size", chunk_size, 1)
        self.rounds, self.chunk_size = rounds, chunk_size
        self.embedding = embedding_channels(channels, reduction)
        self.evaluation_seed = 0
        self.match = nn.Conv2d(channels, self.embedding, 3, padding=1)
        self.value = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q = k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        match = self.match(x)
        return match, match, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`sparse_attention` with fresh (training) or seeded (evaluation) rotations."""
        check_qkv(q, k, v)
        return sparse_attention(q, k, v, self.rotations(q), self.chunk_size)

    def rotations(self, q: Tensor) -> Tensor:
        """Rotations ``[r, c, nb / 2]`` for queries ``[B, c, H, W]``."""
        half = num_buckets(q.shape[2] * q.shape[3], self.chunk_size) // 2
        shape = (self.rounds, q.shape[1], half)
        if self.training:
            return torch.randn(shape, device=q.device)
        generator = torch.Generator().manual_seed(self.evaluation_seed)
        return torch.randn(shape, generator=generator).to(q.device)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]``, zero outside the chunks that the query's hashes select."""
        height, width = q.shape[2:]
        position = row * width + col
        queries, keys = to_rows(q), normalise_keys(to_rows(k))
        order = torch.sort(hash_codes(queries, self.rotations(q)), dim=-1, stable=True).indices
        with no_autocast(q):
            scores = torch.einsum("bc,bnc->bn", queries[:, position].to(keys.dtype), keys)
        weights = torch.zeros_like(scores)
        top = scores.amax(1, keepdim=True)
        for r in range(self.rounds):
            positions = padded_order(order[:, r], self.chunk_size)
            chunks = positions.shape[1] // self.chunk_size
            rank = (order[:, r] == position).int().argmax(1)
            neighbours = rank.unsqueeze(1) // self.chunk_size + torch.arange(-1, 2, device=q.device)
            seen = positions.unflatten(1, (chunks, self.chunk_size))
            seen = torch.stack(
                [s[i % chunks].flatten() for s, i in zip(seen, neighbours, strict=True)]
            )
            # exp(lse_r) · softmax_r = exp(score): rounds add up, then one normalisation.
            weights.scatter_add_(1, seen, (scores.gather(1, seen) - top).exp())
        return (weights / weights.sum(1, keepdim=True)).view(-1, height, width)

    def cost(self, height: int, width: int) -> Cost:
        """Core r N (3 S (c + c_out) + 128 c) MACs; executed: padded chunks, nb / 2 columns."""
        n, c, c_out = height * width, self.embedding, self.channels
        window = 3 * self.chunk_size * (c + c_out)
        padded = n + -n % self.chunk_size
        columns = num_buckets(n, self.chunk_size) // 2
        return Cost(
            projections=n * self.channels * (9 * c + c_out),
            core=self.rounds * n * (window + 128 * c),
            executed=self.rounds * (padded * window + n * c * columns),
        )

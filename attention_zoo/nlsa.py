"""Non-Local Sparse Attention: hash, sort, chunk, attend, merge; O(N) time for chunks of S.

Each hash round sorts the positions by their bucket of spherical locality-sensitive hashing and
splits them into chunks of S; a chunk attends to itself and its two neighbours.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    to_rows,
)
from .implementations import outside_graphs, run
from .registry import register_attention

#: Keys are divided by their norm, but by at least this.
MIN_NORM = 5e-5


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int = 144
) -> Tensor:
    """Non-Local Sparse Attention (Mei, Fan, Zhou, CVPR 2021), in five steps.

    1. Hash: ``code_i = argmax [q_i R, −q_i R]`` in each round, with a random rotation R.
    2. Sort the positions by code; the sort is stable, so the result is defined.
    3. Chunk: split the sorted positions into chunks of S. The last sorted positions, repeated, fill
       up the last chunk.
    4. Attend: ``y_i = sum_j exp(q_i·k_j / |k_j|) v_j / sum_j exp(q_i·k_j / |k_j|)``, j in the chunk
       of i and in the two chunks beside it, circularly.
    5. Merge: the mean over the rounds, weighted with the softmax of their log-sum-exps.

    Args:
        q: queries ``[B, c, H, W]``, which are also hashed.
        k: keys ``[B, c, H, W]``, whose norm counts as at least 5e-5.
        v: values ``[B, c_out, H, W]``.
        rotations: one random rotation per round, ``[r, c, nb / 2]`` for nb buckets.
        chunk_size: S.

    Returns:
        ``[B, c_out, H, W]``. No gradient flows through the hashing.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``triton`` (its backward pass is tiled), ``tiled``, ``reference``,
    ``released`` (not where it cannot fill up a chunk). ``auto`` is native on the CPU where it can
    run (not in float64, nor without a C compiler), else tiled.

    Numerics: error up to ``(6 u + 2 min(1, g)) max|v|`` for the same buckets, see :mod:`.base`;
    S is the largest norm of a query.
    """
    check_qkv(q, k, v)
    if rotations.dim() != 3 or rotations.shape[1] != q.shape[1]:
        raise AttentionError(
            f"rotations must be [rounds, {q.shape[1]}, buckets / 2], got {list(rotations.shape)}"
        )
    return run("nlsa", q, k, v, rotations, chunk_size)


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
    dtype = torch.promote_types(x.dtype, torch.float32)
    with no_autocast(x):
        x = x.detach().to(dtype).unsqueeze(1)  # [B, 1, N, c]
        rotated = torch.matmul(x, rotations.to(dtype))  # [B, r, N, nb / 2]
        return torch.cat([rotated, -rotated], dim=-1).argmax(-1)


def sort_positions(x: Tensor, rotations: Tensor) -> Tensor:
    """Positions ``[B, r, N]`` of embeddings ``[B, N, c]`` in stable order of their hash codes."""
    return hash_codes(x, rotations).sort(dim=-1, stable=True).indices


def normalise_keys(k: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` over max(norm, 5e-5), in float32 at least: norms overflow in float16."""
    # Norms of rows that are not contiguous take ten times as long on the CPU.
    k = k.to(torch.promote_types(k.dtype, torch.float32)).contiguous()
    return k / torch.linalg.vector_norm(k, dim=-1, keepdim=True).clamp_min(MIN_NORM)


def padded_order(order: Tensor, chunk_size: int) -> Tensor:
    """Sorted positions ``[B, N]``, filled up to whole chunks with the last positions repeated."""
    n = order.shape[1]
    padding = -n % chunk_size
    slots = torch.arange(n + padding, device=order.device)
    slots[n:] = (slots[n:] - padding) % n
    return order[:, slots]


@register_attention("nlsa")
class NonLocalSparseAttention(Attention):
    """NLSA: one 3x3 embedding serves as query and key, a 1x1 convolution makes the value.

    Each training forward draws rotations from torch's global generator. In evaluation they come
    from a generator seeded with ``evaluation_seed``, so results can be reproduced.

    Args:
        channels: channels C of input and output.
        rounds: hash rounds r.
        chunk_size: positions S in a chunk of the sorted map, which attends to itself and both
            neighbours.
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

    @outside_graphs  # compilers draw other random numbers, and know no generator
    def rotations(self, q: Tensor) -> Tensor:
        """Rotations ``[r, c, nb / 2]`` for queries ``[B, c, H, W]``."""
        half = num_buckets(q.shape[2] * q.shape[3], self.chunk_size) // 2
        shape = (self.rounds, q.shape[1], half)
        if self.training:
            if torch.jit.is_tracing():
                raise AttentionError(
                    "nlsa draws rotations anew in each training forward, which a trace cannot: "
                    "call .eval() before torch.jit.trace"
                )
            return torch.randn(shape, device=q.device, dtype=torch.float32)
        if q.device.type == "cuda":
            return _rotations_on(q.device, self.evaluation_seed, shape)
        return _evaluation_rotations(self.evaluation_seed, shape).to(q.device)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]``, zero outside the chunks that the query's hashes select."""
        height, width = q.shape[2:]
        position = row * width + col
        queries, keys = to_rows(q), normalise_keys(to_rows(k))
        order = sort_positions(queries, self.rotations(q))
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


def _seeded_rotations(seed: int, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # Whatever torch's default dtype and device are.
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _evaluation_rotations(seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Constants: ``torch.jit.trace`` would record the draw, without its generator.

    It sees what its own thread does.
    """
    if not torch.jit.is_tracing():
        return _seeded_rotations(seed, shape)
    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(_seeded_rotations, seed, shape).result()


@lru_cache(maxsize=64)
def _rotations_on(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Kept on the device: a copy from the host would wait for it, and break a CUDA graph."""
    with torch.inference_mode(False):  # they may be used in and out of that mode
        return _evaluation_rotations(seed, shape).to(device)

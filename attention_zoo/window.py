"""Window attention of Swin and SwinIR: every position attends to the square window it lies in."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    embedding_channels,
    require_at_least,
    split_heads,
)
from .registry import register_attention
from .softmax import no_autocast, refuse_second_derivative, sum_dtype, tile_size
from .tiles import even_step


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shift: int = 0) -> Tensor:
    """Multi-head self-attention within windows of M x M positions, Eq. 4 of the Swin paper.

    Within a window and a head of d channels: ``softmax(Q K^T / sqrt(d) + bias) V``. Windows begin
    at rows and columns shift, shift + M, …; what the border cuts off a window is a window by
    itself. That is what the paper's cyclic shift computes, whose masks keep apart what was not
    adjacent, and it needs neither masks nor padding.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        bias: for each head and each offset (query − key + M − 1) of rows and of columns,
            ``[heads, 2M − 1, 2M − 1]``.
        shift: displacement of the windows, 0 … M − 1.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or the shift is not of that range.
    """
    check_qkv(q, k, v)
    if bias.dim() != 3 or bias.shape[1] != bias.shape[2] or bias.shape[1] % 2 == 0:
        raise AttentionError(f"bias must be [heads, 2M - 1, 2M - 1], got {list(bias.shape)}")
    heads, window = len(bias), (bias.shape[1] + 1) // 2
    check_heads(heads, q.shape[1], v.shape[1])
    if not 0 <= shift < window:
        raise AttentionError(f"shift must be 0 … {window - 1} for windows of {window}, got {shift}")
    # By query and key, [heads, M, M, M, M]: offsets grow with the query and shrink with the key.
    pairs = bias.to(sum_dtype(v)).flip(1, 2).unfold(1, window, 1).unfold(2, window, 1).flip(1, 2)
    down, across = (_cuts(length, window, shift) for length in v.shape[2:])
    strips = []
    for (_, h), *rows in zip(down, *(_split(t, down, 2) for t in (q, k, v)), strict=True):
        parts = zip(across, *(_split(t, across, 3) for t in rows), strict=True)
        strips.append([_attend_alike(pairs[:, :h, :w, :h, :w], *qkv) for (_, w), *qkv in parts])
    return torch.cat([torch.cat(strip, dim=3) for strip in strips], dim=2)


def _cuts(length: int, window: int, shift: int) -> list[tuple[int, int]]:
    """(positions, length of a window) of each run of windows that are of one length."""
    first = min(shift, length)
    last = (length - first) % window
    cuts = [(first, first), (length - first - last, window), (last, last)]
    return [(positions, size) for positions, size in cuts if positions]


def _split(x: Tensor, cuts: list[tuple[int, int]], dim: int) -> tuple[Tensor, ...]:
    return x.split([positions for positions, _ in cuts], dim)


def _attend_alike(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bias ``[heads, h, w, h, w]``; maps that windows of h x w fill."""
    heads, (h, w) = len(bias), bias.shape[1:3]
    # Positions come last, as in the maps: the copy keeps their order.
    windows = (
        split_heads(t, heads)
        .unflatten(4, (-1, w))
        .unflatten(3, (-1, h))
        .permute(0, 3, 5, 1, 2, 4, 6)
        .reshape(-1, heads, t.shape[1] // heads, h * w)
        for t in (q, k, v)
    )
    with no_autocast(v):
        out = _Windows.apply(*windows, bias.reshape(heads, h * w, h * w))
    down, across = v.shape[2] // h, v.shape[3] // w
    out = out.view(-1, down, across, heads, v.shape[1] // heads, h, w)
    return out.permute(0, 3, 4, 1, 5, 2, 6).reshape(v.shape)


class _Windows(torch.autograd.Function):
    """:func:`_attend_windows`, a few windows at a time; the backward pass does each tile again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        out = torch.empty_like(v)
        for i in _tiles(q):
            out[i] = _attend_windows(q[i], k[i], v[i], bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("window_attention")
        *qkv, bias = ctx.saved_tensors
        grad = grads[0].contiguous()  # else torch multiplies window by window
        found = [torch.empty_like(t) for t in qkv]
        by_bias = torch.zeros_like(bias)
        for i in _tiles(qkv[0]):
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in (*(t[i] for t in qkv), bias)]
                out = _attend_windows(*leaves)
            *parts, part = torch.autograd.grad(out, leaves, grad[i])
            for whole, one in zip(found, parts, strict=True):
                whole[i] = one
            by_bias += part
        return *found, by_bias


def _attend_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Windows ``[W, heads, d, L]``, bias ``[heads, L, L]`` in the dtype of the sums."""
    queries, keys, values = (t.to(bias.dtype) for t in (q, k, v))
    scores = torch.matmul(queries.mT / math.sqrt(q.shape[2]), keys).add_(bias)
    return torch.matmul(values, scores.softmax(-1).mT).to(v.dtype)


def _tiles(q: Tensor) -> list[slice]:
    count, heads, _, positions = q.shape
    step = even_step(count, heads * positions**2, tile_size(q.device, buffers=2))
    return [slice(i, i + step) for i in range(0, count, step)]


@register_attention("window")
class WindowAttention(Attention):
    """W-MSA of Swin and SwinIR with 1x1 embeddings: windows side by side, relative position bias.

    The papers' LayerNorm and MLP are left out. Their transformers alternate this module with the
    shifted one; in the network all modules are of one kind.

    Args:
        channels: channels C of input and output.
        window: side M of a window.
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in the papers).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Window-w{window}"
    source: ClassVar[str] = (
        "Swin Transformer, Liu et al., ICCV 2021, Eq. 4; SwinIR, Liang et al., ICCVW 2021"
    )
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        window: int = 8,
        heads: int = 4,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("window", window, 1)
        self.window = window
        self.embedding = embedding_channels(channels, reduction)
        check_heads(heads, self.embedding, channels)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.bias = nn.Parameter(torch.empty(heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)

    @property
    def shift(self) -> int:
        """Rows and columns by which the windows are displaced."""
        return 0

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`window_attention` and the 1x1 convolution that joins the heads.

        Numerics: error up to ``(3 u + 2 min(1, g)) (max|v| max_o sum|weight| + max|bias|)``, see
        :mod:`.softmax`, weight and bias being the convolution's; S is the largest norm of query
        times norm of key over sqrt(d), plus the largest relative position bias.
        """
        return self.output(window_attention(q, k, v, self.bias, self.shift))

    def cost(self, height: int, width: int) -> Cost:
        """Core N M² (c + C) MACs; executed: windows as the border cuts them, and N C² to join."""
        n, c = height * width, self.embedding + self.channels
        pairs = math.prod(
            sum(positions * size for positions, size in _cuts(length, self.window, self.shift))
            for length in (height, width)
        )
        return Cost(
            projections=n * self.channels * (2 * self.embedding + self.channels),
            core=n * self.window**2 * c,
            executed=pairs * c + n * self.channels**2,
        )


@register_attention("shifted-window")
class ShiftedWindowAttention(WindowAttention):
    """SW-MSA of Swin and SwinIR: as ``window``, the windows displaced by half of their side.

    Args:
        channels: channels C of input and output.
        window: side M of a window; the displacement is M // 2.
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in the papers).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Shifted window-w{window}"

    @property
    def shift(self) -> int:
        """M // 2."""
        return self.window // 2

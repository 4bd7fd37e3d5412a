"""Non-Local Attention: every position attends to every position, O(N²) time in O(N) memory."""

from __future__ import annotations

from functools import partial
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
    to_map,
    to_rows,
    weighted_sum,
)
from .implementations import run
from .layers import add_embeddings, embed
from .nlsa import normalise_keys
from .registry import register_attention

#: Up to this width the fused CPU kernel gets queries, keys and values of one width, see
#: :mod:`.cores.nla`.
FUSED_WIDTH = 32


def non_local_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 1 of the ENLCA paper: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled by 1/sqrt(c).

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``sdpa``, ``tiled``, ``reference``, ``released``. ``auto`` is
    native on the CPU where it can run (not in float64, nor without a C compiler); else sdpa where
    it can run and is faster; else tiled (on the CPU: c and c_out differ and exceed 32; on CUDA:
    float64).

    Numerics: error up to ``(2 u + 2 min(1, g)) max|v|``, see :mod:`.base`. On processors with
    units for bfloat16 products, values below 2^-126 count as zero in bfloat16. Off the CPU
    gradients are those of torch's fused kernels, finite for scores up to 2^24.
    """
    check_qkv(q, k, v)
    return run("nla", q, k, v)


@register_attention("nla")
class NonLocalAttention(Attention):
    """Non-Local Attention with 1x1 embeddings, Eq. 1–2 of the ENLCA paper.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        released: the form in the released NLSN code: PReLU after each projection, and the scale
            on the input, ``y = attention + res_scale · x``.
        shared: the embeddings of NLSA: one 3x3 convolution serves as query and key, and keys are
            divided by their norm. The module is then what NLSA computes within its chunks.

    Raises:
        AttentionError: ``shared`` and ``released`` together, or an option is out of range.
    """

    label_format: ClassVar[str] = "NLA"
    source: ClassVar[str] = "Non-local Neural Networks, Wang et al., CVPR 2018; ENLCA, Eq. 1–2"
    complexity: ClassVar[str] = "O(N²)"
    later_options: ClassVar[frozenset[str]] = frozenset({"shared"})
    shared: bool = False  # also of a subclass whose own ``__init__`` makes the projections

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        res_scale: float = 0.1,
        released: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        if shared and released:
            raise AttentionError("shared and released exclude each other: give one of them")
        self.embedding = embedding_channels(channels, reduction)
        self.released = released
        add_embeddings(self, self.embedding, shared, partial(_projection, activation=released))
        self.value = _projection(channels, channels, released)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        q, k, v = embed(self, x, self.value)
        if self.shared:
            k = to_map(normalise_keys(to_rows(k)), k).to(k.dtype)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`non_local_attention`."""
        return non_local_attention(q, k, v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``x + res_scale · y``, or the released ``y + res_scale · x``."""
        first, second = (y, x) if self.released else (x, y)
        return weighted_sum(first, second, self.res_scale)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax weights ``[B, H, W]`` of the query at (row, col)."""
        return softmax_weights(q, k, row, col)

    def cost(self, height: int, width: int) -> Cost:
        """Core N² (c + c_out) MACs; projections N C (2c + C), shared N C (9c + C)."""
        n, c = height * width, self.embedding
        return Cost(
            projections=n * self.channels * ((9 if self.shared else 2) * c + self.channels),
            core=n**2 * (c + self.channels),
            executed=softmax_macs(n, n, c, self.channels),
        )


def softmax_macs(n: int, m: int, c: int, c_out: int) -> int:
    """MACs that torch's operations execute for n queries and m keys of one image.

    The fused kernel fills up narrow queries, keys and values to one width.
    """
    if max(c, c_out) <= FUSED_WIDTH:
        c = c_out = max(c, c_out)
    return n * m * (c + c_out)


def softmax_weights(q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
    """Exact softmax weights of one query over all positions.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        row, col: position of the query.

    Returns:
        ``[B, H, W]``; each map sums to 1.
    """
    scores = position_scores(q, k, row, col)
    return scores.flatten(1).softmax(1).view_as(scores)


def position_scores(q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
    """Scores ``[B, H, W]`` of one query with all keys, in float32 at least: float16 overflows."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with no_autocast(q):
        return torch.einsum("bc,bchw->bhw", q[:, :, row, col].to(dtype), k.to(dtype))


def _projection(channels: int, out_channels: int, activation: bool) -> nn.Module:
    conv = nn.Conv2d(channels, out_channels, 1)
    return nn.Sequential(conv, nn.PReLU()) if activation else conv

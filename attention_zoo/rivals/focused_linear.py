"""Focused linear attention (FLatten Transformer): powers of features in place of softmax.

Paper: FLatten Transformer, Han et al., ICCV 2023, Section 4.
Equation: ``y_i = phi(q_i) sum_j phi(k_j)ᵀ v_j / sum_j phi(q_i)·phi(k_j) + D(v)_i`` with ``phi(x) =
|x| / |x^p| · x^p`` after a ReLU, p = 3; D is a depthwise 5x5 convolution.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(3 u + 2 min(1, g)) (max|v| (1 + max_o
sum|weight|) + max|bias|)``, with the weight and bias of D. In g, c + N stands in place of c, and
S = p + 1 for any features: all terms of a sum have one sign, and there is no exp.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..registry import register_attention

#: What ReLU leaves counts as this at least; the released code adds it.
LEAST = 1e-6
#: Powers of features, the largest of a position being 1, are at least this: 1e-6 to the third.
LEAST_POWER = 1e-18


def focused_linear_attention(q: Tensor, k: Tensor, v: Tensor, focus: float = 3.0) -> Tensor:
    """``phi(Q) (phi(K)ᵀ V)`` over the sums of its weights.

    Features are divided by the largest of their position before powers are taken, and the lengths
    ``|x|`` of keys by the longest of their image, so that nothing overflows. Both factors cancel,
    and so do the lengths of queries.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        focus: the power p.

    Returns:
        ``[B, c_out, H, W]``. After the ReLU features are at least 1e-6; powers are at least 1e-18
        of the largest power of their position.

    Raises:
        AttentionError: the shapes do not fit together, or focus is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("focus", focus, 1.0)
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, _ = focused_features(q.to(dtype), focus)
        keys, lengths = focused_features(k.to(dtype), focus)
        keys = keys * (lengths / lengths.detach().amax(2, keepdim=True))
        context = torch.matmul(v.to(dtype).flatten(2), keys.mT)  # [B, c_out, c]
        norm = torch.matmul(keys.sum(2).unsqueeze(1), queries)
        return (torch.matmul(context, queries) / norm).view(v.shape).to(v.dtype)


def focused_features(x: Tensor, focus: float) -> tuple[Tensor, Tensor]:
    """``phi(x)`` as powers ``[B, c, N]``, the largest of a position being 1, and a factor to each.

    Args:
        x: ``[B, c, H, W]``, float32 at least.
        focus: the power p.

    Returns:
        The powers, and the factors ``[B, 1, N]``: their product is ``|x| / |x^p| · x^p``.
    """
    x = x.flatten(2).clamp_min(LEAST)
    top = x.amax(1, keepdim=True)
    shares = x / top
    powers = shares.pow(focus).clamp_min(LEAST_POWER)
    # torch's norm over any but the last dimension takes ten times as long on the CPU.
    length, of_powers = (t.square().sum(1, keepdim=True).sqrt() for t in (shares, powers))
    return powers, top * (length / of_powers)


@register_attention("focused-linear")
class FocusedLinearAttention(Attention):
    """Focused linear attention plus a depthwise 5x5 convolution of the values.

    It has one head, 1x1 embeddings and no 1x1 convolution after it. The released code also has a
    learned scale of each channel and a positional encoding of the keys for one map size, which the
    paper's equations do not have; they are left out, as are LayerNorm and MLP.

    Args:
        channels: channels C of input and output.
        focus: the power p, the paper's focusing factor.
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Focused linear-p{focus:g}"
    source: ClassVar[str] = "FLatten Transformer, Han et al., ICCV 2023, Section 4"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, focus: float = 3.0, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("focus", focus, 1.0)
        self.focus = focus
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`focused_linear_attention` plus the depthwise convolution of v."""
        return focused_linear_attention(q, k, v, self.focus) + self.local(v)

    def cost(self, height: int, width: int) -> Cost:
        """2 N c C MACs, N c for the normaliser, 25 N C for the convolution."""
        n, c = height * width, self.embedding
        core = n * (2 * c * self.channels + c + 25 * self.channels)
        return Cost(
            projections=n * self.channels * (2 * c + self.channels), core=core, executed=core
        )

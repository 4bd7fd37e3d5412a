"""Efficient Attention (Shen et al., WACV 2021, Eq. 4): a worked example of a module of your own.

``python -m harness.run --attn none examples.efficient_attention:EfficientAttention``
"""

import torch
from torch import Tensor, nn

from attention_zoo import Attention, Cost


def efficient_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax_c(Q) (softmax_N(K)ᵀ V)``: the global context, read by every position.

    Args:
        q, k: ``[B, c, H, W]``.
        v: ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``.
    """
    wide = torch.promote_types(v.dtype, torch.float32)  # sums over N would overflow float16
    queries = q.to(wide).flatten(2).softmax(1)
    keys = k.to(wide).flatten(2).softmax(2)
    context = v.to(wide).flatten(2) @ keys.mT  # [B, c_out, c]
    return (context @ queries).to(v.dtype).view(v.shape)


class EfficientAttention(Attention):
    """Efficient Attention with 1x1 embeddings, one head.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format = "Efficient attention"
    source = "Efficient Attention, Shen et al., WACV 2021, Eq. 4"
    complexity = "O(N)"

    def __init__(self, channels: int, *, reduction: int = 4, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        self.embedding = max(1, channels // reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return efficient_attention(q, k, v)

    def cost(self, height: int, width: int) -> Cost:
        n, c, channels = height * width, self.embedding, self.channels
        core = 2 * n * c * channels
        return Cost(projections=n * channels * (2 * c + channels), core=core, executed=core)

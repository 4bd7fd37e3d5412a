"""Hedgehog: linear attention by learned exponential features, O(N) time and memory.

Paper: The Hedgehog & the Porcupine, Zhang et al., ICLR 2024, Section 4.
Equation: ``y_i = sum_j phi_q(q_i)·phi_k(k_j) v_j / sum_j phi_q(q_i)·phi_k(k_j)`` with ``phi(x) =
[exp(Wx + b), exp(-Wx - b)]``, W and b being learned, one pair for queries and one for keys. By
default each half of phi is divided by its sum, a softmax over features, and is at least 1e-12, as
in the authors' released code (LoLCATs); ``--no-softmax`` is the equation as it stands.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, W ``[m/2, c]``, phi ``[m]``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    sum_dtype,
    to_rows,
)
from ..enla import orthogonal_gaussian, require_features
from ..registry import register_attention

#: Features after the softmax are at least this, so that a sum of weights is not 0.
LEAST = 1e-12
#: Weight ``[m/2, c]`` and bias ``[m/2]`` of a feature map.
FeatureMap = tuple[Tensor, Tensor]


def learned_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_map: FeatureMap,
    key_map: FeatureMap,
    softmax: bool = True,
) -> Tensor:
    """``phi_q(Q) (phi_k(K)ᵀ V)`` over the sums of its weights.

    No exponent overflows: what is subtracted from it cancels, see :func:`features`.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        query_map: W ``[m/2, c]`` and b ``[m/2]`` of the queries.
        key_map: those of the keys.
        softmax: divide each half of phi by its sum.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    check_qkv(q, k, v)
    _check_maps(q.shape[1], query_map, key_map)
    dtype = sum_dtype(v)
    with no_autocast(v):
        phi_q, phi_k = features(q.to(dtype), k.to(dtype), query_map, key_map, softmax)
        context = torch.matmul(v.to(dtype).flatten(2), phi_k)  # [B, c_out, m]
        norm = torch.matmul(phi_q, phi_k.sum(1).unsqueeze(2))  # [B, N, 1]
        return (torch.matmul(context, phi_q.mT) / norm.mT).view(v.shape).to(v.dtype)


def features(
    q: Tensor, k: Tensor, query_map: FeatureMap, key_map: FeatureMap, softmax: bool
) -> tuple[Tensor, Tensor]:
    """phi of queries and keys ``[B, N, m]`` of maps ``[B, c, H, W]``, up to factors that cancel.

    Without the softmax keys are divided by the largest value that each feature has among them, and
    queries multiplied by it; then each query is divided by its largest feature. So all are in
    0 … 1, and the sum of a query's weights is at least 1.
    """
    of_q, of_k = _exponents(q, query_map), _exponents(k, key_map)
    if softmax:
        phi_q, phi_k = (x.softmax(3).clamp_min(LEAST).flatten(2) for x in (of_q, of_k))
        return phi_q, phi_k
    shift = of_k.detach().amax(1, keepdim=True)
    of_q = of_q + shift
    largest = of_q.detach().amax((2, 3), keepdim=True)
    return (of_q - largest).exp().flatten(2), (of_k - shift).exp().flatten(2)


def _exponents(x: Tensor, feature_map: FeatureMap) -> Tensor:
    """``Wx + b`` and its negative ``[B, N, 2, m/2]`` of a map ``[B, c, H, W]``, in its dtype."""
    weight, bias = (t.to(x.dtype) for t in feature_map)
    half = torch.matmul(to_rows(x), weight.mT) + bias
    return torch.stack([half, -half], 2)


def _check_maps(c: int, *feature_maps: FeatureMap) -> None:
    m = feature_maps[0][0].shape[0]
    for weight, bias in feature_maps:
        if weight.shape != (m, c) or bias.shape != (m,):
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise AttentionError(f"feature maps must be [m/2, {c}] and [m/2], got {shapes}")


@register_attention("hedgehog")
class HedgehogAttention(Attention):
    """Learned exponential features of raw queries and keys, with 1x1 embeddings.

    One head. Both W start as one draw of ENLA's F (orthogonal rows), both b at 0, and all are
    trained with the rest: what differs from ENLA in training is that F learns. The paper starts
    from the identity, which only m = 2 c allows, and first trains W and b to mimic the softmax
    attention of a trained network; that distillation is left out, as are LayerNorm and MLP.

    Args:
        channels: channels C of input and output.
        m: features, an even number: m/2 exponentials and those of the negated exponents.
        softmax: divide each half of the features by its sum, as the authors' code does.
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Hedgehog-m{m}"
    source: ClassVar[str] = "Hedgehog, Zhang et al., ICLR 2024, Section 4"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        m: int = 128,
        softmax: bool = True,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_features(m)
        if m % 2:
            raise AttentionError(f"m must be even, got {m}")
        self.m, self.softmax = m, softmax
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        draw = orthogonal_gaussian(m // 2, self.embedding).to(torch.get_default_device())
        self.query_weight, self.key_weight = nn.Parameter(draw), nn.Parameter(draw.clone())
        self.query_bias, self.key_bias = (nn.Parameter(torch.zeros(m // 2)) for _ in range(2))

    def feature_maps(self) -> tuple[FeatureMap, FeatureMap]:
        """W and b of queries, and of keys."""
        return (self.query_weight, self.query_bias), (self.key_weight, self.key_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`learned_feature_attention`."""
        return learned_feature_attention(q, k, v, *self.feature_maps(), self.softmax)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The weights ``[B, H, W]`` that the features give."""
        query = q[:, :, row : row + 1, col : col + 1]
        dtype = sum_dtype(q)
        with no_autocast(q):
            maps = self.feature_maps()
            phi_q, phi_k = features(query.to(dtype), k.to(dtype), *maps, self.softmax)
            products = torch.bmm(phi_q, phi_k.mT)
        return (products / products.sum(-1, keepdim=True)).view(-1, *k.shape[2:])

    def cost(self, height: int, width: int) -> Cost:
        """Core N m (c + 2 C) + N m / 2 MACs, the normaliser counted as ENLA's."""
        n = height * width
        products = n * self.m * (self.embedding + 2 * self.channels)
        return Cost(
            projections=n * self.channels * (2 * self.embedding + self.channels),
            core=products + n * self.m / 2,
            executed=products + n * self.m,
        )

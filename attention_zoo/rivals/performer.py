"""Performer (FAVOR+): positive random features of raw queries and keys, O(N) time and memory."""

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
    sum_dtype,
)
from ..enla import (
    feature_weights,
    orthogonal_gaussian,
    random_feature_attention,
    require_features,
)
from ..layers import call_together, projects_sums, weight_and_bias
from ..nla import softmax_weights
from ..registry import register_attention


def positive_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    value_map: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """FAVOR+ of the Performer paper, Sections 2.3-2.4, on queries and keys of any length.

    ``phi(u) = m^(-1/2) exp(Fu − |u|²/2)`` of ``u = x / c^(1/4)`` estimates the kernel
    ``exp(q·k / sqrt(c))`` without bias. Output i is ``sum_j phi(q_i)·phi(k_j) v_j`` over the sum of
    its weights. Exponents are shifted by maxima, which cancel, see :mod:`attention_zoo.enla`.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        projection: F ``[m, c]``.
        value_map: as in :func:`attention_zoo.enla.random_feature_attention`.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: those of ``enla``, on features without normalisation and with eps = 0.

    Numerics: error up to ``(u + 2 min(1, g)) max|v|``, see :mod:`attention_zoo.base`. S is 1 plus
    ``|f| |u| + |u|²/2`` of the longest query and of the longest key, f being the longest row of F.
    It grows with the squares of both lengths, that of softmax attention with their product.
    """
    check_qkv(q, k, v)
    scale = q.shape[1] ** -0.25
    dtype = sum_dtype(v)  # rounded to half precision, u would change exponents
    with no_autocast(v):
        q, k = q.to(dtype) * scale, k.to(dtype) * scale
        return random_feature_attention(q, k, v, projection, 0, value_map=value_map)


@register_attention("performer")
class PerformerAttention(Attention):
    """FAVOR+ with 1x1 embeddings: ENLA without its normalisation, hence with softmax's own scores.

    One head. The paper's stabiliser subtracts one maximum from all keys; ours subtracts one for
    each feature, which cancels too, so that no constant need be added to features (the released
    code adds 1e-6 or 1e-4, a bias). LayerNorm and MLP are left out.

    F is a buffer (``projection``) and part of checkpoints. In training the trainer calls
    :meth:`redraw` every epoch. Evaluation never changes F.

    Args:
        channels: channels C of input and output.
        m: random features.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Performer-m{m}"
    source: ClassVar[str] = "Performer, Choromanski et al., ICLR 2021, Sections 2.3-2.4"
    complexity: ClassVar[str] = "O(N)"

    projection: Tensor

    def __init__(
        self, channels: int, *, m: int = 128, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_features(m)
        self.m = m
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        draw = orthogonal_gaussian(m, self.embedding).to(torch.get_default_device())
        self.register_buffer("projection", draw)

    def redraw(self) -> None:
        """Replace F by a new draw from torch's global CPU generator."""
        self.projection.copy_(orthogonal_gaussian(self.m, self.embedding))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`positive_feature_attention`."""
        return positive_feature_attention(q, k, v, self.projection)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's; the values' projection maps m sums instead of N values if that is less."""
        if not projects_sums(self, PerformerAttention, self.m, x.shape[2] * x.shape[3]):
            return super().attended(x)
        q, k = call_together(x, self.query, self.key)
        value_map = weight_and_bias(self.value)
        return q, k, positive_feature_attention(q, k, x, self.projection, value_map)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The weights ``[B, H, W]`` that the random features give."""
        scale, dtype = self.embedding**-0.25, sum_dtype(q)
        q, k = q.to(dtype) * scale, k.to(dtype) * scale
        return feature_weights(q, k, row, col, self.projection, 0)

    def exact_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax of ``q·k / sqrt(c)`` ``[B, H, W]``, what the features approximate."""
        return softmax_weights(q / self.embedding**0.5, k, row, col)

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N m (c + c_out) + N m / 2 MACs, as the ENLCA paper counts the normaliser."""
        n, c, c_out = height * width, self.embedding, self.channels
        sums = projects_sums(self, PerformerAttention, self.m, n)
        products = 2 * n * self.m * (c + c_out)
        return Cost(
            projections=n * self.channels * (2 * c + c_out),
            core=products + n * self.m / 2,
            executed=products + n * self.m,
            saved=(n - self.m) * c_out * self.channels if sums else 0,
        )

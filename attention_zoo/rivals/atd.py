"""Adaptive Token Dictionary: attention to learned tokens, and among positions of like tokens.

Paper: Adaptive Token Dictionary, Zhang et al., CVPR 2024, Section 3 (Eq. 3-5 and Section 3.4).
Equation: ``y = W sum_j softmax_j(q_i·k_j / sqrt(d)) v_j + sum_m softmax_m(s_m cos(q_i, t_m)) u_m``.
Positions j share i's group, which is made by sorting positions by their best token; t_m and u_m are
keys and values of M learned tokens, s_m learned scales; W joins the heads of d channels.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, t ``[M, c]``, u ``[M, C]``.
Numerics, see :mod:`attention_zoo.base`: for the same groups, error up to ``(4 u + 4 min(1, g))
(max|v| max_o sum|weight| + max|bias| + max|u_m|)``, with the weight and bias of W. S is the largest
norm of query times norm of key over sqrt(d), or the largest scale s_m.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
    to_map,
    to_rows,
)
from ..cores.softmax_rows import softmax_attention_lse
from ..implementations import outside_graphs, refuse_transforms
from ..layers import call_in_dtype, call_together
from ..nlsa import normalise_keys
from ..registry import register_attention


def token_attention(
    q: Tensor, keys: Tensor, values: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Token dictionary cross-attention: ``sum_m softmax_m(scale_m cos(q_i, key_m)) value_m``.

    Norms count as at least 5e-5.

    Args:
        q: queries ``[B, c, H, W]``.
        keys: keys of the tokens, ``[M, c]``, float32 or float64 like the next two.
        values: values of the tokens, ``[M, c_out]``.
        scale: ``[M]``.

    Returns:
        ``[B, c_out, H, W]``, and the scores ``[B, N, M]``.
    """
    with no_autocast(q):
        cosines = torch.matmul(normalise_keys(to_rows(q)), normalise_keys(keys).mT)
        scores = cosines * scale
        return to_map(torch.matmul(scores.softmax(-1), values), like=q), scores


def token_categories(scores: Tensor) -> Tensor:
    """Category of every position, the token with its largest score: ``[B, N, M]`` to ``[B, N]``.

    No gradient flows through it.
    """
    return scores.argmax(-1)


@outside_graphs
def category_attention(
    q: Tensor, k: Tensor, v: Tensor, categories: Tensor, heads: int, size: int = 128
) -> Tensor:
    """Adaptive category-based multi-head self-attention, Section 3.4.

    Positions are sorted by category and split into groups of n_s; each attends within its group,
    scores divided by sqrt(d). The sort is stable; the released one leaves the order of equal
    categories open. As in the released code, the last sorted positions, repeated, fill up the last
    group. A map with fewer positions than n_s is one group.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        categories: ``[B, N]``.
        heads: attention heads.
        size: positions n_s of a group.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    refuse_transforms("atd")
    check_qkv(q, k, v)
    check_heads(heads, q.shape[1], v.shape[1])
    batch, n = v.shape[0], v.shape[2] * v.shape[3]
    if categories.shape != (batch, n):
        raise AttentionError(f"categories must be [{batch}, {n}], got {list(categories.shape)}")
    size = min(size, n)
    order = torch.sort(categories, dim=-1, stable=True).indices
    whole = n - n % size
    groups = order[:, :whole].unflatten(1, (-1, size))
    queries, keys = [groups], [groups]
    if whole < n:
        last = order[:, whole:]
        queries.append(last.unsqueeze(1))
        keys.append(torch.cat([last, order[:, last.shape[1] - size :]], dim=1).unsqueeze(1))

    # Each head of each position is a row.
    q_rows, k_rows, v_rows = (
        to_rows(t).reshape(batch * n * heads, t.shape[1] // heads) for t in (q, k, v)
    )
    q_rows = q_rows.to(sum_dtype(v)) / math.sqrt(q_rows.shape[1])
    outs, places = [], []
    for of_queries, of_keys in zip(queries, keys, strict=True):
        i, j = (_head_rows(positions, heads, n) for positions in (of_queries, of_keys))
        out, _ = softmax_attention_lse(q_rows[i], k_rows[j], v_rows[j])
        outs.append(out.flatten(0, 1))
        places.append(i.flatten())
    back = torch.cat(places).argsort()
    return to_map(torch.cat(outs)[back].view(batch, n, -1), like=v)


def _head_rows(positions: Tensor, heads: int, n: int) -> Tensor:
    """Rows of the positions ``[B, G, L]``, head by head: ``[B · G · heads, L]``."""
    images = torch.arange(positions.shape[0], device=positions.device).view(-1, 1, 1)
    rows = (images * n + positions) * heads
    return (rows.unsqueeze(2) + torch.arange(heads, device=rows.device).view(-1, 1)).flatten(0, 2)


@register_attention("atd")
class AdaptiveTokenDictionaryAttention(Attention):
    """ATD-CA and AC-MSA added up, as in an ATD layer.

    The layer's window attention (see ``window``), LayerNorm and feed-forward network are left out,
    and so is the refinement of the dictionary from layer to layer, since modules do not see each
    other. One query embedding serves both attentions; the released code has a second one of 10
    channels for the tokens. AC-MSA divides scores by sqrt(d); the released code multiplies them by
    a learned factor that starts at 10, which suits features under LayerNorm.

    Args:
        channels: channels C of input and output.
        tokens: tokens M of the dictionary.
        category_size: positions n_s of a group that attends within itself.
        heads: attention heads of AC-MSA.
        reduction: query and key have C / reduction channels (1 in the paper's AC-MSA).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "ATD"
    source: ClassVar[str] = "Adaptive Token Dictionary, Zhang et al., CVPR 2024, Section 3"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        tokens: int = 64,
        category_size: int = 128,
        heads: int = 4,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("tokens", tokens, 1)
        require_at_least("category_size", category_size, 1)
        self.category_size, self.heads = category_size, heads
        self.embedding = embedding_channels(channels, reduction)
        check_heads(heads, self.embedding, channels)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.dictionary = nn.Parameter(torch.randn(tokens, channels))
        self.token_key = nn.Linear(channels, self.embedding)
        self.token_value = nn.Linear(channels, channels)
        #: Between 0 and 1 in use.
        self.scale = nn.Parameter(torch.full((tokens,), 0.5))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`token_attention` plus :func:`category_attention` with its heads joined."""
        check_qkv(q, k, v)
        from_tokens, scores = token_attention(q, *self.token_maps(sum_dtype(v)))
        categories = token_categories(scores)
        out = category_attention(q, k, v, categories, self.heads, self.category_size)
        return self.output(out) + from_tokens.to(v.dtype)

    def token_maps(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Keys ``[M, C/reduction]``, values ``[M, C]`` and scales ``[M]`` of the tokens.

        A scale is ``1 + clamp(s, 0, 1) ln M``.
        """
        dictionary = self.dictionary.to(dtype)
        with no_autocast(dictionary):
            keys, values = (
                call_in_dtype(f, dictionary) for f in (self.token_key, self.token_value)
            )
        return keys, values, 1 + self.scale.to(dtype).clamp(0, 1) * math.log(len(dictionary))

    def cost(self, height: int, width: int) -> Cost:
        """Core N (M + n_s)(c + C) MACs; executed: n_s at most N, plus the tokens' maps and N C²."""
        n, c = height * width, self.embedding + self.channels
        tokens = len(self.dictionary)
        return Cost(
            projections=n * self.channels * (2 * self.embedding + self.channels),
            core=n * (tokens + self.category_size) * c,
            executed=n * (tokens + min(n, self.category_size)) * c
            + tokens * self.channels * c
            + n * self.channels**2,
        )

"""The obvious implementation of each method, to compare the speed of ours with.

Each function makes the tensors that the published code makes, one after the other: whole N x N
matrices, full sorts, padding by copies, three copies of every chunk, transposed copies. It is
written from the description of that code and serves float32; the results are those of the function
of the same name in ``attention_zoo``, for sizes that the published code can do.

The classes are our modules with nothing but these functions exchanged, so that both have the same
weights: ``--attn harness.obvious:NLA`` works wherever a module is named.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config.variants import Variant

from .. import Attention
from ..criss_cross import CrissCrossAttention
from ..enla import MIN_NORM
from ..enlca import EfficientNonLocalContrastiveAttention, contrast_groups
from ..nla import NonLocalAttention
from ..nlsa import NonLocalSparseAttention


def non_local_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 1 of the ENLCA paper by two whole N x N matrices, scores and weights.

    Shapes as in :func:`attention_zoo.nla.non_local_attention`.
    """
    batch, c, height, width = q.shape
    queries = q.permute(0, 2, 3, 1).reshape(batch, height * width, c)
    keys = k.reshape(batch, c, height * width)
    values = v.permute(0, 2, 3, 1).reshape(batch, height * width, v.shape[1])
    weights = torch.matmul(queries, keys)
    weights = F.softmax(weights, dim=2)
    return torch.matmul(weights, values).permute(0, 2, 1).reshape(v.shape)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int = 144
) -> Tensor:
    """NLSA with all rounds at once: one long sort and its inverse, padding and neighbours copied.

    Shapes as in :func:`attention_zoo.nlsa.sparse_attention`. The sort is stable, which the
    published one is not. The chunk that padding fills must hold no more than N copies.
    """
    batch, c_out, height, width = v.shape
    n, rounds = height * width, rotations.shape[0]
    queries, values = (t.flatten(2).permute(0, 2, 1).contiguous() for t in (q, v))
    keys = queries if k is q else k.flatten(2).permute(0, 2, 1).contiguous()

    rotated = torch.einsum("bnc,rch->brnh", queries.detach(), rotations.to(q.dtype))
    codes = torch.cat([rotated, -rotated], dim=-1).argmax(-1)
    # Codes of each round lie above those of the last: one sort serves all.
    offsets = torch.arange(rounds, device=q.device) * 2 * rotations.shape[2]
    codes = (codes + offsets[:, None]).reshape(batch, rounds * n)
    order = codes.sort(dim=-1, stable=True).indices
    undo = order.sort(dim=-1).indices
    positions = order % n

    padding = -n % chunk_size

    def chunks(rows: Tensor) -> Tensor:
        gathered = _take(rows, positions).reshape(batch, rounds, n, -1)
        if padding:
            gathered = torch.cat([gathered, gathered[:, :, -padding:].clone()], dim=2)
        return gathered.reshape(batch, rounds, -1, chunk_size, rows.shape[-1])

    sorted_queries = chunks(queries)
    sorted_keys = F.normalize(sorted_queries if k is q else chunks(keys), dim=-1, eps=MIN_NORM)
    sorted_keys, sorted_values = _with_neighbours(sorted_keys), _with_neighbours(chunks(values))
    scores = torch.einsum("brkic,brkjc->brkij", sorted_queries, sorted_keys)
    lse = torch.logsumexp(scores, dim=-1, keepdim=True)
    weights = torch.exp(scores - lse)
    out = torch.einsum("brkij,brkjc->brkic", weights, sorted_values)

    out, lse = (t.reshape(batch, rounds, n + padding, -1) for t in (out, lse))
    if padding:
        out, lse = (t[:, :, :-padding].clone() for t in (out, lse))
    out, lse = (t.reshape(batch, rounds * n, -1) for t in (out, lse))
    out, lse = (_take(t, undo).reshape(batch, rounds, n, -1) for t in (out, lse))
    merged = torch.sum(out * F.softmax(lse, dim=1), dim=1)
    return merged.permute(0, 2, 1).reshape(batch, c_out, height, width)


def _with_neighbours(chunks: Tensor) -> Tensor:
    """``[B, r, K, S, c]`` with the chunks before and after, circularly: ``[B, r, K, 3 S, c]``."""
    before = torch.cat([chunks[:, :, -1:], chunks[:, :, :-1]], dim=2)
    after = torch.cat([chunks[:, :, 1:], chunks[:, :, :1]], dim=2)
    return torch.cat([chunks, before, after], dim=3)


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` at positions ``[B, M]``: ``[B, M, c]``."""
    return rows.gather(1, positions[:, :, None].expand(-1, -1, rows.shape[-1]))


def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Copies of columns and of rows, the own position masked out of the column, one softmax.

    Shapes as in :func:`attention_zoo.criss_cross.criss_cross_attention`.
    """
    batch, _, height, width = q.shape

    def columns(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().view(batch * width, -1, height)

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).contiguous().view(batch * height, -1, width)

    # Each copy has a name: like the published code's, it lives until the end.
    q_columns, k_columns, v_columns = columns(q).permute(0, 2, 1), columns(k), columns(v)
    q_rows, k_rows, v_rows = rows(q).permute(0, 2, 1), rows(k), rows(v)
    mask = torch.diag(q.new_full((height,), -torch.inf)).unsqueeze(0).repeat(batch * width, 1, 1)
    in_column = torch.bmm(q_columns, k_columns) + mask
    in_column = in_column.view(batch, width, height, height).permute(0, 2, 1, 3)
    in_row = torch.bmm(q_rows, k_rows).view(batch, height, width, width)
    weights = F.softmax(torch.cat([in_column, in_row], dim=3), dim=3)

    of_column = weights[..., :height].permute(0, 2, 1, 3).contiguous()
    of_column = of_column.view(batch * width, height, height)
    of_row = weights[..., height:].contiguous().view(batch * height, width, width)
    from_column = torch.bmm(v_columns, of_column.permute(0, 2, 1))
    from_row = torch.bmm(v_rows, of_row.permute(0, 2, 1))
    from_column = from_column.view(batch, width, -1, height).permute(0, 2, 3, 1)
    from_row = from_row.view(batch, height, -1, width).permute(0, 2, 1, 3)
    return from_column + from_row


def random_feature_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, amplification: float, eps: float = 1e-4
) -> Tensor:
    """Eq. 3–6 of the ENLCA paper: features ``[B, 1, N, m]`` kept whole, exp without a shift.

    Args:
        q: raw queries ``[B, c, H, W]``; they are normalised here.
        k: raw keys ``[B, c, H, W]``, likewise.
        v: values ``[B, c_out, H, W]``.
        projection: F ``[m, c]``.
        amplification: the factor k of Eq. 3.
        eps: added to each exponential.

    Returns:
        ``[B, c_out, H, W]``.
    """
    scale = math.sqrt(amplification)
    q, k = (F.normalize(t, dim=1, eps=MIN_NORM) * scale for t in (q, k))
    batch, _, height, width = q.shape
    queries, keys, values = (
        t.permute(0, 2, 3, 1).reshape(batch, 1, height * width, -1) for t in (q, k, v)
    )
    phi_q, phi_k = _features(queries, projection, eps), _features(keys, projection, eps)
    inverse = 1 / torch.einsum("bhnm,bhm->bhn", phi_q, phi_k.sum(dim=-2))
    context = torch.einsum("bhnm,bhnc->bhmc", phi_k, values)
    out = torch.einsum("bhmc,bhnm,bhn->bhnc", context, phi_q, inverse)
    return out.squeeze(1).permute(0, 2, 1).reshape(v.shape)


def _features(rows: Tensor, projection: Tensor, eps: float) -> Tensor:
    """Eq. 4 for rows ``[B, 1, N, c]``: ``[B, 1, N, m]``."""
    repeated = projection.repeat(*rows.shape[:2], 1, 1)
    products = torch.einsum("bhnc,bhmc->bhnm", rows, repeated)
    half_square = (rows**2).sum(dim=-1, keepdim=True) / 2.0
    return projection.shape[0] ** -0.5 * (torch.exp(products - half_square) + eps)


def contrastive_loss(
    q: Tensor,
    k: Tensor,
    *,
    amplification: float = 6.0,
    n1: float = 0.02,
    n2: float = 0.08,
    margin: float = 1.0,
    hinge: bool = True,
) -> Tensor:
    """Eq. 8–10 of the ENLCA paper by a whole N x N matrix, every row of it sorted.

    Arguments as in :func:`attention_zoo.enlca.contrastive_loss`.
    """
    scale = math.sqrt(amplification)
    q, k = (F.normalize(t, dim=1, eps=MIN_NORM) * scale for t in (q, k))
    queries = q.permute(0, 2, 3, 1).reshape(q.shape[0], -1, q.shape[1])
    keys = k.reshape(*k.shape[:2], -1)
    count, start = contrast_groups(keys.shape[2], n1, n2)
    scores = torch.exp(torch.matmul(queries, keys))
    scores = torch.sort(scores, dim=2, descending=True).values
    relevant = scores[:, :, :count].mean(dim=2)
    irrelevant = scores[:, :, start : start + count].mean(dim=2)
    loss = -torch.log(relevant / irrelevant) + margin
    return torch.mean(F.relu(loss) if hinge else loss)


class NLA(NonLocalAttention):
    """Ours with :func:`non_local_attention` of this file."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return non_local_attention(q, k, v)


class NLSA(NonLocalSparseAttention):
    """Ours with :func:`sparse_attention` of this file."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, self.rotations(q), self.chunk_size)


class CrissCross(CrissCrossAttention):
    """Ours with :func:`criss_cross_attention` of this file."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return criss_cross_attention(q, k, v)


class ENLCA(EfficientNonLocalContrastiveAttention):
    """Ours with :func:`random_feature_attention` and :func:`contrastive_loss` of this file.

    In training it normalises for each of the two; the published code does so once for both.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return random_feature_attention(q, k, v, self.projection, self.k, self.eps)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        options: dict[str, Any] = {o: getattr(self, o) for o in ("n1", "n2", "margin", "hinge")}
        return contrastive_loss(q, k, amplification=self.k, **options)


_CLASSES: dict[str, type[Attention]] = {cls.name: cls for cls in (NLA, NLSA, CrissCross, ENLCA)}


def obvious_variant(variant: Variant) -> Variant:
    """The obvious implementation of a variant, with its options; ``none`` stays what it is."""
    if variant.name == "none":
        return variant
    return Variant(f"{__name__}:{_CLASSES[variant.name].__name__}", variant.options)

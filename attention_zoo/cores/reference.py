"""The implementations named ``reference``: whole matrices, plain operations, torch's gradients.

Like all others they compute in float32 at least and return the dtype of v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast, sum_dtype, to_map, to_rows
from ..enla import normalise, stable_features
from ..implementations import implementation
from ..nlsa import normalise_keys, padded_order, sort_positions
from .largest import Rule


@implementation("nla", "reference")
def non_local_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two N x N matrices, scores and weights."""
    queries, keys, values = _rows(q, k, v)
    with no_autocast(v):
        weights = torch.matmul(queries, keys.mT).softmax(-1)
        return to_map(torch.matmul(weights, values).to(v.dtype), like=v)


@implementation("nlsa", "reference")
def sparse_attention(q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int) -> Tensor:
    """Every chunk's rows and those of its neighbours copied, round after round."""
    queries, keys, values = _rows(q, normalise_keys(to_rows(k)), v)
    order = sort_positions(to_rows(q), rotations)
    n = values.shape[1]
    outs, lses = [], []
    with no_autocast(v):
        for positions in order.unbind(1):
            slots = padded_order(positions, chunk_size)
            chunks = slots.unflatten(1, (-1, chunk_size))
            windows = torch.cat([chunks.roll(1, 1), chunks, chunks.roll(-1, 1)], dim=2)
            scores = torch.einsum("bkic,bkjc->bkij", _take(queries, chunks), _take(keys, windows))
            out = torch.matmul(scores.softmax(-1), _take(values, windows))
            undo = positions.argsort(1)  # the first N slots hold every position once
            outs.append(_take(out.flatten(1, 2)[:, :n], undo))
            lses.append(scores.logsumexp(-1).flatten(1)[:, :n].gather(1, undo))
        shares = torch.stack(lses).softmax(0).unsqueeze(-1)
        return to_map((torch.stack(outs) * shares).sum(0).to(v.dtype), like=v)


@implementation("criss-cross", "reference")
def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of column and row side by side; the column leaves out the position itself."""
    height, width = v.shape[2:]
    dtype = sum_dtype(v)
    q, k, values = (t.to(dtype) for t in (q, k, v))
    with no_autocast(v):
        own = torch.eye(height, dtype=torch.bool, device=v.device).view(height, 1, height)
        column = torch.einsum("bchw,bcgw->bhwg", q, k).masked_fill(own, -torch.inf)
        row = torch.einsum("bchw,bchx->bhwx", q, k)
        weights = torch.cat([column, row], dim=-1).softmax(-1)
        on_column, on_row = weights.split([height, width], dim=-1)
        out = torch.einsum("bhwg,bcgw->bchw", on_column, values)
        return (out + torch.einsum("bhwx,bchx->bchw", on_row, values)).to(v.dtype)


@implementation("enla", "reference")
def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Eq. 5–6 with the features ``[B, N, m]`` of queries and keys, and all values, kept whole."""
    if amplification is not None:
        q, k = (normalise(t, amplification) for t in (q, k))
    queries, keys, values = _rows(q, k, v)
    with no_autocast(v):
        if value_map is not None:
            weight, bias = (t.to(values.dtype) for t in value_map)
            values = torch.matmul(values, weight.mT) + bias
        phi_q, phi_k = stable_features(queries, keys, projection, eps)
        sums = torch.matmul(phi_q, torch.matmul(phi_k.mT, values))
        normaliser = torch.matmul(phi_q, phi_k.sum(1).unsqueeze(-1))
        return to_map((sums / normaliser).to(v.dtype), like=v)


@implementation("largest", "reference")
def attend_to_largest(q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
    """Of rows: two N x N matrices, scores and weights, of which most are 0."""
    scores = torch.matmul(q, k.mT)
    values, at = scores.topk(min(count, scores.shape[-1]), dim=-1)
    weights = torch.zeros_like(scores).scatter(-1, at, rule.weigh(values))
    return torch.matmul(weights, v)


@implementation("projections", "released")
@implementation("projections", "reference")
def project(x: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
    """1x1 convolutions of ``[B, C, H, W]``, each a weight ``[c, C]`` and a bias ``[c]``."""
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return tuple(F.conv2d(x, weight[:, :, None, None], bias) for weight, bias in pairs)


@implementation("contrast", "reference")
def contrastive_loss(
    q: Tensor,
    k: Tensor,
    amplification: float,
    count: int,
    start: int,
    margin: float,
    hinge: bool,
) -> Tensor:
    """Eq. 8–10 of embeddings ``[B, c, H, W]``: an N x N matrix with every row sorted."""
    q, k = (normalise(t, amplification).flatten(2) for t in (q, k))
    scores = torch.matmul(q.mT, k).sort(dim=-1, descending=True).values
    relevant, irrelevant = scores[..., :count], scores[..., start : start + count]
    loss = irrelevant.logsumexp(-1) - relevant.logsumexp(-1) + margin
    return (loss.relu() if hinge else loss).mean()


def _rows(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Maps as rows (rows stay), in the dtype of sums."""
    return tuple((to_rows(t) if t.dim() == 4 else t).to(sum_dtype(v)) for t in (q, k, v))


def _take(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` at positions ``[B, …]``: ``[B, …, c]``."""
    batch = torch.arange(rows.shape[0], device=rows.device)
    return rows[batch.view(-1, *[1] * (positions.dim() - 1)), positions]

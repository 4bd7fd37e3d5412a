"""The implementations named ``released``: the authors' published code, tensor by tensor.

They make the tensors of that code, one after the other: whole N x N matrices, full sorts, padding
by copies, three copies of every chunk, transposed copies. They are written from the description of
that code, and give the results of the other implementations for sizes that it can do. ``python -m
harness.speed`` compares them with ``auto``. Like all others they compute in float32 at least and
return the dtype of v. They are never the choice of ``auto``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast, sum_dtype
from ..enla import MIN_NORM, normalise
from ..implementations import Core, WhyNot, implementation


def _released(core: str, why_not: WhyNot | None = None) -> Callable[[Core], Core]:
    """Register a function as ``released``; it gets maps in the dtype of sums, without autocast."""

    def register(function: Core) -> Core:
        @wraps(function)
        def run(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
            dtype = sum_dtype(v)
            queries = q.to(dtype)
            keys = queries if k is q else k.to(dtype)
            with no_autocast(v):
                return function(queries, keys, v.to(dtype), *rest).to(v.dtype)

        return implementation(core, "released", why_not)(run)

    return register


@_released("nla")
def non_local_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two whole N x N matrices, scores and weights.

    As :func:`attention_zoo.nla.non_local_attention`.
    """
    batch, c, height, width = q.shape
    queries = q.permute(0, 2, 3, 1).reshape(batch, height * width, c)
    keys = k.reshape(batch, c, height * width)
    values = v.permute(0, 2, 3, 1).reshape(batch, height * width, v.shape[1])
    weights = torch.matmul(queries, keys)
    weights = F.softmax(weights, dim=2)
    return torch.matmul(weights, values).permute(0, 2, 1).reshape(v.shape)


def _why_not_sparse(
    q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int
) -> str | None:
    n = v.shape[2] * v.shape[3]
    if -n % chunk_size > n:
        return f"the released code cannot fill up a chunk of {chunk_size} from {n} positions"
    return None


@_released("nlsa", _why_not_sparse)
def sparse_attention(q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int) -> Tensor:
    """All rounds at once: one long sort and its inverse, padding and neighbours copied.

    As :func:`attention_zoo.nlsa.sparse_attention`. The published sort is not stable, so its result
    depends on the sorting algorithm wherever codes are equal; the sort here is stable.
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


@_released("criss-cross")
def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Copies of columns and of rows, the own position masked out of the column, one softmax.

    As :func:`attention_zoo.criss_cross.criss_cross_attention`.
    """
    batch, _, height, width = q.shape

    def columns(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().view(batch * width, -1, height)

    def rows(x: Tensor) -> Tensor:
        return x.permute(0, 2, 1, 3).contiguous().view(batch * height, -1, width)

    # Each copy has a name, so it lives until the end, as in the published code.
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


@_released("enla")
def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Features ``[B, 1, N, m]`` kept whole, exp without a shift, values mapped at every position.

    As :func:`attention_zoo.enla.random_feature_attention`, as long as no exponential overflows.
    """
    if amplification is not None:
        scale = math.sqrt(amplification)
        q, k = (F.normalize(t, dim=1, eps=MIN_NORM) * scale for t in (q, k))
    if value_map is not None:
        weight, bias = (t.to(v.dtype) for t in value_map)
        v = F.conv2d(v, weight[:, :, None, None], bias)
    projection = projection.to(v.dtype)
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


@implementation("contrast", "released")
def contrastive_loss(
    q: Tensor,
    k: Tensor,
    amplification: float,
    count: int,
    start: int,
    margin: float,
    hinge: bool,
) -> Tensor:
    """Eq. 8–10 of the ENLCA paper by a whole N x N matrix with every row sorted.

    Args:
        q, k: embeddings ``[B, c, H, W]``.
        amplification: the factor k of Eq. 8.
        count: entries in each group.
        start: start of the second group.
        margin: b of Eq. 10.
        hinge: clamp each row's loss at 0.

    Returns:
        A scalar.
    """
    q, k = (normalise(t, amplification).flatten(2) for t in (q, k))
    scores = torch.exp(torch.matmul(q.permute(0, 2, 1).contiguous(), k))
    scores = torch.sort(scores, dim=2, descending=True).values
    relevant = scores[:, :, :count].mean(dim=2)
    irrelevant = scores[:, :, start : start + count].mean(dim=2)
    loss = -torch.log(relevant / irrelevant) + margin
    return torch.mean(F.relu(loss) if hinge else loss)

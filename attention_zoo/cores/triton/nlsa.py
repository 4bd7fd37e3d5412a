"""Attention of sorted chunks to their neighbours in two launches: all rounds, then their merge.

Rows are gathered by position where they are needed: neither sorted copies nor windows are made.
Exponents are in units of log 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import block, on_device, precision

# Below every score, and finite, so that differences are.
_LOWEST = tl.constexpr(-3e38)


def attend(
    q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Forward pass of :func:`attention_zoo.nlsa.sparse_attention` after hashing and sorting.

    Args:
        q: queries ``[B, N, c]``, any strides.
        k: normalised keys ``[B, N, c]``.
        v: values ``[B, N, c_out]``.
        order: sorted positions ``[B, r, N]``.
        chunk_size: S.

    Returns:
        Output ``[B, N, c_out]``, contiguous, and log2 of the sum of 2^score over all rounds'
        keys ``[B, N, 1]``.
    """
    batch, n, c_out = v.shape
    rounds, c = order.shape[1], q.shape[2]
    order = order.contiguous()
    bo, bq = block(c_out, 64), block(chunk_size, 64)
    chunks = triton.cdiv(n, chunk_size)
    of_rounds = q.new_empty(batch, rounds, n, c_out, dtype=k.dtype)
    sums = q.new_empty(batch, rounds, n, dtype=k.dtype)
    out = v.new_empty(v.shape)
    lse = q.new_empty(batch, n, 1, dtype=k.dtype)
    scores, values = precision(v)
    with on_device(v):
        blocks = chunks * triton.cdiv(chunk_size, bq)
        _attend[blocks, batch * rounds, triton.cdiv(c_out, bo)](
            *(q, k, v, order, of_rounds, sums, rounds, chunks, chunk_size),
            *(*q.stride(), *k.stride(), *v.stride()),
            *(n, c, c_out),
            BQ=bq,
            BK=32,
            BC=block(c, 64),
            BO=bo,
            SCORES=scores,
            VALUES=values,
            num_stages=2,
        )
        bn = 64
        _merge[triton.cdiv(n, bn), batch, triton.cdiv(c_out, bo)](
            *(of_rounds, sums, out, lse, rounds, n, c_out),
            BN=bn,
            BO=bo,
        )
    return out, lse


@triton.jit
def _positions(order, slots, n, total):
    """Positions at sorted slots; those that fill up the last chunk repeat the last of them."""
    # padding may exceed n, and % truncates.
    repeated = (slots - (total - n)) % n
    repeated = tl.where(repeated < 0, repeated + n, repeated)
    return tl.load(order + tl.where(slots < n, slots, repeated))


@triton.jit
def _attend(
    q,
    k,
    v,
    order,
    of_rounds,
    sums,
    rounds,
    chunks,
    chunk_size,
    q_b,
    q_n,
    q_c,
    k_b,
    k_n,
    k_c,
    v_b,
    v_n,
    v_c,
    n,
    c,
    c_out,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BC: tl.constexpr,
    BO: tl.constexpr,
    SCORES: tl.constexpr,
    VALUES: tl.constexpr,
):
    """A block of a chunk's queries over three chunks of keys, by online softmax."""
    parts = (chunk_size + BQ - 1) // BQ
    chunk = tl.program_id(0) // parts
    index = tl.program_id(1).to(tl.int64)
    b = index // rounds
    total = chunks * chunk_size
    within = (tl.program_id(0) % parts) * BQ + tl.arange(0, BQ)
    # Products with strides may exceed 2^31.
    channels = tl.arange(0, BC).to(tl.int64)
    columns = (tl.program_id(2) * BO + tl.arange(0, BO)).to(tl.int64)
    slots = tl.minimum(chunk * chunk_size + within, total - 1)
    own = (within < chunk_size) & (chunk * chunk_size + within < n)
    positions = _positions(order + index * n, slots, n, total)
    in_c = channels < c
    place = q + b * q_b + positions[:, None] * q_n + channels[None, :] * q_c
    queries = tl.load(place, mask=own[:, None] & in_c[None, :], other=0.0)
    queries = queries.to(tl.float32) * 1.4426950408889634

    top = tl.full([BQ], _LOWEST, tl.float32)
    norm = tl.zeros([BQ], tl.float32)
    acc = tl.zeros([BQ, BO], tl.float32)
    for start in range(0, 3 * chunk_size, BK):
        ranks = start + tl.arange(0, BK)
        here = ranks < 3 * chunk_size
        key_slots = ((chunk - 1) * chunk_size + ranks + total) % total
        places = _positions(order + index * n, key_slots, n, total)
        of_k = k + b * k_b + places[None, :] * k_n + channels[:, None] * k_c
        keys = tl.load(of_k, mask=here[None, :] & in_c[:, None], other=0.0).to(tl.float32)
        scores = tl.dot(queries, keys, input_precision=SCORES)
        scores = tl.where(here[None, :], scores, _LOWEST)
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - new_top)
        weights = tl.where(here[None, :], tl.exp2(scores - new_top[:, None]), 0.0)
        of_v = v + b * v_b + places[:, None] * v_n + columns[None, :] * v_c
        values = tl.load(of_v, mask=here[:, None] & (columns[None, :] < c_out), other=0.0)
        product = tl.dot(weights, values.to(tl.float32), input_precision=VALUES)
        acc = acc * shrink[:, None] + product
        norm = norm * shrink + tl.sum(weights, 1)
        top = new_top

    rows = index * n + positions
    place = of_rounds + rows[:, None] * c_out + columns[None, :]
    tl.store(place, acc / norm[:, None], mask=own[:, None] & (columns[None, :] < c_out))
    if tl.program_id(2) == 0:
        tl.store(sums + rows, top + tl.log2(norm), mask=own)


@triton.jit
def _merge(
    of_rounds,
    sums,
    out,
    lse,
    rounds,
    n,
    c_out,
    BN: tl.constexpr,
    BO: tl.constexpr,
):
    """Softmax over the rounds' log-sum-exps, applied to their outputs."""
    positions = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BO + tl.arange(0, BO)
    here = positions < n
    inside = here[:, None] & (columns[None, :] < c_out)
    top = tl.full([BN], _LOWEST, tl.float32)
    norm = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, BO], tl.float32)
    for r in range(rounds):
        rows = (b * rounds + r) * n + positions
        one = tl.load(sums + rows, mask=here, other=0.0)
        of_round = of_rounds + rows[:, None] * c_out + columns[None, :]
        part = tl.load(of_round, mask=inside, other=0.0)
        new_top = tl.maximum(top, one)
        shrink, share = tl.exp2(top - new_top), tl.exp2(one - new_top)
        acc = acc * shrink[:, None] + part * share[:, None]
        norm = norm * shrink + share
        top = new_top
    result = (acc / norm[:, None]).to(out.dtype.element_ty)
    tl.store(out + (b * n + positions)[:, None] * c_out + columns[None, :], result, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(lse + b * n + positions, top + tl.log2(norm), mask=here)

"""Random-feature attention in three launches: one pass over keys and values, one over queries.

Notation as in :mod:`attention_zoo.enla`; exponents are in units of log 2. Features are made in
registers, tile by tile, and never stored. Maps are read with their strides: no transpose.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import MOST_CHANNELS, block, on_device, precision, processors

_LOG2_E = 1 / math.log(2)
# Below every exponent, and finite, so that differences are.
_LOWEST = tl.constexpr(-1e30)


def summarise(
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    log2_eps: float,
    amplification: float | None,
    least_norm: float,
) -> tuple[Tensor, Tensor]:
    """Sums over keys in two launches.

    Args:
        k: keys ``[B, N, c]``, any strides.
        v: values ``[B, N, C]``.
        projection: F ``[m, c]``, float32, contiguous.
        log2_eps: log2 of eps, over exp(−|u|²/2) of full length where that is left out.
        amplification: as in :func:`attention_zoo.enla.random_feature_attention`.
        least_norm: embeddings are divided by no less.

    Returns:
        Context ``[B, m, C + 1]``, mean over keys of features times values and, last, of features,
        all over ``2^shift``; shift ``[B, m, 1]``.
    """
    batch, n, c_in = v.shape
    m, c = projection.shape
    bc, bo = block(c, MOST_CHANNELS), block(c_in, 64)
    # As compiled for sm_80 and sm_90, registers and 66 KB of shared memory hold such tiles.
    bm, bn = block(m, 64), 32
    tiles_m, tiles_o = triton.cdiv(m, bm), triton.cdiv(c_in, bo)
    blocks = triton.cdiv(n, bn)
    parts = max(1, min(blocks, 2 * processors(v.device) // (batch * tiles_m * tiles_o)))
    per_part = triton.cdiv(blocks, parts) * bn
    parts = triton.cdiv(n, per_part)

    sums = v.new_empty(batch, parts, m, c_in + 1, dtype=torch.float32)
    shifts = v.new_empty(batch, parts, m, dtype=torch.float32)
    context = v.new_empty(batch, m, c_in + 1, dtype=torch.float32)
    shift = v.new_empty(batch, m, 1, dtype=torch.float32)
    with on_device(v):
        _summarise[batch * parts, tiles_m, tiles_o](
            *(k, v, projection, sums, shifts, parts, per_part),
            *(*k.stride(), *v.stride()),
            n=n,
            c=c,
            c_out=c_in,
            m=m,
            BN=bn,
            BM=bm,
            **_constants(v, bc, bo, log2_eps, amplification, least_norm),
        )
        _combine[batch, tiles_m, triton.cdiv(c_in + 1, bo)](
            *(sums, shifts, context, shift, n, m, c_in + 1, parts),
            BM=bm,
            BO=bo,
        )
    return context, shift


def attend(
    q: Tensor,
    projection: Tensor,
    context: Tensor,
    shift: Tensor,
    out: Tensor,
    log2_eps: float,
    amplification: float | None,
    least_norm: float,
) -> Tensor:
    """Output of every query in one launch.

    Args:
        q: queries ``[B, N, c]``, any strides.
        projection: F ``[m, c]``, float32, contiguous.
        context: as of :func:`summarise`, with c_out instead of C, contiguous.
        shift: as of :func:`summarise`.
        out: filled with the output ``[B, N, c_out]``.
        log2_eps: as for :func:`summarise`, and the two that follow.

    Returns:
        Normaliser ``[B, N, 1]`` over the largest feature of each query.
    """
    batch, n, c_out = out.shape
    m, c = projection.shape
    bc, bo = block(c, MOST_CHANNELS), block(c_out, 64)
    bm, bn = block(m, 32), 64
    normaliser = out.new_empty(batch, n, 1, dtype=torch.float32)
    with on_device(out):
        _attend[triton.cdiv(n, bn), batch, triton.cdiv(c_out, bo)](
            *(q, projection, context, shift, out, normaliser),
            *(*q.stride(), *out.stride()),
            n=n,
            c=c,
            c_out=c_out,
            m=m,
            BN=bn,
            BM=bm,
            **_constants(out, bc, bo, log2_eps, amplification, least_norm),
        )
    return normaliser


def _constants(
    like: Tensor,
    bc: int,
    bo: int,
    log2_eps: float,
    amplification: float | None,
    least_norm: float,
) -> dict[str, object]:
    """Constants of both kernels, for values or output ``like`` this."""
    exponents, values = precision(like)
    return {
        "NORMALISED": amplification is not None,
        "LEAST_NORM": least_norm,
        "HALF_K": 0.0 if amplification is None else amplification / 2 * _LOG2_E,
        "LOG2_EPS": log2_eps,
        "BC": bc,
        "BO": bo,
        "EXPONENTS": exponents,
        "VALUES": values,
        "num_stages": 2,
    }


@triton.jit
def _scale(
    square,
    NORMALISED: tl.constexpr,
    LEAST_NORM: tl.constexpr,
    HALF_K: tl.constexpr,
):
    """Factor that normalises a vector of that squared length, and |u|²/2 less that left out."""
    if NORMALISED:
        norm = tl.sqrt(tl.minimum(square, 3.4028234e38))
        length = tl.minimum(norm / LEAST_NORM, 1.0)
        # sqrt(k) from k/2 log2(e), so that no further constant is needed.
        scale = tl.sqrt(HALF_K * 1.3862943611198906) / tl.maximum(norm, LEAST_NORM)
        return scale, (length * length - 1.0) * HALF_K
    return square * 0.0 + 1.0, square * 0.7213475204444817


@triton.jit
def _summarise(
    k,
    v,
    f,
    sums,
    shifts,
    parts,
    per_part,
    k_b,
    k_n,
    k_c,
    v_b,
    v_n,
    v_c,
    n,
    c,
    c_out,
    m,
    NORMALISED: tl.constexpr,
    LEAST_NORM: tl.constexpr,
    HALF_K: tl.constexpr,
    LOG2_EPS: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BO: tl.constexpr,
    EXPONENTS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Sums of feature times value, and of features, over a part of the keys, by online shift."""
    index = tl.program_id(0)
    b = (index // parts).to(tl.int64)
    part = index % parts
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    # Products with strides may exceed 2^31.
    columns = (tl.program_id(2) * BO + tl.arange(0, BO)).to(tl.int64)
    channels = tl.arange(0, BC).to(tl.int64)
    in_f = (rows[:, None] < m) & (channels[None, :] < c)
    projection = tl.load(f + rows[:, None] * c + channels[None, :], mask=in_f, other=0.0)

    # eps is a feature's least value, and its exponent the least shift.
    top = tl.full([BM], LOG2_EPS, tl.float32)
    norm = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BO], tl.float32)
    begin = part * per_part
    for start in range(begin, tl.minimum(begin + per_part, n), BN):
        positions = (start + tl.arange(0, BN)).to(tl.int64)
        here = positions < n
        of_k = k + b * k_b + positions[None, :] * k_n + channels[:, None] * k_c
        x = tl.load(of_k, mask=here[None, :] & (channels[:, None] < c), other=0.0)
        x = x.to(tl.float32)
        scale, half_square = _scale(tl.sum(x * x, 0), NORMALISED, LEAST_NORM, HALF_K)
        x = x * scale[None, :]
        exponents = tl.dot(projection, x, input_precision=EXPONENTS) * 1.4426950408889634
        exponents = tl.where(here[None, :], exponents - half_square[None, :], _LOWEST)
        new_top = tl.maximum(top, tl.max(exponents, 1))
        shrink = tl.exp2(top - new_top)
        features = tl.exp2(exponents - new_top[:, None])
        features += tl.where(here[None, :], tl.exp2(LOG2_EPS - new_top)[:, None], 0.0)
        of_v = v + b * v_b + positions[:, None] * v_n + columns[None, :] * v_c
        values = tl.load(of_v, mask=here[:, None] & (columns[None, :] < c_out), other=0.0)
        product = tl.dot(features, values.to(tl.float32), input_precision=VALUES)
        acc = acc * shrink[:, None] + product
        norm = norm * shrink + tl.sum(features, 1)
        top = new_top

    rows_of_part = index.to(tl.int64) * m + rows
    place = sums + rows_of_part[:, None] * (c_out + 1) + columns[None, :]
    tl.store(place, acc, mask=(rows[:, None] < m) & (columns[None, :] < c_out))
    if tl.program_id(2) == 0:
        tl.store(sums + rows_of_part * (c_out + 1) + c_out, norm, mask=rows < m)
        tl.store(shifts + rows_of_part, top, mask=rows < m)


@triton.jit
def _combine(
    sums,
    shifts,
    context,
    shift,
    n,
    m,
    width,
    parts,
    BM: tl.constexpr,
    BO: tl.constexpr,
):
    """Sums of all parts under the largest shift, divided by the number of keys."""
    b = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(2) * BO + tl.arange(0, BO)
    inside = (rows[:, None] < m) & (columns[None, :] < width)
    top = tl.full([BM], _LOWEST, tl.float32)
    acc = tl.zeros([BM, BO], tl.float32)
    for part in range(parts):
        rows_of_part = (b * parts + part) * m + rows
        one = tl.load(shifts + rows_of_part, mask=rows < m, other=_LOWEST)
        of_sums = sums + rows_of_part[:, None] * width + columns[None, :]
        sum_of_part = tl.load(of_sums, mask=inside, other=0.0)
        new_top = tl.maximum(top, one)
        acc = acc * tl.exp2(top - new_top)[:, None] + sum_of_part * tl.exp2(one - new_top)[:, None]
        top = new_top
    place = context + (b * m + rows)[:, None] * width + columns[None, :]
    tl.store(place, acc / n, mask=inside)
    if tl.program_id(2) == 0:
        tl.store(shift + b * m + rows, top, mask=rows < m)


@triton.jit
def _attend(
    q,
    f,
    context,
    shift,
    out,
    normaliser,
    q_b,
    q_n,
    q_c,
    out_b,
    out_n,
    out_c,
    n,
    c,
    c_out,
    m,
    NORMALISED: tl.constexpr,
    LEAST_NORM: tl.constexpr,
    HALF_K: tl.constexpr,
    LOG2_EPS: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BO: tl.constexpr,
    EXPONENTS: tl.constexpr,
    VALUES: tl.constexpr,
):
    """Output of a block of queries, with the largest feature so far taken out."""
    positions = (tl.program_id(0) * BN + tl.arange(0, BN)).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    # Products with strides may exceed 2^31.
    columns = (tl.program_id(2) * BO + tl.arange(0, BO)).to(tl.int64)
    channels = tl.arange(0, BC).to(tl.int64)
    here = positions < n
    place = q + b * q_b + positions[:, None] * q_n + channels[None, :] * q_c
    x = tl.load(place, mask=here[:, None] & (channels[None, :] < c), other=0.0).to(tl.float32)
    scale, half_square = _scale(tl.sum(x * x, 1), NORMALISED, LEAST_NORM, HALF_K)
    x = x * scale[:, None]

    top = tl.full([BN], _LOWEST, tl.float32)
    norm = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, BO], tl.float32)
    for start in range(0, m, BM):
        rows = start + tl.arange(0, BM)
        inside = rows < m
        in_f = inside[None, :] & (channels[:, None] < c)
        projection = tl.load(f + rows[None, :] * c + channels[:, None], mask=in_f, other=0.0)
        shifts = tl.load(shift + b * m + rows, mask=inside, other=_LOWEST)
        exponents = tl.dot(x, projection, input_precision=EXPONENTS) * 1.4426950408889634
        exponents += shifts[None, :]
        # |q|²/2 would cancel: it is added to what eps gives instead.
        eps_exponents = LOG2_EPS + shifts[None, :] + half_square[:, None]
        new_top = tl.maximum(top, tl.max(tl.maximum(exponents, eps_exponents), 1))
        shrink = tl.exp2(top - new_top)
        features = tl.exp2(exponents - new_top[:, None]) + tl.exp2(eps_exponents - new_top[:, None])
        rows_of_b = (b * m + rows) * (c_out + 1)
        of_context = context + rows_of_b[:, None] + columns[None, :]
        part = tl.load(of_context, mask=inside[:, None] & (columns[None, :] < c_out), other=0.0)
        sums = tl.load(context + rows_of_b + c_out, mask=inside, other=0.0)
        acc = acc * shrink[:, None] + tl.dot(features, part, input_precision=VALUES)
        norm = norm * shrink + tl.sum(features * sums[None, :], 1)
        top = new_top

    place = out + b * out_b + positions[:, None] * out_n + columns[None, :] * out_c
    result = (acc / norm[:, None]).to(out.dtype.element_ty)
    tl.store(place, result, mask=here[:, None] & (columns[None, :] < c_out))
    if tl.program_id(2) == 0:
        tl.store(normaliser + b * n + positions, norm, mask=here)

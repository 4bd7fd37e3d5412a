"""Attention of each position to the largest of its scores: choosing them, and what weighs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import no_autocast, sum_dtype, to_map, to_rows
from ..implementations import run
from .tiles import is_watched

# Scores of a row that share a maximum.
_GROUP = 8


class Rule(NamedTuple):
    """How scores become weights.

    Attributes:
        weigh: the chosen scores ``[..., count]``, descending, to their weights.
        gradient: those weights and their gradient to the gradient of the scores. Where a weight is
            0, its gradient has no part and may be anything finite.
    """

    weigh: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def attend_to_largest(q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
    """Sum of values, weighted by the largest ``count`` of ``q_i · k_j`` for every i.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        count: scores of a row that count; all, if there are fewer positions.
        rule: makes weights of them.

    Returns:
        ``[B, c_out, H, W]``. Everything is in float32 at least. The implementations take and give
        rows ``[B, N, ·]``.
    """
    dtype = sum_dtype(v)
    with no_autocast(v):
        rows = [to_rows(t).to(dtype) for t in (q, k, v)]
        out: Tensor = run("largest", *rows, count, rule)
        return to_map(out, like=v).to(v.dtype)


def weights_of_largest(scores: Tensor, count: int, rule: Rule) -> Tensor:
    """Weights of one query's scores ``[B, H, W]``: zero where they do not count."""
    rows = scores.flatten(1)
    values, chosen = largest(rows, min(count, rows.shape[1]))
    return torch.zeros_like(rows).scatter(1, chosen, rule.weigh(values)).view_as(scores)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, descending, and where they are.

    Of equal scores it is open which are taken, but always the same ones on one device.

    Args:
        scores: ``[..., M]``.
        count: at most M.

    Returns:
        Values and indices, ``[..., count]``.
    """
    groups = scores.shape[-1] // _GROUP
    if scores.shape[-1] % _GROUP or _GROUP * count > 3 * groups:
        return _pick(scores, count)
    # The largest scores lie in the groups with the largest maxima. Neighbours are alike, so the
    # positions of a group lie far apart.
    tops = scores.unflatten(-1, (_GROUP, groups)).amax(-2)
    _, group = _pick(tops, count)
    first = torch.arange(0, scores.shape[-1], groups, device=scores.device)
    at = (first.unsqueeze(-1) + group.unsqueeze(-2)).flatten(-2)
    values, found = _pick(scores.gather(-1, at), count)
    return values, at.gather(-1, found)


def _pick(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As :func:`largest`, from all scores at once."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or is_watched():
        return scores.topk(count, dim=-1)
    if not has_vector_sort():
        return scores.topk(count, dim=-1)
    # Integers that are ordered as the scores, above the position counted from the end.
    last = scores.shape[-1] - 1
    bits = scores.contiguous().view(torch.int32)
    ordered = ((bits >> 31) & 0x7FFFFFFF).bitwise_xor_(bits)
    from_end = torch.arange(last, -1, -1, device=scores.device)
    keys = ordered.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(from_end).numpy()
    keys.partition(last + 1 - count, axis=-1)
    top = keys[..., last + 1 - count :]
    top.sort(axis=-1)
    chosen = last - (torch.from_numpy(top).flip(-1) & 0xFFFFFFFF)
    return scores.gather(-1, chosen), chosen


@cache
def has_vector_sort() -> bool:
    """Whether numpy is there, from 2.0: it sorts and partitions with vector instructions.

    torch's own sort and topk do not on the CPU: they take twice to ten times as long.
    """
    try:
        import numpy
    except ImportError:
        return False
    return int(numpy.__version__.split(".")[0]) >= 2

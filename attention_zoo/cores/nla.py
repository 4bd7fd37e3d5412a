"""How NLA is computed: rows of the maps, by one of the softmax attentions of :mod:`.softmax_rows`.

``auto``: native kernels on the CPU where they can run, else torch's fused kernel where it can run
and is faster, else tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..base import to_map, to_rows
from ..implementations import implementation, register_core
from ..nla import FUSED_WIDTH
from .native import why_not_native
from .softmax_rows import (
    softmax_attention_fused,
    softmax_attention_lse,
    softmax_attention_native,
    why_not_fused,
)


def prefers_fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's fused kernel can run on these rows and is faster than tiles.

    On the CPU filling up query, key and value to one width must cost nothing: up to
    ``FUSED_WIDTH`` the kernel's time goes into exp.
    """
    if why_not_fused(q, k, v):
        return False
    c, c_out = q.shape[-1], v.shape[-1]
    return q.device.type == "cuda" or c == c_out or max(c, c_out) <= FUSED_WIDTH


def _on_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda q, k, v: function(to_rows(q), to_rows(k), to_rows(v))


def _rule(q: Tensor, k: Tensor, v: Tensor) -> str:
    if why_not_native(q, k, v) is None:
        return "native"
    return "sdpa" if prefers_fused(q, k, v) else "tiled"


register_core("nla", _on_rows(_rule))


@implementation("nla", "native", why_not_native)
def _native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return to_map(softmax_attention_native(to_rows(q), to_rows(k), to_rows(v)), like=v)


@implementation("nla", "sdpa", _on_rows(why_not_fused))
def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return to_map(softmax_attention_fused(to_rows(q), to_rows(k), to_rows(v)), like=v)


@implementation("nla", "tiled")
def _tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return to_map(softmax_attention_lse(to_rows(q), to_rows(k), to_rows(v))[0], like=v)

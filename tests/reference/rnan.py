"""Oracle of RNAN's residual non-local attention, of parameters by name."""

from __future__ import annotations

import torch
from torch import Tensor

from .conv import convolution
from .nla import non_local_attention

Parameters = dict[str, Tensor]


def strided(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3, padding 1: every other row and column of the convolution in steps of 1."""
    return convolution(x, weight, bias)[:, :, ::2, ::2]


def transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """6x6, stride 2, padding 2: each position lays its patch, of weights ``[in, out, 6, 6]``."""
    batch, _, height, width = x.shape
    out = torch.zeros(batch, weight.shape[1], 2 * height + 4, 2 * width + 4, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            laid = torch.einsum("bc,cokl->bokl", x[:, :, i, j], weight)
            out[:, :, 2 * i : 2 * i + 6, 2 * j : 2 * j + 6] += laid
    return out[:, :, 2:-2, 2:-2] + bias[:, None, None]


def residual_blocks(x: Tensor, parameters: Parameters, name: str, count: int) -> Tensor:
    """``u + conv(relu(conv(u)))``, so many times."""
    for i in range(count):
        hidden = layer(x, parameters, f"{name}.{i}.first").clamp_min(0)
        x = x + layer(hidden, parameters, f"{name}.{i}.second")
    return x


def layer(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    """Of a 1x1 or 3x3 convolution."""
    return convolution(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def trunk_times_mask(q: Tensor, k: Tensor, v: Tensor, parameters: Parameters, m: int) -> Tensor:
    """Both branches, m residual blocks in the mask at full size."""
    p = {name: parameter.double() for name, parameter in parameters.items()}
    q, k, v = q.double(), k.double(), v.double()
    seen = non_local_attention(q, k, layer(v, p, "value"))
    x = residual_blocks(v + layer(seen, p, "joined"), p, "before", m)
    below = strided(x, p["down.weight"], p["down.bias"])
    below = residual_blocks(below, p, "below", 2 * m)
    above = transposed(below, p["up.weight"], p["up.bias"])[:, :, : v.shape[2], : v.shape[3]]
    mask = layer(residual_blocks(x + above, p, "after", m), p, "last")
    return residual_blocks(v, p, "trunk", 2 * m) * torch.sigmoid(mask)

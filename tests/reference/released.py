"""Oracles of the released modules and networks, with the tensors' released names.

Written from the formulas: slow, one image position after the other, summed in float64. The
parameters stay in the dtype they have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import criss_cross, enla, nla, nlsa
from .cases import random_weights

MEAN = (0.4488, 0.4371, 0.4040)


def layers(*modules: nn.Module) -> nn.Sequential:
    """Modules numbered from 0, in float32."""
    return nn.Sequential(*modules)


def conv(channels: int, out: int, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, padding=size // 2)


class NLA(nn.Module):
    """``softmax(q kᵀ) v + res_scale · x``, a PReLU behind each projection."""

    def __init__(self, channels: int, reduction: int = 4, res_scale: float = 0.1) -> None:
        super().__init__()
        self.conv_match1 = layers(conv(channels, channels // reduction), nn.PReLU())
        self.conv_match2 = layers(conv(channels, channels // reduction), nn.PReLU())
        self.conv_assembly = layers(conv(channels, channels), nn.PReLU())
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv_match1(x), self.conv_match2(x), self.conv_assembly(x)
        return nla.non_local_attention(q, k, v).to(x.dtype) + self.res_scale * x


class NLSA(nn.Module):
    """Sparse attention with one embedding for query and key; rotations are given."""

    rotations: Tensor

    def __init__(
        self, channels: int, reduction: int = 4, res_scale: float = 0.1, chunk_size: int = 144
    ) -> None:
        super().__init__()
        self.conv_match = layers(conv(channels, channels // reduction, 3))
        self.conv_assembly = layers(conv(channels, channels))
        self.res_scale, self.chunk_size = res_scale, chunk_size

    def forward(self, x: Tensor) -> Tensor:
        match, value = self.conv_match(x), self.conv_assembly(x)
        y = nlsa.sparse_attention(match, match, value, self.rotations, self.chunk_size)
        return x + self.res_scale * y.to(x.dtype)


class CrissCross(nn.Module):
    """``gamma · out + x``, one pass."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.query_conv = conv(channels, channels // reduction)
        self.key_conv = conv(channels, channels // reduction)
        self.value_conv = conv(channels, channels)
        self.gamma = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        return self.gamma * criss_cross.criss_cross_attention(q, k, v).to(x.dtype) + x


class RandomFeatures(nn.Module):
    """Keeper of F ``[m, c]``."""

    projection_matrix: Tensor

    def __init__(self, m: int, c: int) -> None:
        super().__init__()
        self.register_buffer("projection_matrix", torch.randn(m, c))


class ENLCA(nn.Module):
    """Random features of the unit embeddings times sqrt(6), each exponential + 1e-4."""

    def __init__(
        self, channels: int, reduction: int = 4, res_scale: float = 0.1, m: int = 128
    ) -> None:
        super().__init__()
        self.conv_match1 = layers(conv(channels, channels // reduction))
        self.conv_match2 = layers(conv(channels, channels // reduction))
        self.conv_assembly = layers(conv(channels, channels))
        self.attn_fn = RandomFeatures(m, channels // reduction)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        q, k = (enla.normalise(f(x), 6.0) for f in (self.conv_match1, self.conv_match2))
        y = enla.random_feature_attention(
            q, k, self.conv_assembly(x), self.attn_fn.projection_matrix, eps=1e-4
        )
        return self.res_scale * y.to(x.dtype) + x


class Block(nn.Module):
    """``u + res_scale · conv(relu(conv(u)))``."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.body = layers(conv(channels, channels, 3), nn.ReLU(), conv(channels, channels, 3))
        self.res_scale = res_scale

    def forward(self, u: Tensor) -> Tensor:
        return u + self.res_scale * self.body(u)


class Shift(nn.Module):
    """A 1x1 convolution that adds ``sign · image_range · mean``."""

    def __init__(self, sign: int, image_range: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[:, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(sign * image_range * torch.tensor(MEAN), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Network(nn.Module):
    """EDSR, or with attention at the beginning and behind each 8 blocks NLSN or ENLCN.

    Args:
        blocks: residual blocks.
        channels: feature channels.
        scale: 2, 3 or 4.
        attention: makes an attention module of so many channels; none for EDSR.
        res_scale: of the blocks.
        image_range: images hold values of 0…image_range, going in and coming out.
    """

    def __init__(
        self,
        blocks: int,
        channels: int,
        scale: int,
        attention: Callable[[int], nn.Module] | None = None,
        res_scale: float = 0.1,
        image_range: float = 1.0,
    ) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = Shift(-1, image_range), Shift(1, image_range)
        self.head = layers(conv(3, channels, 3))
        self.body = nn.ModuleList()
        for done in range(blocks + 1):
            if attention and done % 8 == 0:
                self.body.append(attention(channels))
            if done < blocks:
                self.body.append(Block(channels, res_scale))
        self.body.append(conv(channels, channels, 3))
        steps = [3] if scale == 3 else [2] * int(math.log2(scale))
        upsampler = [
            layer for r in steps for layer in (conv(channels, r * r * channels, 3), Shuffle(r))
        ]
        self.tail = layers(layers(*upsampler), conv(channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        first = u = self.head(self.sub_mean(x))
        for entry in self.body:
            u = entry(u)
        return self.add_mean(self.tail(u + first))


class Shuffle(nn.Module):
    """``[B, r²C, H, W]`` to ``[B, C, rH, rW]``: channel r²c + ri + j goes to pixel (i, j)."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        r = self.r
        parts = x.reshape(batch, channels // r**2, r, r, height, width)
        return parts.permute(0, 1, 4, 2, 5, 3).reshape(batch, -1, r * height, r * width)


def assert_same_function(
    ours: nn.Module,
    released: nn.Module,
    x: Tensor,
    names: Mapping[str, str],
    image_range: float = 1.0,
) -> None:
    """Output to 1e-5 and gradients to 1e-4 of their largest magnitude, in float32.

    Args:
        ours: takes and gives ``x``'s range.
        released: takes and gives ``image_range`` times it.
        x: the input.
        names: released name of each of our parameters.
        image_range: see ``released``.
    """
    x = x.detach().requires_grad_()
    theirs, mine = released(image_range * x), image_range * ours(x)
    error, largest = (mine - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= 1e-5 * max(1.0, largest), f"output: error {error:.3g}, largest {largest:.3g}"
    weights = random_weights(theirs).to(x.dtype)
    parameters = dict(released.named_parameters())
    wanted = torch.autograd.grad(
        (theirs * weights).sum(), [x, *(parameters[names[n]] for n, _ in ours.named_parameters())]
    )
    found = torch.autograd.grad((mine * weights).sum(), [x, *ours.parameters()])
    # A gradient that is zero but for rounding (that of a key's bias) has no size of its own.
    floor = 1e-2 * max(g.abs().max().item() for g in wanted)
    for name, a, b in zip(["x", *dict(ours.named_parameters())], found, wanted, strict=True):
        error, largest = (a - b).abs().max().item(), b.abs().max().item()
        assert error <= 1e-4 * max(largest, floor), f"d/d{name}: {error:.3g} of {largest:.3g}"

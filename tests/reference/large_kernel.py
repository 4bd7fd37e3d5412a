"""Oracle of ESC's convolutional attention: one image, one channel, one kernel at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .conv import convolution


def convolutional_attention(
    x: Tensor, large: Tensor, layers: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Tensor:
    """``x * L + x * D(x)`` for the first channels; layers are (weight, bias) of what makes D."""
    x = x.double()
    p = large.shape[0]
    turned = [torch.rot90(large.double(), turns, (2, 3)) for turns in range(4)]
    kernel = sum(k + k.flip(3) for k in turned) / 8
    (down, down_bias), (up, up_bias) = layers
    images = []
    for image in x:
        some, rest = image[:p], image[p:]
        means = torch.stack([channel.mean() for channel in some])
        hidden = down.double() @ means + down_bias.double()
        hidden = hidden / 2 * (1 + torch.erf(hidden / math.sqrt(2)))
        dynamic = (up.double() @ hidden + up_bias.double()).view(p, 1, 1, 3, 3)
        alone = [convolution(some[i][None, None], dynamic[i], None)[0, 0] for i in range(p)]
        mixed = convolution(some[None], kernel, None)[0]
        images.append(torch.cat([mixed + torch.stack(alone), rest]))
    return torch.stack(images)

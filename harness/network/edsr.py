"""The EDSR backbone (Lim et al., CVPRW 2017) with places for attention modules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attention_zoo import Attention
from attention_zoo.oracle import Oracle

from ..config.network import NetworkConfig, quarters
from ..config.variants import Variant
from .convolution import Conv3x3, NarrowConv, UpsamplingConv

#: Mean RGB of DIV2K in 0…1, subtracted from the input and added to the output.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class EDSR(nn.Module):
    """EDSR with attention modules between its blocks: ``[B, 3, H, W]`` to ``[B, 3, sH, sW]``.

    ``SR = tail(upsample(conv(blocks(h)) + h)) + mean`` with ``h = head(LR − mean)``; images are
    in 0…1. A network without attention modules is plain EDSR.

    Args:
        network: number of blocks (at least 4 for modules at :func:`quarters`), channels, residual
            scale.
        scale: s: 1 to 4; at 1 there is no up-sampler, as in networks for denoising.
        image_range: largest pixel value that the layers see (255 in EDSR's released networks).
    """

    mean: Tensor

    def __init__(self, network: NetworkConfig, scale: int, image_range: float = 1.0) -> None:
        super().__init__()
        channels, res_scale = network.channels, network.block_res_scale
        self.scale, self.image_range = scale, image_range
        #: How far the convolutions see in LR pixels.
        self.reach = network.reach
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, res_scale) for _ in range(network.blocks)
        )
        self.body_end = Conv3x3(channels, channels)
        steps: tuple[int, ...] = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[scale]
        self.upsampler = nn.Sequential()
        for i, factor in enumerate(steps):
            # Named as in EDSR's own checkpoints, where a pixel shuffle stands between.
            self.upsampler.add_module(str(2 * i), UpsamplingConv(channels, factor))
        self.tail = NarrowConv(channels, 3)
        #: Attention modules by the number of blocks before them; empty for plain EDSR.
        self.attention = nn.ModuleDict()

    def insert(self, modules: Sequence[Attention], positions: Sequence[int]) -> None:
        """Insert attention modules; each position is the number of blocks before a module."""
        for position, module in zip(positions, modules, strict=True):
            self.attention[str(position)] = module

    @property
    def attention_modules(self) -> list[Attention]:
        """The inserted modules, first to last."""
        return [module for module in self.attention.values() if isinstance(module, Attention)]

    def forward(self, x: Tensor) -> Tensor:
        """LR ``[B, 3, H, W]`` in 0…1 to SR ``[B, 3, scale·H, scale·W]``, not clamped."""
        # With the range 1 neither the product nor the quotient changes a bit.
        head = self.head((x - self.mean) * self.image_range)
        u = self._attend(0, head)
        for i, block in enumerate(self.blocks, start=1):
            u = self._attend(i, block(u))
        return self.tail(self.upsampler(self.body_end(u) + head)) / self.image_range + self.mean

    def _attend(self, position: int, u: Tensor) -> Tensor:
        key = str(position)
        return self.attention[key](u) if key in self.attention else u

    def auxiliary_loss(self) -> Tensor:
        """Mean of the modules' auxiliary losses, a scalar; zero without modules."""
        losses = [module.auxiliary_loss() for module in self.attention_modules]
        return torch.stack(losses).mean() if losses else self.mean.new_zeros(())

    def enable_auxiliary(self, enabled: bool) -> None:
        """Choose whether training forwards leave auxiliary losses."""
        for module in self.attention_modules:
            module.auxiliary_enabled = enabled

    def set_references(self, references: Tensor | None) -> None:
        """Tell oracles the true references ``[B, H·W, R]`` of the next images."""
        for module in self.attention_modules:
            if isinstance(module, Oracle):
                module.references = references

    @property
    def has_oracle(self) -> bool:
        """Whether a module takes references."""
        return any(isinstance(module, Oracle) for module in self.attention_modules)

    def redraw(self) -> None:
        """Redraw the modules' random projections."""
        for module in self.attention_modules:
            module.redraw()


class ResidualBlock(nn.Module):
    """``u + res_scale · conv(relu(conv(u)))``, without batch normalisation."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)
        self.res_scale = res_scale

    def forward(self, u: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        y = self.conv2(torch.relu_(self.conv1(u)))
        return torch.add(u, y, alpha=self.res_scale)


def learn_res_scale(module: Attention) -> None:
    """Make the module's weight a trained scalar, ``res_scale``, which begins at its value.

    A module without this option keeps what it has: Criss-Cross its learned gamma, a plain module
    its own residual.
    """
    if module.has_core and "res_scale" in module.options():
        module.res_scale = nn.Parameter(torch.tensor(float(module.res_scale)))


def learned_weights(network: EDSR) -> list[float]:
    """The trained weights of the modules, first to last, to six digits."""
    weights = (module.res_scale for module in network.attention_modules)
    return [round(weight.item(), 6) for weight in weights if isinstance(weight, Tensor)]


def build_network(
    variant: Variant,
    network: NetworkConfig,
    scale: int,
    *,
    image_range: float = 1.0,
    positions: Sequence[int] | None = None,
    learned: bool = False,
    seed: int = 0,
) -> EDSR:
    """EDSR with the variant's modules, initialised from ``seed``.

    The backbone's weights depend on the seed alone: they are drawn first, then those of the
    modules, from a seed of their own. The global random state does not change.

    Args:
        variant: the attention modules; plain EDSR for ``none``.
        network: size of the backbone.
        scale: 1, 2, 3 or 4.
        image_range: as for :class:`EDSR`.
        positions: of the modules, each the number of blocks before it; :func:`quarters` if None.
        learned: whether the modules' weights are trained: :func:`learn_res_scale`.
        seed: of all weights.

    Raises:
        AttentionError: the module refuses an option, such as m = 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = EDSR(network, scale, image_range)
        if variant.name != "none":
            torch.manual_seed(seed + 2**32)
            places = quarters(network.blocks) if positions is None else positions
            modules = [variant.create(network.channels) for _ in places]
            for module in modules if learned else ():
                learn_res_scale(module)
            built.insert(modules, places)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """``[B, H, W, 3]`` to float ``[B, 3, H, W]``, channels-last without a copy.

    uint8 becomes 0…1; float32 stays as it is.
    """
    if not images.flags.writeable:  # torch warns about memory that it could not write to
        images = images.copy()
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels

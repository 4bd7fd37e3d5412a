"""Size of the backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..base.errors import UserError

#: Attention modules of a network on image files, unless the command gives another number.
MODULES = 5


@dataclass(frozen=True)
class NetworkConfig:
    """Size of EDSR, the backbone of every network.

    Attributes:
        blocks: residual blocks.
        channels: feature channels.
        block_res_scale: weight of a block's residual; 0.1 in the paper's 32 x 256 network.
    """

    blocks: int
    channels: int
    block_res_scale: float = 1.0

    @property
    def reach(self) -> int:
        """How far the convolutions see in LR pixels: no farther pixel changes an output pixel.

        One for each of head, end of the body, up-sampler and tail, two for each block. At scale 1,
        without an up-sampler, they see one pixel less.
        """
        return 2 * self.blocks + 4

    def check(self, *, quarters: bool = True) -> None:
        """Check that a network of this size can be built and trained.

        Args:
            quarters: whether attention follows each quarter of the blocks.

        Raises:
            UserError: a value is out of range.
        """
        if quarters and self.blocks < 4:
            raise UserError(
                f"blocks must be at least 4 (attention follows each quarter), got {self.blocks}"
            )
        if self.blocks < 1:
            raise UserError(f"blocks must be at least 1, got {self.blocks}")
        if self.channels < 1:
            raise UserError(f"channels must be at least 1, got {self.channels}")
        if not math.isfinite(self.block_res_scale):
            raise UserError(f"block res scale must be finite, got {self.block_res_scale}")


def quarters(blocks: int) -> tuple[int, ...]:
    """Positions of the five modules: before the first block and after each quarter of them."""
    return tuple(round(i * blocks / 4) for i in range(MODULES))


def spread(blocks: int, modules: int) -> tuple[int, ...]:
    """Positions of any number of modules, each the number of blocks before it.

    Five stand at :func:`quarters`. Any other number n cuts the blocks into n equal parts, and a
    module stands in the middle of each: after ``floor((2 i + 1) blocks / (2 n))`` blocks, i from 0.
    So two stand after the first and the third quarter.

    Raises:
        UserError: there are no modules, or more than blocks.
    """
    if modules == MODULES:
        return quarters(blocks)
    if not 1 <= modules <= blocks:
        raise UserError(
            f"modules must be 1 to {blocks}, the number of blocks, or {MODULES}, got {modules}"
        )
    return tuple((2 * i + 1) * blocks // (2 * modules) for i in range(modules))

"""Size of the backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..base.errors import UserError


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

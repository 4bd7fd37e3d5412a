"""Non-Local Attention by the fused (flash, memory-efficient) kernel, or not at all.

Papers: Non-local Neural Networks, Wang et al., CVPR 2018; FlashAttention, Dao et al., NeurIPS 2022.
Equation: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``, as ``nla``.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
Numerics: as :func:`attention_zoo.nla.non_local_attention`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import AttentionError, Cost
from ..implementations import use_implementation
from ..nla import NonLocalAttention, non_local_attention
from ..registry import register_attention

_DEVICES = ("cpu", "cuda", "meta")


@register_attention("nla-flash")
class FlashNonLocalAttention(NonLocalAttention):
    """NLA whose implementation is always ``sdpa``: the row that shows what exact attention costs.

    Mathematics, parameters and checkpoints are those of ``nla``, without 1/sqrt(c). The kernel
    takes one width, so zeros fill up query and key to the width of the value, or the value to
    theirs.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        released: the form in the released NLSN code: PReLU after each projection, and the scale
            on the input, ``y = attention + res_scale · x``.
        shared: one 3x3 convolution serves as query and key, and keys are divided by their norm.
    """

    label_format: ClassVar[str] = "NLA (flash)"
    source: ClassVar[str] = (
        "Non-local Neural Networks, Wang et al., CVPR 2018; FlashAttention, Dao et al., "
        "NeurIPS 2022"
    )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`attention_zoo.nla.non_local_attention` by torch's fused kernel.

        Raises:
            AttentionError: the shapes do not fit together, or torch has no such kernel here.
        """
        if q.device.type not in _DEVICES:
            raise AttentionError(
                f"nla-flash knows no fused kernel on {q.device.type}: use nla --impl tiled"
            )
        try:
            with use_implementation("nla=sdpa"):
                return non_local_attention(q, k, v)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            raise AttentionError(
                f"torch has no fused kernel for {q.dtype} and {q.shape[1]} channels on this "
                "device: use nla --impl tiled"
            ) from error

    def cost(self, height: int, width: int) -> Cost:
        """As ``nla``; executed: 2 N² max(c, c_out) MACs, since widths are filled up."""
        cost, n = super().cost(height, width), height * width
        widths = 2 * max(self.embedding, self.channels)
        return Cost(projections=cost.projections, core=cost.core, executed=n**2 * widths)

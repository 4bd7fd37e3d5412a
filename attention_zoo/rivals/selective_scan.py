"""Selective scan of Mamba along rows and columns: a state that decays by what it meets.

Papers: Mamba, Gu and Dao, 2023, Eq. 2-4; its scalar decay of a head is Mamba-2's (Dao and Gu, ICML
2024); four directions as in VMamba (Liu et al., NeurIPS 2024) and MambaIR (Guo et al., ECCV 2024;
v2 CVPR 2025).
Equation: ``h_t = exp(−a Δ_t) h_{t-1} + (1 − exp(−a Δ_t)) / a · x_t b_tᵀ``, ``o_t = h_t c_t``; y is
the mean of the directions plus D x, after a 1x1 convolution that joins the heads.
Shapes: c (query) and b (key) ``[B, state, H, W]``, x (value) and y ``[B, C, H, W]``,
h ``[C/heads, state]``; a and Δ of each direction and head, D of each head.
Steps: ``Δ = softplus(W x + bias)``, a layer within the operation: Mamba's, too, is one of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..cores.scans import (
    CHUNK,
    LEAST_LOG_DECAY,
    back_in_place,
    cumulated,
    draw_log_rates,
    draw_step_biases,
    gates_in_chunks,
    in_order,
    num_chunks,
    require_directions,
    split_chunks,
    sum_of_passes,
    to_chunks,
    unit_length,
)
from ..implementations import outside_graphs
from ..layers import call_in_dtype
from ..registry import register_attention

#: Weights of inputs are at least this: they are multiplied as logarithms.
LEAST_WEIGHT = 1e-30


@outside_graphs
def selective_scan(
    q: Tensor, k: Tensor, v: Tensor, steps: Tensor, rates: Tensor, skip: Tensor, directions: int = 4
) -> Tensor:
    """Mean of the recurrence's outputs over the directions, from states of zero, plus D x.

    It is computed in chunks (Mamba-2's state space duality): within a chunk as attention, whose
    scores are decays times ``c_i · b_j``, by one matrix for forward and backward; from chunk to
    chunk by the state.

    Args:
        q: the vectors c, ``[B, state, H, W]``, scaled to unit length.
        k: the vectors b, likewise.
        v: inputs x ``[B, C, H, W]``; heads are runs of C / heads channels.
        steps: Δ, ``[B, directions · heads, H, W]``, at least 0.
        rates: a, ``[directions · heads]``, above 0. Decays exp(−a Δ) count as at least exp(−30).
        skip: D, ``[heads]``.
        directions: 2 for row by row, forward and backward; 4 for column by column too.

    Returns:
        ``[B, C, H, W]`` in the dtype of v. Norms count as at least 5e-5.

    Raises:
        AttentionError: the shapes do not fit together, or directions is neither 2 nor 4.
    """
    check_qkv(q, k, v)
    require_directions(directions)
    heads = len(skip)
    check_heads(heads, v.shape[1])
    wanted = [v.shape[0], directions * heads, *v.shape[2:]]
    if list(steps.shape) != wanted or rates.shape != steps.shape[1:2]:
        raise AttentionError(
            f"steps must be {wanted} and rates [{wanted[1]}] for {heads} heads in {directions} "
            f"directions, got {list(steps.shape)} and {list(rates.shape)}"
        )
    dtype, passes = sum_dtype(v), directions // 2
    with no_autocast(v):
        # A matrix [channels, chunk] for each chunk, pass and image.
        c, b, x = (to_chunks([t.to(dtype)] * passes) for t in (q, k, v))
        shape, chunks = x.shape, len(x)
        c, b, x = (t.flatten(0, 2) for t in (c, b, x))
        c, b = (unit_length(t, 1) for t in (c, b))
        rates = rates.to(dtype).view(-1, 1, 1)
        log_decay = (-rates * steps.to(dtype)).clamp_min(LEAST_LOG_DECAY)
        weights = (-torch.expm1(log_decay) / rates).clamp_min(LEAST_WEIGHT).log()
        directed = zip(
            gates_in_chunks(log_decay, directions, heads),
            gates_in_chunks(weights, directions, heads),
            (False, True),
            strict=True,
        )
        forward, backward = (
            _Gates(*cumulated(decay.flatten(0, 2), is_back), weight.flatten(0, 2))
            for decay, weight, is_back in directed
        )
        (kept, added), (kept_back, added_back) = (
            _written(b, x, gates) for gates in (forward, backward)
        )
        states = _states_before((kept, kept_back), (added, added_back), chunks)
        skip, size = 2 * skip.to(dtype), CHUNK * max(heads * CHUNK, v.shape[1])
        outs = [
            _outputs(c, b, x, _Gates(*gates[:3]), _Gates(*gates[3:6]), gates[6:], skip)
            for c, b, x, *gates in split_chunks(size, c, b, x, *forward, *backward, *states)
        ]
        return (sum_of_passes(torch.cat(outs).view(shape), like=v) / directions).to(v.dtype)


class _Gates(NamedTuple):
    """Of M chunks in one direction, as logarithms.

    Attributes:
        sums: decays since the chunk began, ``[M, heads, chunk]``.
        whole: decay of the whole chunk, ``[M, heads, 1]``.
        weights: of the inputs, ``[M, heads, chunk]``.
    """

    sums: Tensor
    whole: Tensor
    weights: Tensor


def _written(b: Tensor, x: Tensor, gates: _Gates) -> tuple[Tensor, Tensor]:
    """What is left of the state after each chunk, ``[M, C, 1]``, and what the chunk adds to it.

    The latter is ``[M, C, state]``.
    """
    heads = gates.whole.shape[1]
    added = [
        torch.bmm((_split(x, heads) * (w + whole - s).exp().unsqueeze(2)).flatten(1, 2), b.mT)
        for b, x, s, whole, w in split_chunks(x[0].numel(), b, x, *gates)
    ]
    return gates.whole.exp().repeat_interleave(x.shape[1] // heads, 1), torch.cat(added)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(1, (heads, -1))


def _outputs(
    c: Tensor,
    b: Tensor,
    x: Tensor,
    forward: _Gates,
    backward: _Gates,
    states: Sequence[Tensor],
    skip: Tensor,
) -> Tensor:
    """Forward plus backward outputs, plus ``skip · x``: ``[M, C, chunk]``.

    Args:
        c: of M chunks, ``[M, state, chunk]``, of unit length like b.
        b: ``[M, state, chunk]``.
        x: ``[M, C, chunk]``.
        forward: gates.
        backward: gates.
        states: before the chunks, forward and backward, ``[M, C, state]``.
        skip: ``[heads]``.
    """
    # Of position j (a row) in position i (a column): forward from j <= i, backward from later j.
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=x.device).triu_()
    products = torch.bmm(b.mT, c)
    scores = torch.where(
        later,
        forward.sums.unsqueeze(-2) + (forward.weights - forward.sums).unsqueeze(-1),
        backward.sums.unsqueeze(-2) + (backward.weights - backward.sums).unsqueeze(-1),
    )
    scores = scores.exp() * products.unsqueeze(1)
    inputs = _split(x, len(skip))
    out = torch.bmm(inputs.flatten(0, 1), scores.flatten(0, 1)).view_as(inputs)
    # Of itself, a position has what forward gives, then what backward gives.
    own = backward.weights.exp() * products.diagonal(dim1=1, dim2=2).unsqueeze(1)
    out = torch.addcmul(out, inputs, (own + skip.view(-1, 1)).unsqueeze(2))
    for state, gates in zip(states, (forward, backward), strict=True):
        read = torch.bmm(state, c).view_as(inputs)
        out = torch.addcmul(out, read, gates.sums.exp().unsqueeze(2))
    return out.flatten(1, 2)


def _states_before(
    kept: tuple[Tensor, Tensor], added: tuple[Tensor, Tensor], chunks: int
) -> tuple[Tensor, Tensor]:
    """The state before every chunk of either direction, ``[M, C, state]``: the one part in turn."""
    decays, news = in_order(kept, chunks), in_order(added, chunks)
    state = torch.zeros_like(news[0])
    before = [state]
    for decay, new in zip(decays[:-1], news[:-1], strict=True):
        state = torch.addcmul(new, state, decay)
        before.append(state)
    return back_in_place(before)


@register_attention("selective-scan")
class SelectiveScanAttention(Attention):
    """The selective scan along rows and columns, forward and backward, with 1x1 embeddings.

    Mamba decays every channel and state by a rate of its own, Mamba-2 each head by one: only then
    is a chunk a few matrix products. Inputs are weighed by the exact zero-order hold of the paper's
    Eq. 4; the released code takes Δ in its place, which has no bound. Directions share b and c, and
    have steps and rates of their own; in VMamba and MambaIR they share nothing, and are added up.
    b and c have unit length in place of the blocks' LayerNorm. Left out are the short convolution
    (the backbone's stand before), SiLU and the gate of the output, the MLP, and what MambaIRv2 adds
    (learned prompts in c, positions sorted by meaning). Rates and steps begin as in Mamba-2: a
    uniform in 1 … 16, softplus(bias) log-uniform in 0.001 … 0.1.

    Args:
        channels: channels C of input and output.
        state: channels of b and c, the states of each channel.
        heads: heads, each with steps and rates of its own.
        directions: 2 (row by row, forward and backward) or 4 (column by column too).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Selective scan-s{state}"
    source: ClassVar[str] = (
        "Mamba, Gu and Dao, 2023, Eq. 2-4; Mamba-2, Dao and Gu, ICML 2024; directions of VMamba, "
        "Liu et al., NeurIPS 2024"
    )
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        state: int = 16,
        heads: int = 4,
        directions: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("state", state, 1)
        check_heads(heads, channels)
        require_directions(directions)
        self.state, self.heads, self.directions = state, heads, directions
        self.query = nn.Conv2d(channels, state, 1)
        self.key = nn.Conv2d(channels, state, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.step = nn.Conv2d(channels, directions * heads, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.log_rate = nn.Parameter(draw_log_rates(directions * heads))
        self.skip = nn.Parameter(torch.ones(heads))
        assert self.step.bias is not None
        with torch.no_grad():
            self.step.bias.copy_(draw_step_biases(directions * heads))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to c, b ``[B, state, H, W]`` and the inputs ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The steps of v, :func:`selective_scan`, and the convolution that joins the heads."""
        check_qkv(q, k, v)
        rates = self.log_rate.to(sum_dtype(v)).exp()
        return self.output(
            selective_scan(q, k, v, self.steps(v), rates, self.skip, self.directions)
        )

    def steps(self, v: Tensor) -> Tensor:
        """Δ ``[B, directions · heads, H, W]``, float32 at least."""
        with no_autocast(v):
            return F.softplus(call_in_dtype(self.step, v.to(sum_dtype(v))))

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N state C MACs a direction: an update of the state, and a product with c.

        Executed: the products of the chunked form, the layer of the steps, and N C² to join the
        heads.
        """
        n, s, channels = height * width, self.state, self.channels
        rows, passes = num_chunks(n) * CHUNK, self.directions // 2
        within = passes * rows * CHUNK * (s + channels)
        between = 2 * self.directions * rows * s * channels
        outside = n * channels * (self.directions * self.heads + channels)
        return Cost(
            projections=n * channels * (2 * s + channels),
            core=2 * n * s * channels * self.directions,
            executed=within + between + outside,
        )

"""Gated DeltaNet: a state that decays, and corrects what it holds for each key.

Paper: Gated Delta Networks, Yang, Kautz and Hatamizadeh, ICLR 2025, Section 3 (Eq. 10).
Equation: ``S_t = alpha_t S_{t-1} (I − beta_t k_t k_tᵀ) + beta_t v_t k_tᵀ``, ``o_t = S_t q_t``, q
and k of unit length; along rows and columns, forward and backward. y is the mean of the directions
after a 1x1 convolution that joins the heads.
Shapes: q, k ``[B, heads·state, H, W]``, v and y ``[B, C, H, W]``, S ``[C/heads, state]``.
Gates: ``beta = sigmoid(W_b v + b)``, ``log alpha = −a softplus(W_a v + b)`` for each direction and
head. They are layers within the operation: v is a square linear map of x, so that gates of v can
be whatever gates of x can be.
"""

from __future__ import annotations

import math
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
    unit_triangular_inverse,
)
from ..implementations import outside_graphs
from ..layers import call_in_dtype
from ..registry import register_attention


@outside_graphs
def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_alpha: Tensor,
    beta: Tensor,
    heads: int = 1,
    directions: int = 4,
) -> Tensor:
    """Mean of the recurrence's outputs over the directions, from states of zero.

    It is computed in chunks (Section 3.3): with ``u_t = beta_t (v_t − alpha_t S_{t-1} k_t)``, what
    a chunk writes, ``S_t`` is the decayed state before the chunk plus decayed ``u_j k_jᵀ``. All u
    of a chunk solve one triangular system, linear in the state before. States pass from chunk to
    chunk in turn, by a matrix each.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        log_alpha: logarithms of the decays, ``[B, directions · heads, H, W]``, at most 0. Decays
            count as at least exp(−30).
        beta: ``[B, directions · heads, H, W]``, 0 to 1.
        heads: heads, each with a state of its own.
        directions: 2 for row by row, forward and backward; 4 for column by column too.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v. Norms count as at least 5e-5.

    Raises:
        AttentionError: the shapes do not fit together, or directions is neither 2 nor 4.
    """
    check_qkv(q, k, v)
    require_directions(directions)
    check_heads(heads, q.shape[1], v.shape[1])
    wanted = [v.shape[0], directions * heads, *v.shape[2:]]
    for name, gate in (("log_alpha", log_alpha), ("beta", beta)):
        if list(gate.shape) != wanted:
            raise AttentionError(
                f"{name} must be {wanted} for {heads} heads in {directions} directions, got "
                f"{list(gate.shape)}"
            )
    dtype, passes = sum_dtype(v), directions // 2
    with no_autocast(v):
        # A matrix [channels, chunk] for each chunk, pass, image and head.
        queries, keys, values = (
            to_chunks([t.to(dtype)] * passes).unflatten(3, (heads, -1)) for t in (q, k, v)
        )
        shape, chunks = values.shape, len(values)
        queries, keys, values = (t.flatten(0, 3) for t in (queries, keys, values))
        queries, keys = (unit_length(t, 1) for t in (queries, keys))
        log_decay = log_alpha.to(dtype).clamp_min(LEAST_LOG_DECAY)
        gates = [
            gate.flatten(0, 3)
            for of_decay_or_beta in (log_decay, beta.to(dtype))
            for gate in gates_in_chunks(of_decay_or_beta, directions, heads)
        ]
        size = CHUNK * max(CHUNK, keys.shape[1], values.shape[1])
        tiles = [_write(*tile) for tile in split_chunks(size, queries, keys, values, *gates)]
        states = _states_before(tiles, chunks)
        outs = [
            _read(forward, before) + _read(backward, after)
            for (forward, backward), (before, after) in zip(
                tiles, split_chunks(size, *states), strict=True
            )
        ]
        out = torch.cat(outs).view(shape).flatten(3, 4)
        return (sum_of_passes(out, like=v) / directions).to(v.dtype)


class _Written(NamedTuple):
    """What the chunks of one direction write; S is the state before a chunk.

    Attributes:
        keys: W and
        values: U of the solutions ``u = U − S W``, ``[M, d, chunk]`` and ``[M, e, chunk]``.
        weights: of the solution j (a row) in the output i (a column), ``[M, chunk, chunk]``.
        queries: decayed since the chunk began, ``[M, d, chunk]``.
        change: the state after a chunk is ``S · change + added``, ``[M, d, d]``.
        added: ``[M, e, d]``.
    """

    keys: Tensor
    values: Tensor
    weights: Tensor
    queries: Tensor
    change: Tensor
    added: Tensor


def _write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    log_decay_back: Tensor,
    beta: Tensor,
    beta_back: Tensor,
) -> tuple[_Written, _Written]:
    """Forward and backward, of M chunks: maps ``[M, channels, chunk]``, gates ``[M, chunk]``."""
    products = torch.bmm(k.mT, k), torch.bmm(k.mT, q)
    return (
        _write_one(q, k, v, products, log_decay, beta, False),
        _write_one(q, k, v, products, log_decay_back, beta_back, True),
    )


def _write_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    products: tuple[Tensor, Tensor],
    log_decay: Tensor,
    beta: Tensor,
    backward: bool,
) -> _Written:
    sums, whole = (t.unsqueeze(1) for t in cumulated(log_decay, backward))
    beta = beta.unsqueeze(1)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu_()
    # What of position j (a row) is left at position i (a column), where i is not before j.
    left = (sums - sums.mT).masked_fill(~(later.mT if backward else later), -math.inf).exp()
    of_keys, of_queries = products
    system, decayed = left * of_keys * beta, sums.exp()
    inverse = unit_triangular_inverse(system.mT if backward else system)
    inverse = inverse.mT if backward else inverse
    keys, values = (torch.bmm(t, inverse) for t in (k * (beta * decayed), v * beta))
    kept = (k * (whole - sums).exp()).mT
    change = torch.diag_embed(whole.squeeze(1).exp().expand(-1, k.shape[1]))
    change = torch.baddbmm(change, keys, kept, alpha=-1)
    return _Written(keys, values, left * of_queries, q * decayed, change, torch.bmm(values, kept))


def _states_before(
    tiles: Sequence[tuple[_Written, _Written]], chunks: int
) -> tuple[Tensor, Tensor]:
    """The state before every chunk of either direction, ``[M, e, d]``: the one part in turn."""
    directions = list(zip(*tiles, strict=True))
    changes = in_order([torch.cat([w.change for w in tiles]) for tiles in directions], chunks)
    added = in_order([torch.cat([w.added for w in tiles]) for tiles in directions], chunks)
    state = torch.zeros_like(added[0])
    before = [state]
    for change, new in zip(changes[:-1], added[:-1], strict=True):
        state = torch.baddbmm(new, state, change)
        before.append(state)
    return back_in_place(before)


def _read(written: _Written, states: Tensor) -> Tensor:
    """Outputs ``[M, e, chunk]`` of a direction."""
    solutions = torch.baddbmm(written.values, states, written.keys, alpha=-1)
    inherited = torch.bmm(states, written.queries)
    return torch.baddbmm(inherited, solutions, written.weights)


@register_attention("gated-delta")
class GatedDeltaAttention(Attention):
    """The gated delta rule along rows and columns, forward and backward, with 1x1 embeddings.

    The paper scans text in one direction. Directions share q, k and v; each has gates of its own.
    Left out are the paper's short convolutions and SiLU of q, k and v (the backbone's convolutions
    stand before), the gate and normalisation of its output, and the MLP. Decays begin as in the
    released code: a uniform in 1 … 16 (there 0 … 16), softplus(b) log-uniform in 0.001 … 0.1.

    Args:
        channels: channels C of input and output.
        state: channels of query and key of each head; a head's state is C/heads x state.
        heads: heads, each with a state and gates of its own.
        directions: 2 (row by row, forward and backward) or 4 (column by column too).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Gated DeltaNet-s{state}"
    source: ClassVar[str] = "Gated Delta Networks, Yang et al., ICLR 2025, Section 3"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        state: int = 32,
        heads: int = 1,
        directions: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("state", state, 1)
        check_heads(heads, channels)
        require_directions(directions)
        self.state, self.heads, self.directions = state, heads, directions
        self.query = nn.Conv2d(channels, heads * state, 1)
        self.key = nn.Conv2d(channels, heads * state, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.decay = nn.Conv2d(channels, directions * heads, 1)
        self.strength = nn.Conv2d(channels, directions * heads, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.log_rate = nn.Parameter(draw_log_rates(directions * heads))
        assert self.decay.bias is not None
        with torch.no_grad():
            self.decay.bias.copy_(draw_step_biases(directions * heads))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, heads·state, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The gates of v, :func:`gated_delta_rule`, and the convolution that joins the heads."""
        check_qkv(q, k, v)
        log_alpha, beta = self.gates(v)
        return self.output(gated_delta_rule(q, k, v, log_alpha, beta, self.heads, self.directions))

    def gates(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha and beta, each ``[B, directions · heads, H, W]``, float32 at least."""
        with no_autocast(v):
            x = v.to(sum_dtype(v))
            rate = self.log_rate.to(x.dtype).exp().view(-1, 1, 1)
            log_alpha = -rate * F.softplus(call_in_dtype(self.decay, x))
            return log_alpha, call_in_dtype(self.strength, x).sigmoid()

    def cost(self, height: int, width: int) -> Cost:
        """Core 3 N state C MACs a direction: a product with k, an update, a product with q.

        Executed: the products of the chunked form with the inverses of its triangular systems, the
        gates, and N C² to join the heads.
        """
        n, c, channels = height * width, self.heads * self.state, self.channels
        d, e, chunks = self.state, channels // self.heads, num_chunks(n)
        rows, passes = chunks * CHUNK, self.directions // 2
        inverse = (CHUNK**2 - 1) // 3 - 1  # for each position: squares of 2, 4, … chunk / 2
        per_direction = (
            rows * (d * (d + e) + 2 * d * e + CHUNK * e + inverse + CHUNK * (d + e))
            + max(0, chunks - 1) * d * d * e
        )
        scan = self.heads * (self.directions * per_direction + passes * rows * CHUNK * 2 * d)
        outside = n * channels * (2 * self.directions * self.heads + channels)
        return Cost(
            projections=n * channels * (2 * c + channels),
            core=3 * n * self.state * channels * self.directions,
            executed=scan + outside,
        )

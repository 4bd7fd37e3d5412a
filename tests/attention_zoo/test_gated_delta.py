"""What the gated delta rule is; its oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.cores.scans import CHUNK, unit_triangular_inverse
from attention_zoo.rivals.gated_delta import gated_delta_rule
from tests.attention_zoo.table import assert_attend_agrees
from tests.reference.cases import assert_close, random_map, random_qkv
from tests.reference.scans import orders


def gates(
    alpha: float, beta: float, size: tuple[int, int], directions: int = 4
) -> tuple[Tensor, Tensor]:
    """log alpha and beta, the same everywhere."""
    shape = (1, directions, *size)
    log_alpha = torch.full(shape, math.log(alpha), dtype=torch.float64)
    return log_alpha, torch.full(shape, beta, dtype=torch.float64)


def random_gates(seed: int, size: tuple[int, int], directions: int = 4) -> tuple[Tensor, Tensor]:
    a, b = (random_map(seed + i, directions, size, batch=1).detach() for i in (0, 1))
    return -a.exp(), b.sigmoid()


def test_many_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is a tile of its own."""
    monkeypatch.setattr("attention_zoo.cores.scans.CPU_TILE", 1)
    assert_attend_agrees("gated-delta", (5, 13), seed=2, state=3, heads=2)


@pytest.mark.parametrize("size", [(1, 3 * CHUNK + 5), (7, 9)])
def test_the_last_value_written_for_a_key_is_recalled(size: tuple[int, int]) -> None:
    """Nothing decays, keys are orthogonal: forward has the last value, backward the next.

    A sum of all values of a key, as linear attention has it, is another.
    """
    n, keys = size[0] * size[1], 5
    generator = torch.Generator().manual_seed(0)
    stored, asked = (torch.randint(keys, size, generator=generator) for _ in range(2))
    q, k = (3 * torch.nn.functional.one_hot(t, keys).movedim(-1, 0)[None] for t in (asked, stored))
    v = random_map(0, 4, size, batch=1).detach()
    wanted = torch.zeros_like(v)
    for order in orders(*size, 4):
        last: dict[int, Tensor] = {}
        for y, x in order:
            last[int(stored[y, x])] = v[0, :, y, x]
            wanted[0, :, y, x] += last.get(int(asked[y, x]), torch.zeros(4)) / 4
    assert len(last) == keys < n
    out = gated_delta_rule(q.double(), k.double(), v, *gates(1, 1, size))
    assert_close(out, wanted, 1e-12)


def test_orthogonal_keys_give_linear_attention_over_half_of_the_map() -> None:
    """Of each direction: ``sum_j q_i·k_j v_j`` over j up to i, or from i on, decays between."""
    size = (3, 4)
    k = torch.eye(12, dtype=torch.float64).view(1, 12, *size)
    q, _, v = random_qkv(1, size, c=12, batch=1)
    unit = (q / q.norm(dim=1, keepdim=True)).flatten(2)[0]
    products = (unit.mT @ k.flatten(2)[0]).detach()  # query, key
    apart = (torch.arange(12)[:, None] - torch.arange(12)).abs().double()
    weights = products * 0.9**apart * 0.5 * (1 + torch.eye(12)) / 2
    out = gated_delta_rule(q, k, v, *gates(0.9, 0.5, size, 2), directions=2)
    assert_close(out.flatten(2)[0], (weights @ v.flatten(2)[0].mT).mT, 1e-12)


def test_a_state_that_is_forgotten_at_once_leaves_the_own_value() -> None:
    q, k, v = random_qkv(2, (5, 8), batch=1)
    cosines = torch.cosine_similarity(q, k, dim=1).unsqueeze(1)
    out = gated_delta_rule(q, k, v, *gates(1e-200, 0.3, (5, 8)))
    assert_close(out, 0.3 * cosines * v, 1e-12)


@pytest.mark.parametrize("kind", ["random", "all alike"])
def test_inverses_of_triangular_matrices(kind: str) -> None:
    """The diagonal counts as 1. Equal keys give matrices whose powers reach 10^8."""
    x = torch.ones(3, CHUNK, CHUNK).triu_()
    if kind == "random":
        x *= torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) / 4
    x.requires_grad_()
    unit = x.double().triu(1) + torch.eye(CHUNK, dtype=torch.float64)
    found, wanted = unit_triangular_inverse(x), torch.linalg.inv(unit)
    assert_close(found, wanted, 1e-5)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    slopes = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, wanted)]
    assert_close(*slopes, 1e-5)


def test_a_turned_map_gives_the_turned_result() -> None:
    """Transposed, rows and columns change places; upside down, forward and backward do."""
    q, k, v = random_qkv(3, (9, 6), batch=1)
    log_alpha, beta = random_gates(5, (9, 6))
    out = gated_delta_rule(q, k, v, log_alpha, beta)
    transposed = gated_delta_rule(
        *(t.mT for t in (q, k, v)), *(t[:, [2, 3, 0, 1]].mT for t in (log_alpha, beta))
    )
    assert_close(transposed.mT, out, 1e-12)
    turned = gated_delta_rule(
        *(t.flip(2, 3) for t in (q, k, v)),
        *(t[:, [1, 0, 3, 2]].flip(2, 3) for t in (log_alpha, beta)),
    )
    assert_close(turned.flip(2, 3), out, 1e-12)
    assert (gated_delta_rule(q, k, v, log_alpha[:, [1, 0, 2, 3]], beta) - out).abs().max() > 1e-2


@pytest.mark.parametrize("alpha", [1.0, 0.999])
def test_equal_keys_keep_float32(alpha: float) -> None:
    """The worst keys for a sum of powers of the triangular system: terms of 10^8 that cancel."""
    size = (40, 40)
    q, k, v = (t.detach() for t in random_qkv(4, size, c=8, batch=1))
    k = k[:, :, :1, :1] + 1e-3 * k
    inputs = [q, k, v, *gates(alpha, 1, size)]
    out = gated_delta_rule(*(t.float() for t in inputs))  # type: ignore[arg-type]
    assert_close(out, gated_delta_rule(*inputs), 2e-5)  # type: ignore[arg-type]


def test_every_position_is_reached_by_every_other() -> None:
    q, k, v = random_qkv(5, (8, 13), batch=1)
    log_alpha, beta = gates(0.99, 0.9, (8, 13))
    (gradient,) = torch.autograd.grad(
        gated_delta_rule(q, k, v, log_alpha, beta)[..., 3, 4].sum(), v
    )
    assert (gradient != 0).all()


@pytest.mark.parametrize(
    ("shape", "heads", "directions", "told"),
    [
        ((2, 4, 3, 4), 1, 3, "directions must be 2"),
        ((2, 2, 3, 4), 1, 4, r"log_alpha must be \[2, 4, 3, 4\] for 1 heads in 4 directions"),
        ((2, 4, 4, 3), 1, 4, "log_alpha must be"),
        ((2, 4, 3, 4), 2, 4, "heads 2 does not divide the 5 channels"),
    ],
)
def test_bad_arguments_are_told(
    shape: tuple[int, ...], heads: int, directions: int, told: str
) -> None:
    gate = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(AttentionError, match=told):
        gated_delta_rule(*random_qkv(0, (3, 4)), gate, gate, heads, directions)

"""What is special to neural nearest neighbours; their oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.patch_knn import nearest_neighbours
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference.cases import assert_close, random_map, random_qkv

ONE = torch.ones((), dtype=torch.float64)


def distances(q: Tensor, k: Tensor) -> Tensor:
    """``[B, N, N]``, infinite from a position to itself."""
    all_pairs = torch.cdist(*(t.flatten(2).mT for t in (q, k))).square()
    return all_pairs + torch.diag(all_pairs.new_full((all_pairs.shape[1],), math.inf))


@pytest.mark.parametrize("size", [(7, 23), (12, 11)])
def test_the_first_neighbour_is_softmax_attention_to_all_others(size: tuple[int, int]) -> None:
    """In a window that reaches everything, over tiles in both directions."""
    q, k, v = random_qkv(2, size)
    temperature = 1.7 * ONE
    weights = (-distances(q, k) / temperature).softmax(2)
    found = nearest_neighbours(q, k, v, temperature, 1, 2 * max(size) - 1)
    assert_close(found[:, 0].flatten(2).mT, weights @ v.flatten(2).mT, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_low_temperature_they_are_the_nearest_ones_in_turn(dtype: torch.dtype) -> None:
    q, k, v = (t.detach().to(dtype) for t in random_qkv(3, (5, 6)))
    found = nearest_neighbours(q, k, v, torch.tensor(1e-6), 4, 11)
    nearest = distances(q, k).argsort(2)
    for r in range(4):
        wanted = torch.stack([v[b].flatten(1)[:, nearest[b, :, r]] for b in range(2)])
        assert_close(found[:, r].flatten(2), wanted, 1e-3)


def test_at_high_temperature_every_round_is_the_mean_of_the_window() -> None:
    q, k, v = random_qkv(3, (5, 6))
    found = nearest_neighbours(q, k, v, 1e12 * ONE, 3, 3)
    around = v[:, :, 1:4, 2:5].sum((2, 3)) - v[:, :, 2, 3]
    for r in range(3):
        assert_close(found[:, r, :, 2, 3], around / 8, 1e-9)


@pytest.mark.parametrize("temperature", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (4, 5)])
def test_equal_values_come_out_as_they_are(size: tuple[int, int], temperature: float) -> None:
    """Weights of a round are a distribution, also where more rounds than neighbours are asked."""
    q, k, v = random_qkv(1, size)
    v = v[:, :, :1, :1].expand_as(v)
    found = nearest_neighbours(q, k, v, temperature * ONE, 9, 5)
    assert_close(found, v.unsqueeze(1).expand_as(found), 1e-12)
    for gradient in torch.autograd.grad(found.square().sum(), (q, k)):
        assert gradient.isfinite().all()


def test_gradcheck_of_several_tiles_and_of_the_temperature() -> None:
    q, k, v = random_qkv(1, (3, 12), c=2, c_out=2, batch=1)
    temperature = (0.8 * ONE).requires_grad_()
    inputs = (q, k, v, temperature)
    assert torch.autograd.gradcheck(lambda *t: nearest_neighbours(*t, 3, 3), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_the_oracle_where_one_neighbour_takes_nearly_all(dtype: torch.dtype) -> None:
    """1 − w of the largest weight would cancel: it is below 1e-8 for a third of the positions."""
    q, k, _ = random_qkv(0, (6, 4), c=3)
    nearest = (-distances(6 * q, 6 * k)).softmax(2).amax(2)
    assert (nearest > 1 - 1e-8).double().mean() > 1 / 3
    assert_attend_agrees("patch-knn", (6, 4), dtype=dtype, factor=6, condition=30, k=4, window=11)


def test_rounds_share_out_the_neighbours_at_a_low_temperature() -> None:
    q, k, _ = random_qkv(4, (1, 6), batch=1)
    one_hot = torch.eye(6, dtype=torch.float64).view(1, 6, 1, 6)
    weights = nearest_neighbours(q, k, one_hot, 1e-4 * ONE, 5, 11)[0].squeeze(2)
    assert_close(weights.sum(1), torch.ones(5, 6).double(), 1e-12)  # [rounds, neighbours, queries]
    assert_close(weights.sum(0), (1 - torch.eye(6)).double(), 1e-6)


def test_reach_is_22_by_default() -> None:
    module = build("patch-knn", 1, k=2)
    x = random_map(0, 4, (50, 61), batch=1)
    q, k, v = module.project(x)
    (gradient,) = torch.autograd.grad(module.attend(q, k, v)[0, :, 25, 9].sum(), v)
    wanted = torch.zeros(50, 61, dtype=torch.bool)
    wanted[3:48, :32] = True
    wanted[25, 9] = False
    assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


def test_temperature_is_one_before_training() -> None:
    assert create_attention("patch-knn", channels=4).log_temperature.exp() == 1


@pytest.mark.parametrize(
    ("count", "window", "told"), [(0, 5, "k must"), (2, 4, "odd"), (2, 1, "window"), (2, 2.5, "wi")]
)
def test_bad_options_are_refused(count: int, window: float, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        nearest_neighbours(*random_qkv(0, (3, 4)), ONE, count, window)  # type: ignore[arg-type]

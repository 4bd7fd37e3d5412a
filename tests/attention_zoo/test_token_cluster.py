"""What is special to content-aware token aggregation; its oracle is in the table."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attention_zoo import AttentionError
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.token_cluster import (
    centre_attention,
    group_attention,
    moved_centres,
    nearest_centres,
)
from tests.attention_zoo.table import ORACLES, build
from tests.reference.cases import SIZES, assert_close, assert_module_agrees, random_map, random_qkv


@pytest.mark.parametrize("size", SIZES)
def test_a_group_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    clusters = torch.arange(2 * size[0] * size[1]).remainder(3).view(2, -1)
    out = group_attention(q, k, v, clusters, 1, 35)
    assert_close(out, non_local_attention(q / 2, k, v), 1e-12)


def test_a_group_sees_itself_and_the_next_and_the_last_looks_back() -> None:
    """Means of the values, as all scores are 0: ranks 0 … 7 and 4 … 9, 9, 8; then 8, 9, 9 … 4."""
    zeros = torch.zeros(1, 1, 2, 5, dtype=torch.float64)
    v = torch.arange(10, dtype=torch.float64).view(1, 1, 2, 5)
    clusters = torch.zeros(1, 10, dtype=torch.long)
    out = group_attention(zeros, zeros, v, clusters, 1, 4).flatten()
    wanted = [28 / 8] * 4 + [(39 + 17) / 8] * 4 + [(17 + 39) / 8] * 2
    assert_close(out, torch.tensor(wanted).double(), 1e-12)


def test_equal_clusters_keep_the_order_of_positions() -> None:
    """An unstable sort shows only on longer rows: two alternating clusters, 4096 positions."""
    zeros = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    v = torch.arange(4096, dtype=torch.float64).view(1, 1, 64, 64)
    clusters = torch.arange(4096).remainder(2).unsqueeze(0)
    out = group_attention(zeros, zeros, v, clusters, 1, 16).flatten()
    order = torch.cat([torch.arange(0, 4096, 2), torch.arange(1, 4096, 2)])
    seen = torch.cat([order, order[-16:].flip(0)]).double()
    wanted = seen.unfold(0, 32, 16).mean(1, keepdim=True).expand(-1, 16).flatten()
    torch.testing.assert_close(out[order], wanted)


def test_centres_are_keys_and_values_of_an_attention() -> None:
    q, k, v = random_qkv(1, (3, 4), batch=1)
    keys, values = (t[0].flatten(1).T for t in (k, v))
    assert_close(centre_attention(q, keys, values, 1), non_local_attention(q / 2, k, v), 1e-12)


def test_k_means_finds_directions_and_leaves_empty_centres() -> None:
    """Two bundles of directions; a third centre is nearest to nobody. Length does not matter."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(3, dtype=torch.float64)[:2].repeat_interleave(20, 0)
    noise = 0.01 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    length = 10 * torch.rand(40, 1, generator=generator, dtype=torch.float64) + 0.1
    features = ((axes + noise) * length).view(2, 20, 3)
    directions = torch.nn.functional.normalize(features, dim=2)
    start = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, -1.0, -1.0]]).double()
    empty = 7 * start
    found = moved_centres(directions, start, empty)
    assert_close(found[:2], torch.eye(3, dtype=torch.float64)[:2], 0.01)
    assert torch.equal(found[2], empty[2])
    clusters = nearest_centres(features, found)
    assert clusters.tolist() == [[0] * 20, [1] * 20]


def train(module: torch.nn.Module, steps: int, first: int = 0) -> None:
    """As the trainer does: a redraw before every other step."""
    optimizer = torch.optim.SGD(module.parameters(), 1e-2)
    for seed in range(first, first + steps):
        if seed and seed % 2 == 0:
            module.redraw()  # type: ignore[operator]
        loss: Tensor = module.train()(random_map(seed, 8, (5, 6))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build_small(**options: object) -> torch.nn.Module:
    module: torch.nn.Module = build("token-cluster", 4, centres=5, group_size=8, heads=2, **options)
    return module


def test_training_goes_on_from_a_state_dict_to_the_last_bit() -> None:
    module, resumed = build_small(), build_small()
    train(module, 3)
    resumed.load_state_dict(copy.deepcopy(module.state_dict()))
    train(module, 3, first=3)
    train(resumed, 3, first=3)
    state = resumed.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert module.started
    assert module.average.unique(dim=0).shape[0] == 5


def test_the_average_moves_in_training_alone() -> None:
    """First the centres of the first batch, then 0.9 of the average and 0.1 of the new ones."""
    module, x = build_small(decay=0.9), random_map(0, 8, (5, 6))
    before = module.average.clone()
    module.eval()(x)
    assert torch.equal(module.average, before)
    module.train()(x)
    first = module.average.clone()
    assert not torch.allclose(first, before)
    y = random_map(1, 8, (5, 6))
    module(y)
    alone = build_small(decay=0.9)
    alone.train()(y)
    assert_close(module.average, 0.9 * first + 0.1 * alone.average, 1e-12)


def test_a_repeated_forward_does_not_move_the_average() -> None:
    module, plain, x = build_small(), build_small(), random_map(0, 8, (5, 6))
    for _ in range(2):
        checkpoint(module.train(), x, use_reentrant=False).sum().backward()
        plain.train()(x).sum().backward()
    assert torch.equal(module.average, plain.average)


def test_after_a_redraw_k_means_starts_at_the_average() -> None:
    module = build_small()
    module.redraw()
    assert not module.started  # nothing was averaged yet
    train(module, 3)
    assert module.started
    x = random_map(7, 8, (5, 6))
    assert_module_agrees(module.train(), lambda x: ORACLES[module.name].forward(module, x), x)


def test_evaluation_is_that_of_the_average() -> None:
    """Equal centres give clusters of training and evaluation alike, and the same result."""
    module, x = build_small(), random_map(3, 8, (5, 6))
    trained = module.train()(x)
    assert_close(module.eval()(x), trained, 1e-12)


def test_clusters_that_do_not_fit_are_refused() -> None:
    q, k, v = random_qkv(0, (3, 4))
    with pytest.raises(AttentionError, match=r"clusters must be \[2, 12\], got \[2, 11\]"):
        group_attention(q, k, v, torch.zeros(2, 11, dtype=torch.long), 1)
    with pytest.raises(AttentionError, match="heads 2 does not divide the 5 channels"):
        group_attention(q, k, v, torch.zeros(2, 12, dtype=torch.long), 2)

"""What is special to rivals of which it takes less than a page; others have their own file."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.agent import agent_attention
from attention_zoo.rivals.mdta import transposed_attention
from attention_zoo.rivals.nlrn import neighbourhood_attention
from attention_zoo.rivals.region import region_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference import mdta as mdta_oracle
from tests.reference.cases import (
    SIZES,
    assert_agrees,
    assert_close,
    perturb,
    random_map,
    random_qkv,
)

# -- agent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_an_agent_for_every_position_is_non_local_attention_twice(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(2, size)
    twice = non_local_attention(q / 2, q, non_local_attention(q / 2, k, v))
    assert_close(agent_attention(q, k, v, 7), twice, 1e-12)


def test_one_agent_gives_every_position_the_same() -> None:
    q, k, v = random_qkv(3, (4, 5))
    mean = q.mean((2, 3), keepdim=True).expand_as(q)
    wanted = non_local_attention(mean / 2, k, v)
    assert_close(wanted, wanted[:, :, :1, :1].expand_as(v), 1e-12)
    assert_close(agent_attention(q, k, v, 1), wanted, 1e-12)


def test_equal_values_come_out_of_agents_as_they_are() -> None:
    q, k, v = random_qkv(3, (5, 7))
    v = v[:, :, :1, :1].expand_as(v)
    assert_close(agent_attention(q, k, v, 3), v, 1e-12)


# -- channel-attention -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "squeeze", "hidden"), [(8, 16, 1), (40, 16, 2), (64, 16, 4), (6, 1, 6)]
)
def test_hidden_channels(channels: int, squeeze: int, hidden: int) -> None:
    module = build("channel-attention", channels, squeeze=squeeze)
    assert module.down.weight.shape == (hidden, channels)
    assert_attend_agrees("channel-attention", (5, 4), width=channels, squeeze=squeeze)


def test_a_channel_keeps_its_shape() -> None:
    """Weights between 0 and 1, one for all positions of a channel."""
    module, v = build("channel-attention", 8, squeeze=1), random_map(0, 8, (5, 4))
    weights = module.channel_weights(v)
    assert ((weights > 0) & (weights < 1)).all()
    assert_close(module.attend(v, v, v), v * weights[:, :, None, None], 1e-12)
    assert weights.unique().numel() == 16


def test_cost_of_channel_attention_does_not_depend_on_the_map() -> None:
    module = create_attention("channel-attention", channels=64)
    assert module.cost(1, 1) == module.cost(100, 100)
    assert module.cost(100, 100).module == 2 * 64 * 4


# -- mdta ------------------------------------------------------------------------------------------


def test_short_channels_are_divided_by_the_least_norm() -> None:
    q, k, v = random_qkv(1, (3, 4), c=4, c_out=4)
    q.data[:, :2] *= 1e-6
    k.data[:, 1:3] *= 1e-6
    three = torch.tensor([3.0], dtype=torch.float64)
    assert_agrees(
        lambda v: transposed_attention(q, k, v, three),
        lambda v: mdta_oracle.transposed_attention(q, k, v, three),
        [v],
    )


def test_positions_have_no_order_for_channels() -> None:
    """Where a position lies does not matter: only its channels are compared."""
    q, k, v = random_qkv(2, (4, 5), c=6, c_out=6)
    order, t = torch.randperm(20, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    moved = [x.flatten(2)[:, :, order].unflatten(2, (4, 5)) for x in (q, k, v)]
    out = transposed_attention(q, k, v, t).flatten(2)[:, :, order]
    assert_close(transposed_attention(*moved, t).flatten(2), out, 1e-12)


def test_one_channel_a_head_and_temperature_zero() -> None:
    """As many heads as channels give the value; temperature zero, the mean of the channels."""
    q, k, v = random_qkv(3, (3, 4), c=5, c_out=5)
    assert_close(transposed_attention(q, k, v, torch.ones(5)), v, 1e-12)
    mean = v.mean(1, keepdim=True).expand_as(v)
    assert_close(transposed_attention(q, k, v, torch.zeros(1)), mean, 1e-12)


def test_four_heads_of_channels_have_a_quarter_of_the_products() -> None:
    """2 · 2 N C² / heads at 100x100 with 64 channels."""
    cost = create_attention("mdta", channels=64, heads=4).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == "0.041"


def test_channels_to_attend_to_must_be_as_many() -> None:
    with pytest.raises(AttentionError, match="q and v must have as many, got 4 and 5"):
        transposed_attention(*random_qkv(0, (3, 4)), torch.ones(1))


# -- nlrn ------------------------------------------------------------------------------------------


def test_gradcheck_of_several_tiles() -> None:
    qkv = random_qkv(1, (3, 12), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: neighbourhood_attention(*t, 3), qkv)


@pytest.mark.parametrize("size", [(23, 23), (30, 7)])
def test_a_window_that_reaches_everything_is_non_local_attention(size: tuple[int, int]) -> None:
    qkv = random_qkv(2, size)
    wide = neighbourhood_attention(*qkv, 2 * max(size) - 1)
    assert_close(wide, non_local_attention(*qkv), 1e-12)
    if max(size) == 23:
        assert_close(neighbourhood_attention(*qkv), wide, 1e-12)


def test_reach_is_22_by_default_everywhere() -> None:
    module = build("nlrn", 1)
    x = random_map(0, 4, (70, 61), batch=1)
    for row, column in ((0, 0), (35, 30), (9, 10), (69, 60)):
        (gradient,) = torch.autograd.grad(module(x)[0, :, row, column].sum(), x)
        wanted = torch.zeros(70, 61, dtype=torch.bool)
        wanted[max(0, row - 22) : row + 23, max(0, column - 22) : column + 23] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize(
    ("window", "told"), [(0, "at least 1"), (4, "must be odd"), (2.5, "window"), (-1, "window")]
)
def test_bad_windows_of_nlrn_are_refused(window: float, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        create_attention("nlrn", channels=8, window=window)
    with pytest.raises(AttentionError, match=told):
        neighbourhood_attention(*random_qkv(0, (3, 4)), window)  # type: ignore[arg-type]


def test_neighbours_at_the_border_are_fewer() -> None:
    """(100 · 45 − 22 · 23)² pairs at 100x100."""
    cost = create_attention("nlrn", channels=64, reduction=1).cost(100, 100)
    assert cost.core == (100 * 45 - 22 * 23) ** 2 * 128
    assert cost.executed < 1.45 * cost.core


# -- region ----------------------------------------------------------------------------------------


def test_one_region_is_non_local_attention() -> None:
    inputs = random_qkv(0, (6, 7))
    torch.testing.assert_close(region_attention(*inputs, 1), non_local_attention(*inputs))


def test_a_quarter_of_the_positions_costs_a_quarter() -> None:
    whole = create_attention("nla", channels=64).cost(100, 100)
    quarters = create_attention("region", channels=64).cost(100, 100)
    assert 4 * quarters.core == whole.core
    assert quarters.projections == whole.projections


# -- rnan ------------------------------------------------------------------------------------------


def test_the_non_local_block_does_nothing_before_training_and_something_after() -> None:
    """Its last weights begin at zero: no position sees further than convolutions reach."""
    module = create_attention("rnan", channels=4).double()
    x = random_map(0, 4, (1, 64), batch=1)

    def far() -> bool:
        (gradient,) = torch.autograd.grad(module(x)[..., 0].sum(), x)
        return bool(gradient[..., -1].any())

    assert not far()
    perturb(module)
    assert far()


def test_the_mask_is_between_nothing_and_the_trunk() -> None:
    module = build("rnan", 4)
    x = random_map(0, 8, (7, 6)).detach()
    out, trunk = module.attend(*module.project(x)), module.trunk(x)
    assert (out * trunk >= 0).all()
    assert (out.abs() <= trunk.abs()).all()
    assert (out.abs() < 0.999 * trunk.abs()).any()

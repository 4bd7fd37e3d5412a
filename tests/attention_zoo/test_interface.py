"""What every registered module keeps to; a new one is covered as soon as it is registered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import Attention, AttentionError, create_attention, list_attentions
from tests.reference.cases import (
    FORMATS,
    SIZES,
    LargestTensor,
    assert_close,
    perturb,
    random_map,
    random_weights,
)

CHANNELS = 16

pytestmark = pytest.mark.parametrize("name", list_attentions())


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Attention:
    """A module in evaluation mode whose gates are open."""
    torch.manual_seed(seed)
    module = create_attention(name, channels=CHANNELS).to(dtype)
    perturb(module, seed)
    return module.eval()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    batch=st.integers(1, 3),
    training=st.booleans(),
)
def test_any_shape_in_the_same_shape_out(
    name: str, size: tuple[int, int], batch: int, training: bool
) -> None:
    module = build(name).train(training)
    x = random_map(0, CHANNELS, size, batch=batch)
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("size", SIZES)
def test_forward_is_project_attend_and_residual(name: str, size: tuple[int, int]) -> None:
    module = build(name)
    x = random_map(0, CHANNELS, size)
    q, k, v = module.project(x)
    out = module.attend(q, k, v)
    assert q.shape == k.shape
    assert v.shape == out.shape == x.shape
    torch.testing.assert_close(module(x), module.residual(x, out))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_close(name: str, dtype: torch.dtype) -> None:
    """Hash codes may differ where two are near, so NLSA's outputs are compared on average."""
    module = build(name)
    x = random_map(0, CHANNELS, (9, 8)).detach()
    low = build(name, dtype=dtype)
    y, wanted = low(x.to(dtype)), module(x)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    assert (y.double() - wanted).abs().mean() < {torch.float32: 1e-5}.get(dtype, 0.02)


@pytest.mark.parametrize("training", [False, True])
def test_autocast(name: str, training: bool) -> None:
    module = build(name, dtype=torch.float32).train(training)
    x = random_map(0, CHANNELS, (9, 8), dtype=torch.float32)
    wanted = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        loss = module.auxiliary_loss()
    assert torch.isfinite(y).all()
    assert (y.float() - wanted).abs().mean() < 0.02
    (y.float().square().mean() + loss).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_memory_format_changes_nothing(name: str, memory_format: torch.memory_format) -> None:
    module = build(name)
    x = random_map(0, CHANNELS, (6, 7)).detach()
    wanted = module(x)
    module = module.to(memory_format=memory_format)
    assert_close(module(x.contiguous(memory_format=memory_format)), wanted, 1e-12)


def test_evaluation_is_deterministic_and_leaves_the_random_state_alone(name: str) -> None:
    module = build(name)
    x = random_map(0, CHANNELS, (6, 7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = module(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(module(x), first)
    torch.manual_seed(3)
    assert torch.equal(copy.deepcopy(module)(x), first)


def test_training_is_reproducible_by_the_global_seed(name: str) -> None:
    results = []
    for _ in range(2):
        module = build(name).train()
        torch.manual_seed(7)
        y = module(random_map(0, CHANNELS, (6, 7)))
        results.append((y, module.auxiliary_loss()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_state_dict_holds_all_there_is(name: str) -> None:
    module, other = build(name, seed=0), build(name, seed=1)
    other.load_state_dict(module.state_dict())
    x = random_map(0, CHANNELS, (6, 7))
    assert torch.equal(other(x), module(x))


def test_an_image_does_not_depend_on_the_others_in_its_batch(name: str) -> None:
    module = build(name)
    x = random_map(0, CHANNELS, (6, 7), batch=3)
    together = module(x)
    for i in range(3):
        assert_close(module(x[i : i + 1]), together[i : i + 1], 1e-12)


def test_gradient_reaches_the_input_and_every_parameter(name: str) -> None:
    module = build(name).train()
    x = random_map(0, CHANNELS, (6, 7))
    y = module(x)
    ((y * random_weights(y)).sum() + module.auxiliary_loss()).backward()
    for what, leaf in [("x", x), *module.named_parameters()]:
        assert leaf.grad is not None, what
        assert torch.isfinite(leaf.grad).all(), what
        if leaf.dim() > 1:  # a key's bias adds the same to all scores of a row: no gradient
            assert leaf.grad.abs().max() > 0, what


def test_auxiliary_loss_is_of_the_last_training_forward_only(name: str) -> None:
    module = build(name)
    x = random_map(0, CHANNELS, (6, 7))
    module(x)
    assert module.auxiliary_loss().shape == ()
    assert module.auxiliary_loss() == 0
    module.train()(x)
    loss = module.auxiliary_loss()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    module.auxiliary_enabled = False
    module(x)
    assert module.auxiliary_loss() == 0
    module.auxiliary_enabled = True
    module(x)
    module.eval()(x)
    assert module.auxiliary_loss() == 0


def weights_of(module: Attention, x: Tensor, position: tuple[int, int]) -> Tensor:
    try:
        return module.correlation(x, position)
    except AttentionError as error:
        if "no weights over positions" not in str(error):
            raise
        pytest.skip(f"{module.name} has no weights over positions")


@pytest.mark.parametrize("size", SIZES)
def test_correlation_is_the_weights_of_the_attention(name: str, size: tuple[int, int]) -> None:
    """Every position's weights are a distribution, and sum the values to its output."""
    module = build(name)
    x = random_map(0, CHANNELS, size, batch=1)
    q, k, v = module.project(x)
    out = module.attend(q, k, v)
    for row in range(size[0]):
        for column in range(size[1]):
            weights = weights_of(module, x, (row, column))
            assert weights.shape == size
            assert not weights.requires_grad
            assert (weights >= 0).all()
            assert abs(weights.sum().item() - 1) < 1e-9
            summed = torch.einsum("hw,chw->c", weights, v[0])
            assert_close(summed, out[0, :, row, column], 1e-9)


@pytest.mark.parametrize("position", [(-1, 0), (0, -1), (3, 0), (0, 4)])
def test_correlation_outside_the_map_is_refused(name: str, position: tuple[int, int]) -> None:
    with pytest.raises(AttentionError, match="outside"):
        build(name).correlation(torch.zeros(1, CHANNELS, 3, 4).double(), position)


def test_correlation_takes_one_image(name: str) -> None:
    with pytest.raises(AttentionError, match="batch of 2"):
        build(name).correlation(torch.zeros(2, CHANNELS, 3, 4).double(), (0, 0))


@pytest.mark.parametrize(
    "shape",
    [(CHANNELS, 4, 4), (1, CHANNELS - 1, 4, 4), (1, CHANNELS, 0, 4), (1, CHANNELS, 4, 4, 1)],
)
def test_bad_input_is_told_in_one_line(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(AttentionError) as caught:
        build(name)(torch.zeros(shape).double())
    message = str(caught.value)
    assert str(list(shape)) in message
    assert str(CHANNELS) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((1, 4, 3, 4), (1, 4, 4, 3), (1, 16, 3, 4)),
        ((1, 4, 3, 4), (1, 5, 3, 4), (1, 16, 3, 4)),
        ((2, 4, 3, 4), (2, 4, 3, 4), (1, 16, 3, 4)),
        ((1, 4, 3, 4), (1, 4, 3, 4), (1, 16, 4, 3)),
        ((1, 4, 12), (1, 4, 12), (1, 16, 12)),
    ],
)
def test_maps_that_do_not_fit_are_refused(name: str, q: Any, k: Any, v: Any) -> None:
    module = build(name)
    x = torch.zeros(1, CHANNELS, 1, 1).double()
    if module.project(x)[0] is module.project(x)[2]:
        pytest.skip(f"{name} attends to its value alone")
    with pytest.raises(AttentionError):
        module.attend(*(torch.zeros(shape).double() for shape in (q, k, v)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduction", [None, 1])
def test_no_tensor_of_all_pairs(
    name: str, reduction: int | None, memory_format: torch.memory_format
) -> None:
    """Forward and backward at 72x72: 27 million pairs of positions, half of that is allowed."""
    module = create_attention(name, channels=8).eval()
    if reduction is not None:
        if "reduction" not in module.options():
            pytest.skip(f"{name} has no embedding")
        module = create_attention(name, channels=8, reduction=reduction).eval()
    x = random_map(0, 8, (72, 72), batch=1, dtype=torch.float32, memory_format=memory_format)
    with LargestTensor() as seen:
        module(x).sum().backward()
    assert seen.largest < 72**4 / 2

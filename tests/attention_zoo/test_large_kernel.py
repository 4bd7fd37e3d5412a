"""What is special to ESC's large kernel; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.large_kernel import convolutional_attention, symmetric
from tests.attention_zoo.table import build
from tests.reference.cases import assert_close, random_map


def test_without_a_dynamic_kernel_it_is_a_convolution() -> None:
    """So it begins, for the last layer that makes the kernel is zero."""
    module = create_attention("large-kernel", channels=8, kernel=5).double()
    x = random_map(1, 8, (6, 9))
    mixed = F.conv2d(x[:, :2], symmetric(module.large), padding=2)
    wanted = module.output(torch.cat([mixed, x[:, 2:]], 1))
    assert_close(module.attend(x, x, x), wanted, 1e-12)


def test_a_symmetric_kernel_commutes_with_flips_and_turns() -> None:
    kernel = symmetric(torch.randn(3, 3, 7, 7, dtype=torch.float64))
    for other in (kernel.flip(2), kernel.flip(3), kernel.mT, torch.rot90(kernel, 1, (2, 3))):
        assert_close(other, kernel, 1e-15)
    assert_close(symmetric(kernel), kernel, 1e-15)
    one = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    one[..., 0, 1] = 1
    edges = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64) / 4
    assert torch.equal(symmetric(one)[0, 0], edges)


def test_each_image_has_a_kernel_of_its_own() -> None:
    x = random_map(2, 2, (4, 5))
    dynamic = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    found = convolutional_attention(x, torch.zeros(2, 2, 1, 1, dtype=torch.float64), dynamic)
    for image in range(2):
        for channel in range(2):
            kernel = dynamic[image, channel][None, None]
            wanted = F.conv2d(x[image, channel][None, None], kernel, padding=1)
            assert_close(found[image, channel], wanted[0, 0], 1e-12)


def test_reach_is_six_and_the_mean_of_the_map() -> None:
    """Without the dynamic kernel nothing is seen beyond six positions."""
    module = build("large-kernel", 16)
    for dynamic in (True, False):
        if not dynamic:
            torch.nn.init.zeros_(module.up.weight)
        x = random_map(0, 16, (20, 20), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, 3, 12].sum(), x)
        seen = gradient[0].abs().sum(0) > 0
        wanted = torch.zeros(20, 20, dtype=torch.bool)
        wanted[:10, 6:19] = True
        assert torch.equal(seen, wanted | dynamic)


@pytest.mark.parametrize(
    ("x", "large", "dynamic"),
    [
        ((1, 2, 3), (2, 2, 3, 3), (1, 2, 3, 3)),
        ((1, 2, 3, 4), (2, 3, 3, 3), (1, 2, 3, 3)),
        ((1, 2, 3, 4), (2, 2, 4, 4), (1, 2, 3, 3)),
        ((1, 2, 3, 4), (2, 2, 3, 5), (1, 2, 3, 3)),
        ((2, 2, 3, 4), (2, 2, 3, 3), (1, 2, 3, 3)),
    ],
)
def test_bad_arguments_are_told(
    x: tuple[int, ...], large: tuple[int, ...], dynamic: tuple[int, ...]
) -> None:
    with pytest.raises(AttentionError, match=r"x, large, dynamic must be \[B, p, H, W\]"):
        convolutional_attention(torch.zeros(x), torch.zeros(large), torch.zeros(dynamic))


def test_the_kernel_must_be_odd() -> None:
    with pytest.raises(AttentionError, match="kernel must be odd"):
        create_attention("large-kernel", channels=8, kernel=4)


@pytest.mark.parametrize(("kernel", "core"), [(5, "0.131"), (13, "0.868"), (17, "1.483")])
def test_core_at_64_channels(kernel: int, core: str) -> None:
    """2 N (16² K² + 9 · 16) at 100x100, and what makes the dynamic kernel."""
    cost = create_attention("large-kernel", channels=64, kernel=kernel).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == core
    assert cost.executed - cost.core == 100 * 100 * 64**2

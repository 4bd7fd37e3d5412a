"""The backbone's 3x3 convolution: Winograd's algorithm in C against torch's in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import AttentionError
from attention_zoo.cores.native import why_not_native
from attention_zoo.implementations import use_implementation, watch_implementations
from harness.network.convolution import Conv3x3, conv3x3
from tests.reference.cases import assert_agrees, assert_close, random_map

_REASON = why_not_native(torch.zeros(1))
needs_compiler = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


def _inputs(
    size: tuple[int, int], channels: int, outputs: int, batch: int = 2, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    options = {"dtype": torch.float32, "memory_format": torch.channels_last} | options
    x = random_map(0, channels, size, batch=batch, **options)
    dtype = options["dtype"]
    weight = random_map(1, channels, (3, 3), batch=outputs, dtype=dtype, scale=0.2)
    bias = random_map(2, outputs, (1, 1), batch=1, dtype=dtype).detach().flatten()
    return x, weight, bias.requires_grad_()


def _native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with use_implementation("conv3x3=native"), watch_implementations() as seen:
        out = conv3x3(x, weight, bias)
    assert seen == {"conv3x3": "native"}
    return out


def _with_gradients(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = _native(*inputs)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@needs_compiler
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("channels", "outputs"), [(16, 32), (64, 16), (32, 144)])
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (2, 2), (7, 4), (5, 9), (16, 21)])
def test_agrees_with_torch_in_float64(
    size: tuple[int, int], channels: int, outputs: int, batch: int
) -> None:
    """Even and odd maps: of the last tiles a half may lie outside."""
    inputs = _inputs(size, channels, outputs, batch)
    assert_agrees(_native, lambda x, w, b: F.conv2d(x, w, b, padding=1), inputs)


@needs_compiler
def test_rounding_is_no_worse_than_torch_s() -> None:
    """Winograd's smallest algorithm loses nothing: within twice torch's error, at 64 channels."""
    inputs = _inputs((30, 30), 64, 64)
    x, weight, bias = (t.detach() for t in inputs)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    errors = [
        (out.double() - exact).abs().max()
        for out in (_native(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    ]
    assert errors[0] <= 2 * errors[1]


@needs_compiler
@pytest.mark.usefixtures("one_thread")
def test_any_number_of_threads_gives_the_same() -> None:
    inputs = _inputs((40, 37), 32, 32)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(_with_gradients(inputs))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        for one, two in zip(found[0], other, strict=True):
            assert_close(two, one, 1e-5)


@needs_compiler
def test_torch_s_default_dtype_changes_nothing() -> None:
    inputs = _inputs((6, 5), 16, 32)
    expected = _with_gradients(inputs)
    torch.set_default_dtype(torch.float64)
    try:
        found = _with_gradients(inputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


@needs_compiler
def test_the_layer_keeps_channels_last_and_may_be_overwritten() -> None:
    layer = Conv3x3(16, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = _inputs((6, 5), 16, 32)[0]
    with watch_implementations() as seen:
        out = torch.relu_(layer(x))
    assert seen == {"conv3x3": "native"}
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (_inputs((4, 5), 16, 16, dtype=torch.float64), "do not take float64"),
        (_inputs((4, 5), 16, 16, dtype=torch.bfloat16), "is in float32"),
        (_inputs((4, 5), 16, 16, memory_format=torch.contiguous_format), "channels-last"),
        (_inputs((4, 5), 16, 17), "multiples of 16"),
        (_inputs((4, 5), 3, 16), "multiples of 16"),
    ],
)
def test_what_it_does_not_take_is_torch_s(inputs: tuple[Tensor, ...], reason: str) -> None:
    with watch_implementations() as seen:
        out = conv3x3(*inputs)
    assert seen == {"conv3x3": "reference"}
    assert torch.equal(out, F.conv2d(*inputs, padding=1))
    with pytest.raises(AttentionError, match=reason):
        _native(*inputs)


def test_operations_that_are_counted_are_torch_s() -> None:
    x, weight, bias = _inputs((4, 5), 16, 32)
    with FlopCounterMode(display=False) as counter:
        conv3x3(x, weight, bias)
    assert counter.get_total_flops() == 2 * 2 * 20 * 9 * 16 * 32


@needs_compiler
def test_autocast_is_torch_s() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), watch_implementations() as seen:
        out = conv3x3(*_inputs((4, 5), 16, 32))
    assert out.dtype == torch.bfloat16
    assert seen == {"conv3x3": "reference"}

"""Random inputs and comparisons shared by the tests of ``attention_zoo``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention

#: Odd heights and widths: one position, one row, one column, H ≠ W both ways.
SIZES = [(1, 1), (1, 7), (6, 1), (5, 7), (6, 4)]
FORMATS = [torch.contiguous_format, torch.channels_last]
#: Largest error, as a share of the largest value: (value, gradient).
TOLERANCES = {
    torch.float64: (1e-10, 1e-9),
    torch.float32: (1e-5, 5e-5),
    torch.float16: (5e-3, 2e-2),
    torch.bfloat16: (3e-2, 1e-1),
}


def random_map(
    seed: int,
    channels: int,
    size: tuple[int, int],
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
    scale: float = 1.0,
) -> Tensor:
    """Gaussian ``[B, c, H, W]``, a leaf that wants a gradient."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64) * scale
    return x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()


def random_qkv(
    seed: int,
    size: tuple[int, int],
    *,
    c: int = 4,
    c_out: int = 5,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor, Tensor, Tensor]:
    """Independent query, key ``[B, c, H, W]`` and value ``[B, c_out, H, W]``."""
    q, k, v = (
        random_map(3 * seed + i, width, size, batch=batch, dtype=dtype, memory_format=memory_format)
        for i, width in enumerate((c, c, c_out))
    )
    return q, k, v


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "value") -> None:
    """The largest error is at most ``tolerance`` times the largest expected magnitude (or 1)."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    assert torch.isfinite(actual).all(), f"{what} is not finite"
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        largest = max(1.0, expected.double().abs().max().item())
        assert error <= tolerance * largest, f"{what}: error {error:.3g}, largest {largest:.3g}"


def assert_agrees(
    function: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    tolerance: tuple[float, float] | None = None,
) -> None:
    """Value, and gradient with respect to every input, agree with a float64 oracle."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = function(*inputs), oracle(*exact)
    assert actual.dtype == inputs[0].dtype
    assert_all_close(
        with_gradients(actual, inputs),
        with_gradients(expected, exact),
        [f"input {i}" for i in range(len(inputs))],
        tolerance or TOLERANCES[inputs[0].dtype],
    )


def assert_module_agrees(
    module: torch.nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    """``module(x)`` and ``forward(x)``, written with an oracle, agree in value and gradients.

    Gradients are those of x and of every parameter; module and x are in float64.
    """
    names, leaves = zip(("x", x), *module.named_parameters(), strict=True)
    actual, expected = module(x), forward(x)
    assert_all_close(
        with_gradients(actual, leaves),
        with_gradients(expected, leaves),
        names,
        TOLERANCES[torch.float64],
    )


def assert_all_close(
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    leaves: Sequence[str],
    tolerance: tuple[float, float],
) -> None:
    """Results of :func:`with_gradients` agree; tolerances are those of value and gradient."""
    assert_close(actual[0], expected[0], tolerance[0])
    for name, gradient, wanted in zip(leaves, actual[1:], expected[1:], strict=True):
        assert_close(gradient, wanted, tolerance[1], f"gradient of {name}")


def with_gradients(out: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The value, and a gradient of it by every leaf: zero where it does not depend on one."""
    if not out.requires_grad:
        return [out, *(torch.zeros_like(leaf) for leaf in leaves)]
    loss = (out * random_weights(out).to(out)).sum()
    return [out, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def perturb(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move every parameter off its initial value (zero gates would hide gradients)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(parameter.dtype))
    return module


def random_weights(like: Tensor) -> Tensor:
    """Fixed Gaussian weights in float64 that turn a tensor into a scalar loss."""
    generator = torch.Generator().manual_seed(12345)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


class LargestTensor(TorchDispatchMode):
    """Remember the number of elements of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def counted_macs(name: str, channels: int, height: int, width: int, **options: Any) -> list[float]:
    """[attend, whole module in evaluation mode], by FlopCounterMode on the meta device."""
    module = create_attention(name, channels=channels, **options).to("meta").eval()
    x = torch.empty(1, channels, height, width, device="meta")
    counts = []
    with torch.no_grad():
        qkv = module.project(x)
        for run in (lambda: module.attend(*qkv), lambda: module(x)):
            with FlopCounterMode(display=False) as counter:
                run()
            counts.append(counter.get_total_flops() / 2)
    return counts


def by_threads(
    counts: Sequence[int], function: Callable[..., Tensor], inputs: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Output and gradients with each number of threads."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            out = function(*inputs)
            found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(threads)
    return found

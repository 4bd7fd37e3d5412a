"""Window attention against its oracle, the published form, and non-local attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.window import window_attention
from tests.reference import conv as conv_oracle
from tests.reference import window as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    LargestTensor,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def random_bias(heads: int, window: int, dtype: torch.dtype = torch.float64) -> Tensor:
    side = 2 * window - 1
    generator = torch.Generator().manual_seed(heads * 100 + window)
    bias = torch.randn(heads, side, side, generator=generator, dtype=torch.float64)
    return bias.to(dtype).requires_grad_()


def assert_windows_agree(qkv: tuple[Tensor, ...], bias: Tensor, shift: int) -> None:
    """In value, and in gradients by query, key, value and bias."""
    assert_agrees(
        lambda q, k, v, bias: window_attention(q, k, v, bias, shift),
        lambda q, k, v, bias: oracle.window_attention(q, k, v, bias, shift),
        [*qkv, bias],
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Windows of 3, shifted by 1: whole ones, and parts of them at every border."""
    qkv = random_qkv(0, size, c_out=6, dtype=dtype, memory_format=memory_format)
    assert_windows_agree(qkv, random_bias(2, 3, dtype), shift=1)


@settings(max_examples=15)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window_and_shift=st.integers(1, 8).flatmap(
        lambda window: st.tuples(st.just(window), st.integers(0, window - 1))
    ),
    heads=st.sampled_from([1, 2]),
    batch=st.integers(1, 2),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    size: tuple[int, int], window_and_shift: tuple[int, int], heads: int, batch: int
) -> None:
    window, shift = window_and_shift
    qkv = random_qkv(1, size, c=2, c_out=4, batch=batch)
    assert_windows_agree(qkv, random_bias(heads, window), shift)


def test_many_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three windows at a time, out of eight."""
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 2 * 3 * 2 * 9**2)
    assert_windows_agree(random_qkv(2, (6, 12), c_out=6, batch=1), random_bias(2, 3), shift=0)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (3, 4), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: window_attention(*t, 1), [*qkv, random_bias(2, 2)])


def test_no_second_derivative() -> None:
    qkv = random_qkv(1, (3, 4))
    out = window_attention(*qkv, random_bias(1, 2)).sum()
    with pytest.raises(RuntimeError, match="window_attention is once_differentiable"):
        torch.autograd.grad(out, qkv, create_graph=True)


@pytest.mark.parametrize("shift", [0, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (8, 12)])
def test_equals_the_papers_cyclic_shift_with_masks(size: tuple[int, int], shift: int) -> None:
    """Roll, cut into whole windows, mask what was not adjacent, roll back."""
    window, heads = 4, 2
    q, k, v = (t.detach() for t in random_qkv(3, size, c_out=6))
    bias = random_bias(heads, window).detach()

    def windows(x: Tensor) -> Tensor:  # [B, windows, 16, channels]
        x = x.roll((-shift, -shift), (2, 3))
        x = x.unfold(2, window, window).unfold(3, window, window)
        return x.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(1, 2)

    bands = [torch.zeros(length, dtype=torch.long) for length in size]
    if shift:
        for band in bands:
            band[-window:-shift], band[-shift:] = 1, 2
    region = (3 * bands[0][:, None] + bands[1]).view(1, 1, *size)
    region = region.roll((shift, shift), (2, 3))  # regions are those of the rolled map
    regions = windows(region)
    masked = regions != regions.mT

    y, x = (i.flatten() for i in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    by_pair = bias[:, y[:, None] - y + window - 1, x[:, None] - x + window - 1]
    outs = []
    for head in range(heads):
        one, two, three = (windows(t.chunk(heads, 1)[head]) for t in (q, k, v))
        scores = one @ two.mT / math.sqrt(one.shape[-1]) + by_pair[head]
        outs.append(scores.masked_fill(masked, -torch.inf).softmax(-1) @ three)
    out = torch.cat(outs, -1).unflatten(1, (size[0] // window, -1)).unflatten(3, (window, window))
    out = out.permute(0, 5, 1, 3, 2, 4).reshape(v.shape).roll((shift, shift), (2, 3))
    assert_close(window_attention(q, k, v, bias, shift), out, 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_window_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    bias = torch.zeros(1, 13, 13, dtype=torch.float64)
    assert_close(window_attention(q, k, v, bias), non_local_attention(q / 2, k, v), 1e-12)


@pytest.mark.parametrize(
    ("name", "reached"),
    [("window", [(0, 8), (8, 16), (16, 18)]), ("shifted-window", [(0, 4), (4, 12), (12, 18)])],
)
def test_reach(name: str, reached: list[tuple[int, int]]) -> None:
    """A position sees the window it lies in and nothing else; nothing wraps around."""
    torch.manual_seed(0)
    module = perturb(create_attention(name, channels=8).double())
    for start, stop in reached:
        x = random_map(0, 8, (18, 18), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, start, stop - 1].sum(), x)
        wanted = torch.zeros(18, 18, dtype=torch.bool)
        wanted[start:stop, start:stop] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize("options", [{}, {"heads": 1, "reduction": 4, "res_scale": 0.3}])
@pytest.mark.parametrize(("name", "shift"), [("window", 0), ("shifted-window", 1)])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(
    size: tuple[int, int], name: str, shift: int, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention(name, channels=8, window=3, **options).double())
    output = module.output

    def forward(x: Tensor) -> Tensor:
        out = oracle.window_attention(*module.project(x), module.bias, shift)
        out = conv_oracle.convolution(out, output.weight, output.bias)
        return x + options.get("res_scale", 0.1) * out

    assert_module_agrees(module, forward, random_map(0, 8, size))


def test_memory_is_that_of_the_map_and_a_tile() -> None:
    """Weights of all windows together would be 4 · 256 · 128² = 16.8 million numbers."""
    module = create_attention("window", channels=8, window=16)
    with LargestTensor() as seen:
        module(random_map(0, 8, (128, 128), batch=1, dtype=torch.float32)).sum().backward()
    assert seen.largest <= 2**19


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": 0}, "window"),
        ({"window": 2.5}, "window"),
        ({"heads": 3}, "heads 3 does not divide the 8 channels"),
        ({"heads": 0}, "heads"),
        ({"reduction": 4}, "heads 4 does not divide the 2 channels"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        create_attention("window", channels=8, **options)


@pytest.mark.parametrize(
    ("bias", "shift", "told"),
    [
        ((2, 4, 4), 0, "bias must be"),
        ((2, 3, 5), 0, "bias must be"),
        ((3, 3), 0, "bias must be"),
        ((3, 3, 3), 0, "heads 3 does not divide the 4 channels"),
        ((2, 3, 3), 0, "heads 2 does not divide the 5 channels"),
        ((1, 3, 3), 2, "shift must be 0 … 1 for windows of 2, got 2"),
        ((1, 3, 3), -1, "shift"),
    ],
)
def test_bad_arguments_are_told(bias: tuple[int, ...], shift: int, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        window_attention(*random_qkv(0, (3, 4)), torch.zeros(bias, dtype=torch.float64), shift)


@pytest.mark.parametrize(("window", "core"), [(8, "0.164"), (16, "0.655")])
def test_core_at_the_papers_setting(window: int, core: str) -> None:
    """2 M² N (c + c_out) at 100x100 with 64 channels; windows that the border cuts are smaller."""
    for name in ("window", "shifted-window"):
        cost = create_attention(name, channels=64, window=window).cost(100, 100)
        assert f"{2 * cost.core / 1e9:.3f}" == core
        assert cost.executed < cost.core + 100 * 100 * 64**2
    whole = create_attention("window", channels=64, window=window).cost(96, 96)
    assert whole.executed == whole.core + 96 * 96 * 64**2

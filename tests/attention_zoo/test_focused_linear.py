"""Focused linear attention against its oracle, and what its features are said to do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.focused_linear import focused_features, focused_linear_attention
from tests.reference import conv as conv_oracle
from tests.reference import focused_linear as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def met(qkv: tuple[Tensor, ...]) -> list[Tensor]:
    """Queries and keys that share a feature: pairs that share none are weighed by 1e-18."""
    q, k, v = (t.detach().clone() for t in qkv)
    q[:, 0], k[:, 0] = q[:, 0].abs() + 0.25, k[:, 0].abs() + 0.25
    return [t.requires_grad_() for t in (q, k, v)]


def assert_features_agree(qkv: tuple[Tensor, ...], focus: float) -> None:
    assert_agrees(
        lambda q, k, v: focused_linear_attention(q, k, v, focus),
        lambda q, k, v: oracle.focused_linear_attention(q, k, v, focus),
        met(qkv),
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    assert_features_agree(random_qkv(0, size, dtype=dtype, memory_format=memory_format), 3.0)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    focus=st.floats(1, 6),
    c=st.integers(1, 5),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], focus: float, c: int, batch: int
) -> None:
    assert_features_agree(random_qkv(seed, size, c=c, batch=batch), focus)


def test_gradcheck() -> None:
    qkv = met(random_qkv(1, (2, 3), batch=1))
    assert torch.autograd.gradcheck(focused_linear_attention, qkv)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [2.0**-6, 2.0**13])
def test_powers_do_not_leave_the_range_of_the_dtype(dtype: torch.dtype, scale: float) -> None:
    """The cube of 8192 is not in float16; a common scale of queries, or of keys, cancels."""
    q, k, v = (t.detach().to(dtype) for t in met(random_qkv(2, (4, 5))))
    out = focused_linear_attention(q * scale, k * scale, v)
    assert_close(out, focused_linear_attention(q, k, v), 2e-3 if dtype.itemsize == 2 else 1e-6)


def test_no_feature_in_common_and_none_at_all_stay_finite() -> None:
    q, k, v = (t.detach().float() for t in random_qkv(2, (4, 5)))
    q, k = q.abs(), k.abs()
    q[:, :2], k[:, 2:] = -1, -1
    for queries, keys in ((1e15 * q, 1e15 * k), (-q.abs(), k), (q, -k.abs()), (0 * q, 0 * k)):
        queries.requires_grad_()
        out = focused_linear_attention(queries, keys, v)
        assert (out.amax((2, 3)) <= v.amax((2, 3)) + 1e-5).all()
        assert (out.amin((2, 3)) >= v.amin((2, 3)) - 1e-5).all()
        (gradient,) = torch.autograd.grad(out.sum(), queries)
        assert gradient.isfinite().all()


def test_focusing_keeps_lengths_and_sharpens_directions() -> None:
    """``|phi(x)| = |relu(x)|``; near pairs come nearer, far ones go apart as p grows."""
    x = random_map(0, 6, (4, 5)).detach().abs()
    for focus in (1.0, 3.0, 8.0):
        powers, factors = focused_features(x, focus)
        lengths = torch.linalg.vector_norm(powers * factors, dim=1)
        assert_close(lengths, torch.linalg.vector_norm(x.flatten(2), dim=1), 1e-12)
    a = torch.tensor([1.0, 0.2, 0.4, 0.1]).double()
    near, far = torch.tensor([0.9, 0.3, 0.2, 0.3]).double(), torch.tensor([0.2, 1, 0.1, 0.3])
    for other, sign in ((near, 1), (far.double(), -1)):
        cosines = []
        for focus in (1.0, 3.0, 6.0):
            one, two = (focused_features(t.view(1, 4, 1, 1), focus)[0] for t in (a, other))
            cosines.append(sign * torch.cosine_similarity(one, two).item())
        assert cosines == sorted(cosines)


@pytest.mark.parametrize("options", [{}, {"focus": 2.0, "reduction": 1, "res_scale": 0.3}])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], options: dict[str, float]) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("focused-linear", channels=8, **options).double())
    module.query.bias.data[0] = module.key.bias.data[0] = 3.0  # a feature in common
    local = module.local

    def forward(x: Tensor) -> Tensor:
        q, k, v = module.project(x)
        alone = [
            conv_oracle.convolution(channel, weight.unsqueeze(0), bias.unsqueeze(0))
            for channel, weight, bias in zip(v.split(1, 1), local.weight, local.bias, strict=True)
        ]
        out = oracle.focused_linear_attention(q, k, v, options.get("focus", 3.0))
        return x + options.get("res_scale", 0.1) * (out + torch.cat(alone, dim=1))

    assert_module_agrees(module, forward, random_map(0, 8, size))


@pytest.mark.parametrize("focus", [0.5, 0.0, -3.0, float("nan")])
def test_bad_focus_is_refused(focus: float) -> None:
    with pytest.raises(AttentionError, match="focus"):
        create_attention("focused-linear", channels=8, focus=focus)


def test_core_at_the_papers_setting() -> None:
    """2 (2 c c_out + c + 25 C) N at 100x100 with 64 channels."""
    cost = create_attention("focused-linear", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == "0.197"

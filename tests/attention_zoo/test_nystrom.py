"""Nyström attention against its oracle, and against the attention that it approximates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.nystrom import landmark_inverse, landmarks, nystrom_attention
from tests.reference import conv as conv_oracle
from tests.reference import nystrom as oracle
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


def assert_landmarks_agree(qkv: tuple[Tensor, ...], grid: int, steps: int = 6) -> None:
    """Within ten times what others have: the pseudo-inverse magnifies errors."""
    value, gradient = TOLERANCES[qkv[0].dtype]
    half = qkv[0].dtype in (torch.float16, torch.bfloat16)  # rounded at the end only
    assert_agrees(
        lambda q, k, v: nystrom_attention(q, k, v, grid, steps),
        lambda q, k, v: oracle.nystrom_attention(q, k, v, grid, steps),
        qkv,
        tolerance=(value, gradient) if half else (10 * value, 10 * gradient),
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """A grid of 3: regions that are whole, that overlap, and fewer of them."""
    assert_landmarks_agree(random_qkv(0, size, dtype=dtype, memory_format=memory_format), 3)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    grid=st.integers(1, 4),
    steps=st.integers(1, 7),
    c=st.integers(1, 5),
    batch=st.integers(1, 2),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], grid: int, steps: int, c: int, batch: int
) -> None:
    assert_landmarks_agree(random_qkv(seed, size, c=c, batch=batch), grid, steps)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (3, 4), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: nystrom_attention(*t, 2), qkv)


@pytest.mark.parametrize("size", SIZES)
def test_a_landmark_for_every_position_is_softmax_attention(size: tuple[int, int]) -> None:
    """``A Z A = A`` once Z has converged."""
    q, k, v = random_qkv(2, size)
    exact = non_local_attention(q / 2, k, v)
    assert_close(nystrom_attention(q, k, v, 7, steps=40), exact, 1e-8)


def test_every_step_comes_closer_to_softmax_attention() -> None:
    q, k, v = random_qkv(2, (4, 5))
    exact = non_local_attention(q / 2, k, v)
    errors = [(nystrom_attention(q, k, v, 5, steps) - exact).norm() for steps in (1, 3, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_the_inverse_is_that_of_moore_and_penrose() -> None:
    """Of well-conditioned weights; and of equal ones, which have rank one."""
    q, k, _ = random_qkv(4, (6, 6), c=16)
    landmarks_q, landmarks_k = landmarks(q + k, 3), landmarks(k + q, 3)
    a = (landmarks_q @ landmarks_k.mT / 4).softmax(-1)
    wanted = torch.linalg.pinv(a.detach())
    assert_close(landmark_inverse(landmarks_q, landmarks_k, 20), wanted, 1e-8)
    same = landmark_inverse(0 * landmarks_q, landmarks_k, 6)
    assert_close(same, torch.full_like(same, 1 / 9), 1e-12)


def test_images_do_not_share_a_start() -> None:
    """The released code divides all of a batch by one number."""
    q, k, v = random_qkv(2, (4, 5), batch=3)
    together = nystrom_attention(q, k, v, 2)
    alone = [nystrom_attention(*(t[i : i + 1] for t in (q, k, v)), 2) for i in range(3)]
    assert_close(together, torch.cat(alone), 1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"grid": 2, "skip": False, "reduction": 1, "res_scale": 0.3, "steps": 4}]
)
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], options: dict[str, float]) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("nystrom", channels=8, **options).double())
    grid, steps = int(options.get("grid", 8)), int(options.get("steps", 6))

    def forward(x: Tensor) -> Tensor:
        q, k, v = module.project(x)
        out = oracle.nystrom_attention(q, k, v, grid, steps)
        if options.get("skip", True):
            alone = [
                conv_oracle.convolution(channel, weight.unsqueeze(0), None)
                for channel, weight in zip(v.split(1, 1), module.local.weight, strict=True)
            ]
            out = out + torch.cat(alone, dim=1)
        return x + options.get("res_scale", 0.1) * out

    assert_module_agrees(module, forward, random_map(0, 8, size))


@pytest.mark.parametrize("option", ["grid", "steps"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=option):
        create_attention("nystrom", channels=8, **{option: value})
    with pytest.raises(AttentionError, match=option):
        nystrom_attention(*random_qkv(0, (3, 4)), **{option: value})


def test_core_at_the_papers_setting() -> None:
    """2 · 64 N (c + c_out) + 9 N C, 64² (c + c_out) + 6 · 4 · 64³ at 100x100 with 64 channels."""
    cost = create_attention("nystrom", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == "0.353"
    assert cost.core == cost.executed

"""The softmax primitive: value, gradient, log-sum-exp, and merging of partial results."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.cores.softmax_rows import (
    softmax_attention_fused,
    softmax_attention_lse,
    why_not_fused,
)
from tests.reference import softmax as oracle
from tests.reference.cases import TOLERANCES, assert_agrees, assert_close


def rows(
    seed: int, queries: int, keys: int, dtype: torch.dtype = torch.float64, batch: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, queries, 4), (batch, keys, 4), (batch, keys, 5)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in drawn]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (9, 1), (6, 11)])
def test_attention_agrees_with_the_oracle(queries: int, keys: int, dtype: torch.dtype) -> None:
    assert_agrees(
        softmax_attention_fused,
        lambda q, k, v: oracle.softmax_attention_lse(q, k, v)[0],
        rows(0, queries, keys, dtype),
    )


@pytest.mark.parametrize("tile", [1, 7, 24, 100])
@pytest.mark.parametrize("most_above", [-100.0, 40.0])
@pytest.mark.parametrize("key_tile", [1, 4, 100])
def test_any_tiling_agrees_with_the_oracle(
    monkeypatch: pytest.MonkeyPatch, tile: int, key_tile: int, most_above: float
) -> None:
    """Tiles of queries, keys (online softmax or not) and images, whole and broken, two threads."""
    names = {"CPU_TILE": tile, "_CPU_KEYS": key_tile, "_MOST_ABOVE": most_above}
    for name, size in (names | {"_FEW_SCORES": 0}).items():
        monkeypatch.setattr(f"attention_zoo.cores.softmax.{name}", size)
    inputs = rows(5, 5, 9, batch=3)
    for part in (0, 1):
        assert_agrees(
            lambda q, k, v, part=part: softmax_attention_lse(q, k, v)[part] + 0 * v.sum(),
            lambda q, k, v, part=part: oracle.softmax_attention_lse(q, k, v)[part] + 0 * v.sum(),
            inputs,
        )


def test_long_rows_agree_with_a_dense_product() -> None:
    """More keys than are held at once, at the sizes in use."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 3, generator=generator) for n in (700, 2600, 2600))
    out, lse = softmax_attention_lse(q, k, v)
    scores = q.double() @ k.double().mT
    assert_close(out, scores.softmax(-1) @ v.double(), 1e-5)
    assert_close(lse, scores.logsumexp(-1), 1e-6)
    assert_close(softmax_attention_fused(q, k, v), out, 1e-5)


@pytest.mark.parametrize("last", [50.0, 1e4, -1e4])
def test_a_later_score_may_be_far_larger_or_smaller(last: float) -> None:
    """The maximum of the first keys serves all only while sums stay within float32's middle."""
    q, v = torch.ones(1, 3, 1), torch.randn(1, 1200, 2, generator=torch.Generator().manual_seed(0))
    k = torch.zeros(1, 1200, 1)
    k[:, 1100] = last
    out, lse = softmax_attention_lse(q, k, v)
    scores = q.double() @ k.double().mT
    assert_close(out, scores.softmax(-1) @ v.double(), 1e-5)
    assert_close(lse, scores.logsumexp(-1), 1e-6)


@pytest.mark.parametrize("size", [0.1, 10.0, 1000.0])
def test_what_is_executed_does_not_depend_on_the_scores(size: float) -> None:
    q, k, v = (torch.randn(1, n, 8) for n in (50, 2600, 2600))
    with FlopCounterMode(display=False) as counter:
        softmax_attention_lse(size * q, k, v)
    assert counter.get_total_flops() == 2 * 50 * 2600 * (8 + 8)


def test_fused_kernels_are_asked_for_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    def rows_on_cuda(dtype: torch.dtype) -> Any:
        return [SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)] * 3

    assert why_not_fused(*rows_on_cuda(torch.float16)) is None
    assert why_not_fused(*rows_on_cuda(torch.float32)) is None
    told = why_not_fused(*rows_on_cuda(torch.bfloat16))
    assert told is not None
    assert "from CUDA capability 8.0 on; this device has 7.5" in told
    capability = (8, 0)
    assert why_not_fused(*rows_on_cuda(torch.bfloat16)) is None
    assert "float64" in (why_not_fused(*rows_on_cuda(torch.float64)) or "")


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 9)])
def test_attention_with_log_sum_exp_agrees_with_the_oracle(
    queries: int, keys: int, dtype: torch.dtype, part: int
) -> None:
    def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The part under test; the value enters the other with weight zero, for its gradient."""
        return softmax_attention_lse(q, k, v)[part] + 0 * v.sum()

    def wanted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return oracle.softmax_attention_lse(q, k, v)[part] + 0 * v.sum()

    assert_agrees(summed, wanted, rows(1, queries, keys, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_log_sum_exp_in_half_precision(dtype: torch.dtype) -> None:
    q, k, v = rows(2, 7, 9, dtype)
    out, lse = softmax_attention_lse(q, k, v)
    wanted_out, wanted_lse = oracle.softmax_attention_lse(q, k, v)
    assert out.dtype == dtype
    assert_close(out, wanted_out, TOLERANCES[dtype][0])
    assert_close(lse, wanted_lse, TOLERANCES[dtype][0])


def test_gradcheck() -> None:
    inputs = rows(3, 4, 5, batch=1)
    assert torch.autograd.gradcheck(softmax_attention_fused, inputs)
    assert torch.autograd.gradcheck(softmax_attention_lse, inputs)


def test_huge_scores_do_not_overflow() -> None:
    q = torch.full((1, 2, 1), 30.0)
    k = torch.tensor([30.0, 29.0]).view(1, 2, 1)  # scores 900 and 870
    v = torch.tensor([1.0, 2.0]).view(1, 2, 1)
    assert_close(softmax_attention_fused(q, k, v), torch.ones(1, 2, 1), 1e-6)
    out, lse = softmax_attention_lse(q, k, v)
    assert_close(out, torch.ones(1, 2, 1), 1e-6)
    assert_close(lse, torch.full((1, 2), 900.0), 1e-6)

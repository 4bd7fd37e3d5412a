"""Attention to the largest scores: what the kernels in C choose, and that all ways are alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.cores.native import largest as native
from attention_zoo.cores.native import padded, why_not_native
from attention_zoo.cores.tiles import scratch
from attention_zoo.implementations import use_implementation, watch_implementations
from attention_zoo.rivals.hspa import high_similarity_attention
from attention_zoo.rivals.top_k import top_k_attention
from tests.reference.cases import FORMATS, assert_agrees, assert_close, by_threads, random_qkv

_REASON = why_not_native(torch.zeros(1))
needs_compiler = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

Function = Callable[..., Tensor]


def _select(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and places of one image of n rows and as many scores: column j is 1 at channel j."""
    n = len(scores)
    values, at = torch.empty(n, count), torch.empty(n, count, dtype=torch.int32)
    columns = torch.zeros(n, padded(n))
    columns.fill_diagonal_(1)
    rows = 5
    sizes = {"images": 1, "n": n, "m": padded(n), "c": n, "count": count, "rows": rows}
    job = native.Selection.of(q=scores, k=columns, values=values, at=at, **sizes, workers=1)
    native.select(job, scratch("native", scores, native.workspace_size(rows, padded(n), count)))
    return values, at


@st.composite
def _rows(draw: st.DrawFn) -> tuple[Tensor, int]:
    n = draw(st.integers(1, 150))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(n, n, generator=generator, dtype=torch.float32)
    kind = draw(st.sampled_from(["any", "equal", "steps", "tiny", "huge", "ramp", "few"]))
    if kind == "equal":
        scores = scores[:, :1].expand(n, n).contiguous()
    elif kind == "steps":
        scores = scores.round()
    elif kind == "tiny":
        scores = scores.relu() * 1e-42
    elif kind == "huge":
        scores = scores * 1e37
    elif kind == "ramp":
        scores = torch.linspace(-2, 1, n).sin().expand(n, n).contiguous()
    elif kind == "few":
        scores = torch.where(scores > 2, scores, -1e30)
    return scores, draw(st.integers(1, n))


@needs_compiler
@settings(deadline=None, max_examples=200)
@given(_rows())
def test_the_largest_are_chosen_in_order(case: tuple[Tensor, int]) -> None:
    """Of equal scores the first. Scores are products with 0 and 1, so they are exact."""
    scores, count = case
    values, at = _select(scores, count)
    expected, where = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :count])
    assert torch.equal(at.long(), where[:, :count])


@needs_compiler
def test_a_row_with_a_score_that_is_no_number_has_no_other() -> None:
    scores = torch.randn(40, 40, dtype=torch.float32)
    scores[7, 31] = math.nan
    values, at = _select(scores, 6)
    # Products of NaN with the zeros of other columns are NaN as well; other rows are not touched.
    assert values[7].isnan().all()
    assert (at[7] >= 0).all()
    assert (at[7] < 40).all()
    others = [i for i in range(40) if i != 7]
    assert torch.equal(values[others], scores[others].topk(6).values)


def _by(function: Function, count: int, name: str) -> Function:
    def attend(*qkv: Tensor) -> Tensor:
        with use_implementation(f"largest={name}"), watch_implementations() as seen:
            out = function(*qkv, count)
        assert seen == {"largest": name}
        return out

    return attend


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("c", "c_out"), [(16, 16), (5, 33), (3, 130)])
@pytest.mark.parametrize("size", [(12, 12), (5, 29), (1, 300)])
@pytest.mark.parametrize("count", [1, 7, 36])
@pytest.mark.parametrize("function", [top_k_attention, high_similarity_attention])
@pytest.mark.parametrize("name", ["native", "tiled"])
def test_agrees_with_the_reference_in_float64(
    name: str,
    function: Function,
    count: int,
    size: tuple[int, int],
    c: int,
    c_out: int,
    memory_format: torch.memory_format,
) -> None:
    if name == "native" and _REASON:
        pytest.skip(_REASON)
    dtype = torch.float32
    inputs = random_qkv(7, size, c=c, c_out=c_out, dtype=dtype, memory_format=memory_format)
    assert_agrees(_by(function, count, name), _by(function, count, "reference"), inputs)


@needs_compiler
@pytest.mark.parametrize("function", [top_k_attention, high_similarity_attention])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_number_of_threads_gives_the_same(function: Function, batch: int) -> None:
    """Outputs and gradients of queries to the last bit; others are sums in another order."""
    inputs = random_qkv(3, (40, 30), c=6, c_out=7, batch=batch, dtype=torch.float32)
    attend = _by(function, 40, "native")
    one, two, three, again = by_threads((1, 2, 3, 2), attend, inputs)
    for other in (two, three):
        assert all(map(torch.equal, one[:2], other[:2]))
        for a, b in zip(one[2:], other[2:], strict=True):
            assert_close(a, b, 1e-5)
    assert all(map(torch.equal, two, again))


@needs_compiler
@pytest.mark.parametrize("c_out", [5, 16])
def test_the_output_may_be_changed_in_place(c_out: int) -> None:
    inputs = random_qkv(3, (6, 7), c=6, c_out=c_out, dtype=torch.float32)
    out = _by(top_k_attention, 9, "native")(*inputs)
    wanted = torch.autograd.grad(2 * out.sum(), inputs)
    again = _by(top_k_attention, 9, "native")(*inputs).mul_(2)
    assert all(map(torch.equal, torch.autograd.grad(again.sum(), inputs), wanted))


@needs_compiler
def test_rows_of_ten_thousand_positions() -> None:
    """Tiles of few rows. Rounding decides between the last that is chosen and the next in some."""
    q, k, v = random_qkv(5, (100, 100), c=4, c_out=3, batch=1, dtype=torch.float32)
    for count in (9, 300):
        found, other = (_by(top_k_attention, count, name)(q, k, v) for name in ("native", "tiled"))
        assert ((found - other).abs() > 1e-4).float().mean() < 1e-3


def test_the_rule_and_what_the_kernels_refuse() -> None:
    q, k, v = random_qkv(5, (6, 6), c=4, dtype=torch.float32)

    def seen(*qkv: Tensor, count: int = 9) -> str:
        with watch_implementations() as found:
            top_k_attention(*qkv, count)
        return found["largest"]

    assert seen(q, k, v) == ("tiled" if _REASON else "native")
    assert seen(q, k, v, count=10) == "tiled"
    assert seen(q.double(), k.double(), v.double()) == "tiled"
    if not _REASON:
        assert seen(q[:0], k[:0], v[:0]) == "native"
    with (
        use_implementation("largest=native"),
        pytest.raises(AttentionError, match="choose up to 512 positions, one of 4 at most"),
    ):
        top_k_attention(q, k, v, 10)


def test_the_reference_has_second_derivatives_and_transforms() -> None:
    """What the others refuse; each image by itself gives what the batch gives."""
    inputs = [t.detach().requires_grad_() for t in random_qkv(5, (3, 4), c=4)]
    with use_implementation("reference"):
        assert torch.autograd.gradgradcheck(lambda *qkv: top_k_attention(*qkv, 5), inputs)
        assert torch.autograd.gradcheck(lambda *qkv: high_similarity_attention(*qkv, 5), inputs)
        images = [t.detach().unsqueeze(1) for t in inputs]
        mapped = torch.func.vmap(lambda *qkv: top_k_attention(*qkv, 5))(*images)
        assert_close(mapped.squeeze(1), top_k_attention(*inputs, 5), 1e-12)
    with (
        use_implementation("largest=tiled"),
        pytest.raises(AttentionError, match="takes plain operations"),
    ):
        torch.func.vmap(lambda *qkv: top_k_attention(*qkv, 5))(*images)

"""ENLCA's contrastive loss against its oracle, and the module that leaves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.cores.contrast_tiled import _largest, _pieces
from attention_zoo.cores.largest import has_vector_sort
from attention_zoo.enlca import contrast_groups, contrastive_loss
from tests.reference import contrastive as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    LargestTensor,
    assert_agrees,
    assert_close,
    perturb,
    random_map,
    random_qkv,
)


def assert_loss_agrees(inputs: list[Tensor], **options: Any) -> None:
    assert_agrees(
        lambda q, k: contrastive_loss(q, k, **options).to(q.dtype),
        lambda q, k: oracle.contrastive_loss(q, k, **options),
        inputs,
    )


@pytest.fixture(params=["vector sort", "top-k"])
def selection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find a row's largest entries: by numpy's sort on the CPU, else by topk."""
    if request.param == "top-k":
        monkeypatch.setattr("attention_zoo.cores.contrast_tiled.has_vector_sort", lambda: False)
    else:
        assert has_vector_sort()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [*SIZES, (7, 9)])
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """From N = 1 on; N <= 50 gave NaN in the released code, N = 63 has more than one entry."""
    q, k, _ = random_qkv(0, size, dtype=dtype, memory_format=memory_format)
    assert_loss_agrees([q, k])


@pytest.mark.usefixtures("selection")
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 7), st.integers(1, 8)),
    n1=st.sampled_from([0.01, 0.02, 0.1, 0.3]),
    n2=st.sampled_from([0.0, 0.05, 0.08, 0.4, 0.9]),
    margin=st.sampled_from([-1.0, 0.0, 1.0, 3.0]),
    amplification=st.sampled_from([1.0, 6.0, 20.0]),
    hinge=st.booleans(),
)
def test_agrees_with_the_oracle_for_drawn_options(
    seed: int, size: tuple[int, int], **options: Any
) -> None:
    """Groups that overlap or reach beyond the row included."""
    q, k, _ = random_qkv(seed, size)
    assert_loss_agrees([q, k], **options)


@pytest.mark.usefixtures("selection")
@pytest.mark.parametrize("network", [2, 5, 16, 10_000])
@pytest.mark.parametrize("tile", [1, 100, 3 * 42, 42 * 42, 2 * 42 * 42])
def test_any_tiling_agrees_with_the_oracle(
    monkeypatch: pytest.MonkeyPatch, tile: int, network: int
) -> None:
    """Blocks of rows and of images, whole and broken; rows sorted whole and in pieces."""
    monkeypatch.setattr("attention_zoo.cores.contrast_tiled._CPU_TILE", tile)
    monkeypatch.setattr("attention_zoo.cores.contrast_tiled._NETWORK", network)
    q, k, _ = random_qkv(3, (6, 7), batch=3)
    assert_loss_agrees([q, k], n1=0.1, n2=0.4, margin=1.0)


ROWS = {
    "random": lambda rows: rows,
    "largest at one end": lambda rows: rows.sort(dim=-1).values,
    "some equal": lambda rows: rows.round(decimals=1),
    "all equal": torch.zeros_like,
}


@given(
    kind=st.sampled_from(list(ROWS)),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3000)),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_largest_entries(kind: str, shape: tuple[int, int, int], share: float, seed: int) -> None:
    """Where a piece holds more of them than are looked at, too."""
    scores = ROWS[kind](torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    kept = max(1, int(share * shape[2]))
    expected = scores.sort(dim=-1).values[..., -kept:]
    assert torch.equal(_largest(scores.clone(), kept), expected)


def test_some_rows_are_looked_at_in_part() -> None:
    assert [_pieces(784, 78), _pieces(2304, 231)[1], _pieces(10_000, 1001)[1]] == [
        ([0, 392, 784], 78),
        102,
        91,
    ]


@pytest.mark.parametrize("size", [(30, 20), (48, 48)])
def test_rows_in_pieces_agree_with_whole_ones(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """One piece looked at whole, and five in part, their keys in another order."""
    q, k, _ = random_qkv(8, size, batch=1)
    in_pieces = loss_and_gradients(q, k, hinge=False)
    monkeypatch.setattr("attention_zoo.cores.contrast_tiled._NETWORK", 10_000)
    for a, b in zip(in_pieces, loss_and_gradients(q, k, hinge=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_ties_on_the_bounds_of_some_rows() -> None:
    q, k, _ = random_qkv(9, (6, 7), batch=1)
    k.data[..., 1, :] = k.data[..., 0, :]  # equal pairs in every row
    options = {"n1": 0.1, "n2": 0.4, "hinge": False}
    loss, grad_q, _ = loss_and_gradients(q, k, **options)
    wanted_q, wanted_k = (t.detach().clone().requires_grad_() for t in (q, k))
    wanted = oracle.contrastive_loss(wanted_q, wanted_k, **options)
    assert_close(loss, wanted.detach(), 1e-12)
    assert_close(grad_q, torch.autograd.grad(wanted, wanted_q)[0], 1e-9)


def loss_and_gradients(q: Tensor, k: Tensor, **options: Any) -> list[Tensor]:
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    loss = contrastive_loss(q, k, **options)
    return [loss.detach(), *torch.autograd.grad(loss, [q, k])]


@pytest.mark.parametrize("flat", [2, 3, 20, 42])
def test_equal_entries_count_as_often_as_a_group_takes_them(
    monkeypatch: pytest.MonkeyPatch, flat: int
) -> None:
    """Flat regions give equal entries, on a group's bound too: sum and count must still fit."""
    q, k, _ = random_qkv(5, (6, 7), batch=2)
    k.data.flatten(2)[..., -flat:] = k.data[..., -1:, -1]
    options = {"n1": 0.1, "n2": 0.4, "hinge": False}
    loss, grad_q, grad_k = loss_and_gradients(q, k, **options)
    torch.testing.assert_close(loss, oracle.contrastive_loss(q, k, **options).detach())
    monkeypatch.setattr("attention_zoo.cores.contrast_tiled.has_vector_sort", lambda: False)
    _, by_index_q, by_index_k = loss_and_gradients(q, k, **options)
    torch.testing.assert_close(grad_q, by_index_q)
    # Which of the equal keys is in a group is free; together they get the same gradient.
    for grad in (grad_k, by_index_k):
        grad.flatten(2)[..., -flat:] = grad.flatten(2)[..., -flat:].mean(-1, keepdim=True)
    torch.testing.assert_close(grad_k, by_index_k)


def test_any_number_of_threads_agrees() -> None:
    q, k, _ = random_qkv(6, (9, 11), batch=3, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(loss_and_gradients(q, k))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("amplification", [1.0, 60.0, 1000.0])
def test_large_amplification_stays_finite(amplification: float) -> None:
    """exp of the entries between the groups would overflow; their weight is zero."""
    q, k, _ = random_qkv(7, (9, 11), dtype=torch.float32)
    for tensor in loss_and_gradients(q, k, amplification=amplification, hinge=False):
        assert tensor.isfinite().all()


def test_gradcheck() -> None:
    q, k, _ = random_qkv(0, (3, 5), batch=1)
    assert torch.autograd.gradcheck(
        lambda q, k: contrastive_loss(q, k, n1=0.1, n2=0.4, hinge=False), [q, k]
    )


def test_a_second_derivative_is_refused() -> None:
    """The gradient is made in the forward pass: a wrong second one must not pass in silence."""
    q, k, _ = random_qkv(0, (3, 5), batch=1)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.gradgradcheck(
            lambda q, k: contrastive_loss(q, k, n1=0.1, n2=0.4, hinge=False), [q, k]
        )


def test_groups_of_known_rows() -> None:
    """Cosines 1, 0 and −1 against the first position, N = 10, groups of 2 from entry 4 on."""
    k = torch.zeros(1, 2, 1, 10, dtype=torch.float64)
    k[0, 0, 0, :3] = 1.0  # three relevant
    k[0, 1, 0, 3:6] = 1.0  # three orthogonal
    k[0, 0, 0, 6:] = -1.0  # four opposite
    q = torch.zeros_like(k)
    q[0, 0] = 3.0  # its length does not matter
    loss = contrastive_loss(q, k, amplification=6.0, n1=0.2, n2=0.4, margin=7.0)
    # relevant e^6, irrelevant e^0: −log(e^6) + 7
    assert_close(loss, torch.tensor(1.0).double(), 1e-12)
    assert contrastive_loss(q, k, amplification=6.0, n1=0.2, n2=0.4, margin=5.0) == 0  # hinge
    free = contrastive_loss(q, k, amplification=6.0, n1=0.2, n2=0.4, margin=5.0, hinge=False)
    assert_close(free, torch.tensor(-1.0).double(), 1e-12)


def test_counts_from_one_on_are_numbers_of_entries() -> None:
    """The released code's fixed counts: 15 entries each, the second group from entry 50 on."""
    q, k, _ = random_qkv(0, (9, 8), batch=1)
    assert_close(
        contrastive_loss(q, k, n1=15, n2=50),
        oracle.contrastive_loss(q, k, n1=15 / 72 + 1e-9, n2=50 / 72 + 1e-9),
        1e-12,
    )


def test_zero_embeddings_have_a_finite_loss_and_gradient() -> None:
    zeros = [torch.zeros(1, 3, 4, 5, requires_grad=True) for _ in range(2)]
    loss = contrastive_loss(zeros[0], zeros[1])
    assert_close(loss, torch.tensor(1.0), 1e-6)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, zeros))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_large_amplification_does_not_overflow(dtype: torch.dtype) -> None:
    q, k, _ = random_qkv(0, (5, 6), dtype=dtype)
    assert_close(
        contrastive_loss(q, k, amplification=300.0, hinge=False),
        oracle.contrastive_loss(q, k, amplification=300.0, hinge=False),
        1e-3,
    )


def test_no_tensor_of_all_pairs() -> None:
    q, k, _ = random_qkv(0, (80, 80), c=2, batch=1, dtype=torch.float32)
    with LargestTensor() as seen:
        contrastive_loss(q, k).backward()
    assert 0 < seen.largest < 6400**2 / 2


def trained_module(**options: Any) -> Any:
    torch.manual_seed(0)
    return perturb(create_attention("enlca", channels=8, **{"m": 6, **options})).double().train()


def test_training_forward_leaves_the_loss_of_its_embeddings() -> None:
    options = {"n1": 0.1, "n2": 0.4, "margin": 4.0}
    module = trained_module(k=3.0, **options)
    x = random_map(0, 8, (5, 7))
    module(x)
    q, k, _ = module.project(x)
    wanted = oracle.contrastive_loss(q, k, amplification=3.0, **options)
    loss = module.auxiliary_loss()
    assert_close(loss, wanted, 1e-12)
    assert loss > 0
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    wanted_gradients = torch.autograd.grad(wanted, leaves, allow_unused=True)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b, 1e-10)


def test_hinge_option_reaches_the_loss() -> None:
    x = random_map(0, 8, (5, 7))
    losses = []
    for hinge in (True, False):
        module = trained_module(margin=-50.0, hinge=hinge)
        module(x)
        losses.append(module.auxiliary_loss().item())
    assert losses[0] == 0
    assert losses[1] < -40


def test_output_is_that_of_enla() -> None:
    module = trained_module().eval()
    plain = create_attention("enla", channels=8, m=6).double().eval()
    plain.load_state_dict(module.state_dict())
    x = random_map(0, 8, (5, 7))
    assert torch.equal(module(x), plain(x))


@pytest.mark.parametrize(
    ("option", "value"), [("n1", 0.0), ("n1", -0.1), ("n2", -0.1), ("m", 0), ("k", 0.0)]
)
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=rf"\b{option}\b"):
        create_attention("enlca", channels=8, **{option: value})


def test_maps_of_different_shape_are_refused() -> None:
    with pytest.raises(AttentionError, match="q and k"):
        contrastive_loss(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4, 3))


def test_shares_of_n_are_decimal() -> None:
    """0.29 · 100 is 28.999… in binary, and 29 entries."""
    assert contrast_groups(100, 0.29, 0.57) == oracle.groups(100, 0.29, 0.57) == (29, 57)
    assert contrast_groups(784, 15, 50) == (15, 50)
    assert contrast_groups(10, 15, 50) == (10, 0)

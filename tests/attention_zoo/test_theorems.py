"""What the papers prove, as tests: estimator, variance, convergence, cost, invariances.

Statistical tests compare a mean over draws with its exact value by the central limit theorem.
Each such test fails with probability FALSE_ALARM at most for a right implementation, were its
seeds drawn anew (Bonferroni over its checks); seeds are fixed, so a run repeats. The samples'
skewness is checked to raise that probability by no more than SKEW, which the thresholds allow for.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import create_attention
from attention_zoo.cores.softmax_rows import softmax_attention_fused
from attention_zoo.criss_cross import criss_cross_attention
from attention_zoo.enla import normalise, orthogonal_gaussian, phi, random_feature_attention
from attention_zoo.enlca import contrastive_loss
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import normalise_keys, sparse_attention
from tests.reference import contrastive as contrastive_oracle
from tests.reference import enla as oracle
from tests.reference.cases import (
    LargestTensor,
    assert_close,
    counted_macs,
    random_map,
    random_qkv,
)

FALSE_ALARM = 1e-6
SKEW = 4.0
C = 16


def standard_scores(samples: Tensor, expected: Tensor | float, threshold: float) -> Tensor:
    """Standard errors between the means of ``[n, checks]`` and their expectations.

    The tail of a studentised mean is off by about exp(skewness · z³ / (3 √n)).
    """
    centred = samples - samples.mean(0)
    spread = centred.square().mean(0).sqrt()
    skewness = (centred.pow(3).mean(0) / spread.pow(3)).abs().max().item()
    assert skewness * threshold**3 / (3 * math.sqrt(len(samples))) <= math.log(SKEW), "draw more"
    return (samples.mean(0) - expected) / (spread / math.sqrt(len(samples)))


def assert_means(samples: Tensor, expected: Tensor | float) -> None:
    """The means of ``[n, checks]`` are those expected, at the rate FALSE_ALARM for all checks."""
    samples = samples.flatten(1)
    threshold = NormalDist().inv_cdf(1 - FALSE_ALARM / SKEW / (2 * samples.shape[1]))
    scores = standard_scores(samples, expected, threshold)
    assert scores.abs().max() < threshold, f"{scores.abs().max():.2f} standard errors"


def pairs(c: int, norm: float) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys ``[c]`` of one length, at angles of 0°, 60°, 90° and 120°."""
    basis = torch.linalg.qr(
        torch.randn(c, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ).Q.T
    angles = [math.radians(a) for a in (0, 60, 90, 120)]
    return [
        (norm * basis[0], norm * (math.cos(a) * basis[0] + math.sin(a) * basis[1])) for a in angles
    ]


def kernel_estimates(q: Tensor, k: Tensor, projections: Tensor) -> Tensor:
    """``phi(q)·phi(k)`` at eps = 0 for each of the projections ``[n, m, c]``: ``[n]``."""
    n, m, c = projections.shape
    rows = projections.reshape(n * m, c)
    features = phi(torch.stack([q, k]).unsqueeze(0), rows, 0.0)[0]  # with (n m)^(-1/2), not m
    return features.prod(0).reshape(n, m).sum(1) * n


def squared_errors(chosen: list[tuple[Tensor, Tensor]], projections: Tensor) -> Tensor:
    """Squared errors of the kernel estimates ``[n, pairs]``; their mean is the variance."""
    return torch.stack(
        [(kernel_estimates(q, k, projections) - torch.exp(q @ k)).square() for q, k in chosen], 1
    )


@pytest.fixture(scope="module")
def orthogonal() -> Tensor:
    """Independent blocks ``[2^14, C, C]`` of one long draw of the module's projection."""
    n = 2**14
    drawn = orthogonal_gaussian(n * C, C, torch.Generator().manual_seed(0))
    return drawn.double().view(n, C, C)


def independent(n: int, m: int, c: int) -> Tensor:
    """Projections ``[n, m, c]`` of independent Gaussian rows, the paper's proof's."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, m, c, generator=generator, dtype=torch.float64)


# -- Eq. 4: the estimator is unbiased --------------------------------------------------------------

Vectors = st.lists(st.floats(-1.0, 1.0), min_size=4, max_size=4)


@settings(max_examples=50)
@given(coordinates=Vectors, amplification=st.floats(0.1, 6.0))
def test_mean_and_variance_are_eq_4_and_7_under_exact_integration(
    coordinates: list[float], amplification: float
) -> None:
    """Gauss–Hermite nodes as the rows of F, up to the paper's k = 6: no chance is involved.

    c = 2 shows everything, since phi depends on f·q and f·k alone.
    """
    u = normalise(torch.tensor(coordinates, dtype=torch.float64).view(1, 2, 1, 2), amplification)
    q, k = u[0, :, 0, 0], u[0, :, 0, 1]
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(100))
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)
    estimates = kernel_estimates(q, k, torch.cartesian_prod(nodes, nodes).unsqueeze(1))
    kernel = torch.exp(q @ k).item()
    assert (weights @ estimates).item() == pytest.approx(kernel, rel=1e-9)
    assert (weights @ (estimates - kernel).square()).item() == pytest.approx(
        oracle.estimator_variance(q, k, 1), rel=1e-6, abs=1e-9
    )


def test_the_kernel_estimate_is_unbiased_for_independent_rows() -> None:
    projections = independent(2**17, 1, 4)
    chosen = pairs(4, 0.35)
    estimates = torch.stack([kernel_estimates(q, k, projections) for q, k in chosen], 1)
    assert_means(estimates, torch.stack([torch.exp(q @ k) for q, k in chosen]))


def test_the_kernel_estimate_is_unbiased_for_orthogonal_rows(orthogonal: Tensor) -> None:
    chosen = pairs(C, 0.5)
    estimates = torch.stack([kernel_estimates(q, k, orthogonal) for q, k in chosen], 1)
    assert_means(estimates, torch.stack([torch.exp(q @ k) for q, k in chosen]))


def test_eps_biases_the_estimate_upwards() -> None:
    """Each product of features grows, so only eps = 0 gives the estimator of the proof."""
    q, k = pairs(4, 1.0)[0]
    rows = torch.stack([q, k]).unsqueeze(0)
    projection = independent(1, 64, 4)[0]
    assert phi(rows, projection, 0.1)[0].prod(0).sum() > phi(rows, projection, 0.0)[0].prod(0).sum()


# -- Eq. 7: its variance ---------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "m"), [(2**19, 4), (2**17, 16)])
def test_variance_for_independent_rows_is_eq_7(groups: int, m: int) -> None:
    projections = independent(groups, m, 2)
    chosen = pairs(2, 0.2)
    eq_7 = [oracle.estimator_variance(q, k, m) for q, k in chosen]
    assert_means(squared_errors(chosen, projections), torch.tensor(eq_7, dtype=torch.float64))


@pytest.mark.parametrize("m", [C, C // 2])
def test_variance_for_orthogonal_rows_is_smaller(orthogonal: Tensor, m: int) -> None:
    """It equals its own closed form, and is below Eq. 7 beyond chance where it differs enough."""
    chosen = pairs(C, 0.2)
    squares = squared_errors(chosen, orthogonal[:, :m])
    eq_7 = [oracle.estimator_variance(q, k, m) for q, k in chosen]
    closed = [oracle.estimator_variance(q, k, m, orthogonal=True) for q, k in chosen]
    assert_means(squares, torch.tensor(closed, dtype=torch.float64))
    assert all(a < b for a, b in zip(closed, eq_7, strict=True))
    if m == C:
        threshold = NormalDist().inv_cdf(1 - FALSE_ALARM / SKEW)
        assert standard_scores(squares[:, :1], eq_7[0], threshold) < -threshold


# -- the drawn F -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "c"), [(1, 1), (1, 4), (3, 4), (4, 4), (10, 4), (128, 16), (7, 1)])
def test_rows_are_orthogonal_within_blocks(m: int, c: int) -> None:
    projection = orthogonal_gaussian(m, c, torch.Generator().manual_seed(0)).double()
    assert projection.shape == (m, c)
    for block in projection.split(c):
        directions = block / block.norm(dim=1, keepdim=True)
        gram = directions @ directions.T
        assert (gram - torch.eye(len(block))).abs().max() <= 1e-5


def test_rows_have_the_moments_of_a_gaussian(orthogonal: Tensor) -> None:
    """E f = 0 for every rank in a block (QR without a sign fix fails), E f fᵀ = I_c."""
    assert_means(orthogonal, 0.0)
    upper = torch.ones(C, C).triu().bool()
    products = (orthogonal.mT @ orthogonal / C)[:, upper]
    assert_means(products, torch.eye(C, dtype=torch.float64)[upper])


def test_row_norms_are_independent_and_chi_distributed(orthogonal: Tensor) -> None:
    """|f|² is chi-squared with c degrees: mean c, variance 2c; no correlation within a block."""
    centred = orthogonal.square().sum(2) - C
    assert_means(centred.reshape(-1, 1), 0.0)
    assert_means(centred.reshape(-1, 1).square(), 2.0 * C)
    products = [centred[:, i] * centred[:, j] for i in range(C) for j in range(i)]
    assert_means(torch.stack(products, 1), 0.0)


# -- ENLA converges to NLA -------------------------------------------------------------------------


def test_error_falls_with_the_square_root_of_m() -> None:
    """Root mean square error over draws, at k = 0.25, where exp(q·k) varies little."""
    q, k, v = (x.detach() for x in random_qkv(0, (5, 6), c=8, batch=1))
    q, k = normalise(q, 0.25), normalise(k, 0.25)
    wanted = non_local_attention(q, k, v)
    features = [64, 128, 256, 512, 1024, 2048, 4096]
    generator = torch.Generator().manual_seed(0)
    errors = []
    for m in features:
        squares = [
            (random_feature_attention(q, k, v, orthogonal_gaussian(m, 8, generator), 0.0) - wanted)
            .square()
            .mean()
            for _ in range(24)
        ]
        errors.append(torch.stack(squares).mean().sqrt().item())
    slope, _ = np.polyfit(np.log(features), np.log(errors), 1)
    assert slope == pytest.approx(-0.5, abs=0.05)
    assert errors[-1] < 0.01 * v.abs().max()


# -- cost ------------------------------------------------------------------------------------------

Sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@pytest.mark.parametrize("name", ["enla", "enlca", "conv"])
@settings(max_examples=25)
@given(size=Sizes)
def test_every_part_of_the_cost_is_proportional_to_n(name: str, size: tuple[int, int]) -> None:
    module = create_attention(name, channels=16)
    one, many = module.cost(1, 1), module.cost(*size)
    for part in ("projections", "core", "executed", "module"):
        assert getattr(many, part) == size[0] * size[1] * getattr(one, part)


@pytest.mark.parametrize(
    ("name", "growth"), [("enla", 1), ("enlca", 1), ("nlsa", 1), ("criss-cross", 1.5), ("nla", 2)]
)
def test_core_grows_as_the_papers_state(name: str, growth: float) -> None:
    """Four times the positions: 4, 8 or 16 times the operations of Table 4's convention."""
    module = create_attention(name, channels=16)
    assert module.cost(60, 60).core == 4**growth * module.cost(30, 30).core


@pytest.mark.parametrize(("name", "growth"), [("enla", 1), ("enlca", 1), ("nla", 2)])
def test_executed_operations_grow_as_stated(name: str, growth: int) -> None:
    counts = [counted_macs(name, 16, height, 50)[0] for height in (48, 96, 192)]
    assert [n / counts[0] for n in counts] == [1, 2**growth, 4**growth]


def test_the_largest_tensor_of_enla_grows_with_n_at_most() -> None:
    module = create_attention("enla", channels=16)
    sizes = []
    for height in (24, 48, 96):
        with LargestTensor() as seen:
            module(torch.zeros(1, 16, height, 50)).sum().backward()
        sizes.append(seen.largest)
    assert sizes[1] <= 2 * sizes[0]
    assert sizes[2] <= 4 * sizes[0]


# -- Eq. 8–10 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n1", [0.01, 0.015, 0.02, 0.03])
@pytest.mark.parametrize("n2", [0.04, 0.08, 0.13, 0.20])
def test_contrastive_loss_is_that_of_sorted_rows(n1: float, n2: float) -> None:
    """The grid of Table 3, at N = 100: 1 to 3 entries a group, the second from 4 to 20 on."""
    q, k, _ = random_qkv(0, (5, 20), batch=1)
    with torch.no_grad():
        wanted = contrastive_oracle.contrastive_loss(q, k, n1=n1, n2=n2, hinge=False)
    assert_close(contrastive_loss(q, k, n1=n1, n2=n2, hinge=False), wanted, 1e-12)


# -- invariances -----------------------------------------------------------------------------------

cases = given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
few = settings(max_examples=15)


def projection(seed: int) -> Tensor:
    return orthogonal_gaussian(9, 4, torch.Generator().manual_seed(seed)).double()


def enla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return random_feature_attention(normalise(q, 6.0), normalise(k, 6.0), v, projection(0))


def permuted(x: Tensor, seed: int) -> Tensor:
    """The positions of a map ``[B, C, H, W]`` in another order."""
    n = x.shape[2] * x.shape[3]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return x.flatten(2)[:, :, order].view_as(x)


@pytest.mark.parametrize("attend", [non_local_attention, enla])
@few
@cases
def test_permuted_positions_permute_the_output(attend, seed: int, size: tuple[int, int]) -> None:
    q, k, v = random_qkv(seed, size)
    out = attend(q, k, v)
    assert_close(attend(*(permuted(x, seed) for x in (q, k, v))), permuted(out, seed), 1e-12)
    # the order of the keys alone does not matter
    assert_close(attend(q, permuted(k, seed), permuted(v, seed)), out, 1e-12)


@few
@cases
def test_contrastive_loss_ignores_order_and_scale(seed: int, size: tuple[int, int]) -> None:
    q, k, _ = random_qkv(seed, size)
    loss = contrastive_loss(q, k, n1=0.1, n2=0.4)
    moved = contrastive_loss(7 * permuted(q, seed), 0.1 * permuted(k, seed), n1=0.1, n2=0.4)
    assert_close(moved, loss, 1e-12)


@few
@cases
def test_one_vector_added_to_all_keys_changes_nothing(seed: int, size: tuple[int, int]) -> None:
    """It adds q_i·t to all scores of row i, which the softmax takes out again."""
    q, k, v = random_qkv(seed, size)
    t = random_map(seed + 1, 4, (1, 1))
    for attend in (non_local_attention, criss_cross_attention):
        assert_close(attend(q, k + t, v), attend(q, k, v), 1e-11)


@few
@cases
def test_enla_ignores_the_length_of_every_query_and_key(seed: int, size: tuple[int, int]) -> None:
    q, k, v = random_qkv(seed, size)
    lengths = [random_map(seed + i, 1, size).abs() + 0.1 for i in (1, 2)]
    assert_close(enla(lengths[0] * q, lengths[1] * k, v), enla(q, k, v), 1e-11)


@pytest.mark.parametrize("attend", [non_local_attention, criss_cross_attention, enla])
@few
@cases
def test_the_output_is_affine_in_the_value(attend, seed: int, size: tuple[int, int]) -> None:
    """Weights do not depend on v and sum to one."""
    q, k, v = random_qkv(seed, size)
    assert_close(attend(q, k, 3 * v - 2), 3 * attend(q, k, v) - 2, 1e-11)


def rotations(seed: int, rounds: int, half: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rounds, 4, half, generator=generator, dtype=torch.float64)


@few
@cases
def test_the_order_of_nlsas_rounds_does_not_matter(seed: int, size: tuple[int, int]) -> None:
    q, _, v = random_qkv(seed, size)
    drawn = rotations(seed, rounds=4)
    out = sparse_attention(q, q, v, drawn, 3)
    for shift in (1, 2, 3):
        assert_close(sparse_attention(q, q, v, drawn.roll(shift, 0), 3), out, 1e-12)
    # so does a round that is drawn twice, if all are
    assert_close(sparse_attention(q, q, v, torch.cat([drawn, drawn]), 3), out, 1e-12)


@few
@cases
def test_nlsa_is_exact_where_its_windows_hold_every_position_alike(
    seed: int, size: tuple[int, int]
) -> None:
    """A chunk of N or 2N entries sees all positions three or six times, three chunks of N/3 once.

    (Two chunks of N/2 count the other chunk twice, and a chunk with a broken filling its last
    entries: there it is not.)
    """
    q, _, v = random_qkv(seed, (3 * size[0], size[1]))
    n = 3 * size[0] * size[1]
    rows = [x.flatten(2).mT for x in (q, q, v)]
    exact = softmax_attention_fused(rows[0], normalise_keys(rows[1]), rows[2]).mT.view_as(v)
    for chunk_size in (n, 2 * n, n // 3):
        out = sparse_attention(q, q, v, rotations(seed, rounds=2), chunk_size)
        assert_close(out, exact, 1e-12)


@few
@cases
def test_criss_cross_of_a_transposed_map_is_transposed(seed: int, size: tuple[int, int]) -> None:
    q, k, v = random_qkv(seed, size)
    out = criss_cross_attention(q, k, v)
    assert_close(criss_cross_attention(q.mT, k.mT, v.mT), out.mT, 1e-12)
    for dim in (2, 3):  # whole rows, or whole columns, in another order
        moved = [x.roll(1, dim) for x in (q, k, v)]
        assert_close(criss_cross_attention(*moved), out.roll(1, dim), 1e-12)


@few
@given(seed=st.integers(0, 1000), length=st.integers(1, 20))
def test_criss_cross_of_one_row_or_column_is_non_local_attention(seed: int, length: int) -> None:
    for size in ((1, length), (length, 1)):
        q, k, v = random_qkv(seed, size)
        assert_close(criss_cross_attention(q, k, v), non_local_attention(q, k, v), 1e-12)

"""What is special to density-peak landmarks; their oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.cluster_landmarks import (
    candidate_places,
    cluster_means,
    density_clusters,
    density_peaks,
    landmark_attention,
)
from attention_zoo.rivals.nlrn import neighbourhood_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference import cluster_landmarks as oracle
from tests.reference.cases import SIZES, assert_close, random_map, random_qkv


@pytest.mark.parametrize("size", SIZES)
def test_a_cluster_for_every_position_is_non_local_attention(size: tuple[int, int]) -> None:
    """Keys are as long as the longest: here all have one length."""
    q, k, v = random_qkv(2, size)
    k = 3 * torch.nn.functional.normalize(k, dim=1)
    assert_close(landmark_attention(q, k, v, 1.0, 1), non_local_attention(q / 2, k, v), 1e-12)


def test_one_cluster_is_the_mean_of_the_values() -> None:
    q, k, v = random_qkv(2, (4, 5))
    out = landmark_attention(q, k, v, 0.01)
    assert_close(out, v.mean((2, 3), keepdim=True).expand_as(v), 1e-12)


def test_agrees_with_the_oracle_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_zoo.rivals.cluster_landmarks._TILE", 50)
    assert_attend_agrees("cluster-landmarks", (7, 8), batch=2, share=0.2, sample=3)


def test_bundles_are_found_whatever_their_size() -> None:
    """Four directions with 2, 4, 8 and 16 noisy keys, in any order: each is a cluster."""
    generator = torch.Generator().manual_seed(0)
    bundle = torch.arange(4).repeat_interleave(torch.tensor([2, 4, 8, 16]))
    bundle = bundle[torch.randperm(30, generator=generator)]
    noise = 0.05 * torch.randn(30, 4, generator=generator, dtype=torch.float64)
    keys = (torch.eye(4, dtype=torch.float64)[bundle] + noise).unsqueeze(0)
    clusters, count = density_clusters(keys, 4 / 30, 8)
    assert count == 4
    found = {frozenset((clusters[0] == m).nonzero().flatten().tolist()) for m in range(4)}
    wanted = {frozenset((bundle == m).nonzero().flatten().tolist()) for m in range(4)}
    assert found == wanted


def test_equal_keys_leave_no_cluster_empty() -> None:
    """All cosines are equal: a centre is in its own cluster, all others are in the first."""
    clusters, count = density_clusters(torch.ones(1, 20, 3, dtype=torch.float64), 0.2, 2)
    sizes = clusters.flatten().bincount(minlength=count).tolist()
    assert sizes == [17, 1, 1, 1]
    zeros = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
    v = random_map(0, 2, (4, 5), batch=1)
    assert landmark_attention(zeros, zeros, v, 0.2).isfinite().all()


@pytest.mark.parametrize(("n", "candidates"), [(1, 1), (7, 7), (100, 12), (2304, 276)])
def test_candidates_are_one_of_each_run(n: int, candidates: int) -> None:
    places = candidate_places(n, candidates, torch.zeros(()))
    assert places.tolist() == oracle.candidate_places(n, candidates)
    runs = torch.div(places * candidates + candidates - 1, n, rounding_mode="floor")
    assert runs.tolist() == list(range(candidates))


def test_candidates_do_not_stand_in_columns() -> None:
    """At 100x100 runs are 8 1/3 positions long: evenly spaced ones would be in 12 columns."""
    columns = candidate_places(100**2, 1200, torch.zeros(())).remainder(100)
    assert (columns.bincount(minlength=100) > 0).all()


def test_peaks_are_dense_or_far_from_denser_ones() -> None:
    """A bundle of three, one of two, and a candidate between them, which is neither."""
    angles = torch.tensor([0.0, 0.1, 0.05, 2.0, 2.1, 1.2]).double()
    units = torch.stack([angles.cos(), angles.sin()], dim=1).unsqueeze(0)
    peaks = density_peaks(units, 2)[0].tolist()
    assert peaks[0] == 2
    assert peaks[1] in (3, 4)


def test_means_have_the_gradient_of_means() -> None:
    rows = random_map(0, 6, (5, 3)).detach()[:, :, :, 0].requires_grad_()  # [2, 6, 5]
    clusters = torch.tensor([[0, 1, 1, 2, 0, 1], [2, 2, 2, 1, 0, 2]])
    means = cluster_means(rows, clusters, 3)
    for b in range(2):
        for m in range(3):
            assert_close(means[b, m], rows[b, clusters[b] == m].mean(0), 1e-14)
    assert torch.autograd.gradcheck(lambda rows: cluster_means(rows, clusters, 3), rows)


def test_landmarks_reach_where_a_window_ends() -> None:
    """A value at one end of the row arrives at the other."""
    q, k, v = random_qkv(0, (1, 40), batch=1)
    for attend, reaches in ((landmark_attention, True), (neighbourhood_attention, False)):
        far = attend(q, k, v, 0.1 if reaches else 5)[..., -1].sum()
        (gradient,) = torch.autograd.grad(far, v)
        assert bool(gradient[..., 0].any()) == reaches


def test_weights_are_shared_out_within_a_cluster() -> None:
    module = build("cluster-landmarks", share=0.2)
    q, k, _ = random_qkv(1, (5, 6), c=3, batch=1)
    weights = module.attention_weights(q, k, 2, 3).flatten(1)
    clusters, count = density_clusters(k.flatten(2).mT, 0.2, 4)
    for m in range(count):
        assert weights[clusters == m].unique().numel() == 1


@pytest.mark.parametrize(
    ("option", "value"), [("share", 0.0), ("share", 2.0), ("sample", 0), ("sample", 1.5)]
)
def test_bad_options_are_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=option):
        landmark_attention(*random_qkv(0, (3, 4)), **{option: value})

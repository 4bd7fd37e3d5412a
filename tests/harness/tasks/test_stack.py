"""Stack: the closed forms of floor and ceiling, and what an image holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.measuring.tasks import check_reach, combined
from harness.network.edsr import build_network
from harness.tasks.base import Item
from harness.tasks.cells import CELL, FAR, distances, gain
from harness.tasks.stack import (
    CONTRAST,
    MEAN,
    Query,
    Stack,
    mosaic,
    references,
)

REACH = NetworkConfig(2, 8).reach


def cells_of(image: np.ndarray) -> list[np.ndarray]:
    """The cells of an image in row-major order, by loops."""
    places = range(0, len(image), CELL)
    return [image[y : y + CELL, x : x + CELL] for y in places for x in places]


def gain_of(task: Stack, test_set: str, output: Any) -> float:
    """The set's score, of what ``output`` makes of each item."""
    found = [task.score(item, output(item), REACH) for item in task.items(test_set)]
    return combined(task, [one for one in found if one])


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("copies", [1, 4, 9])
def test_the_estimate_is_the_conditional_mean_of_a_gaussian(noise: float, copies: int) -> None:
    """As the general formula ``C Aᵀ (A C Aᵀ + noise² I)⁻¹`` gives it, with its error."""
    task, rng = Stack(noise=noise), np.random.default_rng(0)
    seen = np.ones((copies, 1))
    known = CONTRAST**2 * seen @ seen.T + noise**2 * np.eye(copies)
    weights = CONTRAST**2 * seen.T @ np.linalg.inv(known)
    assert task.error(copies) == pytest.approx(CONTRAST**2 * (1 - (weights @ seen).item()))
    texture = MEAN + CONTRAST * rng.standard_normal((4000, CELL, CELL, 3))
    cells = texture + noise * rng.standard_normal((copies, 4000, CELL, CELL, 3))
    wanted = MEAN + np.tensordot(weights[0], cells - MEAN, 1)
    found = np.stack([task.estimate(cells[:, i]) for i in range(4000)])
    assert np.allclose(found, wanted, atol=1e-6)
    assert np.mean((found - texture) ** 2) == pytest.approx(task.error(copies), rel=0.03)


def test_the_whole_range_tends_to_ten_log_ten_of_the_copies() -> None:
    def decibels(noise: float) -> float:
        task = Stack(noise=noise)
        return 10 * np.log10(task.error(1) / task.error(9))

    assert decibels(1e-4) == pytest.approx(10 * np.log10(9), abs=1e-5)
    assert decibels(0.2) == pytest.approx(8.975, abs=1e-3)
    assert decibels(10) < 0.1


@pytest.mark.parametrize("options", [{}, {"textures": 5}, {"cells": 8, "noise": 0.5}])
def test_floor_and_ceiling_are_the_best_estimates(options: dict[str, Any]) -> None:
    task = Stack(**options)
    for test_set in task.test_sets[: 1 if options else 2]:
        assert gain_of(task, test_set, task.ceiling_output) == pytest.approx(1, abs=1e-6)
        assert gain_of(task, test_set, task.floor_output) == pytest.approx(0, abs=1e-6)
        below = gain_of(task, test_set, lambda item: item.inputs)
        wanted = gain(task.noise**2, task.error(1), task.error(task.cells**2 // task.textures))
        assert below < 0
        assert test_set != task.test_sets[0] or below == pytest.approx(wanted, abs=0.04)


def test_half_of_the_decibels_are_half_of_the_gain() -> None:
    assert gain(0.01, 0.1, 0.001) == pytest.approx(0.5)
    assert gain(0.2, 0.1, 0.001) < 0 < gain(0, 0.1, 0.001) < np.inf


def test_errors_are_averaged_before_the_logarithm() -> None:
    task = Stack()
    items = list(task.items("n6"))[:2]
    outputs = [task.ceiling_output(items[0]), task.floor_output(items[1])]
    found = [task.score(*pair, REACH) for pair in zip(items, outputs, strict=True)]
    scores = [one for one in found if one]
    mse, local, oracle = (
        np.mean([one.details[name] for one in scores]) for name in ("mse", "local", "oracle")
    )
    assert combined(task, scores) == pytest.approx(np.log(local / mse) / np.log(local / oracle))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 6), textures=st.integers(1, 5), seed=st.integers(0, 99))
def test_mosaic_and_references_are_what_loops_find(n: int, textures: int, seed: int) -> None:
    """A cell shows its texture, and a pixel refers to the same pixel of all cells that do."""
    rng = np.random.default_rng(seed)
    label = rng.random((2, n * n)).argsort(1) % textures
    drawn = rng.random((2, textures, CELL, CELL, 3)).astype(np.float32)
    image, found = mosaic(drawn, label), references(label, textures)
    assert found.shape == (2, (CELL * n) ** 2, -(-n * n // textures))
    for b in range(2):
        for cell, kind in zip(cells_of(image[b]), label[b], strict=True):
            assert np.array_equal(cell, drawn[b, kind])
        for position in range((CELL * n) ** 2):
            y, x = divmod(position, CELL * n)
            kind = label[b, y // CELL * n + x // CELL]
            same = {
                (CELL * (c // n) + y % CELL) * CELL * n + CELL * (c % n) + x % CELL
                for c in np.flatnonzero(label[b] == kind)
            }
            assert {*found[b, position].tolist()} == same
            assert position in same


def test_training_images_hold_each_texture_equally_often() -> None:
    found = Stack().batch(seed=1, step=2, batch=40, patch=12)
    assert found.references is not None
    for image, positions in zip(found.targets, found.references, strict=True):
        textures, counts = np.unique(np.stack(cells_of(image)), axis=0, return_counts=True)
        assert counts.tolist() == [9] * 4
        assert np.array_equal(image.reshape(-1, 3)[positions], image.reshape(-1, 1, 3).repeat(9, 1))
        assert textures.shape == (4, CELL, CELL, 3)
    noise = found.inputs - found.targets
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(0.2, abs=0.005)
    cells = np.concatenate([cells_of(image) for image in found.targets]).reshape(-1, CELL, CELL, 3)
    assert np.allclose(cells.mean((0, 3))[..., None], MEAN, atol=0.15)
    assert (cells - MEAN).std() == pytest.approx(CONTRAST, abs=0.03)


def kinds_of(item: Item) -> np.ndarray:
    """For each cell the first of those with the same texture, as its references say."""
    n = len(item.inputs) // CELL
    upper_left = item.references.reshape(CELL * n, CELL * n, -1)[::CELL, ::CELL]
    first: np.ndarray = upper_left.min(-1).ravel()
    return first


@pytest.mark.parametrize("test_set", ["n6", "n12", "n24"])
def test_all_other_copies_of_a_query_are_out_of_reach(test_set: str) -> None:
    task = Stack()
    for item in list(task.items(test_set))[:40]:
        n, query = len(item.inputs) // CELL, item.truth
        kind = kinds_of(item)
        own = query.row * n + query.column
        copies = np.flatnonzero(kind == kind[own])
        assert len(copies) == n * n // 4
        assert np.unique(kind, return_counts=True)[1].tolist() == [n * n // 4] * 4
        apart = min(
            CELL * max(abs(c // n - query.row), abs(c % n - query.column)) - 1
            for c in copies
            if c != own
        )
        assert query.distance == apart >= FAR > REACH
        cells = np.stack(cells_of(item.inputs))
        mean = cells[copies].mean(0, dtype=np.float64)
        weight = len(copies) / (len(copies) + (task.noise / CONTRAST) ** 2)
        assert np.allclose(query.from_all, MEAN + weight * (mean - MEAN), atol=1e-5)
        changed = (item.deleted != item.inputs).reshape(n, CELL, n, CELL, 3).any((1, 3, 4)).ravel()
        assert {*np.flatnonzero(changed).tolist()} == {*copies.tolist()} - {own}


def test_in_deleted_images_the_query_has_no_copy() -> None:
    """In the place of its copies stand other textures of the image, with the same noise."""
    task = Stack(noise=0.01)
    (item, *_) = task.items("n6")
    textures = {kind: cells_of(item.inputs)[i] for i, kind in enumerate(kinds_of(item))}
    query: Query = item.truth
    for i, cell in enumerate(cells_of(item.deleted)):
        near = [kind for kind, one in textures.items() if np.abs(one - cell).max() < 0.1]
        own = np.abs(query.texture - cell).max() < 0.1
        assert len(near) == 1
        assert own == (i == query.row * 6 + query.column)


def test_distances_are_between_the_nearest_pixels() -> None:
    found = distances(6)
    for a in range(36):
        for b in range(36):
            rows, columns = abs(a // 6 - b // 6), abs(a % 6 - b % 6)
            assert found[a, b] == (2 * max(rows, columns) - 1)


def test_queries_are_beyond_the_reach_of_the_convolutions() -> None:
    """Without attention, nothing that the copies show changes the output in a query."""
    task = Stack()
    network = build_network(Variant("none"), NetworkConfig(2, 8), 1).eval()
    for test_set in ("n6", "n12"):
        (item, *_) = task.items(test_set)
        both = torch.from_numpy(np.stack([item.inputs, item.deleted])).permute(0, 3, 1, 2)
        with torch.no_grad():
            first, other = network(both).permute(0, 2, 3, 1).numpy()
        assert np.allclose(item.truth.shown(first), item.truth.shown(other), atol=1e-6)
        assert not np.allclose(first, other, atol=1e-3)
    check_reach(task, REACH)
    with pytest.raises(UserError, match=r"nothing in n6 of task stack .* lower --blocks"):
        check_reach(task, 10)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def bytes_of(seed: int, step: int) -> list[bytes]:
        found = Stack().batch(seed=seed, step=step, batch=3, patch=12)
        assert found.references is not None
        return [part.tobytes() for part in (found.inputs, found.targets, found.references)]

    torch.manual_seed(1)
    first = bytes_of(3, 7)
    torch.manual_seed(2)
    assert bytes_of(3, 7) == first
    assert bytes_of(3, 8)[0] != first[0] != bytes_of(4, 7)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"textures": 1}, "--textures must be at least 2, got 1"),
        ({"cells": 5}, "--cells must be at least 6, got 5"),
        ({"noise": 0.0}, "--noise must be finite and above 0, got 0"),
        ({"noise": float("inf")}, "--noise must be finite and above 0, got inf"),
        ({"textures": 19}, "19 textures have no copies in 6 x 6 cells"),
        ({"textures": 2}, r"18 copies .* no place 9 pixels .* in 6 x 6 cells: raise --textures"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stack(**options)

"""Recall: what is known in closed form, and what a batch depends on."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.bicubic import downscale
from harness.measuring.tasks import attention_as_mean, check_reach, score
from harness.network.edsr import EDSR, build_network
from harness.tasks.base import Item
from harness.tasks.cells import CELL
from harness.tasks.recall import (
    AMPLITUDE,
    BITS,
    HR_CELL,
    Grids,
    Recall,
    bases,
    enlarged,
    pictures,
    recalled,
    targets,
)

REACH = NetworkConfig(2, 8).reach


def output_of(grid: Grids, bits: np.ndarray) -> Any:
    """The smooth part, with these bits ``[3]`` in every query cell."""
    shown = dataclasses.replace(grid, bits=np.broadcast_to(bits, grid.bits.shape))
    return targets(shown, pictures(grid))[0]


def target(item: Item) -> Any:
    return targets(item.truth, item.inputs[None])[0]


def scores(task: Recall, test_set: str, output: Any, reach: int = 0) -> tuple[float, float]:
    """R² and share of right signs, of what ``output`` makes of each item."""
    found = [task.score(item, output(item), reach) for item in task.items(test_set)]
    counted = [one for one in found if one]
    weights = [one.weight for one in counted]
    signs = [one.details["signs"] for one in counted]
    r2 = np.average([one.value for one in counted], weights=weights)
    return float(r2), float(np.average(signs, weights=weights))


@pytest.mark.parametrize("options", [{}, {"pairs": 16, "copies": 2}, {"blanks": 0.5, "cells": 5}])
def test_the_target_recalls_everything_and_the_smooth_part_nothing(options: dict[str, Any]) -> None:
    task = Recall(cells=options.pop("cells", 8), **options)
    test_set = task.test_sets[1]
    whole = scores(task, test_set, target)
    assert whole == pytest.approx((task.ceiling, 1), abs=1e-6)
    assert scores(task, test_set, lambda item: enlarged(item.inputs))[0] == task.floor


@pytest.mark.parametrize("pairs", [1, 4, 16])
@pytest.mark.parametrize("copies", [1, 2])
def test_the_plain_mean_over_references_recalls_one_over_d(pairs: int, copies: int) -> None:
    task = Recall(pairs=pairs, copies=copies, cells=6)

    def mean(item: Item) -> Any:
        return output_of(item.truth, item.truth.bits.mean((0, 1)))

    assert scores(task, "n6", mean)[0] == pytest.approx(1 / pairs, abs=0.03)


def test_a_mean_that_is_diluted_recalls_less() -> None:
    """With r times as much of the mean, R² = r (2 - r) / D: a mean over four times the cells."""
    task = Recall(pairs=4)

    def diluted(item: Item) -> Any:
        return output_of(item.truth, item.truth.bits.mean((0, 1)) / 4)

    assert scores(task, "n6", diluted)[0] == pytest.approx(0.25 * 1.75 / 4, abs=0.02)


def test_bases_vanish_under_symmetric_even_kernels() -> None:
    """Nothing that is left in a smaller image tells the bits: nothing local does."""
    patterns = np.tile(bases(), (6, 6, 1))
    for kernel in ([1, 1], [-1, 3, 3, -1], [2, -5, 7, 7, -5, 2]):
        weights = np.convolve(kernel, [1.0])
        assert np.array_equal(weights, weights[::-1])
        taps = range(len(kernel))
        rows = sum(weights[i] * patterns[i : 12 + i : 2] for i in taps)
        both = sum(weights[i] * rows[:, i : 12 + i : 2] for i in taps)
        assert not both.any()
    grey = np.uint8(128) + (40 * patterns).astype(np.int8).astype(np.uint8)
    assert (downscale(grey, 2)[2:-2, 2:-2] == 128).all()


def test_bases_are_orthogonal_and_the_bits_are_found() -> None:
    flat = bases().reshape(-1, BITS)
    assert np.array_equal(flat.T @ flat, HR_CELL**2 * np.eye(BITS))
    (item, *_) = Recall().items("n6")
    grid = item.truth
    found = recalled(target(item), enlarged(item.inputs), grid.n)
    wanted = [grid.bits[0, grid.key[0, c]] * (grid.kind[0, c] == 1) for c in range(36)]
    assert np.allclose(found, wanted, atol=1e-5)
    assert np.abs(target(item) - enlarged(item.inputs)).max() <= 3 * AMPLITUDE + 1e-6


def test_an_image_is_what_the_design_says() -> None:
    task = Recall(pairs=3, cells=5, copies=2, blanks=0.25)
    (item, *_) = task.items("n10")
    grid, image = item.truth, item.inputs
    cells = image.reshape(10, CELL, 10, CELL, 3).swapaxes(1, 2).reshape(100, CELL, CELL, 3)
    kinds = [int((grid.kind == kind).sum()) for kind in range(3)]
    assert kinds == [6, 94 - round(94 / 4), round(94 / 4)]
    colours: dict[int, set[tuple[float, ...]]] = {}
    for cell, kind, key in zip(cells, grid.kind[0], grid.key[0], strict=True):
        if kind != 2:
            colours.setdefault(int(key), set()).add(tuple(cell[0, 0].tolist()))
        colour, value = cell[0, 0], 0.5 + 0.4 * grid.bits[0, key]
        left, right = [(colour, value), (colour, 0.5), (0.5, 0.5)][kind]
        assert np.allclose(cell[:, 0], left)
        assert np.allclose(cell[:, 1], right)
    shown = np.array([colour for found in colours.values() for colour in found])
    assert shown.shape == (3, 3)  # one colour for each key
    assert ((shown >= 0.1) & (shown <= 0.9)).all()


def test_deleted_references_are_blank_and_nothing_else_changes() -> None:
    (item, *_) = Recall().items("n6")
    changed = (item.inputs != item.deleted).any(-1).reshape(6, 2, 6, 2).any((1, 3)).ravel()
    assert (item.deleted[item.inputs != item.deleted] == 0.5).all()
    assert np.array_equal(changed, item.truth.kind[0] == 0)


@pytest.mark.parametrize(
    "options",
    [
        {"copies": 2},
        {"copies": 1, "least_distance": 4},
        {"copies": 2, "most_distance": 3, "blanks": 0.3},
        {"copies": 1, "least_distance": 2, "most_distance": 7},
    ],
)
def test_references_lead_to_the_nearest_value_of_the_same_key(options: dict[str, Any]) -> None:
    """Cell by cell, by loops: the oracle of what is drawn for many images at once."""
    task = Recall(pairs=3, cells=6, **options)
    least, most = task.least_distance, task.most_distance or 99
    for item in [*task.items("n6")][:8]:
        grid = item.truth
        kind, keys = grid.kind[0], grid.key[0]
        places = [divmod(cell, 6) for cell in range(36)]
        assert [int((kind == 0)[keys == key].sum()) for key in range(3)] == [task.copies] * 3
        for cell, (row, column) in enumerate(places):
            there = item.references[:, 0].reshape(12, 12)[2 * row : 2 * row + 2]
            there = there[:, 2 * column : 2 * column + 2]
            if kind[cell] != 1:
                own = np.arange(144).reshape(12, 12)[2 * row : 2 * row + 2]
                assert np.array_equal(there, own[:, 2 * column : 2 * column + 2])
                continue
            shown = item.inputs.reshape(-1, 3)[there]
            assert np.allclose(shown, 0.5 + 0.4 * grid.bits[0, keys[cell]])
            assert item.all_references is not None
            assert set(there.ravel()) <= set(item.all_references)
            same = [c for c in range(36) if kind[c] == 0 and keys[c] == keys[cell]]
            apart = [2 * max(abs(row - places[c][0]), abs(column - places[c][1])) - 1 for c in same]
            assert grid.distance[0, cell] == min(apart)
            assert least <= min(apart) <= most
    assert sum(int(item.truth.queries.sum()) for item in task.items("n6")) > 100


def test_all_references_are_the_pixels_of_all_values() -> None:
    (item, *_) = Recall(pairs=3, copies=2).items("n6")
    pixels = item.inputs.reshape(-1, 3)
    values = np.flatnonzero(np.isclose(np.abs(pixels - 0.5), 0.4, atol=1e-6).all(1))
    assert item.all_references is not None
    assert sorted(item.all_references) == values.tolist()


def test_noise_is_on_the_keys_of_queries_alone() -> None:
    (plain, *_), (noisy, *_) = Recall().items("n6"), Recall(key_noise=0.1).items("n6")
    apart = (noisy.inputs - plain.inputs).reshape(6, 2, 6, 2, 3).swapaxes(1, 2).reshape(36, 2, 2, 3)
    queries = plain.truth.queries[0]
    assert np.array_equal(noisy.truth.kind, plain.truth.kind)
    assert not apart[~queries].any()
    assert not apart[queries][:, :, 1].any()
    assert apart[queries][:, :, 0].std() == pytest.approx(0.1, rel=0.3)


def test_in_the_locality_control_all_queries_count() -> None:
    task = Recall(most_distance=1)
    for item in task.items("n12"):
        found = task.score(item, target(item), REACH)
        assert found is not None
        assert found.weight == item.truth.queries.sum() > 0
        assert found.value == pytest.approx(1)


def test_scores_by_distance_are_of_the_queries_there() -> None:
    task = Recall()
    (item, *_) = task.items("n24")
    found = task.score(item, target(item), REACH)
    assert found is not None
    assert sum(weight for _, weight in found.by_distance.values()) == item.truth.queries.sum()
    beyond = sum(weight for last, (_, weight) in found.by_distance.items() if last > REACH)
    assert beyond == found.weight
    # An output that is right near its reference alone.
    grid = item.truth
    near = np.where((grid.distance > 0) & (grid.distance <= 16), grid.kind, 2)
    output = targets(dataclasses.replace(grid, kind=near), item.inputs[None])[0]
    partly = task.score(item, output, REACH)
    assert partly is not None
    values = {last: round(value, 5) for last, (value, _) in partly.by_distance.items()}
    assert values == {last: float(last <= 16) for last in found.by_distance}


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> list[bytes]:
        found = Recall().batch(seed=seed, step=step, batch=3, patch=12)
        assert found.references is not None
        assert found.references.shape == (3, 144, 1)
        return [part.tobytes() for part in (found.inputs, found.targets, found.references)]

    torch.manual_seed(1)
    first = drawn(3, 7)
    torch.manual_seed(2)
    assert drawn(3, 7) == first
    assert drawn(3, 8)[0] != first[0]
    assert drawn(4, 7)[0] != first[0]


def test_items_are_fixed_and_those_of_validation_are_others() -> None:
    first, again = (list(Recall().items("n12")) for _ in range(2))
    assert [i.name for i in first] == [f"{n:03d}" for n in range(256)]
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    seen = {item.inputs.tobytes() for item in first}
    seen |= {item.inputs.tobytes() for item in Recall().items("n12", validation=True)}
    assert len(seen) == 256 + 128


def test_far_queries_are_beyond_the_reach_of_the_convolutions() -> None:
    """An output pixel of a counted query does not change with its references; nearer ones do."""
    network = build_network(Variant("none"), NetworkConfig(2, 8), 2).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 40, 40)
        y = network(x)
        x[..., 20, 20] += 1
        rows = (network(x) != y).any(1)[0].nonzero()[:, 0] // 2
    assert (int(rows.min()), int(rows.max())) == (20 - REACH, 20 + REACH)
    task = Recall()
    counted = [task.score(i, enlarged(i.inputs), REACH) for i in task.items("n6")]
    assert any(counted)
    assert not any(task.score(i, enlarged(i.inputs), 9) for i in task.items("n6"))
    check_reach(task, REACH)
    with pytest.raises(UserError, match=r"nothing in n6 of task recall .* lower --blocks"):
        check_reach(task, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "--pairs must be at least 1, got 0"),
        ({"cells": 1}, "--cells must be at least 2, got 1"),
        ({"copies": 0}, "--copies must be at least 1"),
        ({"blanks": 1.0}, "--blanks must be a share"),
        ({"key_noise": -0.1}, "--key-noise must be 0 to 1"),
        ({"most_distance": -1}, "--most-distance must be at least 0"),
        ({"most_distance": 3, "least_distance": 5}, "--most-distance 3 is below --least-distance"),
        ({"least_distance": 10}, "--least-distance 10 leaves no query in 6 x 6 cells"),
        ({"pairs": 18, "copies": 2}, "36 references leave no query in 6 x 6 cells"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recall(**options)


def network_for(name: str, **options: Any) -> EDSR:
    variant = Variant(name, options)
    return build_network(variant, NetworkConfig(2, 8), 2, positions=(1,), seed=0)


@pytest.mark.parametrize(("pairs", "found"), [(4, (0.24, 0.22, 0.27)), (16, (0.05, 0.07, 0.07))])
def test_the_plain_mean_on_the_test_sets_is_near_its_expected_value(
    pairs: int, found: tuple[float, ...]
) -> None:
    task = Recall(pairs=pairs)
    for name, wanted in zip(task.test_sets, found, strict=True):
        errors = []
        for item in task.items(name):
            grids = item.truth
            far = grids.queries[0] & (grids.distance[0] > REACH)
            errors.append(np.square(grids.bits[0].mean(0) - grids.sought[0][far]).mean(1))
        r2 = 1 - np.concatenate(errors).mean()
        assert r2 == pytest.approx(wanted, abs=0.005), "docs/tasks.md says so"
        assert r2 == pytest.approx(1 / pairs, abs=0.03)


def test_an_output_that_is_not_finite_is_a_clear_error() -> None:
    network = network_for("nla")
    network.attention_modules[0].res_scale = float("nan")
    with pytest.raises(UserError, match="output is not finite on images of 12x12 pixels"):
        score(network, Recall(), "n6", REACH)


def test_scores_of_a_network_hold_its_controls() -> None:
    network = network_for("oracle", res_scale=50.0)
    found = score(network, Recall(), "n12", REACH)
    with attention_as_mean(network):
        assert score(network, Recall(), "n12", REACH).score == found.as_mean != found.score
    assert "attend" not in vars(network.attention_modules[0])
    far = [row for row in found.by_distance if row[0] > REACH]
    pooled = np.average([row[1] for row in far], weights=[row[2] for row in far])
    assert found.score == pytest.approx(pooled, abs=1e-5)
    assert found.weight == sum(row[2] for row in far)
    assert found.all_references is not None
    assert (
        score(build_network(Variant("none"), NetworkConfig(2, 8), 2), Recall(), "n6", 8).as_mean
        is None
    )

"""Phase: the closed forms of floor and ceiling, and what an image holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.measuring.tasks import check_reach, combined
from harness.tasks.base import Floats, Item, ItemScore, generator
from harness.tasks.cells import CELL, FAR, distances, distances_to, gain
from harness.tasks.phase import (
    COLOUR,
    GREY,
    HR_CELL,
    PATTERN,
    PIXELS,
    SHIFTS,
    TEXTURE,
    Decimation,
    Grids,
    Phase,
    correlation,
    covariance,
    estimator,
    picture,
    sampling,
)

REACH = NetworkConfig(2, 8).reach


def cells_of(image: Floats, n: int) -> Floats:
    """LR pixels of each cell ``[n², 2, 2, 3]``, by loops."""
    found = [
        image[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)]
        for row in range(n)
        for column in range(n)
    ]
    return np.stack(found)


def drawn(task: Phase, count: int = 400, n: int = 6) -> tuple[Grids, Floats]:
    """Many grids in order of their cells, and their inputs."""
    rng = generator(5, 5)
    grids = task.draw(rng, n, np.tile(np.arange(n * n), (count, 1)))
    return grids, task.observe(rng, picture(grids))


def test_textures_have_the_covariance_that_the_closed_forms_take() -> None:
    grids, _ = drawn(Phase(distractors=1), 4000)
    textures = grids.texture[:, ::2].reshape(-1, PIXELS * 3) - GREY
    assert np.allclose(textures.T @ textures / len(textures), covariance(), atol=0.006)
    assert np.allclose(np.diag(covariance()), COLOUR**2 + PATTERN**2)
    assert np.allclose(np.diag(correlation()), 1)


@pytest.mark.parametrize("decimation", ["nearest", "box"])
def test_sampling_is_what_a_loop_over_pixels_finds(decimation: Decimation) -> None:
    texture = np.random.default_rng(0).standard_normal((TEXTURE, TEXTURE, 3))
    for phase, (top, left) in enumerate(SHIFTS):
        cell = np.zeros((HR_CELL, HR_CELL, 3))
        cell[top : top + TEXTURE, left : left + TEXTURE] = texture
        wanted = np.zeros((CELL, CELL, 3))
        for y in range(CELL):
            for x in range(CELL):
                block = cell[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                wanted[y, x] = block[0, 0] if decimation == "nearest" else block.mean((0, 1))
        assert np.allclose(sampling(phase, decimation) @ texture.ravel(), wanted.ravel())


def test_the_four_phases_of_nearest_show_every_pixel_once() -> None:
    seen = np.concatenate([sampling(phase, "nearest") for phase in range(4)])
    assert np.array_equal(seen.sum(0), np.ones(PIXELS * 3))


@pytest.mark.parametrize("decimation", ["nearest", "box"])
@pytest.mark.parametrize(("copies", "noise"), [(2, 0.05), (3, 0.2), (4, 0.05)])
def test_the_estimators_reach_the_error_that_they_promise(
    decimation: Decimation, copies: int, noise: float
) -> None:
    """On drawn images, with one copy known and with all; and no copy is worse than one."""
    task = Phase(copies=copies, noise=noise, decimation=decimation)
    grids, inputs = drawn(task)
    for known in (1, copies):
        errors, promised = [], []
        for image in range(len(inputs)):
            pixels = cells_of(inputs[image], grids.n)
            for own in grids.copies[image, :, :known]:
                phases = grids.phase[image, own]
                found = task.estimate(phases, pixels[own])
                errors.append(np.mean((found - grids.texture[image, own[0]]) ** 2))
                promised.append(estimator(tuple(phases.tolist()), noise, decimation)[1])
        assert np.mean(errors) == pytest.approx(np.mean(promised), rel=0.05)
        if known == 1:
            local = np.mean(promised)
    assert np.mean(promised) < local < COLOUR**2 + PATTERN**2


def test_no_change_of_the_estimator_lowers_its_error() -> None:
    """Its error is a parabola in the weights with its minimum there."""
    noise, phases = 0.1, (2, 0)
    weights, least = estimator(phases, noise, "nearest")
    seen = np.concatenate([sampling(phase, "nearest") for phase in phases])

    def error(weights: Any) -> float:
        rest = np.eye(len(weights)) - weights @ seen
        whole = rest @ covariance() @ rest.T + noise**2 * weights @ weights.T
        return float(np.trace(whole)) / len(weights)

    assert error(weights) == pytest.approx(least)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert error(weights + 0.01 * rng.standard_normal(weights.shape)) > least


def filled(item: Item, textures: Floats) -> Floats:
    """An output with these textures ``[T, 9, 3]`` at the queries, and zeros elsewhere."""
    output = np.zeros((2 * len(item.inputs), 2 * len(item.inputs), 3), dtype=np.float32)
    for (top, left), texture in zip(item.truth.corner, textures, strict=True):
        for k in range(PIXELS):
            output[top + k // TEXTURE, left + k % TEXTURE] = texture[k]
    return output


def estimates(task: Phase, item: Item, known: int) -> Floats:
    """The best estimates at the queries of two copies, from their pixels in the input."""
    width, found = len(item.inputs), []
    pixels = item.inputs.reshape(-1, 3)
    for top, left in item.truth.corner:
        row, column = top // HR_CELL * CELL, left // HR_CELL * CELL
        own = [(row + y) * width + column + x for y in range(CELL) for x in range(CELL)]
        phase = SHIFTS.index((top % HR_CELL, left % HR_CELL))
        shown = np.stack([pixels[own], pixels[item.references[own, 0]]]).reshape(2, CELL, CELL, 3)
        found.append(task.estimate([phase, 1 - phase][:known], shown[:known]))
    return np.stack(found)


@pytest.mark.parametrize("options", [{}, {"decimation": "box", "distractors": 0.3}])
@pytest.mark.parametrize("size", [0, 1])
def test_the_best_estimates_score_floor_and_ceiling(options: dict[str, Any], size: int) -> None:
    """References lead to the copies: with the pixels there the oracle's estimate is made."""
    task = Phase(**options)
    items = list(task.items(task.test_sets[size]))

    def scored(known: int) -> float:
        found = [task.score(i, filled(i, estimates(task, i, known)), REACH) for i in items]
        return combined(task, [one for one in found if one])

    assert scored(1) == pytest.approx(task.floor, abs=1e-5)
    assert scored(2) == pytest.approx(task.ceiling, abs=1e-5)


def test_psnr_is_that_of_the_mean_error_of_all_queries() -> None:
    """A set of two items is not scored by the mean of their scores."""
    details = [
        {"mse": 0.1, "local": 0.4, "oracle": 0.01},
        {"mse": 0.4, "local": 0.4, "oracle": 0.1},
    ]
    parts = [ItemScore(d["mse"], w, d) for d, w in zip(details, (3, 1), strict=True)]
    mse, local, oracle = 0.175, 0.4, 0.0325
    psnr = [-10 * np.log10(error) for error in (mse, local, oracle)]
    wanted = (psnr[0] - psnr[1]) / (psnr[2] - psnr[1])
    assert combined(Phase(), parts) == pytest.approx(wanted, abs=1e-6)
    assert (gain(local, local, oracle), gain(oracle, local, oracle)) == (0, 1)
    assert np.isfinite(gain(0, local, oracle))


@pytest.mark.parametrize("copies", [2, 4])
def test_an_image_is_what_the_task_says(copies: int) -> None:
    task = Phase(copies=copies, textures=3, distractors=0.5, noise=1e-5)
    (item, *_) = task.items("n12")
    target = picture(_grids(task, 12))[0]
    n, pixels = 12, cells_of(item.inputs, 12)
    shown = (np.abs(pixels - GREY) > 1e-4).any((1, 2, 3))
    assert shown.sum() == 3 * copies + round((n * n - 3 * copies) / 2)
    assert target.shape == (48, 48, 3)
    assert np.allclose(item.inputs, target[::2, ::2], atol=1e-4)
    changed = (np.abs(cells_of(item.inputs - item.deleted, n)) > 1e-4).any((1, 2, 3))
    assert changed.sum() == 3 * (copies - 1)
    assert np.allclose(cells_of(item.deleted, n)[changed], GREY, atol=1e-4)
    for top, left in item.truth.corner:
        query = top // HR_CELL * n + left // HR_CELL
        assert shown[query]
        assert not changed[query]


def _grids(task: Phase, n: int) -> Grids:
    """The grids of the first item of a set, as :meth:`Phase.items` draws them."""
    rng = generator(2**40, n * 2**32)
    return task.draw(rng, n, task._far_order(rng, n)[None])


@pytest.mark.parametrize("copies", [2, 4])
def test_references_are_the_same_pixel_of_the_other_copies(copies: int) -> None:
    task = Phase(copies=copies, textures=3)
    batch = task.batch(seed=1, step=2, batch=3, patch=12)
    assert batch.references is not None
    rng, n = generator(1, 2), 6
    order = rng.permuted(np.tile(np.arange(n * n), (3, 1)), axis=1)
    for image, found in enumerate(batch.references):
        of_cell = {cell: {cell} for cell in range(n * n)}
        for texture in order[image, : 3 * copies].reshape(3, copies).tolist():
            of_cell |= {cell: set(texture) - {cell} for cell in texture}
        for position, there in enumerate(found.tolist()):
            (y, x), places = divmod(position, 12), [divmod(r, 12) for r in there]
            assert len(there) == copies - 1
            assert all((ry % CELL, rx % CELL) == (y % CELL, x % CELL) for ry, rx in places)
            cells = {ry // CELL * n + rx // CELL for ry, rx in places}
            assert cells == of_cell[y // CELL * n + x // CELL]


def test_copies_have_one_texture_and_each_another_phase() -> None:
    task = Phase(copies=3, distractors=0.2)
    grids, _ = drawn(task, 20)
    for image in range(20):
        for own in grids.copies[image]:
            assert sorted(grids.phase[image, own]) == [0, 1, 2]
            assert (grids.texture[image, own] == grids.texture[image, own[0]]).all()


def test_distances_are_those_between_the_nearest_pixels() -> None:
    found, n = distances(7), 7
    for a, b in [(0, 0), (0, 1), (3, 24), (0, 48), (10, 32)]:
        pixels = [
            [(CELL * (c // n) + y, CELL * (c % n) + x) for y in range(CELL) for x in range(CELL)]
            for c in (a, b)
        ]
        nearest = min(max(abs(p - r), abs(q - s)) for p, q in pixels[0] for r, s in pixels[1])
        assert found[a, b] == (nearest if a != b else 1 - CELL)


def test_distances_to_some_cells_are_those_of_the_whole_table() -> None:
    cells = np.random.default_rng(0).integers(49, size=(3, 5))
    found = distances_to(cells, 7)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, distances(7)[:, cells].transpose(1, 0, 2))


def test_all_queries_of_test_images_are_far_and_those_within_reach_do_not_count() -> None:
    task = Phase(copies=3)
    for test_set in task.test_sets:
        found = [item.truth.distance for item in task.items(test_set)]
        assert np.min(found) >= FAR > REACH
    check_reach(task, REACH)
    with pytest.raises(UserError, match=r"nothing in n6 of task phase .* lower --blocks"):
        check_reach(task, FAR)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    def bytes_of(seed: int, step: int) -> list[bytes]:
        found = Phase().batch(seed=seed, step=step, batch=3, patch=12)
        assert found.references is not None
        return [part.tobytes() for part in (found.inputs, found.targets, found.references)]

    torch.manual_seed(1)
    first = bytes_of(3, 7)
    torch.manual_seed(2)
    assert bytes_of(3, 7) == first
    assert bytes_of(3, 8)[0] != first[0] != bytes_of(4, 7)[0]


def test_items_are_fixed_and_those_of_validation_are_others() -> None:
    first, again = (list(Phase().items("n12")) for _ in range(2))
    assert all(np.array_equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    seen = {item.inputs.tobytes() for item in first}
    seen |= {item.inputs.tobytes() for item in Phase().items("n12", validation=True)}
    assert len(seen) == 256 + 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copies": 1}, "--copies must be 2 to 4, got 1"),
        ({"copies": 5}, "--copies must be 2 to 4, got 5"),
        ({"textures": 0}, "--textures must be at least 1"),
        ({"cells": 5}, "--cells must be at least 6"),
        ({"distractors": 1.5}, "--distractors must be a share"),
        ({"noise": 0.0}, "--noise must be 0.00001 to 10, got 0"),
        ({"noise": 1e-9}, "--noise must be 0.00001 to 10, got 1e-09"),
        ({"noise": 1e4}, "--noise must be 0.00001 to 10, got 10000"),
        ({"noise": float("nan")}, "--noise must be 0.00001 to 10, got nan"),
        ({"decimation": "bicubic"}, "--decimation must be nearest or box, got 'bicubic'"),
        ({"textures": 19}, "38 copies do not fit in 6 x 6 cells"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Phase(**options)


@pytest.mark.parametrize("noise", [1e-5, 10.0])
def test_floor_and_ceiling_lie_apart_at_the_ends_of_noise(noise: float) -> None:
    task = Phase(copies=4, noise=noise)
    items = [next(iter(task.items("n6")))]
    for output, wanted in ((task.floor_output, 0), (task.ceiling_output, 1)):
        scores = [task.score(item, output(item), 8) for item in items]
        assert combined(task, [one for one in scores if one]) == pytest.approx(wanted, abs=1e-3)


def test_too_many_copies_to_place_far_apart_are_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"12 textures have no place in 6 x 6 cells .* raise --cel"):
        next(iter(Phase(textures=12).items("n6")))

"""True matches in clean images, and runs with an oracle that is told them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.degradation import grey
from harness.images.files import Pixels
from harness.images.sources import TestImage, find_data
from harness.measuring.quality import evaluate
from harness.measuring.references import with_references
from harness.network.edsr import build_network
from harness.records.shapes import Run
from harness.records.store import load_records
from harness.tasks import matches
from harness.tasks.denoise import Denoise
from harness.tasks.matches import MATCHES, find_matches
from harness.tasks.sr import SuperResolution
from tests.harness.conftest import Cli


def obvious(image: Pixels, scale: int, reach: int) -> np.ndarray:
    """Each pair of positions on its own, sorted."""
    luma = np.pad(grey(image).astype(int), scale, mode="edge")
    height, width = image.shape[0] // scale, image.shape[1] // scale
    cells = {
        (y, x): luma[scale * y : scale * (y + 3), scale * x : scale * (x + 3)]
        for y in range(height)
        for x in range(width)
    }
    rows = []
    for (y, x), own in cells.items():
        allowed = [
            (int(((own - other) ** 2).sum()), v * width + u)
            for (v, u), other in cells.items()
            if max(abs(v - y), abs(u - x)) > reach and max(abs(v - y), abs(u - x)) <= matches.SEARCH
        ]
        best = [index for _, index in sorted(allowed)[:MATCHES]] or [y * width + x]
        rows.append(best + best[:1] * (MATCHES - len(best)))
    return np.array(rows)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(1, 256),
    st.integers(0, 99),
)
def test_matches_are_those_of_an_exhaustive_search(
    scale: int, height: int, width: int, reach: int, levels: int, seed: int
) -> None:
    """With few levels there are many equals, of which the first is taken."""
    shape = (2, scale * height, scale * width, 3)
    images = np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)
    found = find_matches(images, scale, reach)
    assert found.shape == (2, height * width, MATCHES)
    for image, references in zip(images, found, strict=True):
        np.testing.assert_array_equal(references, obvious(image, scale, reach))


def test_squares_and_the_bounds_of_the_search_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of several squares, wider than the search."""
    monkeypatch.setattr(matches, "_TILE", 4)
    monkeypatch.setattr(matches, "SEARCH", 6)
    image = np.random.default_rng(0).integers(0, 4, (11, 18, 3)).astype(np.uint8) * 60
    np.testing.assert_array_equal(find_matches(image[None], 1, 2)[0], obvious(image, 1, 2))


def test_extreme_values_are_exact() -> None:
    """The largest sums of products: black and white at x4."""
    image = np.random.default_rng(0).integers(0, 2, (28, 28, 3)).astype(np.uint8) * 255
    image[0, 0] ^= 1
    np.testing.assert_array_equal(find_matches(image[None], 4, 1)[0], obvious(image, 4, 1))


def test_copies_are_found() -> None:
    """In a periodic picture the matches of inner positions lie whole periods away."""
    tile = np.random.default_rng(0).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    image = np.tile(tile, (4, 4, 1))
    found = find_matches(image[None], 1, 5)[0].reshape(28, 28, MATCHES)
    ys, xs = np.divmod(found, 28)
    inner = slice(1, 27), slice(1, 27)
    for places, axis in ((ys, 0), (xs, 1)):
        own = np.indices((28, 28))[axis][..., None]
        assert ((places - own)[inner] % 7 == 0).all()


# -- tasks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Denoise, SuperResolution])
def test_batches_hold_the_matches_of_their_targets(
    cls: type[Denoise] | type[SuperResolution], image_folder: Path
) -> None:
    task = cls(None, find_data(image_folder), 1 if cls is Denoise else 2)
    key = {"seed": 0, "step": 3, "batch": 2, "patch": 12}
    plain, told = task.batch(**key), task.with_references(4).batch(**key)
    assert plain.references is None
    np.testing.assert_array_equal(plain.inputs, told.inputs)
    np.testing.assert_array_equal(told.references, find_matches(told.targets, task.scale, 4))
    assert task.batch(**key).references is None


def test_an_oracle_is_told_the_matches_of_each_test_image(image_folder: Path) -> None:
    network = build_network(Variant("oracle"), NetworkConfig(2, 4), 2, positions=(1,)).eval()
    module = network.attention["1"]
    seen: list[torch.Tensor | None] = []
    module.register_forward_pre_hook(lambda one, _: seen.append(one.references))
    images = [*SuperResolution(None, find_data(image_folder), 2).test_set("Tiny")]
    found = evaluate(network, images, 2, 2, "test")
    assert len(seen) == 2
    for told, image in zip(seen, images, strict=True):
        assert told is not None
        np.testing.assert_array_equal(told.numpy(), find_matches(image.hr[None], 2, 8))
    assert module.references is None
    other = evaluate(network, images[:1], 1, 2, "test")
    assert other.images[0] == found.images[0]
    with pytest.raises(UserError, match="an oracle takes matches of whole images"):
        evaluate(network, images, 2, 2, "test", tile=20)


def test_other_networks_are_told_nothing() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    image = TestImage("a", pixels, pixels)
    for network in (nn.Identity(), build_network(Variant("nla"), NetworkConfig(4, 4), 2)):
        assert [*with_references(network, [image], cut=True)] == [image]


# -- runs -----------------------------------------------------------------------------------

TINY = "--blocks 4 --channels 8 --steps 3 --batch 2 --patch 16"


@pytest.mark.parametrize("task", ["--task denoise", "--scale 2 --skip-latency"])
@pytest.mark.parametrize("attn", ["oracle", "reference-mean"])
def test_oracles_train_and_are_evaluated_on_images(
    task: str, attn: str, cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    words = f"{task} --attn {attn} --modules 2 --learn-res-scale --attention-rate 2 {TINY}"
    places = ("--results", tmp_path, "--data", image_folder)
    cli(f"run {words}", *places)
    (record,) = load_records(tmp_path, Run)
    assert (record.config.learn_res_scale, record.config.attention_rate) == (True, 2)
    where = record.config.positions if task.startswith("--scale") else record.config.task.positions
    assert where == [1, 3]
    printed = cli(f"evaluate --weights {record.id}", *places).out
    assert f"{record.quality['Tiny'].psnr:.2f}" in printed
    picture = image_folder / "Tiny" / "HR" / "e0.png"
    refused = cli(f"upscale --weights {record.id}", picture, tmp_path / "up", *places[:2], status=2)
    assert "harness.upscale tells it none" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task denoise --attn oracle --tile 16", "oracle takes matches of whole images"),
        ("--task recall --attn nla --modules 2", "--modules applies only to --task sr or denoise"),
        ("--attn nla --modules 0", "modules must be 1 to 4, the number of blocks, or 5, got 0"),
        ("--task recall --attn nla --holdout-crop 32", "--holdout-crop applies only to"),
        ("--attn nla --holdout-crop 32", "--holdout-crop applies only to --holdout"),
        ("--attn nla --attention-rate 0", "attention rate must be a finite number above 0"),
    ],
)
def test_what_does_not_fit_is_named(
    words: str, message: str, cli: Cli, image_folder: Path, tmp_path: Path
) -> None:
    places = ("--results", tmp_path) + (() if "recall" in words else ("--data", image_folder))
    sizes = TINY.replace("--patch 16", "") if "recall" in words else TINY
    assert message in cli(f"run {words} {sizes}", *places, status=2).err

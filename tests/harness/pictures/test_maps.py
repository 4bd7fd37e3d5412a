"""Correlation maps show the weights that the network uses, where it uses them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.bicubic import crop_to_multiple, downscale
from harness.images.degradation import BICUBIC, GreyNoise, image_generator
from harness.maps import parse_position
from harness.network.edsr import to_tensor
from harness.network.weights import Architecture, TrainedNetwork, load_weights, save_weights
from harness.pictures.maps import (
    CorrelationMap,
    correlation_maps,
    draw,
    features_before,
    network_input,
)
from harness.pictures.networks import network_labels
from tests.harness.conftest import TINY_WORDS, Cli, train
from tests.reference.maps import divided_by_norm, vectors

ROWS, COLS = 11, 14
AT = (7, 3)
VARIANTS = {
    "nla": Variant("nla"),
    "nlsa": Variant("nlsa", {"chunk_size": 8, "rounds": 2}),
    "criss-cross": Variant("criss-cross"),
    "enla-m4": Variant("enla", {"m": 4}),
    "enla-m4-k1": Variant("enla", {"m": 4, "k": 1.0}),
    "enlca-m4": Variant("enlca", {"m": 4}),
}


def make(name: str, variant: Variant, **changes: Any) -> TrainedNetwork:
    """A tiny network whose attention is far from uniform and differs from module to module."""
    architecture = Architecture(variant, NetworkConfig(4, 8), **{"scale": 2, **changes})
    network = architecture.build(0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.attention.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return TrainedNetwork(name, architecture, network)


@pytest.fixture(scope="module")
def lr() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (ROWS, COLS, 3), dtype=np.uint8)


def received(run: TrainedNetwork, lr: np.ndarray, module: int) -> Tensor:
    """What the module gets in a whole forward pass, seen by a plain hook."""
    seen: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        seen.append(inputs[0])

    handle = run.network.attention_modules[module - 1].register_forward_hook(look)
    with torch.no_grad():
        run.network(to_tensor(lr[None], torch.device("cpu")))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("module", [1, 3, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_weights_are_those_with_which_the_module_sums_its_values(
    name: str, module: int, lr: np.ndarray
) -> None:
    run = make(name, VARIANTS[name])
    *_, used = correlation_maps([run], lr, AT, module)
    assert (used.run, used.weights.shape) == (name, (ROWS, COLS))
    assert used.weights.sum() == pytest.approx(1, abs=1e-5)
    assert used.weights.min() >= 0

    attention = run.network.attention_modules[module - 1]
    with torch.no_grad():
        q, k, v = attention.project(received(run, lr, module))
        expected = attention.attend(q, k, v)[0, :, AT[0], AT[1]].double()
        weights = torch.from_numpy(used.weights)
        torch.testing.assert_close((weights * v[0]).sum((1, 2)), expected, rtol=1e-4, atol=1e-4)
        drawn = attention.attention_weights(q, k, *AT)[0].double()
    torch.testing.assert_close(weights, drawn, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["enla-m4", "enla-m4-k1", "enlca-m4"])
def test_enla_has_the_softmax_of_its_inner_products_too(name: str, lr: np.ndarray) -> None:
    run = make(name, VARIANTS[name])
    exact, used = correlation_maps([run], lr, AT, 2)
    assert (exact.kind, used.kind) == ("exact", "random features")
    attention = run.network.attention_modules[1]
    with torch.no_grad():
        q, k, _ = attention.project(received(run, lr, 2))
    amplification = VARIANTS[name].resolved["k"]
    query = divided_by_norm(vectors(q, 0)[AT[0] * COLS + AT[1]])
    weights = [
        math.exp(amplification * float(torch.dot(query, divided_by_norm(key))))
        for key in vectors(k, 0)
    ]
    expected = np.array(weights).reshape(ROWS, COLS) / sum(weights)
    np.testing.assert_allclose(exact.weights, expected, rtol=1e-4)
    assert np.abs(used.weights - expected).max() > 1e-3  # four features are not exact


def test_panels_say_what_they_are(lr: np.ndarray) -> None:
    names = ["enla-m4", "enla-m4-k1", "nla"]
    runs = [make(name, VARIANTS[name]) for name in names] + [make("other", VARIANTS["nla"])]
    found = [(m.label, m.kind, m.run) for m in correlation_maps(runs, lr, AT, 5)]
    assert found == [
        ("ENLA-m4", "exact", "enla-m4"),
        ("ENLA-m4", "random features", "enla-m4"),
        ("ENLA-m4 (k=1.0)", "exact", "enla-m4-k1"),
        ("ENLA-m4 (k=1.0)", "random features", "enla-m4-k1"),
        ("NLA, run 3", "", "nla"),
        ("NLA, run 4", "", "other"),
    ]
    heavy = [make(name, Variant(name, {"res_scale": 1.0})) for name in ("nla", "nlsa")]
    assert network_labels(heavy) == ["NLA", "NLSA-r4"]  # of one weight
    assert network_labels([*heavy, runs[2]]) == [
        "NLA (res_scale=1.0)",
        "NLSA-r4 (res_scale=1.0)",
        "NLA",
    ]


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda w: sum(w) > 1e-3))
def test_effective_positions(masses: list[float]) -> None:
    weights = np.array(masses).reshape(2, 3) / sum(masses)
    m = CorrelationMap("a", "", "a", weights)
    entropy = -sum(weight * math.log(weight) for weight in weights.flatten() if weight > 0)
    assert m.effective_positions == pytest.approx(math.exp(entropy))
    assert 1 - 1e-9 <= m.effective_positions <= m.statistics()["attended_positions"] + 1e-9


def test_effective_positions_at_the_ends() -> None:
    one = np.eye(1, 15).reshape(3, 5)
    assert CorrelationMap("a", "", "a", one).effective_positions == 1
    uniform = CorrelationMap("a", "", "a", np.full((3, 5), 1 / 15))
    assert uniform.effective_positions == pytest.approx(15)
    assert uniform.statistics()["max_weight_times_n"] == pytest.approx(1)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 2), (8, 3)])
def test_drawing(count: int, rows: int, lr: np.ndarray) -> None:
    weights = [np.random.default_rng(i).dirichlet(np.full(ROWS * COLS, 0.3)) for i in range(count)]
    drawn = [
        CorrelationMap(f"L{i}", "exact" if i else "", "run", w.reshape(ROWS, COLS))
        for i, w in enumerate(weights)
    ]
    figure = draw(lr, AT, drawn, "attention module 2 of 5")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == count + 1
    assert len({ax.get_subplotspec().rowspan.start for ax in shown}) == rows  # type: ignore[union-attr]
    assert (shown[0].get_title(), shown[0].get_xlabel()) == ("Input", "attention module 2 of 5")
    np.testing.assert_array_equal(shown[0].images[0].get_array(), lr)
    titles = [ax.get_title() for ax in shown[1:]]
    assert titles == ["L0", *(f"L{i}\nexact" for i in range(1, count))]
    for ax, m in zip(shown[1:], drawn, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), m.weights * (ROWS * COLS))
        assert ax.get_xlabel() == f"{m.effective_positions:,.0f} effective positions"
    (norm,) = {ax.images[0].norm for ax in shown[1:]}  # one colour scale for all
    (bar,) = (ax for ax in figure.axes if ax.get_label() == "<colorbar>")
    ticks = {label.get_text() for label in bar.get_xticklabels()}
    assert {"10⁻²", "10⁰"} <= ticks  # no formula, which the style does not set
    assert norm.vmax >= max(w.max() for w in weights) * (ROWS * COLS)
    for ax in shown:
        (ring,) = ax.lines
        assert [*map(int, ring.get_xdata()), *map(int, ring.get_ydata())] == [AT[1], AT[0]]  # type: ignore[arg-type]


@given(*[st.integers(1, 13)] * 2, st.sampled_from([2, 3, 4]), *[st.integers(0, 14)] * 2)
def test_positions_of_an_hr_image(height: int, width: int, scale: int, row: int, col: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if row >= height // scale * scale or col >= width // scale * scale:
        with pytest.raises(UserError, match=f"{row},{col} lies outside a.png"):
            network_input(image, (row, col), "a.png", scale, BICUBIC)
        return
    lr, (i, j) = network_input(image, (row, col), "a.png", scale, BICUBIC)
    np.testing.assert_array_equal(lr, downscale(crop_to_multiple(image, scale), scale))
    assert (i, j) == (row // scale, col // scale)


def test_brighter_is_more_and_no_weight_is_black(lr: np.ndarray) -> None:
    weights = np.zeros((ROWS, COLS))
    weights[3, 2:6] = np.array([1e-6, 1e-3, 1e-2, 1]) / 1.011001
    image = draw(lr, AT, [CorrelationMap("a", "", "a", weights)]).axes[1].images[0]
    values = image.get_array()
    assert values is not None
    colours = image.to_rgba(values)
    assert (colours[weights == 0] == (0, 0, 0, 1)).all()
    luminance = colours[3, 2:6, :3] @ (0.299, 0.587, 0.114)
    assert luminance[0] == 0  # below the scale
    assert (np.diff(luminance) > 0.1).all()


@pytest.mark.parametrize(("width", "interpolation"), [(600, "none"), (1300, "auto")])
def test_no_position_is_skipped(width: int, interpolation: str) -> None:
    """Two panels of 655 pixels each: the one bright column shows, whatever its place."""
    for column in (width // 2, width // 2 + 1):
        weights = np.zeros((60, width))
        weights[:, column] = 1 / 60
        lr = np.zeros((60, width, 3), np.uint8)
        figure = draw(lr, (0, 0), [CorrelationMap("a", "", "a", weights)])
        ax = figure.axes[1]
        assert ax.images[0].get_interpolation() == interpolation
        figure.set_dpi(200)
        figure.canvas.draw()
        box = ax.get_window_extent()
        pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        row = pixels[round(pixels.shape[0] - (box.y0 + box.y1) / 2), round(box.x0) + 2 :, :3]
        assert row[: round(box.width) - 4].max() > 100


def test_parse_position() -> None:
    assert parse_position("40,060") == (40, 60)
    for text in ("40", "40,", "-1,2", "1.5,2", "1,2,3", "a,b", "1, 2", ""):
        with pytest.raises(UserError, match="is not ROW,COL"):
            parse_position(text)


# -- command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every variant, and some that cannot be drawn."""
    runs = [make(f"{name}-run", variant) for name, variant in VARIANTS.items()]
    runs += [make("conv-run", Variant("conv")), make("none-run", Variant("none"))]
    runs += [make("two-modules", Variant("nla"), positions=(0, 4))]
    runs += [make("x3-run", Variant("nla"), scale=3), make("diverged", Variant("nla"))]
    with torch.no_grad():
        for module in runs[-1].network.attention_modules:
            next(module.parameters()).fill_(math.nan)
    folder = tmp_path_factory.mktemp("runs")
    for run in runs:
        path = folder / run.name / "weights.safetensors"
        save_weights(path, run.network, run.architecture, run.name)
    return folder


@pytest.fixture
def results(trained: Path, tmp_path: Path, lr: np.ndarray) -> Path:
    """A results folder with the runs, and an image beside it."""
    Image.fromarray(lr).save(tmp_path / "windows.png")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(trained)
    return tmp_path / "results"


def typed(results: Path, *words: str | Path) -> list[str | Path]:
    image = results.parent / "windows.png"
    return ["--results", results, "--image", image, "--at", "7,3", *words]


def drawn_maps(results: Path, module: int, lr: np.ndarray, at: tuple[int, int], *runs: str) -> Any:
    """What the record says of the maps of these runs."""
    loaded = [load_weights(results / "runs" / run / "weights.safetensors") for run in runs]
    return [m.statistics() for m in correlation_maps(loaded, lr, at, module)]


def test_command_line(cli: Cli, results: Path, tmp_path: Path, lr: np.ndarray) -> None:
    given_runs = ("enlca", "nla", results / "runs" / "nlsa-run", "criss", "nla")
    words = typed(results, "--runs", *given_runs)
    stem = results / "figures" / "maps-windows-7-3"
    files = [stem.with_suffix(suffix) for suffix in (".png", ".pdf", ".json")]
    assert cli("maps", *words).out.splitlines() == [str(path) for path in files]
    assert sorted(stem.parent.iterdir()) == sorted(files)
    assert Image.open(files[0]).size[0] == 1380  # 6.9 in at 200 dpi
    assert files[1].read_bytes().startswith(b"%PDF")

    record = json.loads(files[2].read_text())
    assert record["command"].startswith("python -m harness.maps ")
    assert "--image windows.png --at 7,3" in record["command"]
    assert str(tmp_path) not in files[2].read_text()
    runs = ["enlca-m4-run", "nla-run", "nlsa-run", "criss-cross-run"]
    assert record["runs"] == runs
    assert (record["module"], record["scale"], record["lr_position"]) == (5, 2, [7, 3])
    expected = drawn_maps(results, 5, lr, AT, *runs)
    assert record["panels"] == expected
    assert [p["weights"] for p in expected][:3] == ["exact", "random features", "as used"]
    assert expected[-1]["attended_positions"] == ROWS + COLS - 1

    before = [path.read_bytes() for path in files]
    cli("maps", *words)
    assert [path.read_bytes() for path in files] == before
    for other in (("--module", "1"), ("--hr",)):  # the figure of other settings is kept
        assert "another figure" in cli.refused("maps", *words, *other)
    assert [path.read_bytes() for path in files] == before
    (tmp_path / "own.json").write_text("[1]")
    cli.refused("maps", *words, "--output", tmp_path / "own")
    assert (tmp_path / "own.json").read_text() == "[1]"


def test_command_line_with_an_hr_image(
    cli: Cli, results: Path, tmp_path: Path, lr: np.ndarray
) -> None:
    words = ("--hr", "--at", "9,13", "--runs", "enla-m4-k1", "--module", "2")
    cli("maps", *typed(results, *words, "--output", tmp_path / "elsewhere" / "figure7.1"))
    record = json.loads((tmp_path / "elsewhere" / "figure7.1.json").read_text())
    assert (record["lr_size"], record["lr_position"]) == ([5, 7], [4, 6])
    smaller = downscale(crop_to_multiple(lr, 2), 2)
    assert record["panels"] == drawn_maps(results, 2, smaller, (4, 6), "enla-m4-k1-run")


def test_an_official_network_may_have_other_than_five_modules(
    cli: Cli, results: Path, lr: np.ndarray
) -> None:
    """One before the first block and one after each eighth: two of a network of eight blocks."""
    cli("maps", *typed(results, "--runs", "two-modules"))
    record = json.loads((results / "figures" / "maps-windows-7-3.json").read_text())
    assert record["module"] == 2
    assert record["panels"] == drawn_maps(results, 2, lr, AT, "two-modules")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runs", "nla-run", "two-modules"), "differ in their number of attention modules (nla-"),
        (("--runs", "two-modules", "--module", "3"), "module must be 1 to 2, got 3"),
        (("--runs", "nla-run", "conv-run"), "run conv-run (Conv) has no weights over positions"),
        (("--runs", "none-run"), "run none-run (Baseline) has no weights over positions"),
        (("--runs", "diverged"), "query.weight has values that are not finite"),
        (("--runs", "nla-run", "x3-run"), "different scales (nla-run x2, x3-run x3)"),
        (("--runs", "nowhere"), "no weights of run 'nowhere'"),
        (("--runs", "nl"), "nla-run, nlsa-run"),
        (("--runs",), "runs"),
        ((), "--runs"),
        (("--runs", "nla-run", "--at", "11,0"), "11,0 lies outside windows.png (11 rows, 14 col"),
        (("--runs", "nla-run", "--at", "0,14"), "0,14 lies outside windows.png"),
        (("--runs", "nla-run", "--hr", "--at", "10,0"), "(10 rows, 14 columns, cropped to a mul"),
        (("--runs", "nla-run", "--at=-1,2"), "position '-1,2' is not ROW,COL"),
        (("--runs", "nla-run", "--module", "0"), "module must be 1 to 5, got 0"),
        (("--runs", "nla-run", "--module", "6"), "module must be 1 to 5, got 6"),
        (("--runs", "nla-run", "--module", "last"), "--module"),
        (("--runs", "nla-run", "--image", "nowhere.png"), "cannot read the image nowhere.png"),
        (("--runs", "nla-run", "--size", "3"), "--size"),
        (("--runs", "nla-run", "--output", "/dev/null/a"), "cannot write"),
        (("--runs", "nla-run", "--output", "."), "--output . names no file: give a name too"),
        (("--runs", "nla-run", "--output", "/"), "e.g. /figure"),
        (("--runs", "x" * 300), "give a shorter name"),
    ],
)
def test_command_line_mistakes(
    cli: Cli, arguments: tuple[str, ...], message: str, results: Path
) -> None:
    assert message in cli.refused("maps", *typed(results, *arguments))
    assert not (results / "figures").exists()


def test_a_module_of_another_network_is_refused(lr: np.ndarray) -> None:
    one, other = make("a", Variant("nla")), make("b", Variant("nla"))
    with pytest.raises(ValueError, match="no such module"):
        features_before(one.network, other.network.attention_modules[0], lr)
    used = one.network.attention_modules[0]
    features_before(one.network, used, lr)
    assert not used._forward_pre_hooks  # the hook is taken away again


def test_a_network_of_another_task_on_images_gets_its_input(
    cli: Cli, tmp_path: Path, image_folder: Path
) -> None:
    line = " ".join([*TINY_WORDS, "--attn nla --blocks 4 --patch 8"])
    train(
        tmp_path, f"{line} --task denoise --sigma 25", f"{line} --skip-latency", data=image_folder
    )
    denoise, sr = (
        next(path.name for path in (tmp_path / "runs").glob(pattern))
        for pattern in ("nla-denoise*", "nla-quick*")
    )
    image = image_folder / "Tiny" / "HR" / "e0.png"
    drawn = ("--results", tmp_path, "--output", tmp_path / "map", "--image", image)
    cli(f"maps --at 3,5 --hr --runs {denoise}", *drawn)
    found = json.loads((tmp_path / "map.json").read_text())
    assert (found["task"], found["lr_position"]) == ("denoise (sigma 25)", [3, 5])
    hr = np.asarray(Image.open(image).convert("RGB"))
    noisy, _ = GreyNoise(25).pair(hr, None, 1, image_generator("maps", image.name))
    assert found["lr_sha256"] == hashlib.sha256(noisy.tobytes()).hexdigest()
    plain, _ = network_input(hr, (3, 5), image.name, 1, None)
    assert plain is hr  # without --hr the image is the input
    message = cli.refused(f"maps --at 3,5 --runs {denoise} {sr}", *drawn)
    assert "are of different scales" in message

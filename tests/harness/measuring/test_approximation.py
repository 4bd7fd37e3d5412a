"""Quality of the approximation: measured quantities against dense float64 code, and the command."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import create_attention
from attention_zoo.base import to_rows
from attention_zoo.enla import EfficientNonLocalAttention, orthogonal_gaussian
from attention_zoo.nlsa import NonLocalSparseAttention, hash_codes
from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.metrics import quality
from harness.images.sources import find_data
from harness.measuring.approximation import Sweep, measure, measure_network, study
from harness.measuring.buckets import bucket_windows, chunk_size, measure_nlsa
from harness.measuring.features import Features, cropped, network_features, synthetic_features
from harness.measuring.kernel import (
    attended_positions,
    kernel_estimates,
    measure_enla,
    variance_eq7,
)
from harness.measuring.quality import super_resolve
from harness.network.weights import Architecture, load_weights, save_weights
from harness.records.shapes import Approximation, untyped
from harness.records.store import load_record, load_records, save_record
from harness.reporting.approximation import statements
from harness.reporting.figures.approximation import figures
from harness.reporting.figures.style import new_figure
from harness.reporting.tables.approximation import table
from tests.harness.conftest import Cli
from tests.reference import approximation as oracle
from tests.reference.maps import vectors

SWEEP = Sweep(m=(2, 128), k=(6.0,), rounds=3, draws=2, queries=10_000, top=3)
TINY = "approximation --sizes 6 8 --images 1 --draws 2 --queries 8 --rounds 5"
TINY += " --m 2 16 --k 1 2 --chunk-size 16 --top 4"


def enla(features: Features, k: float, counts: tuple[int, ...], **changes: Any) -> Any:
    settings = {"draws": SWEEP.draws, "queries": SWEEP.queries, "eps": SWEEP.eps, "seed": 0}
    return measure_enla(features, k, counts, **(settings | changes))


def random_features(side: int = 4, c: int = 3, c_out: int = 5, seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    shapes = ((1, c, side, side), (1, c, side, side), (1, c_out, side, side))
    return Features("Gaussian", *(torch.randn(shape, generator=g) for shape in shapes))


def norm(x: Tensor) -> float:
    return math.sqrt(float((x * x).sum()))


# -- ENLA -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_kernel_estimates_use_the_first_rows_of_each_draw(eps: float) -> None:
    one = random_features()
    u, w = oracle.amplified(one.q, 2.0), oracle.amplified(one.k, 2.0)
    draws = torch.stack(
        [orthogonal_gaussian(7, 3, torch.Generator().manual_seed(s)).double() for s in range(2)]
    )
    found = list(kernel_estimates(torch.stack(u), torch.stack(w), draws, (1, 4, 7), eps))
    for m, estimates in zip((1, 4, 7), found, strict=True):
        expected = [oracle.random_kernel(u, w, f[:m], eps) for f in draws]
        torch.testing.assert_close(estimates, torch.stack(expected))


def test_eq_7_is_the_variance_of_independent_draws() -> None:
    """Within 5 standard errors, about 8 %: the kurtosis of these log-normals is at most 114."""
    one = random_features(side=2)
    u, w = (torch.stack(oracle.amplified(x, 0.25)) for x in (one.q, one.k))
    draws = 400_000
    g = torch.Generator().manual_seed(1)
    f = torch.randn(draws, u.shape[1], generator=g, dtype=torch.float64)
    offset = u.square().sum(1, keepdim=True) / 2 + w.square().sum(1) / 2
    for i, j in ((0, 0), (1, 2), (3, 3)):
        estimates = (f @ (u[i] + w[j]) - offset[i, j]).exp()
        expected = variance_eq7(u, w, 1)[i, j].item()
        assert estimates.var().item() == pytest.approx(expected, rel=5 * math.sqrt(113 / draws))
        assert variance_eq7(u, w, 8)[i, j].item() == pytest.approx(expected / 8)


def test_measured_variance_tends_to_eq_7_where_tails_are_light() -> None:
    _, found = enla(random_features(), 0.25, (4, 8), draws=1000, queries=16, seed=3)
    for m in (4, 8):
        closed = found[m]["variance_closed"].item()
        assert found[m]["variance_independent"].mean().item() == pytest.approx(closed, rel=0.1)
        assert found[m]["kernel_ratio"].mean().item() == pytest.approx(1, abs=0.02)


def test_measurements_equal_dense_code(monkeypatch: pytest.MonkeyPatch) -> None:
    one, k, eps = random_features(), 4.0, 1e-3
    drawn = [orthogonal_gaussian(6, 3, torch.Generator().manual_seed(s)) for s in range(2)]
    supply = iter(drawn)
    monkeypatch.setattr("harness.measuring.kernel.orthogonal_gaussian", lambda *_: next(supply))
    exact, found = enla(one, k, (2, 6), eps=eps)

    u, w = oracle.amplified(one.q, k), oracle.amplified(one.k, k)
    values = vectors(one.v, 0)
    kernel = oracle.exact_kernel(u, w)
    y = oracle.weighted_values(kernel, values)
    mean = torch.stack(values).mean(0)
    entropy, simpson = oracle.effective_positions(kernel)
    assert exact["positions_entropy"].item() == pytest.approx(entropy)
    assert exact["positions_simpson"].item() == pytest.approx(simpson)
    assert exact["mean_distance"].item() == pytest.approx(norm(y - mean) / norm(y))
    assert exact["variation"].item() == pytest.approx(norm(y - y.mean(0)) / norm(y))

    for m in (2, 6):
        plain = torch.stack([oracle.random_kernel(u, w, f[:m], 0.0) for f in drawn])
        deviations = (plain[0] - plain[1]).square().mean() / 2  # variance of two
        assert found[m]["variance_orthogonal"].mean().item() == pytest.approx(float(deviations))
        for d, f in enumerate(drawn):
            weights = oracle.random_kernel(u, w, f[:m], eps)
            ours = oracle.weighted_values(weights, values)
            a, b = ours - ours.mean(0), y - y.mean(0)
            errors = (plain[d] / kernel - 1).abs().flatten().sort().values
            entropy, simpson = oracle.effective_positions(weights)
            for quantity, expected in {
                "output_error": norm(ours - y) / norm(y),
                "mean_distance": norm(ours - mean) / norm(ours),
                "variation": norm(a) / norm(ours),
                "cosine": float((a * b).sum()) / norm(a) / norm(b),
                "explained": 1 - norm(a - b) ** 2 / norm(b) ** 2,
                "positions_entropy": entropy,
                "positions_simpson": simpson,
                "kernel_error": float(errors[(len(errors) - 1) // 2]),
                "kernel_ratio": float((plain[d] / kernel).mean()),
            }.items():
                assert found[m][quantity][d].item() == pytest.approx(expected), quantity


def test_the_output_is_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """``output_error`` is that of the module's own attend, in float32."""
    one = random_features(side=5)
    module = create_attention("enla", 4, m=9, k=3.0, reduction=1)
    assert isinstance(module, EfficientNonLocalAttention)
    module.projection = orthogonal_gaussian(9, 3, torch.Generator().manual_seed(5))
    monkeypatch.setattr(
        "harness.measuring.kernel.orthogonal_gaussian", lambda *_: module.projection
    )
    _, found = enla(one, 3.0, (9,))
    ours = to_rows(module.attend(one.q, one.k, one.v))[0].double()
    kernel = oracle.exact_kernel(oracle.amplified(one.q, 3.0), oracle.amplified(one.k, 3.0))
    exact = oracle.weighted_values(kernel, vectors(one.v, 0))
    expected = norm(ours - exact) / norm(exact)
    assert found[9]["output_error"].tolist() == pytest.approx([expected] * 2, rel=1e-4)


def test_constant_features_give_finite_numbers() -> None:
    one = Features("Gaussian", *(torch.ones(1, 2, 3, 3) for _ in range(3)))
    exact, found = enla(one, 6.0, (2,))
    assert exact["positions_entropy"].item() == pytest.approx(9)
    assert exact["variation"].item() == pytest.approx(0, abs=1e-12)
    assert all(x.isfinite().all() for x in found[2].values())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda w: sum(w) > 1e-3))
@settings(max_examples=50)
def test_effective_positions_lie_between_one_and_all(weights: list[float]) -> None:
    rows = torch.tensor([weights], dtype=torch.float64)
    found = attended_positions(rows / rows.sum())
    entropy, simpson = (found[f"positions_{x}"].item() for x in ("entropy", "simpson"))
    assert 1 - 1e-9 <= simpson <= entropy + 1e-9 <= len(weights) + 1e-6


# -- NLSA -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "size"), [(6, 5), (6, 12), (4, 30), (5, 1)])
def test_windows_are_the_support_of_the_modules_weights(side: int, size: int) -> None:
    module = create_attention("nlsa", 8, rounds=2, chunk_size=size).eval()
    assert isinstance(module, NonLocalSparseAttention)
    q = torch.randn(1, 2, side, side, generator=torch.Generator().manual_seed(7))
    codes = hash_codes(to_rows(q), module.rotations(q))
    order = torch.sort(codes, dim=-1, stable=True).indices[0]
    everyone = torch.arange(side**2)
    seen = bucket_windows(order[0], size, everyone) | bucket_windows(order[1], size, everyone)
    for position in range(side**2):
        weights = module.attention_weights(q, q, position // side, position % side)
        assert torch.equal(seen[position], weights.flatten() > 0)


def test_mass_and_recall_equal_dense_code(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def spy(x: Tensor, rotations: Tensor) -> Tensor:
        used.append(rotations)
        return hash_codes(x, rotations)

    monkeypatch.setattr("harness.measuring.buckets.hash_codes", spy)
    one = random_features(side=8)
    counts = {"rounds": SWEEP.rounds, "draws": SWEEP.draws, "queries": SWEEP.queries}
    found = measure_nlsa(one, **counts, top=3, largest_chunk=SWEEP.chunk_size, seed=2)
    rows = vectors(one.q, 0)
    softmax = torch.stack(
        [torch.stack([torch.dot(a, b / b.norm()) for b in rows]).softmax(0) for a in rows]
    )
    for draw, rotations in enumerate(used):
        for rounds in (1, 3):
            module = create_attention(
                "nlsa", 12, rounds=rounds, chunk_size=chunk_size(64, SWEEP.chunk_size)
            ).eval()
            monkeypatch.setattr(module, "rotations", lambda _, r=rotations, n=rounds: r[:n])
            weights = [module.attention_weights(one.q, one.q, i // 8, i % 8) for i in range(64)]
            seen = torch.stack([w.flatten() > 0 for w in weights])
            caught, own = (softmax * seen).sum(1), softmax.diagonal()
            best = [row.argsort(descending=True)[:3] for row in softmax]
            hits = [seen[i, j].item() for i, top in enumerate(best) for j in top]
            others = float((caught - own).sum() / (1 - own).sum())
            values = {q: x[draw].item() for q, x in found[rounds].items()}
            assert values["mass"] == pytest.approx(float(caught.mean()))
            assert values["mass_others"] == pytest.approx(others)
            assert values["recall"] == pytest.approx(sum(hits) / len(hits))
            assert values["seen"] == pytest.approx(seen.double().mean().item())
            assert values["seen"] < 1


def test_chunks_are_smaller_on_small_maps() -> None:
    assert [chunk_size(n, 144) for n in (4, 256, 1024, 2304, 10_000)] == [1, 16, 64, 144, 144]


# -- features and the network -------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Weight file of a tiny untrained network."""

    def make(name: str, **options: Any) -> Path:
        path = tmp_path_factory.mktemp("weights") / f"{name}-1a2b.safetensors"
        architecture = Architecture(Variant(name, options), NetworkConfig(4, 8), 4)
        save_weights(path, architecture.build(seed=1), architecture, path.stem)
        return path

    return make


def test_features_are_what_the_modules_see(image_folder: Path) -> None:
    network = Architecture(Variant("enlca", {"m": 4}), NetworkConfig(4, 8), 4).build(2)
    (image,) = cropped(find_data(image_folder).test_set("Tiny", 4), 1, 9)
    assert (image.lr.shape, image.hr.shape) == ((9, 9, 3), (36, 36, 3))
    features = network_features(network, image)
    assert [one.name for one in features] == [f"module {i}" for i in range(1, 6)]
    x = torch.from_numpy(image.lr).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        head = network.head(x - network.mean)
        q, k, v = network.attention_modules[0].project(head)
    torch.testing.assert_close((features[0].q, features[0].k, features[0].v), (q, k, v))
    assert not network.attention_modules[0]._forward_pre_hooks


def test_crops_larger_than_an_image_are_refused(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"e0 of Tiny is 15x12, smaller than a crop of 13"):
        list(cropped(find_data(image_folder).test_set("Tiny", 4), 1, 13))


def test_synthetic_features_are_what_they_say() -> None:
    gaussian, clustered = synthetic_features(24, seed=3)
    again = synthetic_features(24, seed=3)[1]
    assert torch.equal(clustered.q, again.q)
    q, k = (torch.nn.functional.normalize(to_rows(x)[0], dim=1) for x in (clustered.q, clustered.k))
    cosines = q @ k.T
    assert cosines.diagonal().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (cosines > 0.5).double().mean().item() == pytest.approx(1 / 16, abs=0.03)
    for x in (gaussian.q, gaussian.k, gaussian.v):
        assert x.shape == (1, 64, 24, 24)
        assert x.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("learned", [False, True])
def test_attention_is_replaced_and_put_back(learned: bool, image_folder: Path) -> None:
    architecture = Architecture(
        Variant("enlca", {"m": 4, "k": 3.0, "res_scale": 5.0}),
        NetworkConfig(4, 8),
        4,
        learn_res_scale=learned,
    )
    network = architecture.build(2).eval()
    images = list(cropped(find_data(image_folder).test_set("Tiny", 4), 2, 8))
    state = {key: value.clone() for key, value in network.state_dict().items()}
    steps: list[int] = []
    rows = measure_network(
        network, images, Sweep(m=(1, 4), k=(6.0,), draws=2), lambda: steps.append(1)
    )
    attentions = [(row["attention"], row["m"]) for row in rows]
    enla_rows = [("enla", 1), ("enla", 4)]
    assert attentions == [("exact", None), ("mean", None), *enla_rows, ("none", None)]
    assert len(steps) == 7
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert all(module.res_scale == 5.0 for module in network.attention_modules)

    def score(network: torch.nn.Module) -> float:
        values = [quality(super_resolve(network, i.lr, 4), i.hr, 4).psnr for i in images]
        return sum(values) / len(values)

    class Dense(torch.nn.Module):
        """The module with exact attention (or the mean of all values) by dense float64 code."""

        def __init__(self, module: EfficientNonLocalAttention, uniform: bool) -> None:
            super().__init__()
            self.module, self.uniform = module, uniform

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (to_rows(t)[0].double() for t in self.module.project(x))
            q, k = (t / t.norm(dim=1, keepdim=True) for t in (q, k))
            w = ((0.0 if self.uniform else 3.0) * q @ k.T).softmax(1)
            return x + 5.0 * (w @ v).T.reshape(x.shape).float()

    by_name = {row["attention"]: row["psnr"] for row in rows if row["m"] is None}
    modules = dict(network.attention.items())
    for name, uniform in (("exact", False), ("mean", True)):
        for key, module in modules.items():
            assert isinstance(module, EfficientNonLocalAttention)
            network.attention[key] = Dense(module, uniform)
        assert score(network) == pytest.approx(by_name[name], abs=2e-3)
    network.attention = torch.nn.ModuleDict()
    assert score(network) == pytest.approx(by_name["none"], abs=2e-3)
    assert by_name["none"] != pytest.approx(by_name["exact"], abs=0.05)


def test_averages_are_over_modules_and_images() -> None:
    sets = [
        Features(f"module {1 + i % 2}", *(getattr(random_features(seed=i), x) for x in "qkv"))
        for i in range(4)
    ]
    rows = measure({4: sets}, SWEEP)
    exact = {row["features"]: row["positions_entropy"] for row in rows["exact"]}
    alone = [enla(s, 6.0, (2,))[0]["positions_entropy"].item() for s in sets]
    # Queries are all positions here, so the seed of their choice does not matter.
    assert exact["module 1"] == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-5)
    assert exact["all modules"] == pytest.approx(sum(alone) / 4, rel=1e-5)
    keys = {(row["features"], row["m"]) for row in rows["enla"]}
    assert keys == {("module 1", 128), ("module 2", 128), ("all modules", 2), ("all modules", 128)}


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most figures are empty, to save time."""
    for name in ("_grid", "_modules_figure"):
        monkeypatch.setattr(
            f"harness.reporting.figures.approximation.{name}", lambda *_, **__: new_figure()
        )


@pytest.mark.usefixtures("few_figures")
def test_the_command_leaves_record_csv_and_figures(
    cli: Cli, tmp_path: Path, image_folder: Path, weights: Callable[..., Path]
) -> None:
    words = ("--weights", weights("enlca", m=4), "--data", image_folder, "--results", tmp_path)
    printed = cli(TINY, *words).out
    (record,) = load_records(tmp_path, Approximation)
    assert str(image_folder) not in json.dumps(untyped(record))
    assert record.settings.network.name == "enlca-1a2b"
    assert record.settings.m == [2, 16, 128]
    assert {row["k"] for row in record.enla} == {1.0, 2.0, 6.0}
    assert {row["n"] for row in record.enla} == {36, 64}
    modules = {f"module {i}" for i in range(1, 6)}
    assert {row["features"] for row in record.enla} == {"all modules", *modules}

    (reference,) = (
        row
        for row in record.enla
        if (row["features"], row["n"], row["k"], row["m"]) == ("all modules", 64, 6.0, 128)
    )
    assert f"{reference['output_error']:.1%} ± {reference['output_error_std']:.1%}" in printed
    assert "ENLA, trained network (mean over modules), k = 6, m = 128:" in printed
    names = ("error", "variance", "positions", "output", "nlsa", "modules", "psnr")
    stem = f"approximation-{record.id}"
    expected = {f"{stem}-{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == expected | {f"{stem}.csv"}
    with (tmp_path / "figures" / f"{stem}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(getattr(record, p)) for p in ("exact", "enla", "nlsa", "network"))
    assert {row["part"] for row in rows} == {"exact", "enla", "nlsa", "network"}
    assert any(row["output_error"] == f"{reference['output_error']:.10g}" for row in rows)

    # From the record alone all is as it was.
    figures = tmp_path / "figures"
    before = {p: p.read_bytes() for p in figures.iterdir()}
    for p in before:
        p.unlink()
    cli("approximation --from-records", "--results", tmp_path)
    assert {p: p.read_bytes() for p in figures.iterdir()} == before


@pytest.mark.slow
@pytest.mark.data
def test_every_figure_is_drawn(
    cli: Cli, tmp_path: Path, sr_data: Path, weights: Callable[..., Path]
) -> None:
    words = ("--weights", weights("enlca"), "--data", sr_data, "--results", tmp_path)
    cli("approximation --synthetic --images 1 --draws 2 --test-sets Set5", *words)
    figures = [p for p in (tmp_path / "figures").iterdir() if p.suffix != ".csv"]
    sizes = {p.name.rpartition("-")[2]: p.stat().st_size for p in figures}
    assert len(sizes) == 14
    assert min(sizes.values()) > 5000


def test_a_network_and_synthetic_features_share_a_record(
    tmp_path: Path, image_folder: Path, weights: Callable[..., Path]
) -> None:
    trained = load_weights(weights("enla", m=4))
    sets = [find_data(image_folder).test_set("Tiny", 4)]
    sweep = Sweep(m=(2, 128), k=(2.0, 6.0), draws=2, eps=1.0)

    def measured(sweep: Sweep) -> Approximation:
        return study(sweep, (6,), trained, sets, data="images", synthetic=True, command="made up")

    record = measured(sweep)
    names = ["module 1", "all modules", *(f"module {i}" for i in range(2, 6))]
    features = [row["features"] for row in record.exact if row["k"] == 2]
    assert features == [*names, "Gaussian", "clustered"]
    network = record.settings.network
    assert network is not None
    assert (network.images, network.data, network.test_sets) == (2, "images", ["Tiny"])
    assert (record.settings.synthetic, record.settings.eps) == (2, 1e-4)  # the network's own
    save_record(tmp_path, record)
    assert load_record(tmp_path, Approximation, record.id) == record
    # The same again gives the same record; another seed another.
    assert measured(sweep).id == record.id
    assert measured(replace(sweep, seed=1)).enla != record.enla


def test_an_nlsa_network_is_measured_for_nlsa_alone(
    cli: Cli, tmp_path: Path, image_folder: Path, weights: Callable[..., Path]
) -> None:
    path = weights("nlsa", chunk_size=4)
    words = ("--weights", path, "--data", image_folder, "--results", tmp_path)
    assert "ENLA" not in cli(f"{TINY} --threads 1", *words).out
    (record,) = load_records(tmp_path, Approximation)
    assert not record.enla + record.exact + record.network
    suffixes = sorted(p.suffix for p in (tmp_path / "figures").iterdir())
    assert suffixes == [".csv", ".pdf", ".png"]


def test_the_summary_says_what_the_numbers_say() -> None:
    record = study(Sweep(m=(128,), k=(6.0,), queries=16, draws=3), (8,), images=1, synthetic=True)
    row = next(r for r in record.enla if r["features"] == "Gaussian")
    row |= {"output_error": 0.5, "variance_closed": 2.0, "variance_independent": 1.0}
    exact = next(r for r in record.exact if r["features"] == "Gaussian")
    for distance, words in ((0.6, "; nearer than the plain mean, at 60.0%"), (0.4, "no nearer")):
        exact["mean_distance"] = distance
        text = "\n".join(statements(record)).partition("NLSA")[0]
        assert words in text
        assert "rare large values" not in text
    row["variance_closed"] = 20.0
    assert "rare large values" in "\n".join(statements(record)).partition("NLSA")[0]
    assert set(figures(record)) == {"error", "variance", "positions", "output", "nlsa"}
    assert table(record).count("\n") == 1 + len(record.exact + record.enla + record.nlsa)


@pytest.mark.parametrize(
    ("name", "data", "words", "message"),
    [
        ("nla", "whole", "", "nla-1a2b holds NLA, which has no random features and no buckets"),
        ("nlsa", "whole", "--synthetic", "--synthetic needs a network of ENLA modules"),
        ("enla", "whole", "", "LR image e0 of Tiny is 15x12, smaller than a crop of 16"),
        ("enla", "no-tests", "", "has no test sets"),
    ],
)
def test_networks_that_cannot_be_measured_are_refused(
    name: str,
    data: str,
    words: str,
    message: str,
    cli: Cli,
    tmp_path: Path,
    image_folder: Path,
    weights: Callable[..., Path],
) -> None:
    (tmp_path / "whole").symlink_to(image_folder)
    (tmp_path / "no-tests").mkdir()
    (tmp_path / "no-tests" / "train").symlink_to(image_folder / "train")
    places = ("--data", tmp_path / data, "--results", tmp_path / "results")
    line = f"approximation {words} --weights"
    assert message in cli.refused(line, weights(name), *places)
    assert not (tmp_path / "results").exists()

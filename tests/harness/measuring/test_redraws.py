"""Redraws change the draws and nothing else, and are reported with their spread."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.sources import find_data
from harness.measuring.redraws import measure, redrawn
from harness.network.weights import Architecture, TrainedNetwork, save_weights
from harness.records.shapes import Redraw
from harness.records.store import load_records, save_record
from harness.reporting.tables.all import write_tables
from harness.reporting.tables.redraws import redraw_table
from tests.harness.conftest import Cli, write_image, write_images


def trained(name: str, **options: object) -> TrainedNetwork:
    """A network of random weights in which attention weighs much."""
    options = options if name == "none" else {"res_scale": 1.0, **options}
    architecture = Architecture(Variant(name, options), NetworkConfig(4, 8), 4)
    return TrainedNetwork(f"some-{name}", architecture, architecture.build().eval())


def output(network: torch.nn.Module) -> torch.Tensor:
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(x)


@pytest.mark.parametrize(
    ("name", "options"),
    [("enlca", {"m": 4}), ("enla", {"m": 4}), ("nlsa", {"chunk_size": 16, "rounds": 1})],
)
def test_a_redraw_changes_the_output_and_is_taken_back(name: str, options: dict[str, int]) -> None:
    network = trained(name, **options).network
    before, state = output(network), {k: v.clone() for k, v in network.state_dict().items()}
    outputs = []
    for draw in (1, 2, 1):
        with redrawn(network, draw):
            outputs.append(output(network))
    one, two, again = outputs
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert not torch.equal(one, before)
    assert torch.equal(output(network), before)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_every_module_has_draws_of_its_own_and_m_of_the_asked_number() -> None:
    network = trained("enlca", m=4).network
    with redrawn(network, 1, 6):
        drawn = [module.projection for module in network.attention_modules]
        assert {tuple(p.shape) for p in drawn} == {(6, 2)}
        assert len({tuple(p.flatten().tolist()) for p in drawn}) == len(drawn)


def test_draw_zero_is_the_network_as_it_is_trained(image_folder: Path) -> None:
    network, sets = trained("enlca", m=4), [find_data(image_folder).test_set("Tiny", 4)]
    rows = measure(network, sets, draws=2, m=(2, 4))
    assert [(row.m, row.draw) for row in rows] == [(4, 0), (4, 1), (4, 2), (2, 1), (2, 2)]
    alone = measure(network, sets, draws=1)
    assert alone == rows[:2]
    assert len({row.psnr for row in rows}) == len(rows)


def saved(network: TrainedNetwork, folder: Path) -> Path:
    path = folder / f"{network.name}.safetensors"
    save_weights(path, network.network, network.architecture, network.name)
    return path


def test_records_and_table(cli: Cli, tmp_path: Path, image_folder: Path) -> None:
    networks = trained("enlca", m=4), trained("nlsa", chunk_size=16, rounds=1)
    paths = [saved(network, tmp_path) for network in networks]
    words = ("--data", image_folder, "--results", tmp_path, "--draws", 3, "--runs", *paths)
    assert "already measured" not in cli("redraws", *words).out
    assert cli("redraws", *words).out.count("already measured") == 2
    records = load_records(tmp_path, Redraw)
    assert len(records) == 2
    table = redraw_table(records)
    for row, record in zip(table.data, sorted(records, key=lambda r: r.created), strict=True):
        trained_psnr, *values = (r.psnr for r in record.rows)
        assert row["psnr_db_trained_draw"] == trained_psnr
        assert row["psnr_db_redrawn_mean"] == pytest.approx(statistics.fmean(values))
        assert row["psnr_db_redrawn_std"] == pytest.approx(statistics.stdev(values))
        assert row["draws"] == 3
    assert "redraws" in {t.name for t, _ in write_tables(tmp_path)}


def test_changed_images_are_measured_again(cli: Cli, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    path = saved(trained("nlsa", chunk_size=16, rounds=1), tmp_path)
    words = ("--data", folder, "--results", tmp_path, "--draws", 1, "--runs", path)
    cli("redraws", *words)
    (before,) = load_records(tmp_path, Redraw)
    write_image(folder / "Tiny" / "HR" / "e0.png", 48, 60, seed=99)
    assert "the test images have changed, measuring again" in cli("redraws", *words).out
    (after,) = load_records(tmp_path, Redraw)
    assert after.id == before.id
    assert after.rows[0].psnr != before.rows[0].psnr
    # Records of older versions hold no digest: nothing tells that they are of other images.
    save_record(tmp_path, replace(before, images={}), replace=True)
    assert "already measured" in cli("redraws", *words).out


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("none", "", "no random projection or hashing to redraw"),
        ("nlsa", "--m 8", "--m applies to ENLA and ENLCA"),
        ("enlca", "--m 0", "--m must be at least 1"),
        ("enlca", "--draws 0", "--draws must be at least 1"),
        ("enlca", "--tile 2", "--tile must be at least 16"),
    ],
)
def test_mistakes_are_told_in_a_line(
    name: str, words: str, message: str, cli: Cli, tmp_path: Path, image_folder: Path
) -> None:
    places = ("--data", image_folder, "--results", tmp_path, "--runs")
    path = saved(trained(name), tmp_path)
    assert message in cli.refused(f"redraws {words}", *places, path)
    assert not (tmp_path / "records").exists()

"""Several processes at one results folder."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from pathlib import Path

import pytest
import torch

from harness.images.sources import find_data
from harness.records.shapes import Cost, Run
from harness.records.store import load_records
from harness.reporting.tables.all import write_tables
from harness.runs import run
from harness.tasks.sr import SuperResolution
from tests.harness.survival import command
from tests.harness.tiny import make_config

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = multiprocessing.get_context("fork")


def run_seeds(images: Path, results: Path, seeds: list[int]) -> None:
    source = find_data(images)
    cache = source.training_images(4)
    for seed in seeds:
        config = make_config("enlca", {"m": 4}, seed=seed, steps=4)
        run.run(
            config, SuperResolution(cache, source), results, torch.device("cpu"), f"seed {seed}"
        )


def build_tables(results: Path) -> int:
    """Build all tables and read them back; the number of records they are from."""
    runs = len(load_records(results, Run))
    if runs:
        for _, paths in write_tables(results):
            assert all(path.read_text(encoding="utf-8").endswith("\n") for path in paths)
    return runs


def test_processes_at_one_folder_while_tables_are_built(image_folder: Path, tmp_path: Path) -> None:
    """Two have the same runs, in another order: each run is trained once."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what it imports, children inherit
    shared, own = [0, 1, 2], [3, 4]
    orders = [shared, shared[::-1], own]
    workers = [CONTEXT.Process(target=run_seeds, args=(image_folder, tmp_path, s)) for s in orders]
    for worker in workers:
        worker.start()
    counts = []
    while any(worker.is_alive() for worker in workers):
        counts.append(build_tables(tmp_path))
        time.sleep(0.05)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert counts == sorted(counts)
    assert build_tables(tmp_path) == 5
    found = {r.config.seed: r.command for r in load_records(tmp_path, Run)}
    assert found == {seed: f"seed {seed}" for seed in range(5)}
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("state-*"))


@pytest.mark.slow
def test_main_jobs_at_one_folder(image_folder: Path, tmp_path: Path) -> None:
    """Six processes, two of them with the same command; all also want the same cost record."""
    values = {"steps": 20, "save_every": 0}
    seeds = [0, 0, 1, 2, 3, 4]
    jobs = [
        subprocess.Popen(
            command(image_folder, tmp_path, seed=seed, **values),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    while any(job.poll() is None for job in jobs):
        build_tables(tmp_path)
        time.sleep(0.3)
    outputs = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), outputs
    told = "".join(error for _, error in outputs[:2])
    waits = "ENLCA-m4 seed 0: already running in process"
    assert any(f"{waits} {job.pid} on" in told for job in jobs[:2])
    assert "seed 0 is finished" in outputs[0][0] + outputs[1][0]
    assert sorted(r.config.seed for r in load_records(tmp_path, Run)) == [0, 1, 2, 3, 4]
    assert len(load_records(tmp_path, Cost)) == 1

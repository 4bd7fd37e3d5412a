"""Two processes of torchrun (gloo, CPU) against one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from harness import distributed, run
from harness.errors import UserError
from harness.records import load_records

pytest.importorskip("accelerate", reason="accelerate is not installed: extra multi-gpu")

# Four epochs of three steps; the contrastive loss sets in after two. Adam divides a gradient by
# its size, noise of rounding too: at a larger rate that alone soon reaches 1e-5.
TINY = ["--blocks", "4", "--channels", "8", "--steps", "12", "--steps-per-epoch", "3"]
TINY += ["--batch", "4", "--patch", "12", "--learning-rate", "1e-4", "--device", "cpu"]
TINY += ["--skip-latency"]


def torchrun(*words: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *command, "-m", "--", "harness.run", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def run_alone(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.run", *map(str, words)])
    run.main()


def runs_in(results: Path) -> dict[str, dict[str, Any]]:
    return {record["id"]: record for record in load_records(results, "run")}


def compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str | Path
) -> list[dict[str, Any]]:
    """Run the words on one process and on two; the records of the two."""
    run_alone(monkeypatch, *words, "--results", tmp_path / "one")
    done = torchrun(*words, "--results", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = runs_in(tmp_path / "one"), runs_in(tmp_path / "two")
    assert one.keys() == two.keys()
    for identifier, record in two.items():
        assert record["training"]["processes"] == 2
        assert record["command"].startswith("torchrun --nproc-per-node=2 -m -- harness.run")
        logs = one[identifier]["training"]["log"], record["training"]["log"]
        assert len(logs[0]) == len(logs[1]) == record["config"]["steps"]
        for expected, found in zip(*logs, strict=True):
            assert found == pytest.approx(expected, abs=1e-5), identifier
        alone, shared = (
            load_file(tmp_path / place / "runs" / identifier / "weights.safetensors")
            for place in ("one", "two")
        )
        for name, value in alone.items():  # projections among them: the redraws are in step
            assert (value - shared[name]).abs().max() < 1e-4, (identifier, name)
    return list(two.values())


def test_two_processes_train_like_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    """Patches, contrastive loss, redraws by epoch and by forward, NLSA's rotations."""
    options = ["--attn", "nlsa", "enlca", "--chunk-size", "16", "--m", "8", "--redraw-every", "2"]
    records = compare(monkeypatch, tmp_path, *options, *TINY, "--data", image_folder)
    logs = {r["variant"]["name"]: r["training"]["log"] for r in records}
    assert max(row[2] for row in logs["enlca"]) > 0
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["scratch", "warm-start"])
def test_every_module_trains_on_two_processes_like_on_one(
    protocol: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    words = ["--attn", "all", *TINY, "--data", image_folder, "--protocol", protocol]
    if protocol == "warm-start":
        words += ["--start-steps", "6", "--seeds", "0", "1"]
    records = compare(monkeypatch, tmp_path, *words)
    assert {"none", "nla", "enlca"} <= {r["variant"]["name"] for r in records}


@pytest.mark.slow
def test_a_saved_state_is_taken_up_by_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    words = ["--attn", "enlca", "--m", "8", *TINY, "--data", image_folder]
    run_alone(monkeypatch, *words, "--results", tmp_path / "whole")

    taken = itertools.count(1)
    step = run.Trainer.train_step

    def stopped(trainer: run.Trainer) -> float:
        if next(taken) > 5:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(run.Trainer, "train_step", stopped)
        with pytest.raises(SystemExit):
            run_alone(patch, *words, "--results", tmp_path / "parts")
    done = torchrun(*words, "--results", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    (whole,) = load_records(tmp_path / "whole", "run")
    (parts,) = load_records(tmp_path / "parts", "run")
    for expected, found in zip(whole["training"]["log"], parts["training"]["log"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_bad_uses_are_told_in_one_line(tmp_path: Path, image_folder: Path) -> None:
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path / "results"]
    done = torchrun(*words, "--batch", "5")
    assert done.returncode
    assert "error: a batch of 5 cannot be shared by 2 processes" in done.stderr
    done = torchrun(*words, "--device", "cuda:1")
    assert done.returncode
    assert "error: --device cuda:1 with torchrun: give auto, cpu or cuda" in done.stderr
    assert not (tmp_path / "results" / "records").exists()


def test_accelerate_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"pip install 'attention-zoo\[multi-gpu\]'"):
        distributed.start("cpu")


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert distributed.start("cpu").type == "cpu"
    assert (distributed.processes(), distributed.is_main()) == (1, True)
    assert distributed.launcher() == "python -m"

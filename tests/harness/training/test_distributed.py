"""Two processes of torchrun (gloo, CPU) against one."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from safetensors.torch import load_file

from harness import run
from harness.base.errors import UserError
from harness.records.shapes import Run
from harness.records.store import load_records
from harness.training import distributed

pytest.importorskip("accelerate", reason="accelerate is not installed: extra multi-gpu")

# Four epochs of three steps; the contrastive loss sets in after two. Adam divides a gradient by
# its size, noise of rounding too: at a larger rate that alone soon reaches 1e-5.
TINY = ["--blocks", "4", "--channels", "8", "--steps", "12", "--steps-per-epoch", "3"]
TINY += ["--batch", "4", "--patch", "12", "--learning-rate", "1e-4", "--device", "cpu"]
TINY += ["--skip-latency"]


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, *command, "-m", "--", "harness.run", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    process = start(*words)
    out, told = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, told)


def run_alone(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.run", *map(str, words)])
    run.main()


def runs_in(results: Path) -> dict[str, Run]:
    return {record.id: record for record in load_records(results, Run)}


def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str | Path) -> list[Run]:
    """Run the words on one process and on two; the records of the two."""
    run_alone(monkeypatch, *words, "--results", tmp_path / "one")
    done = torchrun(*words, "--results", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = runs_in(tmp_path / "one"), runs_in(tmp_path / "two")
    assert one.keys() == two.keys()
    for identifier, record in two.items():
        assert record.training.processes == 2
        assert record.command.startswith("torchrun --nproc-per-node=2 -m -- harness.run")
        logs = one[identifier].training.log, record.training.log
        assert len(logs[0]) == len(logs[1]) == record.config.steps
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
    logs = {r.variant.name: r.training.log for r in records}
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
    assert {"none", "nla", "enlca"} <= {r.variant.name for r in records}


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
        patch.setattr("harness.training.trainer.Trainer.train_step", stopped)
        with pytest.raises(SystemExit):
            run_alone(patch, *words, "--results", tmp_path / "parts")
    done = torchrun(*words, "--results", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    (whole,) = load_records(tmp_path / "whole", Run)
    (parts,) = load_records(tmp_path / "parts", Run)
    for expected, found in zip(whole.training.log, parts.training.log, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "rank", "message"),
    [
        (signal.SIGKILL, 0, "another process of this run has ended; start it again"),
        (signal.SIGKILL, 1, "another process of this run has ended; start it again"),
        (signal.SIGTERM, 1, "stopped by SIGTERM; resume with:\ntorchrun --nproc-per-node=2"),
    ],
)
def test_a_process_that_dies_ends_the_run_and_the_same_command_goes_on(
    signum: signal.Signals, rank: int, message: str, tmp_path: Path, image_folder: Path
) -> None:
    """With two processes again it ends with the bits of an undisturbed one."""
    words = ["--attn", "enlca", "--m", "8", "--redraw-every", "2", *TINY, "--steps", "60"]
    words += ["--save-every", "0", "--data", str(image_folder)]
    done = torchrun(*words, "--results", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    process = start(*words, "--results", tmp_path / "parts")
    while len(list((tmp_path / "parts" / "runs").glob("*/state-*.safetensors"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    ranks = [p for p in psutil.Process(process.pid).children() if p.environ().get("LOCAL_RANK")]
    (victim,) = [p for p in ranks if p.environ()["LOCAL_RANK"] == str(rank)]
    victim.send_signal(signum)
    _, told = process.communicate(timeout=600)
    assert process.returncode
    assert message in told
    assert load_records(tmp_path / "parts", Run) == []
    done = torchrun(*words, "--results", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    (whole,) = load_records(tmp_path / "whole", Run)
    (parts,) = load_records(tmp_path / "parts", Run)
    assert whole.training.log == parts.training.log
    assert whole.quality == parts.quality
    files = [tmp_path / x / "runs" / whole.id / "weights.safetensors" for x in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_bad_uses_are_told_in_one_line(tmp_path: Path, image_folder: Path) -> None:
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path / "results"]
    done = torchrun(*words, "--batch", "5")
    assert done.returncode
    assert "error: a batch of 5 cannot be shared by 2 processes" in done.stderr
    done = torchrun(*words, "--device", "cuda:1")
    assert done.returncode
    assert "error: --device cuda:1 does not work with torchrun" in done.stderr
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

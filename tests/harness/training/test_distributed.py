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

from harness.base.errors import UserError
from harness.records.shapes import Run
from harness.records.store import load_records
from harness.training import distributed
from harness.training.trainer import Trainer
from tests.harness.conftest import Cli

pytest.importorskip("accelerate", reason="accelerate is not installed: extra multi-gpu")

# Four epochs of three steps; the contrastive loss sets in after two. Adam divides a gradient by
# its size, noise of rounding too: at a larger rate that alone soon reaches 1e-5.
TINY = "--blocks 4 --channels 8 --steps 12 --steps-per-epoch 3 --batch 4 --patch 12"
TINY += " --learning-rate 1e-4 --device cpu --skip-latency"


def start(line: str, *words: str | Path) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "--", "harness.run", *line.split(), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )


def torchrun(line: str, *words: str | Path, fails: bool = False) -> str:
    """What a run on two processes prints on stderr."""
    process = start(line, *words)
    _, told = process.communicate(timeout=1200)
    assert bool(process.returncode) == fails, told
    return told


def compare(cli: Cli, tmp_path: Path, line: str, images: Path | None = None) -> list[Run]:
    """Run a line on one process and on two; the records of the two."""
    data = ("--data", images) if images else ()
    cli(f"run {line}", *data, "--results", tmp_path / "one")
    torchrun(line, *data, "--results", tmp_path / "two")
    one, two = ({r.id: r for r in load_records(tmp_path / x, Run)} for x in ("one", "two"))
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
        curves = one[identifier].training.curve, record.training.curve
        assert len(curves[0]) == len(curves[1])
        for expected, found in zip(*curves, strict=True):
            assert found == pytest.approx(expected, abs=1e-3), identifier
        assert one[identifier].scores.keys() == record.scores.keys()
        for name, score in record.scores.items():
            wanted = one[identifier].scores[name]
            assert score.score == pytest.approx(wanted.score, abs=1e-3), (identifier, name)
            assert score.all_references == pytest.approx(wanted.all_references, abs=1e-3)
    return list(two.values())


def test_two_processes_train_like_one(cli: Cli, tmp_path: Path, image_folder: Path) -> None:
    """Patches, contrastive loss, redraws by epoch and by forward, NLSA's rotations."""
    line = f"--attn nlsa enlca --chunk-size 16 --m 8 --redraw-every 2 {TINY}"
    records = compare(cli, tmp_path, line, image_folder)
    logs = {r.variant.name: r.training.log for r in records}
    assert max(row[2] for row in logs["enlca"]) > 0
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["scratch", "warm-start --start-steps 6 --seeds 0 1"])
def test_every_module_trains_on_two_processes_like_on_one(
    protocol: str, cli: Cli, tmp_path: Path, image_folder: Path
) -> None:
    line = f"--attn all {TINY} --protocol {protocol}"
    records = compare(cli, tmp_path, line, image_folder)
    assert {"none", "nla", "enlca"} <= {r.variant.name for r in records}


@pytest.mark.slow
def test_a_synthetic_task_trains_on_two_processes_like_on_one(cli: Cli, tmp_path: Path) -> None:
    """Batches and references are shared, and one process alone makes curve and scores."""
    sizes = "--channels 8 --steps 6 --steps-per-epoch 3 --batch 4 --learning-rate 1e-4"
    line = f"--task recall --attn oracle enlca none --m 8 {sizes} --device cpu"
    records = compare(cli, tmp_path, line)
    assert [record.variant.name for record in records] == ["none", "enlca", "oracle"]
    for record in records:
        assert [row[0] for row in record.training.curve] == [1, 2, 3, 4, 5, 6]
        assert [*record.scores] == ["n6", "n12", "n24"]
        assert record.validation is not None
    told = torchrun(f"{line} --batch 5", "--results", tmp_path / "none", fails=True)
    assert "error: a batch of 5 cannot be shared by 2 processes" in told
    told = torchrun(f"{line} --protocol warm-start", "--results", tmp_path / "none", fails=True)
    assert "error: --protocol applies only to --task sr" in told
    assert not (tmp_path / "none" / "records").exists()


@pytest.mark.slow
def test_a_saved_state_is_taken_up_by_any_number_of_processes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    words = (f"--attn enlca --m 8 {TINY} --data", image_folder, "--results")
    cli(f"run {words[0]}", *words[1:], tmp_path / "whole")

    taken = itertools.count(1)
    step = Trainer.train_step

    def stopped(trainer: Trainer) -> float:
        if next(taken) > 5:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    cli(f"run {words[0]}", *words[1:], tmp_path / "parts", status=130)
    torchrun(*words, tmp_path / "parts")
    (whole,), (parts,) = (load_records(tmp_path / x, Run) for x in ("whole", "parts"))
    for expected, found in zip(whole.training.log, parts.training.log, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "rank", "message"),
    [
        (signal.SIGKILL, 0, "another process of this run ended"),
        (signal.SIGKILL, 1, "another process of this run ended"),
        (signal.SIGTERM, 1, "stopped by SIGTERM; resume with:\ntorchrun --nproc-per-node=2"),
    ],
)
def test_a_process_that_dies_ends_the_run_and_the_same_command_goes_on(
    signum: signal.Signals, rank: int, message: str, tmp_path: Path, image_folder: Path
) -> None:
    """With two processes again it ends with the bits of an undisturbed one."""
    line = f"--attn enlca --m 8 --redraw-every 2 {TINY} --steps 60 --save-every 0 --data"
    words = (line, image_folder, "--results")
    torchrun(*words, tmp_path / "whole")
    process = start(*words, tmp_path / "parts")
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
    torchrun(*words, tmp_path / "parts")
    (whole,), (parts,) = (load_records(tmp_path / x, Run) for x in ("whole", "parts"))
    assert whole.training.log == parts.training.log
    assert whole.quality == parts.quality
    files = [tmp_path / x / "runs" / whole.id / "weights.safetensors" for x in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_bad_uses_are_told_in_one_line(tmp_path: Path, image_folder: Path) -> None:
    for option, message in [
        ("--batch 5", "error: a batch of 5 cannot be shared by 2 processes"),
        ("--device cuda:1", "error: --device cuda:1 does not work with torchrun"),
    ]:
        line = f"--attn none {TINY} {option} --data"
        told = torchrun(line, image_folder, "--results", tmp_path / "results", fails=True)
        assert message in told
    assert not (tmp_path / "results" / "records").exists()


def test_accelerate_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[multi-gpu\]'"):
        distributed.start("cpu")


def test_one_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert distributed.start("cpu").type == "cpu"
    assert (distributed.processes(), distributed.is_main()) == (1, True)
    assert distributed.launcher() == "python -m"

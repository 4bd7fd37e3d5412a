"""Steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.network.weights import Architecture
from harness.runs.options import RunOptions, configure_task
from harness.tasks.recall import Recall
from harness.training import replay
from harness.training.replay import Replayed
from harness.training.trainer import Trainer

VARIANTS = [variant for variant in table_rows("profile") if not variant.options]


class Counter(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for CUDA: a recording is three calls, a replay one. Its length is their number."""
    calls: list[int] = []

    def captured(function: Callable[[], Any], _: torch.device) -> Callable[[], Any]:
        for _trial in range(3):
            function()
        calls.append(1)
        return function

    monkeypatch.setattr(replay, "captured", captured)
    # Nothing here has a GPU's random state.
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork(devices=[]))
    return calls


def test_a_replay_takes_new_inputs_and_trials_leave_no_trace(recorded: list[int]) -> None:
    counter = Counter()

    def function(_: bool, x: Tensor) -> Tensor:
        counter.calls += 1
        return x * 2 + torch.rand(())

    replayed = Replayed(function, counter)
    for value in (1.0, 2.0, 3.0):
        torch.manual_seed(5)
        found = replayed(False, torch.tensor([value]))
        torch.manual_seed(5)
        assert found == 2 * value + torch.rand(())
    assert (len(recorded), counter.calls) == (1, 3)


def test_another_kind_or_shape_is_recorded_anew(recorded: list[int]) -> None:
    replayed = Replayed(lambda twice, x: x.sum() * (1 + twice), Counter())
    assert replayed(False, torch.ones(3)) == 3
    assert replayed(True, torch.ones(3)) == 6
    assert replayed(True, torch.ones(4)) == 8
    assert replayed(True, torch.ones(4) * 2) == 16
    assert len(recorded) == 3


def test_what_cannot_be_recorded_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()

    def function(_: bool, x: Tensor) -> Tensor:
        counter.calls += 1
        return x

    def captured(function: Callable[[], Any], _: torch.device) -> Callable[[], Any]:
        function()
        raise RuntimeError("the function waits\nfor the device")

    monkeypatch.setattr(replay, "captured", captured)
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork(devices=[]))
    replayed = Replayed(function, counter)
    for value in range(3):
        assert replayed(False, torch.tensor(value)) == value
    assert (replayed.failed, counter.calls) == ("the function waits", 3)


def make_trainer(variant: Variant, steps: int = 8) -> Trainer:
    """A short training of ``recall`` on the first CUDA device."""
    task = Recall()
    options = {} if variant.name == "none" else {"res_scale": task.res_scale}
    options = {k: v for k, v in options.items() if k in variant.resolved}
    device = torch.device("cuda", 0)
    run = RunOptions(steps=steps)
    config = configure_task(run, task, Variant.of(variant.name, options), 0, device)
    return Trainer(config, Architecture.of(config).build(0).to(device), task)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_losses_are_those_of_single_launches(variant: Variant) -> None:
    plain, graphs = make_trainer(variant), make_trainer(variant)
    plain._replayed = None
    losses = [(plain.train_step(), graphs.train_step()) for _ in range(8)]
    assert graphs._replayed is not None
    assert graphs._replayed.failed == ""
    for wanted, found in losses:
        assert found == pytest.approx(wanted, rel=1e-5)

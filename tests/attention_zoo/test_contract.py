"""Every registered module keeps to the contract, and every check of it catches its fault."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import Attention, Cost, list_attentions
from attention_zoo.contract import CHECKS, NotApplicable, Subject, judge

#: Every module as it is, and those whose options change what it learns.
SUBJECTS = [
    *(Subject(name) for name in list_attentions()),
    *(Subject(name, {"shared": True}) for name in ("nla", "enlca", "top-k")),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: "-".join([s.name, *s.options]))
def test_modules_keep_to_the_contract(subject: Subject, check: str) -> None:
    try:
        CHECKS[check](subject)
    except NotApplicable as reason:
        pytest.skip(str(reason))


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class ReadsTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grads[0] + grads[0] * ctx.saved_tensors[0]


class Faulty(Attention):
    """``y = x + conv(x)`` with a mean over all positions, and the fault that is asked for."""

    def __init__(self, channels: int, *, fault: str = "") -> None:
        super().__init__(channels, res_scale=1.0)
        self.fault = fault
        self.value = nn.Conv2d(channels, channels, 1)
        self.number = float(torch.rand(()))
        if fault == "unused":
            self.unused = nn.Linear(2, 2)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mean = v.mean((2, 3), keepdim=True).expand_as(v)
        match self.fault:
            case "small maps":
                return torch.nn.functional.avg_pool2d(mean, 2)
            case "batch":
                return mean + v.mean(0)
            case "wrong gradient":
                return WrongGradient.apply(mean)
            case "wrong gradient while training" if self.training:
                return WrongGradient.apply(mean)
            case "saved tensors twice":
                return ReadsTwice.apply(mean)
            case "counts its forwards" if self.training:
                self.number += 1
                return mean * mean.new_tensor(self.number)
            case "kept in a graph":
                self.last = mean * 2
            case "random":
                return mean + torch.randn(())
            case "random while training":
                return mean + self.training * int.from_bytes(os.urandom(8), "big")
            case "hidden state":
                return mean + self.number
            case "strides":
                return mean + v.stride(1)
            case "dtype":
                return mean.float() if v.dtype in (torch.bfloat16, torch.float16) else mean
            case "overflow":
                return mean + v.exp().log()
            case "autocast":
                return mean * (torch.nan if torch.is_autocast_enabled("cpu") else 1)
            case "pairs":
                rows = v.flatten(2)
                return mean + ((rows.mT @ rows).sum(1) * 0).view_as(v[:, :1])
            case "pairs in thirds":
                rows = v.flatten(2)
                parts = [(rows.mT @ part).sum(2) for part in rows.chunk(3, dim=2)]
                return mean + (sum(parts) * 0).view_as(v[:, :1])
        return mean

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + 1 if self.fault == "composition" else y

    def auxiliary_loss(self) -> Tensor:
        return torch.ones(()) if self.fault == "loss" else super().auxiliary_loss()

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        weights = torch.ones_like(q[:, 0]) / q[0, 0].numel()
        return 2 * weights if self.fault == "weights" else weights

    def _check_input(self, x: Tensor) -> None:
        if self.fault != "input":
            super()._check_input(x)

    def cost(self, height: int, width: int) -> Cost:
        projections = height * width * self.channels**2
        core = {"no number": math.nan, "negative": -1.0}.get(self.fault, 0.0)
        return Cost(projections=projections, core=core, executed=int(self.fault == "cost"))


FAULTS = {
    "any size": "small maps",
    "forward is project attend residual": "composition",
    "images are independent": "batch",
    "gradients reach everything": "unused",
    "gradients are derivatives": "wrong gradient",
    "evaluation is deterministic": "random",
    "training is reproducible": "random while training",
    "auxiliary loss is of the last training forward": "loss",
    "state dict holds all": "hidden state",
    "checkpoint changes no gradient": "saved tensors twice",
    "copies after a training step": "kept in a graph",
    "memory format changes nothing": "strides",
    "lower precision is close": "dtype",
    "extreme features stay finite": "overflow",
    "autocast is close": "autocast",
    "cost equals the counter": "cost",
    "no tensor of all pairs": "pairs",
    "correlation is the attention": "weights",
    "bad input is told in a line": "input",
}


# Further faults for the same checks.
MORE_FAULTS = [
    ("checkpoint changes no gradient", "counts its forwards"),
    ("gradients are derivatives", "wrong gradient while training"),
    ("cost equals the counter", "no number"),
    ("cost equals the counter", "negative"),
    ("no tensor of all pairs", "pairs in thirds"),
]


def faulty(fault: str = "") -> Subject:
    return Subject(f"{__name__}:Faulty", {"fault": fault})


def test_every_check_has_a_fault_to_catch() -> None:
    assert list(FAULTS) == list(CHECKS)


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_module_passes(check: str) -> None:
    CHECKS[check](faulty())


@pytest.mark.parametrize(("check", "fault"), [*FAULTS.items(), *MORE_FAULTS])
def test_a_fault_is_caught(check: str, fault: str) -> None:
    verdicts = {v.check: v for v in judge(faulty(fault))}
    assert verdicts[check].passed is False


def test_verdicts_are_lines_whatever_the_module_raises() -> None:
    verdicts = {v.check: v for v in judge(faulty("small maps"))}
    assert list(verdicts) == list(CHECKS)
    assert verdicts["any size"].passed is False
    assert "1x1, batch 1, evaluation: raised RuntimeError: " in verdicts["any size"].detail
    assert verdicts["lower precision is close"].detail.startswith("raised RuntimeError: ")
    assert verdicts["state dict holds all"].passed is False
    assert all("\n" not in v.detail for v in verdicts.values())
    assert {v.passed for v in judge(faulty())} == {True}


def test_what_does_not_apply_is_skipped_with_its_reason() -> None:
    (verdict,) = (v for v in judge(Subject("conv")) if v.check.startswith("correlation"))
    assert verdict.passed is None
    assert "no weights over positions" in verdict.detail

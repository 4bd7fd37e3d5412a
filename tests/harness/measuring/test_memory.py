"""Peak memory: exact on the CPU for allocations of known size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attention_zoo import create_attention
from harness.measuring.memory import peak_memory

CPU = torch.device("cpu")
MB = 1_000_000


def keep() -> Tensor:
    return torch.empty(250, 1000)


def both_at_once() -> Tensor:
    first = keep()
    return torch.cat([first, first])


def one_after_the_other() -> Tensor:
    for _ in range(3):
        keep()
    return torch.empty(10)


@pytest.mark.parametrize(
    ("function", "peak"),
    [
        (lambda: None, 0),
        (lambda: torch.empty(12345, dtype=torch.uint8), 12345),
        (keep, MB),
        (both_at_once, 3 * MB),
        (one_after_the_other, MB),
    ],
)
def test_exact_on_the_cpu(function: Callable[[], object], peak: int) -> None:
    assert peak_memory(function, CPU) == peak


def test_counts_above_the_start() -> None:
    held = torch.empty(10 * MB, dtype=torch.uint8)
    assert peak_memory(lambda: torch.zeros_like(held[:1000]), CPU) == 1000


def test_sees_temporaries_of_naive_attention_and_what_a_backward_keeps() -> None:
    n, c = 500, 8
    q = torch.randn(1, n, c)

    def forward() -> Tensor:
        return torch.softmax(q @ q.mT, -1) @ q

    # Scores and weights at once; the output comes after the scores have gone.
    assert peak_memory(forward, CPU) == 2 * 4 * n * n
    q.requires_grad_()
    peak = peak_memory(lambda: torch.autograd.grad(forward().sum(), q), CPU)
    assert peak is not None
    assert peak >= 2 * 4 * n * n + 2 * 4 * n * c


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_nla_keeps_no_n_by_n_tensor(memory_format: torch.memory_format) -> None:
    n = 50 * 50
    attention = create_attention("nla", 16, reduction=1)
    q, k, v = (torch.randn(1, 16, 50, 50).to(memory_format=memory_format) for _ in range(3))
    with torch.no_grad():
        peak = peak_memory(lambda: attention.attend(q, k, v), CPU)
    assert peak is not None
    assert peak < 4 * n * n / 4


def test_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    peak_memory(keep, CPU)
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_function_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, CPU)
    assert peak_memory(keep, CPU) == MB


def test_unknown_on_mps() -> None:
    assert peak_memory(keep, torch.device("mps")) is None


def test_cuda_reads_the_allocator_around_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    allocated = {"now": 700, "peak": 5000}

    def reset(device: torch.device) -> None:
        log.append("reset")
        allocated["peak"] = allocated["now"]

    def function() -> None:
        log.append("call")
        allocated["peak"] = 1000

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocated["peak"])
    assert peak_memory(function, torch.device("cuda", 0)) == 300
    assert log == ["wait", "reset", "call", "wait"]


@pytest.mark.cuda
def test_exact_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0)
    size = 8 * 2**20  # whole blocks of the caching allocator
    held = torch.empty(size, dtype=torch.uint8, device=device)
    assert peak_memory(lambda: torch.cat([torch.empty_like(held)] * 2), device) == 3 * size

"""Matrix products on the CPU, by the faster of the two libraries that torch has.

torch's own go to MKL. On AMD processors of family 26 (Zen 5) that reaches less than half of the
rate of oneDNN: 215 of 451 GFLOP/s with two threads (``python -m harness.speed --threads 2``;
records of 27 November 2026 in ``results/records/speed``). oneDNN's products have no public name in
torch; the operator used here is the one that torch's compiler calls. On other processors, and for
what that operator does not do, the products are torch's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _python_dispatch

#: MACs of one matrix that are worth a call of oneDNN's, which costs more than one of MKL's.
FEW_MACS = 2**21
_CPU_INFO = Path("/proc/cpuinfo")
# The first with a whole AVX-512 unit; those before do it in two halves, no faster than AVX2.
_AMD_FAMILY = 26


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b``, outside of autograd.

    Args:
        a: ``[B, M, K]``.
        b: ``[B, K, N]``.
        out: receives the result. oneDNN's is copied there: give none where it need not be there.

    Returns:
        ``[B, M, N]``, in ``out`` if that is given.
    """
    if not by_onednn(a, b):
        return torch.bmm(a, b, out=out)
    return _onednn(a, b) if out is None else out.copy_(_onednn(a, b))


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total += a @ b``, outside of autograd.

    Args:
        total: ``[B, M, N]``.
        a: ``[B, M, K]``.
        b: ``[B, K, N]``.

    Returns:
        ``total``.
    """
    if not by_onednn(a, b):
        # Not in place by name: torch's counter of operations does not know that.
        return torch.baddbmm(total, a, b, out=total)
    return total.add_(_onednn(a, b))


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether ``a @ b`` is oneDNN's: one large product in float32, on a processor for that.

    Args:
        a: ``[B, M, K]``.
        b: ``[B, K, N]``.
    """
    batch, rows, inner = a.shape
    return (
        batch == 1
        and rows * inner * b.shape[2] >= FEW_MACS
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and prefers_onednn()
        # Counters, tracers and fake tensors know torch's own operations.
        and _python_dispatch._get_current_dispatch_mode() is None
        and not torch.jit.is_tracing()
    )


@cache
def prefers_onednn() -> bool:
    """Whether torch has both libraries, and the processor is one that MKL is slow on."""
    return (
        torch.backends.mkl.is_available()
        and has_onednn()
        and "AVX512" in torch.backends.cpu.get_cpu_capability()
        and _amd_family() >= _AMD_FAMILY
    )


def has_onednn() -> bool:
    """Whether torch has the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    a, b = a[0], b[0]
    # It is slow where the rows of x are not each in one piece.
    result = _linear(a, b.mT) if a.stride(1) == 1 else _linear(b.mT, a).mT
    return result.unsqueeze(0)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``. Where the weight has gaps, oneDNN would take its reference code: a copy."""
    if not weight.is_contiguous() and not weight.mT.is_contiguous():
        weight = weight.contiguous() if weight.stride(1) == 1 else weight.mT.contiguous().mT
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def _amd_family() -> int:
    """As in Linux's description of the first processor; 0 if it is not AMD's or cannot be read."""
    try:
        lines = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return 0
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    amd = fields.get("vendor_id") == "AuthenticAMD"
    family = fields.get("cpu family", "")
    return int(family) if amd and family.isdecimal() else 0

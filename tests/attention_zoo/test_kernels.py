"""The Triton kernels against the implementations that the oracles check.

They run on a CUDA device, or in Triton's interpreter (``TRITON_INTERPRET=1``), in which the last
test runs this file. The interpreter does not tell whether a kernel compiles: another test does.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.cores.triton import block, precision, why_not_triton
from attention_zoo.enla import orthogonal_gaussian, random_feature_attention
from attention_zoo.implementations import use_implementation, watch_implementations
from attention_zoo.nlsa import sparse_attention
from tests.reference.cases import FORMATS, assert_agrees, random_qkv

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

running = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE.type == "cpu" and not INTERPRETED,
        reason="no CUDA device; test_in_the_interpreter runs this on the CPU",
    ),
]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def on_device(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.detach().to(DEVICE).requires_grad_() for t in tensors]


def assert_implementations_agree(
    core: str, function: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    """``triton`` equals ``reference`` in float64, in value and gradients."""

    def run(name: str) -> Callable[..., Tensor]:
        def chosen(*args: Tensor) -> Tensor:
            with use_implementation(f"{core}={name}"), watch_implementations() as seen:
                out = function(*args)
            assert seen == {core: name}
            return out

        return chosen

    assert_agrees(run("triton"), run("reference"), inputs)


# (size, c, c_out, m, eps, amplification): no width or N is a multiple of a block, but for one.
ENLA_CASES: list[tuple[tuple[int, int], int, int, int, float, float | None]] = [
    ((1, 1), 4, 5, 2, 1e-4, 6.0),
    ((5, 7), 3, 33, 6, 1e-2, 3.0),
    ((9, 17), 20, 70, 130, 1e-4, 6.0),
    ((8, 16), 64, 64, 256, 0.0, 60.0),
    ((13, 11), 6, 5, 40, 0.0, None),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "c", "c_out", "m", "eps", "k"), ENLA_CASES)
class TestEnla:
    pytestmark = running

    def test_equals_the_reference(
        self,
        size: tuple[int, int],
        c: int,
        c_out: int,
        m: int,
        eps: float,
        k: float | None,
        dtype: torch.dtype,
    ) -> None:
        memory_format = FORMATS[m % 4 // 2]
        qkv = random_qkv(m, size, c=c, c_out=c_out, dtype=dtype, memory_format=memory_format)
        generator = torch.Generator().manual_seed(m)
        f = orthogonal_gaussian(m, c, generator).to(DEVICE, dtype)

        def attend(*maps: Tensor) -> Tensor:
            return random_feature_attention(*maps, f.to(maps[0].dtype), eps, k)

        assert_implementations_agree("enla", attend, on_device(qkv))

        def attend_mapped(*maps: Tensor) -> Tensor:
            *qkv, weight, bias = maps
            return random_feature_attention(*qkv, f.to(weight.dtype), eps, k, (weight, bias))

        weight = torch.randn(c_out + 3, c_out, generator=generator) / c_out**0.5
        value_map = weight.to(dtype), torch.randn(c_out + 3, generator=generator).to(dtype)
        assert_implementations_agree("enla", attend_mapped, on_device((*qkv, *value_map)))


# (size, c, c_out, chunk size, rounds): N below S, a padding larger than N, one chunk, many.
NLSA_CASES = [
    ((1, 1), 4, 5, 144, 1),
    ((5, 7), 3, 33, 30, 2),
    ((5, 7), 3, 5, 100, 2),
    ((5, 9), 20, 70, 9, 3),
    ((12, 12), 64, 64, 72, 1),
]


CASES = [*ENLA_CASES, *NLSA_CASES]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "c", "c_out", "chunk_size", "rounds"), NLSA_CASES)
class TestNlsa:
    pytestmark = running

    def test_equals_the_reference(
        self,
        size: tuple[int, int],
        c: int,
        c_out: int,
        chunk_size: int,
        rounds: int,
        dtype: torch.dtype,
    ) -> None:
        memory_format = FORMATS[rounds % 2]
        qkv = random_qkv(c, size, c=c, c_out=c_out, dtype=dtype, memory_format=memory_format)
        generator = torch.Generator().manual_seed(rounds)
        rotations = torch.randn(rounds, c, 2, generator=generator).to(DEVICE)

        def attend(*maps: Tensor) -> Tensor:
            return sparse_attention(*maps, rotations, chunk_size)

        assert_implementations_agree("nlsa", attend, on_device(qkv))


@pytest.mark.parametrize("far", ["rows", "channels"])
class TestLargeOffsets:
    """Values whose rows, or channels, lie so far apart as in a huge map: the last at 2^31."""

    pytestmark = running

    @pytest.mark.parametrize("core", ["enla", "nlsa"])
    def test_beyond_31_bits(self, core: str, far: str) -> None:
        q, k, v = (t.detach() for t in on_device(random_qkv(0, (1, 5), batch=1)))
        q, k, v = q.float(), k.float(), v.half()
        # Pages that are not touched take no memory on the CPU.
        memory = torch.empty(2**31 + 8, dtype=v.dtype, device=DEVICE)
        strides = (0, 1, 0, 2**29) if far == "rows" else (0, 2**29, 0, 1)
        distant = memory.as_strided(v.shape, strides).copy_(v)

        def attend(values: Tensor) -> Tensor:
            if core == "enla":
                f = orthogonal_gaussian(4, 4, torch.Generator().manual_seed(0)).to(DEVICE)
                return random_feature_attention(q, k, values, f, 1e-4, 6.0)
            return sparse_attention(q, k, values, torch.ones(1, 4, 2, device=DEVICE), 3)

        with use_implementation(f"{core}=triton"), torch.no_grad():
            torch.testing.assert_close(attend(distant), attend(v))


@pytest.mark.skipif(INTERPRETED or DEVICE.type == "cuda", reason="needs a machine without CUDA")
@needs_triton
def test_without_cuda_the_reason_is_told() -> None:
    f = torch.randn(3, 4)
    with (
        use_implementation("enla=triton"),
        pytest.raises(
            AttentionError,
            match="'triton' of enla cannot run here: Triton's kernels need a CUDA device, not cpu",
        ),
    ):
        random_feature_attention(*random_qkv(0, (2, 2), dtype=torch.float32), f)


def test_without_triton_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_zoo.cores.triton.find_spec", lambda name: None)
    maps = [torch.zeros(1, 1, 1, 1)] * 3
    assert why_not_triton(*maps) == "Triton is not installed (pip install triton)"


@pytest.mark.parametrize(
    ("c", "dtype", "message"),
    [(65, torch.float32, "65 channels, more than 64"), (4, torch.float64, "do not take float64")],
)
@needs_triton
def test_what_the_kernels_do_not_take_is_told(
    monkeypatch: pytest.MonkeyPatch, c: int, dtype: torch.dtype, message: str
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    qkv = random_qkv(0, (2, 2), c=c, dtype=dtype)
    with use_implementation("enla=triton"), pytest.raises(AttentionError, match=message):
        random_feature_attention(*qkv, torch.randn(3, c))


@pytest.mark.parametrize(
    ("width", "most", "expected"), [(1, 64, 16), (16, 64, 16), (17, 64, 32), (200, 64, 64)]
)
def test_blocks_are_powers_of_two(width: int, most: int, expected: int) -> None:
    assert block(width, most) == expected


def test_precision_follows_dtype_and_tf32() -> None:
    assert precision(torch.zeros(1)) == ("tf32x3", "tf32x3")
    assert precision(torch.zeros(1, dtype=torch.bfloat16)) == ("tf32x3", "tf32")
    torch.set_float32_matmul_precision("high")
    try:
        assert precision(torch.zeros(1)) == ("tf32", "tf32")
    finally:
        torch.set_float32_matmul_precision("highest")


_POINTERS_OF_FLOAT32 = ("f", "of_rounds", "lse", "sums", "shifts", "context", "shift", "normaliser")
_ENLA = {
    "NORMALISED": True,
    "LEAST_NORM": 5e-5,
    "HALF_K": 4.3,
    "LOG2_EPS": -9.0,
    "BN": 64,
    "BC": 64,
    "BM": 32,
    "BO": 64,
}


_NLSA = {"BQ": 64, "BK": 32, "BC": 64, "BO": 64}


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("enla._summarise", _ENLA | {"BN": 32, "BM": 64}),
        ("enla._combine", {"BM": 64, "BO": 64}),
        ("enla._attend", _ENLA),
        ("nlsa._attend", _NLSA),
        ("nlsa._merge", {"BN": 64, "BO": 64}),
    ],
)
def test_compiles_without_a_device(
    kernel: str, constants: dict[str, Any], dtype: str, capability: int
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    file, name = kernel.split(".")
    function = getattr(importlib.import_module(f"attention_zoo.cores.triton.{file}"), name)
    names = function.arg_names
    three, one = ("tf32x3", "tf32x3") if dtype == "fp32" else ("tf32x3", "tf32")
    products = {"EXPONENTS": three, "SCORES": three, "VALUES": one}
    constants = constants | {n: p for n, p in products.items() if n in names}

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in _POINTERS_OF_FLOAT32 or (file, argument) == ("nlsa", "k"):
            return "*fp32"
        if argument == "order":
            return "*i64"
        return f"*{dtype}" if argument in ("q", "k", "v", "out") else "i32"

    source = ASTSource(
        fn=function,
        signature={n: kind(n) for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
    )
    options = {"num_warps": 4, "num_stages": 2}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 99 * 1024  # what a block of any CUDA device may have


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="it is this run")
@pytest.mark.parametrize(
    ("tests", "count"),
    [
        ("float32 or Large", len(CASES) + 4),
        pytest.param("float", len(CASES) * len(DTYPES), marks=pytest.mark.slow),
    ],
)
def test_in_the_interpreter(tests: str, count: int) -> None:
    chosen = ("-m", "cuda", "-k", tests, __file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *chosen],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout

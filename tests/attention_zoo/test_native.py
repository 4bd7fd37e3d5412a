"""The kernels in C: against the oracles in float64, and what happens where they cannot run."""

from __future__ import annotations

import copy
import multiprocessing
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import AttentionError, create_attention
from attention_zoo.cores import native, nlsa_native, projections_native
from attention_zoo.cores.largest_native import attend_rows
from attention_zoo.cores.softmax_rows import softmax_attention_native
from attention_zoo.criss_cross import criss_cross_attention
from attention_zoo.enla import orthogonal_gaussian, random_feature_attention
from attention_zoo.enlca import contrast_groups, contrastive_loss
from attention_zoo.implementations import use_implementation, watch_implementations
from attention_zoo.layers import call_together
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import hash_codes, sparse_attention
from attention_zoo.rivals.top_k import TopKAttention
from tests.reference import softmax as oracle
from tests.reference.cases import FORMATS, assert_agrees, assert_close, by_threads, random_qkv

_REASON = native.why_not_native(torch.zeros(1))
needs_compiler = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


def _core(core: str, c: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(c)
    projection = orthogonal_gaussian(37, c, generator)
    rotations = torch.randn(3, c, 3, generator=generator, dtype=torch.float32)
    functions: dict[str, Callable[..., Tensor]] = {
        "nla": non_local_attention,
        "criss-cross": criss_cross_attention,
        # Codes of float64 are those of float32 here, the rotations being the same.
        "nlsa": lambda q, k, v: sparse_attention(q, k, v, rotations.to(q.dtype), 20),
        "enla": lambda q, k, v: random_feature_attention(
            q, k, v, projection.to(torch.promote_types(q.dtype, torch.float32)), 1e-4, 6.0
        ),
    }
    return functions[core]


def _by(core: str, name: str, c: int) -> Callable[..., Tensor]:
    def function(*inputs: Tensor) -> Tensor:
        with use_implementation(f"{core}={name}"), watch_implementations() as seen:
            out = _core(core, c)(*inputs)
        assert seen == {core: name}
        return out

    return function


@needs_compiler
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("c", "c_out"), [(16, 16), (5, 33), (3, 1)])
@pytest.mark.parametrize("size", [(1, 1), (12, 12), (5, 29), (29, 11), (1, 300)])
@pytest.mark.parametrize("core", ["nla", "criss-cross", "nlsa", "enla"])
def test_agrees_with_the_reference_in_float64(
    core: str, size: tuple[int, int], c: int, c_out: int, memory_format: torch.memory_format
) -> None:
    """Whole and broken tiles, of keys too; one image for two threads, and several."""
    inputs = random_qkv(7, size, c=c, c_out=c_out, dtype=torch.float32, memory_format=memory_format)
    assert_agrees(_by(core, "native", c), _by(core, "reference", c), inputs)


@needs_compiler
@pytest.mark.parametrize("core", ["nla", "criss-cross", "nlsa", "enla"])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_number_of_threads_gives_the_same(core: str, batch: int) -> None:
    """Of enough positions that threads share them; sums are taken in another order at most."""
    inputs = random_qkv(3, (40, 30), c=6, c_out=7, batch=batch, dtype=torch.float32)
    found = by_threads((1, 2, 3), _by(core, "native", 6), inputs)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_close(two, one, 1e-5)


@needs_compiler
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 320),
    keys=st.integers(1, 320),
    c=st.integers(1, 40),
    c_out=st.integers(1, 40),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_any_shape_of_rows(
    batch: int, queries: int, keys: int, c: int, c_out: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(queries)
    shapes = ((batch, queries, c), (batch, keys, c), (batch, keys, c_out))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = [(q * scale / c**0.5).requires_grad_(), k.requires_grad_(), v.requires_grad_()]
    assert_agrees(
        softmax_attention_native,
        lambda q, k, v: torch.softmax(q @ k.mT, dim=-1) @ v,
        inputs,
        tolerance=(2e-5 * max(1.0, scale), 1e-4 * max(1.0, scale)),
    )


@needs_compiler
def test_later_keys_may_score_far_above_earlier_ones() -> None:
    """Sums are shrunk where a later tile of keys lies more than 2^40 above the first."""
    q = torch.ones(1, 5, 1)
    k = torch.linspace(-300, 300, 700).view(1, -1, 1)
    v = torch.arange(700.0).sin().view(1, -1, 1)
    inputs = [t.requires_grad_() for t in (q, k, v)]
    assert_agrees(
        softmax_attention_native,
        lambda q, k, v: oracle.softmax_attention_lse(q, k, v)[0],
        inputs,
        tolerance=(1e-5, 1e-3),
    )


@needs_compiler
@pytest.mark.parametrize("core", ["nla", "criss-cross", "nlsa", "enla"])
def test_torch_s_defaults_change_nothing(core: str) -> None:
    """The kernels read and write float32, whatever new tensors are by default."""
    inputs = random_qkv(4, (9, 20), c=6, c_out=7, dtype=torch.float32)

    def run() -> list[Tensor]:
        out = _by(core, "native", 6)(*inputs)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        found = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, two)


@needs_compiler
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("core", ["nla", "criss-cross", "nlsa", "enla"])
def test_what_is_no_number_stays_none(core: str, place: int) -> None:
    inputs = [t.detach() for t in random_qkv(1, (6, 30), c=4, c_out=5, dtype=torch.float32)]
    inputs[place][0, 0, 2, 3] = torch.nan
    assert _by(core, "native", 4)(*inputs)[0, :, 2, 3].isnan().any()


@needs_compiler
@pytest.mark.parametrize(("n", "c", "half"), [(1, 1, 1), (145, 5, 3), (1000, 16, 35)])
def test_hash_codes_are_those_of_torch(n: int, c: int, half: int) -> None:
    generator = torch.Generator().manual_seed(n)
    # Halves have exact products: no rounding can make one code of two that are as good.
    x = torch.randint(-4, 5, (2, n, c), generator=generator) / 2
    rotations = torch.randint(-8, 9, (4, c, half), generator=generator) / 4
    assert torch.equal(nlsa_native.hash_codes(x, rotations), hash_codes(x, rotations))


@needs_compiler
def test_operations_that_are_counted_are_torch_s() -> None:
    inputs = random_qkv(0, (6, 6), dtype=torch.float32)
    with FlopCounterMode(display=False) as counter, watch_implementations() as seen:
        _core("enla", 4)(*inputs)
    assert counter.get_total_flops() > 0
    assert seen == {"enla": "tiled"}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder; what is found in it is forgotten afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._library.cache_clear()
    yield tmp_path / "cache" / "attention-zoo"
    native._library.cache_clear()


@needs_compiler
def test_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.why_not_native(torch.zeros(1)) is None
    (library,) = cache.iterdir()
    native._library.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.why_not_native(torch.zeros(1)) is None
    assert list(cache.iterdir()) == [library]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert native.why_not_native(torch.zeros(1)) is None
    assert not any(temporary.iterdir())
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_torch_s_operations_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    inputs = random_qkv(0, (3, 4), dtype=torch.float32)
    for core in ("nla", "criss-cross", "nlsa", "enla"):
        with watch_implementations() as seen:
            _core(core, 4)(*inputs)
        assert seen[core] in ("sdpa", "tiled")
        with pytest.raises(AttentionError, match=r"'native' of .* no C compiler was found"):
            _by(core, "native", 4)(*inputs)


def test_a_compiler_that_fails_is_told_in_a_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\necho 'a warning' >&2\necho 'x.c:1: error: no good' >&2\nexit 1\n"
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    reason = native.why_not_native(torch.zeros(1))
    assert reason == "the kernels in C could not be compiled: x.c:1: error: no good"
    assert not any(cache.iterdir())
    with pytest.raises(RuntimeError, match="no good"):
        native.library()


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (torch.zeros(1, dtype=torch.float64), "do not take float64"),
        (torch.zeros(1, device="meta"), "for the CPU, not for meta"),
    ],
)
def test_says_what_it_does_not_take(like: Tensor, reason: str) -> None:
    assert reason in str(native.why_not_native(like))


@needs_compiler
def test_half_precision_is_summed_in_float32() -> None:
    for dtype, core in product((torch.bfloat16, torch.float16), ("nla", "criss-cross", "enla")):
        inputs = random_qkv(2, (9, 20), c=8, c_out=9, dtype=dtype)
        exact = [t.detach().float() for t in inputs]
        out = _by(core, "native", 8)(*inputs)
        assert out.dtype == dtype
        assert torch.equal(out, _by(core, "native", 8)(*exact).to(dtype))


def _contrast(q: Tensor, k: Tensor, name: str, **options: float) -> list[Tensor]:
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    with use_implementation(f"contrast={name}"), watch_implementations() as seen:
        loss = contrastive_loss(q, k, **options)
    assert seen == {"contrast": name}
    return [loss.detach(), *torch.autograd.grad(loss, [q, k])]


@needs_compiler
@settings(deadline=None, max_examples=100)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    c=st.integers(3, 40),
    n1=st.sampled_from([0.01, 0.02, 0.3, 15]),
    n2=st.sampled_from([0.0, 0.01, 0.08, 0.9, 50]),
    amplification=st.sampled_from([1.0, 6.0, 60.0]),
    hinge=st.booleans(),
)
def test_contrastive_loss_agrees_with_the_reference_in_float64(
    batch: int, size: tuple[int, int], c: int, **options: float
) -> None:
    """Groups of one entry, overlapping ones, and such as reach the end of a row."""
    q, k, _ = random_qkv(c, size, c=c, batch=batch, dtype=torch.float32)
    found = _contrast(q, k, "native", **options)
    wanted = _contrast(q.double(), k.double(), "reference", **options)
    clear = _clear_rows(q, k, options["n1"], options["n2"])
    for place, (one, two) in enumerate(zip(found, wanted, strict=True)):
        if place == 2 and not clear.all():  # every row adds to the keys' gradients
            continue
        if place == 1:
            one, two = (t.flatten(2).mT[clear] for t in (one, two))
        if two.numel():
            scale = max(float(two.abs().max()), 1e-2)
            tolerance = 1e-4 * options["amplification"]
            assert_close(one.double() / scale, two / scale, tolerance)


def _clear_rows(q: Tensor, k: Tensor, n1: float, n2: float) -> Tensor:
    """Rows ``[B, N]`` in which float32 cannot take one entry for another where a group ends."""
    rows = (torch.nn.functional.normalize(t.double().flatten(2), dim=1) for t in (q, k))
    scores = torch.einsum("bcn,bcm->bnm", *rows).sort(dim=-1, descending=True).values
    count, start = contrast_groups(scores.shape[-1], n1, n2)
    ends = [end for end in (count, start, start + count) if 0 < end < scores.shape[-1]]
    gaps = [scores[..., end - 1] - scores[..., end] for end in ends]
    return torch.stack([torch.ones_like(scores[..., 0]), *gaps]).amin(0) > 3e-6


@needs_compiler
@pytest.mark.parametrize("flat", [1, 7, 60, 110, 111])
@pytest.mark.parametrize("n1", [0.02, 0.2])
def test_equal_scores_count_as_often_as_a_group_takes_them(flat: int, n1: float) -> None:
    q, k, _ = random_qkv(5, (37, 3), c=6, batch=2, dtype=torch.float32)
    k.data.flatten(2)[..., -flat:] = k.data[..., -1:, -1]
    options = {"n1": n1, "n2": 0.4, "hinge": False}
    loss, grad_q, grad_k = _contrast(q, k, "native", **options)
    wanted = _contrast(q.double(), k.double(), "reference", **options)
    assert_close(loss.double(), wanted[0], 1e-5)
    # Gradients of equal keys go in part to one, in part to another: together they are the same.
    assert_close(grad_q.double(), wanted[1], 1e-6)
    assert_close(grad_k.double().sum((2, 3)), wanted[2].sum((2, 3)), 1e-6)


@needs_compiler
def test_contrastive_loss_of_what_is_no_number_is_none() -> None:
    q, k, _ = random_qkv(1, (9, 9), c=4, batch=1, dtype=torch.float32)
    k.data[0, 0, 2, 3] = torch.nan
    loss, grad_q, _ = _contrast(q, k, "native")
    assert loss.isnan()
    assert grad_q.isnan().all()


@needs_compiler
def test_contrastive_loss_of_a_batch_is_that_of_its_images() -> None:
    q, k, _ = random_qkv(2, (20, 31), c=5, batch=3, dtype=torch.float32)
    whole = _contrast(q, k, "native")
    parts = [_contrast(q[i : i + 1], k[i : i + 1], "native") for i in range(3)]
    assert_close(whole[0], sum(part[0] for part in parts) / 3, 1e-6)
    for place in (1, 2):
        assert_close(whole[place], torch.cat([part[place] for part in parts]) / 3, 1e-7)


def _top_k(*rows: Tensor) -> Tensor:
    return attend_rows(*rows, 20, TopKAttention.rule)


@needs_compiler
@pytest.mark.parametrize("attend", [softmax_attention_native, _top_k])
def test_threads_of_a_forked_process_are_its_own(attend: Callable[..., Tensor]) -> None:
    """A child has the memory of threads that it does not have; it must start its own."""
    # In rows already: a child must not run what OpenMP's threads, which it lacks too, would share.
    rows = [torch.randn(1, 1200, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = attend(*rows)
        receive, send = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=lambda: send.send(attend(*rows).tolist()))
        child.start()
        assert receive.poll(60)
        found = receive.recv()
        child.join()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.tensor(found), expected)


def _layer(channels: int, width: int, size: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, padding=size // 2, dtype=torch.float32)


def _map(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).to(memory_format=torch.channels_last)


def _project(x: Tensor, layers: Sequence[nn.Conv2d], name: str) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with use_implementation(f"projections={name}"), watch_implementations() as seen:
        outs = call_together(x, *layers)  # type: ignore[call-overload]
    assert seen == {"projections": name}
    parameters = [p for layer in layers for p in layer.parameters()]
    grads = torch.autograd.grad([out.square().sum() for out in outs], [x, *parameters])
    return [out.detach() for out in outs] + list(grads)


@needs_compiler
@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    channels=st.sampled_from([16, 48, 64]),
    widths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    threads=st.integers(1, 3),
)
def test_projections_agree_with_convolutions_in_float64(
    batch: int, size: tuple[int, int], channels: int, widths: list[int], threads: int
) -> None:
    layers = [_layer(channels, width) for width in widths]
    x = _map(batch, channels, *size)
    with (
        patch.object(projections_native, "num_workers", lambda *_, **__: threads),
        patch.object(projections_native, "_FEW_PRODUCTS", 1),
    ):
        found = _project(x, layers, "native")
    wanted = _project(x.double(), [copy.deepcopy(layer).double() for layer in layers], "reference")
    for one, two in zip(found, wanted, strict=True):
        scale = max(float(two.abs().max()), 1.0)
        torch.testing.assert_close(one / scale, two / scale, rtol=0, atol=1e-5, check_dtype=False)


@needs_compiler
def test_projections_leave_to_torch_what_the_kernels_do_not_take() -> None:
    """Each is asked of the layers themselves, or of torch's convolutions."""
    layers = [_layer(16, width) for width in (4, 5)]
    x = _map(2, 16, 6, 5)

    def seen(x: Tensor, layers: Sequence[nn.Module]) -> str | None:
        with watch_implementations() as found:
            outs = call_together(x, *layers)  # type: ignore[call-overload]
        for out, layer in zip(outs, layers, strict=True):
            torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)
        return found.get("projections")

    assert seen(x, layers) == "native"
    assert seen(x.contiguous(), layers) == "reference"
    assert seen(x.double(), [copy.deepcopy(layer).double() for layer in layers]) == "reference"
    assert seen(x, layers * 2) == "reference"
    assert seen(x[:, :8], [_layer(8, 4)]) == "reference"
    assert seen(x, [_layer(16, 4, 3), layers[0]]) is None
    assert seen(x, [nn.utils.parametrizations.weight_norm(_layer(16, 4))]) is None
    with torch.autocast("cpu", dtype=torch.bfloat16), watch_implementations() as found:
        outs = call_together(x, layers[0], layers[1])
    assert found == {"projections": "reference"}
    assert {out.dtype for out in outs} == {torch.bfloat16}


@needs_compiler
def test_projections_need_no_gradient_of_the_map() -> None:
    layers = [_layer(16, 4), _layer(16, 4)]
    x = _map(1, 16, 6, 5)
    one, two = call_together(x, layers[0], layers[1])
    (one.sum() + two.sum()).backward()
    assert all(p.grad is not None for layer in layers for p in layer.parameters())
    assert x.grad is None


@needs_compiler
def test_projections_tell_what_learns_as_layers_do() -> None:
    """A frozen layer's output needs no gradient; what the loss does not use has none, not zeros."""
    frozen, one, two = (_layer(16, width) for width in (4, 5, 6))
    frozen.requires_grad_(False)
    outs = call_together(_map(2, 16, 6, 5), frozen, one, two)
    assert [out.requires_grad for out in outs] == [False, True, True]
    outs[1].sum().backward()
    assert one.weight.grad is not None
    assert frozen.weight.grad is two.weight.grad is two.bias.grad is None


@needs_compiler
@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 1}, {"padding": (0, 1)}])
def test_projections_leave_other_convolutions_to_torch(options: dict[str, Any]) -> None:
    other = nn.Conv2d(16, 4, 1, **options, dtype=torch.float32)
    x = _map(2, 16, 6, 5)
    out, _ = call_together(x, other, _layer(16, 4))
    torch.testing.assert_close(out, other(x))


@needs_compiler
def test_global_hooks_see_layers_that_are_called_together() -> None:
    seen = []
    layers = [_layer(16, 4), _layer(16, 4)]
    hook = nn.modules.module.register_module_forward_hook(lambda one, *_: seen.append(one))
    try:
        call_together(_map(1, 16, 3, 3), layers[0], layers[1])
    finally:
        hook.remove()
    assert seen == layers


@needs_compiler
def test_projections_leave_weights_on_other_devices_to_torch() -> None:
    layers = [_layer(16, 4).to("meta"), _layer(16, 4).to("meta")]
    with watch_implementations() as seen:
        call_together(_map(1, 16, 8, 8), layers[0], layers[1])
    assert seen == {"projections": "reference"}


@needs_compiler
@pytest.mark.parametrize("name", ["nla", "criss-cross", "enlca", "window"])
def test_a_name_for_all_cores_leaves_maps_that_projections_do_not_take(name: str) -> None:
    module = create_attention(name, channels=24).to(torch.float32)
    with use_implementation("native"), watch_implementations() as seen:
        module(torch.randn(1, 24, 8, 8, dtype=torch.float32))
    assert seen["projections"] == "reference"


@needs_compiler
@pytest.mark.parametrize("name", ["nla", "enlca", "token-cluster", "agent", "rela"])
def test_compiled_modules_project_alike(name: str) -> None:
    module, x = create_attention(name, channels=32).to(torch.float32), _map(2, 32, 12, 12)
    compiled = torch.compile(module, backend="eager")
    for mode in (True, False):
        torch.manual_seed(0)
        wanted = module.train(mode)(x)
        torch.manual_seed(0)
        assert torch.equal(compiled(x), wanted)


@needs_compiler
@pytest.mark.parametrize("name", ["agent", "focused-linear", "gated-delta", "hedgehog", "rela"])
def test_plain_modules_keep_second_derivatives(name: str) -> None:
    module, x = create_attention(name, channels=16).to(torch.float32), _map(1, 16, 6, 6)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert second.isfinite().all()


@needs_compiler
def test_gradients_of_projections_of_large_maps() -> None:
    """Sums over many positions of one sign keep their digits."""
    layer, other = _layer(16, 4), _layer(16, 4)
    x = torch.rand(1, 16, 400, 400, dtype=torch.float32).to(memory_format=torch.channels_last)
    with patch.object(projections_native, "num_workers", lambda *_, **__: 1):
        one, two = call_together(x, layer, other)
    (one.sum() / 10 + two.sum()).backward()
    wanted = x.double().sum((0, 2, 3))
    grad = layer.weight.grad
    assert grad is not None
    torch.testing.assert_close(
        grad[:, :, 0, 0].double(), wanted.expand(4, 16) / 10, rtol=3e-6, atol=0
    )
    torch.testing.assert_close(
        layer.bias.grad.double(), torch.full((4,), 16_000.0, dtype=torch.float64), rtol=3e-6, atol=0
    )


@needs_compiler
def test_saved_tensors_may_come_back_in_another_layout() -> None:
    def turned(t: Tensor) -> Tensor:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t

    for name, options in (
        *(("nla", {}), ("enlca", {}), ("criss-cross", {})),
        *(("top-k", {"k": 7}), ("hspa", {"k": 7})),
    ):
        module = create_attention(name, channels=16, **options).to(torch.float32).eval()
        x = _map(1, 16, 6, 5).requires_grad_()
        inputs = [x, module.query.weight]
        wanted = torch.autograd.grad(module(x).square().sum(), inputs)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
            out = module(x)
        for one, two in zip(torch.autograd.grad(out.square().sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(one, two)


@needs_compiler
def test_contrastive_loss_where_kernels_would_overflow() -> None:
    q, k, _ = random_qkv(3, (6, 5), c=4, dtype=torch.float32)
    with watch_implementations() as seen:
        contrastive_loss(q, k, amplification=1.6e38)
        assert seen == {"contrast": "tiled"}
    zeros = torch.zeros(1, 4, 5, 4, dtype=torch.float32)
    torch.set_flush_denormal(True)
    try:
        found = _contrast(zeros, zeros, "native", n1=20, n2=0)
    finally:
        torch.set_flush_denormal(False)
    assert found[0] == 1

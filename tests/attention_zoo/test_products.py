"""Products by oneDNN: the same as torch's own, whatever the layout, and who takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.cores import products
from attention_zoo.cores.products import add_product, by_onednn, product
from attention_zoo.cores.softmax import softmax_attention_lse
from tests.reference import softmax as oracle
from tests.reference.cases import assert_close

needs_onednn = pytest.mark.skipif(
    not products.has_onednn(), reason="this torch has no oneDNN operator for products"
)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product that oneDNN can do is its own, whatever the processor."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "FEW_MACS", 0)


LAYOUTS = {
    "rows": lambda x: x.contiguous(),
    "columns": lambda x: x.mT.contiguous().mT,
    "rows with gaps": lambda x: torch.cat([x, x], 2)[..., : x.shape[2]],
    "columns with gaps": lambda x: torch.cat([x, x], 1).mT.contiguous().mT[:, : x.shape[1]],
    "neither": lambda x: x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, ::2],
}


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("layout_a", LAYOUTS)
@pytest.mark.parametrize("layout_b", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 3), (5, 1, 9), (4, 3, 1), (33, 17, 65)])
def test_equals_torchs_own(layout_a: str, layout_b: str, size: tuple[int, int, int]) -> None:
    rows, inner, columns = size
    generator = torch.Generator().manual_seed(0)
    a = LAYOUTS[layout_a](torch.randn(1, rows, inner, generator=generator))
    b = LAYOUTS[layout_b](torch.randn(1, inner, columns, generator=generator))
    total = torch.randn(1, rows, columns, generator=generator)
    right = a.double() @ b.double()
    assert by_onednn(a, b)
    assert_close(product(a, b), right, 1e-6)
    out = torch.empty(1, columns, rows).mT
    assert product(a, b, out) is out
    assert_close(out, right, 1e-6)
    expected = total.double() + right
    assert add_product(total, a, b) is total
    assert_close(total, expected, 1e-6)


@needs_onednn
@pytest.mark.usefixtures("onednn")
@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_attention_by_onednn_is_the_oracles(queries: int, keys: int, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(queries * 41 + keys)
    shapes = [(1, queries, 4), (1, keys, 4), (1, keys, 5)]
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    wide = [t.requires_grad_() for t in (q, k, v)]
    inputs = [(t.mT.contiguous().mT if transposed else t).float().detach() for t in wide]
    narrow = [t.requires_grad_() for t in inputs]
    out, lse = softmax_attention_lse(*narrow)
    right, right_lse = oracle.softmax_attention_lse(*wide)
    assert_close(out, right, 1e-5)
    assert_close(lse, right_lse, 1e-5)
    weights = torch.randn(right.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((out * weights.float()).sum() + lse.sum(), narrow)
    expected = torch.autograd.grad((right * weights).sum() + right_lse.sum(), wide)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-4)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_what_is_left_to_torch() -> None:
    a = torch.randn(1, 3, 3)
    assert by_onednn(a, a)
    assert not by_onednn(a.double(), a.double())
    assert not by_onednn(a.bfloat16(), a.bfloat16())
    assert not by_onednn(a.expand(2, 3, 3), a.expand(2, 3, 3))
    assert not by_onednn(a.to("meta"), a.to("meta"))
    with FlopCounterMode(display=False) as counter:
        product(a, a)
    assert counter.get_total_flops() == 2 * 27


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    assert not by_onednn(torch.randn(1, 100, 64), torch.randn(1, 64, 100))
    assert by_onednn(torch.randn(1, 1000, 64), torch.randn(1, 64, 100))


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nvendor_id\t: X\ncpu family\t: 6\n", 26),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", 25),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", 0),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: unknown\n", 0),
        ("CPU implementer\t: 0x41\n", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_the_processor_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, family: int
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(products, "_CPU_INFO", path)
    assert products._amd_family() == family

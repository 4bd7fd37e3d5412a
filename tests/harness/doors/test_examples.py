"""The worked examples: short, right, and usable as they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo.contract import CHECKS, NotApplicable, Subject
from examples.efficient_attention import efficient_attention
from harness.records.shapes import Run
from harness.records.store import load_records
from tests.harness.conftest import Cli
from tests.reference.cases import SIZES, TOLERANCES, assert_agrees, random_qkv
from tests.reference.maps import to_map, vectors

EXAMPLE = "examples.efficient_attention:EfficientAttention"


def by_position(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Eq. 4, position by position."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = vectors(q, b), torch.stack(vectors(k, b)), vectors(v, b)
        shares = keys.exp() / keys.exp().sum(0)  # [N, c]
        contexts = [
            sum(shares[j, i] * value for j, value in enumerate(values)) for i in range(q.shape[1])
        ]
        images.append(
            [
                sum(w * context for w, context in zip(query.softmax(0), contexts, strict=True))
                for query in queries
            ]
        )
    return to_map(images, *q.shape[2:])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_efficient_attention_agrees_with_its_equation(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_agrees(efficient_attention, by_position, random_qkv(0, size, dtype=dtype))


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_to_the_contract(check: str) -> None:
    try:
        CHECKS[check](Subject(EXAMPLE))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_it_is_short() -> None:
    path = Path(__file__).parents[3] / "examples" / "efficient_attention.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_it_runs_and_joins_the_table(cli: Cli, tiny: list[str], results: Path) -> None:
    cli("run", *tiny, "--attn", EXAMPLE, "--reduction", "2", "--skip-latency")
    (record,) = load_records(results, Run)
    assert record.variant.name == EXAMPLE
    assert record.variant.label == "Efficient attention (reduction=2)"
    assert record.variant.options["reduction"] == 2


NOTEBOOK = Path(__file__).parents[3] / "examples" / "correlation_map.ipynb"


def test_the_notebook_runs_and_its_maps_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """NLA singles out the positions one period away; no output is stored."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    found: dict[str, Any] = {}
    try:
        for number, cell in enumerate(c for c in cells if c["cell_type"] == "code"):
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), found)
    finally:
        plt.close("all")
    row, column = found["position"]
    alike = ((found["row"] - row) % 8 == 0) & ((found["column"] - column) % 8 == 0)
    alike &= ~found["disc"]
    for weights in found["maps"].values():
        assert weights.shape == alike.shape
        assert weights.sum().item() == pytest.approx(1)
        assert weights[alike].mean() > 3 * weights.mean()
    nla = found["maps"]["NLA"]
    assert {tuple(p) for p in (nla > nla.max() / 2).nonzero().tolist()} <= {
        tuple(p) for p in alike.nonzero().tolist()
    }

"""Operation counts: closed forms against counters, and what each counter misses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import Attention, Cost, list_attentions
from attention_zoo.implementations import use_implementation
from harness.config.network import NetworkConfig
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.measuring import flops
from harness.measuring.flops import count, count_network
from harness.network.edsr import build_network
from harness.records.shapes import Cost as CostRecord
from harness.records.shapes import untyped
from harness.records.store import load_records
from harness.reporting.settings import paper_table

SIZES = [(2, 3), (7, 13), (24, 30)]
VARIANTS = [
    *(Variant(name) for name in list_attentions()),
    Variant("enlca", {"m": 7}),
    Variant("nlsa", {"rounds": 1, "chunk_size": 16}),
    Variant("criss-cross", {"recurrence": 2}),
]


@pytest.fixture
def closed_forms_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "_COUNTERS", {})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.label)
def test_the_closed_form_is_what_torch_counts(
    monkeypatch: pytest.MonkeyPatch, variant: Variant, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(flops, "_COUNTERS", {"torch": flops._count_torch})
    counts = count(variant, *size)
    core, module = counts["parts"]["core"], counts["parts"]["module"]
    assert core["torch_gflops"] == core["executed_gflops"]
    assert module["torch_gflops"] == module["inserted_gflops"]  # the authors save no projections
    told = [note for note in counts["notes"] if "the implementation" not in note]
    assert len(told) == (module["executed_gflops"] < module["inserted_gflops"])


@pytest.mark.usefixtures("closed_forms_only")
def test_core_prints_table_4() -> None:
    paper = {row["method"]: float(row["gflops"]) for row in paper_table(4)}
    measured = {}
    for variant in table_rows("table4"):
        part = count(variant)["parts"]["core"]
        assert part["channels"] == 64
        measured[variant.label] = float(f"{part['paper_gflops']:.2f}")
    assert measured == paper


@pytest.mark.parametrize(
    ("name", "gflops", "embedding"),
    [("nla", 65.97, 64), ("nlsa", 15.59, 64), ("enlca", 3.61, 64), ("criss-cross", 2.79, 32)],
)
@pytest.mark.usefixtures("closed_forms_only")
def test_module_as_inserted(name: str, gflops: float, embedding: int) -> None:
    part = count(Variant(name))["parts"]["module"]
    assert round(part["inserted_gflops"], 2) == gflops
    assert (part["channels"], part["embedding"]) == (256, embedding)


@pytest.mark.usefixtures("closed_forms_only")
def test_projections_that_are_saved_are_told() -> None:
    """ENLCA projects 128 sums instead of 10,000 positions; on 100 positions it saves nothing."""
    counts = count(Variant("enlca", {"m": 128}))
    part = counts["parts"]["module"]
    saved = 2 * (100**2 - 128) * 256**2 / 1e9
    assert part["inserted_gflops"] - part["executed_gflops"] == pytest.approx(saved)
    (note,) = counts["notes"]
    assert note.startswith("module: 1.294 GFLOPs of projections are saved by projecting sums")
    small = count(Variant("enlca", {"m": 128}), 10, 10)
    part = small["parts"]["module"]
    assert (part["inserted_gflops"], small["notes"]) == (part["executed_gflops"], [])


@pytest.mark.parametrize("name", ["nla", "conv", "nlsa", "criss-cross", "enla", "enlca"])
@pytest.mark.parametrize("size", [(24, 30), (3, 4)])  # NLSA's released code cannot do the second
def test_every_counter_sees_every_product_of_the_papers_modules(
    name: str, size: tuple[int, int]
) -> None:
    counts = count(Variant(name), *size)
    for part, key in (("core", "executed"), ("module", "inserted")):
        found = counts["parts"][part]
        for counter in ("torch", "ptflops", "fvcore"):
            # ptflops counts biases too, fvcore norms.
            tolerance = 0.02 if size == (3, 4) else 0.006
            expected = pytest.approx(found[f"{key}_gflops"], rel=tolerance)
            assert found[f"{counter}_gflops"] == expected, (part, counter)


def test_what_was_chosen_for_the_work_does_not_change_the_counts() -> None:
    plain = count(Variant("nla"), 5, 6)
    with use_implementation("tiled"):
        assert count(Variant("nla"), 5, 6) == plain
    assert "counters ran the implementation nla=released" in plain["notes"]


def published(names: set[str]) -> list[CostRecord]:
    """Cost records in results/ of these modules."""
    found = load_records(Path(__file__).parents[3] / "results", CostRecord)
    return [record for record in found if record.variant.name in names]


def counted_again(record: CostRecord) -> dict[str, Any]:
    options = {name: record.variant.options[name] for name in record.variant.changed or ()}
    return count(Variant(record.variant.name, options), record.height, record.width)


def test_published_counts_are_those_of_this_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """All records, with the counters that need no values and so little time."""
    quick = {"torch": flops._count_torch, "ptflops": flops._count_ptflops}
    monkeypatch.setattr(flops, "_COUNTERS", quick)
    records = published({*list_attentions()})
    assert {record.variant.name for record in records} == {*list_attentions()}
    for record in records:
        parts = untyped(record)["parts"]
        for part, found in counted_again(record)["parts"].items():
            known = {key: parts[part].get(key) for key in found}
            assert known == pytest.approx(found), (record.id, part)


@pytest.mark.slow
def test_published_counts_of_the_papers_modules_are_those_of_this_code() -> None:
    for record in published({"none", "nla", "conv", "nlsa", "criss-cross", "enlca"}):
        assert untyped(record)["notes"] == counted_again(record)["notes"], record.id


@pytest.mark.parametrize("name", list_attentions())
def test_all_counters_run_and_print_nothing(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(action="error"):
        counts = count(Variant(name), 12, 9)
    assert capfd.readouterr() == ("", "")
    assert counts["variant"]["name"] == name
    assert (counts["height"], counts["width"]) == (12, 9)
    for part in ("core", "module"):
        figures = {k: v for k, v in counts["parts"][part].items() if k.endswith("_gflops")}
        assert len(figures) == {"core": 5, "module": 6}[part]
        assert None not in figures.values()


def test_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    count(Variant("nlsa"), 4, 4)
    assert torch.equal(torch.rand(1), expected)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bnc,bmc->bnm", q, k).softmax(-1)
    return torch.einsum("bnm,bmc->bnc", weights, v)


def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
    return torch.bmm(q, k.mT, out=scores).softmax(-1) @ v


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "naive": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "fused": fused,
    "accumulating": lambda q, k, v: torch.baddbmm(q.new_zeros(()), q, k.mT).softmax(-1) @ v,
    "einsum": einsum,
    "written": written,
    # The values decide what happens: nothing to run on the meta device.
    "branching": lambda q, k, v: (q @ k.mT).softmax(-1) @ v if q.sum().item() < 1e9 else v,
}


class Written(Attention):
    """Attention as it may be written, for the counters to look at."""

    def __init__(self, channels: int, *, product: str = "naive") -> None:
        super().__init__(channels)
        self.product = PRODUCTS[product]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = (t.flatten(2).mT for t in (q, k, v))
        return self.product(*rows).mT.unflatten(2, v.shape[2:])

    def cost(self, height: int, width: int) -> Cost:
        macs = 2 * (height * width) ** 2 * self.channels
        return Cost(projections=0, core=macs, executed=macs)


def counted(product: str) -> dict[str, Any]:
    return count(Variant(f"{__name__}:Written", {"product": product}), 5, 6)


def share(part: dict[str, Any], counter: str) -> float:
    return part[f"{counter}_gflops"] / part["executed_gflops"]


@pytest.mark.parametrize(
    ("product", "fvcore", "ptflops", "told"),
    [
        ("naive", 1.0, 1.0, "ptflops by its default backend counts 0.000 GFLOPs"),
        ("einsum", 1.0, 1.0, "ptflops by its default backend counts 0.000 GFLOPs"),
        ("fused", 0.0, None, "aten::scaled_dot_product_attention x1"),
        ("accumulating", 0.5, 0.5, "aten::baddbmm x1"),
    ],
)
def test_blind_spots(product: str, fvcore: float, ptflops: float | None, told: str) -> None:
    counts = counted(product)
    core = counts["parts"]["core"]
    assert share(core, "torch") == 1.0
    assert share(core, "fvcore") == fvcore
    if ptflops is not None:
        assert share(core, "ptflops") == ptflops
    assert any(note.startswith("core: ") and told in note for note in counts["notes"])
    deviates = any(note.startswith("core: fvcore counts 0.00") for note in counts["notes"])
    assert deviates == (fvcore < 1)


def test_a_counter_that_fails_gives_none_and_a_note(capfd: pytest.CaptureFixture[str]) -> None:
    counts = counted("written")
    assert counts["parts"]["core"]["fvcore_gflops"] is None
    assert share(counts["parts"]["core"], "torch") == 1.0
    assert any(note.startswith("core: fvcore failed: ") for note in counts["notes"])

    counts = counted("branching")
    for part in ("core", "module"):
        assert share(counts["parts"][part], "fvcore") == 1.0
        for counter in ("torch", "ptflops"):
            assert counts["parts"][part][f"{counter}_gflops"] is None
            (note,) = (n for n in counts["notes"] if n.startswith(f"{part}: {counter} failed: "))
            assert "\n" not in note
    assert capfd.readouterr() == ("", "")


def test_a_noisy_counter_is_silenced(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def noisy(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, list[str]]:
        print("noise")
        warnings.warn("noise", stacklevel=1)
        logging.getLogger("noise").error("noise")
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr(flops, "_COUNTERS", {"noisy": noisy})
    counts = count(Variant("none"), 2, 2)
    assert counts["parts"]["core"]["noisy_gflops"] is None
    assert counts["notes"][0].startswith("core: noisy failed: KeyError: 'first line")
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


def test_network_of_known_cost() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, dtype=torch.float64).train()
    weight = conv.weight.detach().clone()
    assert count_network(conv, 11, 7) == 2 * 9 * 3 * 5 * 11 * 7 / 1e9
    assert conv.training
    assert conv.weight.device.type == "cpu"
    assert torch.equal(conv.weight, weight)


def test_network_is_backbone_plus_five_modules() -> None:
    """Also after a training step, which leaves an auxiliary loss with its graph."""

    def network(name: str) -> nn.Module:
        return build_network(Variant(name), NetworkConfig(4, 16), 2)

    baseline = count_network(network("none"), 10, 12)
    for name in ("nla", "enlca"):
        module = 2 * Variant(name).create(16).cost(10, 12).module / 1e9
        one = network(name)
        for _ in range(2):
            assert count_network(one, 10, 12) == pytest.approx(baseline + 5 * module)
            one(torch.rand(1, 3, 6, 6))

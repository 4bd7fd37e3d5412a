"""Names, options and labels: what is found, and how mistakes are told."""

from __future__ import annotations

import copy
import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

import attention_zoo
from attention_zoo import (
    Attention,
    AttentionError,
    Cost,
    check_options,
    create_attention,
    find_attention,
    list_attentions,
    register_attention,
    registry,
)
from tests.attention_zoo.table import ORACLES

BUILT_IN = list(ORACLES)


class Doubled(Attention):
    """A user's module: ``y = x + gain · x``."""

    def __init__(self, channels: int, *, gain: float = 2.0) -> None:
        super().__init__(channels, res_scale=gain)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v

    def cost(self, height: int, width: int) -> Cost:
        return Cost(projections=0, core=0, executed=0)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(Doubled, "name", "")


@pytest.fixture
def user_package(monkeypatch: pytest.MonkeyPatch, own_registry: None) -> str:
    """A package ``someones_package.attentions`` that holds ``Doubled``."""
    module = types.ModuleType("someones_package.attentions")
    module.Doubled, module.number = Doubled, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones_package", types.ModuleType("someones_package"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


def test_all_modules_of_the_package_are_listed() -> None:
    assert set(BUILT_IN) <= set(list_attentions())
    assert list_attentions() == sorted(list_attentions())


@pytest.mark.parametrize("name", list_attentions())
def test_created_module_is_of_its_class_and_knows_its_name(name: str) -> None:
    module = create_attention(name, channels=16)
    assert type(module) is find_attention(name)
    assert module.name == name
    assert module.channels == 16


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_module_names_its_source_and_complexity(name: str) -> None:
    cls = find_attention(name)
    assert cls.source
    assert cls.complexity
    assert cls.__doc__
    assert cls.label()


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        *((name, oracle.options, oracle.label) for name, oracle in ORACLES.items() if oracle.label),
        ("nlsa", {}, "NLSA-r4"),
        ("nlsa", {"rounds": 1}, "NLSA-r1"),
        ("criss-cross", {}, "Criss-Cross"),
        ("enla", {"m": 64}, "ENLA-m64"),
        ("enlca", {}, "ENLCA-m128"),
        ("enlca", {"m": 16, "k": 3.0}, "ENLCA-m16"),
        ("window", {}, "Window-w8"),
        ("window", {"window": 16}, "Window-w16"),
        ("shifted-window", {}, "Shifted window-w8"),
        ("nystrom", {}, "Nyström-8x8"),
        ("csnln", {"scale": 3}, "CSNLN-x3"),
    ],
)
def test_labels(name: str, options: dict[str, float], label: str) -> None:
    assert find_attention(name).label(**options) == label


def test_unknown_name_is_told_with_all_names_and_the_nearest() -> None:
    with pytest.raises(AttentionError) as caught:
        create_attention("criscross", channels=8)
    message = str(caught.value)
    assert "'criscross'" in message
    assert "did you mean criss-cross" in message
    assert all(name in message for name in BUILT_IN)
    assert "\n" not in message


def test_name_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(AttentionError) as caught:
        find_attention("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_option_of_another_module_is_told_with_the_options_there_are() -> None:
    with pytest.raises(AttentionError, match=r"nlsa has no option 'm'.*rounds.*chunk_size"):
        create_attention("nlsa", channels=8, m=16)
    with pytest.raises(AttentionError, match="no options"):
        create_attention("none", channels=8, m=16)


def test_check_options_builds_nothing() -> None:
    check_options("enlca", {"m": 0})  # the value is the module's own matter
    with pytest.raises(AttentionError, match="margins"):
        check_options("enlca", {"margins": 1.0})


@pytest.mark.parametrize(
    "name", [n for n in BUILT_IN if "reduction" in find_attention(n).options()]
)
@pytest.mark.parametrize("reduction", [3, 0, -1, 16, 1.5, True])
def test_reduction_must_divide(name: str, reduction: int) -> None:
    with pytest.raises(AttentionError, match="reduction"):
        create_attention(name, channels=8, reduction=reduction)


@pytest.mark.parametrize("name", [n for n in BUILT_IN if "heads" in find_attention(n).options()])
def test_heads_must_divide(name: str) -> None:
    with pytest.raises(AttentionError, match="heads 3 does not divide the 8 channels"):
        create_attention(name, channels=8, heads=3)
    if "reduction" in find_attention(name).options():
        with pytest.raises(AttentionError, match="heads 4 does not divide the 2 channels"):
            create_attention(name, channels=8, heads=4, reduction=4)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name, oracle in ORACLES.items()
        for option, parameter in find_attention(name).options().items()
        for value in [
            *((0, -1, 2.5) if type(parameter.default) is int else ()),
            *oracle.refused.get(option, ()),
        ]
        if (option, value) != ("redraw_every", 0)
    ],
)
def test_bad_options_are_refused_by_name(name: str, option: str, value: float) -> None:
    with pytest.raises(AttentionError, match=rf"\b{option}\b"):
        create_attention(name, channels=8, **{option: value})


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("channels", [0, -4, 1.5])
def test_channels_must_be_positive(name: str, channels: int) -> None:
    with pytest.raises(AttentionError, match="channels"):
        create_attention(name, channels=channels)


@pytest.mark.parametrize("m", [1, 2, 3, 256, 300])
def test_any_number_of_features_from_one_on(m: int) -> None:
    module = create_attention("enlca", channels=16, m=m)
    assert module(torch.randn(1, 16, 3, 4)).shape == (1, 16, 3, 4)


def test_user_module_by_path(user_package: str) -> None:
    path = f"{user_package}:Doubled"
    module = create_attention(path, channels=4, gain=3.0)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(module(x), 4 * x)
    assert module.name == path
    with pytest.raises(AttentionError, match="gain"):
        create_attention(path, channels=4, loss=3.0)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no_such_package.module:Attention", "no_such_package"),
        ("someones_package.attentions:Missing", "Missing"),
        ("someones_package.attentions:number", "not a subclass"),
        ("attention_zoo:Attention", "not a subclass"),
        (":Doubled", "attention"),
        (".relative:Doubled", "attention"),
        ("someones_package.attentions:", "attention"),
    ],
)
@pytest.mark.usefixtures("user_package")
def test_bad_paths_are_told(path: str, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        find_attention(path)


@pytest.mark.usefixtures("own_registry")
def test_registering_a_user_module() -> None:
    assert register_attention("doubled")(Doubled) is Doubled
    assert "doubled" in list_attentions()
    assert find_attention("doubled") is Doubled
    assert register_attention("doubled")(Doubled) is Doubled  # a reload is no clash


@pytest.mark.usefixtures("own_registry")
def test_a_taken_name_is_refused() -> None:
    with pytest.raises(AttentionError, match="'nla' is registered already"):
        register_attention("nla")(Doubled)


def test_entry_points_are_listed_and_found(
    monkeypatch: pytest.MonkeyPatch, user_package: str
) -> None:
    entry = EntryPoint("doubled", f"{user_package}:Doubled", registry.ENTRY_POINT_GROUP)

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "attention_zoo"
        return [entry] if name in (None, "doubled") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "doubled" in list_attentions()
    assert find_attention("doubled") is Doubled


def test_a_class_of_a_registered_one_has_a_name_of_its_own(
    monkeypatch: pytest.MonkeyPatch, user_package: str
) -> None:
    class Gentler(find_attention("conv")):  # type: ignore[misc]
        """A user's."""

    monkeypatch.setattr(sys.modules[user_package], "Gentler", Gentler, raising=False)
    path = f"{user_package}:Gentler"
    assert create_attention(path, channels=4).name == path
    assert create_attention("conv", channels=4).name == "conv"


def test_a_broken_entry_point_is_told_in_a_line_and_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = EntryPoint("broken", "no_such_package:Attention", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name="broken": [entry] * (name == "broken")
    )
    assert "broken" in list_attentions()
    assert "broken" not in list_attentions(installed=False)
    with pytest.raises(AttentionError, match="'no_such_package' for attention 'broken'") as caught:
        find_attention("broken")
    assert "\n" not in str(caught.value)
    create_attention("nla", channels=4)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (("enl*",), ["enla", "enlca"]),
        ((["enl*", "nlsa"],), ["enla", "enlca", "nlsa"]),
        (("nl*", "*-flash"), ["nla", "nlrn", "nlsa"]),
        (("nl*", ["nla*", "nlrn"]), ["nlsa"]),
        (("NLA",), []),
        (("window",), ["window"]),
    ],
)
def test_names_that_match_a_pattern(filters: tuple[str, ...], names: list[str]) -> None:
    assert list_attentions(*filters) == names


def test_no_filter_lists_all() -> None:
    assert list_attentions() == list_attentions("*") == sorted(list_attentions())
    assert set(BUILT_IN) <= set(list_attentions(filter="", exclude_filters=[]))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_print_shows_every_option(name: str) -> None:
    module = create_attention(name, 16)
    for option, parameter in module.options().items():
        assert f"{option}={parameter.default!r}" in module.extra_repr()


def test_a_print_shows_values_as_they_are() -> None:
    module = create_attention("enlca", 8, m=16, reduction=2)
    assert module.extra_repr().startswith("channels=8, m=16, k=6.0, ")
    assert ", reduction=2, " in module.extra_repr()
    module.m = 4
    assert "m=4" in copy.deepcopy(module).extra_repr()
    assert Doubled(8, gain=3.0).extra_repr() == "channels=8, gain=3.0"
    assert Doubled(channels=8).extra_repr() == "channels=8, gain=2.0"
    assert "m=16" in str(create_attention("enlca", 8, m=16))


def test_version() -> None:
    assert attention_zoo.__version__[0].isdigit()

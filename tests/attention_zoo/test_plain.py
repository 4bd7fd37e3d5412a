"""Plain modules: what they compute, what they are asked for, and what they refuse in a line."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import Attention, AttentionError, create_attention, find_attention
from attention_zoo.contract import Subject, judge

HERE = __name__


class Gate(nn.Module):
    """A published module as it often is: positional options, its residual inside.

    Args:
        channels: channels of input and output.
        squeeze: the hidden layer has channels / squeeze channels.
    """

    def __init__(
        self,
        channels: int,
        squeeze: int = 4,
        act: Callable[[Tensor], Tensor] = torch.relu,
        scale: float | None = None,
        untyped=None,
    ):
        super().__init__()
        self.down = nn.Conv2d(channels, channels // squeeze, 1)
        self.up = nn.Conv2d(channels // squeeze, channels, 1)
        self.act, self.scale = act, 1.0 if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.up(self.act(self.down(x)))


class LaterChannels(nn.Module):
    """As NLSN's code, which takes the channels second; it looks at numbers."""

    def __init__(self, n_hashes: int = 4, channels: int = 64, **unused: object) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if float(x.detach().sum()) < 1e9 else x


class Tuple(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.sum()


class Doubled(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Elsewhere(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to("meta")


class Halved(Tuple):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x[:, :, ::2]


class Demanding(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()


class Broken(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        raise KeyError("nothing here")


def test_it_is_the_module_itself() -> None:
    torch.manual_seed(0)
    module = create_attention(f"{HERE}:Gate", 8, squeeze=2, scale=0.5)
    torch.manual_seed(0)
    plain = Gate(8, 2, scale=0.5)
    x = torch.rand(2, 8, 5, 7)
    assert torch.equal(module(x), plain(x))
    assert isinstance(module, Attention)
    assert module.auxiliary_loss() == 0
    assert find_attention(f"{HERE}:Gate") is find_attention(f"{HERE}:Gate")


def test_options_are_what_a_record_can_hold() -> None:
    cls = find_attention(f"{HERE}:Gate")
    assert {name: p.default for name, p in cls.options().items()} == {"squeeze": 4, "scale": None}
    assert cls.label() == "Gate"
    assert list(find_attention(f"{HERE}:LaterChannels").options()) == ["n_hashes"]
    with pytest.raises(AttentionError, match="no option 'act': it takes squeeze, scale"):
        create_attention(f"{HERE}:Gate", 8, act=torch.tanh)


def test_cost_is_counted() -> None:
    cost = create_attention(f"{HERE}:Gate", 8, squeeze=2).cost(3, 5)
    assert cost.counted
    assert cost.module == cost.module_executed == cost.core == 2 * 15 * 8 * 4
    cost = create_attention(f"{HERE}:LaterChannels", 8).cost(3, 5)  # no meta tensor has a sum
    assert cost.module == 15 * 8 * 8
    module = create_attention(f"{HERE}:Gate", 8)
    state = torch.get_rng_state()
    module.cost(3, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_copies() -> None:
    module = create_attention(f"{HERE}:Gate", 8, squeeze=2).eval()
    x = torch.rand(1, 8, 4, 4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert torch.equal(other(x), module(x))
        assert other.cost(2, 2) == module.cost(2, 2)


def test_the_contract_says_what_it_cannot_check() -> None:
    verdicts = {v.check: v for v in judge(Subject(f"{HERE}:Gate"))}
    assert not any(v.passed is False for v in verdicts.values())
    skipped = {name for name, v in verdicts.items() if v.passed is None}
    assert skipped == {
        "forward is project attend residual",
        "cost equals the counter",
        "correlation is the attention",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Tuple", "gives a tuple, not one map"),
        ("Halved", r"gives \[1, 8, 2, 4\], not one map \[1, 8, 4, 4\]"),
        ("Doubled", "Doubled gives float64 on cpu, not float32 on cpu, as its input is"),
        ("Elsewhere", "Elsewhere gives float32 on meta, not float32 on cpu"),
        ("Demanding", "the option heads needs a default"),
        ("Broken", "cannot be built with 8 channels: KeyError: 'nothing here'"),
    ],
)
def test_refused_in_a_line(name: str, message: str) -> None:
    with pytest.raises(AttentionError, match=message) as caught:
        create_attention(f"{HERE}:{name}", 8)(torch.rand(1, 8, 4, 4))
    assert "\n" not in str(caught.value)


def test_autocast_chooses_the_precision() -> None:
    module = create_attention(f"{HERE}:LaterChannels", 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.rand(1, 8, 4, 4)).dtype in (torch.bfloat16, torch.float32)


def test_what_takes_no_channels_is_refused() -> None:
    with pytest.raises(AttentionError, match="must take channels first"):
        find_attention("torch.nn:Identity")
    with pytest.raises(AttentionError, match=r"nor of torch\.nn\.Module"):
        find_attention("json:JSONDecoder")


def test_it_has_no_query_and_key() -> None:
    module = create_attention(f"{HERE}:Gate", 8)
    with pytest.raises(AttentionError, match="plain module: it has no query"):
        module.correlation(torch.rand(1, 8, 4, 4), (0, 0))

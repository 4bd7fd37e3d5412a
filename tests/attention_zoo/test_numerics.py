"""Extreme features in float32, bfloat16 and float16: finite results, and bounds on the error.

The bounds of BOUNDS stand in the docstrings of the functions too, as "Numerics". A module without
one is tested for finite results only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import (
    Attention,
    AttentionError,
    create_attention,
    find_attention,
    list_attentions,
)
from attention_zoo.cores import nlsa_native, nlsa_tiled
from attention_zoo.cores.native import why_not_native
from attention_zoo.enla import normalise, orthogonal_gaussian, random_feature_attention
from attention_zoo.enlca import contrastive_loss
from attention_zoo.nlsa import hash_codes
from attention_zoo.rivals.agent import regions
from attention_zoo.rivals.atd import token_attention, token_categories
from attention_zoo.rivals.csnln import patch_norms
from attention_zoo.rivals.focused_linear import focused_features
from attention_zoo.rivals.nystrom import landmark_inverse, landmarks
from tests.reference import contrastive as contrastive_oracle
from tests.reference.cases import perturb


def largest(x: Tensor) -> float:
    return x.double().abs().max().item()


def largest_norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.double(), dim=1).max().item()


def least_norm(x: Tensor, dims: int | tuple[int, int] = 1) -> float:
    """Of what embeddings, or whole channels, are divided by."""
    return max(5e-5, torch.linalg.vector_norm(x.double(), dim=dims).min().item())


def largest_sums(weight: Tensor) -> tuple[float, float]:
    """Largest sum of absolute weights ``[out, in, …]`` into an output, and out of an input."""
    weight = weight.double().abs().view(*weight.shape[:2], -1).sum(2)
    return weight.sum(1).max().item(), weight.sum(0).max().item()


def convolution_gain(a: Call) -> float:
    if a.last is None:
        return 1.0
    if a.last.groups > 1:  # depthwise, of the values, added to the attention
        return 1.0 + largest_sums(a.last.weight)[0]
    return max(1.0, *largest_sums(a.last.weight))


class Call:
    """A module, what it attends to, and the sizes of that."""

    def __init__(self, m: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.m, self.q, self.k, self.v = m, *(t.detach().double() for t in (q, k, v))
        self.c, self.n = q.shape[1], v[0, 0].numel()
        self.norm_q, self.norm_k = largest_norm(self.q), largest_norm(self.k)
        self.product, self.largest_v = self.norm_q * self.norm_k, largest(v)
        layers = (getattr(m, name, None) for name in ("conv", "output", "local"))
        #: The convolution after the attention, or of the values beside it.
        self.last = next((layer for layer in layers if layer), None)

    @property
    def longest_row(self) -> float:
        """Of the random projection."""
        return largest_norm(self.m.projection)

    @property
    def tokens(self) -> tuple[float, float]:
        """Largest value and scale of ATD's tokens."""
        _, values, scales = self.m.token_maps(torch.float64)
        return largest(values), largest(scales)

    @property
    def magnified(self) -> float:
        """What the iteration for Nyström's pseudo-inverse makes of an error of the weights."""
        return (13 / 4) ** self.m.steps * math.prod(regions(self.m.grid, *self.q.shape[2:]))


@dataclass(frozen=True)
class Bound:
    """Bound on the error of ``attend``, against float64 on the same rounded inputs.

    With u the unit roundoff of the dtype (2^-24, 2^-8, 2^-11 for float32, bfloat16, float16),
    and S the largest score::

        growth = exp(2 (c + 4) 2^-24 S) - 1
        value:    |error| <= (value · u + spread · min(1, growth)) · max|v|
        gradient: |error| <= (gradient · u + min(N, growth)) · largest

    and a few times the smallest number of the dtype, where u no longer holds: of what goes through
    a convolution 2^-126, below which those of the CPU see zero, as does the fused kernel in
    bfloat16 on a processor with units for its products.
    Growth is what rounding of scores, which are summed in float32, does to the weights: c + 4
    roundings of relative size 2^-24 each. Where it reaches 1, float32 cannot tell scores apart, and
    the output is only kept from leaving the range of the values by more than ``spread``. "Largest"
    is the largest gradient that embeddings of this size can have: not that of these ones, which may
    cancel to zero.

    Attributes:
        factors: value, gradient and spread.
        why: of these numbers.
        score: S: no score, or exponent, is larger in magnitude, nor are its terms.
        terms: c.
        slopes: by how much a change of q, and of k, changes a score.
        gradients: largest d q, d k and d v, where they are not simply those of scores, from the
            largest number of the output's gradient, and the largest sum of a position's.
        gain: by how much values and gradients can be magnified.
        sums: the largest number that enters the last sum, of values up to a size.
        fused: whether torch's fused kernel does it.
        choose: makes the float64 twin choose as the low precision did.
        options: of the module.
    """

    factors: tuple[float, float, float]
    why: str
    score: Callable[[Call], float] = lambda a: a.product
    terms: Callable[[Call], int] = lambda a: a.c
    slopes: Callable[[Call], tuple[float, float]] = lambda a: (a.norm_k, a.norm_q)
    gradients: Callable[[Call, float, float], list[float]] | None = None
    gain: Callable[[Call], float] = convolution_gain
    sums: Callable[[Call, float], float] = lambda a, size: size
    fused: bool = False
    choose: Callable[[pytest.MonkeyPatch, Any, Tensor], None] = lambda *_: None
    options: Mapping[str, Any] = field(default_factory=dict)

    def growth(self, a: Call) -> float:
        """Relative change of weights by the rounding of scores."""
        return math.expm1(min(600.0, 2 * (self.terms(a) + 4) * 2**-24 * self.score(a)))

    def largest_value(self, a: Call) -> float:
        """In place of max|v|."""
        bias = 0.0 if a.last is None or a.last.bias is None else largest(a.last.bias)
        return self.sums(a, a.largest_v * self.gain(a)) + bias

    def largest_gradients(self, a: Call, gradient: Tensor) -> list[float]:
        """What d q, d k and d v can reach: weights lie in 0 … 1, outputs among the values."""
        gain = self.gain(a)
        most, position = gain * largest(gradient), gain * largest(gradient.double().abs().sum(1))
        if self.gradients is not None:
            return self.gradients(a, most, position)
        of_score = 2 * position * a.largest_v
        of_q, of_k = self.slopes(a)
        return [of_score * of_q, a.n * of_score * of_k, a.n * most]

    def flushed(self, a: Call, dtype: torch.dtype) -> float:
        """Numbers up to this may be taken for zero."""
        flushes = a.last is not None or (self.fused and fused_kernel_flushes(dtype))
        return 2**-126 * self.gain(a) if flushes else 0.0


def fused_kernel_flushes(dtype: torch.dtype) -> bool:
    """Whether the fused kernel takes values below the smallest normal number for zero."""
    tiny = torch.full((1, 1, 32, 32), torch.finfo(dtype).tiny / 4, dtype=dtype)
    seen = torch.nn.functional.scaled_dot_product_attention(torch.zeros_like(tiny), tiny, tiny)
    return not bool(seen.any())


def channel_score(a: Call) -> float:
    return after_layer(a.m.up, after_layer(a.m.down, a.largest_v))


def channel_gradients(a: Call, most: float, position: float) -> list[float]:
    slope = largest_sums(a.m.up.weight)[1] * largest_sums(a.m.down.weight)[1] / 4
    return [0.0, 0.0, most * (1 + slope * a.largest_v)]


def transposed_gradients(a: Call, most: float, position: float) -> list[float]:
    of_score = 2 * a.n * most * a.largest_v * largest(a.m.temperature)
    norms = least_norm(a.q, (2, 3)), least_norm(a.k, (2, 3))
    return [a.c * x for x in (of_score / norms[0], of_score / norms[1], most)]


def token_gradients(a: Call, most: float, position: float) -> list[float]:
    of_score, of_cosine = 2 * position * a.largest_v, 2 * position * math.prod(a.tokens)
    d_q = of_score * a.norm_k + of_cosine / least_norm(a.q)
    return [d_q, a.n * of_score * a.norm_q, a.n * most]


def cross_scale_gradients(a: Call, most: float, position: float) -> list[float]:
    """A position is in nine patches, which a corner divides by four. Blocks hold one at least."""
    blocks = nn.AvgPool2d(a.m.scale, ceil_mode=True, count_include_pad=False)(a.k)
    least, longest = max(5e-5, patch_norms(blocks).min().item()), largest(patch_norms(a.q))
    of_score = 9 / 4 * a.m.sharpness * 2 * position * a.largest_v
    return [9 * of_score, 9 * a.n * of_score * 2 * longest / least, 9 / 4 * a.n * most]


def focused_slopes(a: Call) -> tuple[float, float]:
    powers, lengths = focused_features(a.k, a.m.focus)
    sums = (powers * lengths).sum(2)  # the least is in every query's normaliser
    least, most = sums.min().item(), sums.max().item()
    of_q = 2 * a.c * a.m.focus * most / least / a.q.amax(1).clamp_min(1e-6).min().item()
    return of_q, 2 * a.c**1.5 * (a.m.focus + 1) / least


def region_terms(a: Call) -> int:
    """A mean is summed over the positions of a region."""
    cells = regions(a.m.grid, *a.q.shape[2:])
    return a.c + math.prod(side // n + 2 for side, n in zip(a.q.shape[2:], cells, strict=True))


def agent_slopes(a: Call) -> tuple[float, float]:
    """A position is part of four regions at most."""
    of_q, of_k = (norm / math.sqrt(a.c) for norm in (a.norm_q, a.norm_k))
    return of_q + 4 * a.n * (of_q + of_k), of_q


def landmark_slopes(a: Call) -> tuple[float, float]:
    of_q, of_k = (norm / math.sqrt(a.c) for norm in (a.norm_q, a.norm_k))
    either = a.magnified * (max(of_q, of_k) + 4 * a.n * (of_q + of_k))
    return either, either / a.n


def landmark_gain(a: Call) -> float:
    """With the pseudo-inverse: that of float32 and that of float64."""
    gain = 1.0
    for dtype in (torch.float32, torch.float64):
        of_q, of_k = (landmarks(x.to(dtype), a.m.grid) for x in (a.q, a.k))
        inverse = landmark_inverse(of_q, of_k, a.m.steps)
        gain = max(gain, inverse.abs().sum(2).max().item())
    return gain + convolution_gain(a) - 1


def after_blocks(blocks: nn.Sequential, size: float) -> float:
    """Largest sum of absolute terms that residual blocks make of numbers up to this size."""
    for block in blocks:
        size += after_layer(block.second, after_layer(block.first, size))
    return size


def after_layer(layer: Any, size: float) -> float:
    into = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    return largest_sums(layer.weight)[into] * size + largest(layer.bias)


def mask_score(a: Call) -> float:
    """Of RNAN: the largest sum of absolute terms that enters the sigmoid."""
    m, size = a.m, a.largest_v
    x = after_blocks(m.before, size + after_layer(m.joined, after_layer(m.value, size)))
    below = after_blocks(m.below, after_layer(m.down, x))
    logit = after_layer(m.last, after_blocks(m.after, x + after_layer(m.up, below)))
    return max(1.0, logit) * (1 + a.product)


def mask_gradients(a: Call, most: float, position: float) -> list[float]:
    """Through RNAN's layers, from the last to the first, then through the softmax."""

    def before_layer(layer: Any, size: float) -> float:
        out_of = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
        return largest_sums(layer.weight)[out_of] * size

    def before_blocks(blocks: nn.Sequential, size: float) -> float:
        for block in reversed(blocks):
            size += before_layer(block.first, before_layer(block.second, size))
        return size

    m, size = a.m, a.largest_v
    of_logit = most * after_blocks(m.trunk, size) / 4
    of_sum = before_blocks(m.after, before_layer(m.last, of_logit))
    below = before_blocks(m.below, before_layer(m.up, of_sum))
    of_block = before_blocks(m.before, of_sum + before_layer(m.down, below))
    of_seen = before_layer(m.joined, of_block)
    of_score = 2 * a.c * of_seen * after_layer(m.value, size)
    through_values = a.n * before_layer(m.value, of_seen)
    d_v = before_blocks(m.trunk, most) + of_block + through_values
    return [of_score * a.norm_k, a.n * of_score * a.norm_q, d_v]


def choose_buckets(monkeypatch: pytest.MonkeyPatch, m: Any, q: Tensor) -> None:
    """How good they are is :func:`test_buckets_are_those_of_the_largest_projection`."""
    codes = hash_codes(q.flatten(2).mT, m.rotations(q))
    order = codes.sort(dim=-1, stable=True).indices
    monkeypatch.setattr("attention_zoo.cores.nlsa.sort_codes", lambda *_: order)
    monkeypatch.setattr("attention_zoo.nlsa.hash_codes", lambda *_: codes)


def choose_categories(monkeypatch: pytest.MonkeyPatch, m: Any, q: Tensor) -> None:
    categories = token_categories(token_attention(q, *m.token_maps(torch.float32))[1])
    monkeypatch.setattr("attention_zoo.rivals.atd.token_categories", lambda *_: categories)


NON_LOCAL = Bound(
    (2, 1, 2), "a weighted mean; the fused kernel rounds weights to the dtype too", fused=True
)
FEATURES = Bound(
    (1, 1, 2),
    "float32 throughout, rounded once; S bounds both exponents",
    score=lambda a: 2 * (a.longest_row * math.sqrt(a.m.k) + a.m.k / 2),
    slopes=lambda a: tuple(a.longest_row * math.sqrt(a.m.k) / least_norm(x) for x in (a.q, a.k)),
)
WINDOWS = Bound(
    (3, 3, 2),
    "a weighted mean, rounded, and the sum of C that joins the heads",
    score=lambda a: a.product / math.sqrt(a.c / len(a.m.bias)) + largest(a.m.bias),
)

BOUNDS = {
    "none": Bound((0, 0, 0), "nothing is computed", gradients=lambda *_: [0.0, 0.0, 0.0]),
    "conv": Bound(
        (1, 1, 1),
        "one sum of 9 C products in float32, rounded once",
        score=lambda _: 9.0,  # taps
        gradients=lambda a, most, position: [0.0, 0.0, most],
    ),
    "nla": NON_LOCAL,
    "nlsa": Bound(
        (6, 1, 2),
        "rounds are rounded, weighted and summed in the dtype",
        score=lambda a: a.norm_q,
        slopes=lambda a: (1.0, a.norm_q / least_norm(a.k)),
        choose=choose_buckets,
        options={"chunk_size": 8},
    ),
    "criss-cross": Bound((4, 1, 4), "column and row are rounded; the own position is taken out"),
    "enla": FEATURES,
    "enlca": FEATURES,
    "region": NON_LOCAL,
    "window": WINDOWS,
    "shifted-window": WINDOWS,
    "mdta": Bound(
        (3, 3, 2),
        "as window",
        score=lambda a: largest(a.m.temperature),
        terms=lambda a: a.c + a.n,
        gradients=transposed_gradients,
    ),
    "channel-attention": Bound(
        (2, 2, 1),
        "float32 throughout: the weight, and its product",
        score=channel_score,
        terms=lambda a: a.c + a.n,
        gradients=channel_gradients,
    ),
    "atd": Bound(
        (4, 4, 4),
        "as window; the mean of the token values, and the sum of both",
        score=lambda a: max(a.product / math.sqrt(a.c / a.m.heads), a.tokens[1]),
        gradients=token_gradients,
        sums=lambda a, size: size + a.tokens[0],
        choose=choose_categories,
        options={"category_size": 16},
    ),
    "performer": Bound(
        (1, 1, 2),
        "as enla",
        score=lambda a: (
            1
            + sum(a.longest_row * x / a.c**0.25 + x**2 / a.c**0.5 / 2 for x in (a.norm_q, a.norm_k))
        ),
        slopes=lambda a: tuple(
            a.longest_row / a.c**0.25 + x / a.c**0.5 for x in (a.norm_q, a.norm_k)
        ),
    ),
    "nystrom": Bound(
        (3, 3, 8),
        "as agent; what the pseudo-inverse magnifies is in gain and growth",
        score=lambda a: a.magnified * a.product / math.sqrt(a.c),
        terms=region_terms,
        slopes=landmark_slopes,
        gain=landmark_gain,
    ),
    "focused-linear": Bound(
        (3, 3, 2),
        "sums of positive terms, a depthwise convolution, both added",
        score=lambda a: a.m.focus + 1,
        terms=lambda a: a.c + a.n,
        slopes=focused_slopes,
    ),
    "nla-flash": NON_LOCAL,
    "nlrn": Bound((2, 1, 2), "as nla"),
    "csnln": Bound(
        (2, 1, 2),
        "as nla, in float32 throughout; the mean of nine patches is one too",
        score=lambda a: a.m.sharpness * largest(patch_norms(a.q)),
        terms=lambda a: 9 * a.c,
        gradients=cross_scale_gradients,
    ),
    "rnan": Bound(
        (2, 2, 1),
        "as channel-attention; in growth, all layers before the sigmoid",
        score=mask_score,
        terms=lambda a: a.c + a.n + sum(p[0].numel() for p in a.m.parameters()),
        gradients=mask_gradients,
        sums=lambda a, size: after_blocks(a.m.trunk, size),
    ),
    "agent": Bound(
        (3, 3, 4),
        "a mean of means, a depthwise convolution, and the sum of both",
        score=lambda a: a.norm_q * max(a.norm_q, a.norm_k) / math.sqrt(a.c),
        terms=region_terms,
        slopes=agent_slopes,
    ),
}

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HUGE = {torch.float32: 1e15, torch.bfloat16: 1e4, torch.float16: 1e4}
TINY = {torch.float32: 1e-20, torch.bfloat16: 1e-20, torch.float16: 2.0**-20}
KINDS = [
    "ordinary",
    "large",
    "huge",
    "tiny",
    "subnormal",
    "constant",
    "huge constant",
    "zero",
    "mixed",
]
SIZE = (5, 12)
#: As inserted, and with the 64 channels of Table 4 for query and key as well.
WIDTHS = [
    *((name, 16, {}) for name in BOUNDS),
    *(
        (name, 64, {"reduction": 1})
        for name in BOUNDS
        if "reduction" in find_attention(name).options()
    ),
]


def features(kind: str, seed: int, channels: int, dtype: torch.dtype) -> Tensor:
    """A map ``[1, C, 5, 12]`` of the kind, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, channels, *SIZE, generator=generator, dtype=torch.float64) / 2 + 0.5
    x *= torch.randint(2, x.shape, generator=generator) * 2 - 1  # 0.5 … 1, of either sign
    if kind == "mixed":  # whole positions of different size side by side
        sizes = torch.tensor([64.0, 1.0, TINY[dtype], 0.0]).repeat(15)
        x *= sizes[torch.randperm(60, generator=generator)].view(SIZE)
    elif "constant" in kind:
        x = x[:, :, :1, :1].expand_as(x)
    scale = {
        "large": 2.0**9,
        "huge": HUGE[dtype],
        "huge constant": HUGE[dtype],
        "tiny": TINY[dtype],
        "subnormal": torch.finfo(dtype).smallest_normal / 4,
        "zero": 0.0,
    }
    return (x * scale.get(kind, 1.0)).to(dtype)


def build(name: str, channels: int, dtype: torch.dtype, **options: Any) -> Attention:
    torch.manual_seed(0)
    if name in BOUNDS:
        options |= BOUNDS[name].options
    return perturb(create_attention(name, channels=channels, **options)).to(dtype).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "channels", "options"), WIDTHS)
def test_error_of_attend_is_bounded(
    name: str,
    channels: int,
    options: dict[str, int],
    dtype: torch.dtype,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Query, key and value of one kind; NLSA by the buckets of the low precision."""
    bound = BOUNDS[name]
    of_value, of_gradient, spread = bound.factors
    module = build(name, channels, dtype, **options)
    exact_module = copy.deepcopy(module).double()
    c = module.project(torch.zeros(1, channels, 1, 1, dtype=dtype))[0].shape[1]
    inputs = [features(kind, i, width, dtype) for i, width in enumerate((c, c, channels))]
    q, k, v = (x.requires_grad_() for x in inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]

    out = module.attend(q, k, v)
    bound.choose(monkeypatch, module, q)
    wanted = exact_module.attend(*exact)

    u, floor = torch.finfo(dtype).eps / 2, torch.finfo(dtype).eps * torch.finfo(dtype).tiny
    alone = module.project(v)[0] is module.project(v)[2]  # it sees its value alone
    call = Call(module, v, v, v) if alone else Call(module, q, k, v)
    change = bound.growth(call)
    assert out.dtype == dtype
    assert out.isfinite().all()
    error = (out.double() - wanted).abs().max().item()
    limit = (of_value * u + spread * min(1, change)) * bound.largest_value(call)
    limit += 4 * floor + bound.flushed(call, dtype)
    assert error <= limit, f"value: error {error:.3g}, bound {limit:.3g}"

    if name == "none":
        return
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
    # A loss scale, as in training: the largest gradient stays within float16.
    scale = 2.0**13 / max(bound.largest_gradients(call, gradient))
    gradient = (gradient * 2.0 ** math.floor(math.log2(scale))).to(dtype)
    leaves = [v] if alone else [q, k, v]
    actual = torch.autograd.grad(out, leaves, gradient)
    exact_gradients = torch.autograd.grad(wanted, exact[-len(leaves) :], gradient.double())
    sizes = bound.largest_gradients(call, gradient)[-len(leaves) :]
    # Score gradients below the smallest number of the dtype vanish in the fused kernel.
    vanished = call.n * floor * max(1.0, largest(q), largest(k))
    for what, a, b, size in zip("qkv"[-len(leaves) :], actual, exact_gradients, sizes, strict=True):
        assert a.isfinite().all(), f"gradient of {what} is not finite"
        error = (a.double() - b).abs().max().item()
        limit = (of_gradient * u + min(call.n, change)) * size + vanished
        assert error <= limit, f"gradient of {what}: error {error:.3g}, bound {limit:.3g}"


@pytest.mark.parametrize("kind", ["ordinary", "large", "huge", "huge constant", "zero", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOUNDS)
def test_error_of_the_weights_is_bounded(
    name: str, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the correlation maps show, under autocast too; float32 at least."""
    module = build(name, 16, dtype)
    c = module.project(torch.zeros(1, 16, 1, 1, dtype=dtype))[0].shape[1]
    q, k = features(kind, 0, c, dtype), features(kind, 1, c, dtype)
    lower = torch.float16 if dtype is torch.float32 else dtype
    try:
        with torch.autocast("cpu", dtype=lower):
            weights = module.attention_weights(q, k, 2, 3)
    except AttentionError:
        pytest.skip(f"{name} has no weights over positions")
    BOUNDS[name].choose(monkeypatch, module, q)
    wanted = copy.deepcopy(module).double().attention_weights(q.double(), k.double(), 2, 3)
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    assert abs(weights.double().sum() - 1) < 1e-5
    error = (weights.double() - wanted).abs().max()
    assert error <= 2**-22 + min(1, BOUNDS[name].growth(Call(module, q, k, k)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list_attentions())
def test_modules_stay_finite(name: str, dtype: torch.dtype, autocast: bool, kind: str) -> None:
    """Output, auxiliary loss, gradients, correlation: cast as a whole, or under autocast."""
    if autocast and dtype is torch.float32:
        return
    module = build(name, 16, torch.float32 if autocast else dtype).train()
    x = features(kind, 0, 16, dtype)
    x = (x.float() if autocast else x).requires_grad_()
    with torch.autocast("cpu", dtype=dtype if autocast else torch.float16, enabled=autocast):
        y = module(x)
        loss = module.auxiliary_loss()
    assert y.isfinite().all()
    assert loss.isfinite()
    # A loss scale: gradients of weights grow with the cube of the features.
    scale = 2.0 ** (-40 if dtype is torch.float32 else -10)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y) * scale
    ((y * gradient).float().sum() + loss * scale).backward()
    for what, leaf in [("x", x), *module.named_parameters()]:
        assert leaf.grad is None or leaf.grad.isfinite().all(), what


@pytest.mark.parametrize("kind", ["ordinary", "large", "huge", "tiny", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hashed", [hash_codes, nlsa_tiled.hash_codes, nlsa_native.hash_codes])
def test_buckets_are_those_of_the_largest_projection(
    hashed: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, kind: str
) -> None:
    """Up to float32 rounding of the projection itself; an overflow would make all alike."""
    rows = features(kind, 0, 16, dtype).flatten(2).mT
    if hashed is nlsa_native.hash_codes and (reason := why_not_native(rows)):
        pytest.skip(reason)
    rotations = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(1))
    exact = torch.einsum("bnc,rch->brnh", rows.double(), rotations.double())
    exact = torch.cat([exact, -exact], dim=-1)
    chosen = exact.gather(-1, hashed(rows, rotations).unsqueeze(-1)).squeeze(-1)
    allowed = (
        2 * 16 * 2**-24 * rows.double().norm(dim=-1).unsqueeze(1) * rotations.norm(dim=1).max()
    )
    assert (exact.amax(-1) - chosen <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_the_contrastive_loss_is_bounded(dtype: torch.dtype, kind: str) -> None:
    """T is in float32 whatever the dtype: |error| <= 4 (c + 4) 2^-24 · amplification."""
    q, k = (features(kind, i, 4, dtype).requires_grad_() for i in (0, 1))
    loss = contrastive_loss(q, k, n1=0.1, n2=0.4, hinge=False)
    with torch.no_grad():
        wanted = contrastive_oracle.contrastive_loss(q, k, n1=0.1, n2=0.4, hinge=False)
    assert abs(loss.double() - wanted) <= 4 * 8 * 2**-24 * 6.0
    for gradient in torch.autograd.grad(loss * 2.0**-10, [q, k]):
        assert gradient.isfinite().all()


def released_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float = 1e-4
) -> Tensor:
    """Eq. 5–6 as they stand, sums over all positions in the dtype of the inputs."""
    u_q, u_k, values = (x.flatten(2).mT for x in (q, k, v))
    phi_q, phi_k = (
        (torch.exp(u @ projection.T - u.square().sum(-1, keepdim=True) / 2) + eps)
        / math.sqrt(len(projection))
        for u in (u_q, u_k)
    )
    normaliser = phi_q @ phi_k.sum(1).unsqueeze(-1)
    return ((phi_q @ (phi_k.mT @ values)) / normaliser).mT.reshape(v.shape)


@pytest.mark.parametrize("size", [(4, 4), (24, 24)])
def test_enla_stays_finite_in_float16_where_the_released_form_overflows(
    size: tuple[int, int],
) -> None:
    """A flat region: exp(q·k) = e^6 for every pair, and 576 · e^6 / 2 > 65504.

    On 16 positions the released form is right, so it is the sums that fail, not the formula.
    """
    projection = orthogonal_gaussian(128, 16, torch.Generator().manual_seed(0)).half()
    u = features("constant", 0, 16, torch.float16)[:, :, :1, :1].expand(1, 16, *size)
    u = normalise(u, 6.0).half()
    v = torch.rand(1, 8, *size, generator=torch.Generator().manual_seed(1)).half()
    exact = released_attention(u.double(), u.double(), v.double(), projection.double())
    released = released_attention(u, u, v, projection)
    if size == (4, 4):
        assert (released - exact).abs().max() < 0.01
    else:
        assert (released.isnan() | (released == 0)).all()  # infinity, or less, over infinity
    ours = random_feature_attention(u, u, v, projection)
    assert (ours - exact).abs().max() <= (2**-11 + 1e-5) * v.abs().max()

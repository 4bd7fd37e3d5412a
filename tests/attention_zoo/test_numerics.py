"""Extreme features in float32, bfloat16 and float16: finite results, and bounds on the error.

The bounds of BOUNDS stand in the docstrings of the functions too, as "Numerics".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import (
    Attention,
    AttentionError,
    create_attention,
    find_attention,
    list_attentions,
)
from attention_zoo.cores import nlsa_native, nlsa_tiled
from attention_zoo.cores.native import why_not_native
from attention_zoo.enla import (
    EfficientNonLocalAttention,
    normalise,
    orthogonal_gaussian,
    random_feature_attention,
)
from attention_zoo.enlca import contrastive_loss
from attention_zoo.nlsa import NonLocalSparseAttention, hash_codes
from attention_zoo.rivals.agent import AgentAttention, regions
from attention_zoo.rivals.atd import (
    AdaptiveTokenDictionaryAttention,
    token_attention,
    token_categories,
)
from attention_zoo.rivals.csnln import CrossScaleAttention, patch_norms
from attention_zoo.rivals.focused_linear import FocusedLinearAttention, focused_features
from attention_zoo.rivals.mdta import TransposedAttention
from attention_zoo.rivals.nystrom import NystromAttention, landmark_inverse, landmarks
from attention_zoo.rivals.performer import PerformerAttention
from attention_zoo.rivals.rcan import ChannelAttention
from attention_zoo.rivals.rnan import ResidualNonLocalAttention
from attention_zoo.rivals.window import WindowAttention
from tests.reference import contrastive as contrastive_oracle
from tests.reference.cases import perturb


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
    is the largest gradient that embeddings of this size can have (:func:`largest_gradients`):
    not that of these ones, which may cancel to zero.
    """

    value: float
    gradient: float
    spread: float
    why: str


BOUNDS = {
    "none": Bound(0, 0, 0, "nothing is computed"),
    "conv": Bound(1, 1, 1, "one sum of 9 C products in float32, rounded once"),
    "nla": Bound(2, 1, 2, "a weighted mean; the fused kernel rounds weights to the dtype too"),
    "nlsa": Bound(6, 1, 2, "rounds are rounded, weighted and summed in the dtype"),
    "criss-cross": Bound(4, 1, 4, "column and row are rounded; the own position is taken out"),
    "enla": Bound(1, 1, 2, "float32 throughout, rounded once; S bounds both exponents"),
    "enlca": Bound(1, 1, 2, "as enla"),
    "region": Bound(2, 1, 2, "as nla"),
    "window": Bound(3, 3, 2, "a weighted mean, rounded, and the sum of C that joins the heads"),
    "shifted-window": Bound(3, 3, 2, "as window"),
    "mdta": Bound(3, 3, 2, "as window"),
    "channel-attention": Bound(2, 2, 1, "float32 throughout: the weight, and its product"),
    "atd": Bound(4, 4, 4, "as window; the mean of the token values, and the sum of both"),
    "performer": Bound(1, 1, 2, "as enla"),
    "nystrom": Bound(3, 3, 8, "as agent; what the pseudo-inverse magnifies is in gain and growth"),
    "focused-linear": Bound(3, 3, 2, "sums of positive terms, a depthwise convolution, both added"),
    "nla-flash": Bound(2, 1, 2, "as nla"),
    "nlrn": Bound(2, 1, 2, "as nla"),
    "csnln": Bound(2, 1, 2, "as nla, in float32 throughout; the mean of nine patches is one too"),
    "rnan": Bound(2, 2, 1, "as channel-attention; in growth, all layers before the sigmoid"),
    "agent": Bound(3, 3, 4, "a mean of means, a depthwise convolution, and the sum of both"),
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
    if name == "nlsa":
        options["chunk_size"] = 8
    if name == "atd":
        options["category_size"] = 16
    module = create_attention(name, channels=channels, **options)
    return perturb(module).to(dtype).eval()  # type: ignore[return-value]


def largest_norm(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.double(), dim=1).max().item()


def least_norm(x: Tensor, dims: int | tuple[int, int] = 1) -> float:
    """Of what embeddings, or whole channels, are divided by."""
    return max(5e-5, torch.linalg.vector_norm(x.double(), dim=dims).min().item())


def largest_score(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> float:
    """S of :class:`Bound`: no score, or exponent, is larger in magnitude, nor are its terms."""
    if isinstance(module, EfficientNonLocalAttention):
        return 2 * (longest_row(module) * math.sqrt(module.k) + module.k / 2)
    if isinstance(module, PerformerAttention):
        lengths = [x / q.shape[1] ** 0.25 for x in (largest_norm(q), largest_norm(k))]
        return 1 + sum(longest_row(module) * x + x**2 / 2 for x in lengths)
    if module.name == "nlsa":
        return largest_norm(q)
    if module.name == "conv":
        return 9.0  # taps
    if isinstance(module, FocusedLinearAttention):
        return module.focus + 1
    if isinstance(module, ChannelAttention):
        hidden = largest_sums(module.down.weight)[0] * q.double().abs().max().item()
        hidden += module.down.bias.double().abs().max().item()
        entering = largest_sums(module.up.weight)[0] * hidden
        return entering + module.up.bias.double().abs().max().item()
    if isinstance(module, TransposedAttention):
        return module.temperature.double().abs().max().item()
    if isinstance(module, CrossScaleAttention):
        return module.sharpness * patch_norms(q.detach().double()).max().item()
    if isinstance(module, ResidualNonLocalAttention):
        scores = largest_norm(q) * largest_norm(k)
        return max(1.0, largest_logit(module, v.double().abs().max().item())) * (1 + scores)
    if isinstance(module, AgentAttention):
        longest = largest_norm(q)
        return longest * max(longest, largest_norm(k)) / math.sqrt(q.shape[1])
    score = largest_norm(q) * largest_norm(k)
    if isinstance(module, NystromAttention):
        return magnified(module, q) * score / math.sqrt(q.shape[1])
    if isinstance(module, WindowAttention):
        d = q.shape[1] / module.bias.shape[0]
        return score / math.sqrt(d) + module.bias.double().abs().max().item()
    if isinstance(module, AdaptiveTokenDictionaryAttention):
        return max(score / math.sqrt(q.shape[1] / module.heads), largest_scale(module))
    return score


def largest_gradients(
    module: Attention, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor
) -> list[float]:
    """What d q, d k and d v can reach: weights lie in 0 … 1, outputs among the values."""
    if module.name == "none":
        return [0.0, 0.0, 0.0]
    n = SIZE[0] * SIZE[1]
    gain = largest_gain(module, q, k)
    largest = gain * gradient.double().abs().max().item()
    at_a_position = gain * gradient.double().abs().sum(1).max().item()
    if module.name == "conv":
        return [0.0, 0.0, largest]
    if isinstance(module, ChannelAttention):
        slope = largest_sums(module.up.weight)[1] * largest_sums(module.down.weight)[1] / 4
        return [0.0, 0.0, largest * (1 + slope * v.double().abs().max().item())]
    if isinstance(module, TransposedAttention):
        c = v.shape[1]
        d_score = 2 * n * largest * v.double().abs().max().item() * largest_score(module, q, k, v)
        norms = least_norm(q, (2, 3)), least_norm(k, (2, 3))
        return [c * d_score / norms[0], c * d_score / norms[1], c * largest]
    if isinstance(module, ResidualNonLocalAttention):
        return largest_gradients_of_the_mask(module, q, k, v, largest)
    d_score = 2 * at_a_position * v.double().abs().max().item()
    d_v = n * largest
    if isinstance(module, CrossScaleAttention):
        # A position is in nine patches, which a corner divides by four. Blocks hold one at least.
        d_score *= 9 / 4 * module.sharpness
        pool = torch.nn.AvgPool2d(module.scale, ceil_mode=True, count_include_pad=False)
        least = max(5e-5, patch_norms(pool(k.detach().double())).min().item())
        longest = patch_norms(q.detach().double()).max().item()
        return [9 * d_score, 9 * n * d_score * 2 * longest / least, 9 / 4 * d_v]
    if isinstance(module, EfficientNonLocalAttention):
        d_score *= longest_row(module) * math.sqrt(module.k)
        return [d_score / least_norm(q), n * d_score / least_norm(k), d_v]
    if isinstance(module, PerformerAttention):
        root = q.shape[1] ** 0.25
        by_q, by_k = (
            d_score * (longest_row(module) + largest_norm(x) / root) / root for x in (q, k)
        )
        return [by_q, n * by_k, d_v]
    if isinstance(module, AgentAttention | NystromAttention):
        of_q, of_k = (d_score * largest_norm(x) / math.sqrt(q.shape[1]) for x in (q, k))
        pooled = 4 * n * (of_q + of_k)  # a position is part of four regions at most
        if isinstance(module, NystromAttention):
            return [*[magnified(module, q) * (max(of_q, of_k) + pooled)] * 2, d_v]
        return [of_q + pooled, n * of_q, d_v]
    if isinstance(module, FocusedLinearAttention):
        c, (queries, keys) = q.shape[1], (x.detach().double() for x in (q, k))
        powers, lengths = focused_features(keys, module.focus)
        sums = (powers * lengths).sum(2)  # the least is in every query's normaliser
        least, most = sums.min().item(), sums.max().item()
        of_q = 2 * c * module.focus * most / least / queries.amax(1).clamp_min(1e-6).min().item()
        of_k = 2 * c**1.5 * (module.focus + 1) / least
        return [d_score * of_q, n * d_score * of_k, d_v]
    if module.name == "nlsa":
        return [d_score, n * d_score * largest_norm(q) / least_norm(k), d_v]
    by_q, by_k = d_score * largest_norm(k), n * d_score * largest_norm(q)
    if isinstance(module, AdaptiveTokenDictionaryAttention):
        d_cosine = 2 * at_a_position * largest_token_value(module) * largest_scale(module)
        by_q += d_cosine / least_norm(q)
    return [by_q, by_k, d_v]


def longest_row(module: EfficientNonLocalAttention | PerformerAttention) -> float:
    return module.projection.double().norm(dim=1).max().item()


def magnified(module: NystromAttention, q: Tensor) -> float:
    """What the iteration for the pseudo-inverse makes of an error of the weights of landmarks."""
    return (13 / 4) ** module.steps * math.prod(regions(module.grid, *q.shape[2:]))


def largest_gain(module: Attention, q: Tensor, k: Tensor) -> float:
    """By how much the convolution of some modules can magnify values and gradients.

    With Nyström attention, the pseudo-inverse too: that of float32 and that of float64.
    """
    last, gain = last_convolution(module), 1.0
    if isinstance(module, NystromAttention):
        for dtype in (torch.float32, torch.float64):
            of_q, of_k = (landmarks(x.detach().to(dtype), module.grid) for x in (q, k))
            inverse = landmark_inverse(of_q, of_k, module.steps)
            gain = max(gain, inverse.abs().sum(2).max().item())
    if last is None:
        return gain
    if last.groups > 1:  # depthwise, of the values, added to the attention
        return gain + largest_sums(last.weight)[0]
    return max(1.0, *largest_sums(last.weight))


def after_blocks(blocks: torch.nn.Sequential, size: float) -> float:
    """Largest sum of absolute terms that residual blocks make of numbers up to this size."""
    for block in blocks:
        size += after_layer(block.second, after_layer(block.first, size))
    return size


def after_layer(layer: torch.nn.Conv2d | torch.nn.ConvTranspose2d, size: float) -> float:
    into = 1 if isinstance(layer, torch.nn.ConvTranspose2d) else 0
    assert layer.bias is not None
    return largest_sums(layer.weight)[into] * size + layer.bias.double().abs().max().item()


def largest_logit(module: ResidualNonLocalAttention, size: float) -> float:
    """Largest sum of absolute terms that enters the sigmoid."""
    x = after_blocks(module.before, size + after_layer(module.joined, size_of_seen(module, size)))
    below = after_blocks(module.below, after_layer(module.down, x))
    return after_layer(module.last, after_blocks(module.after, x + after_layer(module.up, below)))


def size_of_seen(module: ResidualNonLocalAttention, size: float) -> float:
    return after_layer(module.value, size)


def largest_gradients_of_the_mask(
    module: ResidualNonLocalAttention, q: Tensor, k: Tensor, v: Tensor, gradient: float
) -> list[float]:
    """Of RNAN: through its layers, from the last to the first, then through the softmax."""

    def before_layer(layer: torch.nn.Module, size: float) -> float:
        out_of = 0 if isinstance(layer, torch.nn.ConvTranspose2d) else 1
        return largest_sums(layer.weight)[out_of] * size  # type: ignore[arg-type]

    def before_blocks(blocks: torch.nn.Sequential, size: float) -> float:
        for block in reversed(blocks):
            size += before_layer(block.first, before_layer(block.second, size))
        return size

    largest, n = v.double().abs().max().item(), v[0, 0].numel()
    of_logit = gradient * after_blocks(module.trunk, largest) / 4
    of_sum = before_blocks(module.after, before_layer(module.last, of_logit))
    below = before_blocks(module.below, before_layer(module.up, of_sum))
    of_block = before_blocks(module.before, of_sum + before_layer(module.down, below))
    of_seen = before_layer(module.joined, of_block)
    d_score = 2 * q.shape[1] * of_seen * size_of_seen(module, largest)
    through_values = n * before_layer(module.value, of_seen)
    of_v = before_blocks(module.trunk, gradient) + of_block + through_values
    return [d_score * largest_norm(k), n * d_score * largest_norm(q), of_v]


def last_convolution(module: Attention) -> torch.nn.Conv2d | None:
    names = ("conv", "output", "local")
    return next((found for name in names if (found := getattr(module, name, None))), None)


def fused_kernel_flushes(module: Attention, dtype: torch.dtype) -> bool:
    """Whether the fused kernel takes values below the smallest normal number for zero."""
    if module.name not in {"nla", "nla-flash", "region"}:
        return False
    tiny = torch.full((1, 1, 32, 32), torch.finfo(dtype).tiny / 4, dtype=dtype)
    seen = torch.nn.functional.scaled_dot_product_attention(torch.zeros_like(tiny), tiny, tiny)
    return not bool(seen.any())


def largest_sums(weight: Tensor) -> tuple[float, float]:
    """Largest sum of absolute weights ``[out, in, …]`` into an output, and out of an input."""
    weight = weight.double().abs().view(*weight.shape[:2], -1).sum(2)
    return weight.sum(1).max().item(), weight.sum(0).max().item()


def largest_token_value(module: AdaptiveTokenDictionaryAttention) -> float:
    return module.token_maps(torch.float64)[1].abs().max().item()


def largest_scale(module: AdaptiveTokenDictionaryAttention) -> float:
    return module.token_maps(torch.float64)[2].max().item()


def growth(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Relative change of weights by the rounding of scores, see :class:`Bound`."""
    terms = q.shape[1]
    if isinstance(module, TransposedAttention | ChannelAttention | FocusedLinearAttention):
        terms += q.shape[2] * q.shape[3]  # sums over positions
    if isinstance(module, AgentAttention | NystromAttention):  # sums over those of a region
        cells = regions(module.grid, *q.shape[2:])
        terms += math.prod(length // n + 2 for length, n in zip(q.shape[2:], cells, strict=True))
    if isinstance(module, CrossScaleAttention):
        terms *= 9  # of a patch
    if isinstance(module, ResidualNonLocalAttention):  # of all layers
        terms += q[0, 0].numel() + sum(p[0].numel() for p in module.parameters())
    exponent = 2 * (terms + 4) * 2**-24 * largest_score(module, q, k, v)
    return math.expm1(min(600.0, exponent))


def same_buckets(monkeypatch: pytest.MonkeyPatch, module: Attention, q: Tensor) -> None:
    """The float64 twin of NLSA takes the low precision's buckets: a near tie may fall either way.

    The same holds for ATD's categories. :func:`test_buckets_are_those_of_the_largest_projection`
    tests the buckets themselves.
    """
    if isinstance(module, NonLocalSparseAttention):
        codes = hash_codes(q.flatten(2).mT, module.rotations(q))
        order = codes.sort(dim=-1, stable=True).indices
        monkeypatch.setattr("attention_zoo.cores.nlsa.sort_codes", lambda *_: order)
        monkeypatch.setattr("attention_zoo.nlsa.hash_codes", lambda *_: codes)
    if isinstance(module, AdaptiveTokenDictionaryAttention):
        _, scores = token_attention(q, *module.token_maps(torch.float32))
        categories = token_categories(scores)
        monkeypatch.setattr("attention_zoo.rivals.atd.token_categories", lambda *_: categories)


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
    module = build(name, channels, dtype, **options)
    exact_module = copy.deepcopy(module).double()
    c = module.project(torch.zeros(1, channels, 1, 1, dtype=dtype))[0].shape[1]
    inputs = [features(kind, i, width, dtype) for i, width in enumerate((c, c, channels))]
    q, k, v = (x.requires_grad_() for x in inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]

    out = module.attend(q, k, v)
    same_buckets(monkeypatch, module, q)
    wanted = exact_module.attend(*exact)

    u, floor = torch.finfo(dtype).eps / 2, torch.finfo(dtype).eps * torch.finfo(dtype).tiny
    alone = module.project(v)[0] is module.project(v)[2]  # it sees its value alone
    change = growth(module, v, v, v) if alone else growth(module, q, k, v)
    gain = largest_gain(module, q, k)
    largest = v.double().abs().max().item() * gain
    if isinstance(module, ResidualNonLocalAttention):
        largest = after_blocks(module.trunk, largest)
    last = last_convolution(module)
    if last is not None and last.bias is not None:
        largest += last.bias.double().abs().max().item()
    flushes = last is not None or fused_kernel_flushes(module, dtype)
    flushed = 2**-126 * gain if flushes else 0
    if isinstance(module, AdaptiveTokenDictionaryAttention):
        largest += largest_token_value(module)
    assert out.dtype == dtype
    assert out.isfinite().all()
    error = (out.double() - wanted).abs().max().item()
    limit = (bound.value * u + bound.spread * min(1, change)) * largest + 4 * floor + flushed
    assert error <= limit, f"value: error {error:.3g}, bound {limit:.3g}"

    if name == "none":
        return
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).double()
    # A loss scale, as in training: the largest gradient stays within float16.
    scale = 2.0**13 / max(largest_gradients(module, q, k, v, gradient))
    gradient = (gradient * 2.0 ** math.floor(math.log2(scale))).to(dtype)
    leaves = [v] if alone else [q, k, v]
    exact_leaves = exact[-len(leaves) :]
    actual = torch.autograd.grad(out, leaves, gradient)
    wanted_gradients = torch.autograd.grad(wanted, exact_leaves, gradient.double())
    sizes = largest_gradients(module, q, k, v, gradient)[-len(leaves) :]
    n = out[0, 0].numel()
    # Score gradients below the smallest number of the dtype vanish in the fused kernel.
    vanished = n * floor * max(1.0, *(x.double().abs().max().item() for x in (q, k)))
    for what, a, b, size in zip(
        "qkv"[-len(leaves) :], actual, wanted_gradients, sizes, strict=True
    ):
        assert a.isfinite().all(), f"gradient of {what} is not finite"
        error = (a.double() - b).abs().max().item()
        limit = (bound.gradient * u + min(n, change)) * size + vanished
        assert error <= limit, f"gradient of {what}: error {error:.3g}, bound {limit:.3g}"


def test_every_module_has_a_bound() -> None:
    assert sorted(BOUNDS) == list_attentions()


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
    same_buckets(monkeypatch, module, q)
    wanted = copy.deepcopy(module).double().attention_weights(q.double(), k.double(), 2, 3)
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    assert abs(weights.double().sum() - 1) < 1e-5
    error = (weights.double() - wanted).abs().max()
    assert error <= 2**-22 + min(1, growth(module, q, k, k))


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

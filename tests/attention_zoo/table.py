"""An oracle for every built-in module, and what the tests over all modules need to know of it.

A new module is a file in ``attention_zoo`` and an entry here, such as ::

    "top-k": Oracle(by(reference.top_k.top_k_attention, "k"), gflops="12.84"),

It is then tested against the oracle (``test_oracles.py``), for its cost (``test_cost.py``), label
and bad options (``test_registry.py``), besides what is asked of every registered module. What is
special to it goes to ``test_<module>.py``, or to ``test_rivals.py`` if it takes less than a page;
bounds on its error, if there are any, to ``test_numerics.py``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import create_attention, find_attention
from tests import reference
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_all_close,
    perturb,
    random_qkv,
    with_gradients,
)
from tests.reference.conv import convolve

Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
#: Values of an option to draw from, by option.
Drawn = Mapping[str, st.SearchStrategy[Any]]


@dataclass(frozen=True)
class Oracle:
    """One module. Only the first two have no default.

    Attributes:
        attend: ``module.attend`` in plain loops: ``(module, q, k, v)`` to ``[B, c_out, H, W]``.
        gflops: of the core at 100x100, 64 channels in query and key too, with as many digits.
        label: with the options below.
        options: small enough for maps of a few positions.
        drawn: what agreement and cost are tested with.
        refused: bad values by option; of options that are whole numbers they need no mention.
        residual: ``(module, x, attention)`` to ``y``.
        prepare: changes ``(module, q, k)`` where random ones would hide or blur a difference.
        sizes: of maps; the last one bounds those that are drawn.
        dtypes: those in which the module makes the choices of its oracle.
        condition: by how much the errors of float32 and float64 are magnified.
        defaults: whether plain loops can have the default options too.
        memory: side of a map, and the elements that its largest tensor may have.
    """

    attend: Attend
    gflops: str
    label: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=dict)
    refused: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    residual: Callable[[Any, Tensor, Tensor], Tensor] = lambda m, x, y: x + m.res_scale * y
    prepare: Callable[[Any, Tensor, Tensor], Any] = lambda *_: None
    sizes: Sequence[tuple[int, int]] = tuple(SIZES)
    dtypes: Sequence[torch.dtype] = tuple(TOLERANCES)
    condition: float = 1
    defaults: bool = True
    memory: tuple[int, int, dict[str, Any]] | None = None

    def forward(self, module: Any, x: Tensor) -> Tensor:
        """The whole module."""
        for _ in range(getattr(module, "recurrence", 1)):
            x = self.residual(module, x, self.attend(module, *module.project(x)))
        return x


def channels_of(name: str, width: int, **options: Any) -> int:
    """Channels of a module with ``width`` channels for each head of query and key."""
    defaults = {option: p.default for option, p in find_attention(name).options().items()}
    return width * math.prod((defaults | options).get(o, 1) for o in ("reduction", "heads"))


def build(name: str, width: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A module of that width, with open gates."""
    torch.manual_seed(0)
    module = create_attention(name, channels_of(name, width, **options), **options)
    return perturb(module).to(dtype)


def build_with_inputs(
    name: str,
    size: tuple[int, int],
    *,
    width: int = 3,
    seed: int = 0,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[Any, list[Tensor]]:
    """A module in evaluation, and query, key and value for it."""
    module = build(name, width, dtype, **options).eval()
    c = module.project(torch.zeros(1, module.channels, 1, 1, dtype=dtype))[0].shape[1]
    q, k, v = random_qkv(seed, size, c=c, c_out=module.channels, batch=batch, dtype=dtype)
    ORACLES[name].prepare(module, q, k)
    return module, [q, k, v]


def assert_attend_agrees(
    name: str, size: tuple[int, int], *, factor: float = 1, condition: float = 1, **case: Any
) -> None:
    """Value, and gradients by query, key, value and parameters, contiguous and channels-last.

    Factor is of query and key, condition of the tolerance.
    """
    oracle = ORACLES[name]
    module, qkv = build_with_inputs(name, size, **case)
    for t in qkv[:2]:
        t.data *= factor
    dtype, exact_module = qkv[0].dtype, copy.deepcopy(module).double()
    exact = [t.detach().double().requires_grad_() for t in qkv]
    expected = with_gradients(
        oracle.attend(exact_module, *exact), [*exact, *exact_module.parameters()]
    )
    if dtype in (torch.float32, torch.float64):
        condition *= oracle.condition
    value, gradient = TOLERANCES[dtype]
    leaves = ["q", "k", "v", *(parameter for parameter, _ in module.named_parameters())]
    for memory_format in FORMATS:
        maps = [t.detach().contiguous(memory_format=memory_format).requires_grad_() for t in qkv]
        actual = with_gradients(module.attend(*maps), [*maps, *module.parameters()])
        assert actual[0].dtype == dtype
        assert_all_close(actual, expected, leaves, (condition * value, condition * gradient))


def by(function: Callable[..., Tensor], *attributes: str) -> Attend:
    """``function(q, k, v, *attributes of the module)``, and the module's convolutions after it.

    Those are ``output``, of what comes out, and ``local``, of the values, which is added.
    """

    def attend(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q, k, v, *(getattr(m, name) for name in attributes))
        if (output := getattr(m, "output", None)) is not None:
            out = convolve(output, out)
        local = getattr(m, "local", None)
        return out if local is None else out + convolve(local, v)

    return attend


def token_maps(m: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and scales of ATD's tokens."""
    keys, values = (
        torch.stack([layer.weight @ token + layer.bias for token in m.dictionary])
        for layer in (m.token_key, m.token_value)
    )
    return keys, values, 1 + m.scale * math.log(len(keys))


def attend_to_tokens(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values, scale = token_maps(m)
    categories = reference.atd.token_categories(q, keys, scale)
    out = reference.atd.category_attention(q, k, v, categories, m.heads, m.category_size)
    return convolve(m.output, out) + reference.atd.token_attention(q, keys, values, scale)


def attend_by_features(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = (reference.enla.normalise(t, m.k) for t in (q, k))
    return reference.enla.random_feature_attention(q, k, v, m.projection, m.eps)


def attend_in_chunks(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.nlsa.sparse_attention(q, k, v, m.rotations(q), m.chunk_size)


def attend_to_neighbours(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.nlrn.neighbourhood_attention(q, k, v, 2 * m.reach + 1)


def attend_to_cells(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = convolve(m.key, k), convolve(m.value, v)
    out = reference.permuted_window.permuted_window_attention(q, k, v, m.bias, m.window)
    return convolve(m.output, out)


def convolve_some(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    layers = tuple((layer.weight, layer.bias) for layer in (m.down, m.up))
    return convolve(m.output, reference.large_kernel.convolutional_attention(v, m.large, layers))


def attend_to_cluster(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    oracle = reference.token_cluster
    features = oracle.features_of(q, k)
    if m.training:
        kept = list(m.start.double())
        start = kept if m.started else oracle.around_the_mean(features, m.start)
        centres = oracle.fitted(features, start, kept, m.iterations)
    else:
        centres = list(m.average.double())
    clusters = [[oracle.nearest(u, centres) for u in image] for image in features]
    keys, values = (
        [layer.weight @ t + layer.bias for t in centres] for layer in (m.centre_key, m.centre_value)
    )
    out = oracle.group_attention(q, k, v, clusters, m.heads, m.group_size)
    return convolve(m.output, out + oracle.centre_attention(q, keys, values, m.heads))


def merge_neighbours(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    temperature = m.log_temperature.exp()
    found = reference.patch_knn.nearest_neighbours(q, k, v, temperature, m.k, m.window)
    return convolve(m.output, found.flatten(1, 2))


def trunk_times_mask(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.rnan.trunk_times_mask(q, k, v, dict(m.named_parameters()), m.blocks)


def weigh_channels(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.rcan.channel_attention(v, *([f.weight, f.bias] for f in (m.down, m.up)))


def gated_delta_rule(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    beta = torch.sigmoid(convolve(m.strength, v))
    steps = softplus(convolve(m.decay, v))
    log_alpha = -torch.exp(m.log_rate).view(-1, 1, 1) * steps
    out = reference.scans.gated_delta_rule(q, k, v, log_alpha, beta, m.directions)
    return convolve(m.output, out)


def selective_scan(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    steps, rates = softplus(convolve(m.step, v)), torch.exp(m.log_rate)
    out = reference.scans.selective_scan(q, k, v, steps, rates, m.skip, m.directions)
    return convolve(m.output, out)


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def share_a_feature(m: Any, q: Tensor, k: Tensor) -> None:
    """Rectified features weigh pairs that share none by 1e-18, or by 0."""
    m.query.bias.data[0] = m.key.bias.data[0] = 3.0
    for t in (q, k):
        t.data[:, 0] = t.data[:, 0].abs() + 0.25


def released_residual(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return y + m.res_scale * x if m.released else x + m.res_scale * y


SOME: Drawn = {"reduction": st.sampled_from([1, 2, 4])}
MORE: Drawn = {"reduction": st.sampled_from([1, 2, 8])}
GRID: Drawn = {"grid": st.integers(1, 9), **MORE}
FEATURES: Drawn = {"m": st.integers(1, 40), **MORE}
ODD = (st.integers(0, 6) | st.integers(0, 25)).map(lambda reach: 2 * reach + 1)
HEADS = st.sampled_from([1, 2, 4])
DIRECTIONS = st.sampled_from([2, 4])
#: The last one has two chunks, and one position of a third.
SCANNED = [*SIZES, (5, 13)]

NON_LOCAL = Oracle(
    by(reference.nla.non_local_attention),
    gflops="25.60",
    label="NLA",
    drawn={"released": st.booleans(), **SOME},
    residual=released_residual,
)
WINDOW = Oracle(
    by(reference.window.window_attention, "bias", "shift"),
    gflops="0.164",
    label="Window-w3",
    options={"window": 3, "heads": 2},
    drawn={"window": st.integers(1, 12), "heads": HEADS, **SOME},
    prepare=lambda m, q, k: m.bias.data.mul_(10),
    defaults=False,
    memory=(128, 2**19, {"window": 16}),
)

ORACLES: dict[str, Oracle] = {
    "agent": Oracle(
        by(reference.agent.agent_attention, "grid"),
        gflops="0.262",
        label="Agent-3x3",
        options={"grid": 3},
        drawn=GRID,
    ),
    "atd": Oracle(
        attend_to_tokens,
        gflops="0.492",
        label="ATD",
        options={"tokens": 5, "category_size": 8, "heads": 2},
        drawn={
            "tokens": st.integers(1, 70),
            "category_size": st.integers(1, 14) | st.integers(1, 200),
            "heads": HEADS,
            **SOME,
        },
        defaults=False,
    ),
    "channel-attention": Oracle(
        weigh_channels,
        gflops="0.00",
        label="RCAN CA",
        options={"squeeze": 2},
        drawn={"squeeze": st.integers(1, 70)},
    ),
    "cluster-landmarks": Oracle(
        by(reference.cluster_landmarks.landmark_attention, "share", "sample"),
        gflops="1.336",
        label="SAT-0.2",
        options={"share": 0.2},
        drawn={"share": st.floats(0.01, 1), "sample": st.integers(1, 6), **SOME},
        refused={"share": [0.0, -0.1, 1.5, math.nan]},
        dtypes=[torch.float64, torch.float32],
        condition=3,
        memory=(112, 2**21, {}),
    ),
    "conv": Oracle(lambda m, q, k, v: convolve(m.conv, v), gflops="0.74", label="Conv"),
    "criss-cross": Oracle(
        by(reference.criss_cross.criss_cross_attention),
        gflops="0.512",
        label="Criss-Cross-R2",
        options={"recurrence": 2},
        drawn={"recurrence": st.integers(1, 3)},
        residual=lambda m, x, y: x + m.gamma * y,
    ),
    "csnln": Oracle(
        by(reference.csnln.cross_scale_attention, "scale", "sharpness"),
        gflops="57.6",
        label="CSNLN-x2",
        options={"sharpness": 1.0},  # else half precision sees scores of 60
        drawn={"scale": st.integers(1, 4), "sharpness": st.just(3.0), **MORE},
        memory=(136, 2**21, {}),
    ),
    "differential": Oracle(
        by(
            reference.differential.differential_attention,
            *("vectors", "lambda_init", "gain", "heads"),
        ),
        gflops="38.40",
        label="Differential",
        options={"heads": 4},
        drawn={
            "heads": st.sampled_from([2, 4]),
            "lambda_init": st.floats(0, 0.9),
            **SOME,
        },
        refused={"lambda_init": [-0.1, 1.0, 1.5, math.nan]},
    ),
    "enla": Oracle(
        attend_by_features,
        gflops="0.66",
        label="ENLA-m6",
        options={"m": 6, "k": 3.0, "eps": 1e-2},
        drawn=FEATURES,
        refused={"k": [0.0, -1.0], "eps": [-1e-4]},
        defaults=False,
    ),
    "enlca": Oracle(
        attend_by_features,
        gflops="0.66",
        label="ENLCA-m6",
        options={"m": 6},
        drawn=FEATURES,
        refused={"k": [0.0], "n1": [0.0, -0.1], "n2": [-0.1]},
        defaults=False,
    ),
    "focused-linear": Oracle(
        by(reference.focused_linear.focused_linear_attention, "focus"),
        gflops="0.197",
        label="Focused linear-p3",
        drawn={"focus": st.floats(1, 6), **MORE},
        refused={"focus": [0.5, 0.0, -3.0, math.nan]},
        prepare=share_a_feature,
    ),
    "hspa": Oracle(
        by(reference.hspa.high_similarity_attention, "k"),
        gflops="12.96",
        label="HSPA-k4",
        options={"k": 4},
        drawn={"k": st.integers(1, 4) | st.integers(1, 60), **SOME},
        dtypes=[torch.float64, torch.float32],
    ),
    "large-kernel": Oracle(
        convolve_some,
        gflops="0.868",
        label="Large kernel-3x3",
        options={"kernel": 3},
        drawn={
            "kernel": st.integers(0, 4).map(lambda reach: 2 * reach + 1),
            "split": st.integers(1, 6),
        },
        memory=(64, 2**20, {}),
    ),
    "gated-delta": Oracle(
        gated_delta_rule,
        gflops="0.492",
        label="Gated DeltaNet-s3",
        options={"state": 3, "heads": 2},
        drawn={"state": st.integers(1, 9), "heads": HEADS, "directions": DIRECTIONS},
        refused={"directions": [1, 3, 8, True, 2.0]},
        sizes=SCANNED,
        memory=(64, 2**19, {}),
    ),
    "hedgehog": Oracle(
        by(
            reference.hedgehog.learned_feature_attention,
            *("query_weight", "query_bias", "key_weight", "key_bias", "softmax"),
        ),
        gflops="0.493",
        label="Hedgehog-m6",
        options={"m": 6},
        drawn={
            "m": st.integers(1, 20).map(lambda half: 2 * half),
            "softmax": st.booleans(),
            **MORE,
        },
        refused={"m": [7]},
        defaults=False,
    ),
    "mean": Oracle(by(reference.mean.mean_of_values), gflops="0.00", label="Mean"),
    "mdta": Oracle(
        by(reference.mdta.transposed_attention, "temperature"),
        gflops="0.164",
        label="MDTA",
        options={"heads": 2},
        drawn={"heads": st.sampled_from([1, 2, 3, 8])},
        prepare=lambda m, q, k: m.temperature.data.mul_(1.5)[1:].mul_(-1),
    ),
    "neighbourhood": replace(
        WINDOW,
        attend=by(reference.neighbourhood.nearest_window_attention, "bias", "dilation"),
        gflops="0.125",
        label="Neighbourhood-3x3",
        options={"window": 3, "heads": 2},
        drawn={
            "window": st.integers(0, 5).map(lambda reach: 2 * reach + 1),
            "dilation": st.integers(1, 4),
            "heads": HEADS,
            **SOME,
        },
        sizes=[*SIZES, (13, 11)],
        memory=(128, 2**19, {}),
    ),
    "nla": NON_LOCAL,
    "nla-flash": replace(NON_LOCAL, label="NLA (flash)"),
    "nlrn": Oracle(
        attend_to_neighbours,
        gflops="4.08",
        label="NLRN-5x5",
        options={"window": 5},
        drawn={"window": ODD, **MORE},
        sizes=[*SIZES, (13, 11)],
        memory=(64, 100 * 54**2, {}),  # a tile: 100 queries, 54 x 54 keys
    ),
    "nlsa": Oracle(
        attend_in_chunks,
        gflops="5.08",
        label="NLSA-r2",
        options={"rounds": 2, "chunk_size": 7},
        drawn={"rounds": st.integers(1, 4), "chunk_size": st.integers(1, 40), **SOME},
        dtypes=[torch.float64, torch.float32],
        defaults=False,
    ),
    "none": Oracle(lambda m, q, k, v: 0 * v, gflops="0.00", label="Baseline"),
    "nystrom": Oracle(
        by(reference.nystrom.nystrom_attention, "grid", "steps"),
        gflops="0.353",
        label="Nyström-3x3",
        options={"grid": 3},
        drawn={"steps": st.integers(1, 7), "skip": st.booleans(), **GRID},
        condition=10,
    ),
    # Its references are tested in test_oracle.py; without them every position is its own.
    "oracle": Oracle(lambda m, q, k, v: 1 * v, gflops="0.00", label="Oracle"),
    "overlap-window": replace(
        WINDOW,
        attend=by(reference.overlap_window.overlap_window_attention, "bias", "window"),
        gflops="1.475",
        label="Overlap window-w4",
        options={"window": 4, "heads": 2},
        drawn={**WINDOW.drawn, "overlap": st.floats(0, 3)},
        refused={"overlap": [-0.5, math.inf, math.nan]},
        memory=(128, 2**21, {}),
    ),
    "patch-knn": Oracle(
        merge_neighbours,
        gflops="16.32",
        label="N3Net-k3",
        options={"k": 3, "window": 5},
        drawn={"k": st.integers(1, 5), "window": ODD.map(lambda side: side + 2), **MORE},
        refused={"window": [4, 1]},
        sizes=[*SIZES, (12, 4)],
        memory=(64, 100 * 54**2, {}),  # as nlrn
    ),
    "performer": Oracle(
        by(reference.performer.positive_feature_attention, "projection"),
        gflops="0.66",
        label="Performer-m6",
        options={"m": 6},
        drawn=FEATURES,
        defaults=False,
    ),
    "permuted-window": replace(
        WINDOW,
        attend=attend_to_cells,
        gflops="0.369",
        label="Permuted window-w4",
        options={"window": 4},
        drawn={
            "window": st.integers(1, 8).map(lambda cells: 2 * cells),
            "heads": st.sampled_from([4, 8]),
        },
        memory=(128, 2**21, {}),
    ),
    # With references see test_oracle.py.
    "reference-mean": Oracle(
        by(reference.mean.mean_of_values), gflops="0.00", label="Mean of references"
    ),
    "region": Oracle(
        by(reference.region.region_attention, "grid"),
        gflops="6.40",
        label="Region-2x2",
        drawn=GRID,
    ),
    "rela": Oracle(
        by(reference.rela.rectified_linear_attention),
        gflops="0.197",
        label="RELA-5x5",
        drawn={"kernel": st.integers(0, 3).map(lambda reach: 2 * reach + 1), **MORE},
        refused={"kernel": [2, 4]},
        prepare=share_a_feature,
    ),
    "rnan": Oracle(
        trunk_times_mask,
        gflops="33.40",
        label="RNAN mask",
        options={"reduction": 1},
        drawn={"blocks": st.integers(1, 2), **MORE},
        memory=(64, 2**21, {}),
    ),
    "selective-scan": Oracle(
        selective_scan,
        gflops="0.164",
        label="Selective scan-s3",
        options={"state": 3, "heads": 2},
        drawn={"state": st.integers(1, 9), "heads": HEADS, "directions": DIRECTIONS},
        refused={"directions": [1, 3, 8, True, 4.0]},
        sizes=SCANNED,
        memory=(64, 2**20, {}),
    ),
    "shifted-window": replace(WINDOW, label="Shifted window-w3"),
    "top-k": Oracle(
        by(reference.top_k.top_k_attention, "k"),
        gflops="12.84",
        label="Top-4",
        options={"k": 4},
        drawn={"k": st.integers(1, 4) | st.integers(1, 60), **SOME},
        dtypes=[torch.float64, torch.float32],
    ),
    "token-cluster": Oracle(
        attend_to_cluster,
        gflops="0.819",
        label="CATANet-g8",
        options={"centres": 5, "group_size": 8, "heads": 2},
        drawn={
            "centres": st.integers(1, 40),
            "group_size": st.integers(1, 14) | st.integers(1, 200),
            "heads": HEADS,
            **SOME,
        },
        refused={"decay": [-0.1, 1.5, math.nan]},
        dtypes=[torch.float64, torch.float32],
        defaults=False,
    ),
    "window": WINDOW,
}

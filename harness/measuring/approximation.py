"""Quality of ENLA's approximation and of NLSA's buckets, on features of networks and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_zoo.enla import EfficientNonLocalAttention, normalise, orthogonal_gaussian
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import NonLocalSparseAttention

from ..base import machine
from ..base.errors import UserError
from ..base.names import slug
from ..base.progress import progress_bar
from ..images.inputs import MAX_PSNR
from ..images.metrics import psnr, rgb_to_y
from ..images.sources import TestImage, TestSet
from ..network.edsr import EDSR
from ..network.weights import TrainedNetwork
from ..records.shapes import REFERENCE_M, WHOLE, Approximation
from ..records.store import new_record, record_id
from .buckets import chunk_size, measure_nlsa
from .features import Features, cropped, network_features, synthetic_features
from .kernel import measure_enla
from .quality import super_resolve


@dataclass(frozen=True)
class Sweep:
    """What is varied. At the largest map every m and k is measured, elsewhere every k at the
    reference m.

    Attributes:
        m: random features, ascending, the reference among them.
        k: amplification factors.
        rounds: largest number of NLSA's hash rounds.
        draws: draws of F, and of NLSA's rotations.
        queries: positions of each map that serve as queries.
        top: largest weights of each query whose recall is measured.
        chunk_size: NLSA's, on large maps.
        eps: of phi, Eq. 4 as released.
        seed: of all draws.
    """

    m: tuple[int, ...]
    k: tuple[float, ...]
    rounds: int = 8
    draws: int = 8
    queries: int = 64
    top: int = 16
    chunk_size: int = 144
    eps: float = 1e-4
    seed: int = 0


def study(
    sweep: Sweep,
    sides: Sequence[int],
    trained: TrainedNetwork | None = None,
    test_sets: Sequence[TestSet] = (),
    *,
    data: str | None = None,
    images: int = 2,
    synthetic: bool = False,
    command: str = "",
) -> Approximation:
    """Measure features of a trained network, synthetic ones, or both.

    A network with NLSA modules is measured for NLSA alone. ``sweep.eps`` is that of the network,
    if there is one.

    Args:
        sweep: what is varied.
        sides: sides of the maps in LR pixels.
        trained: the network.
        test_sets: its images.
        data: name of their source, for the record.
        images: number of images of each test set, and of sets of synthetic features.
        synthetic: measure synthetic features too.
        command: the command of the record.

    Raises:
        UserError: the network has no ENLA or NLSA modules, or an image is too small.
    """
    sides = sorted(set(sides))
    features: dict[int, list[Features]] = {side: [] for side in sides}
    network, enla = None, True
    crops: list[TestImage] = []
    if trained is not None:
        enla = _has(trained, EfficientNonLocalAttention)
        if not enla and not _has(trained, NonLocalSparseAttention):
            raise UserError(
                f"{trained.name} holds {trained.label}, which has no random features and no "
                "buckets to measure: give a network trained with --attn enlca, enla or nlsa"
            )
        if not enla and synthetic:
            raise UserError("--synthetic needs a network of ENLA modules, or no network")
        sweep = replace(sweep, eps=trained.architecture.variant.resolved.get("eps", sweep.eps))
        for side in sides:
            crops = [image for test_set in test_sets for image in cropped(test_set, images, side)]
            for image in crops:
                features[side] += network_features(trained.network, image)
        network = {
            "name": trained.name,
            "variant": trained.architecture.variant.describe(),
            "scale": trained.architecture.scale,
            "data": data,
            "test_sets": [test_set.name for test_set in test_sets],
            "images": len(crops),
        }
    if synthetic:
        for side in sides:
            for index in range(images):
                features[side] += synthetic_features(side, sweep.seed + index)
    steps = sum(map(len, features.values())) * (1 + len(sweep.k) * enla)
    steps += (len(sweep.m) * sweep.draws + 3) * (trained is not None and enla)
    with progress_bar("steps", transient=True) as progress:
        task = progress.add_task("approximation", total=steps)
        advance = partial(progress.advance, task)
        rows = measure(features, sweep, enla=enla, on_step=advance)
        rows["network"] = (
            measure_network(trained.network, crops, sweep, advance) if trained and enla else []
        )
    settings = {
        "network": network,
        "synthetic": images if synthetic else None,
        "sides": sides,
        **asdict(sweep),
    }
    described = machine.describe(torch.device("cpu"))
    content = {"command": command, "machine": described, "settings": settings, **rows}
    # A run's id ends in a hash, which this record's id need not repeat.
    label = slug(re.sub(r"-[0-9a-f]{12}$", "", trained.name)) if trained else "synthetic"
    return new_record(Approximation, record_id(label, content), content)


def _has(trained: TrainedNetwork, kind: type) -> bool:
    return any(isinstance(module, kind) for module in trained.network.attention_modules)


def measure(
    features: Mapping[int, Sequence[Features]],
    sweep: Sweep,
    *,
    enla: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows ``exact``, ``enla`` and ``nlsa`` of a record: means over images, spread over draws.

    Args:
        features: by side of the map. Sets of one name are averaged; those named ``module …`` are
            also averaged over all modules, and have rows of their own at the largest map and the
            reference m only.
        sweep: what is varied.
        enla: whether to measure ENLA, or NLSA only.
        on_step: called after each set, k and part.
    """
    exact: dict[tuple[str, int, float], list[dict[str, Tensor]]] = {}
    approximate: dict[tuple[str, int, float, int], list[dict[str, Tensor]]] = {}
    caught: dict[tuple[str, int, int], list[dict[str, Tensor]]] = {}
    for side, sets in features.items():
        counts = sweep.m if side == max(features) else (REFERENCE_M,)
        for index, one in enumerate(sets):
            names = [one.name]
            if one.name.startswith("module"):  # single modules at the largest map only
                names = [one.name, WHOLE] if side == max(features) else [WHOLE]
            seed = 1000 * sweep.seed + index
            for k in sweep.k if enla else ():
                of_exact, by_m = measure_enla(
                    one,
                    k,
                    counts,
                    draws=sweep.draws,
                    queries=sweep.queries,
                    eps=sweep.eps,
                    seed=seed,
                )
                for name in names:
                    exact.setdefault((name, side**2, k), []).append(of_exact)
                    for m, found in by_m.items():
                        # … and at the reference m, which keeps records small.
                        if m == REFERENCE_M or not name.startswith("module"):
                            approximate.setdefault((name, side**2, k, m), []).append(found)
                on_step()
            by_rounds = measure_nlsa(
                one,
                rounds=sweep.rounds,
                draws=sweep.draws,
                queries=sweep.queries,
                top=sweep.top,
                largest_chunk=sweep.chunk_size,
                seed=seed,
            )
            for rounds, found in by_rounds.items():
                for name in names:
                    caught.setdefault((name, side**2, rounds), []).append(found)
            on_step()
    return {
        "exact": [
            {"features": name, "n": n, "k": k} | _average(x) for (name, n, k), x in exact.items()
        ],
        "enla": [
            {"features": name, "n": n, "k": k, "m": m} | _average(x)
            for (name, n, k, m), x in approximate.items()
        ],
        "nlsa": [
            {"features": name, "n": n, "rounds": r, "chunk_size": chunk_size(n, sweep.chunk_size)}
            | _average(x)
            for (name, n, r), x in caught.items()
        ],
    }


@torch.inference_mode()
def measure_network(
    network: EDSR, images: Iterable[TestImage], sweep: Sweep, on_step: Callable[[], None]
) -> list[dict[str, Any]]:
    """PSNR in dB of a trained ENLA network whose attention is replaced, mean over the images.

    No weight is trained again. The replacements: ``enla`` with m newly drawn features (for each
    m, with the spread over draws); ``exact``, the softmax at the network's own k; ``mean``, every
    position gets the mean of all values; ``none``, the modules add nothing.
    """
    images = list(images)
    modules = [m for m in network.attention_modules if isinstance(m, EfficientNonLocalAttention)]
    kept = [m.projection for m in modules]

    def quality() -> float:
        values = []
        for image in images:
            sr = super_resolve(network, image.lr, network.scale)
            value = psnr(rgb_to_y(sr), rgb_to_y(image.hr), network.scale)
            values.append(min(value, MAX_PSNR))
        on_step()
        return float(np.mean(values))

    def exact(module: EfficientNonLocalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return non_local_attention(normalise(q, module.k), normalise(k, module.k), v)

    def mean(_: EfficientNonLocalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.mean((2, 3), keepdim=True).expand_as(v)

    rows: list[dict[str, Any]] = []
    try:
        for name, attend in (("exact", exact), ("mean", mean)):
            for module in modules:
                module.__dict__["attend"] = partial(attend, module)
            rows.append({"attention": name, "m": None, "psnr": quality()})
            for module in modules:
                del module.__dict__["attend"]
        for m in sweep.m:
            generator = torch.Generator().manual_seed(sweep.seed)
            values = []
            for _ in range(sweep.draws):
                for module in modules:
                    module.projection = orthogonal_gaussian(m, module.embedding, generator)
                values.append(quality())
            rows.append({"attention": "enla", "m": m} | _mean_and_std("psnr", values))
        for module in modules:
            module.__dict__["residual"] = lambda x, _: x
        rows.append({"attention": "none", "m": None, "psnr": quality()})
    finally:
        for module, projection in zip(modules, kept, strict=True):
            for name in ("attend", "residual"):
                module.__dict__.pop(name, None)
            module.projection = projection
    return rows


def _average(sets: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean of each quantity over sets; with draws, the mean and the spread over draws."""
    row: dict[str, float] = {}
    for name in sets[0]:
        mean = torch.stack([one[name] for one in sets]).mean(0)
        if mean.dim():
            row |= _mean_and_std(name, mean.tolist())
        else:
            row[name] = _rounded(mean.item())
    return row


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        name: _rounded(float(np.mean(values))),
        f"{name}_std": _rounded(float(np.std(values, ddof=1))),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")

"""Correlation maps: to which positions a trained module attends (Figures 1, 7, 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import colormaps, patheffects, rcParams
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base.errors import UserError
from ..images.bicubic import crop_to_multiple
from ..images.degradation import Degradation, image_generator
from ..network.edsr import EDSR, to_tensor
from ..network.weights import TrainedNetwork
from ..reporting.figures.style import PAGE, Powers, house_style, new_figure
from .networks import network_labels

if TYPE_CHECKING:
    from attention_zoo import Attention

#: Most panels in a row.
COLUMNS = 4
#: Least weight with a colour, in multiples of the uniform weight 1/N; lower weights are black.
LEAST = 0.01


@dataclass(frozen=True)
class CorrelationMap:
    """Weights of one query over all positions.

    Attributes:
        label: the variant's row label.
        kind: ``exact`` or ``random features``; "" for a module with one kind of weights.
        run: the run's id, or the stem of its weight file.
        weights: ``[H, W]``, float64; they sum to 1.
    """

    label: str
    kind: str
    run: str
    weights: NDArray[np.float64]

    @property
    def effective_positions(self) -> float:
        """``exp(entropy)``: 1 if one position has all the weight, N if all are equal."""
        positive = self.weights[self.weights > 0]
        return math.exp(-float((positive * np.log(positive)).sum()))

    def statistics(self) -> dict[str, Any]:
        """The map in numbers, for the file beside the figure."""
        return {
            "label": self.label,
            "weights": self.kind or "as used",
            "run": self.run,
            "max_weight": float(self.weights.max()),
            "max_weight_times_n": float(self.weights.max() * self.weights.size),
            "effective_positions": self.effective_positions,
            "attended_positions": int((self.weights > 0).sum()),
        }


class _Reached(Exception):
    """Ends a forward pass at a module, with the module's input."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


def network_input(
    image: NDArray[np.uint8],
    position: tuple[int, int],
    name: str,
    scale: int,
    degrade: Degradation | None,
) -> tuple[NDArray[Any], tuple[int, int]]:
    """The networks' input and the position in it.

    Args:
        image: uint8 ``[H, W, 3]``.
        position: row and column in ``image``.
        name: the image's name, for the error; noise depends on it alone.
        scale: the networks' scale.
        degrade: makes the input of an HR image, which is cropped to a multiple of the scale; None
            if ``image`` is the input.

    Returns:
        ``[H/scale, W/scale, 3]``, uint8 or float32 where 1 stands for 255; row and column in it.

    Raises:
        UserError: the position lies outside the (cropped) image.
    """
    if degrade is not None:
        image = crop_to_multiple(image, scale)
    if not (position[0] < image.shape[0] and position[1] < image.shape[1]):
        cropped = f", cropped to a multiple of {scale}" if degrade and scale > 1 else ""
        raise UserError(
            f"position {position[0]},{position[1]} lies outside {name} "
            f"({image.shape[0]} rows, {image.shape[1]} columns{cropped})"
        )
    if degrade is None:
        return image, position
    lr, _ = degrade.pair(image, None, scale, image_generator("maps", name))
    return lr, (position[0] // scale, position[1] // scale)


@torch.inference_mode()
def features_before(network: EDSR, module: nn.Module, lr: NDArray[Any]) -> Tensor:
    """Feature map ``[1, C, H, W]`` that a module of the network receives for an image.

    Args:
        network: in evaluation mode; it is run up to the module.
        module: one of ``network.attention_modules``.
        lr: ``[H, W, 3]``, uint8 or float32 where 1 stands for 255.
    """

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        network(to_tensor(np.ascontiguousarray(lr[None]), network.mean.device))
    except _Reached as reached:
        return reached.features
    finally:
        handle.remove()
    raise ValueError("the network has no such module")


def correlation_maps(
    runs: Sequence[TrainedNetwork],
    lr: NDArray[Any],
    position: tuple[int, int],
    module: int,
) -> list[CorrelationMap]:
    """Maps of every run, in the order of runs; two for ENLA and ENLCA.

    NLSA's weights lie within the buckets of its evaluation hashes; Criss-Cross's are those of its
    (first) pass.

    Args:
        runs: networks in evaluation mode.
        lr: ``[H, W, 3]``, uint8 or float32 where 1 stands for 255.
        position: row and column in ``lr``.
        module: number of the module, from 1; see :func:`module_number`.

    Raises:
        UserError: the weights of a run are not finite.
        AttentionError: a position outside the image.
    """
    modules = [run.network.attention_modules[module - 1] for run in runs]
    maps = []
    for run, attention, label in zip(runs, modules, network_labels(runs), strict=True):
        features = features_before(run.network, attention, lr)
        for kind, weights in _weights(attention, features, position):
            if not weights.isfinite().all():
                raise UserError(f"run {run.name} has weights that are not finite: train it again")
            maps.append(CorrelationMap(label, kind, run.name, weights.double().numpy()))
    return maps


def module_number(runs: Sequence[TrainedNetwork], wanted: int | None = None) -> tuple[int, int]:
    """Number of the attention module to draw, from 1, and number of modules of each run.

    Args:
        runs: at least one.
        wanted: the number asked for; the last module if None.

    Raises:
        UserError: a run without weights over positions, runs with different numbers of modules
            (an official network may not have five), or no module of that number.
    """
    from attention_zoo import Attention

    counts = {}
    for run in runs:
        modules = run.network.attention_modules
        if not modules or type(modules[0]).attention_weights is Attention.attention_weights:
            raise UserError(
                f"run {run.name} ({run.label}) has no weights over positions: leave it out"
            )
        counts[run.name] = len(modules)
    if len({*counts.values()}) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"the runs differ in their number of attention modules ({found})")
    (count,) = {*counts.values()}
    if wanted is not None and not 1 <= wanted <= count:
        raise UserError(f"module must be 1 to {count}, got {wanted}")
    return wanted or count, count


@torch.inference_mode()
def _weights(
    module: Attention, features: Tensor, position: tuple[int, int]
) -> Iterator[tuple[str, Tensor]]:
    """(kind, weights ``[H, W]``), one pair or two."""
    used = module.correlation(features, position)
    exact = getattr(module, "exact_weights", None)
    if exact is None:
        yield "", used
        return
    q, k, _ = module.project(features)
    yield "exact", exact(q, k, *position)[0]
    yield "random features", used


def draw(
    lr: NDArray[Any],
    position: tuple[int, int],
    maps: Sequence[CorrelationMap],
    module: str = "",
) -> Figure:
    """The image and the maps side by side under one logarithmic colour scale.

    Colours show weight x N, so 1 is a uniform weight. Below each map stands its
    :attr:`CorrelationMap.effective_positions`.

    Args:
        lr: uint8 ``[H, W, 3]``, or float32 where 1 stands for 255.
        position: row and column, marked by a red ring.
        maps: weights ``[H, W]`` each.
        module: text below the image.
    """
    height, width = lr.shape[:2]
    n = height * width
    rows = math.ceil((len(maps) + 1) / COLUMNS)
    columns = math.ceil((len(maps) + 1) / rows)
    most = max(float(m.weights.max()) * n for m in maps)
    norm = LogNorm(LEAST, max(most, 10.0))
    # A logarithmic scale has no colour for zero; left transparent it would look like the largest.
    cmap = colormaps["magma"].with_extremes(under="black", bad="black")
    with house_style():
        panel = 0.95 * PAGE / columns
        # Where the panel has fewer pixels than the map, none may be skipped.
        interpolation = "none" if width <= panel * rcParams["savefig.dpi"] else "auto"
        figure = new_figure(PAGE, rows * (panel * height / width + 0.55) + 0.5)
        figure.set_layout_engine("compressed")
        grid = figure.subplots(rows, columns, squeeze=False)
        axes = list(grid.flat)
        for unused in axes[len(maps) + 1 :]:
            unused.set_visible(False)
        # Noise may leave the range of colours.
        shown = lr if lr.dtype == np.uint8 else lr.clip(0, 1)
        axes[0].imshow(shown, interpolation=interpolation)
        _finish(axes[0], position, "Input", module)
        for ax, m in zip(axes[1:], maps, strict=False):
            colours = ax.imshow(m.weights * n, norm=norm, cmap=cmap, interpolation=interpolation)
            note = f"{m.effective_positions:,.0f} effective positions"
            _finish(ax, position, m.label + (f"\n{m.kind}" if m.kind else ""), note)
        bar = figure.colorbar(
            colours,
            ax=grid,
            location="bottom",
            extend="min",
            shrink=0.5,
            aspect=40,
            pad=0.02,
            format=Powers(10),
        )
        bar.set_label(f"weight × N (1: uniform, N = {n:,})")
    return figure


def _finish(ax: Axes, position: tuple[int, int], title: str, note: str) -> None:
    """Title above, note below, and a red ring that leaves the position itself visible."""
    (ring,) = ax.plot(position[1], position[0], "o", color="red", fillstyle="none", markersize=6)
    ring.set_path_effects([patheffects.withStroke(linewidth=2.4, foreground="white")])
    ax.set_title(title)
    ax.set_xlabel(note, fontsize=7)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

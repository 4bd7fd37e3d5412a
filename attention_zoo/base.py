"""The common interface of every attention module.

Numerics, in all docstrings: u is the unit roundoff of the dtype (float32 2^-24, bfloat16 2^-8,
float16 2^-11), and S is the largest score in magnitude, norm of query times norm of key unless
stated otherwise. Scores are summed in float32. Its rounding changes each weight by at most the
relative ``g = exp(2 (c + 4) 2^-24 S) - 1``. Where g reaches 1 (S = 3e5 for c = 16), float32 cannot
tell scores apart: weights mean nothing. Results stay finite as long as float32 can hold the squares
of the norms (norms up to 1e19).
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class AttentionError(ValueError):
    """A bad attention name, option or input; the message is one line that names the fix."""


@dataclass(frozen=True)
class Cost:
    """Closed-form multiply-accumulates (MACs) of one forward pass over one image.

    Attributes:
        projections: convolutions that make query, key and value.
        core: the attention operation in the convention of the ENLCA paper's Table 4
            (softmax, exp, sorting and residual not counted). It may be half-integer:
            ENLA's normaliser is N·m additions, half a MAC each.
        executed: matrix-product MACs of the attention operation as torch's operations execute it
            (padding, hash buckets and normaliser as they are). By definition this is what
            ``torch.utils.flop_counter.FlopCounterMode`` counts on the meta device, so it is the
            same on every processor.
        saved: MACs of projections that the module does not execute, because it projects sums over
            positions instead of every position. The result is the same.
        counted: whether torch counted it, for want of a closed form.
    """

    projections: int
    core: float
    executed: int
    saved: int = 0
    counted: bool = False

    @property
    def module(self) -> int:
        """MACs of the whole module as inserted: projections by definition + attention."""
        return self.projections + self.executed

    @property
    def module_executed(self) -> int:
        """MACs of the whole module as executed: what a counter counts."""
        return self.module - self.saved


class Attention(nn.Module):
    """Base of all modules: ``y = x + res_scale · attend(project(x))``.

    A subclass sets the class attributes, builds its projections in ``__init__`` and implements
    :meth:`project`, :meth:`attend`, :meth:`cost` and, if it has weights over positions,
    :meth:`attention_weights`. The first parameter of ``__init__`` is ``channels``. All others are
    keyword-only with a default: they are the module's options, on the command line too.

    Shapes: queries and keys ``[B, c, H, W]``, values and output ``[B, c_out, H, W]``,
    in any memory format, with ``N = H·W`` positions in row-major order.
    """

    #: Name in the registry, on the command line and in records.
    name: ClassVar[str] = ""
    #: Row label in tables, formatted with the module's options, e.g. ``"ENLCA-m{m}"``.
    label_format: ClassVar[str] = ""
    #: The paper and equation that the module implements.
    source: ClassVar[str] = ""
    #: Growth with N as the method's authors state it, e.g. ``"O(N)"``.
    complexity: ClassVar[str] = ""
    #: Options of this class's own ``__init__`` that came after runs were published: at their
    #: defaults, run ids leave them out.
    later_options: ClassVar[frozenset[str]] = frozenset()
    #: Options as they were given.
    _given: dict[str, Any]

    #: Whether query, key, value and the attention operation can be had (not of a plain module).
    has_core: ClassVar[bool] = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        # Not every module keeps its options under their names; a print of it shows all.
        vars(module)["_given"] = kwargs
        return module

    def __init__(self, channels: int, *, res_scale: float = 0.1) -> None:
        super().__init__()
        require_at_least("channels", channels, 1)
        self.channels = channels
        #: A number, or a scalar parameter where the weight is trained.
        self.res_scale: float | Tensor = res_scale
        #: Whether a training forward leaves an auxiliary loss (the trainer switches it).
        self.auxiliary_enabled = True
        self._auxiliary: Tensor | None = None

    # -- what a subclass implements -----------------------------------------------------

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Learned transformations, Eq. 2: ``[B, C, H, W]`` to (q, k, v)."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention operation itself ("core"): (q, k, v) to ``[B, c_out, H, W]``."""
        raise NotImplementedError

    def cost(self, height: int, width: int) -> Cost:
        """Closed-form MACs of one forward pass over one ``height x width`` feature map."""
        raise NotImplementedError

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` with which position (row, col) sums the values."""
        raise AttentionError(f"{self.name} has no weights over positions")

    def contrast(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Auxiliary loss (scalar) of a training forward, or None."""
        return None

    def redraw(self) -> None:
        """Redraw random projections from torch's global generator (no-op if there are none)."""

    # -- what every module shares -------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``, any B >= 0 and H, W >= 1.

        Raises:
            AttentionError: x is not 4-dimensional or does not have ``channels`` channels.
        """
        self._check_input(x)
        if torch.jit.is_tracing():
            x = keep_size(x)
        repeated = is_repeated()
        if not repeated:
            self._auxiliary = None
        if not x.shape[0]:
            return x.clone()
        q, k, y = self.attended(x)
        if self.training and self.auxiliary_enabled:
            loss = self.contrast(q, k)
            if not repeated:
                self._auxiliary = loss
        return self.residual(x, y)

    def extra_repr(self) -> str:
        """Channels and options with their values, for ``print(module)``."""
        values = {name: p.default for name, p in self.options().items()} | self._given
        for name in values.keys() & vars(self).keys():
            values[name] = vars(self)[name]  # as it is now
        shown = (f"{name}={value!r}" for name, value in values.items() if name != "channels")
        return ", ".join([f"channels={self.channels}", *shown])

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: the last auxiliary loss, part of a graph, stays behind."""
        return self.__dict__ | {"_auxiliary": None}

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`project`, then :meth:`attend`, of ``[B, C, H, W]``.

        Returns:
            q and k ``[B, c, H, W]`` and the attention's output ``[B, c_out, H, W]``.
        """
        q, k, v = self.project(x)
        return q, k, self.attend(q, k, v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``x + res_scale · y``."""
        return weighted_sum(x, y, self.res_scale)

    def auxiliary_loss(self) -> Tensor:
        """The loss that the last forward left in training mode; a zero scalar otherwise."""
        if self._auxiliary is not None:
            return self._auxiliary
        return torch.zeros((), device=next(self.parameters(), torch.empty(0)).device)

    @torch.no_grad()
    def correlation(self, x: Tensor, position: tuple[int, int]) -> Tensor:
        """Weights ``[H, W]`` of the query at ``position = (row, col)`` over all positions.

        Args:
            x: one feature map ``[1, C, H, W]``.
            position: row and column of the query.

        Raises:
            AttentionError: more than one image, or a position outside the map.
        """
        self._check_input(x)
        row, col = position
        if x.shape[0] != 1:
            raise AttentionError(f"correlation takes one image, got a batch of {x.shape[0]}")
        if not (0 <= row < x.shape[2] and 0 <= col < x.shape[3]):
            raise AttentionError(
                f"position ({row}, {col}) lies outside the {x.shape[2]}x{x.shape[3]} feature map"
            )
        q, k, _ = self.project(x)
        return self.attention_weights(q, k, row, col)[0]

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The module's options: keyword-only parameters of ``__init__``, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @classmethod
    def label(cls, **options: Any) -> str:
        """Row label of a variant; options left out take their defaults.

        Raises:
            AttentionError: ``label_format`` names something that is not an option.
        """
        values = {name: p.default for name, p in cls.options().items()} | options
        text = cls.label_format or cls.name or cls.__name__
        try:
            return text.format(**values)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise AttentionError(
                f"the label_format {text!r} of {cls.__name__} cannot be filled in: {error!r}"
            ) from error

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels or min(x.shape[2:]) < 1:
            raise AttentionError(
                f"{self.name or type(self).__name__} takes [B, {self.channels}, H, W] "
                f"with H, W >= 1, got {list(x.shape)}"
            )


def weighted_sum(x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
    """``x + weight · y``; the weight is a number, or a scalar tensor that may be trained."""
    if isinstance(weight, Tensor):
        return x + weight * y
    return torch.add(x, y, alpha=weight)


def keep_size(x: Tensor) -> Tensor:
    """x as it is, by operations that fail on any other size: for a trace, which knows only this."""
    for dim in range(x.dim()):
        (x,) = x.split_with_sizes([int(x.shape[dim])], dim)
    return x


def is_repeated() -> bool:
    """Whether a forward is repeated within a backward pass, as ``torch.utils.checkpoint`` does.

    Compilers cannot ask: in their graphs the answer is no.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def require_at_least(option: str, value: float, least: float) -> None:
    """Raise AttentionError unless ``value >= least``; value must be an int if least is one."""
    if isinstance(least, int) and (isinstance(value, bool) or not isinstance(value, int)):
        raise AttentionError(f"{option} must be an integer >= {least}, got {value!r}")
    if not value >= least:
        raise AttentionError(f"{option} must be at least {least}, got {value!r}")


def embedding_channels(channels: int, reduction: int) -> int:
    """``channels / reduction``, at least 1; AttentionError unless it divides."""
    require_at_least("reduction", reduction, 1)
    if channels % reduction:
        raise AttentionError(f"reduction {reduction} does not divide the {channels} channels")
    return channels // reduction


def check_heads(heads: int, *widths: int) -> None:
    """Raise AttentionError unless heads divides each of these numbers of channels."""
    require_at_least("heads", heads, 1)
    for width in widths:
        if width % heads:
            raise AttentionError(f"heads {heads} does not divide the {width} channels to split")


def check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise AttentionError unless q, k are ``[B, c, H, W]`` and v is ``[B, c_out, H, W]``."""
    shapes = [list(t.shape) for t in (q, k, v)]
    if (
        q.dim() != 4
        or k.shape != q.shape
        or v.dim() != 4
        or v.shape[0] != q.shape[0]
        or v.shape[2:] != q.shape[2:]
    ):
        raise AttentionError(
            f"q, k, v must be [B, c, H, W], [B, c, H, W], [B, c_out, H, W], got {shapes}"
        )


def no_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off: the dtype of the inputs decides, and sums are kept in float32."""
    if like.device.type == "meta":
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which sums are kept: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def to_rows(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, N, C]``: a view, contiguous if x is channels-last."""
    return x.flatten(2).transpose(1, 2)


def to_map(rows: Tensor, like: Tensor) -> Tensor:
    """``[B, N, C]`` back to ``[B, C, H, W]``, H and W as in ``like``: a view."""
    return rows.transpose(1, 2).unflatten(2, like.shape[2:])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, C, H, W]`` to ``[B, heads, C / heads, H, W]``, a view; AttentionError if it cannot."""
    check_heads(heads, x.shape[1])
    return x.unflatten(1, (heads, -1))

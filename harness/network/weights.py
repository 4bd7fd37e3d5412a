"""Weight files that say which network they belong to (safetensors).

The header holds the architecture as JSON, so a file is enough to build the network again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.official import describe_misfit

from ..base.errors import UserError
from ..base.files import write_atomic
from ..config.variants import Variant
from .edsr import EDSR, build_network

_FOREIGN = "a file of the papers' authors is first converted by python -m harness.convert"


@dataclass(frozen=True)
class Architecture:
    """An EDSR network with one variant's modules; see :func:`harness.edsr.build_network`."""

    variant: Variant
    blocks: int
    channels: int
    scale: int
    block_res_scale: float = 1.0
    image_range: float = 1.0
    positions: tuple[int, ...] | None = None

    def build(self, seed: int = 0) -> EDSR:
        """The network, initialised from ``seed``."""
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return build_network(sizes.pop("variant"), seed=seed, **sizes)

    @property
    def description(self) -> str:
        """Variant and sizes in a few words."""
        return (
            f"{self.variant.label}, {self.blocks} blocks x {self.channels} channels, x{self.scale}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As weight files hold it."""
        return dataclasses.asdict(self) | {"variant": self.variant.to_dict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Architecture:
        """The reverse of :meth:`to_dict`; KeyError, TypeError or ValueError for other content."""
        variant = Variant(content["variant"]["name"], content["variant"]["options"])
        for size in ("blocks", "channels"):
            if type(content[size]) is not int or content[size] < 1:
                raise ValueError(f"{size} must be an integer of 1 or more")
        positions = content.get("positions")
        if positions is not None:
            # A module anywhere else would never be run, and nobody would notice.
            possible = range(content["blocks"] + 1)
            if not isinstance(positions, (list, tuple)) or any(
                type(p) is not int or p not in possible for p in positions
            ):
                raise ValueError(f"positions must be a list of 0 … {possible[-1]}")
            positions = tuple(positions)
        return cls(**content | {"variant": variant, "positions": positions})


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights: ``name`` is the run's id, or the file's stem."""

    name: str
    architecture: Architecture
    network: EDSR

    @property
    def label(self) -> str:
        """Row label of the variant."""
        return self.architecture.variant.label


def save_weights(path: Path, network: EDSR, architecture: Architecture, name: str) -> None:
    """Write the network's state with its architecture, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = to_file(network.state_dict())
    content = {"name": name, "architecture": architecture.to_dict()}
    # One entry: of several, safetensors would shuffle the order.
    data = save(tensors, metadata={"network": json.dumps(content, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data))


def load_weights(path: Path) -> TrainedNetwork:
    """Build the network of a weight file, in evaluation mode on the CPU.

    Raises:
        UserError: no such file, not one of :func:`save_weights`, or tensors that do not fit the
            architecture (each missing, surplus or misshapen one is named).
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = json.loads(metadata["network"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name = str(content["name"])
        architecture = Architecture.from_dict(content["architecture"])
        network = architecture.build()
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error}") from error
    except SafetensorError as error:
        raise UserError(
            f"cannot read weights {path}: damaged, or no safetensors file ({error}); {_FOREIGN}"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, AttentionError):
            raise
        raise UserError(
            f"{path} does not say which network its weights belong to; {_FOREIGN}"
        ) from error
    load_strictly(network, tensors, str(path))
    return TrainedNetwork(name, architecture, network.eval())


def load_strictly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state that must fit to the last tensor.

    Raises:
        UserError: a tensor is missing, surplus or misshapen; the message names them.
    """
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    if misfit := describe_misfit(shapes, tensors):
        raise UserError(f"{source} does not fit the network: {misfit}")
    module.load_state_dict(tensors)


def weights_path(results: Path, identifier: str) -> Path:
    """Weight file of a run: of its training here, else the one published with its record.

    The former lies under ``runs/``, which stays on the machine, the latter under ``weights/``.
    The path is the former's where there is neither.
    """
    own = results / "runs" / identifier / "weights.safetensors"
    published = results / "weights" / f"{identifier}.safetensors"
    return published if published.exists() and not own.exists() else own


def find_weights(name: str, results: Path) -> Path:
    """Weight file of a run id (or an unambiguous beginning of one) or of a path.

    Raises:
        UserError: nothing of that name, or several runs.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "weights.safetensors").is_file():
        return path / "weights.safetensors"
    trained = {p.parent.name for p in (results / "runs").glob("*/weights.safetensors")}
    published = {p.stem for p in (results / "weights").glob("*.safetensors")}
    found = sorted(trained | published)
    matching = [identifier for identifier in found if identifier.startswith(name)]
    if len(matching) == 1:
        return weights_path(results, matching[0])
    if not matching:
        raise UserError(
            f"no weights of run {name!r} under {results / 'runs'} (weights stay on the machine "
            f"that trained them) or {results / 'weights'} (those published); finished runs there: "
            f"{', '.join(found) or 'none'}"
        )
    raise UserError(f"{name!r} could be any of {', '.join(matching)}: give more of it")


def to_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none in the memory of another, as a safetensors file has them."""
    places: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        place = stored.untyped_storage().data_ptr()
        # Such as weights that two layers share.
        plain[name] = stored.clone() if place in places else stored
        places.add(place)
    return plain

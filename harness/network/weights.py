"""Weight files that say which network they belong to (safetensors).

The header holds the architecture as JSON, so a file is enough to rebuild the network.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.official import describe_misfit

from ..base.errors import UserError
from ..base.files import write_atomic
from ..base.folders import sources
from ..config.network import NetworkConfig
from ..config.variants import Variant
from .edsr import EDSR, build_network

if TYPE_CHECKING:
    from ..config.run import RunConfig

_AGAIN = "download or copy it again"
#: Bytes of a safetensors header; the library takes no longer one.
_LONGEST_HEADER = 100_000_000
_FOREIGN = "convert files of the papers' authors first: python -m harness.convert"


@dataclass(frozen=True)
class Architecture:
    """An EDSR network with one variant's modules; see :func:`.edsr.build_network`."""

    variant: Variant
    network: NetworkConfig
    scale: int
    image_range: float = 1.0
    positions: tuple[int, ...] | None = None
    learn_res_scale: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> Architecture:
        """The network of a run."""
        return cls(
            config.variant,
            config.network,
            config.scale,
            positions=config.places,
            learn_res_scale=config.learn_res_scale,
        )

    def build(self, seed: int = 0) -> EDSR:
        """The network, initialised from ``seed``."""
        return build_network(
            self.variant,
            self.network,
            self.scale,
            image_range=self.image_range,
            positions=self.positions,
            learned=self.learn_res_scale,
            seed=seed,
        )

    @property
    def description(self) -> str:
        """Variant and sizes in a few words."""
        network = self.network
        return (
            f"{self.variant.label}, {network.blocks} blocks x {network.channels} channels, "
            f"x{self.scale}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As weight files hold it: the sizes of the network are keys of their own.

        ``learn_res_scale`` is left out where it is false.
        """
        content = dataclasses.asdict(self) | {"variant": self.variant.to_dict()}
        if not self.learn_res_scale:
            del content["learn_res_scale"]
        return content | content.pop("network")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Architecture:
        """The reverse of :meth:`to_dict`; KeyError, TypeError or ValueError for other content."""
        rest = dict(content)
        variant = rest.pop("variant")
        if not isinstance(variant["options"], dict):
            raise TypeError("options must be a mapping")
        for size in ("blocks", "channels"):
            if type(content[size]) is not int or content[size] < 1:
                raise ValueError(f"{size} must be an integer of 1 or more")
        for number in ("block_res_scale", "image_range"):
            value = content.get(number, 1.0)
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"{number} must be a finite number")
        if content.get("image_range", 1.0) <= 0:
            raise ValueError("image_range must be above 0")
        if type(content.get("learn_res_scale", False)) is not bool:
            raise ValueError("learn_res_scale must be true or false")
        sizes = {f.name: rest.pop(f.name) for f in fields(NetworkConfig) if f.name in rest}
        positions = rest.pop("positions", None)
        if positions is not None:
            # A module anywhere else would never be run, and nobody would notice.
            possible = range(content["blocks"] + 1)
            if not isinstance(positions, (list, tuple)) or any(
                type(p) is not int or p not in possible for p in positions
            ):
                raise ValueError(f"positions must be a list of 0 … {possible[-1]}")
            positions = tuple(positions)
        return cls(
            Variant.of(variant["name"], variant["options"]),
            NetworkConfig(**sizes),
            positions=positions,
            **rest,
        )


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights: ``name`` is the run's id, or the file's stem."""

    name: str
    architecture: Architecture
    network: EDSR

    @property
    def label(self) -> str:
        """Row label of the variant, which names it alone."""
        return self.architecture.variant.row_label


def save_weights(
    path: Path, network: EDSR, architecture: Architecture, name: str, *, half: bool = False
) -> None:
    """Write the network's state with its architecture, whole or not at all.

    Args:
        path: file to write.
        network, architecture: the network.
        name: of the run.
        half: as float16, rounded to nearest; :func:`load_weights` makes them float32 again.

    Raises:
        UserError: the file cannot be written, or a weight is too large for float16.
    """
    tensors = to_file(network.state_dict())
    if half:
        tensors = {key: _halved(key, tensor) for key, tensor in tensors.items()}
    content = {"name": name, "architecture": architecture.to_dict()}
    # One entry: of several, safetensors would shuffle the order.
    data = save(tensors, metadata={"network": json.dumps(content, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data))


def _halved(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    found = tensor.half()
    if not found.isfinite().all():
        raise UserError(f"{key} has values above 65504, too large for float16: leave it out")
    return found


def is_ours(path: Path) -> bool:
    """Whether a file is one of :func:`save_weights`, by its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return "network" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_weights(path: Path) -> TrainedNetwork:
    """Build the network of a weight file, in evaluation mode on the CPU.

    Raises:
        UserError: no such file, not one of :func:`save_weights`, or tensors that do not fit the
            architecture; the message names them.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            content = json.loads(metadata["network"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name = str(content["name"])
        if content["architecture"]["blocks"] > len(tensors):
            raise ValueError("fewer tensors than blocks")  # whose building might never end
        architecture = Architecture.from_dict(content["architecture"])
        network = architecture.build()
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error}") from error
    except SafetensorError as error:
        if fault := file_fault(path):
            raise UserError(f"{path} {fault}") from error
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


def file_fault(path: Path, error: Exception | None = None) -> str | None:
    """What is wrong with a file in place of weights, with the fix; None if nothing is known.

    It may be empty or cut off, or what a download left: a web page or a pointer of Git LFS.

    Args:
        path: of the file.
        error: of its reading.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        text = head.lstrip().lower()
        if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
            return (
                "holds no weights: it is a web page (HTML); download the file itself, not the page "
                "about it"
            )
        if text.startswith(b"version https://git-lfs"):
            return "holds no weights: it is a pointer of Git LFS; fetch the file with git lfs pull"
        if not size:
            return f"holds no weights: it is empty (0 bytes); {_AGAIN}"
        short = f"is cut off: it ends after {size:,} bytes; {_AGAIN}"
        if head[:2] == b"PK":
            return None if zipfile.is_zipfile(file) else short
    if _safetensors_size(path) > size:
        return short
    words = ("ran out of input", "truncated", "unexpected eof")
    if isinstance(error, EOFError) or any(word in str(error).lower() for word in words):
        return short
    return None


def _safetensors_size(path: Path) -> int:
    """Bytes that a safetensors file has by its own header; 0 if it is no such file."""
    with path.open("rb") as file:
        start = file.read(9)
        if path.suffix == ".safetensors" and len(start) < 9:
            return 9
        header = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or header > _LONGEST_HEADER:
            return 0
        text = b"{" + file.read(header - 1)
    if len(text) < header:
        return 8 + header
    try:
        tensors = [value for value in json.loads(text).values() if "data_offsets" in value]
        return 8 + header + max((int(one["data_offsets"][1]) for one in tensors), default=0)
    except (ValueError, TypeError, AttributeError, IndexError, RecursionError):
        return 0


def load_strictly(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state; every tensor must fit.

    Raises:
        UserError: a tensor is missing, surplus or misshapen, or as :func:`check_values`; the
            message names it.
    """
    state = module.state_dict()
    shapes = {key: value.shape for key, value in state.items()}
    if misfit := describe_misfit(shapes, tensors):
        raise UserError(f"{source} does not fit the network: {misfit}")
    check_values(state, tensors, source)
    module.load_state_dict(tensors)


def check_values(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors hold numbers of the wanted kind, which PyTorch would convert silently.

    Raises:
        UserError: a tensor has complex numbers, or integers (quantized ones, say) in place of
            floating-point numbers, or values that are not finite; the message names it.
    """
    for key, value in wanted.items():
        found = tensors[key]
        if found.is_complex() or (value.is_floating_point() and not found.is_floating_point()):
            kinds = f"{found.dtype}, not {value.dtype}".replace("torch.", "")
            raise UserError(f"{source}: {key} is {kinds}: save the weights as float32")
        if not found.isfinite().all():
            raise UserError(
                f"{source}: {key} has values that are not finite; the file is damaged, or its "
                "training diverged"
            )


def weights_path(results: Path, identifier: str) -> Path:
    """Weight file of a run: that of its training here, else the one published with its record.

    The first lies under ``runs/``, which stays on the machine, the second under ``weights/``, of
    ``results`` or of a folder behind it (``base.folders``). If none exists, the path is the first.
    """
    paths = [
        path
        for folder in sources(results)
        for path in (
            folder / "runs" / identifier / "weights.safetensors",
            folder / "weights" / f"{identifier}.safetensors",
        )
    ]
    return next((path for path in paths if path.exists()), paths[0])


def exact_weights_path(results: Path, identifier: str) -> Path:
    """As :func:`weights_path`, without files in half precision: a training that began with one
    would be another.
    """
    path = weights_path(results, identifier)
    if path.exists() and is_ours(path):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if "head.weight" in names and file.get_slice("head.weight").get_dtype() != "F32":
                return results / "runs" / identifier / "weights.safetensors"
    return path


def find_weights(name: str, results: Path) -> Path:
    """Weight file of a run id (or an unambiguous prefix of one) or of a path.

    Raises:
        UserError: no run has that name, or several do.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "weights.safetensors").is_file():
        return path / "weights.safetensors"
    folders = sources(results)
    trained = {p.parent.name for f in folders for p in f.glob("runs/*/weights.safetensors")}
    published = {p.stem for f in folders for p in f.glob("weights/*.safetensors")}
    found = sorted(trained | published)
    matching = [identifier for identifier in found if identifier.startswith(name)]
    if len(matching) == 1:
        return weights_path(results, matching[0])
    if not matching:
        raise UserError(
            f"no weights of run {name!r} under {results / 'runs'} (weights stay on the machine "
            f"that trained them) or {folders[-1] / 'weights'} (published ones); finished runs "
            f"there: {', '.join(found) or 'none'}"
        )
    raise UserError(f"{name!r} is ambiguous ({', '.join(matching)}): give a longer prefix")


def to_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors needs them: on the CPU, contiguous, none in shared memory."""
    addresses: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        address = stored.untyped_storage().data_ptr()
        # Two layers may share weights.
        plain[name] = stored.clone() if address in addresses else stored
        addresses.add(address)
    return plain

"""Train one network; a step is a pure function of (state, seed, step), so runs can be resumed."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .config import RunConfig, learning_rate
from .data import TrainingCache, sample_batch
from .edsr import EDSR
from .errors import UserError
from .files import write_atomic
from .machine import use_tf32

#: Seconds between two saved states.
SAVE_EVERY = 60.0
#: Rows of the training log that a record keeps.
LOG_ROWS = 200


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Run in ``float32``, ``tf32`` (CUDA) or ``bfloat16`` (autocast)."""
    autocast: AbstractContextManager[Any] = (
        torch.autocast(device.type, torch.bfloat16) if name == "bfloat16" else nullcontext()
    )
    with use_tf32(name == "tf32"), autocast:
        yield


def to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to float ``[B, 3, H, W]`` in 0…1, channels-last without a copy."""
    if not images.flags.writeable:  # torch warns about memory that it could not write to
        images = images.copy()
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)


class Trainer:
    """Trains ``network`` as ``config`` says: L1 + weight · auxiliary loss, Adam, schedule.

    Args:
        config: the run.
        network: initial network, on the device already; trained in place.
        cache: training images.
        folder: where the state is saved, or None.
    """

    def __init__(
        self, config: RunConfig, network: EDSR, cache: TrainingCache, folder: Path | None = None
    ) -> None:
        self.config, self.network, self.cache, self.folder = config, network, cache, folder
        self.device = next(network.parameters()).device
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, betas=config.betas
        )
        self.step = 0
        self.seconds = 0.0
        #: (step, mean L1, mean auxiliary loss, learning rate) per interval.
        self.log: list[list[float]] = []
        self._sums = [0.0, 0.0, 0]

    def train(self, label: str) -> None:
        """Train to the last step, from a saved state if the folder holds one.

        Raises:
            UserError: loss or gradient is not finite (the last saved state is kept), or the
                saved state belongs to another configuration.
        """
        self.restore()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} steps/s"),
            TimeRemainingColumn(),
            TextColumn("L1 {task.fields[loss]:.4f}"),
        )
        first, start, saved = self.step, time.monotonic(), time.monotonic()
        before = self.seconds
        self.network.train()
        with Progress(*columns) as progress, precision(self.config.precision, self.device):
            task = progress.add_task(
                label, total=self.config.steps, completed=self.step, rate=0.0, loss=math.nan
            )
            try:
                while self.step < self.config.steps:
                    loss = self.train_step()
                    now = time.monotonic()
                    self.seconds = before + now - start
                    rate = (self.step - first) / (now - start)
                    progress.update(task, completed=self.step, rate=rate, loss=loss)
                    if now - saved > SAVE_EVERY:
                        self.save()
                        saved = now
            except KeyboardInterrupt:
                self.save()
                raise
        self.save()

    def train_step(self) -> float:
        """One step; returns its L1 loss."""
        config = self.config
        # All randomness of a step comes from (seed, step): nothing else has to be saved.
        # A warm start goes on where its baseline stopped, with other patches.
        drawn = self.step + (config.start.steps if config.start else 0)
        torch.manual_seed(_step_seed(config.seed, drawn))
        if self.step and self.step % config.steps_per_epoch == 0:
            self.network.redraw()
        with_auxiliary = (
            config.auxiliary_weight > 0 and self.step >= config.auxiliary_warmup * config.steps
        )
        self.network.enable_auxiliary(with_auxiliary)
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        lr_images, hr_images = sample_batch(
            self.cache,
            seed=config.seed,
            step=drawn,
            batch=config.batch,
            patch=config.patch,
            scale=config.scale,
        )
        sr = self.network(to_tensor(lr_images, self.device))
        l1 = F.l1_loss(sr.float(), to_tensor(hr_images, self.device))
        auxiliary = self.network.auxiliary_loss() if with_auxiliary else l1.new_zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        (l1 + config.auxiliary_weight * auxiliary).backward()
        self._check_gradients(l1, auxiliary)
        self.optimizer.step()
        self.step += 1
        return self._note(l1.item(), auxiliary.item(), rate)

    def _check_gradients(self, l1: Tensor, auxiliary: Tensor) -> None:
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm([*gradients, l1.detach(), auxiliary.detach()])
        if torch.isfinite(total):
            return
        broken = next(
            (
                name
                for name, p in self.network.named_parameters()
                if p.grad is not None and not p.grad.isfinite().all()
            ),
            "the loss",
        )
        raise UserError(
            f"training stopped at step {self.step}: {broken} is not finite (L1 {l1.item():.4g}, "
            f"auxiliary {auxiliary.item():.4g}); lower --learning-rate, or use --precision float32"
        )

    def _note(self, l1: float, auxiliary: float, rate: float) -> float:
        self._sums[0] += l1
        self._sums[1] += auxiliary
        self._sums[2] += 1
        every = max(1, self.config.steps // LOG_ROWS)
        if self.step % every == 0 or self.step == self.config.steps:
            count = self._sums[2]
            means = [round(self._sums[0] / count, 7), round(self._sums[1] / count, 7)]
            self.log.append([self.step, *means, rate])
            self._sums = [0.0, 0.0, 0]
        return l1

    # -- saved state --------------------------------------------------------------------

    def save(self) -> None:
        """Write weights and optimiser state, whole or not at all."""
        if self.folder is None:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
        meta = {
            "config": _config_digest(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "sums": self._sums,
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        data = save(tensors, metadata={"trainer": json.dumps(meta)})
        write_atomic(self.folder / "state.safetensors", lambda file: file.write(data))

    def discard_state(self) -> None:
        """Delete the saved state, once the weights are written and nothing is left to resume."""
        if self.folder is not None:
            (self.folder / "state.safetensors").unlink(missing_ok=True)

    def restore(self) -> None:
        """Take up the saved state, if there is one."""
        if self.folder is None or not (self.folder / "state.safetensors").exists():
            return
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()["trainer"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot read the saved state {path}: {error}; delete it to start anew"
            ) from error
        if meta["config"] != _config_digest(self.config):
            raise UserError(
                f"{self.folder} holds a run of another configuration; delete it or use --results"
            )
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        weights = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("n")}
        self.network.load_state_dict(weights)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.seconds, self.log = meta["step"], meta["seconds"], meta["log"]
        self._sums = meta["sums"]


def _config_digest(config: RunConfig) -> str:
    return config.run_id.rsplit("-", 1)[1]


def _step_seed(seed: int, step: int) -> int:
    """A seed for one step, far from that of any other (seed, step)."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)

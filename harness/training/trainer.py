"""Train one network.

A step is a pure function of (state, seed, step), so an interrupted run can be resumed exactly.
"""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import signals
from ..base.errors import UserError, is_out_of_memory
from ..base.machine import use_tf32, wait_policy
from ..base.progress import progress_bar
from ..config.run import SAVE_EVERY, RunConfig
from ..network.edsr import EDSR, to_tensor
from ..tasks.base import Task
from . import distributed
from .checkpoints import (
    Checkpoint,
    discard_checkpoints,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from .diagnosis import DIVERGED, where_not_finite
from .replay import Replayed

#: A loss above this has exploded: pixels are in 0…1, and an untrained network has about 0.3.
MAX_LOSS = 100.0
#: Rows of the training log that a record keeps, and points of a curve of validation scores.
LOG_ROWS, CURVE_POINTS = 200, 20
#: Losses between images, each with its name for readers.
LOSSES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "l1": ("L1", F.l1_loss),
    "mse": ("MSE", F.mse_loss),
}


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of a step (from 0).

    ``halving``: the paper's, halved after each fifth of the steps. ``one-cycle``: linear warm-up
    over a tenth, then a cosine down to 1 % (Smith and Topin 2019).
    """
    share = step / config.steps
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** int(5 * share)
    if share < 0.1:
        return config.learning_rate * (0.04 + 0.96 * share / 0.1)
    return config.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 for a forward pass, if ``precision`` says so.

    Use it for the forward pass alone: autocast caches copies of the weights until it ends, and the
    optimiser does not update them. The backward pass uses the dtypes of the forward pass anyway.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def fused_adam(device: torch.device) -> bool:
    """Whether Adam can update all weights in one operation on the device."""
    return device.type in ("cpu", "cuda")


class Trainer:
    """Trains ``network`` as ``config`` says: loss + weight · auxiliary loss, Adam, schedule.

    The loss is the task's: L1 or the mean squared error.

    Args:
        config: the run.
        network: initial network, on its device; trained in place.
        task: what gives the batches.
        folder: folder of the checkpoints; None saves none.
        save_every: seconds between checkpoints; 0 saves after every step.
        validate: gives the score of the network on validation images, for the curve.
    """

    def __init__(
        self,
        config: RunConfig,
        network: EDSR,
        task: Task,
        folder: Path | None = None,
        save_every: float = SAVE_EVERY,
        validate: Callable[[EDSR], float] | None = None,
    ) -> None:
        self.validate = validate
        self.task = task.with_references(network.reach) if network.has_oracle else task
        self.config, self.network, self.folder = config, network, folder
        self.save_every = save_every
        self.device = next(network.parameters()).device
        self.loss_name, self.loss = LOSSES[config.task.loss if config.task else "l1"]
        self._parallel = distributed.parallel(network)
        self.optimizer = torch.optim.Adam(
            _groups(network, config.attention_rate),
            lr=config.learning_rate,
            betas=config.betas,
            fused=fused_adam(self.device),
        )
        self._replayed = self._replay()
        self.step = 0
        self.seconds = 0.0
        #: (step, mean loss, mean auxiliary loss, learning rate) per interval.
        self.log: list[list[float]] = []
        #: (step, score on validation images), at equal intervals.
        self.curve: list[list[float]] = []
        self._sums = [0.0, 0.0, 0]
        self._saved: int | None = None

    def _replay(self) -> Replayed | None:
        """Steps as CUDA graphs, where the numbers are those of single launches.

        A user's own module may do more in a forward than launch, e.g. count calls: a graph would
        repeat the recorded call.
        """
        alone = self.device.type == "cuda" and self._parallel is self.network
        if not alone or self.config.variant.source_sha256 is not None:
            return None
        return Replayed(self._gradients, self.network)

    def train(self, label: str) -> None:
        """Train to the last step, from the folder's checkpoint if it holds one.

        Raises:
            UserError: loss or gradient is not finite or memory is too small (the last checkpoint
                is kept), or the checkpoint belongs to another configuration.
            signals.Stopped: SIGINT or SIGTERM came; the step was finished and its state saved.
        """
        self.restore()
        if distributed.agree(self.step) != self.step:
            raise UserError(
                f"the processes see different checkpoints in {self.folder}: "
                "--results must be one folder that all of them share"
            )
        if self.step >= self.config.steps:
            return  # the run was killed after its last step
        bar = progress_bar("steps", f"{self.loss_name} {{task.fields[loss]:.4f}}", stdout=True)
        start = saved = time.monotonic()
        before = self.seconds
        self.network.train()
        with signals.defer_signals() as stopped, self._others_alive(), bar as progress:
            task = progress.add_task(
                label, total=self.config.steps, completed=self.step, loss=math.nan
            )
            # A signal may come to one process between two steps, and to another after them.
            while self.step < self.config.steps and not distributed.any_of(bool(stopped)):
                loss = self._step_within_memory()
                self._validate()
                now = time.monotonic()
                self.seconds = before + now - start
                progress.update(task, completed=self.step, loss=loss)
                if now - saved >= self.save_every:
                    self.save()
                    saved = now
            self.save()
            if self.step < self.config.steps and not stopped:
                raise signals.Stopped(signal.SIGTERM)  # another process got the signal

    @contextmanager
    def _others_alive(self) -> Iterator[None]:
        """Report the end of another process in a line; any exchange with it may fail then."""
        try:
            yield
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            raise UserError(
                f"training stopped at step {self.step}: another process of this run ended; "
                f"run the same command to continue{self._kept()}"
            ) from error

    def _step_within_memory(self) -> float:
        try:
            return self.train_step()
        except (RuntimeError, MemoryError) as error:
            if distributed.is_lost(error) or not is_out_of_memory(error):
                raise
            config = self.config
            raise UserError(
                f"training stopped at step {self.step}: not enough memory on {self.device} for "
                f"{config.batch} patches of {config.patch}x{config.patch}; lower --batch or "
                f"--patch, or --channels or --blocks, or use --precision bfloat16{self._kept()}"
            ) from error

    def train_step(self) -> float:
        """One step; returns its loss, without the auxiliary one."""
        config = self.config
        # All randomness of a step comes from (seed, step): nothing else has to be saved.
        # A warm start draws the patches that its baseline would have seen next.
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
            group["lr"] = rate * group["factor"]
        lr_images, hr_images, references = self.task.batch(
            seed=config.seed, step=drawn, batch=config.batch, patch=config.patch
        )
        lr_images, hr_images = distributed.share(lr_images), distributed.share(hr_images)
        inputs = [to_tensor(images, self.device) for images in (lr_images, hr_images)]
        if references is not None:
            inputs.append(torch.from_numpy(distributed.share(references)).to(self.device))
        with use_tf32(config.precision == "tf32"):
            gradients = self._replayed or self._gradients
            norm, loss, auxiliary = gradients(with_auxiliary, *inputs).tolist()
            self._check(norm, loss, auxiliary, inputs[0])
        self.optimizer.step()
        self.step += 1
        return self._note(loss, auxiliary, rate)

    def _gradients(
        self,
        with_auxiliary: bool,
        lr_images: Tensor,
        target: Tensor,
        references: Tensor | None = None,
    ) -> Tensor:
        """Leave the gradients of a batch in the parameters.

        Returns:
            Their norm, with the losses as two more numbers, the loss, and the auxiliary one; none
            of them was waited for.
        """
        if references is not None:
            self.network.set_references(references)
        with autocast(self.config.precision, self.device):
            sr = self._parallel(lr_images)
            loss = self.loss(sr.float(), target)
            auxiliary = self.network.auxiliary_loss() if with_auxiliary else loss.new_zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.config.auxiliary_weight * auxiliary).backward()
        loss, auxiliary = (one.detach().float() for one in distributed.mean(loss, auxiliary))
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([*gradients, loss, auxiliary])
        return torch.stack([norm, loss, auxiliary])

    def _validate(self) -> None:
        every = max(1, self.config.steps // CURVE_POINTS)
        # The first process writes the curve; the others wait for it in the next step.
        if self.validate is not None and self.step % every == 0 and distributed.is_main():
            self.curve.append([self.step, self.validate(self.network)])
            self.network.train()

    def _check(self, norm: float, loss: float, auxiliary: float, lr_images: Tensor) -> None:
        """Stop before a step that would spoil the weights.

        Raises:
            UserError: loss or gradient is not finite, or the loss has exploded.
        """
        finite = math.isfinite(norm)
        if finite and loss <= MAX_LOSS:
            return
        what = DIVERGED[finite]
        with autocast(self.config.precision, self.device):
            where = where_not_finite(self.network, lr_images)
        # The weights of this step are bad, those before were not.
        if self.folder is not None and distributed.is_main():
            discard_checkpoints(self.folder, self.step)
        raise UserError(
            f"training stopped at step {self.step}: {what}, {where} "
            f"({self.loss_name} {loss:.4g}, auxiliary {auxiliary:.4g}); "
            f"lower --learning-rate, or use --precision float32{self._kept()}"
        )

    def _kept(self) -> str:
        """The end of a message: which checkpoint remains."""
        paths = find_checkpoints(self.folder) if self.folder else []
        return f"; the last good checkpoint is {paths[-1]}" if paths else ""

    def _note(self, loss: float, auxiliary: float, rate: float) -> float:
        self._sums[0] += loss
        self._sums[1] += auxiliary
        self._sums[2] += 1
        every = max(1, self.config.steps // LOG_ROWS)
        if self.step % every == 0 or self.step == self.config.steps:
            count = self._sums[2]
            means = [round(self._sums[0] / count, 7), round(self._sums[1] / count, 7)]
            self.log.append([self.step, *means, rate])
            self._sums = [0.0, 0.0, 0]
        return loss

    # -- checkpoints --------------------------------------------------------------------

    def save(self) -> None:
        """Write weights and optimiser state, whole or not at all, unless this step's exist."""
        if self.folder is None or self._saved == self.step or not distributed.is_main():
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items()}
        content = {
            "config": _config_digest(self.config),
            "numerics": _numerics(),
            "seconds": self.seconds,
            "log": self.log,
            "curve": self.curve,
            "sums": self._sums,
        }
        save_checkpoint(self.folder, Checkpoint(self.step, content, tensors))
        self._saved = self.step

    def discard_state(self) -> None:
        """Delete the checkpoints, once the weights are written and nothing is left to resume."""
        if self.folder is not None and distributed.is_main():
            discard_checkpoints(self.folder)

    def restore(self) -> None:
        """Load the folder's checkpoint, if there is one.

        Raises:
            UserError: it belongs to another configuration, or cannot be read.
        """
        found = load_checkpoint(self.folder) if self.folder is not None else None
        if found is None:
            return
        content = found.content
        if content["config"] != _config_digest(self.config):
            raise UserError(
                f"{self.folder} holds a run of another configuration; delete it or choose "
                "another --results"
            )
        if self.device.type == "cpu" and content["numerics"] != _numerics():
            print(
                f"warning: training continues with {_numerics()}, but began with "
                f"{content['numerics']}: the last bits will differ",
                file=sys.stderr,
            )
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in found.tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                # In the parameter's memory layout, which the arithmetic depends on.
                like = parameters[int(index)]
                moment = torch.empty_like(like).copy_(value) if value.dim() else value.clone()
                state.setdefault(int(index), {})[name] = moment.detach()
        prefix = "network."
        weights = {k: v for k, v in found.tensors.items() if k.startswith(prefix)}
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items()})
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = self._saved = found.step
        self.seconds, self.log, self._sums = content["seconds"], content["log"], content["sums"]
        self.curve = content.get("curve", [])


def _groups(network: EDSR, attention_rate: float) -> list[dict[str, Any]]:
    """Parameter groups of Adam, each with its factor on the learning rate.

    There is one, of all parameters in their order, unless the modules have a rate of their own.
    """
    attention = list(network.attention.parameters())
    if attention_rate == 1 or not attention:
        return [{"params": list(network.parameters()), "factor": 1.0}]
    of_attention = {id(parameter) for parameter in attention}
    rest = [p for p in network.parameters() if id(p) not in of_attention]
    return [{"params": rest, "factor": 1.0}, {"params": attention, "factor": attention_rate}]


def _numerics() -> str:
    """What the last bits on a CPU depend on, apart from the configuration."""
    return (
        f"torch {torch.__version__}, threads: {torch.get_num_threads()} (waiting: "
        f"{(wait_policy() or 'as by default').lower()}), vector instructions: "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


def _config_digest(config: RunConfig) -> str:
    return config.run_id.rsplit("-", 1)[1]


def _step_seed(seed: int, step: int) -> int:
    """A seed for one step, far from that of any other (seed, step)."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") & (2**63 - 1)

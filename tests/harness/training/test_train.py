from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.base.errors import UserError
from harness.base.signals import Stopped
from harness.config.run import RunConfig, StartConfig
from harness.images.cache import TrainingCache
from harness.images.patches import sample_batch
from harness.images.sources import find_data
from harness.network.edsr import build_network, learned_weights
from harness.network.weights import Architecture
from harness.tasks import images
from harness.tasks.sr import SuperResolution
from harness.training import trainer as train
from harness.training.checkpoints import find_checkpoints
from harness.training.trainer import Trainer
from tests.harness.tiny import make_config

#: A clock that leaps by a day ahead and back.
JUMPS = itertools.cycle([0.0, 86400.0, 1.0, 86000.0, -86400.0])


@pytest.fixture
def cache(image_folder: Path) -> TrainingCache:
    return find_data(image_folder).training_images(4)


def new_trainer(
    config: RunConfig, cache: TrainingCache, folder: Path | None = None, **options: float
) -> Trainer:
    network = build_network(config.variant, config.network, 4, seed=config.seed)
    return Trainer(config, network, SuperResolution(cache), folder, **options)


def trained(config: RunConfig, cache: TrainingCache, folder: Path | None = None) -> Trainer:
    trainer = new_trainer(config, cache, folder)
    trainer.train("test")
    return trainer


def restored(config: RunConfig, cache: TrainingCache, folder: Path) -> Trainer:
    trainer = new_trainer(config, cache, folder)
    trainer.restore()
    return trainer


def assert_same(first: Trainer, second: Trainer) -> None:
    """The same bits in the weights and the log."""
    other = second.network.state_dict()
    assert all(torch.equal(v, other[k]) for k, v in first.network.state_dict().items())
    assert first.log == second.log


@pytest.mark.parametrize("name", ["none", "enlca", "nlsa", "criss-cross"])
def test_same_seed_same_bits(name: str, cache: TrainingCache) -> None:
    config = make_config(name)
    torch.manual_seed(1)
    first = trained(config, cache)
    torch.manual_seed(2)
    assert_same(first, trained(config, cache))
    other = trained(make_config(name, seed=1), cache)
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_a_warm_start_goes_on_where_its_baseline_stopped(
    cache: TrainingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patches are those that the baseline would have seen next."""
    seen: list[int] = []
    draw = images.sample_batch
    monkeypatch.setattr(
        images, "sample_batch", lambda c, **kw: (seen.append(kw["step"]), draw(c, **kw))[1]
    )
    warm = make_config(protocol="warm-start", start=StartConfig(4, 2e-3, "halving"), steps=3)
    trained(warm, cache)
    assert seen == [4, 5, 6]
    assert warm.baseline == make_config(steps=4, learning_rate=2e-3, schedule="halving")
    with pytest.raises(ValueError, match="no baseline"):
        _ = warm.baseline.baseline


def test_training_lowers_the_loss(cache: TrainingCache) -> None:
    trainer = trained(make_config(steps=60, learning_rate=3e-3), cache)
    losses = [row[1] for row in trainer.log]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize(
    ("name", "precision"), [("enlca", "float32"), ("nlsa", "float32"), ("nlsa", "bfloat16")]
)
def test_resumed_training_ends_with_the_same_bits(
    name: str, precision: str, cache: TrainingCache, tmp_path: Path
) -> None:
    config = make_config(name, precision=precision)
    first = new_trainer(config, cache, tmp_path)
    first.network.train()
    for _ in range(3):
        first.train_step()
    first.save()
    torch.manual_seed(99)
    assert_same(trained(config, cache), trained(config, cache, tmp_path))


def test_training_that_was_killed_after_its_last_step_shows_no_progress(
    cache: TrainingCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("none")
    first = trained(config, cache, tmp_path)
    assert f"{config.steps} of {config.steps} steps" in capsys.readouterr().out
    assert_same(first, trained(config, cache, tmp_path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step_with_its_state_saved(
    signum: signal.Signals, cache: TrainingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("enlca")
    trainer = new_trainer(config, cache, tmp_path)
    step = trainer.optimizer.step

    def interrupted() -> None:
        if trainer.step == 3:
            signal.raise_signal(signum)  # in the midst of the step
        step()

    monkeypatch.setattr(trainer.optimizer, "step", interrupted)
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stop:
        trainer.train("test")
    assert stop.value.signum == signum
    assert signal.getsignal(signum) is before
    resumed = restored(config, cache, tmp_path)
    assert resumed.step == 4
    resumed.train("test")
    assert_same(trained(config, cache), resumed)


def test_state_of_another_configuration_is_refused(cache: TrainingCache, tmp_path: Path) -> None:
    trained(make_config(), cache, tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        restored(make_config(learning_rate=2e-3), cache, tmp_path)


def test_a_damaged_state_is_made_good_by_the_one_before(
    cache: TrainingCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("enlca")
    first = new_trainer(config, cache, tmp_path, save_every=0)
    first.train("test")
    newest = find_checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-4])
    again = restored(config, cache, tmp_path)
    assert again.step == 5
    assert "damaged" in capsys.readouterr().err
    again.train("test")
    assert_same(first, again)


def test_moments_keep_their_memory_layout(cache: TrainingCache, tmp_path: Path) -> None:
    """Else the arithmetic on them would go another way, and the last bits with it."""
    config = make_config("nlsa")
    first, again = trained(config, cache, tmp_path), restored(config, cache, tmp_path)
    wanted, found = (t.optimizer.state_dict()["state"] for t in (first, again))
    assert wanted.keys() == found.keys()
    for a, b in ((wanted[i], found[i]) for i in wanted):
        assert a["exp_avg_sq"].stride() == b["exp_avg_sq"].stride()
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


@pytest.mark.usefixtures("one_thread")
def test_other_threads_are_told(
    cache: TrainingCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(make_config(), cache, tmp_path)
    torch.set_num_threads(2)
    restored(make_config(), cache, tmp_path)
    told = capsys.readouterr().err
    for fact in ("threads: 1", "threads: 2", "last bits will differ"):
        assert fact in told


def test_auxiliary_loss_sets_in_after_the_warm_up_and_changes_the_weights(
    cache: TrainingCache,
) -> None:
    values = {"steps": 4, "auxiliary_warmup": 0.5, "patch": 12}
    with_loss, without = (
        trained(make_config("enlca", {"m": 4}, auxiliary_weight=weight, **values), cache)
        for weight in (1.0, 0.0)
    )
    auxiliary = [row[2] for row in with_loss.log]
    assert auxiliary[:2] == [0, 0]
    assert min(auxiliary[2:]) > 0
    queries = [one.network.attention["0"].query.weight for one in (with_loss, without)]
    assert not torch.equal(*queries)


def test_projections_are_redrawn_every_epoch(cache: TrainingCache) -> None:
    config = make_config("enla", {"m": 4}, steps_per_epoch=2)
    trainer = new_trainer(config, cache)
    trainer.network.train()
    drawn = []
    for _ in range(5):
        trainer.train_step()
        drawn.append(trainer.network.attention_modules[0].projection.clone())
    same = [torch.equal(a, b) for a, b in itertools.pairwise(drawn)]
    assert same == [True, False] * 2


def test_non_finite_gradients_stop_training(cache: TrainingCache) -> None:
    trainer = new_trainer(make_config("nla"), cache)
    with torch.no_grad():
        trainer.network.attention_modules[1].value.weight.fill_(float("nan"))
    place = r"not finite, first in the output of attention\.1\.value \(Conv2d\)"
    with pytest.raises(UserError, match=rf"stopped at step 0: .*{place}.*--learning-rate"):
        trainer.train("test")


@pytest.mark.parametrize(
    ("factor", "what"), [(1e3, "the loss has exploded, the largest output"), (1e30, "not finite")]
)
def test_an_exploding_run_keeps_its_last_good_state(
    factor: float, what: str, cache: TrainingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update of step 3 spoils the weights; their state is saved before step 4 tells."""
    config = make_config("nla")
    trainer = new_trainer(config, cache, tmp_path, save_every=0)
    step = trainer.optimizer.step

    def explode() -> None:
        step()
        if trainer.step == 3:
            with torch.no_grad():
                trainer.network.tail.weight.mul_(factor)
                trainer.network.body_end.weight.mul_(factor)

    monkeypatch.setattr(trainer.optimizer, "step", explode)
    with pytest.raises(UserError, match=f"stopped at step 4: .*{what}") as stop:
        trainer.train("test")
    assert restored(config, cache, tmp_path).step == 3
    assert str(find_checkpoints(tmp_path)[-1]) in str(stop.value)
    # From there, an undisturbed run goes on.
    assert_same(trained(config, cache, tmp_path), trained(config, cache))


def test_out_of_memory_says_what_to_lower(
    cache: TrainingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(make_config(), cache, tmp_path, save_every=0)
    step = trainer.train_step

    def full() -> float:
        if trainer.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step()

    monkeypatch.setattr(trainer, "train_step", full)
    told = r"step 2: .*memory on cpu for 2 patches of 8x8; lower --batch"
    with pytest.raises(UserError, match=told):
        trainer.train("test")
    assert [p.name[6:15] for p in find_checkpoints(tmp_path)] == ["000000001", "000000002"]


@pytest.mark.parametrize("clock", [lambda: 5.0, lambda: next(JUMPS)], ids=["stands", "jumps"])
def test_clocks_that_stand_or_jump_change_nothing(
    clock: Callable[[], float],
    cache: TrainingCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config("enlca")
    whole = trained(config, cache)
    monkeypatch.setattr(time, "time", lambda: next(JUMPS))
    monkeypatch.setattr(train.time, "monotonic", clock)
    other = trained(config, cache, tmp_path)
    monkeypatch.undo()
    assert_same(whole, other)


def test_patches_are_the_same_for_every_variant(
    cache: TrainingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def sampled(*args: Any, **values: Any) -> object:
        batch = sample_batch(*args, **values)
        seen.append(batch[0].tobytes() + batch[1].tobytes())
        return batch

    monkeypatch.setattr("harness.tasks.images.sample_batch", sampled)
    for name in ("none", "nlsa", "enlca"):
        trained(make_config(name), cache)
    assert seen == seen[:6] * 3
    assert len(set(seen)) == 6


@pytest.mark.parametrize("name", ["none", "enlca"])
def test_bfloat16_follows_float32(name: str, cache: TrainingCache) -> None:
    """Each step runs with the weights that the one before it left."""
    of_precision = [
        trained(make_config(name, steps=40, learning_rate=3e-3, precision=one), cache).log
        for one in ("float32", "bfloat16")
    ]
    for (step, exact, *_), (_, rounded, *_) in zip(*of_precision, strict=True):
        assert rounded == pytest.approx(exact, rel=0.05), f"step {step}"


def test_the_backward_pass_is_outside_of_autocast(
    cache: TrainingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    backward = torch.Tensor.backward

    def watched(loss: torch.Tensor) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    trained(make_config("nlsa", precision="bfloat16", steps=2), cache)
    assert seen == [False, False]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["none", "nla", "nlsa", "criss-cross", "enlca"])
def test_cuda_trains(name: str, cache: TrainingCache) -> None:
    config = make_config(name, device="cuda")
    trainer = Trainer(
        config, build_network(config.variant, config.network, 4).cuda(), SuperResolution(cache)
    )
    trainer.train("test")
    assert trainer.step == config.steps


# -- a rate of the attention's own ----------------------------------------------------------


def test_without_a_rate_of_its_own_all_parameters_are_one_group(cache: TrainingCache) -> None:
    for config in (make_config("nla"), make_config("none", attention_rate=3.0)):
        trainer = new_trainer(config, cache)
        (group,) = trainer.optimizer.param_groups
        assert list(map(id, group["params"])) == list(map(id, trainer.network.parameters()))


def test_the_factor_scales_the_first_steps_of_the_modules(cache: TrainingCache) -> None:
    """Adam's first step is rate · g / (|g| + eps), whatever the length of g."""

    def steps(rate: float) -> dict[str, torch.Tensor]:
        config = make_config("nla", {"res_scale": 1.0}, learn_res_scale=True, attention_rate=rate)
        network = Architecture.of(config).build(config.seed)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        Trainer(config, network, SuperResolution(cache)).train_step()
        return {name: value - before[name] for name, value in network.state_dict().items()}

    plain, fast = steps(1.0), steps(4.0)
    assert {name for name in plain if name.endswith("res_scale")}
    for name, step in plain.items():
        assert step.abs().max() > 0 or name.endswith("key.bias"), name
        factor = 4 if name.startswith("attention.") else 1
        torch.testing.assert_close(fast[name], factor * step, rtol=1e-4, atol=1e-6)


def test_a_run_with_groups_and_learned_weights_is_resumed_to_the_bit(
    cache: TrainingCache, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"learn_res_scale": True, "attention_rate": 3.0}
    config = make_config("enlca", {"m": 4}, **words)

    def trainer() -> Trainer:
        network = Architecture.of(config).build(config.seed)
        return Trainer(config, network, SuperResolution(cache), tmp_path, save_every=0)

    first = trainer()
    for _ in range(3):
        first.train_step()
    first.save()
    second = trainer()
    second.restore()
    assert second.step == 3
    for one in (first, second):
        one.network.train()
        while one.step < config.steps:
            one.train_step()
    assert_same(first, second)
    begin, end = Architecture.of(config).build(), first.network
    assert learned_weights(begin) == pytest.approx([0.1] * 5)
    assert all(a != b for a, b in zip(learned_weights(begin), learned_weights(end), strict=True))


def test_a_run_without_groups_resumes_from_an_older_checkpoint(
    cache: TrainingCache, tmp_path: Path
) -> None:
    """Checkpoints hold moments by the parameter's number; one group keeps the numbers."""
    config = make_config("nla")
    first = new_trainer(config, cache, tmp_path)
    first.train_step()
    first.save()
    names = [name for name, _ in first.network.named_parameters()]
    (path,) = find_checkpoints(tmp_path)
    tensors = load_file(path)
    for index, name in enumerate(names):
        assert tensors[f"optimizer.{index}.exp_avg"].shape == tensors[f"network.{name}"].shape

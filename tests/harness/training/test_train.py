from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.base.errors import UserError
from harness.base.signals import Stopped
from harness.config.network import NetworkConfig
from harness.config.run import RunConfig, StartConfig
from harness.config.variants import Variant
from harness.images.cache import TrainingCache
from harness.images.patches import sample_batch
from harness.images.sources import find_data
from harness.network.edsr import EDSR, build_network
from harness.tasks import sr
from harness.tasks.sr import SuperResolution
from harness.training import trainer as train
from harness.training.checkpoints import find_checkpoints, load_checkpoint
from harness.training.trainer import Trainer
from tests.harness.tiny import make_config

#: A clock that leaps by a day ahead and back.
JUMPS = itertools.cycle([0.0, 86400.0, 1.0, 86000.0, -86400.0])


@pytest.fixture
def cache(image_folder: Path) -> TrainingCache:
    return find_data(image_folder).training_images(4)


def network_of(config: RunConfig) -> EDSR:
    return build_network(config.variant, config.network, 4, seed=config.seed)


def trained(config: RunConfig, cache: TrainingCache, folder: Path | None = None) -> Trainer:
    trainer = Trainer(config, network_of(config), SuperResolution(cache), folder)
    trainer.train("test")
    return trainer


def same_state(first: EDSR, second: EDSR) -> bool:
    other = second.state_dict()
    return all(torch.equal(v, other[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize("name", ["none", "enlca", "nlsa", "criss-cross"])
def test_same_seed_same_bits(name: str, cache: TrainingCache) -> None:
    config = make_config(name)
    torch.manual_seed(1)
    first = trained(config, cache)
    torch.manual_seed(2)
    second = trained(config, cache)
    assert same_state(first.network, second.network)
    assert first.log == second.log
    other = trained(make_config(name, seed=1), cache)
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_a_warm_start_goes_on_where_its_baseline_stopped(
    cache: TrainingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its patches are those that the baseline would have seen next."""
    seen: list[int] = []
    draw = sr.sample_batch
    monkeypatch.setattr(
        sr, "sample_batch", lambda c, **kw: (seen.append(kw["step"]), draw(c, **kw))[1]
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
    whole = trained(config, cache)
    first = Trainer(config, network_of(config), SuperResolution(cache), tmp_path)
    first.network.train()
    for _ in range(3):
        first.train_step()
    first.save()
    torch.manual_seed(99)
    second = trained(config, cache, tmp_path)
    assert same_state(whole.network, second.network)
    assert whole.log == second.log


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_step_with_its_state_saved(
    signum: signal.Signals, cache: TrainingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("enlca")
    whole = trained(config, cache)
    trainer = Trainer(config, network_of(config), SuperResolution(cache), tmp_path)
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
    resumed = Trainer(config, network_of(config), SuperResolution(cache), tmp_path)
    resumed.restore()
    assert resumed.step == 4
    resumed.train("test")
    assert same_state(whole.network, resumed.network)
    assert whole.log == resumed.log


def test_state_of_another_configuration_is_refused(cache: TrainingCache, tmp_path: Path) -> None:
    trained(make_config(), cache, tmp_path)
    other = make_config(learning_rate=2e-3)
    with pytest.raises(UserError, match="another configuration"):
        Trainer(other, network_of(other), SuperResolution(cache), tmp_path).restore()


def test_a_damaged_state_is_made_good_by_the_one_before(
    cache: TrainingCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("enlca")
    first = Trainer(config, network_of(config), SuperResolution(cache), tmp_path, save_every=0)
    first.train("test")
    paths = sorted(tmp_path.glob("state-*"))
    assert [p.name for p in paths] == [f"state-00000000{s}.safetensors" for s in (5, 6)]
    paths[1].write_bytes(paths[1].read_bytes()[:-4])
    again = Trainer(config, network_of(config), SuperResolution(cache), tmp_path)
    again.restore()
    assert again.step == 5
    assert "damaged" in capsys.readouterr().err
    again.train("test")
    assert same_state(first.network, again.network)
    assert first.log == again.log


def test_moments_keep_their_memory_layout(cache: TrainingCache, tmp_path: Path) -> None:
    """Else the arithmetic on them would go another way, and the last bits with it."""
    config = make_config("nlsa")
    first = trained(config, cache, tmp_path)
    again = Trainer(config, network_of(config), SuperResolution(cache), tmp_path)
    again.restore()
    wanted, found = (t.optimizer.state_dict()["state"] for t in (first, again))
    assert wanted.keys() == found.keys()
    for a, b in ((wanted[i], found[i]) for i in wanted):
        assert a["exp_avg_sq"].stride() == b["exp_avg_sq"].stride()
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_other_threads_are_told(
    cache: TrainingCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(make_config(), cache, tmp_path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        Trainer(
            make_config(), network_of(make_config()), SuperResolution(cache), tmp_path
        ).restore()
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr().err
    assert f"threads: {threads}" in told
    assert f"threads: {threads + 1}" in told
    assert "last bits will differ" in told


def test_auxiliary_loss_sets_in_after_the_warm_up(cache: TrainingCache) -> None:
    config = make_config("enlca", {"m": 4}, steps=4, auxiliary_warmup=0.5, patch=12)
    trainer = trained(config, cache)
    auxiliary = [row[2] for row in trainer.log]
    assert auxiliary[:2] == [0, 0]
    assert min(auxiliary[2:]) > 0


def test_auxiliary_loss_changes_the_weights(cache: TrainingCache) -> None:
    values = {"steps": 4, "auxiliary_warmup": 0.0, "patch": 12}
    with_loss = trained(make_config("enlca", {"m": 4}, auxiliary_weight=1.0, **values), cache)
    without = trained(make_config("enlca", {"m": 4}, auxiliary_weight=0.0, **values), cache)
    query = "attention.0.query.weight"
    assert not torch.equal(
        with_loss.network.state_dict()[query], without.network.state_dict()[query]
    )


def test_projections_are_redrawn_every_epoch(cache: TrainingCache) -> None:
    config = make_config("enla", {"m": 4}, steps_per_epoch=2)
    trainer = Trainer(config, network_of(config), SuperResolution(cache))
    trainer.network.train()
    drawn = []
    for _ in range(5):
        trainer.train_step()
        drawn.append(trainer.network.attention_modules[0].projection.clone())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(drawn)] == [
        True,
        False,
        True,
        False,
    ]


def test_non_finite_gradients_stop_training(cache: TrainingCache) -> None:
    config = make_config("nla")
    network = network_of(config)
    with torch.no_grad():
        network.attention_modules[1].value.weight.fill_(float("nan"))
    with pytest.raises(
        UserError,
        match=r"stopped at step 0: .*not finite, first in the output of attention\.1\.value "
        r"\(Conv2d\).*--learning-rate",
    ):
        Trainer(config, network, SuperResolution(cache)).train("test")


@pytest.mark.parametrize(
    ("factor", "what"), [(1e3, "the loss has exploded, the largest output"), (1e30, "not finite")]
)
def test_an_exploding_run_keeps_its_last_good_state(
    factor: float,
    what: str,
    cache: TrainingCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The update of step 3 spoils the weights; their state is saved before step 4 tells."""
    config = make_config("nla")
    trainer = Trainer(config, network_of(config), SuperResolution(cache), tmp_path, save_every=0)
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
    good = load_checkpoint(tmp_path)
    assert good is not None
    assert good.step == 3
    assert str(find_checkpoints(tmp_path)[-1]) in str(stop.value)
    # From there, an undisturbed run goes on.
    resumed = trained(config, cache, tmp_path)
    assert same_state(resumed.network, trained(config, cache).network)


def test_out_of_memory_says_what_to_lower(
    cache: TrainingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    trainer = Trainer(config, network_of(config), SuperResolution(cache), tmp_path, save_every=0)
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
    assert same_state(whole.network, other.network)
    assert whole.log == other.log


def test_patches_are_the_same_for_every_variant(
    cache: TrainingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[bytes]] = {}

    def record(name: str) -> None:
        def sampled(*args: object, **values: object) -> object:
            batch = sample_batch(*args, **values)  # type: ignore[arg-type]
            seen.setdefault(name, []).append(batch[0].tobytes() + batch[1].tobytes())
            return batch

        monkeypatch.setattr("harness.tasks.sr.sample_batch", sampled)

    for name in ("none", "nlsa", "enlca"):
        record(name)
        trained(make_config(name), cache)
    assert seen["none"] == seen["nlsa"] == seen["enlca"]
    assert len(set(seen["none"])) == 6


def test_bfloat16_trains(cache: TrainingCache) -> None:
    trainer = trained(make_config("enlca", {"m": 4}, precision="bfloat16"), cache)
    assert trainer.log[-1][1] < 1


def test_bfloat16_follows_float32(cache: TrainingCache) -> None:
    """Each step runs with the weights that the one before it left."""
    of_precision = [
        trained(make_config(steps=40, learning_rate=3e-3, precision=name), cache).log
        for name in ("float32", "bfloat16")
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
    network = build_network(Variant(name), NetworkConfig(4, 8), 4).cuda()
    trainer = Trainer(config, network, SuperResolution(cache))
    trainer.train("test")
    assert trainer.step == config.steps

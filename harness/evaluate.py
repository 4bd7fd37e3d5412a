"""PSNR and SSIM of a network on whole test images, or its scores in a synthetic task.

Command line: ``python -m harness.evaluate --official FILE --data DIR``, or ``--weights RUN``, with
``--task denoise --sigma 25`` for another task than the one that it was trained on.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN
from .base.printing import print_table

if TYPE_CHECKING:
    import torch

    from .images.files import Pixels
    from .images.sources import TestImage, TestSet
    from .measuring.analysis import Analysis
    from .network.weights import TrainedNetwork
    from .records.shapes import Quality, Score
    from .runs.stored import StoredTask
    from .tasks.base import SyntheticTask


@dataclass(kw_only=True)
class Options:
    """PSNR and SSIM of the authors' networks, or of ours, on whole test images; of networks of a
    synthetic task, its scores.

    Examples:
      python -m harness.evaluate --official ENLCAx4.pt --data DIR --test-sets Urban100 --chop
      python -m harness.evaluate --weights enlca-m16-small --data DIR --save-images DIR2
      python -m harness.evaluate --weights nla-denoise --task denoise --sigma 25 --data DIR
      python -m harness.evaluate --weights nla-small --data DIR --self-similar --non-local-use
      python -m harness.evaluate --weights nla-recall-d4 --task recall --pairs 16 --cells 12
    """

    official: Path | None = None
    """The authors' file of EDSR, NLSN or ENLCN: pickled tensors or safetensors."""
    weights: str | None = None
    """A run's id (or an unambiguous prefix of one), or a weight file of this project."""
    data: Path | None = None
    """Folder of images (docs/data.md); else SR_DATA, else images that ship with scikit-image."""
    test_sets: tuple[str, ...] = ()
    """Test sets to evaluate on; all by default."""
    every: int = 1
    """Evaluate one image in so many of each set, from the first."""
    tile: int | None = None
    """Cut images into tiles of this many LR pixels, 0 for whole images. By default as the run of
    --weights was evaluated."""
    chop: bool = False
    """Cut every image into overlapping quarters, as the released NLSN and ENLCN are evaluated."""
    psnr: Literal["rounded", "released"] = "rounded"
    """rounded: on Y rounded to 8 bits, as MATLAB's rgb2ycbcr gives it. released: as the code of
    EDSR, NLSN and ENLCN prints it, on unrounded Y, which is higher, the more so for good images."""
    block_res_scale: float | None = None
    """With --official: the released --res_scale of blocks and attention, which the file does not
    hold; by default that of the published networks."""
    self_similar: bool = False
    """Also measure PSNR on the part of each image that recurs beyond the reach of the convolutions
    (docs/measuring.md); a run's record gets it."""
    non_local_use: bool = False
    """Also measure the PSNR lost when attention is replaced by the mean of its values, and when it
    is confined to the reach of the convolutions; a run's record gets both."""
    task: str | None = None
    """The task to evaluate the weights on: sr, denoise, recall, … or your own as
    package.module:Class; its options follow. By default the one that they were trained on, with
    its options."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder of the runs that --weights names."""
    output: Path | None = None
    """Write the figures of every image, or the scores, here, as JSON."""
    save_images: Path | None = None
    """Write the restored images here, as <set>/<image>.png."""
    overwrite: bool = False
    """Let --save-images replace files."""

    @property
    def analyses(self) -> bool:
        """Whether more than quality is measured."""
        return self.self_similar or self.non_local_use


#: Options that a synthetic task has no use for.
_OF_IMAGES = (
    "data",
    "every",
    "tile",
    "save_images",
    "overwrite",
    "self_similar",
    "non_local_use",
)
#: Those of super-resolution alone.
_OF_SR = ("chop", "psnr")


@command_line
def main() -> None:
    """Entry point of ``python -m harness.evaluate``."""
    options, chosen = _parse(sys.argv[1:])
    if options.tile and (options.chop or options.tile < 16):
        wrong = "and --chop exclude each other" if options.chop else "must be at least 16 LR pixels"
        raise UserError(f"--tile {wrong}")
    if options.every < 1:
        raise UserError(f"--every must be at least 1, got {options.every}")
    if options.analyses and (options.chop or options.psnr == "released"):
        wrong = "--chop" if options.chop else "--psnr released"
        raise UserError(f"{wrong} excludes --self-similar and --non-local-use")
    if options.output is not None and options.output.is_dir():
        raise UserError(f"--output {options.output} is a folder: give a file for the figures")
    if options.save_images is not None and options.save_images.is_file():
        raise UserError(f"--save-images {options.save_images} is a file: give a folder")
    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    trained, own, tile = _load(options, chosen)
    from .runs.stored import StoredTask
    from .tasks.images import ImageTask
    from .tasks.registry import DEFAULT, find_task

    task = chosen or own or StoredTask(DEFAULT, {})
    cls = find_task(task.name)
    if issubclass(cls, ImageTask):
        _check_scale(trained, task.name, (cls.fixed_scale,) if cls.fixed_scale else (2, 3, 4))
        _evaluate_images(options, trained, own, task, tile, device)
    else:
        _evaluate_task(options, trained, own, task.build(), device)


def _parse(argv: list[str]) -> tuple[Options, StoredTask | None]:
    """The options, and the task that they name, if any."""
    if any(word.partition("=")[0] == "--task" for word in argv):
        from .runs.stored import StoredTask
        from .tasks.options import parse_task

        options, cls, values = parse_task(Options, argv, "harness.evaluate")
        return options, StoredTask(cls.name, values)
    try:
        with usage_errors(Options):
            return tyro.cli(
                Options, prog="python -m harness.evaluate", description=inspect.getdoc(Options)
            ), None
    except UserError:
        from .tasks.options import refuse_options

        refuse_options(Options, argv)  # it names the task of an unknown option
        raise


def _evaluate_images(
    options: Options,
    trained: TrainedNetwork,
    own: StoredTask | None,
    chosen: StoredTask,
    tile: int | None,
    device: torch.device,
) -> None:
    """Print and write PSNR and SSIM on test images.

    Args:
        own: the task that was learned, if it is known and not bicubic super-resolution.
        chosen: the task to evaluate on.
        tile: side of the tiles, None for whole images or quarters.
    """

    from .images.sources import find_data
    from .measuring.quality import evaluate
    from .network.official import published_method
    from .records.shapes import untyped
    from .reporting.tables.evaluation import analysis_table, evaluation_table
    from .runs.stored import described
    from .tasks.options import refuse

    architecture = trained.architecture
    if tile and options.tile is None:
        print(f"In tiles of {tile}, as the run was evaluated; --tile 0 for whole images")
    source = find_data(options.data)
    task = chosen.build_on(source, architecture.scale)
    if task.grey:
        refuse(sys.argv[1:], _OF_SR, "super-resolution")
    names = source.choose_tests(options.test_sets)
    for name in names:  # a bad image shows before any work is done
        task.test_sha256(name)
    test_sets = [task.test_set(name) for name in names]
    keep = _saver(options, test_sets, task.grey)
    network = trained.network.to(device)
    analyse = _analysis(options, trained, task.grey)
    results: dict[str, Quality] = {}
    with machine.use_tf32(False):
        for test_set in test_sets:
            count, images = test_set.every(options.every)
            results[test_set.name] = evaluate(
                network,
                images,
                count,
                architecture.scale,
                f"{trained.label} on {test_set.name}",
                tile,
                chop=options.chop,
                released_psnr=options.psnr == "released",
                grey=task.grey,
                keep=keep(test_set.name) if keep else None,
                analyse=analyse,
            )
    title = f"{trained.name}: {architecture.description}"
    # The paper's results are of bicubic LR images, and of all of them.
    of_all = options.every == 1
    method = published_method(architecture) if of_all and not task.settings else None
    content: dict[str, Any] = {"data": source.name, "tile": tile}
    if not of_all:
        title = f"{title}; one image in {options.every}"
        content["every"] = options.every
    if not task.grey:
        content |= {"chop": options.chop, "psnr": options.psnr}
    if own or task.settings:  # files of bicubic super-resolution name no task
        used = {name: getattr(task, name) for name in task.options()}
        title = f"{title}; task {described(task.name, used)}"
        content |= {
            "task": {"name": task.name, "options": used},
            "trained_on": own and {"name": own.name, "options": own.options},
        }
    print_table(evaluation_table(title, results, architecture.scale, method))
    if analyse:
        print_table(analysis_table(results))
        if options.weights:
            _record(options, trained, own, chosen, device, results)
    if keep:
        print(f"Images: {options.save_images}")
    content["quality"] = {name: untyped(result) for name, result in results.items()}
    _write(options, trained, device, content, "Quality of every image")


def _analysis(options: Options, trained: TrainedNetwork, grey: bool) -> Analysis | None:
    """What measures more than quality, if an option asks for it."""
    from .measuring.analysis import Analysis

    if not options.analyses:
        return None
    architecture = trained.architecture
    return Analysis(
        network=trained.network,
        scale=architecture.scale,
        reach=architecture.network.reach,
        grey=grey,
        self_similar=options.self_similar,
        non_local_use=options.non_local_use,
    )


def _record(
    options: Options,
    trained: TrainedNetwork,
    own: StoredTask | None,
    chosen: StoredTask,
    device: torch.device,
    results: dict[str, Quality],
) -> None:
    """Add what was measured to the run's record, or say why not."""
    import dataclasses
    from datetime import UTC, datetime

    from msgspec import convert

    from .config.options import describe_command
    from .measuring.recurrence import RULE
    from .records.shapes import Analysed, Machine
    from .runs.analysed import add_analysis
    from .runs.stored import StoredTask
    from .tasks.registry import DEFAULT

    learned = own or StoredTask(DEFAULT, {})
    if (learned.name, learned.options) != (chosen.name, chosen.options):
        print(f"Not recorded: {trained.name} learned task {learned.label}", file=sys.stderr)
        return
    analysed = Analysed(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=describe_command("harness.evaluate", sys.argv[1:]),
        machine=convert(machine.describe(device), Machine),
        reach=trained.architecture.network.reach,
        rule=dataclasses.asdict(RULE) if options.self_similar else {},
    )
    done, what = add_analysis(
        options.results, trained.name, results, analysed, some=options.every > 1
    )
    print(
        f"Recorded: {what}" if done else f"Not recorded: {what}", file=None if done else sys.stderr
    )


def _saver(
    options: Options, test_sets: Sequence[TestSet], grey: bool
) -> Callable[[str], Callable[[TestImage, Pixels], None]] | None:
    """What saves the images of a set, if ``--save-images`` is given.

    Raises:
        UserError: a file is there already, or ``--overwrite`` stands alone.
    """
    from .images.saved import refuse_taken, save_png

    folder = options.save_images
    if folder is None:
        if options.overwrite:
            raise UserError("--overwrite applies only to --save-images")
        return None

    def path(test_set: str, image: str) -> Path:
        return folder / test_set / f"{image}.png"

    if not options.overwrite:
        files = (
            path(test_set.name, file.stem)
            for test_set in test_sets
            for file in test_set.images.paths[:: options.every]
        )
        refuse_taken(files, "--save-images")

    def save(test_set: str, image: TestImage, output: Pixels) -> None:
        save_png(path(test_set, image.name), output[..., 0] if grey else output)

    return lambda test_set: partial(save, test_set)


def _check_scale(trained: TrainedNetwork, task: str, scales: Sequence[int]) -> None:
    """Raise a UserError if the weights have none of the task's scales, which are in order."""
    if (scale := trained.architecture.scale) not in scales:
        wanted = str(scales[0]) if len(scales) == 1 else f"{scales[0]} to {scales[-1]}"
        raise UserError(
            f"{trained.name} has scale {scale}, but task {task} has scale {wanted}: give "
            f"weights of scale {wanted}, or another --task"
        )


def _evaluate_task(
    options: Options,
    trained: TrainedNetwork,
    own: StoredTask | None,
    task: SyntheticTask,
    device: torch.device,
) -> None:
    """Print and write the scores in a synthetic task; ``own`` is the one that was learned."""

    from .base.progress import progress_bar
    from .measuring.tasks import check_reach, score
    from .records.shapes import untyped
    from .reporting.tables.evaluation import distance_table, score_table
    from .runs.stored import described
    from .tasks.options import check_memory, refuse

    refuse(sys.argv[1:], _OF_SR, "super-resolution")
    refuse(sys.argv[1:], _OF_IMAGES, "tasks on images")
    reach = trained.architecture.network.reach
    _check_scale(trained, task.name, (task.scale,))
    names = list(dict.fromkeys(options.test_sets)) or task.test_sets
    if unknown := [name for name in names if name not in task.test_sets]:
        raise UserError(
            f"task {task.name} has no test set {unknown[0]}: choose from "
            f"{', '.join(task.test_sets)}"
        )
    if task.test_sets[-1] in names:
        check_memory(task)
    check_reach(task, reach, names)
    network = trained.network.to(device)
    results: dict[str, Score] = {}
    with machine.use_tf32(False), progress_bar("sets", stdout=True) as progress:
        bar = progress.add_task(f"{trained.label} in {task.label}", total=len(names))
        for name in names:
            results[name] = score(network, task, name, reach)
            progress.advance(bar)
    title = f"{trained.name}: {trained.architecture.description}"
    title = f"{title}; task {described(task.name, task.settings)}"
    print_table(score_table(title, results))
    if any(found.by_distance for found in results.values()):
        print_table(distance_table(results))
    content = {
        "task": {"name": task.name, "options": task.settings, "sha256": task.sha256},
        "trained_on": own and {"name": own.name, "options": own.options},
        "scores": {name: untyped(found) for name, found in results.items()},
    }
    _write(options, trained, device, content, "Scores")


def _write(
    options: Options,
    trained: TrainedNetwork,
    device: torch.device,
    content: dict[str, Any],
    what: str,
) -> None:
    """Write the file that ``--output`` names, if it names one."""
    from .base.files import write_json
    from .config.options import describe_command

    if options.output is None:
        return
    record = {
        "kind": "evaluation",
        "name": trained.name,
        "command": describe_command("harness.evaluate", sys.argv[1:]),
        "machine": machine.describe(device),
        "architecture": trained.architecture.to_dict(),
        **content,
    }
    write_json(options.output, record)
    print(f"{what}: {options.output}")


def _load(
    options: Options, chosen: StoredTask | None
) -> tuple[TrainedNetwork, StoredTask | None, int | None]:
    """The network, the task that it was trained on, and the side of the tiles.

    The task is None for bicubic super-resolution. It may be unknown if the command says what to
    measure. Tiles are None for whole images or quarters.
    """
    from .network.official import load_official
    from .network.weights import find_weights, load_weights
    from .runs.stored import task_of, tile_of

    if (options.official is None) == (options.weights is None):
        raise UserError("give one of --official FILE and --weights RUN-OR-FILE")
    tile = options.tile or None
    if options.official is not None:
        return load_official(options.official, block_res_scale=options.block_res_scale), None, tile
    if options.block_res_scale is not None:
        raise UserError("--block-res-scale is read from the file of --weights: leave it out")
    path = find_weights(options.weights or "", options.results)
    trained = load_weights(path)
    own = None
    try:
        own = task_of(trained, path, options.results)
        if options.tile is None and not options.chop:
            tile = tile_of(trained, path, options.results)
    except UserError:
        if chosen is None:
            raise
    return trained, own, tile


if __name__ == "__main__":
    main()

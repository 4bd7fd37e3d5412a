"""What a record of each kind holds, as typed structures.

Keys beyond those named here are allowed everywhere but in ``config``, which tells settings apart:
they stay in the file, and readers do not see them. ``UNSET`` is a key that is not there.
"""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ..base.names import task_label

#: Version of the records' layout. A reader refuses any other.
SCHEMA = 1
#: The paper's m and k, which every approximation record has.
REFERENCE_M, REFERENCE_K = 128, 6.0
#: Name of the mean over a network's modules, in approximation records.
WHOLE = "all modules"
#: Level of every interval.
CONFIDENCE = 0.95
# PSNR (dB) and SSIM of one image's input differ by less on two machines.
_INPUT_TOLERANCE = 1e-4

Number = int | float
_ID = re.compile(r"""[^\W_][^/\\\x00-\x1f:*?"<>|]*""")


class _Shape(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class Cpu(_Shape, frozen=True, kw_only=True):
    """A processor; what could not be found out is None."""

    model: str | None = None
    architecture: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    memory_gb: Number | None = None
    vector_instructions: str | None = None


class Torch(_Shape, frozen=True, kw_only=True):
    """How torch was built and set; older records lack some of it."""

    threads: int | None = None
    interop_threads: int | None = None
    wait_policy: str | None = None
    allocator: str | None = None
    blas: str | None = None
    lapack: str | None = None
    mkl: bool | None = None
    onednn: bool | None = None
    #: Whether the attention's large products were oneDNN's; records of November 2026 have it.
    products_by_onednn: bool | None = None
    matmul_precision: str | None = None
    cudnn_tf32: bool | None = None
    cudnn_benchmark: bool | None = None
    cudnn_deterministic: bool | None = None
    deterministic_algorithms: bool | None = None


class Code(_Shape, frozen=True, kw_only=True):
    """The code that wrote a record."""

    version: str | None = None
    commit: str | None = None


class Machine(_Shape, frozen=True, kw_only=True):
    """What a reader needs to judge or repeat a measurement; see ``base.machine.describe``."""

    device: str | None = None
    cpu: Cpu | None = None
    #: ``name``, ``memory_gb``, ``driver``, … of the GPU; None on the CPU.
    gpu: dict[str, Any] | None = None
    os: str | None = None
    python: str | None = None
    packages: dict[str, str | None] | None = None
    torch: Torch | None = None
    #: Compiler of the attention's kernels in C; None where torch's operations took their place.
    compiler: str | None = None
    code: Code | None = None


class RecordedVariant(_Shape, frozen=True, kw_only=True):
    """A variant as the module's own code described it when the record was made.

    Readers need no module for it: what they say of a variant is all here. Records older than
    ``row_label`` have the plain label and all options in place of what is missing.
    """

    name: str
    label: str
    options: dict[str, Any]
    #: The label, followed by the options that it does not show; unlike any built-in module's
    #: label if the module is somebody else's.
    row_label: str = ""
    #: Options that are not at the module's defaults.
    changed: dict[str, Any] | None = None
    #: The paper and equation that the module implements.
    source: str = ""
    #: Growth with N as the method's authors state it.
    growth: str = ""
    #: Whether it is one of attention_zoo's own.
    built_in: bool | None = None
    #: Of the file of somebody else's module; records from before 2026-12 lack it.
    source_sha256: str | None = None

    def __post_init__(self) -> None:
        if self.changed is None:
            msgspec.structs.force_setattr(self, "row_label", self.row_label or self.label)
            msgspec.structs.force_setattr(self, "changed", self.options)
            msgspec.structs.force_setattr(self, "built_in", ":" not in self.name)


class Record(_Shape, frozen=True, kw_only=True):
    """What records of all kinds hold."""

    schema: int
    kind: str
    id: str
    created: str
    command: str
    machine: Machine

    @property
    def when(self) -> datetime:
        """The time of the measurement, with its time zone."""
        return datetime.fromisoformat(self.created)


class Data(_Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images of a run."""

    name: str
    train: list[str]
    train_images: int
    train_sha256: str | UnsetType = UNSET
    test: list[str]
    holdout_crop: int | UnsetType = UNSET


class Start(_Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training of the baseline that a warm start begins with."""

    steps: int
    learning_rate: Number
    schedule: str


class TaskSetting(_Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the network learned, unless it is the default; see ``config.run.TaskConfig``."""

    name: str
    options: dict[str, Any]
    loss: str
    positions: list[int]

    @property
    def label(self) -> str:
        """The task with its options, e.g. ``denoise sigma 50``."""
        return task_label(self.name, self.options)


class Config(_Shape, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of a run without its variant; see ``config.run.RunConfig``."""

    preset: str
    protocol: str
    scale: int
    seed: int
    blocks: int
    channels: int
    block_res_scale: Number | UnsetType = UNSET
    patch: int | UnsetType = UNSET
    batch: int | UnsetType = UNSET
    steps: int
    steps_per_epoch: int | UnsetType = UNSET
    learning_rate: Number | UnsetType = UNSET
    schedule: str | UnsetType = UNSET
    betas: list[Number] | UnsetType = UNSET
    auxiliary_weight: Number | UnsetType = UNSET
    auxiliary_warmup: Number | UnsetType = UNSET
    precision: str | UnsetType = UNSET
    device: str
    tile: int | UnsetType | None = UNSET
    data: Data
    start: Start | UnsetType = UNSET
    implementation: str | UnsetType = UNSET
    #: Not there in super-resolution of bicubic LR images.
    task: TaskSetting | UnsetType = UNSET
    #: Not there in a task, which has its own, nor for modules after each quarter of the blocks.
    positions: list[int] | UnsetType = UNSET
    learn_res_scale: bool | UnsetType = UNSET
    attention_rate: Number | UnsetType = UNSET

    @property
    def image_task(self) -> TaskSetting | None:
        """The task if it works on image files; None for a synthetic one and for the default."""
        return None if self.task is UNSET or not self.data.train_images else self.task

    @property
    def setting(self) -> dict[str, Any]:
        """The configuration without its seed: only runs of one setting are comparable."""
        return {key: value for key, value in untyped(self).items() if key != "seed"}


class Training(_Shape, frozen=True, kw_only=True):
    """How a run was trained; ``log`` rows are step, mean loss, mean auxiliary loss, rate.

    ``curve`` rows are step and score on validation images, in a synthetic task.
    """

    parameters: int
    seconds: Number
    processes: int = 1
    steps_per_second: Number | None = None
    log: list[list[Number]] = []
    curve: list[list[Number]] = []


class ImageQuality(_Shape, frozen=True, kw_only=True):
    """PSNR (dB) and SSIM of one image; ``tile`` is the side in input pixels, None if whole.

    Beside it stands the quality of the input: of bicubic's up-sampling on Y or, in denoising, of
    the noisy image; see :func:`input_of`.

    Attributes:
        self_similar_psnr: of the part of the image that recurs beyond the backbone's reach; None
            if it is too small. Not there if it was not measured, as what follows.
        self_similar_share: share of that part in the pixels that PSNR is of.
        lost_as_mean: PSNR lost with attention replaced by the plain mean of its values.
        lost_confined: PSNR lost with attention confined to the backbone's reach.
    """

    name: str
    psnr: Number
    ssim: Number
    bicubic_psnr: Number | UnsetType = UNSET
    bicubic_ssim: Number | UnsetType = UNSET
    noisy_psnr: Number | UnsetType = UNSET
    noisy_ssim: Number | UnsetType = UNSET
    tile: int | None
    self_similar_psnr: Number | UnsetType | None = UNSET
    self_similar_share: Number | UnsetType = UNSET
    lost_as_mean: Number | UnsetType = UNSET
    lost_confined: Number | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_input(self)


class Quality(_Shape, frozen=True, kw_only=True):
    """Quality on a test set: of each image, and their means.

    Attributes:
        sha256: of the images, see ``images.sources.set_sha256``; older records lack it.
        lr_files: number of images whose LR image was a file; those of the others were made here.
    """

    psnr: Number
    ssim: Number
    bicubic_psnr: Number | UnsetType = UNSET
    bicubic_ssim: Number | UnsetType = UNSET
    noisy_psnr: Number | UnsetType = UNSET
    noisy_ssim: Number | UnsetType = UNSET
    sha256: str | UnsetType = UNSET
    lr_files: int | UnsetType = UNSET
    images: list[ImageQuality]

    def __post_init__(self) -> None:
        _check_input(self)


def input_of(found: ImageQuality | Quality) -> str:
    """What stands beside the network's quality: ``bicubic`` or ``noisy``."""
    return "bicubic" if found.noisy_psnr is UNSET else "noisy"


def input_qualities(found: Quality) -> dict[str, tuple[Number, Number]]:
    """PSNR and SSIM of each image's input, by the image's name."""
    psnr, ssim = (f"{input_of(found)}_{metric}" for metric in ("psnr", "ssim"))
    return {image.name: (getattr(image, psnr), getattr(image, ssim)) for image in found.images}


def measured(image: ImageQuality, name: str) -> float | None:
    """An image's number of this name; None where it was not measured, or could not be."""
    value = getattr(image, name)
    return None if value is UNSET or value is None else float(value)


def differ(one: tuple[Number, Number], other: tuple[Number, Number]) -> bool:
    """Whether the PSNR and SSIM of two inputs show that they were made from different images.

    Noise is neither clipped nor rounded, so PSNR is that of the noise alone, and SSIM tells.
    """
    return any(abs(a - b) > _INPUT_TOLERANCE for a, b in zip(one, other, strict=True))


def _check_input(found: ImageQuality | Quality) -> None:
    for key in ("psnr", "ssim"):
        if getattr(found, f"{input_of(found)}_{key}") is UNSET:
            raise ValueError(f"Object missing required field `{input_of(found)}_{key}`")


class Score(_Shape, frozen=True, kw_only=True):
    """Score of a synthetic task on a test set, from the images that count.

    Attributes:
        as_mean: score with the trained attention replaced by the plain mean of its values; None
            where there is no attention.
        deleted: score of the whole network on the images without what it has to find.
        all_references: score of an oracle that takes all references alike; None for others.
        weight: what counted, summed over the images, in the task's unit.
        by_distance: rows of distance in input pixels, score of what lies up to there and farther
            than the row before, and its weight; near ones are in it that do not count else.
    """

    metric: str
    score: Number
    floor: Number
    ceiling: Number
    as_mean: Number | None
    deleted: Number
    all_references: Number | None = None
    weight: Number
    details: dict[str, Number] = {}
    by_distance: list[list[Number]] = []


class Evaluation(_Shape, frozen=True, kw_only=True):
    """An evaluation of a run's weights that is younger than its record."""

    created: str
    command: str
    machine: Machine


class Analysed(Evaluation, frozen=True, kw_only=True):
    """Self-similar parts or non-local use, measured after the run.

    Attributes:
        reach: of the backbone's convolutions in input pixels.
        rule: of self-similar parts, see ``measuring.recurrence.Rule``.
    """

    reach: int
    rule: dict[str, Number] = {}


class Run(Record, frozen=True, kw_only=True):
    """One variant trained and evaluated with one seed.

    A task on image files has ``quality`` by test set, a synthetic task ``scores``, and
    ``validation``, its score on validation images. ``evaluated`` says when and where the quality
    was measured again, as test images had changed, and ``analysed`` when and where self-similar
    parts or non-local use were last measured.

    ``drawn_sha256`` is the digest of the images of ``phase`` in runs from before 2026-11-30, when
    machines drew them with other last bits: the configuration, and so the id, has that of the
    same images as all machines draw them now.
    """

    variant: RecordedVariant
    config: Config
    training: Training
    quality: dict[str, Quality]
    scores: dict[str, Score] = {}
    validation: Score | None = None
    source_sha256: str | None = None
    evaluated: Evaluation | None = None
    drawn_sha256: str | None = None
    analysed: Analysed | None = None


class Counts(_Shape, frozen=True, kw_only=True):
    """GFLOPs (2 · MACs / 1e9) of a part; None for a counter that failed."""

    channels: int
    paper_gflops: Number | None
    executed_gflops: Number | None
    fvcore_gflops: Number | None
    ptflops_gflops: Number | None
    torch_gflops: Number | None
    inserted_gflops: Number | None = None
    embedding: int | None = None


class Parts(_Shape, frozen=True, kw_only=True):
    """The core alone, and the module as inserted."""

    core: Counts
    module: Counts


class Cost(Record, frozen=True, kw_only=True):
    """Operation counts of a variant on a feature map of ``height x width``."""

    variant: RecordedVariant
    height: int
    width: int
    parts: Parts
    notes: list[str]


class Times(_Shape, frozen=True, kw_only=True):
    """Milliseconds of a call, number of runs, peak memory in MB (1e6 bytes); None: see ``note``."""

    mean_ms: Number | None = None
    median_ms: Number | None
    iqr_ms: Number | None = None
    min_ms: Number | None = None
    runs: int | None
    peak_memory_mb: Number | None
    note: str | None = None


class LatencyRow(Times, frozen=True, kw_only=True):
    """Times of one variant in one part, pass and size."""

    variant: RecordedVariant
    part: str
    passes: str
    height: int
    width: int
    batch: int
    channels: int
    dtype: str
    device: str
    mean_ms: Number | None
    iqr_ms: Number | None
    min_ms: Number | None
    #: The implementation of each core that ran.
    implementation: dict[str, str] = {}

    @property
    def positions(self) -> int:
        """N, the number of positions."""
        return self.height * self.width


class LatencySettings(_Shape, frozen=True, kw_only=True):
    """How calls were timed; ``network`` are the sizes of the network, where it was."""

    warmup: int | UnsetType | None = UNSET
    min_runs: int | UnsetType | None = UNSET
    max_runs: int | UnsetType | None = UNSET
    max_seconds: Number | None
    seed: int | UnsetType | None = UNSET
    order: str | UnsetType | None = UNSET
    clock: str | UnsetType | None = UNSET
    l2_flush: bool | UnsetType | None = UNSET
    memory_format: str | UnsetType | None = UNSET
    network: dict[str, Any] | UnsetType | None = UNSET
    implementation: str | UnsetType = UNSET
    graphs: bool | UnsetType = UNSET


class Latency(Record, frozen=True, kw_only=True):
    """Methods timed in turn on one machine; ``other_cores`` other processes kept busy."""

    settings: LatencySettings
    rows: list[LatencyRow]
    other_cores: Number | UnsetType = UNSET


class ScalingSettings(LatencySettings, frozen=True, kw_only=True):
    """The least number of positions that a fit takes, and the bounds of time."""

    fit_from: int
    size_seconds: Number | UnsetType | None = UNSET
    memory_seconds: Number | UnsetType | None = UNSET


class Scaling(Record, frozen=True, kw_only=True):
    """Time and memory of cores against the number of positions; ``other_cores`` as in Latency."""

    settings: ScalingSettings
    rows: list[LatencyRow]
    other_cores: Number | UnsetType = UNSET


class SpeedRow(_Shape, frozen=True, kw_only=True):
    """The released implementation (``obvious``) and ours, timed in turn."""

    name: str
    case: str
    variant: RecordedVariant
    passes: str
    dtype: str
    device: str
    obvious: Times
    ours: Times
    ratio: Number | None
    ratio_low: Number | None
    ratio_high: Number | None
    ratio_target: Number | None
    memory_target_mb: Number | None
    limit_ms: Number
    gflops: Number | None = None
    megabytes: Number | None = None
    note: str | None = None


class SpeedSettings(_Shape, frozen=True, kw_only=True):
    """How both sides were timed."""

    warmup: int | UnsetType | None = UNSET
    min_runs: int | UnsetType | None = UNSET
    max_runs: int | UnsetType | None = UNSET
    max_seconds: Number | None
    seed: int | UnsetType | None = UNSET
    order: str | UnsetType | None = UNSET
    clock: str | UnsetType | None = UNSET
    processes: str | UnsetType | None = UNSET
    memory_format: str | UnsetType | None = UNSET


class MachineLimits(_Shape, frozen=True, kw_only=True):
    """Rate of matrix products in GFLOP/s (2 · MACs), of copies in GB/s (1e9 bytes)."""

    matmul_gflops: Number
    copy_gb_per_s: Number


class Speed(Record, frozen=True, kw_only=True):
    """Released implementations beside ours, and the machine's limits; ``other_cores`` as before."""

    settings: SpeedSettings
    machine_limits: MachineLimits
    rows: list[SpeedRow]
    other_cores: Number | UnsetType = UNSET


class ImplementationRow(_Shape, frozen=True, kw_only=True):
    """A core by every implementation; ``auto`` names the one that is chosen if none is."""

    variant: RecordedVariant
    passes: str
    height: int
    width: int
    dtype: str
    device: str
    auto: str
    limit_ms: Number
    times: dict[str, Times]


class ImplementationSettings(_Shape, frozen=True, kw_only=True):
    """How implementations were timed."""

    max_seconds: Number
    min_runs: int
    max_runs: int
    seed: int


class Implementations(Record, frozen=True, kw_only=True):
    """Implementations of the cores side by side; ``other_cores`` as before."""

    settings: ImplementationSettings
    machine_limits: MachineLimits
    rows: list[ImplementationRow]
    other_cores: Number


class RedrawRow(_Shape, frozen=True, kw_only=True):
    """Quality under one draw; ``m`` is None where the method has none."""

    test_set: str
    m: int | None
    draw: int
    psnr: Number
    ssim: Number
    images: int


class RedrawSettings(_Shape, frozen=True, kw_only=True):
    """The trained network and its draws."""

    network: str
    draws: int
    tile: int | None
    weights_sha256: str | None = None
    m: list[int] = []
    test_sets: list[str] = []
    data: str | None = None
    device: str | None = None


class Redraw(Record, frozen=True, kw_only=True):
    """Quality of a trained network under other random draws.

    ``images`` is the digest of each test set, as in :class:`Quality`; older records lack it.
    """

    variant: RecordedVariant
    settings: RedrawSettings
    images: dict[str, str] = {}
    rows: list[RedrawRow]


class Gpu(Record, frozen=True, kw_only=True):
    """One piece of what is measured on a CUDA device; its rows have keys of their own."""

    piece: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    other_cores: Number | UnsetType = UNSET


class ApproximatedNetwork(_Shape, frozen=True, kw_only=True):
    """The trained network whose features were measured."""

    name: str
    variant: RecordedVariant
    scale: int | None = None
    data: str | None = None
    test_sets: list[str] = []
    images: int = 0


class ApproximationSettings(_Shape, frozen=True, kw_only=True):
    """What was varied."""

    network: ApproximatedNetwork | None
    sides: list[int]
    rounds: int
    draws: int
    top: int
    synthetic: int | None = None
    m: list[int] = []
    k: list[Number] = []
    queries: int | None = None
    chunk_size: int | None = None
    eps: Number | None = None
    seed: int | None = None


class Approximation(Record, frozen=True, kw_only=True):
    """Quality of ENLA's approximation and of NLSA's buckets.

    Rows are mappings from quantity to number: what ``measuring.approximation`` measures of exact
    attention, ENLA and NLSA by features, N, k, m and rounds, and the PSNR of the network.
    """

    settings: ApproximationSettings
    exact: list[dict[str, Any]]
    enla: list[dict[str, Any]]
    nlsa: list[dict[str, Any]]
    network: list[dict[str, Any]]


KINDS: dict[str, type[Record]] = {
    "run": Run,
    "cost": Cost,
    "latency": Latency,
    "speed": Speed,
    "implementations": Implementations,
    "approximation": Approximation,
    "scaling": Scaling,
    "gpu": Gpu,
    "redraw": Redraw,
}
# Keys that the rows of a record without a type for them must have.
_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "gpu": {"rows": ("name",)},
    "approximation": {
        "exact": ("features", "n", "k"),
        "enla": ("features", "n", "k", "m"),
        "nlsa": ("features", "n", "rounds", "chunk_size"),
        "network": ("attention", "m", "psnr"),
    },
}


class ShapeError(ValueError):
    """A record is not as its kind demands; the message names the key."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"key '{key}' {problem}" if key else problem)


def typed(content: Any) -> Record:
    """A record from what JSON gave.

    Raises:
        ShapeError: a key is missing or unknown, or a value has a wrong type or is not finite.
    """
    if not isinstance(content, dict):
        raise ShapeError("", "it is not a JSON object")
    kind = content.get("kind")
    shape = KINDS.get(kind) if isinstance(kind, str) else None
    try:
        record = msgspec.convert(content, shape or Record)
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    if shape is None:
        raise ShapeError("kind", f"is {kind!r}, not one of {', '.join(KINDS)}")
    if record.schema != SCHEMA:
        raise ShapeError("schema", f"is {record.schema}, not {SCHEMA}")
    if not _ID.fullmatch(record.id):
        raise ShapeError("id", f"{record.id!r} is not a file name")
    _check_finite(content, "")
    _check_created(record.created)
    for part, keys in _KEYS.get(record.kind, {}).items():
        for index, row in enumerate(content[part]):
            for key in keys:
                if key not in row:
                    raise ShapeError(f"{part}[{index}].{key}", "is missing")
    if isinstance(record, Run):
        _check_quality(record)
    if isinstance(record, Latency | Scaling | Speed | Redraw) and not record.rows:
        raise ShapeError("rows", "is empty")
    return record


def untyped(shape: _Shape) -> dict[str, Any]:
    """A record, or a part of one, as JSON takes it: values at their defaults are left out."""
    content: dict[str, Any] = msgspec.to_builtins(shape)
    return content


def _explained(error: msgspec.ValidationError) -> ShapeError:
    """msgspec's words as ours: its path is the key."""
    text, _, path = str(error).partition(" - at `")
    key = path.removesuffix("`").removeprefix("$").removeprefix(".").replace("[...]", ".*")
    if found := re.fullmatch(r"Object missing required field `(.*)`", text):
        return ShapeError(_join(key, found[1]), "is missing")
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return ShapeError(_join(key, found[1]), "is unknown to this version")
    if found := re.fullmatch(r"Expected `(.*)`, got `(.*)`", text):
        return ShapeError(key, f"is {found[2]}, not {found[1].replace(' | ', ' or ')}")
    return ShapeError(key, text)


def _check_finite(value: Any, key: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ShapeError(key, f"is {value}, not a finite number")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_finite(item, _join(key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, f"{key}[{index}]")


def _check_created(created: str) -> None:
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        raise ShapeError("created", f"{created!r} is not an ISO-8601 time") from None
    if when.tzinfo is None:
        raise ShapeError("created", f"{created!r} has no time zone")


def _check_quality(run: Run) -> None:
    of_images = run.config.task is UNSET or run.config.image_task
    key = "quality" if of_images else "scores"
    found: dict[str, Quality] | dict[str, Score] = getattr(run, key)
    for name in run.config.data.test or ["<test set>"]:
        if name not in found:
            raise ShapeError(f"{key}.{name}", "is missing")
    for name, entry in run.quality.items():
        names = [image.name for image in entry.images]
        if not names or len(set(names)) < len(names):
            raise ShapeError(f"{key}.{name}.images", "is empty or names an image twice")


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name

"""What is true before anything is decided: the data, the machine, the model, what was measured.

Facts are counted or measured, never chosen. They are written to `facts.json` of a run, so that a
plan can be made again and compared.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Precision = Literal["float32", "tf32", "bfloat16", "float16"]


class Frozen(BaseModel):
    """A value: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# What varies images: the device that trains, or the processor beside it.
Where = Literal["device", "host"]
# How processes that train together hold weights, gradients and the optimizer's numbers: each of
# them all, or each a part.
Sharding = Literal["none", "full"]


class DatasetFacts(Frozen):
    """Counted on the user's data after the scan; no pixel of the test split is looked at."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    # Usable images of each class in each split, in the order of `classes`.
    counts: dict[Split, tuple[int, ...]]
    # Pixels. Quartiles over a sample of the training split (all of it when it is small).
    height_px: tuple[int, int, int]
    width_px: tuple[int, int, int]
    # True when every image of the sample is without colour (one channel, or three equal ones).
    grey: bool
    # Quartiles of the longer side divided by the shorter one.
    aspect: tuple[float, float, float] | None = None
    # The source holds pixels, not files; its owner gave each image a weight.
    decoded: bool = False
    weighted: bool = False
    # Where the splits came from, in words: "folders", "stratified, seed 0", ...
    split_rule: str
    # Share of training images whose nearest neighbour keeps the class, plain and after a mirror
    # image was made of the query. None where it was not measured.
    neighbour_agreement: float | None = None
    neighbour_agreement_flipped: float | None = None
    # Files that were seen but are not used, by reason code.
    quarantined: dict[str, int] = {}
    ignored: dict[str, int] = {}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def num_images(self, split: Split) -> int:
        return sum(self.counts.get(split, ()))


class Accelerator(Frozen):
    """One device that torch can train on besides the processor."""

    kind: Literal["cuda", "mps", "xpu"]
    name: str
    memory_bytes: int
    bfloat16: bool


class Machine(Frozen):
    """This computer, as far as training cares."""

    platform: str
    processor: str
    physical_cores: int
    # What this process may use: fewer than the cores of the machine in a container or a job.
    usable_cores: int
    memory_bytes: int
    # The processor multiplies bfloat16 natively (AVX-512 BF16, AMX or Arm BF16).
    cpu_bfloat16: bool
    accelerators: tuple[Accelerator, ...] = ()
    python: str
    torch: str
    # torch.compile finds what it needs to build code for a processor.
    compiler: bool = False
    # 3 x 3 convolutions can be computed by `vidi.winograd`.
    winograd: bool = False
    # Processes that train together, and how many of them are on this machine.
    processes: int = 1
    local_processes: int = 1


class WeightsFacts(Frozen):
    """What a model's pretrained weights were trained on: their pixel contract."""

    # None: not known, of a file that says no more than its normalisation.
    image_px: int | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    # Share of the resized image's side that the centre crop keeps; 256 to 224 px by default.
    crop_fraction: float = 7 / 8


class ModelFacts(Frozen):
    """Counted on the built model, at the size that the plan chose."""

    name: str
    parameters: int
    # Multiply-adds of one image, forward.
    multiply_adds: int
    # What a training step keeps for its backward pass, of each image, in float32.
    activation_bytes: int | None = None
    num_features: int | None = None
    stages: tuple[str, ...] = ()
    # What became of pretrained weights, in words; empty without.
    loaded: str = ""


class StepTiming(Frozen):
    """One candidate of the probe, on the real model and real batches."""

    precision: Precision
    channels_last: bool
    batch_size: int
    threads: int
    images_per_second: float
    # Images that go through the model at once; a batch is cut into such parts.
    micro_batch_size: int | None = None
    compile: bool = False
    keep_memory: bool = True
    # The optimizer's fused kernel, or its lists of tensors; None: as `vidi.optim` takes it.
    fused: bool | None = None
    # Compiled code that is recorded once and played as a whole.
    cuda_graphs: bool = False
    # Where images are augmented; on a processor both are the same.
    augment_on: Where = "device"
    # 3 x 3 convolutions by `vidi.winograd`.
    winograd: bool = False
    # Seconds that compiling took; a run pays them once.
    compile_s: float = 0.0
    # Why the candidate is out although it ran, e.g. its loss left the tolerance. Empty: it is in.
    rejected: str = ""


# A forward pass alone is about so many times as fast as training.
FORWARD_AGAINST_TRAINING: Final = 2.7


class Measurements(Frozen):
    """What the probe saw. Times are medians."""

    steps: tuple[StepTiming, ...] = ()
    # Evaluation, images per second at the chosen candidate.
    evaluation_images_per_second: float | None = None
    probe_s: float = 0.0
    # Seconds since the process was started, when the plan was made; a time budget counts them.
    spent_s: float = 0.0

    @property
    def training_images_per_second(self) -> float | None:
        """Of the fastest way that is not out."""
        return max((s.images_per_second for s in self.steps if not s.rejected), default=None)

    @property
    def judging_images_per_second(self) -> float | None:
        """As measured, else what the rate of training says."""
        if self.evaluation_images_per_second or not self.training_images_per_second:
            return self.evaluation_images_per_second
        return FORWARD_AGAINST_TRAINING * self.training_images_per_second


class Facts(Frozen):
    """All of it. `model` and `measured` come once a first plan has named the model."""

    dataset: DatasetFacts
    machine: Machine
    # Free on the disk of the cache.
    cache_free_bytes: int | None = None
    weights: WeightsFacts | None = None
    model: ModelFacts | None = None
    measured: Measurements | None = None

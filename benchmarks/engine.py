"""What the engine promises, as ratios from one run; each part can be run alone.

    python benchmarks/engine.py PART [DATA] [--brief]

accumulation        peak memory of activations with 4 micro-batches against one batch (0.35)
save                how long a checkpoint of EfficientNet-Lite0 with AdamW and average stalls
                    (0.15 s)
defaults-lite0      the probe's choice against torch's defaults (float32, NCHW, batch 32, malloc
                    untouched) for EfficientNet-Lite0 at 224 px (3)
defaults-resnet18   the same for ResNet-18 at 224 px (2.5)
forward             features of EfficientNet-Lite0 against the same defaults (5)
grid-lite0          the probe's choice against the best of every combination (0.95), for
grid-resnet18       EfficientNet-Lite0 at 224 px, ResNet-18 at 64 px, and the small network as for
grid-fashion        Fashion-MNIST and for CIFAR-10
grid-cifar
processes           two gloo processes of one core each against one process on one core, images
                    per second and core, with batches of 256 images of DATA, and with
                    256 images for each process (0.85)

With --brief a grid gives ways up whose first step is slow, and looks at the best once more instead
of three times.

`benchmarks/loop.py DATA` is the loop against the bare step (0.97). Medians of three; turns
alternate, because the speed of a shared machine drifts.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import psutil
import torch
from torch import nn

from vidi import optim, probe
from vidi.batch import Batch
from vidi.config import Config
from vidi.data import open_dataset
from vidi.facts import DatasetFacts, Facts, Precision
from vidi.loss import Loss
from vidi.model import Classifier, build, freeze_batch_norm
from vidi.plan import Plan, make
from vidi.restore import build_model
from vidi.run import Run
from vidi.step import StepSettings, autocast, train_step
from vidi.train import build_state
from vidi.train.saving import Saver
from vidi.winograd import takes_any

# How long each of two trainings runs while the other stands still.
PROCESSES_TURN_S = 8.0
# A way whose first step takes so many times as long as the best one's is not timed further.
HOPELESS, HOPELESS_BRIEF = 4.0, 1.4
SETTINGS = StepSettings(
    precision="float32", loss=Loss(), micro_batch_size=1_024, clip_norm=None, seed=0
)


def classifier(name: str, image_px: int, channels: int = 3) -> Classifier:
    return build(
        name,
        num_classes=10,
        image_px=image_px,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def batch(
    num_images: int, image_px: int, channels: int = 3, *, channels_last: bool = True
) -> Batch:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = num_images, channels, image_px, image_px
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    return Batch(
        images.contiguous(memory_format=layout),
        torch.randint(0, 10, (num_images,)),
        torch.arange(num_images),
    )


def make_optimizer(network: nn.Module, fused: bool | None = None) -> torch.optim.Optimizer:
    return optim.make("sgd", network, learning_rate=1e-3, fused=fused)


def step_rate(
    model: nn.Module,
    images: Batch,
    settings: StepSettings,
    steps: int = 3,
    *,
    fused: bool | None = None,
    hopeless_s: float = math.inf,
) -> float:
    """Images per second of the training step, after one that is not counted unless it took so long
    that nothing more needs to be known."""
    optimizer = make_optimizer(model, fused)
    times = []
    for step in range(steps + 1):
        began_at = time.perf_counter()
        train_step(model, optimizer, images, settings, step)
        times.append(time.perf_counter() - began_at)
        if times[0] > hopeless_s:
            break
    return len(images) / statistics.median(times[1:] or times)


def accumulation() -> None:
    """Bytes that the backward pass keeps: of a batch of 32, and of a quarter of it."""
    model = classifier("resnet18", 96).train()

    def kept(num_images: int) -> int:
        sizes: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(batch(num_images, 96).images)
        assert logits.requires_grad
        return sum(sizes.values())

    print(f"accumulation: {kept(8) / kept(32):.3f} of the activations (bar 0.35)")


def save() -> None:
    """The time that the loop does not train while a checkpoint is taken."""
    plan = planned({"train.optimizer": "adamw", "train.ema_decay": 0.99, "train.epochs": 1})
    state = build_state(plan, build_model(plan))
    images = batch(2, 64)
    for step in range(2):
        train_step(state.model, state.optimizer, images, replace(SETTINGS), step)
    assert state.average is not None
    state.average.update(state.model)
    stalls, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", texts={"config": Config().to_toml()})
        with run.lock(), Saver(run, every_s=3_600.0) as saver:
            for step in range(5):
                state.step = step
                began_at = time.perf_counter()
                saver.save(state, now=True)
                stalls.append(time.perf_counter() - began_at)
                saver.save(state, wait=True)
                whole.append(time.perf_counter() - began_at)
    print(
        f"save: stalls {statistics.median(stalls[1:]):.3f} s (bar 0.15) of "
        f"{statistics.median(whole[1:]):.3f} s until it is on the disk"
    )


def planned(settings: dict[str, object]) -> Plan:
    """A plan for photos, from facts alone."""
    machine = probe.machine()
    facts = DatasetFacts(
        name="photos", fingerprint="none", classes=tuple("abcdefghij"), grey=False,
        counts={"train": (300,) * 10, "validation": (30,) * 10}, split_rule="folders",
        height_px=(400, 400, 400), width_px=(400, 400, 400),
    )  # fmt: skip
    asked = Config().with_settings({"model.weights": "none", "data.image_px": 224, **settings})
    return make(asked, Facts(dataset=facts, machine=machine))


def defaults(name: str, bar: float) -> None:
    """What everybody's first script does, and what the probe chooses, in turns."""
    model = classifier(name, 224)
    chosen = chosen_step(model)
    theirs, ours = [], []
    for _ in range(3):
        theirs.append(default_rate(model))
        ours.append(chosen())
    ratio = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
    print(
        f"defaults: {name} {statistics.median(ours):.1f} images/s, torch's defaults "
        f"{statistics.median(theirs):.1f}: {ratio:.2f} times (bar {bar:g})"
    )


def default_rate(model: nn.Module) -> float:
    """float32, NCHW, batch 32, glibc's malloc as it comes."""
    probe.keep_memory(on=False)
    trial = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()  # type: ignore[call-overload]
    rate = step_rate(trial, batch(32, 224, channels_last=False), SETTINGS, steps=1)
    probe.keep_memory()
    return rate


def chosen_step(model: Classifier) -> Callable[[], float]:
    """The step that the probe finds fastest for 16 images, to be timed again."""
    images = [batch(16, 224) for _ in range(2)]
    options = probe.space(
        "cpu", probe.machine(), batch_size=16, threads=torch.get_num_threads(), limit_s=30.0
    )
    found = probe.measure(model, make_optimizer, images, SETTINGS, options, limit_s=30.0)
    best = max((s for s in found.steps if not s.rejected), key=lambda s: s.images_per_second)
    print(
        f"  chosen: {best.precision}, channels_last {best.channels_last}, "
        f"{best.micro_batch_size} at once, {best.images_per_second:.1f} images/s"
    )

    def rate() -> float:
        probe.keep_memory(best.keep_memory)
        layout = torch.channels_last if best.channels_last else torch.contiguous_format
        trial = copy.deepcopy(model).to(memory_format=layout).train()  # type: ignore[call-overload]
        size = best.micro_batch_size or 16
        settings = replace(SETTINGS, precision=best.precision, micro_batch_size=size)
        return step_rate(trial, images[0], settings)

    return rate


def forward() -> None:
    """Features in evaluation: batches of 16 in bfloat16 where the processor has it."""
    model = classifier("efficientnet_lite0", 224).eval()
    precision: Precision = "bfloat16" if probe.machine().cpu_bfloat16 else "float32"

    def rate(*, ours: bool) -> float:
        probe.keep_memory(on=ours)
        layout = torch.channels_last if ours else torch.contiguous_format
        trial = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        images = batch(16 if ours else 32, 224, channels_last=ours)
        times = []
        with (
            torch.inference_mode(ours),
            torch.no_grad(),
            autocast(torch.device("cpu"), precision if ours else "float32"),
        ):
            for _ in range(4):
                began_at = time.perf_counter()
                trial(images.images)
                times.append(time.perf_counter() - began_at)
        probe.keep_memory()
        return len(images) / statistics.median(times[1:])

    pairs = [(rate(ours=False), rate(ours=True)) for _ in range(3)]
    ratio = statistics.median(ours / theirs for theirs, ours in pairs)
    print(f"forward: {ratio:.2f} times torch's defaults (bar 5); images/s {pairs}")


@dataclass(frozen=True)
class Case:
    """A network, its images and the batch that the plan gives it."""

    name: str
    image_px: int
    channels: int
    num_images: int
    # Whether a batch may be cut without changing what batch norms see.
    pretrained: bool = False


CASES = {
    "lite0": Case("efficientnet_lite0", 224, 3, 16, pretrained=True),
    "resnet18": Case("resnet18", 64, 3, 64),
    "fashion": Case("small_cnn", 28, 1, 256),
    "cifar": Case("small_cnn", 32, 3, 256),
}


def grid(case: Case, *, brief: bool = False) -> None:
    """Every combination of precision, convolutions, memory format, parts and malloc, on all
    threads, and the one that the probe takes, which may use fewer or a fused optimizer; the best
    again in turns."""
    model = classifier(case.name, case.image_px, case.channels)
    if case.pretrained:
        freeze_batch_norm(model)
    images = [batch(case.num_images, case.image_px, case.channels) for _ in range(2)]
    options = probe.space(
        "cpu",
        probe.machine(),
        batch_size=case.num_images,
        threads=torch.get_num_threads(),
        limit_s=20.0,
        winograd=takes_any(model),
    )
    if not case.pretrained:
        options = replace(options, micro_batch_sizes=(case.num_images,))
    found = probe.measure(model, make_optimizer, images, SETTINGS, options, limit_s=20.0)
    best = max((s for s in found.steps if not s.rejected), key=lambda s: s.images_per_second)
    print(f"  probed in {found.probe_s:.0f} s", flush=True)

    def rate(way: probe.Candidate, steps: int = 3, hopeless_s: float = math.inf) -> float:
        probe.keep_memory(way.keep_memory)
        torch.set_num_threads(way.threads)
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        trial = copy.deepcopy(model).to(memory_format=layout).train()  # type: ignore[call-overload]
        settings = replace(
            SETTINGS,
            precision=way.precision,
            micro_batch_size=way.micro_batch_size,
            winograd=way.winograd,
        )
        return step_rate(trial, images[0], settings, steps, fused=way.fused, hopeless_s=hopeless_s)

    ways = [
        probe.Candidate(precision, layout, size, options.threads[0], keep_memory=kept, winograd=own)
        for precision, layout, size, kept, own in itertools.product(
            options.precisions,
            options.channels_last,
            options.micro_batch_sizes,
            (True, False),
            options.winograd,
        )
        if precision == "bfloat16" or not own
    ]
    once: dict[probe.Candidate, float] = {}
    for way in ways:
        best_rate = max(once.values(), default=0.0)
        patience = (HOPELESS_BRIEF if brief else HOPELESS) * case.num_images
        once[way] = rate(way, 1, patience / best_rate if best_rate else math.inf)
    chosen = probe.Candidate(
        best.precision,
        best.channels_last,
        best.micro_batch_size or case.num_images,
        best.threads,
        best.compile,
        best.keep_memory,
        best.fused,
        winograd=best.winograd,
    )
    print(f"  {len(ways)} ways, best at first {max(once.values()):.1f} images/s", flush=True)
    # Only what could be best is worth a second look.
    first = sorted(ways, key=lambda way: -once[way])[:3]
    again = {way: [once.get(way) or rate(way, 1)] for way in {*first, chosen}}
    for _ in range(1 if brief else 3):
        for way, looks in again.items():
            looks.append(rate(way, 2))
    rates = {way: statistics.median(each) for way, each in again.items()}
    winner = max(rates, key=lambda way: rates[way])
    probe.keep_memory()
    print(f"  chosen {chosen}\n  best {winner}")
    print(
        f"grid: {case.name} at {case.image_px} px, {len(ways)} ways, probed in {found.probe_s:.0f} "
        f"s: chosen {rates[chosen]:.1f} images/s, best {rates[winner]:.1f}: "
        f"{rates[chosen] / rates[winner]:.3f} (bar 0.95)"
    )


def processes(data: str) -> None:
    """Images per second and core: one process on one core, and two of one core each, with the same
    batch, and with as many images for each process.

    Both train at once and take turns: one is stopped while the other runs, because the speed of a
    shared machine changes within a minute.
    """
    num_train = open_dataset(data).num_expected("train")
    ratios = {256: [], 512: []}  # type: dict[int, list[float]]
    for _ in range(3):
        for batch_size, found in ratios.items():
            with (
                _Training(data, num_train, 1, 256) as one,
                _Training(data, num_train, 2, batch_size) as two,
            ):
                for first, second in ((one, two), (two, one), (one, two)):
                    first.go_on(PROCESSES_TURN_S)
                    second.go_on(PROCESSES_TURN_S)
                found.append(two.images_per_second / 2 / one.images_per_second)
    shown = {size: ", ".join(f"{ratio:.3f}" for ratio in found) for size, found in ratios.items()}
    print(
        f"processes: {statistics.median(ratios[256]):.2f} ({shown[256]}) of the rate per core of "
        f"one process with batches of 256, {statistics.median(ratios[512]):.2f} ({shown[512]}) "
        "with 256 for each (bar 0.85)"
    )


class _Training:
    """`vidi train` in so many processes of one core, which stand still but for `go_on`."""

    def __init__(self, data: str, num_train: int, nproc: int, batch_size: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._run = Path(self._folder.name) / "run"
        self._batch_size = batch_size
        self._steps, self._seconds = 0, 0.0
        # A line for every step, of fewer than 200; no validation before the last turn is over.
        words = [
            sys.executable, "-m", "vidi", "train", data, "--out", str(self._run),
            "--epochs", str(199 * batch_size / num_train), "--nproc", str(nproc),
            "--set", f"train.batch_size={batch_size}",
            "--set", "machine.probe=never", "--set", "machine.threads=1",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = psutil.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while self._step() < 3:
            if self._process.poll() is not None:
                raise SystemExit(f"this failed: {' '.join(words)}")
            time.sleep(0.05)
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    @property
    def images_per_second(self) -> float:
        return self._steps * self._batch_size / self._seconds

    def go_on(self, seconds: float) -> None:
        before, began_at = self._step(), time.perf_counter()
        self._signal(signal.SIGCONT)
        time.sleep(seconds)
        self._signal(signal.SIGSTOP)
        self._seconds += time.perf_counter() - began_at
        self._steps += self._step() - before

    def _step(self) -> int:
        with contextlib.suppress(OSError):
            lines = (self._run / "timing.jsonl").read_text().splitlines()
            return sum('"step"' in line for line in lines)
        return 0

    def _signal(self, number: signal.Signals) -> None:
        for process in (*self._process.children(recursive=True), self._process):
            process.send_signal(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts: dict[str, Callable[[], None]] = {
        "accumulation": accumulation,
        "save": save,
        "defaults-lite0": partial(defaults, "efficientnet_lite0", 3.0),
        "defaults-resnet18": partial(defaults, "resnet18", 2.5),
        "forward": forward,
    }
    grids = {f"grid-{name}": case for name, case in CASES.items()}
    parser.add_argument("part", choices=[*parts, *grids, "processes", "all"])
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--brief", action="store_true", help="fewer looks at each way of a grid")
    arguments = parser.parse_args()
    parts |= {name: partial(grid, case, brief=arguments.brief) for name, case in grids.items()}
    probe.keep_memory()
    for name, part in parts.items():
        if arguments.part in (name, "all"):
            part()
    if arguments.part in ("processes", "all"):
        processes(arguments.data)


if __name__ == "__main__":
    main()

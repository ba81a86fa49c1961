"""The engine on a GPU, in about eight minutes: speed against others, no waiting, memory, exactness.

    python benchmarks/gpu_check.py [--cifar10 FOLDER] [--dry]

--dry runs every part small and on the processor, to see that the script itself works. Prints one
line a part and a JSON object at the end; a part that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import vidi
from vidi import memory, optim, probe
from vidi.batch import Batch
from vidi.errors import Interrupted
from vidi.loss import Loss
from vidi.memory import Limit
from vidi.model import Classifier, build
from vidi.optim import Average
from vidi.step import StepSettings, train_step
from vidi.train import Progress


@dataclass(frozen=True)
class Sizes:
    """How large everything is: for a GPU, or small enough for a dry run."""

    device: torch.device
    model: str
    image_px: int
    batch_size: int
    steps: int


def sizes(*, dry: bool) -> Sizes:
    if dry:
        return Sizes(torch.device("cpu"), "resnet18", 32, 4, 3)
    return Sizes(torch.device("cuda"), "resnet50", 224, 256, 30)


def classifier(s: Sizes) -> Classifier:
    torch.manual_seed(0)
    model = build(
        s.model, num_classes=1_000, image_px=s.image_px, channels=3, mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )  # fmt: skip
    return model.to(s.device)


def batch(s: Sizes, *, layout: torch.memory_format = torch.channels_last) -> Batch:
    shape = (s.batch_size, 3, s.image_px, s.image_px)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=s.device)
    return Batch(
        images.contiguous(memory_format=layout),
        torch.randint(0, 1_000, (s.batch_size,), device=s.device),
        torch.arange(s.batch_size, device=s.device),
    )


def settings(s: Sizes) -> StepSettings:
    return StepSettings(
        precision="bfloat16",
        loss=Loss(label_smoothing=0.1),
        micro_batch_size=s.batch_size,
        clip_norm=None,
        seed=0,
        guard="host" if s.device.type == "cpu" else "device",
    )


def wait(s: Sizes) -> None:
    if s.device.type != "cpu":
        torch.accelerator.synchronize()


def rate(s: Sizes, step: Callable[[int], Any]) -> float:
    """Images per second of `step`, after a third of the steps, which are not counted."""
    for number in range(max(1, s.steps // 3)):
        step(number)
    wait(s)
    began_at = time.perf_counter()
    for number in range(s.steps):
        step(number)
    wait(s)
    return s.steps * s.batch_size / (time.perf_counter() - began_at)


def ours(s: Sizes, *, compiled: bool) -> Callable[[int], Any]:
    model = classifier(s).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = optim.make("sgd", model, learning_rate=0.1, weight_decay=5e-5)
    called: Any = torch.compile(model) if compiled else model
    images, how = batch(s), settings(s)
    return lambda number: train_step(called, optimizer, images, how, number)


def bare(s: Sizes) -> Callable[[int], Any]:
    """bf16 and channels_last by hand: forward, backward, update; nothing is looked at."""
    model = classifier(s).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    images = batch(s)

    def step(_: int) -> None:
        with torch.autocast(s.device.type, dtype=torch.bfloat16):
            logits = model(images.images)
        loss = functional.cross_entropy(logits.float(), images.targets, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def reference(s: Sizes) -> Callable[[int], Any]:
    """The step of torchvision's references/classification with its defaults: float32, NCHW."""
    model = classifier(s).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = batch(s, layout=torch.contiguous_format)

    def step(_: int) -> None:
        loss = functional.cross_entropy(model(images.images), images.targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def speed(s: Sizes) -> dict[str, float]:
    """Images per second of four ways of computing the same step, and the memory that each takes."""
    found: dict[str, float] = {}
    peaks: dict[str, float] = {}
    ways: dict[str, Callable[[], Callable[[int], Any]]] = {
        "vidi": lambda: ours(s, compiled=False),
        "bare step": lambda: bare(s),
        "torchvision's defaults": lambda: reference(s),
        "vidi, compiled": lambda: ours(s, compiled=True),
    }
    for name, way in ways.items():
        if s.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found[name] = statistics.median(rate(s, step) for step in [way()] for _ in range(3))
        peaks[f"peak GB, {name}"] = memory.peak_bytes() / 1e9
        memory.release()
    return {
        **found,
        **peaks,
        "vidi / bare step (bar 0.97)": found["vidi"] / found["bare step"],
        "compiled / torchvision's defaults": found["vidi, compiled"]
        / found["torchvision's defaults"],
    }


def no_sync(s: Sizes, *, compiled: bool) -> dict[str, float]:
    """A step, the average and a new learning rate without waiting for the device even once."""
    model = classifier(s).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    called: Any = torch.compile(model) if compiled else model
    optimizer = optim.make("sgd", model, learning_rate=0.1)
    average = Average(model, 0.99)
    images, how = batch(s), settings(s)

    def step(number: int) -> None:
        optim.set_learning_rate(optimizer, 0.5)
        train_step(called, optimizer, images, how, number)
        average.update(model)

    # The first ones take memory and choose kernels, which waits.
    for number in range(3):
        step(number)
    wait(s)
    if s.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(3, 6):
            step(number)
    finally:
        if s.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"steps without a wait": 3}


def bad_step(s: Sizes) -> dict[str, float]:
    """A batch that is not finite changes no weight, judged on the device alone."""
    model = classifier(s).train()
    optimizer = optim.make("sgd", model, learning_rate=0.1)
    images = batch(s)
    train_step(model, optimizer, images, settings(s), 0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    poisoned = Batch(images.images.float() * torch.nan, images.targets, images.ids)
    result = train_step(model, optimizer, poisoned, settings(s), 1)
    assert not bool(result.finite)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    return {"weights that moved": 0}


def out_of_memory(s: Sizes) -> dict[str, float]:
    """A batch that does not fit is cut until it does."""
    if s.device.type != "cuda":
        return {"not on a processor": 0}
    model = classifier(s).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = optim.make("sgd", model, learning_rate=0.1)
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 8e9 / max(free, 1)))
    images = batch(s)
    limit, how = Limit(s.batch_size), settings(s)
    try:
        while True:
            try:
                train_step(model, optimizer, images, how, 0)
            except RuntimeError as error:
                optimizer.zero_grad(set_to_none=True)
                limit.halve(error, what="training")
            else:
                break
            memory.release()
            how = replace(how, micro_batch_size=limit.num_images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {"images at once in 8 GB": limit.num_images}


def exact(s: Sizes) -> dict[str, float]:
    """In deterministic mode the same run gives the same bits, also stopped and continued."""
    asked: dict[str, object] = {
        "train.epochs": 2, "model.name": "small_cnn", "machine.deterministic": True,
        "machine.device": s.device.type, "machine.probe": "never",
    }  # fmt: skip

    def stop(what: str | Progress) -> None:
        if isinstance(what, Progress) and what.phase == "train" and what.step == 15:
            signal.raise_signal(signal.SIGTERM)

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "another", "stopped"):
            out = Path(folder) / name
            if name == "stopped":
                with contextlib.suppress(Interrupted):
                    vidi.train("digits", settings=asked, out=out, show=stop)
            found[name] = vidi.train("digits", settings=asked, out=out).metrics.path.read_bytes()
    torch.use_deterministic_algorithms(False)
    assert found["one"] == found["another"], "two equal runs differ"
    assert found["one"] == found["stopped"], "a run that was stopped and continued differs"
    return {"bytes that differ": 0}


def chosen(s: Sizes) -> dict[str, float]:
    """What the probe finds, and how long it takes."""
    model = classifier(s).train()
    options = probe.space(
        s.device.type, probe.machine(), batch_size=s.batch_size,
        threads=torch.get_num_threads(), limit_s=60.0 if s.device.type == "cuda" else 8.0,
    )  # fmt: skip
    measured = probe.measure(
        model,
        lambda network, fused: optim.make("sgd", network, learning_rate=0.1, fused=fused),
        [batch(s) for _ in range(2)],
        settings(s),
        options,
        limit_s=60.0 if s.device.type == "cuda" else 8.0,
    )
    for step in sorted(measured.steps, key=lambda step: -step.images_per_second):
        print(
            f"    {step.precision:9} channels_last={step.channels_last!s:5} "
            f"at once {step.micro_batch_size:4} compiled={step.compile!s:5} "
            f"{step.images_per_second:9,.0f} images/s {step.rejected}"
        )
    return {"seconds": measured.probe_s}


def cifar10(s: Sizes, data: str) -> dict[str, float]:
    """Seconds of training until validation reaches 94 %, from process start to that moment."""
    reached: list[float] = []
    began_at = time.monotonic()

    def show(what: str | Progress) -> None:
        seen = what.validation if isinstance(what, Progress) else None
        if seen is not None and not reached and seen.accuracy >= 0.94:
            reached.append(time.monotonic() - began_at)

    asked: dict[str, object] = {"machine.device": s.device.type, "train.minutes": 2}
    if s.device.type == "cpu":
        asked = {"machine.device": "cpu", "train.epochs": 0.2, "machine.probe": "never"}
    with tempfile.TemporaryDirectory() as folder:
        run = vidi.train(data, settings=asked, out=Path(folder) / "run", show=show)
        accuracy = json.loads(run.read_evaluation(run.evaluated_splits()[0]))["accuracy"]
    return {
        "seconds to 94 %": reached[0] if reached else float("inf"),
        "accuracy": accuracy,
        "seconds of everything": time.monotonic() - began_at,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cifar10", metavar="FOLDER", help="CIFAR-10 in any form vidi reads")
    parser.add_argument("--dry", action="store_true", help="small, on the processor")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        sys.exit("no GPU here; --dry runs everything small on the processor")
    s = sizes(dry=arguments.dry)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "no sync": lambda: no_sync(s, compiled=False),
        "no sync, compiled": lambda: no_sync(s, compiled=True),
        "bad step": lambda: bad_step(s),
        "speed": lambda: speed(s),
        "probe": lambda: chosen(s),
        "out of memory": lambda: out_of_memory(s),
        "exact": lambda: exact(s),
    }
    if arguments.cifar10:
        parts["CIFAR-10"] = lambda: cifar10(s, arguments.cifar10)
    results: dict[str, dict[str, float] | str] = {}
    for name, part in parts.items():
        began_at = time.monotonic()
        try:
            results[name] = part()
        except Exception as error:
            traceback.print_exc()
            results[name] = f"failed: {type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            memory.release()
        print(f"{name}: {results[name]} ({time.monotonic() - began_at:.0f} s)", flush=True)
    device = torch.cuda.get_device_name() if s.device.type == "cuda" else "processor"
    print(json.dumps({"device": device, "torch": torch.__version__, **copy.copy(results)}))


if __name__ == "__main__":
    main()

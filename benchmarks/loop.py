"""What the loop costs: `vidi train`'s rate against the bare step with the same model and batch.

    python benchmarks/loop.py [digits | FOLDER] [--steps N] [--repeats N] [--set name=value ...]

The four cases of the bar, 0.97:

    python benchmarks/loop.py CLOTHING --steps 6 --set model.weights=imagenet
    python benchmarks/loop.py CLOTHING --steps 3 --set model.name=resnet18 --set data.image_px=64
    python benchmarks/loop.py FASHION --steps 30
    python benchmarks/loop.py CIFAR10 --steps 20

The bare step is forward, backward and update of the same network on one resident batch: no loader,
no augmentation, no logging, no checkpoints. Loop and bare step take turns of so many steps in one
process, each turn of the loop between two of the bare step, because a shared machine's speed may
change by a third within a minute; the median of the turns' ratios is what counts. The loader
prepares a few batches ahead in a turn of the bare step; `--steps` should be more than those.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch.nn import functional

from vidi.batch import Batch
from vidi.config import Config, parse_settings
from vidi.plan import Plan
from vidi.run import Run
from vidi.step import autocast
from vidi.train import (
    Extensions,
    Job,
    Prepared,
    build_job,
    build_model,
    build_state,
    loop,
    prepare,
)
from vidi.winograd import winograd_convolutions

WARM_UP = 5


def bare_steps(plan: Plan, batch: Batch) -> Iterator[None]:
    """One plain training step after another."""
    state = build_state(plan, build_model(plan))
    model, optimizer = state.model.train(), state.optimizer
    while True:
        with (
            autocast(batch.images.device, plan.execution.precision),
            winograd_convolutions(plan.execution.winograd),
        ):
            logits = model(batch.images)
        loss = functional.cross_entropy(
            logits.float(), batch.targets, label_smoothing=plan.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def loop_steps(plan: Plan, job: Job, run: Run, steps: int) -> Generator[None]:
    """One step of the loop after another, logging included."""
    short = plan.model_copy(update={"last_step": steps, "evaluate_every_steps": 10 * steps})
    state = build_state(short, build_model(short))
    with contextlib.closing(loop(short, job, state, run)) as moments:
        for moment in moments:
            if moment.phase == "train":
                yield


def seconds(steps: Iterator[None], count: int) -> float:
    """What the next so many take."""
    started_at = time.perf_counter()
    for _ in range(count):
        next(steps)
    return time.perf_counter() - started_at


def first_batch(prepared: Prepared, job: Job) -> Batch:
    """One batch of the run, cut to what the model sees."""
    with contextlib.closing(job.train.batches(epoch=0)) as batches:
        batch = next(batches)
    px = prepared.plan.pixels.image_px
    return Batch(
        batch.images[:, :, :px, :px].contiguous(memory_format=torch.channels_last),
        batch.targets,
        batch.ids,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()

    config = Config().with_settings({"checkpoint.every_s": 3600.0})
    config = config.with_settings(parse_settings(arguments.set))
    prepared = prepare(arguments.data, config, Extensions(), say=print, started_at=time.monotonic())
    plan = prepared.plan
    job = build_job(plan, config, prepared.dataset, prepared.store, Extensions())
    num_images = arguments.steps * plan.batch_size
    bare = bare_steps(plan, first_batch(prepared, job))
    last_step = arguments.steps * arguments.repeats + WARM_UP
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", texts={"config": config.to_toml()})
        with run.lock(), contextlib.closing(loop_steps(plan, job, run, last_step)) as whole:
            seconds(whole, WARM_UP)
            seconds(bare, WARM_UP)
            before_s = seconds(bare, arguments.steps)
            for turn in range(arguments.repeats):
                waited_s = job.train.wait_s
                loop_s = seconds(whole, arguments.steps)
                waited_s = job.train.wait_s - waited_s
                after_s = seconds(bare, arguments.steps)
                bare_s = (before_s + after_s) / 2
                before_s = after_s
                ratios.append(bare_s / loop_s)
                print(
                    f"{turn + 1}: loop {num_images / loop_s:,.0f} images/s, bare step "
                    f"{num_images / bare_s:,.0f}, ratio {ratios[-1]:.3f}, waiting for data "
                    f"{waited_s / loop_s:.1%}",
                    flush=True,
                )
    print(
        f"{plan.model.name} at {plan.pixels.image_px} px, batch {plan.batch_size}, "
        f"{plan.execution.precision}: median ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()

"""What the loop costs: `vidi train`'s rate against the bare step with the same model and batch.

    python benchmarks/loop.py [digits | FOLDER] [--steps N] [--repeats N] [--set name=value ...]

The four cases of the bar, 0.97:

    python benchmarks/loop.py CLOTHING --steps 12 --repeats 3 --set model.weights=imagenet
    python benchmarks/loop.py CLOTHING --steps 40 --repeats 3 --set model.name=resnet18 \\
        --set data.image_px=64
    python benchmarks/loop.py FASHION --steps 100 --repeats 3
    python benchmarks/loop.py CIFAR10 --steps 100 --repeats 3

The bare step is forward, backward and update of the same network on one resident batch: no loader,
no augmentation, no logging, no checkpoints. Loop and bare step take turns in one process; medians
of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
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


def bare_rate(plan: Plan, batch: Batch, steps: int) -> float:
    """Images per second of the plain training step."""
    state = build_state(plan, build_model(plan))
    model, optimizer = state.model.train(), state.optimizer
    warm_up = 5
    started_at = 0.0
    for step in range(steps + warm_up):
        if step == warm_up:
            started_at = time.perf_counter()
        with autocast(batch.images.device, plan.execution.precision):
            logits = model(batch.images)
        loss = functional.cross_entropy(
            logits.float(), batch.targets, label_smoothing=plan.label_smoothing
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return steps * len(batch) / (time.perf_counter() - started_at)


def loop_rate(plan: Plan, job: Job, run: Run, steps: int) -> tuple[float, float]:
    """(images per second, share of it spent waiting for data) of the loop, logging included."""
    warm_up = 5
    short = plan.model_copy(
        update={"last_step": steps + warm_up, "evaluate_every_steps": 10 * (steps + warm_up)}
    )
    state = build_state(short, build_model(short))
    started_at, waited_s = 0.0, 0.0
    with contextlib.closing(loop(short, job, state, run)) as moments:
        for moment in moments:
            if moment.phase == "train" and moment.step == warm_up:
                started_at, waited_s = time.perf_counter(), job.train.wait_s
            if moment.phase == "train" and moment.step == short.last_step:
                break
    elapsed_s = time.perf_counter() - started_at
    return steps * plan.batch_size / elapsed_s, (job.train.wait_s - waited_s) / elapsed_s


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
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()

    config = Config().with_settings({"checkpoint.every_s": 3600.0})
    config = config.with_settings(parse_settings(arguments.set))
    prepared = prepare(arguments.data, config, Extensions(), say=print, started_at=time.monotonic())
    plan = prepared.plan
    job = build_job(plan, config, prepared.dataset, prepared.store, Extensions())
    batch = first_batch(prepared, job)
    ratios = []
    for turn in range(arguments.repeats):
        before = bare_rate(plan, batch, arguments.steps)
        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(Path(folder) / "run", texts={"config": config.to_toml()})
            with run.lock():
                whole, waiting = loop_rate(plan, job, run, arguments.steps)
        # Before and after, because a machine's speed drifts.
        bare = (before + bare_rate(plan, batch, arguments.steps)) / 2
        ratios.append(whole / bare)
        print(
            f"{turn + 1}: loop {whole:,.0f} images/s, bare step {bare:,.0f}, "
            f"ratio {whole / bare:.3f}, waiting for data {waiting:.1%}"
        )
    print(
        f"{plan.model.name} at {plan.pixels.image_px} px, batch {plan.batch_size}, "
        f"{plan.execution.precision}: median ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()

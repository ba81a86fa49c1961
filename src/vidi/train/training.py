"""`train`: one run from one request, new or continued, to its report."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidi import __version__
from vidi.augment import Transform
from vidi.config import Config, load
from vidi.errors import Interrupted, StorageError, VidiError
from vidi.facts import Facts
from vidi.model import name_of
from vidi.plan import Plan, retimed
from vidi.report import write
from vidi.restore import load_best
from vidi.run import Run, default_run_path
from vidi.train.deadline import Deadline
from vidi.train.finish import fitted_temperature, judge, judged
from vidi.train.loop import Job, Progress, loop, save
from vidi.train.prepare import (
    Extensions,
    Prepared,
    build_job,
    build_state,
    has_gaps,
    prepare,
    readable,
)
from vidi.train.resume import reopened
from vidi.train.signals import Stop, watched
from vidi.train.state import State

# What a display needs: a line of text, or a moment of the run.
Show = Callable[[str | Progress], None]


def train(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    model: Callable[..., nn.Module] | None = None,
    transforms: Sequence[Transform] = (),
    schedule: Callable[[float], float] | None = None,
    show: Show | None = None,
    force_resume: bool = False,
    started_at: float | None = None,
) -> Run:
    """Train one classifier, judge it on held-out images and write a report.

    Args:
        data: a folder of images, a folder of IDX files, or "digits".
        config: what is asked; everything that it leaves open is decided and explained.
        settings: single settings on top, such as `{"train.epochs": 20}`.
        out: the run directory. One that holds a stopped run of the same config and data is
            continued, to the same bytes as if it had never stopped. A new one under `runs/` when
            left out.
        model: your own network, `model(num_classes) -> Module` from (N, C, H, W) floats to logits.
        transforms: your own augmentations after the built-in ones, `(batch, rng, done) -> batch`.
        schedule: your own learning-rate curve, from the share done to a share of the peak.
        show: told every line and every `Progress`; nothing is printed here.
        force_resume: continue although config or data differ; what differs is written down.
        started_at: `time.monotonic()` when the clock of `train.minutes` began; now, if left out.

    Returns:
        The finished run; `run.evaluation("test")` has the numbers.

    Raises:
        UsageError, DataError, DamagedError, InUseError, TrainingError, StorageError: see errors.
        Interrupted: a signal stopped it; the state is saved, the same call continues.
    """
    started_at = time.monotonic() if started_at is None else started_at
    config = (config or Config()).with_settings(settings or {})
    if model is not None:
        # What was given as an object is written down by its importable name.
        config = config.with_settings({"model.name": name_of(model)})
    extensions = Extensions(model=model, transforms=tuple(transforms), schedule=schedule)
    tell: Show = show or (lambda _: None)
    path = (
        Path(out)
        if out is not None
        else default_run_path(Path("runs"), _data_name(data), datetime.now())
    )
    if Run.exists(path):
        return _continue(path, data, config, extensions, tell, force=force_resume)
    # Refused before any work is done, when something else is there.
    Run.check_free(path)
    prepared = prepare(data, config, extensions, say=tell, started_at=started_at)
    if Run.exists(path):
        # Another process was faster; its lock says who.
        return _continue(path, data, config, extensions, tell, force=force_resume)
    run = Run.create(path, texts=_decisions(data, config, prepared))
    with run.lock():
        state = build_state(prepared.plan, prepared.model)
        deadline = Deadline.of(config, prepared.facts, started_at)
        _train(run, config, prepared, state, extensions, tell, deadline)
    return run


def _continue(
    path: Path,
    data: str | Path,
    config: Config,
    extensions: Extensions,
    tell: Show,
    *,
    force: bool,
) -> Run:
    run = Run.open(path)
    with run.lock():
        prepared, state, checkpoint = reopened(run, data, config, extensions, say=tell, force=force)
        finished = state.step >= prepared.plan.last_step or _is_patience_over(prepared.plan, state)
        if finished and run.report_path.exists():
            tell(f"already complete: {run.path}")
        else:
            run.rewind(checkpoint)
            # The clock of a stopped run has stood still; it ends where it was planned to.
            _train(run, config, prepared, state, extensions, tell, None)
    return run


def _train(
    run: Run,
    config: Config,
    prepared: Prepared,
    state: State,
    extensions: Extensions,
    tell: Show,
    deadline: Deadline | None,
) -> None:
    plan = prepared.plan
    tell(_described(plan, prepared.facts))
    job = build_job(plan, config, prepared.dataset, prepared.store, extensions)
    with contextlib.closing(prepared.store) as store:
        plan = _drive(run, plan, job, state, tell, deadline)
        best_step = load_best(run, prepared.model)
        # Short runs end before all pixels are there; the next one finds them in the cache.
        store.finish()
        tell(f"judging the weights of step {best_step}")
        _judge(run, plan, config, prepared)
        if has_gaps(plan):
            _count_again(run, prepared, tell)
    write(run)


def _judge(run: Run, plan: Plan, config: Config, prepared: Prepared) -> None:
    """Predictions and evaluations of the held-out images, written into the run."""
    own_metrics = [load(name) for name in config.evaluate.metrics]
    for split in ("validation", "test"):
        if len(prepared.dataset.indices(split)):
            judged(
                judge(
                    run,
                    plan,
                    prepared.dataset,
                    prepared.store,
                    prepared.model,
                    split,
                    own_metrics=own_metrics,
                    temperature=fitted_temperature(run) if split == "test" else None,
                )
            )


def _count_again(run: Run, prepared: Prepared, tell: Show) -> None:
    """Everything was seen by now: what could not be decoded is said, and counted in the facts."""
    counted = readable(prepared.dataset, prepared.store, say=tell).facts()
    changed = {"counts": counted.counts, "quarantined": counted.quarantined}
    dataset = prepared.facts.dataset.model_copy(update=changed)
    facts = prepared.facts.model_copy(update={"dataset": dataset})
    run.write_text("facts", facts.model_dump_json(indent=1))


def _drive(
    run: Run, plan: Plan, job: Job, state: State, tell: Show, deadline: Deadline | None
) -> Plan:
    """Run the loop to its end, to a signal, or until validation stops getting better.

    Returns the plan that the run ended with: one with another end, where the machine turned out
    slower or faster than it was measured and there is a time to keep.
    """
    try:
        while not _is_patience_over(plan, state):
            with watched() as stop, contextlib.closing(loop(plan, job, state, run)) as steps:
                other = _watch(plan, state, steps, stop, tell, deadline)
            if stop:
                save(state, run)
                raise _interrupted(run, plan, state, stop)
            if other is None:
                break
            plan = other
            run.write_text("plan", plan.model_dump_json(indent=1))
        if _is_patience_over(plan, state):
            save(state, run)
    except (VidiError, KeyboardInterrupt):
        raise
    except Exception:
        # The user's own code, or a bug of ours: what was learnt so far is kept.
        with contextlib.suppress(StorageError):
            save(state, run)
        raise
    return plan


def _watch(
    plan: Plan,
    state: State,
    steps: Generator[Progress],
    stop: Stop,
    tell: Show,
    deadline: Deadline | None,
) -> Plan | None:
    """Follow the loop until something has to be done; a plan with another end, if that is it."""
    for progress in steps:
        tell(progress)
        if stop:
            return None
        if _is_patience_over(plan, state):
            tell(
                f"stopping early: validation got no better for {plan.patience_evaluations} "
                "evaluations"
            )
            return None
        if deadline is not None and progress.phase == "train":
            steps_left = deadline.steps_left(progress)
            if steps_left is not None:
                other = retimed(plan, min(state.step + steps_left, plan.longest_steps))
                if other.last_step != plan.last_step:
                    state.notes.append(
                        f"not as fast as measured: the run ends at step {other.last_step} instead "
                        f"of {plan.last_step}, to keep its time"
                    )
                    return other
    return None


def _interrupted(run: Run, plan: Plan, state: State, stop: Stop) -> Interrupted:
    assert stop.signal_number is not None
    return Interrupted(
        f"stopped at step {state.step} of {plan.last_step}; everything is saved in {run.path}",
        signal_number=stop.signal_number,
        fix="give the same command again to continue"
        + ("" if "--out" in sys.argv else f", with --out {run.path}"),
    )


def _decisions(data: str | Path, config: Config, prepared: Prepared) -> dict[str, str]:
    """Everything that a later look, or a continuation, needs."""
    return {
        "config": config.to_toml(),
        "plan": prepared.plan.model_dump_json(indent=1),
        "facts": prepared.facts.model_dump_json(indent=1),
        "environment": json.dumps(_environment(data), indent=1),
    }


def _environment(data: str | Path) -> dict[str, Any]:
    packages = ("torch", "numpy", "pillow", "simplejpeg", "safetensors", "scikit-learn")
    where = Path(data)
    return {
        "vidi": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        # Where the data were, so that `vidi evaluate RUN` finds them again.
        "data": str(where.resolve()) if where.exists() else str(data),
        "data_name": _data_name(data),
    }


def _data_name(data: str | Path) -> str:
    return Path(data).resolve().name if Path(data).exists() else str(data)


def _is_patience_over(plan: Plan, state: State) -> bool:
    patience = plan.patience_evaluations
    return patience is not None and state.evaluations_since_best >= patience


def _described(plan: Plan, facts: Facts) -> str:
    execution = plan.execution
    parameters = f", {facts.model.parameters:,} parameters" if facts.model else ""
    return (
        f"{plan.model.name}{parameters}, {plan.pixels.image_px} px, batch {plan.batch_size}, "
        f"{plan.num_epochs:.3g} epochs of {plan.steps_per_epoch} steps, "
        f"{execution.precision} on {execution.device}"
    )

"""`train`: one run from one request, new or continued, to its report."""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidi import __version__
from vidi.augment import Transform
from vidi.config import Config, load
from vidi.data import Audit, audit_store
from vidi.errors import Interrupted, OutOfMemory, StorageError, TrainingError, VidiError
from vidi.facts import Facts, Split
from vidi.model import name_of
from vidi.own_data import has_gaps, readable
from vidi.plan import TIMEOUT_S, Plan, epochs_of, retimed
from vidi.report import write
from vidi.restore import load_best, trained_model
from vidi.run import Run, data_name, default_run_path
from vidi.signals import Stop, watched
from vidi.storage import DISK
from vidi.train.deadline import Deadline
from vidi.train.finish import fitted_temperature, judge, judged
from vidi.train.head import begun_job
from vidi.train.loop import Job, Progress, loop, save
from vidi.train.prepare import (
    Extensions,
    Prepared,
    build_state,
    followed,
    own_model,
    prepare,
    say_findings,
)
from vidi.train.ranks import AGREE_EVERY_STEPS, Ranks, Saved, joined, num_restarts
from vidi.train.resume import reopened
from vidi.train.state import State
from vidi.train.watching import costs, profiled
from vidi.words import count, first_line

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
    profile: bool = False,
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
        profile: write a trace of a few steps into the run, which Perfetto opens.
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
    path = (
        Path(out)
        if out is not None
        else default_run_path(Path("runs"), data_name(data), datetime.now())
    )
    with joined(config.machine.timeout_s or TIMEOUT_S) as ranks:
        tell: Show = show or (lambda _: None)
        asked = _Asked(path, data, config, extensions, tell, ranks, profile)
        if not ranks.is_first:
            return _follow(asked)
        if number := num_restarts():
            tell(f"a process ended: all were started again (restart {number})")
        if Run.exists(path):
            return _continue(asked, force=force_resume)
        # Refused before any work is done, when something else is there.
        Run.check_free(path)
        prepared = prepare(data, config, extensions, say=asked.tell, started_at=started_at)
        if Run.exists(path):
            # Another process was faster; its lock says who.
            return _continue(asked, force=force_resume)
        run = Run.create(path, texts=decisions(data, config, prepared))
        with run.lock():
            state = build_state(prepared.plan, prepared.model)
            deadline = Deadline.of(config, prepared.facts, started_at)
            _announce(asked, prepared, None)
            _train(asked, run, prepared, state, deadline)
        return run


@dataclass(frozen=True)
class _Asked:
    """What one call of `train` was given."""

    path: Path
    data: str | Path
    config: Config
    extensions: Extensions
    tell: Show
    ranks: Ranks
    profile: bool


def _continue(asked: _Asked, *, force: bool) -> Run:
    run, tell = Run.open(asked.path), asked.tell
    with run.lock():
        prepared, state, checkpoint = reopened(
            run, asked.data, asked.config, asked.extensions, say=tell, force=force
        )
        finished = state.step >= prepared.plan.last_step or _is_patience_over(prepared.plan, state)
        if finished and run.report_path.exists():
            tell(f"already complete: {run.path}")
            _announce(asked, None, None)
        else:
            run.rewind(checkpoint)
            _announce(asked, prepared, checkpoint)
            # The clock of a stopped run has stood still; it ends where it was planned to.
            _train(asked, run, prepared, state, None)
    return run


def _announce(asked: _Asked, prepared: Prepared | None, checkpoint: Saved | None) -> None:
    """Tell the other processes what the first one has decided and read; None: all is done."""
    ranks = asked.ranks
    if ranks.alone:
        return
    ranks.wait_for_first("prepared")
    told = {"path": str(asked.path.resolve())}
    if prepared is not None:
        told |= {"plan": prepared.plan.model_dump_json(), "facts": prepared.facts.model_dump_json()}
        if prepared.audit is not None:
            told["audit"] = prepared.audit.to_json()
    ranks.from_first(json.dumps(told).encode())
    ranks.checkpoint_from_first(checkpoint)


def _follow(asked: _Asked) -> Run:
    """The part of every process but the first: it computes, and writes nothing."""
    ranks = asked.ranks
    ranks.wait_for_first("prepared")
    told = json.loads(ranks.from_first(None))
    checkpoint = ranks.checkpoint_from_first(None)
    run = Run(Path(told["path"]), {}, DISK)
    if "plan" not in told:
        return run
    plan, facts = Plan.from_json(told["plan"]), Facts.model_validate_json(told["facts"])
    found = Audit.from_json(told["audit"]) if "audit" in told else None
    prepared = followed(plan, facts, asked.data, asked.config, asked.extensions, found)
    state = build_state(plan, prepared.model)
    if checkpoint is not None:
        state.restore(checkpoint)
    job = _job(asked, prepared, state)
    with contextlib.closing(prepared.store):
        drive(None, plan, job, state, lambda _: None, None)
    return run


def _job(asked: _Asked, prepared: Prepared, state: State) -> Job:
    """The job of a plan, for this process."""
    return begun_job(
        prepared, state, asked.config, asked.extensions, ranks=asked.ranks, say=asked.tell
    )


def _train(
    asked: _Asked, run: Run, prepared: Prepared, state: State, deadline: Deadline | None
) -> None:
    plan, tell, config = prepared.plan, asked.tell, asked.config
    tell(_described(plan, prepared.facts))
    with contextlib.closing(prepared.store) as store:
        job = _job(asked, prepared, state)
        trace = run.profile_path if asked.profile else None
        with costs(run, tell), profiled(trace) as stepped:

            def told(what: str | Progress) -> None:
                if isinstance(what, Progress) and what.phase == "train":
                    stepped()
                tell(what)

            plan = drive(run, plan, job, state, told if trace else tell, deadline)
        if state.is_sharded:
            # The others have ended, and with them their parts.
            own = own_model(plan, config, asked.extensions)
            model, best_step = trained_model(run, plan, own)
            prepared = replace(prepared, model=model)
        else:
            best_step = load_best(run, prepared.model)
        # Short runs end before all pixels are there; the next one finds them in the cache.
        store.finish()
        if prepared.audit is None and store.complete:
            prepared = _audited_late(run, prepared, tell)
        tell(f"judging the weights of step {best_step}")
        judge_run(run, plan, config, prepared)
        if has_gaps(plan):
            _count_again(run, prepared, tell)
    write(run)


def judge_run(
    run: Run,
    plan: Plan,
    config: Config,
    prepared: Prepared,
    splits: Sequence[Split] = ("validation", "test"),
) -> None:
    """Predictions and evaluations of the held-out images, written into the run."""
    own_metrics = [load(name) for name in config.evaluate.metrics]
    for split in splits:
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
                    leaked_ids=prepared.audit.leaked.get(split, ()) if prepared.audit else (),
                )
            )


def _audited_late(run: Run, prepared: Prepared, tell: Show) -> Prepared:
    """Look at the images of a run that began before all of them were decoded; its splits stay."""
    dataset = readable(prepared.dataset, prepared.store, say=lambda _: None)
    _, found = audit_store(dataset, prepared.store, recut=False)
    say_findings(found, tell)
    run.write_text("audit", found.to_json())
    return replace(prepared, audit=found)


def _count_again(run: Run, prepared: Prepared, tell: Show) -> None:
    """Everything was seen by now: what could not be decoded is said, and counted in the facts."""
    counted = readable(prepared.dataset, prepared.store, say=tell).facts()
    changed = {"counts": counted.counts, "quarantined": counted.quarantined}
    dataset = prepared.facts.dataset.model_copy(update=changed)
    facts = prepared.facts.model_copy(update={"dataset": dataset})
    run.write_text("facts", facts.model_dump_json(indent=1))


def drive(
    run: Run | None, plan: Plan, job: Job, state: State, tell: Show, deadline: Deadline | None
) -> Plan:
    """Run the loop to its end, to a signal, or until validation stops getting better.

    Returns the plan that the run ended with: one with another end, where the machine turned out
    slower or faster than it was measured and there is a time to keep.
    """
    try:
        while not _is_patience_over(plan, state):
            with watched() as stop, contextlib.closing(loop(plan, job, state, run)) as steps:
                other = _watch(plan, job.ranks, state, steps, stop, tell, deadline)
            if stop:
                save(state, run)
                raise _interrupted(run, plan, state, stop)
            if other is None:
                break
            plan = other
            if run is not None:
                run.write_text("plan", plan.model_dump_json(indent=1))
        if _is_patience_over(plan, state):
            save(state, run)
    except OutOfMemory:
        # What others have parts of cannot be put together any more.
        if not state.is_sharded:
            save(state, run)
        raise
    except (VidiError, KeyboardInterrupt):
        raise
    except Exception as error:
        # The user's own code, or a bug of ours: what was learnt so far is kept. Of several
        # processes one may be a step ahead; they go on from the newest checkpoint.
        if run is not None and job.ranks.alone:
            with contextlib.suppress(StorageError):
                save(state, run)
        if "deterministic implementation" in str(error):
            raise TrainingError(
                f"machine.deterministic = true, and an operation of this network has no such form: "
                f"{first_line(error)}",
                fix="use another layer, or set machine.deterministic = false",
            ) from error
        raise
    return plan


def _watch(
    plan: Plan,
    ranks: Ranks,
    state: State,
    steps: Generator[Progress],
    stop: Stop,
    tell: Show,
    deadline: Deadline | None,
) -> Plan | None:
    """Follow the loop until something has to be done; a plan with another end, if that is it."""
    for progress in steps:
        tell(progress)
        if not ranks.alone:
            # All stop at the same step, or they would wait for each other.
            if progress.phase != "train" or progress.step % AGREE_EVERY_STEPS:
                continue
            stop.signal_number = ranks.largest(stop.signal_number or 0) or None
        if stop:
            return None
        if _is_patience_over(plan, state):
            tell(
                f"stopping early: validation got no better for {plan.patience_evaluations} "
                "evaluations"
            )
            return None
        if progress.phase == "train":
            steps_left = None if deadline is None else deadline.steps_left(progress, plan)
            # The first process has the clock.
            steps_left = ranks.largest(steps_left or 0) or None
            if steps_left is not None:
                other = retimed(plan, min(state.step + steps_left, plan.longest_steps))
                if other.last_step != plan.last_step:
                    why = "slower" if other.last_step < plan.last_step else "faster"
                    state.notes.append(
                        f"{why} than planned: the run ends at step {other.last_step} instead of "
                        f"{plan.last_step}, when its time does"
                    )
                    return other
    return None


def _interrupted(run: Run | None, plan: Plan, state: State, stop: Stop) -> Interrupted:
    assert stop.signal_number is not None
    if run is None:
        return Interrupted(f"stopped at step {state.step}", signal_number=stop.signal_number)
    return Interrupted(
        f"stopped at step {state.step} of {plan.last_step}; everything is saved in {run.path}",
        signal_number=stop.signal_number,
        fix="give the same command again to continue"
        + ("" if "--out" in sys.argv else f", with --out {run.path}"),
    )


def decisions(data: str | Path, config: Config, prepared: Prepared) -> dict[str, str]:
    """Everything that a later look, or a continuation, needs."""
    return {
        "config": config.to_toml(),
        "plan": prepared.plan.model_dump_json(indent=1),
        "facts": prepared.facts.model_dump_json(indent=1),
        "environment": json.dumps(_environment(data), indent=1),
        **({"audit": prepared.audit.to_json()} if prepared.audit else {}),
    }


def _environment(data: str | Path) -> dict[str, Any]:
    where = Path(data)
    return {
        "vidi": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": _packages(),
        "threads": torch.get_num_threads(),
        # Where the data were, so that `vidi evaluate RUN` finds them again.
        "data": str(where.resolve()) if where.exists() else str(data),
        "data_name": data_name(data),
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Looking them up takes 15 ms, and a search asks for every trial."""
    names = ("torch", "numpy", "pillow", "simplejpeg", "safetensors", "scikit-learn")
    return {name: metadata.version(name) for name in names}


def _is_patience_over(plan: Plan, state: State) -> bool:
    patience = plan.patience_evaluations
    return patience is not None and state.evaluations_since_best >= patience


def _described(plan: Plan, facts: Facts) -> str:
    execution = plan.execution
    parameters = f", {facts.model.parameters:,} parameters" if facts.model else ""
    epochs = float(f"{plan.num_epochs:.3g}")
    return (
        f"{plan.model.name}{parameters}, {plan.pixels.image_px} px, batch {plan.batch_size}, "
        f"{epochs_of(epochs)} of {count(plan.steps_per_epoch, 'step')}, "
        f"{execution.precision} on {execution.device}"
    )

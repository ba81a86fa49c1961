"""One trial of a search: an ordinary run that stops at rungs and goes on when it is promoted.

What all trials of one data set have in common is opened once in a process and kept: `Shared`. A
trial is judged by the validation images alone; nothing here looks at the test split but `conclude`,
which is called once, for the answer of a search.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import torch

from vidi import model, probe, storage
from vidi.config import Config, parse
from vidi.data import Dataset, PixelStore, open_dataset
from vidi.errors import (
    ConfigError,
    Interrupted,
    MismatchError,
    StorageError,
    UsageError,
    VidiError,
)
from vidi.evaluate import predict
from vidi.facts import Facts, ModelFacts, Split
from vidi.image import PixelContract
from vidi.own_data import Say, audit_of, decoded, plan_of
from vidi.plan import Plan, annealed, choose_model, make
from vidi.report import write
from vidi.restore import Initial, answering_weights, build_model, load_best, put_weights
from vidi.run import Run
from vidi.signals import watched
from vidi.train.head import begun_job
from vidi.train.loop import Progress, loop, save
from vidi.train.prepare import (
    Extensions,
    Looked,
    Prepared,
    build_state,
    evaluation_loader,
    looked_at,
    own_model,
    planned,
)
from vidi.train.resume import Reopened, differing, restored
from vidi.train.state import State
from vidi.train.training import decisions, judge_run
from vidi.zoo import MODELS

# Settings that would give trials other images to be judged by.
OF_THE_SPLIT: Final = (
    "data.format",
    "data.validation_fraction",
    "data.test_fraction",
    "data.split_seed",
    "data.folds",
    "data.fold",
    "data.learn_validation",
    "data.unreadable",
    "data.max_unreadable_fraction",
)

# What a display needs: a line of text, or a moment of the run.
Show = Callable[[str | Progress], None]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Where a trial stands.

    step: updates done. accuracy, log_loss: of the weights of that step on the validation images
    (the average of the weights, where there is one); None where they were not judged there, because
    the time was over in between. seconds: this call took. finished: at the end of its plan.
    """

    step: int
    horizon_steps: int
    accuracy: float | None
    log_loss: float | None
    seconds: float
    finished: bool


@final
class Shared:
    """What a process opens once for all trials of one data set.

    The data set with its splits, the audit, one store of decoded pixels for each size, and what was
    measured. Close it, or use it in a `with`.

    Args:
        data: as for `train`.
        config: what all trials have in common; its splits are those of every trial.
        extensions: your own functions, given as objects.
        say: told what is going on, one line at a time.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
    """

    def __init__(
        self,
        data: str | Path,
        config: Config,
        extensions: Extensions | None = None,
        *,
        say: Say | None = None,
    ) -> None:
        probe.keep_memory()
        self.data = data
        self.config = config
        self.extensions = extensions or Extensions()
        self._say = say or (lambda _: None)
        looked = looked_at(data, _decoded_first(config), say=self._say)
        if not len(looked.dataset.indices("validation")):
            looked.store.close()
            raise ConfigError(
                "a search judges by validation images, and none is held out",
                fix="set data.validation_fraction, or add a validation folder",
            )
        self.dataset: Dataset = looked.dataset
        self.facts: Facts = looked.facts
        self.audit = looked.audit
        self._stores: dict[PixelContract, PixelStore] = {looked.plan.pixels: looked.store}
        # Counting a network's operations takes a third of the start of a trial.
        self._models: dict[tuple[str, str, PixelContract], ModelFacts] = {}
        self.initial: Initial = {}

    def looked(self, config: Config) -> Looked:
        """The data as a trial sees them: its sizes and its model's pixel contract, our splits.

        Raises:
            ConfigError: the config asks for other splits than those of the search.
        """
        for name in OF_THE_SPLIT:
            section, field = name.split(".")
            ours, its = (getattr(getattr(one, section), field) for one in (self.config, config))
            if ours != its:
                raise ConfigError(
                    f"a trial cannot have {name} = {its!r}: all are judged by the same images"
                )
        choice = choose_model(config, self.facts)
        weights = model.weights_facts(choice.name, choice.weights)
        facts = self.facts.model_copy(update={"weights": weights})
        plan = make(_decoded_first(config), facts)
        return Looked(self.dataset, self._store(config, plan), facts, plan, self.audit)

    def prepared(self, config: Config) -> Prepared:
        """The plan of a trial and its model, before the first step."""
        now = time.monotonic()
        config = _decoded_first(config)
        looked = self.looked(config)
        shape = looked.plan.model.name, looked.plan.model.weights, looked.plan.pixels
        if known := self._models.get(shape):
            looked = looked._replace(facts=looked.facts.model_copy(update={"model": known}))
        prepared = planned(
            looked,
            config,
            self.extensions,
            say=self._say,
            started_at=now,
            initial=self.initial,
        )
        counted = prepared.facts.model
        # A network of the user's may be another one with other settings.
        if counted is not None and prepared.plan.model.name in MODELS:
            self._models[shape] = counted
        return prepared

    def _store(self, config: Config, plan: Plan) -> PixelStore:
        store = self._stores.get(plan.pixels)
        if store is None:
            dataset = open_dataset(self.data, config.data)
            dataset, store = decoded(dataset, plan, config, say=self._say)
            if self.audit is not None:
                dataset = self.audit.regroup(dataset)
            if dataset.fingerprint != self.dataset.fingerprint:
                store.close()
                raise MismatchError(
                    f"{self.dataset.name} has changed during the search",
                    fix="keep the images as they are until it is done",
                )
            self._stores[plan.pixels] = store
        return store

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def advance(
    run_path: Path,
    shared: Shared,
    config: Config,
    *,
    last_step: int | None = None,
    rung: int | None = None,
    rungs: Sequence[float] = (),
    deadline: float | None = None,
    tell: Show | None = None,
) -> TrialResult:
    """Create the run of a trial, or continue it, up to `last_step`; judge its validation images.

    However often it is stopped in between, and at whichever rungs, it ends with the same bytes as
    if it had gone straight through. A checkpoint is kept where it stops.

    Args:
        config: all of the trial's settings; the same in every call for this run.
        last_step: where to stop, an update of its plan; the end of the plan when left out. To leave
            no trace it has to be one of the rungs.
        rung: which of `rungs` to stop at, from 0, instead of `last_step`.
        rungs: shares of its plan, between 0 and 1, at which it is judged and may stop. They count
            when the run is created.
        deadline: `time.monotonic()` at which it stops wherever it is, with a checkpoint.
        tell: told every line and every `Progress`.

    Raises:
        MismatchError: the run there is one of other settings or data.
        TrainingError, OutOfMemory, StorageError, InUseError: as `train`.
        Interrupted: a signal came; the state is saved.
    """
    began_at = time.monotonic()
    say: Show = tell or (lambda _: None)
    config = _decoded_first(config)
    share = 1.0 if rung is None else rungs[rung]

    def go(prepared: Prepared, state: State) -> None:
        horizon = prepared.plan.horizon_steps
        stop_at = horizon if last_step is None else min(last_step, horizon)
        if share < 1.0:
            stop_at = _step_at(share, horizon)
        _go(run, prepared, state, config, shared, stop_at, deadline, say)

    if config.train.minutes is not None:
        raise ConfigError(
            "train.minutes is no length of a trial: a search compares equal numbers of steps",
            fix="give train.epochs",
        )
    if Run.exists(run_path):
        run = Run.open(run_path)
        with run.lock():
            prepared, state, checkpoint = reopened_trial(run, shared, config, say)
            run.rewind(checkpoint)
            go(prepared, state)
    else:
        Run.check_free(run_path)
        prepared = shared.prepared(config)
        prepared = replace(prepared, plan=_with_rungs(prepared.plan, rungs))
        run = Run.create(run_path, texts=decisions(shared.data, config, prepared))
        with run.lock():
            state = build_state(prepared.plan, prepared.model)
            go(prepared, state)
    return result_of(run, state.step, prepared.plan.horizon_steps, time.monotonic() - began_at)


def train_and_answer(
    run_path: Path,
    shared: Shared,
    config: Config,
    *,
    deadline: float | None = None,
    tell: Show | None = None,
) -> TrialResult:
    """`advance` to the end, and `keep_answers` there. Raises as `advance`."""
    result = advance(run_path, shared, config, deadline=deadline, tell=tell)
    if result.finished:
        keep_answers(run_path, shared, config)
    return result


def keep_answers(run_path: Path, shared: Shared, config: Config) -> None:
    """What the last weights of a trial say of every validation image is kept in its run, so that
    trials are compared image by image. Raises UsageError where its weights are gone."""
    run = Run.open(run_path)
    plan = plan_of(run)
    looked = shared.looked(config)
    checkpoint, _ = run.newest_checkpoint()
    if checkpoint is None:
        raise UsageError(f"{run.path} has no checkpoint any more", fix="train it again")
    origin = f"{run_path}, step {checkpoint.step}"
    saved = answering_weights(checkpoint, origin=origin)
    own = own_model(plan, config, shared.extensions)
    classifier = build_model(plan, own, initial=shared.initial, saved=saved)
    put_weights(classifier, saved, origin=origin)
    loader = evaluation_loader(plan, looked.dataset, looked.store, "validation")
    device = torch.device(plan.execution.device)
    answers = None
    for part in predict(classifier, loader, plan.pixels.image_px, "float32", device):
        answers = part
    assert answers is not None, "validation images are there"
    run.write_predictions(
        "validation",
        {"ids": answers.ids, "labels": answers.labels, "probabilities": answers.probabilities},
    )


def shorten(run_path: Path, last_step: int) -> None:
    """Let the learning rate of a stopped trial fall to zero from where it stands to `last_step`.

    Its schedule has to be "trapezoid". Raises UsageError when the run is not before that step.
    """
    run = Run.open(run_path)
    with run.lock():
        plan = plan_of(run)
        newest, _ = run.newest_checkpoint()
        step = 0 if newest is None else newest.step
        if last_step == plan.horizon_steps:
            return
        if not step < last_step:
            raise UsageError(f"{run.path} is at step {step} already, not before {last_step}")
        run.write_text("plan", annealed(plan, step, last_step).model_dump_json(indent=1))


def copy_run(source: Path, target: Path) -> None:
    """A copy of a run that nobody works in, complete or not there at all.

    Raises UsageError when `target` exists, StorageError.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already")
    # Of the kind that is tidied away, should this be killed.
    beside = target.parent / f".{target.name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        with storage.explained("cannot write", target):
            _copy_tree(source, beside)
            beside.rename(target)
    except StorageError:
        # On a full disk what is there of it is in the way.
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _copy_tree(source: Path, target: Path) -> None:
    def copied(path: str, to: str) -> None:
        # An OSError would be noted and all other files tried as well.
        with storage.explained("cannot write", Path(to)):
            shutil.copy2(path, to)

    ignored = shutil.ignore_patterns("lock", ".*.tmp")
    shutil.copytree(source, target, ignore=ignored, copy_function=copied)
    for path in [*target.rglob("*"), target]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def conclude(
    run_path: Path,
    shared: Shared,
    config: Config,
    *,
    splits: Sequence[Split] = ("validation", "test"),
    tell: Show | None = None,
) -> Run:
    """Judge a finished run on validation and test images, and write its report: the answer.

    Whether it has been done already is seen by its report; without the test images in `splits` it
    is no answer yet, and has none.

    Raises UsageError when the run is not at its end.
    """
    say: Show = tell or (lambda _: None)
    run = Run.open(run_path)
    if run.report_path.exists():
        return run
    config = _decoded_first(config)
    with run.lock():
        prepared, state, _ = reopened_trial(run, shared, config, lambda _: None)
        if state.step < prepared.plan.last_step:
            raise UsageError(
                f"{run.path} is at step {state.step} of {prepared.plan.last_step}: not finished"
            )
        best_step = load_best(run, prepared.model)
        say(f"judging the weights of step {best_step}")
        known = run.evaluated_splits()
        judge_run(run, prepared.plan, config, prepared, [one for one in splits if one not in known])
    if "test" in splits:
        write(run)
    return run


def result_of(run: Run, step: int, horizon_steps: int, seconds: float) -> TrialResult:
    """What the run's log says of that step."""
    accuracy = log_loss = None
    for record in run.metrics.read():
        if record.get("kind") == "validation" and record["step"] == step:
            accuracy, log_loss = float(record["accuracy"]), record["log_loss"]
    return TrialResult(
        step=step,
        horizon_steps=horizon_steps,
        accuracy=accuracy,
        log_loss=log_loss,
        seconds=seconds,
        finished=step >= horizon_steps,
    )


def reopened_trial(run: Run, shared: Shared, config: Config, say: Show) -> Reopened:
    """A trial as it was at its newest checkpoint, on the data that are open.

    Raises MismatchError when it is one of other settings or data.
    """
    before = parse(run.text("config"), origin=str(run.config_path))
    if changed := differing(before, config):
        raise MismatchError(
            f"{run.path} is a trial of other settings: {', '.join(changed)}",
            fix="give a new --out",
        )
    plan = plan_of(run)
    facts = Facts.model_validate_json(run.text("facts"))
    if facts.dataset.fingerprint != shared.facts.dataset.fingerprint:
        raise MismatchError(
            f"{run.path} is a trial on other images than {shared.dataset.name} has now",
            fix="give a new --out, or the data that the search began with",
        )
    looked = Looked(shared.dataset, shared._store(config, plan), facts, plan, audit_of(run))
    return restored(run, looked, config, shared.extensions, [], say=say, initial=shared.initial)


def _go(
    run: Run,
    prepared: Prepared,
    state: State,
    config: Config,
    shared: Shared,
    stop_at: int,
    deadline: float | None,
    say: Show,
) -> None:
    plan = prepared.plan
    if state.step >= stop_at and state.evaluated_step == state.step:
        return
    plan = plan.model_copy(update={"last_step": stop_at})
    job = begun_job(replace(prepared, plan=plan), state, config, shared.extensions, say=say)
    try:
        with watched() as stop, contextlib.closing(loop(plan, job, state, run)) as steps:
            for progress in steps:
                say(progress)
                if stop or (deadline is not None and time.monotonic() >= deadline):
                    break
    except VidiError:
        raise
    except Exception:
        # The user's own code, or a bug of ours: what was learnt so far is kept.
        with contextlib.suppress(VidiError):
            save(state, run)
        raise
    # Whatever ended it: where it stands is on the disk, also when a save on the way had failed.
    if state.step not in run.checkpoint_steps():
        save(state, run)
    if stop:
        assert stop.signal_number is not None
        raise Interrupted(
            f"stopped at step {state.step} of {plan.horizon_steps}; everything is saved in "
            f"{run.path}",
            signal_number=stop.signal_number,
        )


def _step_at(share: float, horizon_steps: int) -> int:
    return max(1, round(share * horizon_steps))


def _with_rungs(plan: Plan, rungs: Sequence[float]) -> Plan:
    steps = {_step_at(share, plan.horizon_steps) for share in rungs if share < 1.0}
    if not steps:
        return plan
    return plan.model_copy(
        update={
            "rungs": tuple(sorted(steps - {plan.horizon_steps})),
            "evaluate_every_steps": plan.horizon_steps,
        }
    )


def _decoded_first(config: Config) -> Config:
    """The config of a search decodes before it trains: all its trials see the same images."""
    if config.data.build is not None or config.data.store is not None:
        return config
    return config.with_settings({"data.build": "before"})

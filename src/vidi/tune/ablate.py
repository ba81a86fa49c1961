"""`vidi ablate`: what does each technique buy on these data? One change at a time, paired seeds."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from vidi import storage
from vidi.config import Config
from vidi.effects import BASE, Effect, of_study, trial_number
from vidi.errors import Interrupted, InUseError, StorageError, TrainingError, UsageError, VidiError
from vidi.facts import Facts
from vidi.own_data import plan_of
from vidi.plan import Plan, epochs_of, make
from vidi.report import write_study
from vidi.run import Run
from vidi.signals import watched
from vidi.study import Rung, Study, Trial, default_study_path
from vidi.train.trial import Shared, Show, TrialResult, train_and_answer
from vidi.tune.factors import (
    CAREFUL,
    LeftOut,
    Level,
    Pair,
    check_factors,
    decide_epochs,
    fits,
    forecast_s,
    levels_of,
    order,
    pinned,
)
from vidi.tune.workers import ENDINGS, GRACE_S, Event, Processes, error_of
from vidi.words import count

# So often a training whose process died is tried again before it is given up.
MOST_RETRIES: Final = 2
# What an ablation decided when it began, and goes by when it is continued.
_DECIDED: Final = ("levels", "base", "left_out", "length")
_POLL_S: Final = 0.2
# Kept free for the page and the way out.
_CLOSING_S: Final = 3.0


def ablate(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    factors: Sequence[str] = (),
    seeds: int = 3,
    minutes: float | None = None,
    workers: int = 1,
    out: str | Path | None = None,
    show: Show | None = None,
    started_at: float | None = None,
) -> Study:
    """Change one thing at a time around `config`, train with several seeds, compare in pairs.

    Every change is trained with the same seeds as the base, for a few epochs, and both answer the
    same validation images; `vidi.effects.of_study` says what that makes of each change. Test images
    are never looked at.

    Args:
        data, config, settings: as for `train`; train.epochs is the length of each training, chosen
            from the minutes or a quarter of a full one if left open.
        factors: names of `vidi.tune.factors.FACTORS`; all, the most important first, if empty.
        seeds: how many trainings each change gets, 2 or more.
        minutes: wall-clock time for everything; what cannot be finished is not begun.
        workers: processes that train at the same time, each on its part of the cores or a graphics
            card of its own; 1 trains in this one.
        out: the study's directory; one that was stopped is continued. A new one under `studies/`
            when left out.
        show: told every line and every `Progress`.
        started_at: `time.monotonic()` when the clock of `minutes` began; now, if left out.

    Raises:
        UsageError, ConfigError, DataError: the request or the data do not allow it, or the minutes
            are too few for the base; what was trained of it is kept.
        MismatchError: the study there was asked for something else.
        TrainingError: the base itself failed with every seed.
        Interrupted: a signal came; the same call continues.
    """
    started_at = time.monotonic() if started_at is None else started_at
    tell: Show = show or (lambda _: None)
    asked = (config or Config()).with_settings(settings or {})
    if seeds < 2:
        raise UsageError(f"seeds = {seeds}: luck can only be seen with two or more")
    if minutes is not None and not minutes > 0:
        raise UsageError(f"minutes = {minutes}: there has to be some time")
    if workers < 1:
        raise UsageError(f"workers = {workers}: somebody has to do it")
    if asked.train.minutes is not None:
        raise UsageError(
            "train.minutes is the time of one training, and these have equal epochs",
            fix="give --minutes for everything, or train.epochs for each",
        )
    check_factors(factors)
    path = (
        Path(out)
        if out is not None
        else default_study_path(Path("studies"), _name_of(data), datetime.now())
    )
    fresh = not Study.exists(path)
    if fresh:
        Study.check_free(path)
    deadline = None if minutes is None else started_at + 60.0 * minutes - _CLOSING_S
    with Shared(data, asked, say=tell) as shared:
        wanted = {"factors": list(factors), "seeds": seeds, "minutes": minutes}
        if Study.exists(path):
            study = Study.open(path)
        else:
            study = _created(path, shared, asked, wanted, deadline, tell)
        with study.lock():
            kept = {
                name: study.asked.get(name) for name in ("levels", "base", "left_out", "length")
            }
            study.go_on(asked, {**wanted, **kept}, kind="ablate", may_change=("minutes",))
            try:
                ablation = _Ablation(study, asked, deadline, tell, workers)
                if workers == 1:
                    _train_here(ablation, shared)
                else:
                    _train_in_processes(ablation, data, shared)
                ablation.say_what_is_missing()
            except UsageError:
                if fresh:
                    study.discard_unbegun()
                raise
            finally:
                # Also of an ablation that is stopped: what is known is there to be read.
                if Study.exists(path) and any(trial.rungs for trial in study.trials()):
                    write_study(study)
    return study


def _name_of(data: str | Path) -> str:
    return str(data) if isinstance(data, str) else data.name


def _created(
    path: Path,
    shared: Shared,
    asked: Config,
    wanted: Mapping[str, Any],
    deadline: float | None,
    tell: Show,
) -> Study:
    """Decide everything that is tried, once, and write it down."""
    prepared = shared.prepared(asked)
    plan, facts = prepared.plan, prepared.facts
    levels, left_out, _ = _around(asked, plan, facts, wanted["factors"], plan.num_epochs)
    if not levels:
        reasons = "; ".join(f"{each.factor} {each.level}: {each.reason}" for each in left_out)
        raise UsageError(f"nothing can be changed here: {reasons}", fix="name other factors")
    epochs, why = decide_epochs(
        plan,
        asked.train.epochs,
        minutes_left=None if deadline is None else (deadline - time.monotonic()) / 60,
        epoch_s=_epoch_s(plan, facts),
        cost=1.0 + sum(level.cost for level in levels),
        seeds=wanted["seeds"],
    )
    # Once more: what a rule makes of the length, such as the average of the weights, moves with it.
    levels, left_out, plan = _around(asked, plan, facts, wanted["factors"], epochs)
    everything = [Level("", BASE), *levels]
    study = Study.create(
        path,
        kind="ablate",
        config=asked,
        asked={
            **wanted,
            "levels": [
                {"factor": each.factor, "level": each.level, "settings": dict(each.settings)}
                | {"cost": each.cost}
                for each in everything
            ],
            "left_out": [vars(each) for each in left_out],
            "length": {**pinned(plan), "train.epochs": epochs},
            "base": _described(plan, epochs),
        },
    )
    with study.lock():
        long = epochs_of(epochs)
        study.note("decided", why=f"{long} each: {why}", trainings=_num_runs(study))
    tell(f"{count(len(levels), 'change')} and the base, {wanted['seeds']} seeds")
    tell(f"{long} each: {why}")
    for each in left_out:
        if each.reason != "the base has it already":
            tell(f"left out: {each.factor}: {each.level} ({each.reason})")
    return study


def _around(
    asked: Config, plan: Plan, facts: Facts, factors: Sequence[str], epochs: float
) -> tuple[list[Level], list[LeftOut], Plan]:
    """The levels around the base at that length, what is left out, and the base's plan."""
    length = {"train.epochs": epochs}
    fixed = asked.with_settings(pinned(plan) | length | {"train.ema_decay": asked.train.ema_decay})
    short = make(fixed, facts)
    fixed = fixed.with_settings(pinned(short))
    return *levels_of(fixed, short, facts, factors), short


def _num_runs(study: Study) -> int:
    return len(study.asked["levels"]) * int(study.asked["seeds"])


def _epoch_s(plan: Plan, facts: Facts) -> float | None:
    rates = [
        step.images_per_second
        for step in (facts.measured.steps if facts.measured else ())
        if step.precision == plan.execution.precision and not step.rejected
    ]
    return plan.num_train / max(rates) if rates else None


def _described(plan: Plan, epochs: float) -> dict[str, Any]:
    """The base, as the page shows it."""
    return {
        "network": plan.model.name,
        "weights": plan.model.weights,
        "training images": plan.num_train,
        "image size (px)": plan.pixels.image_px,
        "epochs": epochs,
        "batch size": plan.batch_size,
        "optimizer": plan.optimizer.name,
        "learning rate (for 256)": plan.optimizer.learning_rate_per_256,
        "schedule": plan.schedule.name,
        "precision": plan.execution.precision,
    }


# ---- The trainings -------------------------------------------------------------------------------


@final
class _Ablation:
    """What is known while an ablation is at work, and what is trained next."""

    def __init__(
        self, study: Study, asked: Config, deadline: float | None, tell: Show, workers: int
    ) -> None:
        self.study = study
        self.deadline = deadline
        self.tell = tell
        self.workers = workers
        self._levels, self._seeds = study.asked["levels"], int(study.asked["seeds"])
        self._fixed = asked.with_settings(study.asked["length"])
        self._known = {trial.number: trial for trial in study.trials()}
        self._order = order(len(self._levels), self._seeds)
        self._refused: set[int] = set()
        self._said_how_long = False

    def next(self, busy: Collection[int] = ()) -> Trial | None:
        """What is trained next, besides the trials that are at work; None: nothing now.

        Raises UsageError when the minutes are too few for the base.
        """
        for place, pair in enumerate(self._order, start=1):
            number = trial_number(pair.level, pair.seed, self._seeds)
            trial = self._known.get(number)
            if (trial is not None and trial.is_over) or number in busy:
                continue
            if pair.level in self._refused:
                continue
            if pair.level and busy and self.deadline and not _base_s(self._known, self._seeds):
                # How long one takes will be known when the first of the base is done.
                return None
            if not self._can_be_finished(pair):
                if pair.level == 0:
                    raise _too_short(self.study, self._known, self._seeds, self.workers)
                self._refused.add(pair.level)
                why, what = "it could not be finished in the time left", self._levels[pair.level]
                self.study.note("not started", why=why, what=_worded(what))
                continue
            trial = _begun(self.study, trial, number, self._levels[pair.level], pair.seed)
            self._known[number] = trial
            if not trial.is_over:
                what = f"{_worded(self._levels[pair.level])}, seed {pair.seed}"
                self.tell(f"training {place} of {len(self._order)}: {what}")
                return trial
        return None

    def ended(self, trial: Trial) -> None:
        """A training has come to an end, for now or for good.

        Raises TrainingError when the base failed with every seed.
        """
        self._known[trial.number] = trial
        _refuse_without_base(self._known, self._seeds)
        if not self._said_how_long and _base_s(self._known, self._seeds):
            self._said_how_long = True
            self.tell(_forecast(self.study, self._known, self._seeds, self.workers))

    def config_of(self, trial: Trial) -> Config:
        return self._fixed.with_settings(trial.settings)

    def say_what_is_missing(self) -> None:
        missing = [
            _worded(self._levels[pair.level])
            for pair in self._order
            if pair.seed == 0
            and not all(
                _is_over(self._known, pair.level, seed, self._seeds) for seed in range(self._seeds)
            )
        ]
        if not missing:
            return
        base_s = _base_s(self._known, self._seeds)
        rest = _minutes(_rest_s(self.study, self._known, self._seeds, base_s, self.workers))
        self.tell(
            f"no time is left for {count(len(missing), 'change')}, from '{missing[0]}' on; the "
            f"same command with --minutes {rest} does the rest"
        )

    def _can_be_finished(self, pair: Pair) -> bool:
        seeds, known = self._seeds, self._known
        of_level = [known.get(trial_number(pair.level, seed, seeds)) for seed in range(seeds)]
        base = [known.get(trial_number(0, seed, seeds)) for seed in range(seeds)]
        left = sum(1 for each in of_level if each is None or not each.is_over)
        return fits(
            pair.level,
            math.ceil(left / self.workers),
            base_s=[each.last.seconds for each in base if each is not None and each.last],
            cost=float(self._levels[pair.level]["cost"]),
            left_s=None if self.deadline is None else self.deadline - time.monotonic(),
        )


class _Job(NamedTuple):
    """A training that somebody is at. before_s: what the training has taken in earlier calls."""

    trial: Trial
    began_at: float
    before_s: float

    @property
    def spent_s(self) -> float:
        return self.before_s + time.monotonic() - self.began_at


def _job_of(ablation: _Ablation, trial: Trial) -> _Job:
    before_s = sum(_seconds_noted(ablation.study, trial.number))
    return _Job(trial, time.monotonic(), before_s)


def _train_here(ablation: _Ablation, shared: Shared) -> None:
    while (trial := ablation.next()) is not None:
        study, job = ablation.study, _job_of(ablation, trial)
        config, path = ablation.config_of(trial), study.trial_run_path(trial.number)
        try:
            result = train_and_answer(
                path, shared, config, deadline=ablation.deadline, tell=ablation.tell
            )
        except Interrupted:
            _stopped(study, trial, job.spent_s)
            raise
        except (InUseError, StorageError):
            raise
        except VidiError as error:
            ablation.ended(_failed(ablation, trial, error.message))
        else:
            ablation.ended(_judged(ablation, trial, result, job.spent_s))


def _train_in_processes(ablation: _Ablation, data: str | Path, shared: Shared) -> None:
    """The same by worker processes, each of which has the data open."""
    study, workers = ablation.study, ablation.workers
    threads = max(1, shared.facts.machine.usable_cores // workers)
    where = str(Path(data).resolve()) if Path(data).exists() else str(data)
    opening = {"do": "open", "data": where, "config": shared.config.to_toml()}
    jobs: dict[int, _Job] = {}
    with (
        contextlib.closing(Processes(workers, study.path / "workers.log")) as crew,
        watched() as stop,
    ):
        ready: set[int] = set()
        for worker in range(workers):
            crew.send(worker, opening)
        while True:
            for worker in sorted(ready - jobs.keys()):
                trial = ablation.next([job.trial.number for job in jobs.values()])
                if trial is None:
                    break
                config = ablation.config_of(trial)
                if config.machine.threads is None:
                    config = config.with_settings({"machine.threads": threads})
                left = ablation.deadline
                crew.send(
                    worker,
                    {
                        "do": "train",
                        "path": str(study.trial_run_path(trial.number).resolve()),
                        "config": config.to_toml(),
                        "deadline_s": None if left is None else max(0.0, left - time.monotonic()),
                    },
                )
                jobs[worker] = _job_of(ablation, trial)
            if len(ready) == workers and not jobs:
                return
            event = crew.wait(_POLL_S)
            if stop:
                _stop(study, crew, jobs)
                assert stop.signal_number is not None
                raise Interrupted(
                    f"stopped; everything is saved in {study.path}",
                    signal_number=stop.signal_number,
                    fix=f"give the same command again to continue, with --out {study.path}",
                )
            if event is not None:
                _take(ablation, event, jobs, ready, crew, opening)


def _take(
    ablation: _Ablation,
    event: Event,
    jobs: dict[int, _Job],
    ready: set[int],
    crew: Processes,
    opening: Mapping[str, Any],
) -> None:
    """What a worker says: of the data, or of the training that it is at."""
    kind, job = event.message["kind"], jobs.get(event.worker)
    if kind not in ENDINGS:
        return
    if kind in ("died", "stopped"):
        # Another process takes its place; the training goes on from its checkpoint.
        opened = event.worker in ready
        ready.discard(event.worker)
        if job is not None:
            del jobs[event.worker]
            Run.break_lock(ablation.study.trial_run_path(job.trial.number))
        elif not opened:
            raise TrainingError(
                f"a worker cannot open the data: {event.message['message']}",
                fix=f"see {storage.shown(ablation.study.path / 'workers.log')}",
            )
        crew.send(event.worker, opening)
        return
    if job is None:
        if kind == "failed":
            raise error_of(event.message)
        ready.add(event.worker)
        return
    del jobs[event.worker]
    if kind == "failed":
        error = error_of(event.message)
        if isinstance(error, InUseError | StorageError):
            raise error
        ablation.ended(_failed(ablation, job.trial, error.message))
        return
    result = TrialResult(**event.message["result"])
    ablation.ended(_judged(ablation, job.trial, result, job.spent_s))


def _stop(study: Study, crew: Processes, jobs: dict[int, _Job]) -> None:
    """Lets the workers save what they are at, and writes down that it goes on later."""
    for worker in jobs:
        crew.stop(worker)
    waiting, until = set(jobs), time.monotonic() + GRACE_S
    while waiting and time.monotonic() < until:
        event = crew.wait(_POLL_S)
        if event is not None and event.message["kind"] in ENDINGS:
            waiting.discard(event.worker)
    for job in jobs.values():
        _stopped(study, job.trial, job.spent_s)


def _is_over(known: Mapping[int, Trial], level: int, seed: int, seeds: int) -> bool:
    trial = known.get(trial_number(level, seed, seeds))
    return trial is not None and trial.is_over


def _base_s(known: Mapping[int, Trial], seeds: int) -> float:
    base = [known.get(trial_number(0, seed, seeds)) for seed in range(seeds)]
    return max((each.last.seconds for each in base if each and each.last), default=0.0)


def _rest_s(
    study: Study, known: Mapping[int, Trial], seeds: int, base_s: float, workers: int
) -> float:
    """What the trainings take that are not over, one of the base taking `base_s`, with so many
    at a time."""
    costs = [float(level["cost"]) for level in study.asked["levels"]]
    done = [trial.number for trial in known.values() if trial.is_over]
    over_s = base_s * sum(costs[(number - 1) // seeds] for number in done)
    return (forecast_s(costs, seeds, base_s) - over_s) / workers


def _forecast(study: Study, known: Mapping[int, Trial], seeds: int, workers: int) -> str:
    base_s = _base_s(known, seeds)
    left = _num_runs(study) - sum(trial.is_over for trial in known.values())
    minutes = f"{_rest_s(study, known, seeds, base_s, workers) / 60:.2g}"
    there = study.asked["minutes"]
    of = "" if there is None else f"; there are {there:g} for everything"
    return (
        f"a training of the base took {base_s:.1f} s, so the {count(left, 'training')} left take "
        f"about {minutes} minutes{of}"
    )


def _minutes(seconds: float) -> str:
    """To ask for, so with what `fits` wants to spare and the way in and out."""
    return f"{(CAREFUL * seconds + _CLOSING_S) / 60 + 0.2:.2g}"


def _too_short(study: Study, known: Mapping[int, Trial], seeds: int, workers: int) -> UsageError:
    """Not even the base can be trained with every seed."""
    wanted = f"{study.asked['minutes']:g} minutes are too short"
    base_s = _base_s(known, seeds) or _base_s_so_far(study)
    if not base_s:
        return UsageError(
            f"{wanted}: starting and opening the data took them all",
            fix="give more --minutes; without them, all of it is done, however long it takes",
        )
    rest_s = _rest_s(study, known, seeds, base_s, workers)
    left = sum(1 for seed in range(seeds) if not _is_over(known, 0, seed, seeds))
    base = math.ceil(left / workers) * base_s
    return UsageError(
        f"{wanted}: one training takes about {base_s:.0f} s, and every change is held against "
        f"{seeds} of the base, so about {_minutes(base)} minutes are needed before the first one",
        fix=f"the same command with --minutes {_minutes(rest_s)} does everything; fewer --factors "
        "or --epochs need less",
    )


def _base_s_so_far(study: Study) -> float:
    """Of the first training, which was stopped on its way, by how far it came."""
    path = study.trial_run_path(trial_number(0, 0, 1))
    newest = Run.open(path).newest_checkpoint()[0] if Run.exists(path) else None
    seconds = sum(_seconds_noted(study, 1))
    if newest is None or not newest.step:
        return seconds
    plan = plan_of(Run.open(path))
    return seconds * plan.horizon_steps / newest.step


def _worded(level: Mapping[str, Any]) -> str:
    return f"{level['factor']}: {level['level']}" if level["factor"] else str(level["level"])


def _refuse_without_base(known: Mapping[int, Trial], seeds: int) -> None:
    base = [known.get(trial_number(0, seed, seeds)) for seed in range(seeds)]
    if all(each is not None and each.status == "failed" for each in base):
        assert base[0] is not None
        raise TrainingError(
            f"the base failed with every seed: {base[0].reason}",
            fix="train it alone first, and give what works with --config",
        )


def _begun(
    study: Study, before: Trial | None, number: int, level: Mapping[str, Any], seed: int
) -> Trial:
    """The trial as it is about to be trained; one whose process died too often is given up."""
    if before is None:
        trial = Trial(
            number,
            {**level["settings"], "train.seed": study.config.train.seed + seed},
            status="running",
            origin=_worded(level),
        )
    elif before.status == "running" and before.retries >= MOST_RETRIES:
        reason = f"its process died {before.retries + 1} times"
        trial = replace(before, status="failed", reason=reason)
        study.note("failed", trial=number, why=reason)
    elif before.status == "running":
        trial = replace(before, retries=before.retries + 1)
        study.note("continued", trial=number, why="its process had ended")
    else:
        trial = replace(before, status="running")
    study.write_trial(trial)
    return trial


def _stopped(study: Study, trial: Trial, spent_s: float) -> None:
    """As if it had not been touched: it is no death of a process."""
    study.note("stopped", trial=trial.number, seconds_so_far=spent_s)
    study.write_trial(replace(trial, status="waiting"))


def _failed(ablation: _Ablation, trial: Trial, why: str) -> Trial:
    trial = replace(trial, status="failed", reason=why)
    ablation.study.write_trial(trial)
    ablation.study.note("failed", trial=trial.number, why=why)
    ablation.tell(f"failed: {why}")
    return trial


def _judged(ablation: _Ablation, trial: Trial, result: TrialResult, spent_s: float) -> Trial:
    """Writes down what a training was worth, or that it has to go on later."""
    study = ablation.study
    if not result.finished or result.accuracy is None:
        trial = replace(trial, status="waiting", reason="the time was over before it was done")
        study.note("stopped", trial=trial.number, seconds_so_far=spent_s)
        study.write_trial(trial)
        return trial
    rung = Rung(result.step, result.accuracy, result.log_loss, spent_s)
    trial = replace(trial.with_rung(rung), status="finished", reason="")
    study.write_trial(trial)
    study.note("finished", trial=trial.number, accuracy=result.accuracy)
    _forget_weights(study.trial_run_path(trial.number))
    ablation.tell(f"{trial.origin}: {result.accuracy:.2%} of the validation images right")
    return trial


def _seconds_noted(study: Study, number: int) -> list[float]:
    return [
        float(each["seconds_so_far"])
        for each in study.events.read()
        if each.get("trial") == number and "seconds_so_far" in each
    ][-1:]


def _forget_weights(path: Path) -> None:
    """A hundred trainings are a hundred checkpoints, and nobody goes on from them."""
    run = Run.open(path)
    with run.lock():
        steps = run.checkpoint_steps()
        storage.discard_folder([run.checkpoint(step).path for step in steps])


def effects(study: str | Path | Study) -> tuple[Effect, ...]:
    """The effects of an ablation, finished or not, in the order of its plan.

    Raises:
        UsageError: it is no ablation. DamagedError.
    """
    opened = study if isinstance(study, Study) else Study.open(study)
    if opened.kind != "ablate":
        raise UsageError(f"{opened.path} was made by `vidi {opened.kind}`, not by `vidi ablate`")
    return of_study(opened)

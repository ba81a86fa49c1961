"""`tune`: a search over settings, from the request to the trained and judged answer."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, final

from vidi import space as spaces
from vidi import storage
from vidi.config import Config, parse
from vidi.errors import (
    DataError,
    Interrupted,
    MismatchError,
    StorageError,
    TrainingError,
    UsageError,
    VidiError,
)
from vidi.facts import Facts
from vidi.plan import Plan, choose_model, epochs_of, make
from vidi.report import write_study
from vidi.run import Run, data_name
from vidi.signals import Stop, watched
from vidi.space import Space
from vidi.study import Rung, Status, Study, Trial, default_study_path
from vidi.tune.budget import Costs, Division, divide, judging_seconds, retraining_share, slack
from vidi.tune.clock import Clock, kept
from vidi.tune.foreman import MAX_RETRIES, Foreman, Outcome
from vidi.tune.gain import say_gain
from vidi.tune.mirror import Mirror, show_all
from vidi.tune.request import PROGRESSIVE, AnySpace, Wanted, check, space_of
from vidi.tune.rungs import (
    Action,
    Fidelity,
    Promotion,
    Rules,
    best_of,
    costs_of,
    flat_schedule,
    next_action,
    passed_over,
)
from vidi.tune.sampling import OwnSpace, Sampler, Wish, parameters_of, suggest
from vidi.tune.workers import GRACE_S, Crew, Processes, error_of
from vidi.words import count, no_time

T = TypeVar("T")

# A worker that tells nothing for so long hangs. Decoding tells every few seconds.
TIMEOUT_S: Final = 300.0
# So many trials in a row may fail, with none that did not, before the search gives up.
MAX_FAILURES: Final = 5
# The share of a training over which the learning rate falls when there is no time for all of it.
HURRIED_SHARE: Final = 0.05
# Settings whose values are names of something; those of a space are looked up before all else.
NAMES: Final = ("model.name", "train.optimizer", "train.schedule")
# What may be asked for differently when a study is continued.
MAY_CHANGE: Final = ("minutes", "trials", "retrain")
# It is said when trials could be so many times as long as they are.
NOTABLY_LONGER: Final = 1.2
# With fewer validation images than this one of them is more than a point of accuracy.
FEW_TO_JUDGE_BY: Final = 100

# What the answer is made by: a signal that came before is obeyed by doing it.
_OF_THE_ANSWER: Final = ("finish", "conclude", "answers")
_POLL_S: Final = 0.2


def tune(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    space: AnySpace | None = None,
    minutes: float | None = None,
    trials: int | None = None,
    sampler: Sampler = "tpe",
    promotion: Promotion = "asha",
    fidelity: Fidelity = "steps",
    patience: int = 0,
    retrain: bool = False,
    seed: int = 0,
    workers: int = 1,
    ray: str | None = None,
    storage_url: str | None = None,
    timeout_s: float = TIMEOUT_S,
    out: str | Path | None = None,
    show: Callable[[Any], None] | None = None,
    started_at: float | None = None,
) -> Study:
    """Search the settings that classify validation images best, and train the answer.

    The test images are looked at once, at the end, by the answer alone.

    Args:
        data: as for `train`.
        config: what all trials have in common; what it leaves open may be searched.
        settings: single settings on top.
        space: settings to distributions (`vidi.space`), a TOML file with a table [space], or your
            own function `(config, trial) -> config` that asks Optuna's trial. What is worth trying
            on such images, when left out.
        minutes: wall-clock time for everything. trials: how many to begin. One of them, or both.
        sampler: "tpe", "gp", "cmaes", "qmc", "random" or "grid".
        promotion: "asha", "pasha", "halving", "median" or "none"; see `vidi.tune.rungs`.
        fidelity: what is less at the rungs below the end: "steps" alone, or "image_px" (smaller
            images) or "data_share" (a part of the training images) as well.
        patience: end when so many trials in a row were no better than the best; 0: never.
        retrain: train the best once more in the end, as it was, on its validation images as well,
            and judge that on the test images; where the time allows, else it is said why not.
        seed: of the suggestions; `train.seed` is that of the trainings.
        workers: processes that train at the same time.
        ray: the address of a Ray cluster to run them on ("local" starts one here); images and study
            have to lie on a disk that all its machines see. Processes of this machine if left out.
        storage_url: a database server for Optuna's dashboard instead of a file in the study.
        timeout_s: a trial that tells nothing for so long is ended and counts as failed.
        out: the study's directory; one that was stopped is continued. A new one under `studies/`
            when left out.
        show: told every line; nothing is printed here.
        started_at: `time.monotonic()` when the clock of `minutes` began; now, if left out.

    Returns:
        The study. `study.best_path` is its best config, `study.final_path` its answer, a run.

    Raises:
        UsageError, ConfigError, DataError, DamagedError, InUseError, StorageError: see errors.
        TrainingError: every trial failed.
        Interrupted: a signal stopped it. After Ctrl-C the best so far was finished first.
    """
    started_at = time.monotonic() if started_at is None else started_at
    say = show or (lambda _: None)
    config = (config or Config()).with_settings(settings or {})
    wanted = Wanted(
        data=str(data),
        config=config,
        space=space_of(space),
        minutes=minutes,
        trials=trials,
        sampler=sampler,
        promotion=promotion,
        fidelity=fidelity,
        patience=patience,
        retrain=retrain,
        seed=seed,
        timeout_s=timeout_s,
        storage_url=storage_url,
    )
    check(wanted, workers)
    name = data_name(data)
    path = Path(out) if out else default_study_path(Path("studies"), name, datetime.now())
    fresh = not Study.exists(path)
    if fresh:
        study = Study.create(path, kind="tune", config=config, asked=wanted.asked)
    else:
        study = Study.open(path)
    try:
        with study.lock():
            if not fresh:
                study.go_on(config, wanted.asked, kind="tune", may_change=MAY_CHANGE)
                say(f"continuing {study.path}: {len(study.trials())} trials so far")
            budget_s = math.inf if minutes is None else 60 * minutes
            clock = Clock(started_at, budget_s, max(study.spent_s(), _spent(study)))
            with (
                kept(study, clock),
                contextlib.closing(_crew(study, config, workers, ray, say)) as crew,
                watched() as stop,
                contextlib.closing(_Search(wanted, study, crew, stop, say, clock)) as search,
            ):
                search.run()
    except (UsageError, DataError):
        # It cannot be as it was asked, so there is nothing to continue.
        if fresh:
            study.discard_unbegun()
        raise
    return study


def _crew(
    study: Study, config: Config, workers: int, ray: str | None, say: Callable[[Any], None]
) -> Crew:
    if ray is not None:
        # Its package is an extra.
        from vidi.tune.cluster import Actors  # noqa: PLC0415

        return Actors(workers, ray, config.machine, say=say)
    return Processes(workers, study.path / "workers.log")


@dataclass(slots=True)
class _Job:
    """What a worker is busy with."""

    number: int
    rung: int


@final
@dataclass
class _Search:
    """A search while it runs. Everything that must survive it is in the study."""

    wanted: Wanted
    study: Study
    crew: Crew
    stop: Stop
    say: Callable[[Any], None]
    clock: Clock
    rules: Rules = field(default_factory=Rules)
    trials: dict[int, Trial] = field(default_factory=dict)
    jobs: dict[int, _Job] = field(default_factory=dict)
    # The space, the length of a trial and its rungs are known.
    ready: bool = False
    # No new trial is begun any more.
    closing: bool = False
    mirror: Mirror | None = None
    deadline: float | None = None

    def run(self) -> None:
        self.trials = {trial.number: trial for trial in self.study.trials()}
        self._note("began", trials=len(self.trials))
        if self.wanted.minutes is not None:
            self.deadline = self.clock.ends_at - slack(self.clock.budget_s)
        log_path = self.study.path / "workers.log"
        self.foreman = Foreman(self.crew, self._opening, log_path=log_path, say=self.say)
        self.facts = self._opened()
        self.opened_s = time.monotonic() - self.clock.started_at
        self._note("opened the data", seconds=round(self.opened_s, 2))
        self._decide()
        url = self.wanted.storage_url
        self.mirror = self._written(lambda: Mirror(self.study, url, say=self.say))
        self._search()
        self._conclude(hurried=False)
        show_all(self.mirror, self._sorted())
        self._note("ended")
        self._written(lambda: write_study(self.study))

    def close(self) -> None:
        if self.mirror is not None:
            self.mirror.close()

    # What is done before the first trial

    def _opened(self) -> Facts:
        """All workers have the data open; the first one decodes them for all."""
        while self.foreman.facts is None:
            self.foreman.open_one()
            self._wait_for_opening()
        while not self.foreman.all_open:
            self.foreman.open_all()
            self._wait_for_opening()
        facts = Facts.model_validate(self.foreman.facts)
        before = self.study.decided.get("fingerprint", facts.dataset.fingerprint)
        if before != facts.dataset.fingerprint:
            raise MismatchError(
                f"{self.study.path} was begun on other images",
                fix="give a new --out, or the data that the search began with",
            )
        return facts

    def _wait_for_opening(self) -> None:
        if self.stop:
            self._interrupted()
        self.foreman.hear(_POLL_S)

    def _decide(self) -> None:
        """The space, the length of a trial and its rungs; written down for a continuation."""
        wanted, dataset = self.wanted, self.facts.dataset
        self.pretrained = choose_model(wanted.config, self.facts).weights != "none"
        own = wanted.space
        self.space: Space | OwnSpace = (
            own
            if own is not None and own != "full"
            else spaces.default_space(
                wanted.config, dataset, pretrained=self.pretrained, full=own == "full"
            )
        )
        self.config = wanted.config
        default = make(self._config_of({}), self.facts)
        self.retraining = 0.0
        if wanted.retrain:
            self.retraining = retraining_share(
                dataset.num_images("train"), dataset.num_images("validation")
            )
        if not self._has_length():
            self._measure_and_divide(default)
        decided = self.study.decided
        if decided.get("minutes") != wanted.minutes:
            self._say_what_is_kept(default)
        self.config = self.config.with_settings({"train.epochs": decided["epochs"]})
        self.rules = Rules(
            shares=tuple(decided["shares"]),
            promotion=wanted.promotion,
            num_trials=wanted.trials,
            patience=wanted.patience,
            # What comes first; see `_suggested`.
            default=1,
        )
        num_judged = dataset.num_images("validation") + dataset.num_images("test")
        self.num_validation = dataset.num_images("validation")
        self.num_test = dataset.num_images("test")
        if wanted.retrain and not self.num_test:
            raise UsageError(
                "without validation and test images nothing would be left to judge a retrained "
                "answer by",
                fix="hold test images out (data.test_fraction), or search without --retrain",
            )
        if self.num_validation < FEW_TO_JUDGE_BY:
            self.say(
                f"only {count(self.num_validation, 'validation image')} to choose by: one of them "
                f"is {100 / self.num_validation:.1f} points of accuracy, so much of what looks "
                "better will be luck; set data.validation_fraction or data.folds higher"
            )
        # What a trial has cost at its rungs: less than its steps where they are cheaper.
        costs = costs_of(wanted.fidelity, self.rules.shares)
        rate = dataset.num_images("train") / decided["seconds_per_epoch"]
        self.comparing_s = judging_seconds(self.num_validation, rate)
        self.costs = Costs(
            shares=tuple(cost / costs[-1] for cost in costs),
            full_s=float(decided["seconds_per_epoch"]) * decided["epochs"] * costs[-1],
            judging_s=judging_seconds(num_judged, rate) + self.comparing_s,
            retraining=self.retraining,
        )
        self.starts: list[dict[str, Any]] = [{}]
        if wanted.space in (None, "full") and isinstance(self.space, Space):
            self.starts = spaces.portfolio(self.space, pretrained=self.pretrained)
        self.wish = Wish(wanted.sampler, wanted.seed, wanted.trials)
        self.ready = True

    def _has_length(self) -> bool:
        """Whether it is decided how long a trial is, and has to stay so.

        Trials that were judged by it have to be comparable. Those of a time that was too short for
        any are done anew, when there is more.
        """
        decided, asked = self.study.decided, self.wanted
        if "epochs" not in decided:
            return False
        same = asked.config.train.epochs is not None or decided.get("minutes") == asked.minutes
        if same or any(trial.rungs for trial in self.trials.values()):
            return True
        if self.trials:
            self.say("no trial was judged in the time that there was: all are begun anew")
        for number in self.trials:
            self.study.discard_trial(number)
        self.trials.clear()
        return False

    def _say_what_is_kept(self, default: Plan) -> None:
        decided, budget_s = self.study.decided, self.clock.budget_s
        if math.isfinite(budget_s):
            budget_s -= slack(budget_s) + self.opened_s
        longer = self._divided(default, float(decided["seconds_per_epoch"]), budget_s).epochs
        if longer > NOTABLY_LONGER * decided["epochs"]:
            self.say(
                f"a trial stays {epochs_of(decided['epochs'])} long, so that all can be compared; "
                f"a search that begins with such a time gives it {epochs_of(longer)}: for that, "
                "give another --out"
            )

    def _divided(self, default: Plan, seconds_per_epoch: float, budget_s: float) -> Division:
        return divide(
            budget_s=budget_s if math.isfinite(budget_s) else None,
            seconds_per_epoch=seconds_per_epoch,
            steps_per_epoch=default.steps_per_epoch,
            default_epochs=default.num_epochs,
            asked_epochs=self.wanted.config.train.epochs,
            retraining=self.retraining,
        )

    def _measure_and_divide(self, default: Plan) -> None:
        config, began_at = self._config_of({}, for_a_worker=True), time.monotonic()
        answer = self._answer({"do": "time", "config": config.to_toml()})
        self._note("timed the first steps", seconds=round(time.monotonic() - began_at, 2))
        seconds_per_epoch = float(answer["seconds_per_step"]) * default.steps_per_epoch
        left_s = math.inf if self.deadline is None else self.deadline - time.monotonic()
        division = self._divided(default, seconds_per_epoch, left_s)
        self._written(
            lambda: self.study.decide(
                fingerprint=self.facts.dataset.fingerprint,
                minutes=self.wanted.minutes,
                epochs=division.epochs,
                shares=list(division.shares),
                seconds_per_epoch=seconds_per_epoch,
                why=division.why,
            )
        )
        rungs = ", ".join(f"{share:.0%}" for share in division.shares)
        self.say(f"a trial: {division.why}; looked at after {rungs}")

    # The search

    def _search(self) -> None:
        while True:
            if self.stop:
                self._interrupted()
            self.foreman.open_all()
            over = self._hand_out()
            if over and not self.jobs:
                return
            outcome = self.foreman.hear(_POLL_S)
            if outcome is not None:
                self._take(outcome)

    def _hand_out(self) -> bool:
        """Gives every free worker something to do. True: there is nothing to do any more."""
        for worker in self.foreman.free:
            action = self._next()
            if action.kind in ("wait", "stop"):
                return action.kind == "stop"
            self._start(worker, action)
        return False

    def _next(self) -> Action:
        trials, busy = self._sorted(), {job.number for job in self.jobs.values()}
        if not self.closing:
            first = 0 if self.wanted.promotion != "none" else len(self.rules.shares) - 1
            action = next_action(
                trials,
                self.rules,
                busy=busy,
                may_begin=self._affordable(None, first),
                num_validation=self.num_validation,
            )
            if action.kind not in ("begin", "go_on"):
                return action
            trial = self.trials.get(action.number or 0)
            assert action.rung is not None
            if action.kind == "begin" or self._affordable(trial, action.rung):
                return action
            self.closing = True
            self._note("closing", why="what is left of the time is for the answer")
        if busy:
            return Action("wait")
        best = best_of(trials, self.rules)
        last = len(self.rules.shares) - 1
        if best is not None and best.status != "finished" and self._affordable(best, last):
            return Action("go_on", best.number, last, "the best so far, to its end")
        return Action("stop")

    def _affordable(self, trial: Trial | None, rung: int) -> bool:
        """Whether there is time for that, and for making an answer of the best afterwards."""
        if self.deadline is None:
            return True
        trials = self._sorted()
        needed_s = self.costs.cost(trials, trial, rung)
        best = best_of(trials, self.rules)
        if rung == len(self.rules.shares) - 1:
            needed_s += self.costs.answer_s(trials, trial)
        elif best is None:
            # The first of all: something has to be begun, or there is no answer.
            return not self.trials or time.monotonic() + needed_s < self.deadline
        else:
            needed_s += self.costs.to_the_end(trials, best)
        return time.monotonic() + needed_s <= self.deadline

    def _start(self, worker: int, action: Action) -> None:
        assert action.number is not None
        assert action.rung is not None
        trial = self.trials.get(action.number)
        if trial is None:
            trial = self._suggested(action.number)
            if trial is None:
                # A grid has nothing more.
                self.rules = replace(self.rules, num_trials=len(self.trials))
                return
        why = action.why or trial.origin
        self._keep(replace(trial, status="running", reason=why))
        self._note("started", trial=trial.number, rung=action.rung, why=why)
        left_s = None
        if self.deadline is not None:
            left_s = max(0.0, self.deadline - self.costs.judging_s - time.monotonic())
        message = {
            "do": "advance",
            "path": str(self.study.trial_run_path(trial.number).resolve()),
            "config": self._config_of(trial.settings, for_a_worker=True).to_toml(),
            "rung": action.rung,
            **self._of_the_rungs,
            "deadline_s": left_s,
        }
        self.jobs[worker] = _Job(trial.number, action.rung)
        self.foreman.give(worker, message, timeout_s=self.wanted.timeout_s)

    def _suggested(self, number: int) -> Trial | None:
        if number <= len(self.starts):
            settings = self.starts[number - 1]
            origin = "a start that often does well" if settings else "the default"
            config = self._config_of(settings)
            parameters = parameters_of(self.space, config, self.facts, self.wish.sampler)
            return Trial(number, _as_json(settings), origin=origin, parameters=_as_json(parameters))
        found = suggest(self.space, self.config, self.wish, self._sorted(), number)
        if found is None:
            return None
        return Trial(
            number,
            _as_json(found.settings),
            origin=f"suggested by {self.wish.sampler}",
            parameters=_as_json(found.parameters),
        )

    def _take(self, outcome: Outcome) -> None:
        job = self.jobs.pop(outcome.worker, None)
        if job is None:
            # A signal came, and nobody waited for it any more.
            return
        message, trial = outcome.message, self.trials[job.number]
        match message["kind"]:
            case "done":
                self._judged(trial, job, message["result"])
            case "failed":
                self._failed(trial, message)
            case "died":
                self._died(trial, str(message["message"]), hung=outcome.hung)
            case _:
                # Somebody sent it a signal; it has saved.
                pass

    def _judged(self, trial: Trial, job: _Job, result: Mapping[str, Any]) -> None:
        before = best_of(self._sorted(), self.rules)
        seconds = float(result["seconds"]) + (trial.last.seconds if trial.last else 0.0)
        if result["accuracy"] is None:
            self.closing = True
            self._keep(replace(trial, status="paused", reason=f"no time after {result['step']}"))
            return
        rung = Rung(int(result["step"]), result["accuracy"], result["log_loss"], seconds)
        reached = len(self.rules.shares) - 1 if result["finished"] else job.rung
        # One that went straight through was not looked at on the way: all rungs are this one then.
        missing = (rung,) * (reached + 1 - len(trial.rungs))
        rungs = (*trial.rungs[: reached + 1], *missing)
        status: Status = "finished" if result["finished"] else "paused"
        share = self.rules.shares[reached]
        told = replace(trial, rungs=rungs, status=status, reason=f"judged at {share:.0%}")
        self._keep(told)
        self._note(
            "judged", trial=trial.number, step=rung.step, accuracy=rung.accuracy, seconds=seconds
        )
        best = best_of(self._sorted(), self.rules)
        assert best is not None
        assert best.last is not None
        if before is None or best.number != before.number:
            self._written(lambda: self.study.write_best(self._recipe_of(best)))
        words = ", ".join(f"{n.partition('.')[2]} {_short(v)}" for n, v in trial.settings.items())
        elapsed_s = time.monotonic() - self.clock.started_at
        self.say(
            f"{elapsed_s:5.0f} s  trial {trial.number} ({trial.origin}"
            f"{': ' + words if words else ''}) at {share:.0%}: {rung.accuracy:.2%}"
            f"  |  best: {best.last.accuracy:.2%}, trial {best.number} at "
            f"{self.rules.shares[len(best.rungs) - 1]:.0%}"
        )

    def _failed(self, trial: Trial, message: Mapping[str, Any]) -> None:
        if message["error"] == "StorageError":
            self._make_room(str(message["message"]), str(message["fix"]))
            return
        if message["error"] == "InUseError":
            # A worker of a search that was killed, on its way out.
            time.sleep(_POLL_S)
            self._retry(trial, str(message["message"]))
            return
        if message["error"] == "MismatchError":
            raise MismatchError(str(message["message"]), fix=str(message["fix"]))
        self._fail(trial, str(message["message"]))

    def _died(self, trial: Trial, why: str, *, hung: bool) -> None:
        # Nobody but us could work in it, and on another machine nobody else could know.
        Run.break_lock(self.study.trial_run_path(trial.number))
        if hung:
            self._fail(trial, f"it told nothing for {self.wanted.timeout_s:.0f} s and was ended")
        else:
            self._retry(trial, why)

    def _retry(self, trial: Trial, why: str) -> None:
        if trial.retries >= MAX_RETRIES:
            self._fail(trial, f"{why}, {MAX_RETRIES + 1} times")
            return
        self.say(f"trial {trial.number}: {why}; it goes on from its checkpoint")
        self._note("retried", trial=trial.number, why=why)
        self._keep(replace(trial, retries=trial.retries + 1))

    def _fail(self, trial: Trial, why: str) -> None:
        self.say(f"trial {trial.number} failed: {why}")
        self._note("failed", trial=trial.number, why=why)
        self._keep(replace(trial, status="failed", reason=why))
        trials = self._sorted()
        limit = min(MAX_FAILURES, self.rules.num_trials or MAX_FAILURES)
        if len(trials) >= limit and all(one.status == "failed" for one in trials):
            reasons = "".join(f"\n  trial {one.number}: {one.reason}" for one in trials[:5])
            raise TrainingError(
                f"all {len(trials)} trials failed:{reasons}",
                fix="try one by itself: vidi train DATA --config "
                f"{storage.shown(self.study.trial_run_path(1) / 'config.toml')}",
            )

    def _make_room(self, why: str, fix: str) -> None:
        """A full disk: the checkpoints of the oldest trial that was passed over go.

        Raises StorageError, with why it is needed and what the user can do, when there is none.
        """
        for trial in passed_over(self._sorted(), self.rules):
            # One that cannot be read makes no room, and the next one may.
            with contextlib.suppress(VidiError):
                run = self.study.trial_run(trial.number)
                if run.checkpoint_steps():
                    run.let_go()
                    self.say(f"{why}: the checkpoints of trial {trial.number} were let go")
                    self.study.note("let go", trial=trial.number, why=why)
                    return
        raise StorageError(why, fix=fix or "free some space; then the same command continues")

    # The answer

    def _conclude(self, *, hurried: bool) -> None:
        """Trains a copy of the best trial to its end, or as far as there is time, and judges it."""
        best = best_of(self._sorted(), self.rules)
        if best is None:
            if hurried:
                return
            raise self._too_short()
        if self._stands(best):
            self.say(f"the answer is still trial {best.number}, and was judged before")
            return
        run = self.study.trial_run(best.number)
        newest, _ = run.newest_checkpoint()
        if newest is None:
            raise TrainingError(
                f"trial {best.number} has no checkpoint any more", fix="run the search again"
            )
        horizon = json.loads(run.text("plan"))["horizon_steps"]
        last_step, left_s = None, None
        if best.status != "finished":
            assert best.last is not None
            if hurried:
                last_step = min(horizon, newest.step + max(1, round(HURRIED_SHARE * horizon)))
            elif self.deadline is not None:
                left_s = max(0.0, self.deadline - self.costs.judging_s - time.monotonic())
                steps = int(0.95 * left_s * best.last.step / max(1e-3, best.last.seconds))
                last_step = min(horizon, newest.step + max(1, steps))
        began_at = time.monotonic()
        accuracy = best.last.accuracy if best.last else 0.0
        then = "judging it"
        if last_step is not None:
            then = f"its learning rate falls to zero at step {last_step}, then it is judged"
        self.say(f"the answer: trial {best.number}, {accuracy:.2%} on validation; {then}")
        if self.study.final_path.exists():
            storage.discard_folder([self.study.final_path])
        retrains = self.wanted.retrain and self._has_time_to_retrain(best, hurried=hurried)
        config = self._config_of(best.settings, for_a_worker=True).to_toml()
        message = {
            "do": "finish",
            "source": str(run.path.resolve()),
            "path": str(self.study.final_path.resolve()),
            "config": config,
            **self._of_the_rungs,
            "last_step": last_step,
            "deadline_s": left_s,
            # The test images are looked at by the answer alone.
            "splits": ["validation"] if retrains else ["validation", "test"],
        }
        looks = sum(event["event"] == "answered" for event in self.study.events.read())
        if looks and self.num_test:
            self.say(
                f"look number {looks + 1} at the test images, because the search went on after an "
                "answer: choose between the answers by their validation"
            )
        self._note("concluding", trial=best.number, last_step=last_step)
        told = self._answer(message)["result"]
        self._note("answered", trial=best.number, **_part(told, "step", "accuracy"))
        self._compare(best)
        about = self._retrained(best, config) if retrains else ()
        self._written(lambda: self.study.write_best(self._recipe_of(best), about=about))
        self._written(lambda: self.study.decide(answer=best.number))
        took_s = round(time.monotonic() - began_at, 2)
        self._note("made the answer", seconds=took_s)

    def _compare(self, best: Trial) -> None:
        """Say what the answer gained over the default, image by image, where there is time."""
        first = self.trials.get(1)
        left_s = math.inf if self.deadline is None else self.deadline - time.monotonic()
        if first is None or first.status != "finished" or best.number == 1:
            return
        if left_s < self.comparing_s:
            return
        run = self.study.trial_run(1)
        config = self._config_of(first.settings, for_a_worker=True).to_toml()
        message = {"path": str(run.path.resolve()), "config": config, **self._of_the_rungs}
        try:
            self._answer({"do": "answers", **message})
            runs = run, Run.open(self.study.final_path)
            words = f"trial {best.number} against {first.origin}"
            say_gain(self.study, best.number, runs, words, self.say)
        except VidiError as error:
            self.say(f"not compared with the default: {error.message}")

    def _stands(self, best: Trial) -> bool:
        """Whether this trial is the answer of an earlier call, whole, and as it is asked for now;
        one that was trained again on the validation images too is not taken back."""
        path = self.study.final_path
        if best.status != "finished" or self.study.decided.get("answer") != best.number:
            return False
        if not Run.exists(path) or not (run := Run.open(path)).report_path.exists():
            return False
        return run.has_text("replaces") or not self.wanted.retrain

    def _has_time_to_retrain(self, best: Trial, *, hurried: bool) -> bool:
        if hurried:
            why = "it was stopped"
        elif self.deadline is None:
            return True
        else:
            # The data are opened once more, with other splits.
            needed_s = self.opened_s + self.costs.to_the_end(self._sorted(), best)
            left_s = self.deadline - time.monotonic()
            if needed_s <= left_s:
                return True
            why = no_time(needed_s, left_s)
        self._not_retrained(why)
        return False

    def _not_retrained(self, why: str) -> None:
        self.say(f"not trained again on the validation images too: {why}")
        self._note("not retrained", why=why)

    def _retrained(self, best: Trial, config: str) -> tuple[str, ...]:
        """The answer learns from the validation images as well; what is to be known of that."""
        name = f"trial {best.number}"
        self.say(f"training {name} again, on the validation images too")
        self._note("retraining", trial=best.number)
        left_s = None
        if self.deadline is not None:
            left_s = max(0.0, self.deadline - self.costs.judging_s - time.monotonic())
        paths = self.study.final_path.resolve(), self.study.retrained_path.resolve()
        message = {"config": config, "name": name, "source": str(paths[0]), "path": str(paths[1])}
        message |= self._of_the_rungs
        try:
            self._answer({"do": "retrain", "deadline_s": left_s, **message})
        except (TrainingError, StorageError, DataError) as error:
            self._not_retrained(error.message)
            self._answer({**message, "do": "conclude", "path": str(paths[0])})
            return ()
        storage.discard_folder([self.study.final_path])
        self.study.retrained_path.rename(self.study.final_path)
        self._note("retrained", trial=best.number)
        return (
            "The answer learnt from the validation images as well: vidi train DATA --config "
            f"{self.study.best_path.name} --set data.learn_validation=true",
        )

    def _too_short(self) -> VidiError:
        """No trial came far enough to be judged."""
        # What was spent counts when the search is continued, and the data are opened again.
        needed_s = self.clock.spent_s + self.opened_s + self.costs.judging_s
        needed_s += max(10.0, 5 * float(self.study.decided["seconds_per_epoch"]))
        failed = [one.reason for one in self._sorted() if one.status == "failed"]
        if failed:
            return TrainingError(f"no trial was judged: {failed[0]}", fix="see its run in trials/")
        return UsageError(
            f"{60 * (self.wanted.minutes or 0):.0f} s are too short: no trial could be judged in "
            f"them, and opening the data alone took {self.opened_s:.0f} s",
            fix=f"give --minutes {needed_s / 60 + 0.05:.1f} or more",
        )

    def _interrupted(self) -> NoReturn:
        """Saves what is being worked on; after Ctrl-C the best so far becomes the answer."""
        number = self.stop.signal_number
        assert number is not None
        self.say("stopping: saving what is being trained")
        for worker in self.jobs:
            self.crew.stop(worker)
        until = time.monotonic() + GRACE_S
        while self.jobs and time.monotonic() < until:
            outcome = self.foreman.hear(_POLL_S)
            job = None if outcome is None else self.jobs.pop(outcome.worker, None)
            if outcome is not None and job is not None and outcome.message["kind"] == "done":
                self._judged(self.trials[job.number], job, outcome.message["result"])
        for worker in self.jobs:
            self.crew.kill(worker)
        self.jobs.clear()
        if number == signal.SIGINT and self.ready:
            self._conclude(hurried=True)
        self._note("interrupted", signal=number)
        self._written(lambda: write_study(self.study))
        raise Interrupted(
            f"stopped after {count(len(self.trials), 'trial')}; everything is saved in "
            f"{self.study.path}",
            signal_number=number,
            fix=f"give the same command again to continue, with --out {self.study.path}",
        )

    # Inside

    @property
    def _opening(self) -> dict[str, Any]:
        wanted = self.wanted
        # Others may work in another folder.
        data = str(Path(wanted.data).resolve()) if Path(wanted.data).exists() else wanted.data
        axes = wanted.space if isinstance(wanted.space, Space) else ()
        tried = [
            [axis.name, value]
            for axis in axes
            if axis.name in NAMES
            for value in axis.distribution.values
        ]
        return {"do": "open", "data": data, "config": wanted.config.to_toml(), "tried": tried}

    def _answer(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Gives somebody something to do and waits for it. Others may go on meanwhile."""
        what, deaths = message["do"], 0
        worker: int | None = None
        stopping = False
        while True:
            if worker is None:
                self.foreman.open_one()
                worker = next(iter(self.foreman.free), None)
                if worker is not None:
                    self.foreman.give(worker, message)
            outcome = self.foreman.hear(_POLL_S)
            if self.stop and what == "retrain" and worker is not None:
                # It is at work on what the answer will not need now.
                if not stopping:
                    self.crew.stop(worker)
                stopping = True
            elif self.stop and what not in _OF_THE_ANSWER:
                self._interrupted()
            if outcome is None:
                continue
            if outcome.worker != worker:
                self._take(outcome)
                continue
            told = outcome.message
            match told["kind"]:
                case "done":
                    return told
                case "failed" if told["error"] == "StorageError" and what in _OF_THE_ANSWER:
                    self._make_room(str(told["message"]), str(told["fix"]))
                case "failed":
                    raise error_of(told)
                case _ if stopping:
                    self._interrupted()
                case _:
                    deaths += 1
                    if deaths > MAX_RETRIES:
                        raise TrainingError(
                            f"a worker cannot {what}: {told['message']}",
                            fix=f"see {storage.shown(self.study.path / 'workers.log')}",
                        )
            # Once more, from its beginning.
            worker = None
            if what == "finish" and self.study.final_path.exists():
                storage.discard_folder([self.study.final_path])

    def _config_of(self, settings: Mapping[str, Any], *, for_a_worker: bool = False) -> Config:
        """The config of a trial with these settings."""
        config = self.config.with_settings(settings)
        config = config.with_settings(flat_schedule(config))
        if for_a_worker and self.crew.threads is not None and config.machine.threads is None:
            config = config.with_settings({"machine.threads": self.crew.threads})
        return config

    @property
    def _of_the_rungs(self) -> dict[str, Any]:
        """What a worker has to know of them."""
        return {"shares": list(self.rules.shares), "fidelity": self.wanted.fidelity}

    def _recipe_of(self, trial: Trial) -> Config:
        """The config that trains a trial again, with what made its rungs cheaper."""
        config = self._config_of(trial.settings)
        if self.wanted.fidelity == "steps":
            return config
        asked = parse(self.study.trial_run(trial.number).text("config"), origin="a trial").train
        return config.with_settings(
            {f"train.{name}": getattr(asked, name) for name in PROGRESSIVE.values()}
        )

    def _written(self, write: Callable[[], T]) -> T:
        """What writes to the study, done; on a full disk, after others have made room for it."""
        while True:
            try:
                return write()
            except StorageError as error:
                self._make_room(error.message, error.fix)

    def _note(self, event: str, **about: object) -> None:
        self._written(lambda: self.study.note(event, **about))

    def _keep(self, trial: Trial) -> None:
        """Writes a trial down."""
        self.trials[trial.number] = trial
        self._written(lambda: self.study.write_trial(trial))
        if self.mirror is not None:
            self.mirror.show(trial)

    def _sorted(self) -> list[Trial]:
        return [self.trials[number] for number in sorted(self.trials)]


def _spent(study: Study) -> float:
    """Seconds that earlier calls took, by the log of events."""
    spent_s = began_at = last_at = 0.0
    for event in study.events.read():
        if event["event"] == "began":
            spent_s += last_at - began_at
            began_at = event["at"]
        last_at = event["at"]
    return max(0.0, spent_s + last_at - began_at)


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found


def _part(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

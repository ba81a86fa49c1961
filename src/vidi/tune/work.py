"""What the parts of a fit share: its study, its clock, its network, and what the user is told."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from vidi.config import Config
from vidi.errors import Interrupted, VidiError
from vidi.facts import SPLITS, Split
from vidi.metrics import Evaluation
from vidi.model import Classifier
from vidi.own_data import plan_of
from vidi.plan import Plan
from vidi.plan.budget import Counts, ending_s, export_s
from vidi.report.importance import LEAST_TRIALS
from vidi.restore import load_best, trained_model
from vidi.run import Run
from vidi.signals import Stop
from vidi.study import Rung, Study, Trial
from vidi.train.deadline import Deadline
from vidi.train.features import quick_copy
from vidi.train.head import begun_job
from vidi.train.loop import Progress, save
from vidi.train.prepare import Extensions, Prepared, build_job, build_state
from vidi.train.state import Best
from vidi.train.training import decisions, drive, judge_run
from vidi.train.trial import Shared, reopened_trial
from vidi.tune.clock import Clock

# Runs that end by the clock end so long before the time is over, besides what is measured.
SPARE_S: Final = 0.5
# Images a second of a forward pass, where there was no time to measure.
UNMEASURED: Final = 1_000.0
# Shorter trainings are validated once, at their end.
SELDOM_BELOW_EPOCHS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Doing:
    """What a fit does now and why, and what it has by now.

    accuracy: of the best answer so far on images that were held out to choose by.
    """

    what: str
    why: str
    elapsed_s: float
    budget_s: float
    accuracy: float | None


Show = Callable[["str | Progress | Doing"], None]


@final
@dataclass
class Work:
    """One call of `fit`: what it was given and what it has by now.

    export: what the answer is exported to; None for nothing. retrain: whether it is trained again
    on its validation images too. bundle_s: what an export takes, by the network, once that is
    known. retraining_s: kept for training again.
    """

    study: Study
    data: str | Path
    config: Config
    extensions: Extensions
    clock: Clock
    show: Show
    stop: Stop
    export: str | None
    retrain: bool = False
    bundle_s: float = 0.0
    retraining_s: float = 0.0
    has_answer: bool = False
    is_over: bool = False

    # ---- What the user is told -------------------------------------------------------------------

    def tell(self, what: str | Progress) -> None:
        if isinstance(what, Progress) and what.best is not None:
            self.has_answer = True
        self.show(what)

    def say(self, line: str) -> None:
        """While data are opened and steps are measured, where a signal can be obeyed at once."""
        self.show(line)
        self.check()

    def doing(self, what: str, why: str) -> None:
        best = self.best()
        accuracy = None if best is None or best.last is None else best.last.accuracy
        clock = self.clock
        self.show(Doing(what, why, clock.spent_s, clock.budget_s, accuracy))
        self.study.note("doing", what=what, why=why, spent_s=round(clock.spent_s, 2))

    def said(self, number: int) -> str:
        """What a signal brings, at the moment when it comes."""
        if self.is_over:
            what = "all is done already"
        elif number != signal.SIGINT:
            what = "stopping: saving first, the same command goes on"
        elif self.has_answer:
            exported = " and exported" if self.export is not None else ""
            what = f"stopping: the best so far is judged{exported}"
        else:
            what = "stopping: there is no answer yet"
        return f"{what} (again: stop at once)"

    def check(self) -> None:
        """Raises Interrupted when a signal has come and there is nothing to finish for it: no
        answer yet, or the signal was none of Ctrl-C."""
        number = self.stop.signal_number
        if number is not None and (number != signal.SIGINT or not self.has_answer):
            raise self.interrupted()

    def interrupted(self) -> Interrupted:
        """In one line: what there is, and how to go on."""
        number = self.stop.signal_number
        assert number is not None
        what = "everything is saved" if self.has_answer else "there was no answer yet"
        return Interrupted(
            f"stopped, {what}; the same command goes on, with --out {self.study.path}",
            signal_number=number,
        )

    # ---- What is known of the trials -------------------------------------------------------------

    def best(self) -> Trial | None:
        """The trial that did best on the images held out to choose by; one that is not at its end
        only where none is."""
        judged = [trial for trial in self.study.trials() if trial.last is not None]
        finished = [trial for trial in judged if trial.status == "finished"]
        return max(finished or judged, key=rank, default=None)

    def trial(self, number: int) -> Trial | None:
        return next((one for one in self.study.trials() if one.number == number), None)

    def write(self, trial: Trial) -> None:
        self.study.write_trial(trial)
        if trial.last is not None:
            self.has_answer = True

    def knows(self, classifier: Classifier) -> None:
        """How long an export will take follows from the network."""
        layers = sum(
            any(True for _ in part.parameters(recurse=False)) for part in classifier.modules()
        )
        self.bundle_s = export_s(self.export, layers)

    def ending_s(self, counts: Counts, forward: float, *, judged: bool = True) -> float:
        ending = ending_s(counts, forward, bundle_s=self.bundle_s, judged=judged)
        return ending + self.retraining_s + self.page_s + SPARE_S

    @property
    def page_s(self) -> float:
        """Writing the page of the study, on two cores: what takes long is telling which of the
        settings mattered, with 120 trials of ten settings 2.0 s, with nine trials nothing."""
        return 2.0 if len(self.study.trials()) >= LEAST_TRIALS else 0.1

    # ---- Training and judging --------------------------------------------------------------------

    def train(
        self,
        shared: Shared,
        trial: Trial,
        *,
        forward: float | None = None,
        start_from: int | None = None,
        ends_at: float | None = None,
    ) -> None:
        """Run a trial to its end, or to where the time is over, its learning rate annealed.

        forward: images a second that are judged; as the plan was measured, if left out.
        start_from: the trial whose weights it starts from. ends_at: `time.monotonic()` of its last
        update; so that everything else fits after it, if left out.

        Raises Interrupted when a signal came and this trial has to go on later.
        """
        config = self.config.with_settings(trial.settings)
        path = self.study.trial_run_path(trial.number)
        self.study.note("started", trial=trial.number, spent_s=round(self.clock.spent_s, 2))
        self.write(replace(trial, status="running"))
        if Run.exists(path):
            run = Run.open(path)
            with run.lock():
                prepared, state, checkpoint = reopened_trial(run, shared, config, self.tell)
                run.rewind(checkpoint)
        else:
            prepared = _seldom_validated(shared.prepared(config))
            self.check()
            run = Run.create(path, texts=decisions(self.data, config, prepared))
            state = build_state(prepared.plan, prepared.model)
        plan = prepared.plan
        self.knows(prepared.model)
        if start_from is None:
            job = begun_job(prepared, state, config, self.extensions, say=self.tell)
        else:
            job = build_job(plan, config, prepared.dataset, prepared.store, self.extensions)
            if state.step == 0:
                load_best(self.study.trial_run(start_from), prepared.model)
                if state.average is not None:
                    state.average.reset(prepared.model)
        if forward is None:
            measured = prepared.facts.measured
            forward = (measured and measured.judging_images_per_second) or UNMEASURED
        if ends_at is None:
            ends_at = self.clock.ends_at - self.ending_s(counts_of(shared), forward)
        reason = trial.reason
        with run.lock():
            try:
                drive(run, plan, job, state, self.tell, Deadline(ends_at))
            except Interrupted:
                self.check()
                if state.best is None:
                    # There is an answer, and this is not going to be one.
                    self.write(replace(trial, status="failed", reason="stopped by a signal"))
                    return
                reason = "stopped by a signal"
            except VidiError as error:
                self.write(replace(trial, status="failed", reason=error.message))
                self.tell(f"this training failed, and the rest goes on: {error.message}")
                return
        done = replace(trial, status="finished", reason=reason)
        if state.best is not None:
            best, seconds = state.best, self._seconds_of(trial)
            done = done.with_rung(Rung(best.step, best.accuracy, best.log_loss, seconds))
        self.write(done)

    def _seconds_of(self, trial: Trial) -> float:
        """Since it was started first; the clock stands still while nothing runs."""
        started_s = (
            float(event["spent_s"])
            for event in self.study.events.read()
            if event["event"] == "started" and event["trial"] == trial.number
        )
        return self.clock.spent_s - min(started_s)

    def judged(self, trial: Trial, run: Run, shared: Shared) -> Trial:
        """The trial with what its weights are worth on the validation images, in float32."""
        config = self.config.with_settings(trial.settings)
        with run.lock():
            self.judge(run, config, shared, ("validation",))
        evaluation = Evaluation.model_validate_json(run.read_evaluation("validation"))
        assert trial.last is not None
        rung = replace(trial.last, accuracy=evaluation.accuracy, log_loss=evaluation.log_loss)
        trial = trial.with_rung(rung)
        self.write(trial)
        return trial

    def judge(self, run: Run, config: Config, shared: Shared, splits: Sequence[Split]) -> None:
        plan = plan_of(run)
        classifier, _ = trained_model(run, plan, self.extensions.model)
        looked = shared.looked(config)
        quick = quick_copy(plan, classifier)
        prepared = Prepared(looked.dataset, looked.store, looked.facts, plan, quick, shared.audit)
        present = [split for split in splits if len(looked.dataset.indices(split))]
        judge_run(run, plan, config, prepared, present)

    def kept_model(
        self, number: int, texts: Mapping[str, str], plan: Plan, model: Classifier, best: Best
    ) -> Run:
        """Weights that were not trained step by step, as the run of a trial."""
        path = self.study.trial_run_path(number)
        shutil.rmtree(path, ignore_errors=True)
        run = Run.create(path, texts=texts)
        with run.lock():
            state = build_state(plan, model)
            state.best = best
            state.step = state.evaluated_step = best.step
            save(state, run)
        return run


def rank(trial: Trial) -> tuple[float, float]:
    """More accurate is better; of equals, the one that knows better how sure to be."""
    last = trial.last
    assert last is not None
    return last.accuracy, -(last.log_loss if last.log_loss is not None else float("inf"))


def counts_of(shared: Shared) -> Counts:
    return Counts(*(shared.facts.dataset.num_images(split) for split in SPLITS))


def _seldom_validated(prepared: Prepared) -> Prepared:
    """A plan that validates no more often than it has time for."""
    plan = prepared.plan
    if plan.num_epochs < SELDOM_BELOW_EPOCHS:
        plan = plan.model_copy(update={"evaluate_every_steps": plan.horizon_steps})
    return replace(prepared, plan=plan)

"""`fit`: everything under one wall-clock budget, from the images to the answer that is shipped."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from vidi import comparing
from vidi.config import Config, load
from vidi.data import cache_folder
from vidi.errors import ConfigError, Interrupted, UsageError, VidiError, nearest
from vidi.export import export as export_run
from vidi.facts import SPLITS, Split
from vidi.metrics import Evaluation, Predictions, evaluate
from vidi.model import set_head
from vidi.plan import Plan, choose_model
from vidi.plan.budget import (
    EXPORT_S,
    JUDGING_COST,
    Counts,
    Features,
    Tuning,
    ending_s,
    features_rule,
    needed_s,
    tuning_rule,
)
from vidi.report import write
from vidi.restore import build_model, load_best
from vidi.run import Run
from vidi.signals import Stop, watched
from vidi.step import StepSettings
from vidi.study import Rung, Study, Trial, default_study_path
from vidi.train.bank import Head, candidates_of, choose_head
from vidi.train.deadline import Deadline
from vidi.train.features import features, measured_rate, quick_copy
from vidi.train.head import begun_job, flips
from vidi.train.loop import Progress, save
from vidi.train.prepare import Extensions, Prepared, build_job, build_state
from vidi.train.state import Best
from vidi.train.training import data_name, decisions, drive, judge_run
from vidi.train.trial import Shared, copy_run, reopened_trial

# From-scratch runs end so long before the time is over, besides what the bundle takes.
SPARE_S: Final = 1.0


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


def fit(
    data: str | Path,
    config: Config | None = None,
    *,
    minutes: float,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    to: str = "best",
    model: Callable[..., Any] | None = None,
    show: Show | None = None,
    started_at: float | None = None,
) -> Study:
    """The best classifier of `data` that so many minutes can buy, judged, reported and exported.

    What fits into the time is forecast from measurements, and nothing is started that cannot
    finish. An answer is there early and only gets better. The images of the test split are looked
    at once, at the end. A call that was killed goes on where it was, its clock too.

    Args:
        data: as for `train`.
        config: what is asked; everything that it leaves open is decided and explained.
        minutes: wall-clock time for everything.
        settings: single settings on top, such as `{"train.learning_rate": 0.1}`.
        out: the study's directory; a new one under `studies/` when left out.
        to: what the answer is exported to, as for `export`; "best" is ONNX where its packages are
            installed, else torch; "none" leaves it out.
        model: your own network, as for `train`.
        show: told every line, every `Progress`, and what is being done and why.
        started_at: `time.monotonic()` when the clock began; now, if left out.

    Returns:
        The study; `Run.open(study.final_path)` is the answer.

    Raises:
        UsageError: the time is too short for anything; it says what is needed.
        ConfigError, DataError, DamagedError, MismatchError, InUseError, StorageError: as `train`.
        Interrupted: a signal came before there was any answer; the same call goes on.
    """
    started_at = time.monotonic() if started_at is None else started_at
    if not minutes > 0:
        raise UsageError(f"{minutes:g} minutes", fix="give a time above zero")
    asked = (config or Config()).with_settings(settings or {})
    if asked.train.minutes is not None or asked.train.epochs is not None:
        raise ConfigError(
            "a fit decides by its minutes how long it trains",
            fix="leave train.minutes and train.epochs out",
        )
    target = _export_target(to)
    path = (
        Path(out)
        if out is not None
        else default_study_path(Path("studies"), data_name(data), datetime.now())
    )
    extensions = Extensions(model=model)
    told: dict[str, object] = {"minutes": minutes, "data": data_name(data)}
    if Study.exists(path):
        study = Study.open(path)
    else:
        study = Study.create(path, kind="fit", config=asked, asked=told)
    with study.lock():
        study.go_on(asked, told, kind="fit", may_change=("minutes",))
        tell = show or (lambda _: None)
        if _is_over(study):
            tell(f"already complete: {study.path}; to spend more minutes, give another --out")
            return study
        clock = _Clock(started_at, minutes * 60, _spent_before(study))
        with watched() as stop:
            _Fit(study, data, asked, extensions, clock, tell, stop, target).run()
    return study


class _Clock(NamedTuple):
    """The budget; time in which nothing ran does not count."""

    started_at: float
    budget_s: float
    before_s: float

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.started_at + self.before_s

    @property
    def left_s(self) -> float:
        return self.budget_s - self.spent_s


def _is_over(study: Study) -> bool:
    return any(event["event"] == "ended" for event in study.events.read())


def _spent_before(study: Study) -> float:
    return max((float(event.get("spent_s", 0.0)) for event in study.events.read()), default=0.0)


@final
class _Fit:
    """One call of `fit`: what it was given, and the best answer so far."""

    def __init__(
        self,
        study: Study,
        data: str | Path,
        config: Config,
        extensions: Extensions,
        clock: _Clock,
        tell: Show,
        stop: Stop,
        export: str | None,
    ) -> None:
        self.study = study
        self.data = data
        self.config = config
        self.extensions = extensions
        self.clock = clock
        self.tell = tell
        self.stop = stop
        self.export = export

    def run(self) -> None:
        """Raises what `fit` raises."""
        self._doing("looking at the images", "what they are decides how they are learnt")
        with Shared(self.data, self.config, self.extensions, say=self.tell) as shared:
            choice = choose_model(self.config, shared.facts)
            if choice.weights != "none":
                self._from_pretrained(shared)
            else:
                self._from_scratch(shared)
            self._finish(shared)

    def _doing(self, what: str, why: str) -> None:
        best = self._best()
        accuracy = None if best is None or best.last is None else best.last.accuracy
        clock = self.clock
        self.tell(Doing(what, why, clock.spent_s, clock.budget_s, accuracy))
        self.study.note("doing", what=what, why=why, spent_s=round(clock.spent_s, 2))

    def _best(self) -> Trial | None:
        """The trial that did best on the images held out to choose by."""
        judged = [trial for trial in self.study.trials() if trial.last is not None]
        return max(judged, key=_rank, default=None)

    def _trial(self, number: int) -> Trial | None:
        return next((one for one in self.study.trials() if one.number == number), None)

    # ---- A pretrained network --------------------------------------------------------------------

    def _from_pretrained(self, shared: Shared) -> None:
        machine = shared.facts.machine
        base: dict[str, Any] = {"train.head": "only", "machine.probe": "never"}
        if self.config.machine.precision is None and machine.cpu_bfloat16:
            base["machine.precision"] = "bfloat16"
        forward = self._head(shared, base)
        if self.stop:
            return
        self._publish_early()
        tuning = self._tuning(shared, base, forward)
        if tuning is not None:
            self._train(shared, tuning, number=2, start_from=1)
        self._compared(shared, forward)

    def _head(self, shared: Shared, settings: Mapping[str, Any]) -> float:
        """The first answer: a head on kept features. Returns images a second of a forward pass."""
        known = self._trial(1)
        if known is not None and known.status == "finished":
            return float(known.parameters["forward"])
        config = self.config.with_settings(settings)
        prepared = shared.prepared(config)
        plan, dataset = prepared.plan, prepared.dataset
        forward = measured_rate(plan, prepared.model, dataset, prepared.store)
        counts = _counts(prepared)
        size = prepared.model.num_features
        rule = features_rule(
            self.clock.left_s,
            counts,
            forward,
            size,
            len(dataset.classes),
            image_px=plan.pixels.image_px,
            export=self.export,
        )
        if rule is None:
            least_s = self.clock.spent_s + needed_s(counts, forward, size, len(dataset.classes))
            raise UsageError(
                f"{self.clock.budget_s / 60:.2g} minutes are too short for any answer",
                fix=f"give --minutes {1.2 * least_s / 60:.1g} or more; what was looked at by now "
                "is kept",
            )
        if not flips(plan):
            rule = rule._replace(flipped=False)
        self._doing("a head on kept features", rule.reason)
        values, targets, num_train = self._features(prepared, config, rule)
        # Once more: the first measurement may have met a busy moment, and it decides a lot.
        forward = max(forward, measured_rate(plan, prepared.model, dataset, prepared.store))
        # The answer may learn from all images; what fine-tuning is compared with may not.
        refitted = rule.folds > 0 and self._refits(counts, forward, prepared)
        head = choose_head(
            values,
            targets,
            StepSettings.of(plan).loss.to(values.device),
            len(dataset.classes),
            candidates=candidates_of(plan.label_smoothing, num_train),
            num_train=num_train,
            folds=rule.folds,
            refit_all=refitted,
        )
        set_head(prepared.model, head.weight, head.bias)
        path = self.study.trial_run_path(1)
        shutil.rmtree(path, ignore_errors=True)
        run = Run.create(path, texts=decisions(self.data, config, prepared))
        with run.lock():
            state = build_state(plan, prepared.model)
            accuracy, log_loss = _written(run, prepared, config, head)
            state.best = Best(0, accuracy, log_loss, accuracy)
            state.evaluated_step = 0
            save(state, run)
        self.study.write_trial(
            Trial(
                number=1,
                settings=dict(settings),
                status="finished",
                origin="a head on kept features",
                reason=f"{rule.reason}; {head.chosen_by}",
                rungs=(Rung(0, accuracy, log_loss, self.clock.spent_s),),
                parameters={
                    "forward": forward,
                    "penalty": head.candidate.penalty,
                    "label_smoothing": head.candidate.label_smoothing,
                    "refitted": refitted,
                },
            )
        )
        self.tell(
            f"a head on kept features: {accuracy:.1%} of {counts.validation:,} held-out images, "
            f"penalty {head.candidate.penalty:g} chosen by {head.chosen_by}"
        )
        return forward

    def _features(
        self, prepared: Prepared, config: Config, rule: Features
    ) -> tuple[Tensor, Tensor, int]:
        """(N, F) features and (N,) labels of training and then validation images, and how many are
        for training."""
        dataset = prepared.dataset
        train = dataset.indices("train")
        if rule.num_train < len(train):
            train = np.sort(np.random.default_rng(0).permutation(train)[: rule.num_train])
        ids = np.concatenate([train, dataset.indices("validation")])
        values = None
        for computed in features(
            prepared.plan,
            prepared.model,
            dataset,
            prepared.store,
            ids,
            flipped=rule.flipped,
            cache_dir=cache_folder(config.data.cache_dir),
        ):
            values = computed.values
            if self.stop:
                raise self._nothing_yet()
        assert values is not None, "there are images"
        return values, torch.from_numpy(dataset.labels[ids]), len(train)

    def _refits(self, counts: Counts, forward: float, prepared: Prepared) -> bool:
        """Whether the head will be the answer, so that it may learn from the validation images."""
        px = prepared.plan.pixels.image_px
        return tuning_rule(self.clock.left_s, counts, forward, px, export=self.export) is None

    def _nothing_yet(self) -> Interrupted:
        assert self.stop.signal_number is not None
        return Interrupted(
            f"stopped before there was an answer; what was computed is kept for {self.study.path}",
            signal_number=self.stop.signal_number,
            fix="give the same command again to continue",
        )

    def _tuning(
        self, shared: Shared, base: Mapping[str, Any], forward: float
    ) -> Mapping[str, Any] | None:
        """The settings of the fine-tuning that fits, or None."""
        known = self._trial(2)
        if known is not None:
            return None if known.is_over else known.settings
        first = self._trial(1)
        assert first is not None
        if first.parameters.get("refitted"):
            return None
        plan = Plan.from_json(self.study.trial_run(1).text("plan"))
        counts = Counts(*(shared.facts.dataset.num_images(split) for split in SPLITS))
        px = plan.pixels.image_px
        found: Tuning | None = tuning_rule(
            self.clock.left_s, counts, forward, px, export=self.export
        )
        if found is None:
            self._doing("no fine-tuning", "what is left of the time is too short for it to pay")
            return None
        settings = {
            **base,
            "train.head": "first",
            "train.epochs": round(found.epochs, 3),
            "train.image_px": found.image_px,
        }
        if self.config.train.schedule is None:
            settings["train.schedule"] = "linear"
        self._doing("fine-tuning from that head", found.reason)
        self.study.write_trial(
            Trial(number=2, settings=settings, origin="fine-tuning", reason=found.reason)
        )
        return settings

    # ---- Any training ----------------------------------------------------------------------------

    def _train(
        self,
        shared: Shared,
        settings: Mapping[str, Any],
        *,
        start_from: int | None,
        number: int = 2,
    ) -> None:
        """Run a trial to its end, or to where the time is over, its learning rate annealed."""
        config = self.config.with_settings(settings)
        path = self.study.trial_run_path(number)
        trial = self._trial(number) or Trial(number=number, settings=dict(settings))
        self.study.write_trial(replace(trial, status="running"))
        if Run.exists(path):
            run = Run.open(path)
            with run.lock():
                prepared, state, checkpoint = reopened_trial(run, shared, config, self.tell)
                run.rewind(checkpoint)
        else:
            prepared = self._prepared(shared, config)
            run = Run.create(path, texts=decisions(self.data, config, prepared))
            state = build_state(prepared.plan, prepared.model)
        plan = prepared.plan
        if start_from is None:
            job = begun_job(prepared, state, config, self.extensions, say=self.tell)
        else:
            job = build_job(plan, config, prepared.dataset, prepared.store, self.extensions)
            if state.step == 0:
                load_best(self.study.trial_run(start_from), prepared.model)
                if state.average is not None:
                    state.average.reset(prepared.model)
        counts = _counts(prepared)
        forward = self._forward(prepared)
        end_s = ending_s(counts, forward, export=self.export) + SPARE_S
        deadline = Deadline(
            self.clock.started_at + self.clock.budget_s - self.clock.before_s - end_s
        )
        reason = ""
        with run.lock():
            try:
                drive(run, plan, job, state, self.tell, deadline)
            except Interrupted:
                reason = "stopped by a signal"
            except VidiError as error:
                self.study.write_trial(replace(trial, status="failed", reason=error.message))
                self.tell(f"this training failed, and the rest goes on: {error.message}")
                return
        done = replace(trial, status="finished", reason=reason or trial.reason)
        if state.best is not None:
            best = state.best
            done = done.with_rung(Rung(best.step, best.accuracy, best.log_loss, self.clock.spent_s))
        self.study.write_trial(done)

    def _prepared(self, shared: Shared, config: Config) -> Prepared:
        """A plan that validates no more often than it has time for."""
        prepared = shared.prepared(config)
        plan = prepared.plan
        if plan.num_epochs < SELDOM_BELOW_EPOCHS:
            plan = plan.model_copy(update={"evaluate_every_steps": plan.horizon_steps})
        return replace(prepared, plan=plan)

    def _forward(self, prepared: Prepared) -> float:
        first = self._trial(1)
        if first is not None and "forward" in first.parameters:
            return float(first.parameters["forward"])
        measured = prepared.facts.measured
        rate = None if measured is None else measured.evaluation_images_per_second
        return rate or 1_000.0

    # ---- From scratch ----------------------------------------------------------------------------

    def _from_scratch(self, shared: Shared) -> None:
        known = self._trial(1)
        if known is not None and known.is_over:
            return
        if known is None:
            bundle_s = 0.0 if self.export is None else EXPORT_S[self.export]
            left_s = self.clock.left_s - bundle_s
            if left_s < LEAST_TRAINING_S:
                raise UsageError(
                    f"{self.clock.budget_s / 60:.2g} minutes are too short for any training",
                    fix=f"give --minutes {(self.clock.spent_s + bundle_s + 20) / 60:.2g} or more",
                )
            known = Trial(
                number=1,
                settings={"train.minutes": round(left_s / 60, 4)},
                origin="the default, as long as the time allows",
            )
            self.study.write_trial(known)
        self._doing("training from scratch", "the recipe for such images, as long as fits")
        self._train(shared, known.settings, start_from=None, number=1)

    # ---- The answer ------------------------------------------------------------------------------

    def _finish(self, shared: Shared) -> None:
        best = self._best()
        if best is None:
            if self.stop:
                raise self._nothing_yet()
            raise UsageError(
                "no training came to an end in this time",
                fix=f"give more minutes: the same command goes on in {self.study.path}",
            )
        self._doing("judging the answer", "once, on images that nothing was chosen by")
        run = self._published(best, shared)
        self._warn_of_chance(best, shared)
        if self.export is not None:
            self._exported(run)
        config = self.config.with_settings(best.settings)
        self.study.write_best(config)
        self.study.note("ended", answer=best.number, spent_s=round(self.clock.spent_s, 2))

    def _warn_of_chance(self, best: Trial, shared: Shared) -> None:
        counts = shared.facts.dataset.counts["validation"]
        guessed = max(counts) / sum(counts)
        if best.last is not None and best.last.accuracy <= guessed:
            line = (
                f"this is no better than always guessing the largest class ({guessed:.1%}): "
                "give more minutes"
            )
            self.tell(line)
            self.study.note("no better than guessing", guessed=guessed)

    def _publish_early(self) -> None:
        """The head is an answer already, should everything end now."""
        path = self.study.final_path
        if Run.exists(path):
            return
        copy_run(self.study.trial_run_path(1), path)
        write(Run.open(path))
        if self.export is not None and self.clock.left_s > EARLY_EXPORT * EXPORT_S[self.export]:
            self._exported(Run.open(path))

    def _compared(self, shared: Shared, forward: float) -> None:
        """Judge the fine-tuning as the head was, average the two where that helps, and say what
        the gain is worth."""
        tuned = self._trial(2)
        if tuned is None or tuned.last is None:
            return
        run = self.study.trial_run(2)
        if not run.evaluated_splits():
            self._doing("comparing", "is the fine-tuning better than the head that it began with?")
            tuned = self._judged(tuned, run, shared)
        head = self.study.trial_run(1)
        counts = Counts(*(shared.facts.dataset.num_images(split) for split in SPLITS))
        each_s = AVERAGE_S + JUDGING_COST * counts.validation / forward
        for number, share in enumerate(AVERAGED, start=3):
            spare_s = self.clock.left_s - ending_s(
                counts, forward, export=self.export, judged=False
            )
            if self._trial(number) is not None or self.stop or spare_s < each_s:
                continue
            self._average(number, share, tuned, shared)
        best = self._best()
        if best is not None and best.number > 1:
            (comparison,) = comparing.compare(
                head, self.study.trial_run(best.number), split="validation"
            )
            self.tell(f"{best.origin} against the head that it began with: {comparison.sentence}")
            if comparison.verdict == "cannot tell":
                self.tell("so far, that gain is inside the noise of so few held-out images")
            self.study.note("compared", trial=best.number, verdict=comparison.sentence)

    def _judged(self, trial: Trial, run: Run, shared: Shared) -> Trial:
        """The trial with what its weights are worth on the validation images, in float32."""
        config = self.config.with_settings(trial.settings)
        with run.lock():
            self._judge(run, config, shared, ("validation",))
        evaluation = Evaluation.model_validate_json(run.read_evaluation("validation"))
        assert trial.last is not None
        rung = replace(trial.last, accuracy=evaluation.accuracy, log_loss=evaluation.log_loss)
        trial = trial.with_rung(rung)
        self.study.write_trial(trial)
        return trial

    def _judge(self, run: Run, config: Config, shared: Shared, splits: Sequence[Split]) -> None:
        plan = Plan.from_json(run.text("plan"), origin=f"{run.path}: plan.json")
        classifier = build_model(plan, self.extensions.model)
        load_best(run, classifier)
        looked = shared.looked(config)
        quick = quick_copy(plan, classifier)
        prepared = Prepared(looked.dataset, looked.store, looked.facts, plan, quick, shared.audit)
        present = [split for split in splits if len(looked.dataset.indices(split))]
        judge_run(run, plan, config, prepared, present)

    def _average(self, number: int, share: float, tuned: Trial, shared: Shared) -> None:
        """A trial whose weights lie between those of the head and those of the fine-tuning
        (Wortsman et al. 2022, both "soups" and WiSE-FT)."""
        source = self.study.trial_run(2)
        plan = Plan.from_json(source.text("plan"), origin=f"{source.path}: plan.json")
        first = build_model(plan, self.extensions.model)
        load_best(self.study.trial_run(1), first)
        model = build_model(plan, self.extensions.model)
        step = load_best(source, model)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(first.state_dict()[name], 1.0 - share)
        path = self.study.trial_run_path(number)
        shutil.rmtree(path, ignore_errors=True)
        texts = ("config", "plan", "facts", "environment", "audit")
        run = Run.create(path, texts={n: source.text(n) for n in texts if source.has_text(n)})
        with run.lock():
            state = build_state(plan, model)
            state.step = state.evaluated_step = step
            state.best = Best(step, 0.0, 0.0, 0.0)
            save(state, run)
        self._judged(
            Trial(
                number=number,
                settings=tuned.settings,
                status="finished",
                origin=f"the fine-tuning, averaged with {1 - share:.0%} of its start",
                reason="averages of weights are often better than both ends",
                rungs=(Rung(step, 0.0, None, self.clock.spent_s),),
            ),
            run,
            shared,
        )

    def _published(self, best: Trial, shared: Shared) -> Run:
        """The answer as a run of its own, judged and reported."""
        path = self.study.final_path
        present = {split for split in SPLITS[1:] if len(shared.dataset.indices(split))}
        if Run.exists(path) and present <= set(Run.open(path).evaluated_splits()):
            return Run.open(path)
        aside = path.with_name(".final.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.rename(aside)
        copy_run(self.study.trial_run_path(best.number), path)
        shutil.rmtree(aside, ignore_errors=True)
        run = Run.open(path)
        config = self.config.with_settings(best.settings)
        with run.lock():
            # What was judged when it was chosen is not judged again.
            known = run.evaluated_splits()
            self._judge(run, config, shared, [split for split in SPLITS[1:] if split not in known])
        write(run)
        return run

    def _exported(self, run: Run) -> None:
        assert self.export is not None
        if self.clock.left_s < 0.6 * EXPORT_S[self.export] and not self.stop:
            self.tell(f"no time to export: vidi export {run.path}")
            return
        self._doing("exporting", "a bundle that is proven to say the same")
        export_run(run, to=self.export, data=self.data, show=self.tell)


# Shorter trainings are validated once, at their end.
SELDOM_BELOW_EPOCHS: Final = 4.0
LEAST_TRAINING_S: Final = 5.0
# The first answer is exported too where the time left is so many times what that takes.
EARLY_EXPORT: Final = 20.0
# Shares of the fine-tuned weights in averages with those that the fine-tuning started from.
AVERAGED: Final = (0.7, 0.4)
# Building and saving one of them.
AVERAGE_S: Final = 2.0


def _rank(trial: Trial) -> tuple[float, float]:
    last = trial.last
    assert last is not None
    return last.accuracy, -(last.log_loss if last.log_loss is not None else float("inf"))


def _counts(prepared: Prepared) -> Counts:
    return Counts(*(len(prepared.dataset.indices(split)) for split in SPLITS))


def _export_target(to: str) -> str | None:
    """What the answer is exported to; None for nothing."""
    if to == "best":
        needed = ("onnx", "onnxruntime", "onnxscript")
        return "onnx" if all(map(importlib.util.find_spec, needed)) else "torch"
    if to not in (*EXPORT_S, "none"):
        raise UsageError(f"a fit exports nothing to '{to}'", fix=nearest(to, (*EXPORT_S, "none")))
    return None if to == "none" else to


def _written(run: Run, prepared: Prepared, config: Config, head: Head) -> tuple[float, float]:
    """What the head says of the held-out images, into the run; accuracy and log loss there."""
    dataset = prepared.dataset
    ids = dataset.indices("validation")
    assert head.held_out is not None
    predictions = Predictions(ids, dataset.labels[ids], head.held_out.numpy())
    evaluation = evaluate(
        predictions,
        dataset.classes,
        n_expected=dataset.num_expected("validation"),
        split="validation",
        metrics=[load(name) for name in config.evaluate.metrics],
    )
    run.write_predictions(
        "validation",
        {
            "ids": predictions.ids,
            "labels": predictions.labels,
            "probabilities": predictions.probabilities,
        },
    )
    run.write_evaluation("validation", evaluation.model_dump_json(indent=1))
    run.metrics.append(
        {
            "kind": "validation",
            "step": 0,
            "epoch": 0.0,
            "accuracy": evaluation.accuracy,
            "log_loss": evaluation.log_loss,
        }
    )
    return evaluation.accuracy, evaluation.log_loss

"""The end of a fit: the best trial is compared, judged once, reported and exported."""

from __future__ import annotations

import shutil
import time
from typing import Any, Final

from vidi.config import Config
from vidi.errors import Interrupted, TrainingError, UsageError, VidiError
from vidi.export import export as export_run
from vidi.facts import SPLITS
from vidi.own_data import plan_of
from vidi.report import write, write_study
from vidi.run import Run
from vidi.study import Trial
from vidi.train.retrain import LEARN, retrain, training_s
from vidi.train.trial import Shared, copy_run
from vidi.tune.budget import retraining_share
from vidi.tune.gain import say_gain
from vidi.tune.work import Work, counts_of
from vidi.words import chance, no_time

# The first answer is exported too where the time left is so many times what that takes.
EARLY_EXPORT: Final = 20.0
# An export is begun with this share of the time that it is expected to take.
EXPORT_SHARE: Final = 0.6


def publish_early(work: Work, number: int) -> None:
    """A trial is an answer already, should everything end now."""
    path = work.study.final_path
    if Run.exists(path):
        return
    copy_run(work.study.trial_run_path(number), path)
    write(Run.open(path))
    if work.export is not None and work.clock.left_s > EARLY_EXPORT * work.bundle_s:
        _export(work, Run.open(path))


def compare(work: Work, first: int) -> None:
    """Say what the gain of the best trial over the first one is worth, image by image."""
    best = work.best()
    one = work.trial(first)
    if best is None or best.number == first or one is None or one.last is None:
        return
    runs = work.study.trial_run(first), work.study.trial_run(best.number)
    if all("validation" in run.evaluated_splits() for run in runs):
        words = f"{best.origin} against {one.origin}"
        say_gain(work.study, best.number, runs, words, work.tell)


def finish(work: Work, shared: Shared) -> None:
    """From the best trial to what is shipped.

    Raises:
        Interrupted: a signal came before there was any answer.
        TrainingError: every training failed.
        UsageError: none came to its end in the time.
    """
    work.check()
    best = work.best()
    if best is None:
        raise work.interrupted() if work.stop else _nothing(work)
    work.doing("judging the answer", "once, on images that nothing was chosen by")
    run = _retrained(work, best, shared) or _published(work, best, shared)
    _warn_of_chance(work, best, shared)
    config, about = recipe(work, best)
    if run.has_text("replaces"):
        about = (
            *about,
            f"The answer learnt from the validation images as well: --set {LEARN}=true",
        )
    work.study.write_best(config, about=about)
    if work.export is None:
        work.study.note("not exported", why="it was not asked for: --to none")
    elif work.clock.left_s < EXPORT_SHARE * work.bundle_s and not work.stop:
        why = f"no time to export: vidi export {run.path}"
        work.tell(why)
        work.study.note("not exported", why=why)
    else:
        _export(work, run)
    work.study.decide(answer=best.number)
    _write_page(work)
    work.is_over = True
    work.study.note("ended", answer=best.number, spent_s=round(work.clock.spent_s, 2))


def _write_page(work: Work) -> None:
    """The page of the study, which costs the fit neither its answer nor its time."""
    if work.clock.left_s < work.page_s and not work.stop:
        work.tell(f"no time for the page of the study: vidi report {work.study.path}")
        return
    try:
        write_study(work.study)
    except Exception as error:
        work.tell(f"the page of the study could not be written: {error}")


def recipe(work: Work, best: Trial) -> tuple[Config, tuple[str, ...]]:
    """The settings that train the answer again, and what they cannot say.

    What depends on the time and on the speed of this machine is said in numbers of its own.
    """
    run = work.study.trial_run(best.number)
    plan = plan_of(run)
    settings: dict[str, Any] = {
        **best.settings,
        "model.weights": plan.model.weights,
        "data.image_px": plan.pixels.image_px,
        "train.minutes": None,
        "train.batch_size": plan.batch_size,
        "train.optimizer": plan.optimizer.name,
        "train.label_smoothing": plan.label_smoothing,
        "train.schedule": plan.schedule.name,
        "train.head": plan.head if plan.model.weights != "none" else None,
    }
    if work.extensions.model is None:
        settings["model.name"] = plan.model.name
    about = [f"vidi train DATA --config {work.study.best_path.name}: {best.origin}"]
    known = best.parameters
    if plan.head == "only":
        settings["train.head_penalty"] = known["penalty"]
        settings["train.label_smoothing"] = known["label_smoothing"]
        if known["refitted"]:
            about.append("The answer of the fit learnt from the validation images as well.")
        if "last stages" in best.origin:
            about.append("The last stages were trained further by the fit, on top of this.")
        if known["num_train"] < plan.num_train:
            about.append(
                f"The answer of the fit learnt from {known['num_train']:,} of {plan.num_train:,} "
                "training images."
            )
    else:
        settings["train.epochs"] = round(plan.last_step / plan.steps_per_epoch, 6)
        head = work.trial(1)
        if plan.head == "first" and head is not None and "penalty" in head.parameters:
            settings["train.head_penalty"] = head.parameters["penalty"]
        if best.parameters.get("start", 1) != 1:
            about.append("It began with last stages that the fit had trained before.")
        if "averaged" in best.origin:
            about.append("The averaging is the fit's, and comes on top of this training.")
    return work.config.with_settings(settings), tuple(about)


def _nothing(work: Work) -> VidiError:
    failed = [trial for trial in work.study.trials() if trial.status == "failed"]
    if failed:
        return TrainingError(
            f"every training failed; the last one: {failed[-1].reason}",
            fix=f"see {work.study.trial_run_path(failed[-1].number)}",
        )
    return UsageError(
        "no training came to an end in this time",
        fix=f"give more minutes: the same command goes on in {work.study.path}",
    )


def _warn_of_chance(work: Work, best: Trial, shared: Shared) -> None:
    counts = shared.facts.dataset.counts["validation"]
    guessed = max(counts) / sum(counts)
    if best.last is not None and best.last.accuracy <= guessed:
        work.tell(f"this is {chance(guessed)}: it takes more images, or more minutes")
        work.study.note("no better than guessing", guessed=guessed)


def _retrained(work: Work, best: Trial, shared: Shared) -> Run | None:
    """The best once more, on its validation images too, in its place; None where it cannot be."""
    final = work.study.final_path
    if not work.retrain:
        return None
    if Run.exists(final) and Run.open(final).has_text("replaces"):
        # Of a call that was killed after it.
        return Run.open(final)
    counts, source = counts_of(shared), work.study.trial_run(best.number)
    plan = plan_of(source)
    forward = float(work.study.decided.get("trainings", {}).get("forward", 1_000.0))
    work.retraining_s = 0.0
    ends_at = work.clock.ends_at - work.ending_s(counts, forward)
    needed_s = retraining_share(counts.train, counts.validation) * training_s(source, plan)
    left_s = ends_at - time.monotonic()
    if plan.model.weights != "none":
        why = "only networks that are trained from scratch are"
    elif not counts.test:
        why = "without test images nothing would be left to judge it by"
    elif work.stop:
        why = "it was stopped"
    elif left_s < needed_s:
        why = no_time(needed_s, left_s)
    else:
        why = _trained_again(work, best, source, shared, ends_at)
    if not why:
        return Run.open(final)
    work.tell(f"not trained again on the validation images too: {why}")
    work.study.note("not retrained", why=why)
    return None


def _trained_again(work: Work, best: Trial, source: Run, shared: Shared, ends_at: float) -> str:
    """Trains it and puts it in the place of the answer; why that failed, if it did."""
    path, config = work.study.retrained_path, work.config.with_settings(best.settings)
    if "validation" not in source.evaluated_splits():
        with source.lock():
            work.judge(source, config, shared, ("validation",))
    shutil.rmtree(path, ignore_errors=True)
    work.doing("training the best again", "on the validation images too; nothing is chosen by them")
    name = f"trial {best.number}"
    try:
        retrain(
            path,
            work.data,
            source,
            config,
            work.extensions,
            name=name,
            ends_at=ends_at,
            tell=work.tell,
        )
    except Interrupted:
        work.check()
        return "it was stopped"
    except VidiError as error:
        return error.message
    shutil.rmtree(work.study.final_path, ignore_errors=True)
    path.rename(work.study.final_path)
    work.study.note("retrained", trial=best.number)
    return ""


def _published(work: Work, best: Trial, shared: Shared) -> Run:
    """The answer as a run of its own, judged and reported."""
    path = work.study.final_path
    present = {split for split in SPLITS[1:] if len(shared.dataset.indices(split))}
    if Run.exists(path) and present <= set(Run.open(path).evaluated_splits()):
        return Run.open(path)
    aside = path.with_name(".final.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    if path.exists():
        path.rename(aside)
    copy_run(work.study.trial_run_path(best.number), path)
    shutil.rmtree(aside, ignore_errors=True)
    run = Run.open(path)
    config = work.config.with_settings(best.settings)
    with run.lock():
        # What was judged when it was chosen is not judged again.
        known = run.evaluated_splits()
        work.judge(run, config, shared, [split for split in SPLITS[1:] if split not in known])
    write(run)
    return run


def _export(work: Work, run: Run) -> None:
    """A bundle; one that cannot be is no reason to lose the answer."""
    assert work.export is not None
    work.doing("exporting", "a bundle that is proven to say the same")
    try:
        export_run(run, to=work.export, data=work.data, model=work.extensions.model, show=work.show)
    except VidiError as error:
        work.tell(f"it could not be exported: {error.message}")
        work.study.note("not exported", why=error.message)

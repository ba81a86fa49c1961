"""A fit of a network that is trained from scratch: one training, several, or a search.

Whatever is tried, the default recipe is tried first and brought to its end, so that the answer is
never worse than it on the images that are held out to choose by. In a search that is the end of a
trial, shorter than a training by itself and with a flat learning rate until its last part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vidi import space as spaces
from vidi.errors import Interrupted, UsageError, VidiError
from vidi.plan import make
from vidi.plan.budget import EXPORT_S, Trainings, judging_s, trainings_rule
from vidi.run import Run
from vidi.study import Rung, Trial
from vidi.train.prepare import Prepared
from vidi.train.trial import Shared, advance
from vidi.tune.budget import Costs, divide, retraining_share
from vidi.tune.rungs import Rules, flat_schedule, next_action
from vidi.tune.sampling import Wish, parameters_of, suggest
from vidi.tune.work import SPARE_S, UNMEASURED, Work, counts_of

# Less time than this is no training.
LEAST_TRAINING_S: Final = 5.0
# What is needed at least is said with so much time for the training.
USEFUL_TRAINING_S: Final = 20.0
# Of the time of a search; the rest trains its best settings for longer.
SEARCH_SHARE: Final = 0.7
DEFAULT: Final = "the default"


def fit_from_scratch(work: Work, shared: Shared) -> None:
    """The trials of such a fit; each is written down.

    Raises UsageError when the time is too short for any.
    """
    bundle_s = EXPORT_S[work.export][0] if work.export is not None else 0.0
    if "trainings" not in work.study.decided:
        left_s = work.clock.left_s - bundle_s - SPARE_S
        if left_s < LEAST_TRAINING_S:
            needed_s = work.clock.spent_s + bundle_s + USEFUL_TRAINING_S
            raise UsageError(
                f"{work.clock.budget_s / 60:.2g} minutes are too short for any training",
                fix=f"give --minutes {needed_s / 60 + 0.05:.1f} or more, with another --out",
            )
        _decide(work, shared, left_s)
    decided = work.study.decided["trainings"]
    if work.retrain:
        _keep_time_to_retrain(work, shared, decided)
    match decided["kind"]:
        case "search":
            _search(work, shared, decided)
        case "several":
            _several(work, shared, decided)
        case _:
            _one(work, shared)
    _judge_the_best(work, shared, decided)


# After a pretrained network, where so much of the time is left.
_LEFT_SHARE: Final = 0.25
# The trial of it, after those of the pretrained one.
_FROM_SCRATCH: Final = 10


def from_scratch_too(work: Work, shared: Shared) -> None:
    """One training of a small network in what is left after a pretrained one: of small images, that
    may be the better answer, and both are judged by the same images."""
    known = work.trial(_FROM_SCRATCH)
    if work.stop or (known is not None and known.is_over):
        return
    if known is None:
        left_s = work.clock.left_s - work.bundle_s
        if left_s < max(USEFUL_TRAINING_S, _LEFT_SHARE * work.clock.budget_s):
            return
        settings = {"model.weights": "none", "train.minutes": round(left_s / 60, 4)}
        known = Trial(_FROM_SCRATCH, settings, origin="a small network from scratch")
    work.doing("training from scratch, too", "there is time left; the better one is kept")
    work.train(shared, known)


def _decide(work: Work, shared: Shared, left_s: float) -> None:
    """How the time is used; written down for a continuation."""
    minutes = {"train.minutes": round(left_s / 60, 4)}
    prepared = shared.prepared(work.config.with_settings(minutes))
    work.check()
    work.knows(prepared.model)
    counts, plan = counts_of(shared), prepared.plan
    rate, forward = _rates(prepared)
    if rate is None:
        rule = Trainings("one", 1, "too short a time to measure first")
    else:
        training_s = left_s - work.ending_s(counts, forward)
        default = make(work.config, prepared.facts).num_epochs
        longest = plan.longest_steps / plan.steps_per_epoch
        rule = trainings_rule(training_s, counts.train / rate, counts, default, longest)
    work.study.decide(
        trainings={
            **rule._asdict(),
            "rate": rate,
            "forward": forward,
            "seconds_per_epoch": None if rate is None else counts.train / rate,
            "steps_per_epoch": plan.steps_per_epoch,
        }
    )
    work.study.note("decided", why=rule.reason)


def _rates(prepared: Prepared) -> tuple[float | None, float]:
    """Images a second of training, where that was measured, and of judging."""
    measured = prepared.facts.measured
    if measured is None:
        return None, UNMEASURED
    return measured.training_images_per_second, measured.judging_images_per_second or UNMEASURED


def _one(work: Work, shared: Shared) -> None:
    known = work.trial(1)
    if known is not None and known.is_over:
        return
    if known is None:
        left_s = max(LEAST_TRAINING_S, work.clock.left_s - work.bundle_s - work.retraining_s)
        known = Trial(
            number=1,
            settings={"train.minutes": round(left_s / 60, 4)},
            origin=f"{DEFAULT}, as long as the time allows",
        )
    work.doing("training from scratch", "the recipe for such images, as long as fits")
    work.train(shared, known)


def _keep_time_to_retrain(work: Work, shared: Shared, decided: Mapping[str, Any]) -> None:
    """The last training is done again with more images, so all that comes before gets less."""
    counts = counts_of(shared)
    # How many times as long as the last training all of them together are.
    together = {"several": float(decided["number"]), "search": 1 / (1 - SEARCH_SHARE)}
    share = retraining_share(counts.train, counts.validation)
    ending_s = work.ending_s(counts, float(decided["forward"]))
    left_s = max(0.0, work.clock.left_s - ending_s)
    work.retraining_s = left_s * share / (together.get(decided["kind"], 1.0) + share)


# ---- Several -------------------------------------------------------------------------------------


def _several(work: Work, shared: Shared, decided: Mapping[str, Any]) -> None:
    """The default, what often does better, and other random numbers: the best is kept."""
    counts, forward = counts_of(shared), float(decided["forward"])
    tried = _portfolio(work, shared)[: int(decided["number"])]
    for number, (settings, origin) in enumerate(tried, start=1):
        known = work.trial(number)
        if (known is not None and known.is_over) or work.stop:
            continue
        # Those that are still to come get equal parts of what is left.
        ends_at = work.clock.ends_at - work.ending_s(counts, forward)
        share_s = (ends_at - time.monotonic()) / (len(tried) - number + 1)
        if share_s < LEAST_TRAINING_S:
            return
        length = {"train.minutes": round(share_s / 60, 4)}
        trial = known or Trial(number, {**settings, **length}, origin=origin)
        why = f"{origin}: training {number} of {len(tried)}"
        work.doing("training from scratch", why)
        work.train(shared, trial, forward=forward, ends_at=time.monotonic() + share_s)


def _portfolio(work: Work, shared: Shared) -> list[tuple[dict[str, Any], str]]:
    """Settings with the reason why they are tried, the default first."""
    space = spaces.default_space(work.config, shared.facts.dataset, pretrained=False)
    starts = [one for one in spaces.portfolio(space, pretrained=False) if one]
    seeds = [{"train.seed": work.config.train.seed + number} for number in (1, 2)]
    often = [(one, "a start that often does well") for one in starts]
    other = [(dict(one), "the default with other random numbers") for one in seeds]
    return [({}, DEFAULT), other[0], *often[:1], *other[1:], *often[1:]]


# ---- A search ------------------------------------------------------------------------------------


def _search(work: Work, shared: Shared, decided: Mapping[str, Any]) -> None:
    """Successive halving among settings, then the best of them for longer."""
    counts, forward = counts_of(shared), float(decided["forward"])
    trained_by = work.clock.ends_at - work.ending_s(counts, forward)
    if "search" not in work.study.decided:
        searched_s = SEARCH_SHARE * (trained_by - time.monotonic())
        # No longer than one training would be without a clock.
        division = divide(
            budget_s=searched_s,
            seconds_per_epoch=float(decided["seconds_per_epoch"]),
            steps_per_epoch=float(decided["steps_per_epoch"]),
            default_epochs=make(work.config, shared.facts).num_epochs,
            asked_epochs=None,
        )
        work.study.decide(
            search={
                "epochs": division.epochs,
                "shares": list(division.shares),
                "over_spent_s": work.clock.spent_s + searched_s,
            }
        )
        work.tell(f"a trial: {division.why}")
    search = work.study.decided["search"]
    over_at = work.clock.started_at + search["over_spent_s"] - work.clock.before_s
    work.doing("searching settings", str(decided["reason"]))
    _halving(work, shared, decided, over_at=over_at)
    best = work.best()
    if best is None or work.stop:
        return
    _longer(work, shared, best, forward=forward, trained_by=trained_by)


def _halving(work: Work, shared: Shared, decided: Mapping[str, Any], *, over_at: float) -> None:
    search = work.study.decided["search"]
    rules = Rules(shares=tuple(search["shares"]), promotion="asha", default=1)
    config = work.config.with_settings({"train.epochs": search["epochs"]})
    space = spaces.default_space(work.config, shared.facts.dataset, pretrained=False)
    starts = spaces.portfolio(space, pretrained=False)
    wish = Wish("tpe", work.config.train.seed)
    costs = Costs(
        shares=rules.shares,
        full_s=float(decided["seconds_per_epoch"]) * search["epochs"],
        judging_s=judging_s(counts_of(shared).validation, float(decided["forward"])),
    )
    while not work.stop:
        trials = [one for one in work.study.trials() if not _is_longer(one)]

        def fits(trial: Trial | None, rung: int, known: list[Trial] = trials) -> bool:
            return time.monotonic() + costs.cost(known, trial, rung) <= over_at

        action = next_action(
            trials,
            rules,
            may_begin=fits(None, 0),
            num_validation=shared.facts.dataset.num_images("validation"),
        )
        if action.kind not in ("begin", "go_on"):
            return
        assert action.number is not None
        assert action.rung is not None
        number, rung = action.number, action.rung
        trial = work.trial(number)
        if trial is not None and number != 1 and not fits(trial, rung):
            return
        if trial is None:
            settings: dict[str, Any]
            if number <= len(starts):
                settings = starts[number - 1]
                asked = config.with_settings(settings)
                parameters = parameters_of(space, asked, shared.facts, wish.sampler)
                origin = DEFAULT if number == 1 else "a start that often does well"
            else:
                found = suggest(space, config, wish, trials, number)
                assert found is not None, "only grids end"
                settings, parameters, origin = found.settings, found.parameters, "suggested by tpe"
            of_rungs = flat_schedule(config.with_settings(settings))
            settings = {"train.epochs": search["epochs"], **of_rungs, **settings}
            # As it will be read back.
            parameters = json.loads(json.dumps(parameters))
            trial = Trial(number, settings, origin=origin, parameters=parameters)
        _advanced(work, shared, trial, rules, rung, over_at)


def _advanced(
    work: Work, shared: Shared, trial: Trial, rules: Rules, rung: int, over_at: float
) -> None:
    """One trial, up to a rung, or until the time of the search is over."""
    work.write(replace(trial, status="running"))
    before_s = trial.last.seconds if trial.last is not None else 0.0
    try:
        result = advance(
            work.study.trial_run_path(trial.number),
            shared,
            work.config.with_settings(trial.settings),
            rung=rung,
            rungs=rules.shares,
            deadline=over_at,
            tell=work.tell,
        )
    except Interrupted:
        work.check()
        # The best so far is finished now; this one is not looked at any more.
        work.write(replace(trial, status="paused", reason="stopped by a signal"))
        return
    except VidiError as error:
        work.write(replace(trial, status="failed", reason=error.message))
        work.tell(f"trial {trial.number} failed: {error.message}")
        return
    if result.accuracy is None:
        work.write(replace(trial, status="failed", reason="no time to get to where it is judged"))
        return
    found = Rung(result.step, result.accuracy, result.log_loss, before_s + result.seconds)
    trial = replace(trial, status="finished" if result.finished else "paused")
    work.write(trial.with_rung(found))
    work.tell(
        f"trial {trial.number} ({trial.origin}) at {rules.shares[rung]:.0%}: {found.accuracy:.2%}"
    )


def _longer(work: Work, shared: Shared, best: Trial, *, forward: float, trained_by: float) -> None:
    """The settings that did best, with all the time that is left."""
    known = next((one for one in work.study.trials() if _is_longer(one)), None)
    left_s = trained_by - time.monotonic()
    if (known is not None and known.is_over) or left_s < LEAST_TRAINING_S:
        return
    if known is None:
        settings = {name: value for name, value in best.settings.items() if name not in OF_RUNGS}
        settings["train.minutes"] = round(left_s / 60, 4)
        number = max(one.number for one in work.study.trials()) + 1
        known = Trial(number, settings, origin=f"the settings of trial {best.number}, {LONGER}")
    work.doing("training the best settings longer", f"{best.origin} did best so far")
    work.train(shared, known, forward=forward)


LONGER: Final = "for longer"
# What trials of a search have so that they can be compared at rungs.
OF_RUNGS: Final = frozenset({"train.epochs", "train.schedule", "train.warmup_fraction"})


def _is_longer(trial: Trial) -> bool:
    return trial.origin.endswith(LONGER)


def _judge_the_best(work: Work, shared: Shared, decided: Mapping[str, Any]) -> None:
    """The default and the best, image by image, so that they can be compared."""
    best, first = work.best(), work.trial(1)
    if best is None or first is None or best.number == 1 or first.last is None:
        return
    counts, forward = counts_of(shared), float(decided["forward"])
    for trial in (first, best):
        run = work.study.trial_run(trial.number)
        spare_s = work.clock.left_s - work.ending_s(counts, forward)
        if run.evaluated_splits() or not Run.exists(run.path):
            continue
        if spare_s >= judging_s(counts.validation, forward) or work.stop:
            work.judged(trial, run, shared)

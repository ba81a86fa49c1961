"""`vidi ablate`: what does each technique buy on these data? One change at a time, paired seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import torch

from vidi import storage
from vidi.config import Config
from vidi.effects import BASE, Effect, of_study, trial_number
from vidi.errors import Interrupted, InUseError, StorageError, TrainingError, UsageError, VidiError
from vidi.evaluate import predict
from vidi.facts import Facts
from vidi.plan import Plan, make
from vidi.report import write_study
from vidi.report.words import count
from vidi.restore import build_model, load_weights
from vidi.run import Run
from vidi.study import Rung, Study, Trial, default_study_path
from vidi.train.prepare import Extensions, evaluation_loader, own_model
from vidi.train.trial import Shared, Show, advance
from vidi.tune.budget import epochs_of
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

# So often a training whose process died is tried again before it is given up.
MOST_RETRIES: Final = 2
# What an ablation decided when it began, and goes by when it is continued.
_DECIDED: Final = ("levels", "base", "left_out", "length")
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
                _run_all(study, shared, asked, deadline, tell)
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


def _run_all(
    study: Study, shared: Shared, asked: Config, deadline: float | None, tell: Show
) -> None:
    levels, seeds = study.asked["levels"], int(study.asked["seeds"])
    known = {trial.number: trial for trial in study.trials()}
    fixed = asked.with_settings(study.asked["length"])
    refused: set[int] = set()
    said_how_long = False
    everything = order(len(levels), seeds)
    for place, pair in enumerate(everything, start=1):
        number = trial_number(pair.level, pair.seed, seeds)
        trial = known.get(number)
        if (trial is not None and trial.is_over) or pair.level in refused:
            continue
        if not _can_be_finished(study, known, pair, seeds, deadline):
            if pair.level == 0:
                raise _too_short(study, known, seeds)
            refused.add(pair.level)
            what = _worded(levels[pair.level])
            study.note("not started", why="it could not be finished in the time left", what=what)
            continue
        trial = _begun(study, trial, number, levels[pair.level], pair.seed)
        if not trial.is_over:
            what = f"{_worded(levels[pair.level])}, seed {pair.seed}"
            tell(f"training {place} of {len(everything)}: {what}")
            trial = _trained(study, shared, fixed, trial, deadline, tell)
        known[number] = trial
        if pair.level == 0 and pair.seed == seeds - 1:
            _refuse_without_base(known, seeds)
        if not said_how_long and _base_s(known, seeds):
            said_how_long = True
            tell(_forecast(study, known, seeds))
    if missing := [
        _worded(levels[pair.level])
        for pair in everything
        if pair.seed == 0
        and not all(_is_over(known, pair.level, seed, seeds) for seed in range(seeds))
    ]:
        rest = _minutes(_rest_s(study, known, seeds, _base_s(known, seeds)))
        tell(
            f"no time is left for {count(len(missing), 'change')}, from '{missing[0]}' on; the "
            f"same command with --minutes {rest} does the rest"
        )


def _is_over(known: Mapping[int, Trial], level: int, seed: int, seeds: int) -> bool:
    trial = known.get(trial_number(level, seed, seeds))
    return trial is not None and trial.is_over


def _base_s(known: Mapping[int, Trial], seeds: int) -> float:
    base = [known.get(trial_number(0, seed, seeds)) for seed in range(seeds)]
    return max((each.last.seconds for each in base if each and each.last), default=0.0)


def _rest_s(study: Study, known: Mapping[int, Trial], seeds: int, base_s: float) -> float:
    """What the trainings take that are not over, one of the base taking `base_s`."""
    costs = [float(level["cost"]) for level in study.asked["levels"]]
    done = [trial.number for trial in known.values() if trial.is_over]
    return forecast_s(costs, seeds, base_s) - base_s * sum(
        costs[(number - 1) // seeds] for number in done
    )


def _forecast(study: Study, known: Mapping[int, Trial], seeds: int) -> str:
    base_s = _base_s(known, seeds)
    left = _num_runs(study) - sum(trial.is_over for trial in known.values())
    minutes = f"{_rest_s(study, known, seeds, base_s) / 60:.2g}"
    there = study.asked["minutes"]
    of = "" if there is None else f"; there are {there:g} for everything"
    return (
        f"a training of the base took {base_s:.1f} s, so the {count(left, 'training')} left take "
        f"about {minutes} minutes{of}"
    )


def _minutes(seconds: float) -> str:
    """To ask for, so with what `fits` wants to spare and the way in and out."""
    return f"{(CAREFUL * seconds + _CLOSING_S) / 60 + 0.2:.2g}"


def _too_short(study: Study, known: Mapping[int, Trial], seeds: int) -> UsageError:
    """Not even the base can be trained with every seed."""
    wanted = f"{study.asked['minutes']:g} minutes are too short"
    base_s = _base_s(known, seeds) or _base_s_so_far(study)
    if not base_s:
        return UsageError(
            f"{wanted}: starting and opening the data took them all",
            fix="give more --minutes; without them, all of it is done, however long it takes",
        )
    rest_s = _rest_s(study, known, seeds, base_s)
    base = sum(1 for seed in range(seeds) if not _is_over(known, 0, seed, seeds)) * base_s
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
    plan = Plan.from_json(Run.open(path).text("plan"), origin=f"{path}: plan.json")
    return seconds * plan.horizon_steps / newest.step


def _worded(level: Mapping[str, Any]) -> str:
    return f"{level['factor']}: {level['level']}" if level["factor"] else str(level["level"])


def _can_be_finished(
    study: Study, known: Mapping[int, Trial], pair: Pair, seeds: int, deadline: float | None
) -> bool:
    of_level = [known.get(trial_number(pair.level, seed, seeds)) for seed in range(seeds)]
    base = [known.get(trial_number(0, seed, seeds)) for seed in range(seeds)]
    return fits(
        pair.level,
        sum(1 for each in of_level if each is None or not each.is_over),
        base_s=[each.last.seconds for each in base if each is not None and each.last],
        cost=float(study.asked["levels"][pair.level]["cost"]),
        left_s=None if deadline is None else deadline - time.monotonic(),
    )


def _refuse_without_base(known: Mapping[int, Trial], seeds: int) -> None:
    base = [known[trial_number(0, seed, seeds)] for seed in range(seeds)]
    if all(each.status == "failed" for each in base):
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


def _trained(
    study: Study,
    shared: Shared,
    fixed: Config,
    trial: Trial,
    deadline: float | None,
    tell: Show,
) -> Trial:
    """Train one to its end, keep its answers, and write what it was worth."""
    path = study.trial_run_path(trial.number)
    before_s = sum(_seconds_noted(study, trial.number))
    began_at = time.monotonic()

    def spent() -> float:
        return before_s + time.monotonic() - began_at

    try:
        config = fixed.with_settings(trial.settings)
        result = advance(path, shared, config, deadline=deadline, tell=tell)
        if result.finished:
            _keep_answers(path, shared, config)
    except Interrupted:
        # As if it had not been touched: it is no death of a process.
        study.note("stopped", trial=trial.number, seconds_so_far=spent())
        study.write_trial(replace(trial, status="waiting"))
        raise
    except (InUseError, StorageError):
        raise
    except VidiError as error:
        trial = replace(trial, status="failed", reason=error.message)
        study.write_trial(trial)
        study.note("failed", trial=trial.number, why=error.message)
        tell(f"failed: {error.message}")
        return trial
    if not result.finished or result.accuracy is None:
        trial = replace(trial, status="waiting", reason="the time was over before it was done")
        study.note("stopped", trial=trial.number, seconds_so_far=spent())
        study.write_trial(trial)
        return trial
    rung = Rung(result.step, result.accuracy, result.log_loss, spent())
    trial = replace(trial.with_rung(rung), status="finished", reason="")
    study.write_trial(trial)
    study.note("finished", trial=trial.number, accuracy=result.accuracy)
    _forget_weights(path)
    tell(f"{trial.origin}: {result.accuracy:.2%} of the validation images right")
    return trial


def _seconds_noted(study: Study, number: int) -> list[float]:
    return [
        float(each["seconds_so_far"])
        for each in study.events.read()
        if each.get("trial") == number and "seconds_so_far" in each
    ][-1:]


def _keep_answers(path: Path, shared: Shared, config: Config) -> None:
    """What the last weights say of every validation image, so that levels are compared by image."""
    run = Run.open(path)
    plan = Plan.from_json(run.text("plan"), origin=f"{path}: plan.json")
    looked = shared.looked(config)
    classifier = build_model(plan, own_model(plan, config, Extensions()))
    checkpoint, _ = run.newest_checkpoint()
    assert checkpoint is not None, "a finished trial has its last step"
    name = "ema.safetensors" if "ema.safetensors" in checkpoint.names else "model.safetensors"
    load_weights(classifier, checkpoint.read(name), origin=f"{path}, step {checkpoint.step}")
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

"""A fit of a pretrained network: a head on kept features first, then fine-tuning from there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vidi.config import Config, load
from vidi.data import Indices, cache_folder
from vidi.errors import UsageError
from vidi.metrics import Predictions, evaluate
from vidi.model import Classifier, set_head
from vidi.own_data import plan_of
from vidi.plan import Plan, choose_model
from vidi.plan.budget import (
    ENOUGH_EPOCHS,
    FEWEST_A_CLASS,
    FEWEST_EPOCHS,
    Counts,
    Features,
    Partly,
    Tuning,
    bank_s,
    ending_s,
    features_rule,
    judging_s,
    last_stages_rule,
    needed_s,
    smaller_px,
    tuning_rule,
)
from vidi.restore import trained_model
from vidi.run import Run
from vidi.step import StepSettings
from vidi.study import Rung, Trial
from vidi.train.bank import Head, candidates_of, choose_head
from vidi.train.features import Extractor
from vidi.train.head import flips
from vidi.train.last_stages import LastStages, last_stages, train_last_stages
from vidi.train.prepare import Prepared
from vidi.train.state import Best
from vidi.train.training import decisions
from vidi.train.trial import Shared
from vidi.tune.answer import publish_early
from vidi.tune.work import Work, counts_of, rank

# Shares of the fine-tuned weights in the first averages, with those that it started from.
AVERAGED: Final = (0.7, 0.4)
# Building and saving one of them.
AVERAGE_S: Final = 2.0
# So many images of each class come first where not all are used.
FIRST_OF_A_CLASS: Final = 5

# The numbers of the trials.
HEAD: Final = 1
LAST_STAGES: Final = 2
TUNED: Final = 3


def fit_pretrained(work: Work, shared: Shared) -> None:
    """The trials of such a fit, as many as the time allows; each is written down."""
    base: dict[str, Any] = {"train.head": "only", "machine.probe": "never"}
    if work.config.machine.precision is None and shared.facts.machine.cpu_bfloat16:
        base["machine.precision"] = "bfloat16"
    forward = _head(work, shared, base)
    work.check()
    if work.stop:
        return
    publish_early(work, HEAD)
    _after_the_head(work, shared, forward)
    _averages(work, shared, forward)


# ---- The head ------------------------------------------------------------------------------------


class _Ready(NamedTuple):
    """A head's plan and what it may use of the time."""

    config: Config
    prepared: Prepared
    extractor: Extractor
    forward: float
    rule: Features


def _head(work: Work, shared: Shared, base: Mapping[str, Any]) -> float:
    """The first answer: a head on kept features. Returns images a second of a forward pass."""
    known = work.trial(HEAD)
    if known is not None and known.status == "finished":
        run = work.study.trial_run(HEAD)
        work.knows(trained_model(run, plan_of(run), work.extensions.model)[0])
        return float(known.parameters["forward"])
    began_s = work.clock.spent_s
    settings = dict(base)
    ready = _ready(work, shared, settings)
    if isinstance(ready, int):
        settings |= _at_size(shared, config=work.config.with_settings(settings), image_px=ready)
        work.doing("making the images smaller", f"a head fits at {ready} px only")
        again = _ready(work, shared, settings)
        if isinstance(again, int):
            raise _too_short(work, 2.0 * work.clock.spent_s)
        ready = again
    config, prepared, _, forward, rule = ready
    plan, dataset = prepared.plan, prepared.dataset
    work.doing("a head on kept features", rule.reason)
    counts = counts_of(shared)
    ids, values, num_train, forward = _features(work, ready, counts)
    folds = _folds(work, rule, len(ids), prepared, counts, forward)
    # The answer may learn from all images; what fine-tuning is compared with may not.
    refitted = folds > 0 and not _goes_on(work, shared, plan, prepared.model, forward)
    candidates = candidates_of(
        plan.label_smoothing, num_train, penalty=work.config.train.head_penalty
    )
    head = choose_head(
        values,
        torch.from_numpy(dataset.labels[ids]),
        StepSettings.of(plan).loss.to(values.device),
        len(dataset.classes),
        candidates=candidates,
        num_train=num_train,
        folds=folds,
        refit_all=refitted,
    )
    set_head(prepared.model, head.weight, head.bias)
    accuracy, log_loss = _kept(work, config, prepared, head)
    reason = f"{rule.reason}; chosen by {head.chosen_by}"
    work.write(
        Trial(
            number=HEAD,
            settings=settings,
            status="finished",
            origin="a head on kept features",
            reason=reason,
            rungs=(Rung(0, accuracy, log_loss, work.clock.spent_s - began_s),),
            parameters={
                "forward": forward,
                "penalty": head.candidate.penalty,
                "label_smoothing": head.candidate.label_smoothing,
                "refitted": refitted,
                "num_train": num_train,
            },
        )
    )
    held_out = len(dataset.indices("validation"))
    work.tell(
        f"a head on kept features: {accuracy:.1%} of {held_out:,} held-out images, "
        f"penalty {head.candidate.penalty:g} chosen by {head.chosen_by}"
    )
    return forward


def _ready(work: Work, shared: Shared, settings: Mapping[str, Any]) -> _Ready | int:
    """What the time allows at the planned size of the images; where that is nothing, the smaller
    size at which something fits.

    Raises UsageError where there is none.
    """
    config = work.config.with_settings(settings)
    prepared = shared.prepared(config)
    plan, counts = prepared.plan, counts_of(shared)
    work.knows(prepared.model)
    extractor = Extractor(plan, prepared.model)
    forward = extractor.rate(prepared.store, prepared.dataset.indices("train"))
    size, px = prepared.model.num_features, plan.pixels.image_px
    num_classes = len(prepared.dataset.classes)
    left_s, opened_s = work.clock.left_s, work.clock.spent_s
    rule = features_rule(
        left_s, counts, forward, size, num_classes, image_px=px, bundle_s=work.bundle_s
    )
    if rule is not None:
        if not flips(plan):
            rule = rule._replace(flipped=False)
        return _Ready(config, prepared, extractor, forward, rule)
    smaller = None
    if config.data.image_px is None:
        smaller = smaller_px(left_s, opened_s, counts, forward, size, num_classes, image_px=px)
    if smaller is None:
        raise _too_short(work, opened_s + needed_s(counts, forward, size, num_classes))
    return smaller


def _at_size(shared: Shared, *, config: Config, image_px: int) -> dict[str, Any]:
    """The same network with smaller images, for which another might be chosen."""
    choice = choose_model(config, shared.facts)
    return {
        "data.image_px": image_px,
        "model.name": config.model.name or choice.name,
        "model.weights": choice.weights,
    }


def _too_short(work: Work, least_s: float) -> UsageError:
    return UsageError(
        f"{work.clock.budget_s / 60:.2g} minutes are too short for any answer",
        fix=f"give --minutes {1.2 * least_s / 60 + 0.05:.1f} or more, with another --out; what was "
        "looked at by now is kept",
    )


def _features(work: Work, ready: _Ready, counts: Counts) -> tuple[Indices, Tensor, int, float]:
    """Rows, their (N, F) features, how many of them are for training, before the validation rows,
    and the rate.

    The images of the validation come first, then as many of the training images as the time allows:
    where the machine is slower than it was measured, fewer than planned.
    """
    config, prepared, extractor, forward, rule = ready
    dataset = prepared.dataset
    held_out = dataset.indices("validation")
    train = dataset.indices("train")
    train = train[_order(dataset.labels[train])][: rule.num_train]
    ids = np.concatenate([held_out, train])
    num_classes = len(dataset.classes)
    fewest = len(held_out) + min(len(train), FEWEST_A_CLASS * num_classes)
    values, done = None, 0
    began_at = time.monotonic()
    fresh_views = 0
    for computed in extractor.features(
        dataset,
        prepared.store,
        ids,
        flipped=rule.flipped,
        cache_dir=cache_folder(config.data.cache_dir),
    ):
        work.check()
        before, done = done, len(computed.values)
        values = computed.values
        fresh_views = computed.fresh * (1 + rule.flipped)
        if fresh_views:
            # The first measurement may have met a busy moment, and the rate decides a lot.
            forward = fresh_views / max(1e-9, time.monotonic() - began_at)
        rest_s = ending_s(counts, forward, bundle_s=0.0, judged=False)
        rest_s += bank_s(done, values.shape[1], num_classes, 0)
        next_s = (done - before) * (1 + rule.flipped) / forward if fresh_views else 0.0
        if done < len(ids) and done >= fewest and work.clock.left_s < rest_s + next_s:
            work.tell(f"slower than measured: {done - len(held_out):,} training images are used")
            break
    assert values is not None, "there are images"
    ids = np.concatenate([ids[len(held_out) : done], held_out])
    values = torch.cat([values[len(held_out) : done], values[: len(held_out)]])
    rate = max(forward, ready.forward) if fresh_views else ready.forward
    return ids, values, len(ids) - len(held_out), rate


def _order(labels: Any) -> Any:
    """(N,): an order without meaning in which a few images of each class come first."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class])
    number = np.empty(len(labels), dtype=np.int64)
    number[by_class] = np.arange(len(labels)) - starts
    late = number[shuffled] >= FIRST_OF_A_CLASS
    return np.concatenate([shuffled[~late], shuffled[late]])


def _folds(
    work: Work,
    rule: Features,
    num_images: int,
    prepared: Prepared,
    counts: Counts,
    forward: float,
) -> int:
    """As many as were planned, where there is still time for them."""
    size = prepared.model.num_features
    takes_s = bank_s(num_images, size, len(prepared.dataset.classes), rule.folds)
    spare_s = work.clock.left_s - ending_s(counts, forward, bundle_s=0.0, judged=False)
    return rule.folds if takes_s <= spare_s else 0


def _goes_on(
    work: Work, shared: Shared, plan: Plan, classifier: Classifier, forward: float
) -> bool:
    """Whether anything fits after the head."""
    return (
        _partly(work, shared, plan, classifier, forward) is not None
        or _tuning(work, shared, plan, forward, fewest=FEWEST_EPOCHS) is not None
    )


def _partly(
    work: Work, shared: Shared, plan: Plan, classifier: Classifier, forward: float
) -> tuple[Partly, LastStages] | None:
    which = last_stages(classifier)
    if which is None:
        return None
    counts = counts_of(shared)
    found = last_stages_rule(
        work.clock.left_s,
        counts,
        forward,
        bundle_s=work.bundle_s,
        kept_bytes=which.kept_bytes(counts.train, plan),
        memory_bytes=shared.facts.machine.memory_bytes,
    )
    return None if found is None else (found, which)


def _tuning(
    work: Work, shared: Shared, plan: Plan, forward: float, *, fewest: float
) -> Tuning | None:
    px, left_s, bundle_s = plan.pixels.image_px, work.clock.left_s, work.bundle_s
    return tuning_rule(left_s, counts_of(shared), forward, px, bundle_s=bundle_s, fewest=fewest)


def _kept(work: Work, config: Config, prepared: Prepared, head: Head) -> tuple[float, float]:
    """The head as the run of a trial, with what it says of the held-out images; accuracy and log
    loss there."""
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
    accuracy, log_loss = evaluation.accuracy, evaluation.log_loss
    texts = decisions(work.data, config, prepared)
    best = Best(0, accuracy, log_loss, accuracy)
    run = work.kept_model(HEAD, texts, prepared.plan, prepared.model, best)
    with run.lock():
        run.write_predictions(
            "validation",
            {
                "ids": predictions.ids,
                "labels": predictions.labels,
                "probabilities": predictions.probabilities,
            },
        )
        run.write_evaluation("validation", evaluation.model_dump_json(indent=1))
        about = {"kind": "validation", "step": 0, "epoch": 0.0}
        run.metrics.append({**about, "accuracy": accuracy, "log_loss": log_loss})
    return accuracy, log_loss


# ---- Fine-tuning ---------------------------------------------------------------------------------


def _after_the_head(work: Work, shared: Shared, forward: float) -> None:
    """The last stages first, which cost little; then all layers from there, if there is time."""
    first = work.trial(HEAD)
    assert first is not None
    if first.parameters.get("refitted"):
        return
    run = work.study.trial_run(HEAD)
    plan = plan_of(run)
    if work.trial(TUNED) is None and work.trial(LAST_STAGES) is None:
        classifier, _ = trained_model(run, plan, work.extensions.model)
        if (partly := _partly(work, shared, plan, classifier, forward)) is not None:
            work.doing("training the last stages from that head", partly[0].reason)
            _last_stages(work, shared, first, classifier, *partly)
    known = work.trial(TUNED)
    if work.stop or (known is not None and known.is_over):
        return
    if known is None:
        last = work.trial(LAST_STAGES)
        fewest = FEWEST_EPOCHS if last is None else ENOUGH_EPOCHS
        found = _tuning(work, shared, plan, forward, fewest=fewest)
        if found is None:
            work.doing("no fine-tuning", "what is left of the time is too short for it to pay")
            return
        known = _as_trial(work, first, found)
        work.doing("fine-tuning all layers from there", found.reason)
    start = int(known.parameters["start"])
    work.train(shared, known, forward=forward, start_from=start)


def _as_trial(work: Work, first: Trial, found: Tuning) -> Trial:
    settings = {
        **first.settings,
        "train.head": "first",
        "train.epochs": round(found.epochs, 3),
        "train.image_px": found.image_px,
    }
    if work.config.train.schedule is None:
        settings["train.schedule"] = "linear"
    best = work.best()
    assert best is not None
    return Trial(
        number=TUNED,
        settings=settings,
        origin="fine-tuning",
        reason=found.reason,
        parameters={"start": best.number},
    )


def _last_stages(
    work: Work,
    shared: Shared,
    first: Trial,
    classifier: Classifier,
    partly: Partly,
    which: LastStages,
) -> None:
    """A trial whose last stages were trained on what the earlier ones say of the images."""
    began_s = work.clock.spent_s
    source = work.study.trial_run(HEAD)
    plan, forward = plan_of(source), float(first.parameters["forward"])
    looked = shared.looked(work.config.with_settings(first.settings))
    dataset = looked.dataset
    learnt = train_last_stages(
        plan,
        classifier,
        looked.store,
        dataset.labels,
        dataset.indices("train"),
        which,
        flipped=partly.flipped and flips(plan),
        most_epochs=partly.epochs,
        ends_at=work.clock.ends_at - work.ending_s(counts_of(shared), forward),
        stop=lambda: bool(work.stop),
    )
    work.check()
    if learnt is None:
        return
    names = ", ".join(name for name, _ in classifier.stages[which.first :])
    texts = _texts_of(source)
    run = work.kept_model(
        LAST_STAGES, texts, plan, classifier.cpu(), Best(learnt.steps, 0.0, 0.0, 0.0)
    )
    trial = Trial(
        number=LAST_STAGES,
        settings=first.settings,
        status="finished",
        origin="the last stages, trained further",
        reason=f"{learnt.epochs:.1f} looks at every image, {learnt.steps:,} updates of {names}",
        rungs=(Rung(learnt.steps, 0.0, None, work.clock.spent_s - began_s),),
        parameters={**first.parameters, "num_train": len(dataset.indices("train"))},
    )
    trial = work.judged(trial, run, shared)
    assert trial.last is not None
    work.tell(f"the last stages, trained further: {trial.last.accuracy:.1%}; {trial.reason}")


def _texts_of(run: Run) -> dict[str, str]:
    """What a run says of how it came to be."""
    names = ("config", "plan", "facts", "environment", "audit")
    return {name: run.text(name) for name in names if run.has_text(name)}


def _averages(work: Work, shared: Shared, forward: float) -> None:
    """Judge the fine-tuning as its start was, and average weights where there is time: the two
    first, then the best of all (Wortsman et al. 2022, WiSE-FT and "soups")."""
    tuned = work.trial(TUNED)
    if tuned is None or tuned.last is None:
        return
    run = work.study.trial_run(TUNED)
    if not run.evaluated_splits():
        work.doing("comparing", "is the fine-tuning better than what it began with?")
        tuned = work.judged(tuned, run, shared)
    start = int(tuned.parameters["start"])
    for number, share in enumerate(AVERAGED, start=TUNED + 1):
        origin = f"{tuned.origin}, averaged with {1 - share:.0%} of its start"
        _average(work, shared, forward, number, {TUNED: share, start: 1 - share}, origin)
    last = TUNED + len(AVERAGED)
    alone = [one for one in work.study.trials() if one.number <= last and one.last is not None]
    numbers = itertools.count(last + 1)

    def worth(taken: Sequence[int]) -> float | None:
        origin = f"trials {', '.join(map(str, taken))}, averaged"
        shares = dict.fromkeys(taken, 1 / len(taken))
        return _average(work, shared, forward, next(numbers), shares, origin)

    greedy([(one.number, rank(one)[0]) for one in sorted(alone, key=rank, reverse=True)], worth)


def greedy(
    candidates: Sequence[tuple[int, float]], worth: Callable[[Sequence[int]], float | None]
) -> tuple[int, ...]:
    """Those of the candidates that make the best average, found by adding one after another: who
    makes it worse is left out.

    Args:
        candidates: numbers, with what each is worth alone; the best comes first.
        worth: what an average of some is worth; None where there is no time to find out.
    """
    (first, best), *others = candidates
    taken: tuple[int, ...] = (first,)
    for number, _ in others:
        together = worth((*taken, number))
        if together is None:
            break
        if together >= best:
            taken, best = (*taken, number), together
    return taken


def _average(
    work: Work,
    shared: Shared,
    forward: float,
    number: int,
    shares: Mapping[int, float],
    origin: str,
) -> float | None:
    """A trial whose weights are those of others, each with its share; what it is worth, and None
    where there is no time for it."""
    known = work.trial(number)
    if known is not None and known.last is not None and known.origin == origin:
        return known.last.accuracy
    counts, began_s = counts_of(shared), work.clock.spent_s
    each_s = AVERAGE_S + judging_s(counts.validation, forward)
    spare_s = work.clock.left_s - work.ending_s(counts, forward, judged=False)
    if work.stop or spare_s < each_s:
        return None
    tuned, source = work.trial(TUNED), work.study.trial_run(TUNED)
    assert tuned is not None
    assert tuned.last is not None
    plan, step = plan_of(source), tuned.last.step
    model = _mean(work, plan, shares)
    run = work.kept_model(number, _texts_of(source), plan, model, Best(step, 0.0, 0.0, 0.0))
    trial = Trial(
        number=number,
        settings=tuned.settings,
        status="finished",
        origin=origin,
        reason="averages of weights are often better than each of them",
        rungs=(Rung(step, 0.0, None, work.clock.spent_s - began_s),),
        parameters=tuned.parameters,
    )
    judged = work.judged(trial, run, shared)
    assert judged.last is not None
    return judged.last.accuracy


def _mean(work: Work, plan: Plan, shares: Mapping[int, float]) -> Classifier:
    """The weights of some trials, each with its share."""

    def network(number: int) -> Classifier:
        return trained_model(work.study.trial_run(number), plan, work.extensions.model)[0]

    (first, whole), *others = shares.items()
    mean = network(first)
    for number, share in others:
        whole += share
        values = network(number).state_dict()
        with torch.no_grad():
            for name, value in mean.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(values[name], share / whole)
    return mean

"""Which settings are tried next: a pure function of the trials so far, the seed and the number.

Nothing is remembered between two suggestions. The history is handed to a fresh sampler each time,
seeded from (seed, number), so a search that was killed goes on with the suggestions that it would
have made; and no state of a sampler has to be kept on disk.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from vidi.config import Config
from vidi.errors import ConfigError, MissingExtra, UsageError, VidiError
from vidi.facts import Facts
from vidi.plan import Plan, make
from vidi.space import Distribution, Space
from vidi.study import Trial

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"]
SAMPLERS: Final[tuple[Sampler, ...]] = get_args(Sampler)

# A function of the user's: asks the trial of Optuna for values and says which config they make.
OwnSpace = Callable[[Config, optuna.Trial], Config]

# Points of a range in a grid.
GRID_POINTS: Final = 4
# Suggestions by chance before a model of the results is asked: as Optuna's samplers do, but never
# more than a third of a short search.
STARTUP: Final = 10
_MAX_STARTUP_SHARE: Final = 3

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Suggestion(NamedTuple):
    """settings: on top of the search's config. parameters: what the sampler was asked, and from
    which distribution, so that it can be told again."""

    settings: dict[str, Any]
    parameters: dict[str, Any]


class Wish(NamedTuple):
    """How to suggest. num_trials: how many there will be, where that is known."""

    sampler: Sampler
    seed: int
    num_trials: int | None = None


def suggest(
    space: Space | OwnSpace, config: Config, wish: Wish, trials: Sequence[Trial], number: int
) -> Suggestion | None:
    """What trial `number` tries; None when a grid has nothing more.

    Raises:
        UsageError: no such sampler, or one that cannot do with such a space.
        MissingExtra: its package is not installed.
    """
    if wish.sampler not in SAMPLERS:
        raise UsageError(
            f"there is no sampler '{wish.sampler}'", fix=f"known are: {', '.join(SAMPLERS)}"
        )
    if isinstance(space, Space):
        match wish.sampler:
            case "grid":
                return _of_grid(space, wish.seed, number)
            case "qmc":
                return _unit_suggestion(space, _sobol(len(space.axes), wish.seed, number))
            case "cmaes":
                return _unit_suggestion(space, _evolved(space, wish, trials, number))
            case _:
                pass
    elif wish.sampler in ("grid", "qmc", "cmaes"):
        raise UsageError(
            f"the sampler '{wish.sampler}' has to know the whole space, and yours is a function",
            fix="use tpe, gp or random, or give the space as a mapping",
        )
    return _of_optuna(space, config, wish, trials, number)


def parameters_of(
    space: Space | OwnSpace, config: Config, facts: Facts, sampler: Sampler
) -> dict[str, Any]:
    """What would have been suggested for a trial whose settings were chosen otherwise, so that the
    sampler learns from it as well.

    What the space cannot give is left out. Only "tpe" and samplers that do not learn can do with
    parts: others are told all or nothing. What a function would have asked for nobody knows.
    """
    if not isinstance(space, Space):
        return {}
    try:
        decided = _decided(make(config, facts))
    except VidiError:
        # The trial is going to fail, and says why.
        return {}
    found: dict[str, Any] = {}
    active: dict[str, Any] = {}
    for axis in space:
        if not axis.is_active(active):
            continue
        section, _, name = axis.name.partition(".")
        value = getattr(getattr(config, section), name)
        value = decided.get(axis.name) if value is None else value
        if axis.distribution.contains(value):
            active[axis.name] = value
            found[axis.label] = _parameter(axis.distribution, value)
        elif sampler in ("gp", "cmaes"):
            return {}
    return found


def seed_of(seed: int, number: int) -> int:
    """One seed for each trial of each search."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _decided(plan: Plan) -> dict[str, Any]:
    """The settings that would make such a plan, of those that are searched now and then."""
    augment, optimizer, loss = plan.augment, plan.optimizer, plan.loss
    return {
        "model.name": plan.model.name,
        "model.weights": plan.model.weights,
        "model.dropout": plan.model.dropout,
        "model.stochastic_depth": plan.model.stochastic_depth,
        "data.image_px": plan.pixels.image_px,
        "train.batch_size": plan.batch_size,
        "train.optimizer": optimizer.name,
        "train.learning_rate": optimizer.learning_rate_per_256,
        "train.momentum": optimizer.momentum,
        "train.weight_decay": optimizer.weight_decay,
        "train.schedule": plan.schedule.name,
        "train.warmup_fraction": plan.schedule.warmup_fraction,
        "train.loss": loss.name,
        "train.imbalance": loss.imbalance,
        "train.label_smoothing": plan.label_smoothing,
        "train.ema_decay": plan.ema_decay,
        "train.swa_fraction": plan.swa_fraction,
        "train.sam_rho": plan.sam_rho,
        "train.sampling": plan.sampling,
        "train.layer_decay": plan.layer_decay,
        "train.freeze_stages": plan.stages[-1].frozen_stages,
        "train.head": plan.head,
        "augment.crop": augment.crop,
        "augment.crop_scale_min": augment.crop_scale[0],
        "augment.horizontal_flip": augment.horizontal_flip,
        "augment.vertical_flip": augment.vertical_flip,
        "augment.policy": augment.policy,
        "augment.mixup_alpha": augment.mixup_alpha,
        "augment.cutmix_alpha": augment.cutmix_alpha,
        "augment.erase_probability": augment.erase_probability,
    }


def _parameter(distribution: Distribution, value: Any) -> list[Any]:
    """As a trial keeps it: the value in Optuna's words, and what it came from."""
    told = distribution_to_json(_optuna_distribution(distribution))
    return [_plain(value), json.loads(told)]


# ---- Optuna's samplers ---------------------------------------------------------------------------


def _of_optuna(
    space: Space | OwnSpace, config: Config, wish: Wish, trials: Sequence[Trial], number: int
) -> Suggestion:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize", sampler=_sampler(wish, number))
        study.add_trials([one for one in _history(wish, trials, number) if one is not None])
        trial = study.ask()
        if isinstance(space, Space):
            settings: dict[str, Any] = {}
            for axis in space:
                if axis.is_active(settings):
                    settings[axis.name] = _asked(trial, axis.label, axis.distribution)
        else:
            settings = _made_by(space, config, trial)
    parameters = {
        name: [trial.params[name], json.loads(distribution_to_json(distribution))]
        for name, distribution in trial.distributions.items()
    }
    return Suggestion(settings, parameters)


def _sampler(wish: Wish, number: int) -> optuna.samplers.BaseSampler:
    seed = seed_of(wish.seed, number)
    startup = STARTUP
    if wish.num_trials is not None:
        startup = max(1, min(STARTUP, wish.num_trials // _MAX_STARTUP_SHARE))
    match wish.sampler:
        case "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=startup, warn_independent_sampling=False
            )
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case _:
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=startup, multivariate=True, group=True
            )


def _history(wish: Wish, trials: Sequence[Trial], number: int) -> Iterator[FrozenTrial | None]:
    """The trials so far as Optuna knows them. Those that were stopped are pruned ones to TPE, which
    ranks them by how far they came; other samplers see what `comparable` gives."""
    values = comparable(trials)
    for trial in trials:
        if trial.number == number or not trial.parameters:
            continue
        if wish.sampler == "tpe":
            yield as_optuna(trial, final=False)
        elif trial.number in values:
            yield _complete(trial, values[trial.number])


def comparable(trials: Sequence[Trial]) -> dict[int, float]:
    """Trial number -> accuracy at one rung: the highest that enough trials have reached.

    Enough is one more than there are settings, as in BOHB (Falkner et al. 2018); the first rung, if
    there is no such.
    """
    enough = 1 + max((len(trial.parameters) for trial in trials), default=0)
    highest = max((len(trial.rungs) for trial in trials), default=0)
    for reached in range(highest, 0, -1):
        found = {
            trial.number: trial.rungs[reached - 1].accuracy
            for trial in trials
            if len(trial.rungs) >= reached
        }
        if len(found) >= enough or reached == 1:
            return found
    return {}


def as_optuna(trial: Trial, *, final: bool) -> FrozenTrial:
    """A trial in Optuna's words. final: the search is over, so what is paused stays so."""
    params, distributions = {}, {}
    for name, (value, distribution) in trial.parameters.items():
        params[name] = value
        distributions[name] = json_to_distribution(json.dumps(distribution))
    shown = {name: _plain(value) for name, value in trial.settings.items()}
    state, value = TrialState.PRUNED, None
    if trial.status == "finished" and trial.last is not None:
        state, value = TrialState.COMPLETE, trial.last.accuracy
    elif trial.status in ("running", "waiting") and not trial.rungs and not final:
        state = TrialState.RUNNING
    return optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions,
        intermediate_values={n: rung.accuracy for n, rung in enumerate(trial.rungs)},
        user_attrs={"status": trial.status, "reason": trial.reason, "settings": shown},
    )


def _complete(trial: Trial, value: float) -> FrozenTrial:
    told = as_optuna(trial, final=True)
    return optuna.create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params=told.params,
        distributions=told.distributions,
    )


def _asked(trial: optuna.Trial, label: str, one: Distribution) -> Any:
    match one.kind:
        case "choice":
            plain = [_plain(value) for value in one.values]
            return one.values[plain.index(trial.suggest_categorical(label, plain))]
        case "integer" | "log_integer":
            return trial.suggest_int(label, int(one.low), int(one.high), log=one.is_log)
        case _:
            return trial.suggest_float(label, one.low, one.high, log=one.is_log)


def _plain(value: Any) -> Any:
    """Optuna's choices are numbers and text."""
    return (
        value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
    )


def _optuna_distribution(one: Distribution) -> BaseDistribution:
    match one.kind:
        case "choice":
            return CategoricalDistribution([_plain(value) for value in one.values])
        case "integer" | "log_integer":
            return IntDistribution(int(one.low), int(one.high), log=one.is_log)
        case _:
            return FloatDistribution(one.low, one.high, log=one.is_log)


def _made_by(space: OwnSpace, config: Config, trial: optuna.Trial) -> dict[str, Any]:
    made = space(config, trial)
    if not isinstance(made, Config):
        raise ConfigError(
            f"the function of the space returned {type(made).__name__}, not a Config",
            fix="return config.with_settings({...})",
        )
    before, after = (one.model_dump() for one in (config, made))
    return {
        f"{section}.{name}": value
        for section in after
        for name, value in after[section].items()
        if before[section][name] != value
    }


# ---- Samplers of our own -------------------------------------------------------------------------


def _unit_suggestion(space: Space, shares: Sequence[float]) -> Suggestion:
    """shares (number of axes,) in 0 to 1; those of axes that are not there are let go."""
    settings: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for axis, share in zip(space.axes, shares, strict=True):
        if axis.is_active(settings):
            value = axis.distribution.at(float(share))
            settings[axis.name] = value
            parameters[axis.label] = _parameter(axis.distribution, value)
    return Suggestion(settings, parameters)


def _sobol(num_axes: int, seed: int, number: int) -> Sequence[float]:
    """Point `number` of a scrambled Sobol sequence (Owen 1998)."""
    engine = qmc.Sobol(num_axes, scramble=True, rng=np.random.default_rng(seed))
    if number > 1:
        engine.fast_forward(number - 1)
    with warnings.catch_warnings():
        # It has its balance in powers of two; ours are as many as there is time for.
        warnings.simplefilter("ignore")
        return engine.random(1)[0].tolist()  # type: ignore[no-any-return]


def _of_grid(space: Space, seed: int, number: int) -> Suggestion | None:
    """Point `number` of all combinations, shuffled by the seed."""
    found: dict[str, Suggestion] = {}
    for values in itertools.product(
        *(axis.distribution.points(GRID_POINTS) for axis in space.axes)
    ):
        shares = [
            axis.distribution.share(value) for axis, value in zip(space.axes, values, strict=True)
        ]
        one = _unit_suggestion(space, shares)
        # What differs only in axes that are not there is the same.
        found.setdefault(json.dumps(one.settings, sort_keys=True), one)
    order = np.random.default_rng(seed).permutation(len(found))
    return list(found.values())[order[number - 1]] if number <= len(found) else None


def _evolved(space: Space, wish: Wish, trials: Sequence[Trial], number: int) -> Sequence[float]:
    """The next point of CMA-ES (Hansen 2016), after telling it all generations so far again."""
    try:
        from cmaes import CMA  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra(
            "the sampler 'cmaes' needs a package", fix='pip install "vidi[cmaes]"'
        ) from None
    count = len(space.axes)
    if count < 2:
        # It needs two directions to turn in.
        return _sobol(count, wish.seed, number)
    bounds = np.tile([0.0, 1.0], (count, 1))
    state = CMA(mean=np.full(count, 0.5), sigma=1 / 4, bounds=bounds, seed=wish.seed)
    told: list[tuple[Any, float]] = []
    values = comparable(trials)
    for trial in trials:
        if trial.number in values and trial.parameters and trial.number < number:
            told.append((_shares(space, trial.parameters), -values[trial.number]))
            if len(told) == state.population_size:
                state.tell(told)
                told = []
    point = state.ask()
    for _ in range(number):
        point = state.ask()
    return np.clip(point, 0.0, 1.0).tolist()  # type: ignore[no-any-return]


def _shares(space: Space, parameters: Mapping[str, Any]) -> Any:
    """(number of axes,): where the parameters lie; the middle for axes that are not there."""
    found = np.full(len(space.axes), 0.5)
    for index, axis in enumerate(space.axes):
        if axis.label in parameters:
            one, value = axis.distribution, parameters[axis.label][0]
            if one.kind == "choice":
                value = one.values[[_plain(each) for each in one.values].index(value)]
            found[index] = one.share(value)
    return found

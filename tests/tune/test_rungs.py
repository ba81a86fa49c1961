"""Which trial is worked on next; laws that hold whatever the trials are worth."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from vidi.config import Config
from vidi.study import Rung, Trial
from vidi.tune.rungs import (
    FIDELITIES,
    PROMOTIONS,
    Fidelity,
    Promotion,
    Rules,
    best_of,
    costs_of,
    flat_schedule,
    hopeless,
    next_action,
    out_of_patience,
    ranked,
    settings_of,
)

SHARES = (1 / 9, 1 / 3, 1.0)
# So far apart that rounding makes no two of them alike.
WORTH = some.integers(0, 1_000).map(lambda thousandths: thousandths / 1_000)


def at(number: int, *accuracies: float, status: str = "paused") -> Trial:
    rungs = tuple(Rung(n + 1, value, 1 - value, 1.0) for n, value in enumerate(accuracies))
    return Trial(number, {}, status=status, rungs=rungs)  # type: ignore[arg-type]


class Search:
    """A search whose trials are worth what a table says, with kills of it and of its workers."""

    def __init__(self, rules: Rules, worth: list[float], workers: int, seed: int) -> None:
        self.rules, self.worth, self.workers = rules, worth, workers
        self.random = Random(seed)
        self.trials: dict[int, Trial] = {}
        self.busy: dict[int, int] = {}
        self.runs: list[tuple[int, int]] = []

    def run(self, kill_chance: float = 0.0) -> None:
        for _ in range(10_000):
            while len(self.busy) < self.workers:
                action = next_action(
                    sorted(self.trials.values(), key=lambda one: one.number),
                    self.rules,
                    busy=set(self.busy),
                )
                if action.kind == "stop":
                    assert not self.busy
                    return
                if action.kind == "wait":
                    assert self.busy
                    break
                assert action.number is not None
                assert action.rung is not None
                assert action.number not in self.busy
                before = self.trials.get(action.number, Trial(action.number, {}))
                assert not before.is_over
                self.trials[action.number] = replace(before, status="running")
                self.busy[action.number] = action.rung
            if self.random.random() < kill_chance:
                self.busy.clear()
                continue
            number = self.random.choice(sorted(self.busy))
            self._reach(number, self.busy.pop(number))
        raise AssertionError("it never ends")

    def _reach(self, number: int, rung: int) -> None:
        trial = self.trials[number]
        for index in range(len(trial.rungs), rung + 1):
            self.runs.append((number, index))
            value = self.worth[number - 1] * (index + 1) / len(self.rules.shares)
            trial = trial.with_rung(Rung(index + 1, value, 0.5, 1.0))
        over = rung == len(self.rules.shares) - 1
        self.trials[number] = replace(trial, status="finished" if over else "paused")


@settings(max_examples=150, deadline=None)
@given(
    promotion=some.sampled_from(PROMOTIONS),
    worth=some.lists(WORTH, min_size=1, max_size=30),
    workers=some.integers(1, 5),
    eta=some.integers(2, 4),
    seed=some.integers(0, 1000),
    kills=some.sampled_from([0.0, 0.3]),
)
def test_every_search_ends_and_nothing_is_done_twice(
    promotion: Promotion, worth: list[float], workers: int, eta: int, seed: int, kills: float
) -> None:
    rules = Rules(SHARES, promotion, eta, num_trials=len(worth), bound=False)
    search = Search(rules, worth, workers, seed)
    search.run(kills)
    assert len(search.trials) == len(worth)
    assert len(search.runs) == len(set(search.runs))
    finished = [one for one in search.trials.values() if one.status == "finished"]
    assert finished
    assert all(one.status in ("finished", "paused") for one in search.trials.values())
    best = best_of(list(search.trials.values()), rules)
    assert best is not None
    assert best.status == "finished"
    assert worth[best.number - 1] == max(worth)


@settings(max_examples=60, deadline=None)
@given(worth=some.lists(WORTH, min_size=3, max_size=30), seed=some.integers(0, 99))
def test_kills_change_no_decision_of_one_worker(worth: list[float], seed: int) -> None:
    rules = Rules(SHARES, num_trials=len(worth), bound=False)
    whole, killed = Search(rules, worth, 1, seed), Search(rules, worth, 1, seed)
    whole.run()
    killed.run(0.4)
    assert killed.runs == whole.runs


@pytest.mark.parametrize("promotion", ["asha", "halving"])
def test_about_one_in_eta_is_promoted(promotion: Promotion) -> None:
    worth = [Random(3).random() for _ in range(27)]
    search = Search(Rules(SHARES, promotion, num_trials=27, bound=False), worth, 1, 0)
    Random(5).shuffle(search.worth)
    search.run()
    counts = [len(ranked(list(search.trials.values()), reached)) for reached in (1, 2, 3)]
    assert counts[0] == 27
    if promotion == "halving":
        assert counts == [27, 9, 3]
    assert 9 <= counts[1] <= 15
    assert 3 <= counts[2] <= 8


def test_without_rungs_every_trial_goes_to_its_end() -> None:
    search = Search(Rules(SHARES, "none", num_trials=4), [0.1, 0.4, 0.2, 0.3], 1, 0)
    search.run()
    assert all(one.status == "finished" for one in search.trials.values())


def test_pasha_opens_a_rung_only_where_rankings_disagree() -> None:
    worth = [number / 30 for number in range(1, 28)]
    agreeing = Search(Rules(SHARES, "pasha", num_trials=27, bound=False), worth, 1, 0)
    agreeing.run()
    asha = Search(Rules(SHARES, "asha", num_trials=27, bound=False), worth, 1, 0)
    asha.run()
    assert len(agreeing.runs) < len(asha.runs)
    trials = [at(1, 0.3, 0.6), at(2, 0.4, 0.5), *(at(n, 0.1) for n in range(3, 7))]
    action = next_action(trials, Rules(SHARES, "pasha", eta=2, num_trials=6), busy=())
    assert (action.kind, action.number, action.rung) == ("go_on", 1, 2)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        # What was interrupted comes first.
        ([at(1, 0.5), at(2, status="running")], ("go_on", 2, 0)),
        ([at(1, 0.5, status="running"), at(2, 0.4)], ("go_on", 1, 1)),
        # The best of three goes on, the higher rung first.
        ([at(1, 0.5), at(2, 0.6), at(3, 0.4)], ("go_on", 2, 1)),
        ([at(1, 0.5, 0.6), at(2, 0.6, 0.8), at(3, 0.4, 0.5), at(4, 0.9)], ("go_on", 2, 2)),
        # Equal accuracies: the smaller number.
        ([at(1, 0.5), at(2, 0.5), at(3, 0.5)], ("go_on", 1, 1)),
        # A failed one neither goes on nor takes a place.
        ([at(1, status="failed"), at(2, 0.6)], ("begin", 3, 0)),
        ([], ("begin", 1, 0)),
        # One that was deleted is tried anew, under its number.
        ([at(1, 0.5), at(3, 0.4)], ("begin", 2, 0)),
    ],
)
def test_what_comes_next(trials: list[Trial], expected: tuple[str, int, int]) -> None:
    action = next_action(trials, Rules(SHARES, num_trials=9))
    assert (action.kind, action.number, action.rung) == expected
    assert action.why or action.kind == "go_on"


def test_the_default_goes_to_its_end_rung_by_rung_whatever_it_is_worth() -> None:
    rules, others = Rules(SHARES, num_trials=3, default=1), [at(2, 0.6), at(3, 0.4)]
    assert next_action([at(1, 0.1), *others], rules)[:3] == ("go_on", 1, 1)
    assert next_action([at(1, 0.1, 0.2), *others], rules)[:3] == ("go_on", 1, 2)
    finished = at(1, 0.1, 0.2, 0.3, status="finished")
    assert next_action([finished, *others], rules)[:3] == ("go_on", 2, 1)
    failed = at(1, 0.1, status="failed")
    assert next_action([failed, *others], rules).number == 2


def test_when_none_may_begin_the_best_goes_to_its_end() -> None:
    trials = [at(1, 0.5), at(2, 0.6)]
    action = next_action(trials, Rules(SHARES), may_begin=False)
    assert (action.kind, action.number, action.rung) == ("go_on", 2, 2)
    assert next_action(trials, Rules(SHARES), may_begin=False, busy={2}).kind == "wait"
    done = [at(1, 0.5), at(2, 0.6, 0.7, 0.8, status="finished")]
    assert next_action(done, Rules(SHARES), may_begin=False).kind == "stop"


def test_patience_ends_a_search_that_gets_no_better() -> None:
    rules = Rules(SHARES, patience=3)
    old_best = [at(1, 0.9), at(2, 0.5), at(3, 0.4), at(4, 0.3)]
    assert out_of_patience(old_best, rules)
    assert not out_of_patience([*old_best, at(5, 0.95)], rules)
    assert not out_of_patience(old_best[:3], rules)
    assert not out_of_patience(old_best, Rules(SHARES))


def test_what_cannot_reach_the_best_any_more_is_not_promoted() -> None:
    finished = [
        at(1, 0.80, 0.85, 0.90, status="finished"),
        at(2, 0.78, 0.84, 0.88, status="finished"),
    ]
    rules = Rules(SHARES)
    assert hopeless(at(3, 0.60), [*finished, at(3, 0.60)], rules, 1000)
    assert not hopeless(at(3, 0.79), [*finished, at(3, 0.79)], rules, 1000)
    # On few images the difference may be chance.
    assert not hopeless(at(3, 0.70), [*finished, at(3, 0.70)], rules, 20)
    assert not hopeless(at(3, 0.10), [finished[0], at(3, 0.10)], rules, 1000)


# ---- What is less at a rung, besides the steps ---------------------------------------------------


def test_smaller_images_grow_at_the_rungs_to_the_whole_size() -> None:
    found = settings_of("image_px", (1 / 9, 1 / 3, 1.0), 32)
    assert found == {"train.progressive_px": (16, 24, 24, *(32,) * 6)}
    assert settings_of("image_px", (1 / 3, 1.0), 28) == {"train.progressive_px": (16, 28, 28)}


def test_a_part_of_the_images_grows_at_the_rungs_to_all() -> None:
    found = settings_of("data_share", (1 / 9, 1 / 3, 1.0))
    assert found == {"train.progressive_data": (1 / 9, 1 / 3, 1 / 3, *(1.0,) * 6)}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"train.schedule": "trapezoid", "train.warmup_fraction": 0.05}),
        ({"train.schedule": "cosine"}, {"train.warmup_fraction": 0.05}),
        ({"train.warmup_fraction": 0.2}, {"train.schedule": "trapezoid"}),
        ({"train.optimizer": "sgd_schedule_free"}, {}),
    ],
)
def test_learning_rates_are_flat_at_the_rungs(
    asked: dict[str, object], expected: dict[str, object]
) -> None:
    assert flat_schedule(Config().with_settings(asked)) == expected


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_one_rung_is_a_plain_training(fidelity: Fidelity) -> None:
    assert settings_of(fidelity, (1.0,), 32) == {}
    assert costs_of(fidelity, (1.0,)) == (1.0,)


def test_steps_of_smaller_images_cost_less() -> None:
    shares = (1 / 9, 1 / 3, 1.0)
    assert costs_of("steps", shares) == pytest.approx(shares)
    assert costs_of("data_share", shares) == pytest.approx(shares)
    first, second, whole = costs_of("image_px", shares)
    assert first == pytest.approx(1 / 9 / 4)
    assert second == pytest.approx(first + 2 / 9 * 9 / 16)
    assert whole == pytest.approx(second + 2 / 3)


@given(some.integers(8, 512), some.integers(1, 3))
def test_sizes_rise_to_the_size_that_is_judged(image_px: int, rungs: int) -> None:
    shares = tuple(3.0 ** -(rungs - n) for n in range(rungs + 1))
    sizes = settings_of("image_px", shares, image_px)["train.progressive_px"]
    assert list(sizes) == sorted(sizes)
    assert sizes[-1] == image_px
    assert min(sizes) >= 4

"""What one change does: estimates against scipy, their error rates by simulation, their edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from vidi.effects import ALPHA, Paired, estimate, holm, moderated


def drawn(
    rng: np.random.Generator, effect: float, *, seeds: int, images: int, of_images: float
) -> Paired:
    """A level against its base: some images change for all seeds, others seed by seed."""
    hard = rng.normal(0.0, of_images, images)
    noise = rng.normal(0.0, 1.0, (seeds, images))
    luck = rng.normal(0.0, 0.05, (seeds, 1))
    base = rng.normal(0.0, 1.0, (seeds, images)) > 0.3
    ours = (noise + effect + hard + luck) > 0.3
    table = ours.astype(np.int8) - base.astype(np.int8)
    return Paired(table.mean(axis=1), table)


def test_with_accuracies_alone_and_one_level_it_is_the_paired_t_test() -> None:
    ours, base = np.array([0.71, 0.74, 0.72, 0.75]), np.array([0.70, 0.71, 0.715, 0.72])
    (found,) = estimate([Paired(ours - base)])
    theirs = stats.ttest_rel(ours, base)
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.p_adjusted == found.p_value
    assert found.wide == found.interval


def test_images_add_to_the_error_that_seeds_show() -> None:
    rng = np.random.default_rng(0)
    # All seeds agree on every image, so seeds show no luck; other images would.
    column = rng.choice(np.array([-1, 0, 1], np.int8), 200, p=[0.1, 0.7, 0.2])
    table = np.repeat(column[None], 3, axis=0)
    (found,) = estimate([Paired(table.mean(axis=1), table)])
    theirs = stats.ttest_1samp(column, 0.0)
    low, high = found.interval
    wanted = theirs.confidence_interval(0.95)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=2e-3)
    assert found.from_images == pytest.approx(column.std(ddof=1) / math.sqrt(200))


def test_where_images_do_not_matter_only_seeds_count() -> None:
    rng = np.random.default_rng(0)
    table = rng.choice(np.array([-1, 0, 1], np.int8), (5, 400))
    (found,) = estimate([Paired(table.mean(axis=1), table)])
    assert found.from_images < found.from_seeds


@pytest.mark.parametrize("of_images", [0.0, 1.0])
def test_intervals_hold_the_truth_as_often_as_they_say(of_images: float) -> None:
    """On new seeds and new images; a tenth of a second's worth of both is drawn again and again."""
    rng = np.random.default_rng(2)
    truth = np.mean(
        [
            drawn(rng, 0.2, seeds=4, images=20_000, of_images=of_images).differences.mean()
            for _ in range(60)
        ]
    )
    inside = 0
    for _ in range(300):
        levels = [
            drawn(rng, 0.2, seeds=3, images=300, of_images=of_images),
            drawn(rng, 0.0, seeds=3, images=300, of_images=of_images),
            drawn(rng, 0.0, seeds=3, images=300, of_images=of_images),
            drawn(rng, -0.2, seeds=3, images=300, of_images=of_images),
        ]
        low, high = estimate(levels)[0].interval
        inside += low <= truth <= high
    assert 0.91 <= inside / 300 <= 1.0


def test_pure_luck_is_seldom_called_an_effect_however_many_levels_there_are() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        levels = [Paired(rng.normal(0.0, 0.01, 3)) for _ in range(15)]
        alarms += any(each.p_adjusted < ALPHA for each in estimate(levels))
    assert alarms / 200 <= 0.10


def test_three_seeds_find_an_effect_because_levels_share_what_they_know_of_luck() -> None:
    rng = np.random.default_rng(4)
    together = alone = 0
    for _ in range(100):
        levels = [Paired(rng.normal(0.0, 0.01, 3)) for _ in range(11)]
        levels.append(Paired(rng.normal(0.03, 0.01, 3)))
        together += estimate(levels)[-1].p_adjusted < ALPHA
        # Bonferroni with its own variance only.
        alone += stats.ttest_1samp(levels[-1].differences, 0.0).pvalue * 12 < ALPHA
    assert together > 60
    assert alone < 30


def test_a_change_that_changes_nothing_is_said_to_be_none() -> None:
    zeros = np.zeros((3, 50), np.int8)
    rng = np.random.default_rng(5)
    found = estimate([Paired(np.zeros(3), zeros), Paired(rng.normal(0, 0.01, 3))])
    assert found[0].interval == (0.0, 0.0)
    assert found[0].p_value == 1.0


def test_one_seed_shows_no_luck_and_is_refused() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        estimate([Paired(np.array([0.01]))])
    assert estimate([]) == []


def test_moderated_variances_lie_between_their_own_and_what_the_others_have() -> None:
    """As in limma: fitFDist by hand, with scipy's own trigamma to turn around."""
    rng = np.random.default_rng(6)
    variances = [float(each) for each in 1e-4 * np.exp(rng.normal(0, 1.5, 12))]
    df = [4] * 12
    shrunk, added = moderated(variances, df)
    e = np.log(variances) - special.digamma(2.0) + np.log(2.0)
    excess = np.var(e, ddof=1) - special.polygamma(1, 2.0)
    assert special.polygamma(1, added / 2) == pytest.approx(excess)
    prior = math.exp(e.mean() + special.digamma(added / 2) - math.log(added / 2))
    for own, new in zip(variances, shrunk, strict=True):
        assert min(own, prior) <= new <= max(own, prior)
        assert new == pytest.approx((added * prior + 4 * own) / (added + 4))


def test_variances_that_differ_by_luck_alone_become_one() -> None:
    variances = [1e-4, 1.1e-4, 0.9e-4, 1.05e-4]
    shrunk, added = moderated(variances, [2] * 4)
    assert math.isinf(added)
    assert len(set(shrunk)) == 1


def test_two_levels_are_too_few_to_learn_from_one_another() -> None:
    assert moderated([1.0, 4.0], [2, 2]) == ([1.0, 4.0], 0.0)


@given(st.lists(st.floats(0.0, 1.0), max_size=8))
def test_holm_keeps_the_order_and_never_makes_a_p_value_smaller(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= 1.0
    for (a, x), (b, y) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert a == b or (a < b) == (x <= y) or x == y


def test_holm_is_the_textbook_one() -> None:
    # Holm 1979 on 0.01, 0.04, 0.03, 0.005.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_scipy_agrees_on_many_groups_where_variances_are_equal() -> None:
    """With the variance known to be shared, the pooled estimate is that of a block design."""
    rng = np.random.default_rng(7)
    table: Any = rng.normal(0.0, 0.01, (6, 4))
    found = estimate([Paired(row) for row in table])
    pooled = float(np.exp(np.mean(np.log(table.var(axis=1, ddof=1)))))
    errors = [each.from_seeds**2 * 4 for each in found]
    assert min(errors) <= pooled * 2
    assert max(errors) >= pooled / 2

"""Numbers that somebody decides by: held equal to scikit-learn and scipy, and to their own laws."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Sequence

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from vidi import metrics
from vidi.errors import DamagedError, DataError, TrainingError, UsageError
from vidi.metrics import Evaluation, Predictions


def made(n: int = 500, num_classes: int = 6, *, skill: float = 2.0, seed: int = 0) -> Predictions:
    """Softmax of normal logits, the label's lifted by `skill`; frequencies fall with the class."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, num_classes + 1)
    labels = rng.choice(num_classes, n, p=weights / weights.sum())
    logits = rng.standard_normal((n, num_classes)).astype(np.float32)
    logits[np.arange(n), labels] += skill
    return predictions_of(labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))


def predictions_of(labels: Sequence[int] | np.ndarray, probabilities: np.ndarray) -> Predictions:
    return Predictions(
        np.arange(len(labels)) * 3 + 7,
        np.asarray(labels, np.int64),
        np.asarray(probabilities, np.float32),
    )


def certain(labels: Sequence[int], predicted: Sequence[int], num_classes: int) -> Predictions:
    """Predictions that put 0.9 on one class and share the rest."""
    probabilities = np.full((len(labels), num_classes), 0.1 / (num_classes - 1))
    probabilities[np.arange(len(labels)), predicted] = 0.9
    return predictions_of(labels, probabilities)


def judge(predictions: Predictions) -> Evaluation:
    names = [f"class {label}" for label in range(predictions.num_classes)]
    return metrics.evaluate(predictions, names, n_expected=len(predictions))


@st.composite
def any_predictions(draw: st.DrawFn) -> Predictions:
    """Few images and coarse probabilities, so that ties and missing classes are common."""
    n, num_classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=n, max_size=n))
    row = st.lists(st.integers(0, 4), min_size=num_classes, max_size=num_classes).filter(any)
    parts = np.array(draw(st.lists(row, min_size=n, max_size=n)), np.float64)
    return predictions_of(labels, parts / parts.sum(axis=1, keepdims=True))


# ------------------------------------------------------------------------------- against references


@pytest.mark.parametrize(("num_classes", "skill"), [(2, 1.0), (6, 2.0), (40, 3.0)])
def test_scores_are_those_of_scikit_learn(num_classes: int, skill: float) -> None:
    predictions = made(800, num_classes, skill=skill)
    labels, probabilities = predictions.labels, predictions.probabilities
    predicted = probabilities.argmax(axis=1)
    judged = judge(predictions)
    every = np.arange(num_classes)

    assert judged.accuracy == reference.accuracy_score(labels, predicted)
    if num_classes > 5:
        top_five = reference.top_k_accuracy_score(labels, probabilities, k=5, labels=every)
        assert judged.top5_accuracy == pytest.approx(top_five)
    else:
        assert (judged.top_k, judged.top5_accuracy) == (2, 1.0)
    for average in ("macro", "weighted"):
        expected = reference.precision_recall_fscore_support(
            labels, predicted, average=average, labels=np.unique(labels), zero_division=0
        )
        found = [getattr(judged, f"{average}_{name}") for name in ("precision", "recall", "f1")]
        assert found == pytest.approx(expected[:3])
    assert judged.log_loss == pytest.approx(reference.log_loss(labels, probabilities, labels=every))
    squared = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1).mean()
    assert judged.brier == pytest.approx(squared)
    assert judged.confusion == tuple(
        map(tuple, reference.confusion_matrix(labels, predicted, labels=every).tolist())
    )
    each = reference.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=0
    )
    for label, score in enumerate(judged.per_class):
        found = [score.precision or 0.0, score.recall or 0.0, score.f1 or 0.0, score.n]
        assert found == pytest.approx([part[label] for part in each])


def test_areas_and_curves_are_those_of_scikit_learn_with_ties() -> None:
    smooth = made(600, 4)
    rng = np.random.default_rng(0)
    twentieths = [
        rng.multinomial(20, row / row.sum()) for row in smooth.probabilities.astype(float)
    ]
    predictions = predictions_of(smooth.labels, np.array(twentieths) / 20)
    judged = judge(predictions)
    assert len(judged.curves) == 4
    for label, (score, curve) in enumerate(zip(judged.per_class, judged.curves, strict=True)):
        positive, column = predictions.labels == label, predictions.probabilities[:, label]
        assert score.auc == pytest.approx(reference.roc_auc_score(positive, column))
        area = reference.average_precision_score(positive, column)
        assert score.average_precision == pytest.approx(area)
        # At most 101 of the points, each of them one of scikit-learn's.
        false, true, _ = reference.roc_curve(positive, column, drop_intermediate=False)
        points = set(zip(false.round(9), true.round(9), strict=True))
        drawn = zip(curve.false_positive_rate, curve.recall, strict=True)
        assert {(round(x, 9), round(y, 9)) for x, y in drawn} <= points
        assert len(curve.recall) <= 101
        drawn_area = np.trapezoid(curve.recall, curve.false_positive_rate)
        assert drawn_area == pytest.approx(score.auc, abs=0.01)
        assert (curve.recall[-1], curve.pr_recall[-1]) == (1.0, 1.0)
    known = [score.auc for score in judged.per_class if score.auc is not None]
    assert judged.macro_auc == pytest.approx(np.mean(known))


@given(st.integers(1, 10_000), st.data())
def test_the_interval_of_a_proportion_is_scipys(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = metrics.wilson(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_test_is_the_exact_binomial_one(only_a: int, only_b: int) -> None:
    n = only_a + only_b + 40
    a_predicted = [0] * only_a + [1] * only_b + [0] * 40
    b_predicted = [1] * only_a + [0] * only_b + [0] * 40
    found = metrics.compare(certain([0] * n, a_predicted, 2), certain([0] * n, b_predicted, 2))
    assert (found.only_a_right, found.only_b_right) == (only_a, only_b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert found.p_value == pytest.approx(expected)
    significant = expected < 0.05
    assert (found.verdict != "cannot tell") == significant
    if significant:
        assert (found.verdict == "better") == (only_b > only_a)


def test_the_calibration_error_is_the_textbook_sum() -> None:
    predictions = made(700, 5)
    judged = judge(predictions)
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    assert judged.ece == pytest.approx(total / 700, abs=1e-6)
    assert sum(each.n for each in judged.reliability) == 700
    assert "15" in judged.ece_binning


# ------------------------------------------------------------------------------------------ by hand


def test_a_small_table_is_as_counted_by_hand() -> None:
    #       labels:    0  0  0  0  1  1  2  2
    #       predicted: 0  0  0  1  1  2  2  2
    judged = judge(certain([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2], 3))
    assert judged.accuracy == 6 / 8
    assert judged.confusion == ((3, 1, 0), (0, 1, 1), (0, 0, 2))
    first = judged.per_class[0]
    assert (first.n, first.predicted, first.correct) == (4, 3, 3)
    assert (first.precision, first.recall, first.f1) == (1.0, 3 / 4, 6 / 7)
    assert judged.worst_class.name == "class 1"
    assert judged.majority_accuracy == 0.5
    pairs = [(each.label, each.predicted, each.n, each.share) for each in judged.most_confused]
    assert pairs == [(1, 2, 1, 0.5), (0, 1, 1, 0.25)]


def test_a_class_without_images_is_null_and_said_and_left_out_of_the_averages() -> None:
    judged = judge(certain([0, 0, 1, 1], [0, 0, 1, 2], 3))
    absent = judged.per_class[2]
    assert (absent.n, absent.predicted) == (0, 1)
    assert (absent.precision, absent.recall, absent.f1, absent.auc) == (None, None, None, None)
    assert judged.macro_classes == 2
    assert judged.macro_recall == 0.75
    assert "'class 2'" in judged.notes[0]
    assert "other 2" in judged.notes[0]


def test_a_class_that_is_never_predicted_has_no_precision_and_counts_as_zero() -> None:
    judged = judge(certain([0, 0, 1], [0, 0, 0], 2))
    assert judged.per_class[1].precision is None
    assert judged.per_class[1].f1 == 0.0
    assert judged.macro_precision == pytest.approx((2 / 3 + 0) / 2)


def test_images_without_a_finite_answer_are_not_judged_and_make_it_incomplete() -> None:
    predictions = made(20, 3)
    predictions.probabilities[4] = np.nan
    predictions.probabilities[9, 1] = np.inf
    judged = metrics.evaluate(predictions, ["a", "b", "c"], n_expected=20)
    assert (judged.n_evaluated, judged.n_expected, judged.n_not_finite) == (18, 20, 2)
    assert not judged.complete
    assert "not finite for 2 images" in judged.notes[0]
    predictions.probabilities[:] = np.nan
    with pytest.raises(TrainingError, match="not finite for any image"):
        metrics.evaluate(predictions, ["a", "b", "c"], n_expected=20)


def test_images_that_were_never_predicted_are_counted_and_said() -> None:
    judged = metrics.evaluate(made(20, 3), ["a", "b", "c"], n_expected=23)
    assert (judged.n_evaluated, judged.n_expected, judged.complete) == (20, 23, False)
    assert "3 of 23" in judged.notes[0]


def test_one_image_and_identical_answers_give_finite_numbers() -> None:
    one = judge(certain([1], [1], 2))
    assert one.accuracy == 1.0
    assert one.per_class[1].auc is None
    same = judge(predictions_of([0, 1, 1], np.full((3, 2), 0.5)))
    assert same.accuracy == 1 / 3
    for judged in (one, same):
        json.loads(judged.model_dump_json(), parse_constant=lambda word: pytest.fail(word))


def test_leaked_images_are_counted_and_left_out_beside() -> None:
    predictions = certain([0, 0, 1, 1], [0, 0, 1, 0], 2)
    judged = metrics.evaluate(
        predictions, ["a", "b"], n_expected=4, leaked_ids=[int(predictions.ids[0]), 999]
    )
    assert judged.n_leaked == 1
    assert judged.without_leaked is not None
    assert (judged.without_leaked.n, judged.without_leaked.accuracy) == (3, 2 / 3)
    assert judge(predictions).without_leaked is None


def test_the_worst_group_is_named() -> None:
    predictions = certain([0, 0, 1, 1], [0, 0, 1, 0], 2)
    groups = dict(zip(predictions.ids.tolist(), ["day", "day", "night", "night"], strict=True))
    judged = metrics.evaluate(predictions, ["a", "b"], n_expected=4, groups=groups)
    assert [(group.name, group.n, group.accuracy) for group in judged.groups] == [
        ("day", 2, 1.0),
        ("night", 2, 0.5),
    ]
    assert judged.worst_group == judged.groups[1]


def test_a_metric_of_ones_own_is_named_after_its_function_and_never_nan() -> None:
    def share_of_cats(predictions: Predictions) -> float:
        return float((predictions.labels == 0).mean())

    def broken(predictions: Predictions) -> float:
        return math.nan if len(predictions) else 0.0

    judged = metrics.evaluate(
        certain([0, 1], [0, 1], 2), ["a", "b"], n_expected=2, metrics=(share_of_cats, broken)
    )
    assert judged.extra == {"share_of_cats": 0.5, "broken": None}


# --------------------------------------------------------------------------------------------- laws


@settings(max_examples=30, deadline=None)
@given(any_predictions(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(predictions: Predictions, random: object) -> None:
    order = np.random.default_rng(random.randrange(2**32)).permutation(  # type: ignore[attr-defined]
        len(predictions)
    )
    assert judge(predictions.take(order)) == judge(predictions)


@settings(max_examples=40, deadline=None)
@given(any_predictions())
def test_every_number_agrees_with_the_confusion_matrix_and_lies_in_its_interval(
    predictions: Predictions,
) -> None:
    judged = judge(predictions)
    confusion = np.array(judged.confusion)
    assert confusion.sum() == judged.n_evaluated == len(predictions)
    assert judged.accuracy == confusion.trace() / confusion.sum()
    assert judged.weighted_recall == pytest.approx(judged.accuracy)
    assert judged.top5_accuracy >= judged.accuracy
    assert judged.coverage[0].n == len(predictions)
    assert judged.coverage[0].accuracy == judged.accuracy
    assert 0 <= judged.ece <= 1
    assert 0 <= judged.brier <= 2
    for name, (low, high) in judged.intervals.items():
        assert low <= getattr(judged, name) <= high, name
    for score in judged.per_class:
        for name in ("precision", "recall", "f1"):
            value, interval = getattr(score, name), getattr(score, f"{name}_interval")
            assert (value is None) == (interval is None)
            if value is not None:
                assert 0 <= interval[0] <= value + 1e-12 <= interval[1] + 2e-12 <= 1 + 2e-12
    text = judged.model_dump_json()
    assert Evaluation.model_validate_json(text) == judged
    assert "NaN" not in text
    assert "Infinity" not in text


@settings(max_examples=40, deadline=None)
@given(any_predictions(), st.integers(1, 5))
def test_top_k_never_falls_with_k_and_top_1_is_accuracy(predictions: Predictions, k: int) -> None:
    assert metrics.top_k_accuracy(predictions, 1) == metrics.accuracy(predictions)
    assert metrics.top_k_accuracy(predictions, k) <= metrics.top_k_accuracy(predictions, k + 1)
    assert metrics.top_k_accuracy(predictions, predictions.num_classes) == 1.0


@settings(max_examples=40, deadline=None)
@given(any_predictions(), st.floats(0.1, 10))
def test_a_temperature_changes_no_answer_and_one_changes_nothing(
    predictions: Predictions, temperature: float
) -> None:
    scaled = predictions.scaled(temperature)
    rows = np.arange(len(predictions))
    chosen = predictions.probabilities.argmax(axis=1)
    assert (scaled.probabilities[rows, chosen] >= scaled.probabilities.max(axis=1) - 1e-6).all()
    assert scaled.probabilities.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    assert np.allclose(predictions.scaled(1.0).probabilities, predictions.probabilities, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(any_predictions(), any_predictions())
def test_comparing_the_other_way_round_turns_the_signs(a: Predictions, b: Predictions) -> None:
    n = min(len(a), len(b))
    num_classes = min(a.num_classes, b.num_classes)
    labels = np.minimum(a.labels[:n], num_classes - 1)

    def cut(given: Predictions) -> Predictions:
        probabilities = given.probabilities[:n, :num_classes] + 0.01
        return predictions_of(labels, probabilities / probabilities.sum(axis=1, keepdims=True))

    there, back = metrics.compare(cut(a), cut(b)), metrics.compare(cut(b), cut(a))
    assert there.difference == -back.difference
    low, high = there.difference_interval
    assert (-high, -low) == pytest.approx(back.difference_interval)
    assert low <= there.difference <= high
    assert there.p_value == back.p_value
    opposite = {"better": "worse", "worse": "better", "cannot tell": "cannot tell"}
    assert back.verdict == opposite[there.verdict]
    right = there.both_right + there.only_a_right
    assert there.accuracy_a == right / n
    assert there.images_to_tell == back.images_to_tell


# ---------------------------------------------------------------------------------------- intervals


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    accuracies = np.array([0.97, 0.9, 0.8, 0.95, 0.7])
    population = np.diag(accuracies) + (1 - accuracies)[:, None] * (1 - np.eye(5)) / 4
    f1 = 2 * accuracies / (1 + population.sum(axis=0))
    truth = {"macro_f1": f1.mean(), "macro_recall": accuracies.mean()}
    held = dict.fromkeys(truth, 0)
    for _ in range(60):
        labels = rng.integers(0, 5, 200)
        predicted = [int(rng.choice(5, p=population[label])) for label in labels]
        judged = judge(certain(labels.tolist(), predicted, 5))
        for name, value in truth.items():
            low, high = judged.intervals[name]
            held[name] += low <= value <= high
    # 95 % of 60 is 57; fewer than 51 has a chance of 1 in 1,000.
    assert min(held.values()) >= 51


def test_no_mistake_is_not_certainty() -> None:
    judged = judge(certain([0, 1] * 10, [0, 1] * 10, 2))
    assert judged.accuracy_interval[0] == pytest.approx(0.8389, abs=1e-4)
    assert judged.intervals["macro_f1"][0] == pytest.approx(0.8389, abs=1e-4)
    assert judged.per_class[0].f1_interval is not None
    assert judged.per_class[0].f1_interval[0] < 0.9
    same = metrics.compare(certain([0] * 50, [0] * 50, 2), certain([0] * 50, [0] * 50, 2))
    assert same.difference_interval[0] < 0 < same.difference_interval[1]
    assert (same.verdict, same.images_to_tell) == ("cannot tell", None)


def test_the_interval_of_a_paired_difference_agrees_with_a_bootstrap() -> None:
    a, b = made(2000, 5, skill=1.5), made(2000, 5, skill=1.5, seed=1)
    b = predictions_of(a.labels, (a.probabilities + b.probabilities) / 2)
    found = metrics.compare(a, b)
    right_a = a.probabilities.argmax(axis=1) == a.labels
    right_b = b.probabilities.argmax(axis=1) == b.labels
    change = right_b.astype(float) - right_a
    rng = np.random.default_rng(0)
    draws = [change[rng.integers(0, 2000, 2000)].mean() for _ in range(4000)]
    expected = np.percentile(draws, [2.5, 97.5])
    assert found.difference_interval == pytest.approx(tuple(expected), abs=2e-3)


def test_the_number_of_images_that_it_takes_gives_the_power_that_it_promises() -> None:
    # 12 against 6 in 100: cannot be told on 100 images; on as many as are named, four in five.
    labels = [0] * 100
    a = certain(labels, [0] * 6 + [1] * 12 + [0] * 82, 2)
    b = certain(labels, [1] * 6 + [0] * 12 + [0] * 82, 2)
    found = metrics.compare(a, b)
    assert found.verdict == "cannot tell"
    assert found.images_to_tell is not None
    assert "to tell" in found.sentence
    assert f"{found.images_to_tell:,}" in found.sentence
    rng = np.random.default_rng(1)
    draws = rng.multinomial(found.images_to_tell, [0.06, 0.12, 0.82], size=1000)
    told = [stats.binomtest(int(x), int(x + y)).pvalue < 0.05 for x, y, _ in draws]
    assert 0.74 <= np.mean(told) <= 0.88


# -------------------------------------------------------------------------------------------- trust


def test_a_calibrated_model_stays_under_its_noise_and_an_overconfident_one_does_not() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 1500).astype(np.float32)
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in probabilities.astype(float)])
    honest = judge(predictions_of(labels, probabilities))
    assert honest.ece < honest.ece_noise
    loud = judge(predictions_of(labels, probabilities).scaled(0.4))
    assert loud.ece > loud.ece_noise


def test_the_temperature_that_was_applied_is_found_again() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 4000).astype(np.float32)
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in probabilities.astype(float)])
    loud = predictions_of(labels, probabilities).scaled(0.5)
    found = metrics.fit_temperature(loud)
    assert found.value == pytest.approx(2.0, rel=0.08)
    assert found.log_loss_after < found.log_loss_before

    logits = np.log(np.maximum(loud.probabilities.astype(np.float64), 1e-30))

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        normaliser = np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1)
        return float((normaliser - scaled[np.arange(4000), labels]).mean())

    best = optimize.minimize_scalar(loss, bounds=(0.1, 10), method="bounded")
    assert found.value == pytest.approx(best.x, rel=0.01)

    judged = metrics.evaluate(loud, ["a", "b", "c", "d", "e"], n_expected=4000, temperature=found)
    assert judged.calibration is not None
    assert judged.calibration.temperature.fitted_on == "validation"
    assert judged.calibration.log_loss < judged.log_loss
    assert judged.calibration.ece < judged.ece_noise < judged.ece


def test_a_few_images_without_a_mistake_do_not_make_a_model_certain_of_everything() -> None:
    found = metrics.fit_temperature(certain([0, 1, 2, 0, 1], [0, 1, 2, 0, 1], 3))
    assert found.value > 0.3


def test_coverage_and_thresholds_are_what_answering_only_above_them_gives() -> None:
    predictions = made(400, 4)
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    for point in judge(predictions).coverage:
        answered = confidence >= point.threshold
        assert answered.sum() == point.n
        assert right[answered].mean() == pytest.approx(point.accuracy)
    found = metrics.threshold_for(predictions, 0.9)
    assert found.threshold is not None
    assert found.accuracy is not None
    answered = confidence >= found.threshold
    assert right[answered].mean() == found.accuracy >= 0.9
    assert found.coverage == answered.mean()
    lower = np.unique(confidence[confidence < found.threshold])
    assert all(right[confidence >= each].mean() < 0.9 for each in lower)


def test_a_precision_that_cannot_be_reached_has_no_threshold() -> None:
    found = metrics.threshold_for(certain([0, 0, 0], [1, 1, 1], 2), 0.99)
    assert (found.threshold, found.n, found.sure) == (None, 0, False)
    with pytest.raises(UsageError, match="precision of 99"):
        metrics.threshold_for(made(10), 99)


# ----------------------------------------------------------------------------------------- refusals


def test_predictions_go_through_bytes_and_come_back_equal() -> None:
    predictions = made(50, 3)
    data = predictions.to_bytes()
    assert data == predictions.to_bytes()
    back = Predictions.from_bytes(data)
    for name in ("ids", "labels", "probabilities"):
        assert (getattr(back, name) == getattr(predictions, name)).all()


def _npz(*, compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_a_file_that_is_not_predictions_is_refused_in_words() -> None:
    ids, probabilities = np.arange(3), np.full((3, 2), 0.5, np.float32)
    data = made(50, 3).to_bytes()
    cases = {
        "cannot be read": [b"", b"hello", data[: len(data) // 2]],
        "has no labels": [_npz(ids=ids)],
        "compressed": [_npz(compressed=True, ids=ids, labels=ids, probabilities=probabilities)],
        "are float64 instead of float32": [
            _npz(ids=ids, labels=ids, probabilities=probabilities.astype(float))
        ],
        "classes": [_npz(ids=ids, labels=ids, probabilities=probabilities)],
        "fit together": [_npz(ids=ids[:2], labels=ids * 0, probabilities=probabilities)],
        "Object arrays": [_npz(ids=np.array([{}]), labels=ids, probabilities=probabilities)],
    }
    for words, files in cases.items():
        for each in files:
            with pytest.raises(DamagedError, match=words):
                Predictions.from_bytes(each)


def test_every_flipped_byte_of_a_predictions_file_is_an_answer_and_not_a_crash() -> None:
    data = made(4, 2).to_bytes()
    assert zipfile.is_zipfile(io.BytesIO(data))
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        try:
            Predictions.from_bytes(bytes(damaged))
        except DamagedError:
            refused += 1
    assert refused > len(data) / 6


@pytest.mark.parametrize(
    ("probabilities", "words"),
    [([[0.5, 0.4]], "sum to 0.9"), ([[2.0, -1.0]], "negative"), ([[0.2, 0.3, 0.5]], "3 classes")],
)
def test_rows_that_are_not_probabilities_are_refused(
    probabilities: list[list[float]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        metrics.evaluate(predictions_of([0], np.array(probabilities)), ["a", "b"], n_expected=1)


def test_an_image_twice_and_no_image_at_all_are_refused() -> None:
    twice = Predictions(np.array([4, 4]), np.array([0, 1]), np.array([[0.5, 0.5]] * 2, np.float32))
    with pytest.raises(DataError, match=r"image 4 .* predicted twice"):
        metrics.evaluate(twice, ["a", "b"], n_expected=2)
    with pytest.raises(DataError, match="no image to judge"):
        metrics.evaluate(predictions_of([], np.zeros((0, 2))), ["a", "b"], n_expected=0)


def test_only_common_images_with_equal_labels_are_compared() -> None:
    a, b = made(50, 3), made(50, 3)
    found = metrics.compare(a.take(np.arange(0, 40)), b.take(np.arange(10, 50)))
    assert (found.n, found.n_only_in_a, found.n_only_in_b) == (30, 10, 10)
    other = Predictions(b.ids, (b.labels + 1) % 3, b.probabilities)
    with pytest.raises(DataError, match="50 images have another label"):
        metrics.compare(a, other)
    with pytest.raises(DataError, match="different images"):
        metrics.compare(a, Predictions(b.ids + 1, b.labels, b.probabilities))
    with pytest.raises(DataError, match="different classes: 3 and 4"):
        metrics.compare(a, made(50, 4))


def test_ten_thousand_images_of_a_hundred_classes_are_judged_in_seconds() -> None:
    predictions = made(10_000, 100, skill=4.0)
    started_at = time.perf_counter()
    judged = judge(predictions)
    assert time.perf_counter() - started_at < 5
    assert len(judged.curves) == 20
    assert len(judged.most_confused) == 20

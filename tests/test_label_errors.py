"""Doubtful labels, against what cleanlab 2.9.0 finds on the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from vidi.errors import DataError
from vidi.label_errors import averaged, label_suspects
from vidi.metrics import Predictions

# cleanlab.filter.find_label_issues(labels, probabilities, filter_by="confident_learning",
# return_indices_ranked_by="self_confidence") on what `noisy` makes.
BY_CLEANLAB = [
    144, 377, 232, 268, 236, 333, 248, 283, 203, 292, 273, 159, 56, 15, 316, 31, 324, 135, 364, 318,
    152, 47, 158, 193, 329, 55, 138, 132, 395, 357,
]  # fmt: skip


def noisy() -> tuple[Predictions, set[int]]:
    """400 images of 5 classes, 40 of them with a wrong label, one class favoured by the model."""
    rng = np.random.default_rng(5)
    n, k = 400, 5
    true = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k))
    logits[np.arange(n), true] += 2.5
    logits[:, 2] += 0.7
    odds = np.exp(logits)
    probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    labels = true.copy()
    wrong = rng.choice(n, 40, replace=False)
    labels[wrong] = (labels[wrong] + 1 + rng.integers(0, k - 1, 40)) % k
    return Predictions(np.arange(n), labels, probabilities), set(wrong.tolist())


def test_the_same_images_in_the_same_order_as_cleanlab() -> None:
    predictions, wrong = noisy()
    suspects = label_suspects(predictions)
    assert [each.id for each in suspects] == BY_CLEANLAB
    assert len(wrong & {each.id for each in suspects}) == 26
    assert all(each.suggested != each.label for each in suspects)
    assert all(each.probability_of_suggested > each.probability_of_label for each in suspects)


def test_a_model_that_agrees_suspects_nothing() -> None:
    labels = np.arange(30) % 3
    probabilities = np.full((30, 3), 0.05, np.float32)
    probabilities[np.arange(30), labels] = 0.9
    assert label_suspects(Predictions(np.arange(30), labels, probabilities)) == ()


def test_ids_are_those_of_the_images() -> None:
    predictions, _ = noisy()
    moved = Predictions(predictions.ids * 7 + 3, predictions.labels, predictions.probabilities)
    assert [each.id for each in label_suspects(moved)] == [7 * each + 3 for each in BY_CLEANLAB]


def test_several_models_are_averaged_where_both_judged() -> None:
    predictions, _ = noisy()
    first, second = predictions.take(np.arange(300)), predictions.take(np.arange(200, 400))
    both = averaged([first, second])
    assert np.array_equal(both.ids, predictions.ids)
    assert np.allclose(both.probabilities, predictions.probabilities, atol=1e-6)
    other = Predictions(second.ids, (second.labels + 1) % 5, second.probabilities)
    with pytest.raises(DataError, match="different labels"):
        averaged([first, other])


def test_no_image_and_no_number_are_refused() -> None:
    predictions, _ = noisy()
    with pytest.raises(DataError):
        label_suspects(predictions.take(np.zeros(0, np.int64)))
    broken = predictions.probabilities.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError):
        label_suspects(Predictions(predictions.ids, predictions.labels, broken))

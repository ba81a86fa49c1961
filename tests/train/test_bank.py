"""Many heads at once are the heads that one by one would have been fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vidi.loss import Loss
from vidi.train.bank import Candidate, choose_head, minimised

CLASSES, LENGTH = 4, 12


def clouds(count: int = 240, *, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    """Features of classes that overlap, and their labels."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % CLASSES
    centres = rng.normal(size=(CLASSES, LENGTH))
    values = centres[labels] + noise * rng.normal(size=(count, LENGTH)) + 3.0
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels)


def test_a_head_is_the_logistic_regression_of_scikit_learn() -> None:
    values, labels = clouds()
    penalty = 0.01
    head = choose_head(
        values, labels, Loss(), CLASSES, candidates=[Candidate(penalty, 0.0)], num_train=200
    )
    train = values[:200]
    standard = (values - values.mean(0)) / values.std(0)
    theirs = LogisticRegression(C=1 / (2 * penalty * 200), max_iter=2000, tol=1e-8)
    theirs.fit(standard[:200].numpy(), labels[:200].numpy())
    ours = (train @ head.weight.T + head.bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standard[:200].numpy()), atol=0.01)


@pytest.mark.parametrize("folds", [0, 3])
def test_single_precision_gives_the_head_of_double_precision(folds: int) -> None:
    values, labels = clouds()
    candidates = [Candidate(penalty, smooth) for penalty in (1e-3, 0.1) for smooth in (0.0, 0.1)]

    def head(rows: Tensor) -> Tensor:
        found = choose_head(
            rows, labels, Loss(), CLASSES, candidates=candidates, num_train=200, folds=folds
        )
        return (values @ found.weight.T + found.bias).softmax(1)

    np.testing.assert_allclose(head(values), head(values.double()), atol=5e-3)


def test_where_single_precision_does_not_come_to_an_end_double_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, labels = clouds()

    def head() -> Tensor:
        one = [Candidate(0.01, 0.0)]
        found = choose_head(values, labels, Loss(), CLASSES, candidates=one, num_train=200)
        return (values @ found.weight.T + found.bias).softmax(1)

    eigh, usual = torch.linalg.eigh, head()

    def fails(products: Tensor) -> Any:
        if products.dtype == torch.float32:
            raise RuntimeError("the algorithm failed to converge")
        return eigh(products)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    np.testing.assert_allclose(head(), usual, atol=5e-3)


def test_the_candidate_that_held_out_images_like_best_is_chosen() -> None:
    values, labels = clouds(60, noise=3.0)
    candidates = [Candidate(penalty, 0.0) for penalty in (1e-5, 1e-1, 1e3)]
    head = choose_head(
        values, labels, Loss(), CLASSES, candidates=candidates, num_train=40, folds=4
    )
    losses = [log_loss for _, _, log_loss in head.tried]
    assert [candidate for candidate, _, _ in head.tried] == candidates
    assert max(losses) > 1.02 * min(losses)
    assert head.candidate == candidates[losses.index(min(losses))]
    assert head.log_loss == min(losses)
    assert head.chosen_by == "4-fold cross-validation over 60 images"


def test_held_out_probabilities_come_from_heads_that_did_not_see_the_image() -> None:
    values, labels = clouds(80)
    # The last images have labels that contradict their features: seen, they would be learnt.
    lying = labels.clone()
    lying[-8:] = (labels[-8:] + 1) % CLASSES
    values = torch.cat([values, torch.eye(80)[:, -8:] * 50], dim=1)
    for folds in (0, 5):
        head = choose_head(
            values,
            lying,
            Loss(),
            CLASSES,
            candidates=[Candidate(1e-3, 0.0)],
            num_train=72,
            folds=folds,
            refit_all=True,
        )
        assert head.held_out is not None
        assert head.held_out.shape == (8, CLASSES)
        assert (head.held_out.argmax(1) == lying[-8:]).float().mean() < 0.5
        fitted = (values[-8:] @ head.weight.T + head.bias).argmax(1)
        assert (fitted == lying[-8:]).all(), "refitted on all, it has seen them"


def test_without_held_out_images_there_is_a_head_all_the_same() -> None:
    values, labels = clouds(40)
    head = choose_head(
        values, labels, Loss(), CLASSES, candidates=[Candidate(1e-3, 0.0)], num_train=40
    )
    assert head.accuracy is None
    assert head.held_out is None
    assert ((values @ head.weight.T + head.bias).argmax(1) == labels).float().mean() > 0.5


@pytest.mark.parametrize("loss", [
    Loss("bce"), Loss("focal"), Loss(class_weights=torch.tensor([1.0, 2.0, 1.0, 0.5])),
    Loss(log_prior=torch.tensor([0.25] * 4).log()),
], ids=["bce", "focal", "weighted", "prior"])  # fmt: skip
def test_every_loss_of_a_plan_fits_heads(loss: Loss) -> None:
    values, labels = clouds(noise=0.5)
    candidates = [Candidate(1e-3, 0.0), Candidate(1e-3, 0.1)]
    head = choose_head(values, labels, loss, CLASSES, candidates=candidates, num_train=200)
    assert head.accuracy is not None
    assert head.accuracy > 0.95


def test_functions_are_minimised_side_by_side_each_to_its_own_minimum() -> None:
    centres = torch.tensor([[1.0, -2.0, 0.5], [30.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
    scales = torch.tensor([[1.0, 100.0, 0.01], [1.0, 1.0, 1.0], [5.0, 5.0, 5.0]]).double()

    def bowls(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        apart = points - centres[which]
        return (scales[which] * apart.square()).sum(1), 2 * scales[which] * apart

    found = minimised(bowls, torch.zeros(3, 3).double())
    assert (bowls(found, torch.arange(3))[0] < 1e-3).all()

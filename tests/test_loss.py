"""Losses equal torch's where torch has them, and add up over micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from vidi.loss import Loss

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(12, 5, generator=GENERATOR)
TARGETS = torch.randint(0, 5, (12,), generator=GENERATOR)
MIXED = 0.7 * functional.one_hot(TARGETS, 5) + 0.3 * functional.one_hot(TARGETS.roll(1), 5)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [TARGETS, MIXED], ids=["hard", "soft"])
def test_cross_entropy_is_torch_s(targets: Tensor, smoothing: float) -> None:
    expected = functional.cross_entropy(LOGITS, targets, label_smoothing=smoothing, reduction="sum")
    assert torch.equal(Loss(label_smoothing=smoothing)(LOGITS, targets), expected)
    torch.testing.assert_close(
        Loss(label_smoothing=smoothing).of_each(LOGITS, targets).sum(), expected
    )


def test_class_weights_are_torch_s() -> None:
    expected = functional.cross_entropy(LOGITS, TARGETS, weight=WEIGHTS, reduction="sum")
    torch.testing.assert_close(Loss(class_weights=WEIGHTS)(LOGITS, TARGETS), expected)


def test_a_mixed_image_weighs_as_its_parts_do() -> None:
    each = Loss(class_weights=WEIGHTS).of_each(LOGITS, MIXED)
    plain = functional.cross_entropy(LOGITS, MIXED, reduction="none")
    torch.testing.assert_close(each, plain * (MIXED @ WEIGHTS))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bce_is_torch_s_summed_over_classes(smoothing: float) -> None:
    soft = functional.one_hot(TARGETS, 5) * (1 - smoothing) + smoothing / 5
    expected = functional.binary_cross_entropy_with_logits(LOGITS, soft, reduction="sum")
    torch.testing.assert_close(Loss("bce", label_smoothing=smoothing)(LOGITS, TARGETS), expected)


def test_focal_without_focus_is_cross_entropy_and_looks_away_from_the_easy() -> None:
    torch.testing.assert_close(Loss("focal", gamma=0.0)(LOGITS, TARGETS), Loss()(LOGITS, TARGETS))
    shares = torch.softmax(LOGITS, 1).gather(1, TARGETS[:, None])[:, 0]
    expected = (1 - shares) ** 2 * -shares.log()
    torch.testing.assert_close(Loss("focal").of_each(LOGITS, TARGETS), expected)


def test_logit_adjustment_moves_the_logits_by_the_log_of_the_shares() -> None:
    prior = torch.log(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1]))
    expected = functional.cross_entropy(LOGITS + prior, TARGETS, reduction="sum")
    torch.testing.assert_close(Loss(log_prior=prior)(LOGITS, TARGETS), expected)


@given(
    name=st.sampled_from(["cross_entropy", "bce", "focal"]),
    cut=st.integers(1, 11),
    smoothing=st.sampled_from([0.0, 0.1]),
    soft=st.booleans(),
    weighted=st.booleans(),
)
def test_the_loss_of_parts_adds_up(
    name: Any, cut: int, smoothing: float, soft: bool, weighted: bool
) -> None:
    loss = Loss(name, smoothing, class_weights=WEIGHTS if weighted else None)
    targets = MIXED if soft else TARGETS
    parts = loss(LOGITS[:cut], targets[:cut]) + loss(LOGITS[cut:], targets[cut:])
    torch.testing.assert_close(parts, loss(LOGITS, targets))

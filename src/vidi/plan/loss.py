"""What is made smaller, and what is done about classes with few images."""

from __future__ import annotations

import math
from typing import Literal

from vidi.config import Config
from vidi.errors import ConfigError
from vidi.facts import DatasetFacts
from vidi.plan.decisions import Decisions
from vidi.plan.feeding import Sampling
from vidi.plan.values import LossPlan

# Up to this ratio between the largest and the smallest class nothing is done: plain cross-entropy
# learns the frequencies of the training images, which are then mostly those of the images to come.
# Beyond it the smallest classes are hardly ever predicted, and each class is made to count alike.
BALANCED_RATIO = 20.0
# The published exponent, at which the balanced error is what is minimised (Menon et al. 2021).
LOGIT_ADJUSTMENT = 1.0

Imbalance = Literal["none", "weighted", "logit_adjustment", "focal"]


def decide_loss(
    config: Config, dataset: DatasetFacts, decided: Decisions, sampling: Sampling
) -> LossPlan:
    """The loss, by what was asked and the counts of the classes.

    Args:
        sampling: where classes are not drawn as often as they come, the counts say nothing of what
            the loss sees, and one remedy is enough.

    Raises:
        ConfigError: a remedy that does not go with the loss that was asked for.
    """
    asked = config.train
    counts = dataset.counts["train"]
    imbalance: Imbalance = decided.take(
        "loss.imbalance", asked.imbalance, _imbalance_rule(config, counts, sampling)
    )
    _check(config, imbalance)
    if sampling == "balanced" and imbalance in ("weighted", "logit_adjustment"):
        # A search may try it, so it is said and not refused.
        decided.reasons["loss.imbalance"] += (
            ", though all classes are drawn equally often: together they favour the rare ones"
        )
    name_rule: tuple[Literal["cross_entropy", "bce", "focal"], str] = (
        "cross_entropy",
        "a proper score: its probabilities can be trusted",
    )
    if imbalance == "focal":
        name_rule = "focal", "the remedy that was asked for; Lin et al. 2017"
    name = decided.take("loss.name", asked.loss, name_rule)
    gamma = asked.focal_gamma if asked.focal_gamma is not None else 2.0
    if name == "focal":
        decided.reasons["loss.focal_gamma"] = (
            "asked for" if asked.focal_gamma is not None else "as published; Lin et al. 2017"
        )
    weights = priors = None
    if imbalance == "weighted":
        weights = _weights(counts)
        decided.reasons["loss.class_weights"] = "one over the count; mean 1 over the images"
    if imbalance == "logit_adjustment":
        priors = _log_priors(counts)
        decided.reasons["loss.log_prior"] = "the log of each class's share; Menon et al. 2021"
    return LossPlan(
        name=name,
        imbalance=imbalance,
        focal_gamma=gamma,
        class_weights=weights,
        log_prior=priors,
    )


def _imbalance_rule(
    config: Config, counts: tuple[int, ...], sampling: Sampling
) -> tuple[Imbalance, str]:
    present = [count for count in counts if count]
    ratio = max(present) / min(present)
    numbers = f"largest class to smallest: {ratio:.3g} to 1"
    if config.train.loss == "focal":
        return "focal", "the loss that was asked for"
    if sampling == "balanced":
        return "none", f"{numbers}, but all are drawn equally often; twice would be too much"
    if sampling == "weighted":
        return "none", f"{numbers}, but the weights of the table say how often each is drawn"
    if ratio <= BALANCED_RATIO:
        return "none", f"{numbers}; up to {BALANCED_RATIO:g} to 1 nothing is done"
    if config.train.loss == "bce":
        return "weighted", f"{numbers}: each class counts alike"
    return "logit_adjustment", f"{numbers}: each class is made to count alike"


def _check(config: Config, imbalance: Imbalance) -> None:
    loss = config.train.loss
    if imbalance == "focal" and loss not in (None, "focal"):
        raise ConfigError(
            f"train.imbalance = 'focal' is a loss of its own, and train.loss = '{loss}' another",
            fix="leave one of them out",
        )
    if imbalance == "logit_adjustment" and loss not in (None, "cross_entropy"):
        raise ConfigError(
            f"train.imbalance = 'logit_adjustment' moves the logits of a softmax; train.loss = "
            f"'{loss}' does not go with it",
            fix="use train.imbalance = 'weighted', or leave train.loss out",
        )
    if config.train.focal_gamma is not None and "focal" not in (loss, imbalance):
        raise ConfigError(
            "train.focal_gamma is only used by the focal loss", fix="set train.loss = 'focal' too"
        )


def _weights(counts: tuple[int, ...]) -> tuple[float, ...]:
    """A weight for each class; a class without images gets none."""
    present = sum(1 for count in counts if count)
    total = sum(counts)
    return tuple(total / (present * count) if count else 0.0 for count in counts)


def _log_priors(counts: tuple[int, ...]) -> tuple[float, ...]:
    """The log of each class's share of the images; a class without any counts as half an image."""
    total = sum(counts)
    return tuple(LOGIT_ADJUSTMENT * math.log(max(count, 0.5) / total) for count in counts)

"""Linear heads on features that are computed once: minutes become seconds, and many heads cost
little more than one.

All candidates (penalties, label smoothing, folds of a cross-validation) are one batch: their
weights lie side by side, so that a round is two products of matrices for all of them together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidi.loss import Loss
from vidi.metrics import Predictions, fit_temperature

# Penalties on the squared weights, for features of unit variance and the mean loss of an image, as
# shares of what they are around: what is learnt from more images needs less of it.
PENALTIES: Final = (0.1, 0.3, 1.0, 3.0)
PENALTY_AROUND: Final = 100.0
PENALTY_MOST: Final = 0.1
MAX_ROUNDS: Final = 100
# A candidate is done when a round makes its loss smaller by less than this share of it.
TOLERANCE: Final = 3e-5
# A guess of how curved the loss is for a feature of unit spread; a rough one is enough.
CURVATURE: Final = 0.05
# Finding the principal directions of more features than this would take longer than it saves.
MOST_TURNED: Final = 2_560
# Logits of one product, so that a large data set needs no more memory than this many numbers.
LOGITS_AT_ONCE: Final = 1 << 24


class Candidate(NamedTuple):
    """One way to fit a head."""

    penalty: float
    label_smoothing: float


@dataclass(frozen=True)
class Head:
    """A fitted head, for features as the network gives them.

    weight (K, F), bias (K,). accuracy, log_loss: on images that the chosen way was tried on without
    having seen them, or None where there were none; log_loss after `temperature`. Whoever divides
    logits by `temperature` gets confidences that can be believed. tried: every candidate with its
    accuracy and log loss there.
    """

    weight: Tensor
    bias: Tensor
    candidate: Candidate
    temperature: float
    accuracy: float | None
    log_loss: float | None
    tried: tuple[tuple[Candidate, float, float], ...]
    # What the choice was made by, in words.
    chosen_by: str
    # (held-out rows, K) probabilities, each by a head that has not seen that row; None where no row
    # is held out.
    held_out: Tensor | None


def penalty_around(num_train: int) -> float:
    """What the penalties are around that are tried, and what is taken where none can be chosen."""
    return min(PENALTY_MOST, PENALTY_AROUND / num_train)


def candidates_of(
    label_smoothing: float, num_train: int, *, penalty: float | None = None
) -> tuple[Candidate, ...]:
    """What is tried: every penalty, with the plan's smoothing of the labels and without; with a
    penalty that is given, that one and the plan's smoothing."""
    if penalty is not None:
        return (Candidate(penalty, label_smoothing),)
    smoothings = sorted({0.0, label_smoothing})
    around = penalty_around(num_train)
    penalties = [share * around for share in PENALTIES]
    return tuple(itertools.starmap(Candidate, itertools.product(penalties, smoothings)))


class _Turned(NamedTuple):
    """Features of unit variance, and the same in the basis (F, F) of their principal directions,
    with a column of ones for the bias; `spread` (F,) is the variance in each."""

    standard: Tensor
    values: Tensor
    basis: Tensor
    spread: Tensor

    @classmethod
    def of(cls, standard: Tensor) -> Self:
        length = standard.shape[1]
        if length > MOST_TURNED:
            basis = torch.eye(length, dtype=standard.dtype)
            spread, turned = standard.square().mean(0), standard
        else:
            spread, basis = _directions(standard.T @ standard / len(standard))
            turned = standard @ basis
        turned = torch.cat([turned, turned.new_ones(len(turned), 1)], dim=1)
        return cls(standard, turned, basis, spread.clamp(min=0.0))


def _directions(products: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric matrix."""
    try:
        spread, basis = torch.linalg.eigh(products)
    except RuntimeError:
        # Of fewer images than features most eigenvalues are zero, and LAPACK's single precision may
        # not come to an end (1,280 features of 34 images on one thread).
        spread, basis = torch.linalg.eigh(products.double())
    return spread.to(products.dtype), basis.to(products.dtype)


def choose_head(
    values: Tensor,
    targets: Tensor,
    loss: Loss,
    num_classes: int,
    *,
    candidates: Sequence[Candidate],
    num_train: int,
    folds: int = 0,
    refit_all: bool = False,
) -> Head:
    """The head of the best candidate.

    Args:
        values: (N, F), floats of any precision; all is computed in it.
        targets: (N,) int64.
        num_train: the first so many rows are for training, the others are held out.
        folds: 0 chooses by the held-out rows; k > 1 by cross-validation over all rows.
        refit_all: the head that is given out is fitted on all rows, not on the training rows alone.
    """
    mean, scale = values.mean(0), values.std(0).clamp(min=1e-6)
    turned = _Turned.of((values - mean) / scale)
    part = _parts(targets.numpy(), num_train, folds)
    tried: list[tuple[Candidate, float, float]] = []
    temperatures = []
    held_out = None
    if part.max() > 0:
        judged = _judged(turned, targets, loss, num_classes, candidates, part)
        for candidate, logits in zip(candidates, judged, strict=True):
            accuracy, log_loss, temperature = _worth(logits, targets, part)
            tried.append((candidate, accuracy, log_loss))
            temperatures.append(temperature)
        best = min(range(len(candidates)), key=lambda number: tried[number][2])
        chosen, accuracy, log_loss = tried[best]
        # In cross-validation the training rows were held out in turn as well.
        last = judged[best][-(len(targets) - num_train) :] if num_train < len(targets) else None
        held_out = None if last is None else last.float().softmax(1)
        temperature = temperatures[best]
        said = (
            f"{folds}-fold cross-validation over {len(targets):,} images"
            if folds
            else f"{len(targets) - num_train:,} held-out images"
        )
    else:
        chosen = Candidate(penalty_around(num_train), loss.label_smoothing)
        temperature, said = 1.0, "nothing held out"
    rows = torch.ones(1, len(targets), dtype=torch.bool)
    if not refit_all:
        rows[:, num_train:] = False
    weight, bias = _fitted(turned, targets, loss, num_classes, [chosen], rows)
    # The network itself gives features as they are.
    weight = weight[0] / scale
    return Head(
        weight=weight.float(),
        bias=(bias[0] - weight @ mean).float(),
        candidate=chosen,
        temperature=temperature,
        accuracy=accuracy if tried else None,
        log_loss=log_loss if tried else None,
        tried=tuple(tried),
        chosen_by=said,
        held_out=held_out,
    )


def _parts(labels: NDArray[np.int64], num_train: int, folds: int) -> NDArray[np.int64]:
    """(N,): 0 for rows that are never held out, else the number of the fold that holds them out."""
    if not folds:
        return (np.arange(len(labels)) >= num_train).astype(np.int64)
    # Of each class every fold gets the same number, in an order without meaning.
    shuffled = np.random.default_rng(0).permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    part = np.empty(len(labels), dtype=np.int64)
    part[order] = np.arange(len(labels)) % folds + 1
    return part


def _judged(
    turned: _Turned,
    targets: Tensor,
    loss: Loss,
    num_classes: int,
    candidates: Sequence[Candidate],
    part: NDArray[np.int64],
) -> Tensor:
    """(candidates, held-out rows, K): logits of each row by a head that has not seen it."""
    numbers = torch.from_numpy(part)
    folds = range(1, int(part.max()) + 1)
    every = [candidate for candidate in candidates for _ in folds]
    rows = torch.stack([numbers != fold for _ in candidates for fold in folds])
    weight, bias = _fitted(turned, targets, loss, num_classes, every, rows)
    values = turned.standard
    held_out = values.new_zeros(len(candidates), len(targets), num_classes)
    for number, (index, fold) in enumerate(itertools.product(range(len(candidates)), folds)):
        mine = numbers == fold
        held_out[index, mine] = values[mine] @ weight[number].T + bias[number]
    return held_out[:, numbers > 0]


def _worth(logits: Tensor, targets: Tensor, part: NDArray[np.int64]) -> tuple[float, float, float]:
    """Accuracy, log loss at the best temperature, and that temperature, of held-out logits."""
    labels = targets[torch.from_numpy(part > 0)].numpy()
    shares = logits.float().softmax(1)
    found = fit_temperature(Predictions(np.arange(len(labels)), labels, shares.numpy()))
    accuracy = float((logits.argmax(1).numpy() == labels).mean())
    return accuracy, found.log_loss_after, found.value


def _fitted(
    turned: _Turned,
    targets: Tensor,
    loss: Loss,
    num_classes: int,
    candidates: Sequence[Candidate],
    rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """rows (C, N) bool -> weights (C, K, F), biases (C, K), one a candidate."""
    count = len(candidates)
    values, spread = turned.values, turned.spread
    length = values.shape[1]
    penalties = values.new_tensor([candidate.penalty for candidate in candidates])
    smoothing = [candidate.label_smoothing for candidate in candidates]
    shares = rows.to(values.dtype) / rows.sum(1, keepdim=True)
    # A bias is not penalised.
    free = values.new_ones(length)
    free[-1] = 0.0
    # Steps are taken in coordinates in which the curvature is about the same in all directions:
    # half of the rounds (48 instead of 90 for clothing, 1,280 features, at the penalty it takes).
    curvature = CURVATURE * torch.cat([spread, spread.new_ones(1)])
    unit = (curvature + 2.0 * penalties[:, None] * free).rsqrt()
    at_once = max(1, LOGITS_AT_ONCE // max(1, count * num_classes))

    def value_and_gradient(point: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """(A, P) of the candidates `which` (A,) -> (A,), (A, P)."""
        units = unit[which][:, None, :]
        weight = point.view(len(which), num_classes, length) * units
        flat = weight.flatten(0, 1)
        total = point.new_zeros(len(which))
        gradient = torch.zeros_like(flat)
        for start in range(0, len(values), at_once):
            some = slice(start, start + at_once)
            logits = values[some] @ flat.T
            each, slope = _losses(
                logits.view(len(logits), len(which), num_classes),
                targets[some],
                shares[which, some].T,
                loss,
                [smoothing[number] for number in which.tolist()],
            )
            total += each
            gradient += slope.reshape(len(logits), -1).T @ values[some]
        pull = penalties[which, None, None] * free * weight
        squares = (pull * weight).sum((1, 2))
        slopes = (gradient.view_as(weight) + 2.0 * pull) * units
        return total + squares, slopes.flatten(1)

    found = minimised(value_and_gradient, values.new_zeros(count, num_classes * length))
    weight = found.view(count, num_classes, length) * unit[:, None, :]
    return weight[:, :, :-1] @ turned.basis.T, weight[:, :, -1]


def _losses(
    logits: Tensor, targets: Tensor, shares: Tensor, loss: Loss, smoothing: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """logits (N, A, K), shares (N, A): the weighted loss of each candidate (A,), and its gradient
    in the logits (N, A, K)."""
    slope = torch.empty_like(logits)
    total = logits.new_zeros(logits.shape[1])
    for value in sorted(set(smoothing)):
        mine = torch.tensor([one == value for one in smoothing])
        with torch.enable_grad():
            some = logits[:, mine].detach().requires_grad_()
            adjusted = some if loss.log_prior is None else some + loss.log_prior
            wanted = replace(loss, label_smoothing=value)
            each = wanted.of_each(
                adjusted.flatten(0, 1), targets.repeat_interleave(int(mine.sum()))
            )
            weighted = (each.view(some.shape[:2]) * shares[:, mine]).sum(0)
            (slope[:, mine],) = torch.autograd.grad(weighted.sum(), some)
        total[mine] = weighted.detach()
    return total, slope


# ---- Minimising many functions at once -----------------------------------------------------------

# Pairs of steps and changes of the gradient that L-BFGS remembers.
MEMORY: Final = 10
MAX_HALVINGS: Final = 20
# A step has to bring this share of what the slope promises (Armijo).
ENOUGH: Final = 1e-4


def minimised(
    value_and_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: Tensor
) -> Tensor:
    """L-BFGS (Liu and Nocedal 1989) on C smooth functions at once, each with its own curvature,
    step and end; those that are done are computed no more.

    Args:
        value_and_gradient: points (A, P) of the functions `which` (A,) -> values (A,), (A, P).
        start: (C, P).
    """
    done_at = start.clone()
    which = torch.arange(len(start))
    points = start
    values, gradients = value_and_gradient(points, which)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(MAX_ROUNDS):
        direction = -_curved(gradients, steps, changes)
        slope = (gradients * direction).sum(1)
        length = torch.ones_like(values)
        if not steps:
            length = 1.0 / gradients.norm(dim=1).clamp(min=1.0)
        found = points + length[:, None] * direction
        new_values, new_gradients = value_and_gradient(found, which)
        good = new_values <= values + ENOUGH * length * slope
        for _ in range(MAX_HALVINGS):
            if bool(good.all()):
                break
            length = torch.where(good, length, 0.5 * length)
            poor = ~good
            found[poor] = points[poor] + length[poor, None] * direction[poor]
            new_values[poor], new_gradients[poor] = value_and_gradient(found[poor], which[poor])
            good = new_values <= values + ENOUGH * length * slope
        # What no step makes smaller is at its end, as far as the precision goes.
        found[~good], new_values[~good] = points[~good], values[~good]
        new_gradients[~good] = gradients[~good]
        going = good & (values - new_values > TOLERANCE * new_values.abs())
        done_at[which] = found
        steps = [*steps[-MEMORY + 1 :], found - points]
        changes = [*changes[-MEMORY + 1 :], new_gradients - gradients]
        if not bool(going.any()):
            break
        which, points = which[going], found[going]
        values, gradients = new_values[going], new_gradients[going]
        steps = [step[going] for step in steps]
        changes = [change[going] for change in changes]
    return done_at


def _curved(gradients: Tensor, steps: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    """(A, P): gradients times an estimate of the inverse curvature, by two loops over the memory.

    A pair without positive curvature counts as not there.
    """
    products = [(step * change).sum(1) for step, change in zip(steps, changes, strict=True)]
    inverse = [torch.where(product > 0, 1.0 / product, 0.0) for product in products]
    result = gradients.clone()
    shares: list[Tensor] = []
    for step, change, factor in reversed(list(zip(steps, changes, inverse, strict=True))):
        share = factor * (step * result).sum(1)
        result -= share[:, None] * change
        shares.append(share)
    if steps:
        squares = (changes[-1] * changes[-1]).sum(1)
        size = torch.where(products[-1] > 0, products[-1] / squares.clamp(min=1e-30), 1.0)
        result *= size[:, None]
    for step, change, factor, share in zip(steps, changes, inverse, reversed(shares), strict=True):
        back = factor * (change * result).sum(1)
        result += (share - back)[:, None] * step
    return result

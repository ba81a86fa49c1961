"""The head alone, fitted on features that are computed once: minutes become seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vidi import optim
from vidi.augment import views
from vidi.config import Config
from vidi.data import Loader
from vidi.loss import Loss
from vidi.model import Classifier, set_head
from vidi.plan import Plan
from vidi.step import StepSettings, autocast
from vidi.train.loop import Job
from vidi.train.prepare import (
    Extensions,
    Prepared,
    build_job,
    evaluation_loader,
    start_from_images,
)
from vidi.train.ranks import ALONE, Ranks
from vidi.train.state import State

# Penalties on the squared weights, for features of unit variance and the mean loss of an image; the
# one is taken whose validation is best.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
MAX_ROUNDS = 20


def begun_job(
    prepared: Prepared,
    state: State,
    config: Config,
    extensions: Extensions,
    *,
    ranks: Ranks = ALONE,
    say: Callable[[str], None],
) -> Job:
    """The job of a plan; what is computed before the first step is computed here."""
    plan, dataset, store = prepared.plan, prepared.dataset, prepared.store
    job = build_job(plan, config, dataset, store, extensions, ranks)
    if state.step == 0:
        if ranks.is_first:
            start_from_images(plan, prepared.model, dataset, store)
            if plan.head != "with_the_rest":
                held_out = None
                if job.validation is not None:
                    held_out = evaluation_loader(plan, dataset, store, "validation")
                images = evaluation_loader(plan, dataset, store, "train")
                fit_head(plan, prepared.model, images, held_out, say=say)
        ranks.wait_for_first("start")
        ranks.same(prepared.model)
        if state.average is not None:
            state.average.reset(prepared.model)
    return job


def fit_head(
    plan: Plan,
    classifier: Classifier,
    train: Loader,
    validation: Loader | None,
    *,
    say: Callable[[str], None],
) -> None:
    """Replace the head's weights by those that fit the features of the training images best.

    The features are those of the centre of each image, without augmentation. Multinomial logistic
    regression by L-BFGS, with the loss of the plan (Kornblith et al. 2019; as the first half of
    "linear probing, then fine-tuning", Kumar et al. 2022).

    Raises:
        UsageError: the network has no linear head.
    """
    say(f"fitting the head on the features of {train.num_images:,} images")
    features, targets = _features(plan, classifier, train)
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    features = (features - mean) / scale
    held_out = None
    if validation is not None:
        some, labels = _features(plan, classifier, validation)
        held_out = (some - mean) / scale, labels
    loss = StepSettings.of(plan).loss
    best: tuple[float, Tensor, Tensor] | None = None
    # Without images to choose by, the middle of the road.
    for penalty in PENALTIES if held_out is not None else PENALTIES[1:2]:
        weight, bias = _regression(features, targets, classifier.num_classes, loss, penalty)
        score = 0.0
        if held_out is not None:
            logits = held_out[0] @ weight.T + bias
            score = float(torch.nn.functional.cross_entropy(logits, held_out[1]))
        if best is None or score < best[0]:
            best = score, weight, bias
    assert best is not None
    _, weight, bias = best
    # The network itself gives features as they are.
    weight = weight / scale
    set_head(classifier, weight, bias - weight @ mean)


@torch.inference_mode()
def _features(plan: Plan, classifier: Classifier, loader: Loader) -> tuple[Tensor, Tensor]:
    """(N, F) float32 and (N,) int64 of every image of a loader, on the model's device."""
    classifier.eval()
    device = torch.device(plan.execution.device)
    found, labels = [], []
    for batch in loader.batches(epoch=0):
        images = batch.images.to(device)
        (centre,) = views(images, "plain", plan.pixels.image_px)
        with autocast(device, plan.execution.precision):
            found.append(classifier.features(centre).float())
        labels.append(batch.targets.to(device))
    return torch.cat(found), torch.cat(labels)


def _regression(
    features: Tensor, targets: Tensor, num_classes: int, loss: Loss, penalty: float
) -> tuple[Tensor, Tensor]:
    """features (N, F), targets (N,) -> weight (K, F), bias (K,)."""
    # What was computed in inference mode cannot be part of a graph.
    features, targets = features.clone(), targets.clone()
    linear = torch.nn.Linear(features.shape[1], num_classes, device=features.device)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = optim.make("lbfgs", linear, learning_rate=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(linear(features), targets) / len(features)
        value = value + penalty * linear.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    before = float("inf")
    for _ in range(MAX_ROUNDS):
        now = float(optimizer.step(closure))  # type: ignore[arg-type]
        if before - now < 1e-5 * abs(now):
            break
        before = now
    return linear.weight.detach(), linear.bias.detach()

"""A job at its beginning: what is computed from the images before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vidi.config import Config
from vidi.data import Dataset, PixelStore, cache_folder
from vidi.model import Classifier, set_head
from vidi.plan import Plan
from vidi.step import StepSettings
from vidi.train.bank import Head, candidates_of, choose_head
from vidi.train.features import all_features, features
from vidi.train.loop import Job
from vidi.train.prepare import Extensions, Prepared, build_job, start_from_images
from vidi.train.ranks import ALONE, Ranks
from vidi.train.sharding import shard_state
from vidi.train.state import State


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
            loaded = prepared.model.fit
            if loaded is None or loaded.missing:
                start_from_images(plan, prepared.model, dataset, store)
            if plan.head != "with_the_rest":
                cache_dir = cache_folder(config.data.cache_dir)
                fit_head(plan, prepared.model, dataset, store, cache_dir=cache_dir, say=say)
        ranks.wait_for_first("start")
        ranks.same(prepared.model)
        if state.average is not None:
            state.average.reset(prepared.model)
    if plan.execution.sharding == "full":
        shard_state(state, plan)
    return job


def fit_head(
    plan: Plan,
    classifier: Classifier,
    dataset: Dataset,
    store: PixelStore,
    *,
    cache_dir: Path | None,
    say: Callable[[str], None],
) -> Head:
    """Replace the head's weights by those that fit the features of the training images best.

    Multinomial logistic regression by L-BFGS, with the loss of the plan, on the features of the
    centre of each image, where mirror images show the same averaged with those of its mirror image
    (Kornblith et al. 2019; as the first half of "linear probing, then fine-tuning", Kumar et al.
    2022). How strongly weights are penalised is what the held-out images like best.

    Raises:
        UsageError: the network has no linear head.
    """
    train, held_out = dataset.indices("train"), dataset.indices("validation")
    say(f"fitting the head on the features of {len(train):,} images")
    ids = np.concatenate([train, held_out])
    values = all_features(
        features(plan, classifier, dataset, store, ids, flipped=flips(plan), cache_dir=cache_dir)
    )
    head = choose_head(
        values,
        torch.from_numpy(dataset.labels[ids]),
        StepSettings.of(plan).loss.to(values.device),
        classifier.num_classes,
        candidates=candidates_of(plan.label_smoothing, len(train), penalty=plan.head_penalty),
        num_train=len(train),
    )
    device = classifier.scale.device
    set_head(classifier, head.weight.to(device), head.bias.to(device))
    return head


def flips(plan: Plan) -> bool:
    """Whether mirror images show the same thing, as far as the plan knows."""
    return plan.augment.horizontal_flip != "none"

"""A model and a loader to Predictions, and Predictions to an Evaluation."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from torch import nn

from vidi.augment import ViewKind, average_probabilities, views
from vidi.data import Loader
from vidi.facts import Precision
from vidi.metrics import Predictions
from vidi.step import autocast


def predict(
    model: nn.Module,
    loader: Loader,
    image_px: int,
    precision: Precision,
    device: torch.device,
    *,
    kind: ViewKind = "plain",
) -> Generator[Predictions]:
    """Predict every image of a loader, in order, yielding after each batch what is there so far.

    A generator, so that a caller can show progress and stop between two batches; the last value
    is complete: one row for each of the loader's ids.

    Args:
        model: pixels in, logits out; it is put into evaluation mode.
        loader: unshuffled, nothing dropped.
        image_px: side of the centre crop that the model sees.
        precision: what the forward pass computes in; probabilities are always float32.
        device: where the model is.
        kind: which views of each image the model sees; their probabilities are averaged.
    """
    model.eval()
    ids = np.zeros(loader.num_images, dtype=np.int64)
    labels = np.zeros(loader.num_images, dtype=np.int64)
    probabilities: np.ndarray | None = None
    count = 0
    for batch in loader.batches(epoch=0):
        with torch.inference_mode(), autocast(device, precision):
            images = batch.images.to(device, non_blocking=True)
            logits = [model(view) for view in views(images, kind, image_px)]
        part = average_probabilities(logits).cpu().numpy()
        if probabilities is None:
            probabilities = np.zeros((loader.num_images, part.shape[1]), dtype=np.float32)
        rows = slice(count, count + len(batch))
        ids[rows] = batch.ids.numpy()
        labels[rows] = batch.targets.numpy()
        probabilities[rows] = part
        count += len(batch)
        yield Predictions(ids[:count], labels[:count], probabilities[:count])

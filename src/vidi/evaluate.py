"""A model and a loader to Predictions, and Predictions to an Evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidi import memory
from vidi.augment import average_probabilities, views
from vidi.augment_settings import ViewKind
from vidi.data import Loader
from vidi.facts import Precision
from vidi.memory import Limit
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
    limit: Limit | None = None,
    note: Callable[[str], None] | None = None,
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
        limit: how many images go through at once; it falls where memory runs out. The loader's
            batches, if left out.
        note: told about that.

    Raises:
        OutOfMemory: not even one image fits.
    """
    limit = limit or Limit(loader.batch_size)
    model.eval()
    ids = np.zeros(loader.num_images, dtype=np.int64)
    labels = np.zeros(loader.num_images, dtype=np.int64)
    probabilities: np.ndarray | None = None
    count = 0
    for batch in loader.batches(epoch=0):
        part = _probabilities_that_fit(
            model, batch.images, image_px, precision, device, kind, limit, note
        )
        if probabilities is None:
            probabilities = np.zeros((loader.num_images, part.shape[1]), dtype=np.float32)
        rows = slice(count, count + len(batch))
        ids[rows] = batch.ids.numpy()
        labels[rows] = batch.targets.numpy()
        probabilities[rows] = part
        count += len(batch)
        yield Predictions(ids[:count], labels[:count], probabilities[:count])


def _probabilities_that_fit(
    model: nn.Module,
    images: Tensor,
    image_px: int,
    precision: Precision,
    device: torch.device,
    kind: ViewKind,
    limit: Limit,
    note: Callable[[str], None] | None,
) -> NDArray[np.float32]:
    """(N, K), computed in parts of what fits into memory."""
    parts: list[NDArray[np.float32]] = []
    done = 0
    while done < len(images):
        try:
            with torch.inference_mode(), autocast(device, precision):
                some = images[done : done + limit.num_images].to(device, non_blocking=True)
                logits = [model(view) for view in views(some, kind, image_px)]
            parts.append(average_probabilities(logits).cpu().numpy())
        except (RuntimeError, MemoryError) as error:
            said = limit.halve(error, what="evaluation")
            if note is not None:
                note(said)
        else:
            done += len(some)
            continue
        memory.release()
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

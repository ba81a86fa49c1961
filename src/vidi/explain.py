"""Where a run's model looked, and how it sees the judged images beside each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from torch import nn

from vidi.data import Dataset, PixelStore
from vidi.errors import UsageError
from vidi.image import center_crop
from vidi.metrics import Predictions
from vidi.own_data import own_data
from vidi.predictor.trained import TrainedNetwork, restored
from vidi.run import Run

# Points of the map: more lie on top of each other.
MAP_POINTS: Final = 1000
# Training images among which the nearest are looked for, and how many of them are shown.
NEIGHBOURS_OF: Final = 1500
NEIGHBOURS: Final = 3
# Mistakes that get neighbours; each neighbour is a picture of the page.
MOST_WITH_NEIGHBOURS: Final = 24
# Parts to a side that are covered one after the other where there are no maps to look at.
GRID: Final = 7
_BATCH: Final = 32


def explain(
    run: Run,
    *,
    data: str | Path | None = None,
    model: Callable[..., nn.Module] | None = None,
    show: Callable[[Any], None] = lambda _: None,
) -> None:
    """Write into the run what its report needs beyond numbers, for the split that it is about.

    Heat of the kept mistakes: Grad-CAM, or, where the network has no maps of features, how much the
    answer suffers when a part of the image is covered. A map of the embeddings (t-SNE, van der
    Maaten and Hinton 2008) of at most 1,000 judged images. The nearest training images of the first
    mistakes, by the cosine of their embeddings.

    Raises:
        UsageError: nothing was judged, or `model` is missing.
        MismatchError: the data are not those of the run.
    """
    split = next((each for each in ("test", "validation") if each in run.evaluated_splits()), None)
    if split is None:
        raise UsageError(f"{run.path} was not judged yet", fix=f"vidi evaluate {run.path}")
    plan, _, classifier, _ = restored(run, model)
    dataset, store, _ = own_data(run, data, say=show)
    network = TrainedNetwork(classifier)
    predictions = Predictions.from_arrays(run.read_predictions(split))
    side = plan.pixels.image_px
    arrays: dict[str, NDArray[Any]] = {}
    kept = np.zeros(0, np.int64)
    if run.pictures_path(split).exists():
        kept = run.read_pictures(split)["ids"]
    if len(kept):
        show("looking where it looked")
        arrays |= {"heat_ids": kept, "heat": _heat(network, _pixels(store, kept, side))}
    if "features" in network.outputs:
        show("drawing the map")
        chosen = np.linspace(0, len(predictions) - 1, min(len(predictions), MAP_POINTS))
        ids = predictions.ids[chosen.astype(np.int64)]
        features = _features(network, store, ids, side)
        arrays |= {"map_ids": ids, "map": _map(features)}
        train = dataset.indices("train")
        train = train[np.linspace(0, len(train) - 1, min(len(train), NEIGHBOURS_OF)).astype(int)]
        if len(kept) and len(train) > NEIGHBOURS:
            arrays |= _neighbours(network, dataset, store, kept[:MOST_WITH_NEIGHBOURS], train, side)
    run.write_explained(split, arrays)


def _pixels(store: PixelStore, ids: NDArray[np.int64], side: int) -> NDArray[np.uint8]:
    """(N, C, side, side)."""
    return np.moveaxis(center_crop(store.take(ids)[0], side), 3, 1)


def _features(
    network: TrainedNetwork, store: PixelStore, ids: NDArray[np.int64], side: int
) -> NDArray[np.float32]:
    parts = [
        network(_pixels(store, ids[start : start + _BATCH], side), ("features",))[0]
        for start in range(0, len(ids), _BATCH)
    ]
    return np.concatenate(parts)


def _heat(network: TrainedNetwork, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, h, w), each image's largest is 255."""
    if "heat" in network.outputs:
        parts = [
            network(pixels[start : start + _BATCH], ("heat",))[0]
            for start in range(0, len(pixels), _BATCH)
        ]
        heat = np.concatenate(parts)
    else:
        heat = np.stack([_covered(network, each) for each in pixels])
    largest = np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-9)
    scaled: NDArray[np.uint8] = np.rint(255 * heat / largest).astype(np.uint8)
    return scaled


def _covered(network: TrainedNetwork, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(GRID, GRID): how far the first class's logit falls when a part is made middle grey.

    Zeiler and Fergus 2014. Needs nothing of the network but its answers.
    """
    (logits,) = network(pixels[None], ("logits",))
    first = int(logits[0].argmax())
    grid = min(GRID, pixels.shape[1], pixels.shape[2])
    edges = [np.linspace(0, size, grid + 1).astype(int) for size in pixels.shape[1:]]
    covered = np.repeat(pixels[None], grid * grid, axis=0)
    for place in range(grid * grid):
        down, across = divmod(place, grid)
        rows = slice(edges[0][down], edges[0][down + 1])
        columns = slice(edges[1][across], edges[1][across + 1])
        covered[place, :, rows, columns] = 128
    (found,) = network(covered, ("logits",))
    fall: NDArray[np.float32] = np.maximum(logits[0, first] - found[:, first], 0.0)
    return fall.reshape(grid, grid)


def _map(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, F) -> (N, 2) in -1..1; near is alike."""
    count = len(features)
    if count < 5:
        places = np.zeros((count, 2), np.float32)
        places[:, 0] = np.linspace(-1, 1, count)
        return places
    unit = features - features.mean(axis=0)
    unit /= max(float(unit.std()), 1e-9)
    # Identical images have no direction to start in: a little noise, always the same.
    unit += np.random.default_rng(0).normal(0, 1e-4, unit.shape).astype(np.float32)
    made = TSNE(
        perplexity=min(30.0, (count - 1) / 3), init="pca" if unit.shape[1] > 1 else "random",
        random_state=0,
    ).fit_transform(unit)  # fmt: skip
    places = (made - made.mean(axis=0)).astype(np.float32)
    return np.asarray(places / max(float(np.abs(places).max()), 1e-9), np.float32)


def _neighbours(
    network: TrainedNetwork,
    dataset: Dataset,
    store: PixelStore,
    ids: NDArray[np.int64],
    train: NDArray[np.int64],
    side: int,
) -> dict[str, NDArray[Any]]:
    ours, theirs = (_unit(_features(network, store, each, side)) for each in (ids, train))
    order = np.argsort(-(ours @ theirs.T), axis=1, kind="stable")[:, :NEIGHBOURS]
    nearest = train[order]
    return {
        "near_of": ids,
        "near_ids": nearest,
        "near_labels": dataset.labels[nearest],
        "near_pixels": center_crop(store.take(nearest.ravel())[0], side),
    }


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norm, 1e-9), np.float32)

"""Files -> rows, in order: decoded in threads, predicted in batches."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidi.cores import usable_cores
from vidi.errors import UnreadableImage, UsageError
from vidi.image import Pixels
from vidi.predict.inputs import Found
from vidi.predict.outputs import Columns, Row, digest_of, inert
from vidi.predictor import Predictor
from vidi.predictor.predictor import read_image

BATCH: Final = 32
# Batches that are being decoded while one is predicted.
_AHEAD: Final = 2


@dataclass
class Counts:
    """How far it is; grows while the rows are taken."""

    done: int = 0
    bad: int = 0
    abstained: int = 0
    skipped: int = 0


def predict_files(
    predictor: Predictor,
    files: Iterable[Found],
    columns: Columns,
    counts: Counts,
    *,
    done: NDArray[np.uint64] | None = None,
    threads: int | None = None,
) -> Iterator[Row]:
    """One row for each file, in the order of the files; bad files have a reason, never a guess.

    done: digests of the files to pass over, sorted, of names as in CSV or in JSON lines.

    Raises:
        UsageError: embeddings of a network that gives none.
    """
    if columns.num_features and "features" not in predictor.network.outputs:
        raise UsageError("this network gives no embedding")
    workers = threads or usable_cores()
    wanted = _not_done(files, done, counts)
    batches = iter(lambda: _take(wanted, BATCH), [])
    with ThreadPoolExecutor(workers, "decode") as pool:
        waiting: collections.deque[list[tuple[Found, Future[Pixels]]]] = collections.deque()
        try:
            while True:
                while len(waiting) <= _AHEAD and (batch := next(batches, None)) is not None:
                    waiting.append(
                        [(found, pool.submit(_decode, predictor, found.path)) for found in batch]
                    )
                if not waiting:
                    return
                yield from _rows(predictor, waiting.popleft(), columns, counts)
        finally:
            for batch_left in waiting:
                for _, future in batch_left:
                    future.cancel()


def _not_done(
    files: Iterable[Found], done: NDArray[np.uint64] | None, counts: Counts
) -> Iterator[Found]:
    for found in files:
        if done is not None and len(done) and _is_done(found.path, done):
            counts.skipped += 1
            continue
        yield found


def _is_done(path: str, done: NDArray[np.uint64]) -> bool:
    for name in {path, inert(path)}:
        digest = np.uint64(digest_of(name))
        place = int(np.searchsorted(done, digest))
        if place < len(done) and done[place] == digest:
            return True
    return False


def _take(files: Iterator[Found], count: int) -> list[Found]:
    return list(itertools.islice(files, count))


def _decode(predictor: Predictor, path: str) -> Pixels:
    return predictor.prepare(read_image(Path(path)))


def _rows(
    predictor: Predictor,
    batch: list[tuple[Found, Future[Pixels]]],
    columns: Columns,
    counts: Counts,
) -> Iterator[Row]:
    pixels: list[Pixels] = []
    errors: dict[int, UnreadableImage] = {}
    for place, (_, future) in enumerate(batch):
        try:
            pixels.append(future.result())
        except UnreadableImage as error:
            errors[place] = error
    answers = (
        predictor.answers(np.stack(pixels), features=bool(columns.num_features)) if pixels else None
    )
    position = 0
    for place, (found, _) in enumerate(batch):
        counts.done += 1
        wrong = errors.get(place)
        if wrong is not None:
            counts.bad += 1
            yield Row(found.path, reason=wrong.reason, message=wrong.sentence)
            continue
        assert answers is not None
        probabilities = answers.probabilities[position]
        if not np.isfinite(probabilities).all():
            counts.bad += 1
            yield Row(found.path, reason="NOT_FINITE", message="the model's answer is no number")
        else:
            prediction = predictor.prediction(probabilities)
            counts.abstained += prediction.abstained
            features = answers.features[position] if answers.features is not None else ()
            yield Row(
                found.path,
                abstained=prediction.abstained,
                top=prediction.top[: columns.top],
                probabilities=tuple(probabilities.tolist()) if columns.probabilities else (),
                embedding=tuple(map(float, features)) if columns.num_features else (),
            )
        position += 1

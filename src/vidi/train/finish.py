"""After the last step: predictions of the best weights, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from vidi.augment_settings import ViewKind
from vidi.data import Dataset, PixelStore
from vidi.evaluate import predict
from vidi.facts import Split
from vidi.image import center_crop
from vidi.metrics import Evaluation, Predictions, Temperature, evaluate, fit_temperature
from vidi.model import Classifier
from vidi.own_data import replaced_of
from vidi.plan import Plan
from vidi.run import Run
from vidi.train.prepare import evaluation_loader

# How many of the worst mistakes the report shows.
MAX_PICTURES = 60

Metric = Callable[[Predictions], float]


def judge(
    run: Run | None,
    plan: Plan,
    dataset: Dataset,
    store: PixelStore,
    classifier: Classifier,
    split: Split,
    *,
    own_metrics: Sequence[Metric] = (),
    temperature: Temperature | None = None,
    leaked_ids: Sequence[int] = (),
    kind: ViewKind = "plain",
) -> Iterator[tuple[int, Evaluation | None]]:
    """Predict a split in float32, as every later prediction will, and say what it is worth.

    Yields (images done, None) while it works, and the Evaluation at the end; predictions,
    evaluation and the worst mistakes are written into `run`, where there is one. `leaked_ids` are
    images that training showed too: the numbers are given without them as well. With other views
    than the plain one, the files are named `<split>_tta` and lie beside those of the plain one.
    """
    loader = evaluation_loader(plan, dataset, store, split)
    device = torch.device(plan.execution.device)
    predictions = None
    for part in predict(classifier, loader, plan.pixels.image_px, "float32", device, kind=kind):
        predictions = part
        yield len(part), None
    assert predictions is not None, "a loader is never empty"
    evaluation = evaluate(
        predictions,
        dataset.classes,
        n_expected=dataset.num_expected(split),
        split=split,
        metrics=own_metrics,
        temperature=temperature,
        leaked_ids=leaked_ids,
    )
    if run is not None:
        name = split if kind == "plain" else f"{split}_tta"
        run.write_predictions(
            name,
            {
                "ids": predictions.ids,
                "labels": predictions.labels,
                "probabilities": predictions.probabilities,
            },
        )
        run.write_evaluation(name, evaluation.model_dump_json(indent=1))
        if kind == "plain":
            _write_pictures(run, plan, dataset, store, split, predictions)
    yield loader.num_images, evaluation


def fitted_temperature(run: Run) -> Temperature | None:
    """What makes the validation's confidences honest; None where nothing was held out for it.

    A run that learnt from its validation images has that of the run that it stands in for.
    """
    if replaced := replaced_of(run):
        return replaced.temperature
    if "validation" not in run.evaluated_splits():
        return None
    return fit_temperature(Predictions.from_arrays(run.read_predictions("validation")))


def judged(work: Iterator[tuple[int, Evaluation | None]]) -> Evaluation:
    """Let `judge` run to its end."""
    evaluation = None
    for _, last in work:
        evaluation = last
    assert evaluation is not None
    return evaluation


def _write_pictures(
    run: Run,
    plan: Plan,
    dataset: Dataset,
    store: PixelStore,
    split: Split,
    predictions: Predictions,
) -> None:
    """Keep the most confident mistakes as pixels, so that a report needs no data set."""
    predicted = predictions.probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    confidence = predictions.probabilities[wrong, predicted[wrong]]
    worst = wrong[np.argsort(-confidence, kind="stable")][:MAX_PICTURES]
    ids = predictions.ids[worst]
    run.write_pictures(
        split,
        {
            "ids": ids,
            "pixels": center_crop(store.take(ids)[0], plan.pixels.image_px),
            "names": np.array([dataset.name_of(int(number)) for number in ids], dtype=np.str_),
        },
    )

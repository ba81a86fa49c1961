"""The commands that are one call over what a run directory holds, or that change nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidi.config import Config, parse
from vidi.data import Dataset, open_dataset
from vidi.doctor import Findings, examine
from vidi.errors import DataError, MismatchError, UsageError
from vidi.facts import SPLITS, Facts, Split
from vidi.metrics import Evaluation
from vidi.plan import Plan
from vidi.report import write
from vidi.restore import build_model, load_best
from vidi.run import Run
from vidi.train.finish import fitted_temperature, judge, judged
from vidi.train.prepare import Extensions, Prepared, decoded, prepare


def plan(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    show: Callable[[Any], None] | None = None,
) -> Prepared:
    """Decide everything for `data` and train nothing; `.plan.decisions()` has the reasons.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
    """
    asked = (config or Config()).with_settings(settings or {})
    return prepare(
        data, asked, Extensions(), say=show or (lambda _: None), started_at=time.monotonic()
    )


def evaluate(
    run: str | Path | Run,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    model: Callable[..., nn.Module] | None = None,
    show: Callable[[Any], None] | None = None,
) -> Evaluation:
    """Judge a run's best weights; the run's own data when `data` is left out.

    The numbers of the run's own data are written into the run, those of other data are not.

    Raises:
        UsageError: not a run, or no such split.
        MismatchError: `data` has classes that the model does not know.
        DamagedError: no valid checkpoint.
    """
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    tell = show or (lambda _: None)
    made = Plan.from_json(opened.text("plan"), origin=f"{opened.path}: plan.json")
    config = parse(opened.text("config"), origin=str(opened.config_path))
    facts = Facts.model_validate_json(opened.text("facts")).dataset
    source = data
    if source is None:
        source = json.loads(opened.text("environment"))["data"]
    dataset = open_dataset(source, config.data)
    if dataset.classes != facts.classes:
        raise MismatchError(
            f"the classes of {dataset.name} are not those of the model in {opened.path}: "
            f"{', '.join(dataset.classes[:8])} against {', '.join(facts.classes[:8])}",
            fix="name the folders of the data as the classes were named in training",
        )
    chosen = _split(split, dataset)
    dataset, store = decoded(dataset, made, config, say=tell)
    torch.set_num_threads(made.execution.threads)
    classifier = build_model(made, model)
    load_best(opened, classifier)
    own = data is None or dataset.fingerprint == facts.fingerprint
    temperature = None if chosen == "validation" else fitted_temperature(opened)
    kept = opened if own else None
    evaluation = judged(
        judge(kept, made, dataset, store, classifier, chosen, temperature=temperature)
    )
    if own:
        write(opened)
    return evaluation


def _split(asked: str | None, dataset: Dataset) -> Split:
    present: list[Split] = [name for name in SPLITS if len(dataset.indices(name))]
    if asked is None:
        return "test" if "test" in present else "validation"
    for name in present:
        if name == asked:
            return name
    if asked in SPLITS:
        raise DataError(f"{dataset.name} has no {asked} images", fix=f"it has {', '.join(present)}")
    raise UsageError(f"no split '{asked}'", fix=f"the splits are {', '.join(SPLITS)}")


def report(run: str | Path | Run) -> Path:
    """Write the report of a run again; returns where it is.

    Raises:
        UsageError: not a run.
    """
    return write(run if isinstance(run, Run) else Run.open(Path(run)))


def doctor() -> Findings:
    """What this machine has, what is missing, and what to do about it."""
    return examine()

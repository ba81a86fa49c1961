"""The recipe of a finished run, trained once more on its validation images as well.

What was held out to choose by is no longer needed once the choice is made. Nothing is left then to
tell whether the new run is better, so it is worth it where images are few, and never assumed: it is
judged on the test images alone, and says so.
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Final

from vidi import probe
from vidi.config import Config
from vidi.data import Dataset, audit_store, open_dataset
from vidi.errors import DataError, UsageError
from vidi.facts import Facts
from vidi.metrics import Evaluation, Replaced
from vidi.own_data import as_trained, decoded, plan_of
from vidi.plan import Plan
from vidi.report import write
from vidi.restore import build_model, load_best
from vidi.run import Run
from vidi.train.deadline import Deadline
from vidi.train.finish import fitted_temperature
from vidi.train.head import begun_job
from vidi.train.prepare import Extensions, Prepared, build_state, own_model
from vidi.train.training import Show, decisions, drive, judge_run

LEARN: Final = "data.learn_validation"


def retrain(
    run_path: Path,
    data: str | Path,
    source: Run,
    config: Config,
    extensions: Extensions,
    *,
    name: str,
    ends_at: float | None = None,
    tell: Show,
) -> Run:
    """Train what `source` decided on its training and its validation images, and judge it once.

    Everything is as in its plan, for as many epochs. Its temperature is kept: there is nothing left
    to fit another one to.

    Args:
        data: what `source` was trained on.
        config: that of `source`.
        name: of `source`, for people.
        ends_at: `time.monotonic()` of the last update; where the machine is slower than it was, the
            training is shorter.

    Raises:
        UsageError: `source` has not judged its validation images.
        DataError: there are no test images to judge it by.
        TrainingError, OutOfMemory, StorageError: as `train`.
        Interrupted: a signal came.
    """
    temperature = fitted_temperature(source)
    if temperature is None:
        raise UsageError(f"{source.path} has not judged its validation images")
    found = Evaluation.model_validate_json(source.read_evaluation("validation"))
    replaced = Replaced(
        name=name,
        accuracy=found.accuracy,
        n=found.n_evaluated,
        temperature=temperature.model_copy(update={"fitted_on": f"the validation of {name}"}),
    )
    config = config.with_settings({LEARN: True, "train.minutes": None})
    before = plan_of(source)
    dataset, store = decoded(open_dataset(data, config.data), before, config, say=tell)
    with contextlib.closing(store):
        # Grouped as before, so that the test images are the same.
        dataset, _, grouped = as_trained(source, dataset, store)
        if not len(dataset.indices("test")):
            raise DataError(
                "without validation and test images nothing is left to judge it by",
                fix="hold test images out: data.test_fraction",
            )
        audit = audit_store(dataset, store, recut=False)[1]
        if grouped is not None:
            audit = audit.model_copy(update={"recut": grouped.recut, "same": grouped.same})
        facts = _facts(source, dataset)
        plan = _for_more(before, len(dataset.indices("train")), name)
        probe.configure(plan.execution)
        model = build_model(plan, own_model(plan, config, extensions))
        prepared = Prepared(dataset, store, facts, plan, model, audit)
        texts = decisions(data, config, prepared) | {"replaces": replaced.model_dump_json(indent=1)}
        run = Run.create(run_path, texts=texts)
        with run.lock():
            state = build_state(plan, model)
            job = begun_job(prepared, state, config, extensions, say=tell)
            deadline = None if ends_at is None else Deadline(ends_at, may_lengthen=False)
            plan = drive(run, plan, job, state, tell, deadline)
            load_best(run, model)
            judge_run(run, plan, config, replace(prepared, plan=plan), ("test",))
        write(run)
    return run


def _facts(source: Run, dataset: Dataset) -> Facts:
    """As they were, but for what moving images between splits has changed."""
    facts = Facts.model_validate_json(source.text("facts"))
    now = dataset.facts()
    moved = {"counts": now.counts, "fingerprint": now.fingerprint, "split_rule": now.split_rule}
    return facts.model_copy(update={"dataset": facts.dataset.model_copy(update=moved)})


def _for_more(plan: Plan, num_train: int, name: str) -> Plan:
    """The same plan with more training images: as many epochs, so more steps."""
    more = plan.model_copy(update={"num_train": num_train, "rungs": ()})
    steps = max(1, round(plan.num_epochs * more.steps_per_epoch))
    reasons = {
        **plan.reasons,
        "horizon_steps": f"{plan.num_epochs:.4g} epochs, as {name} had; validation images are "
        "learnt from as well",
    }
    return more.model_copy(
        update={
            "horizon_steps": steps,
            "last_step": steps,
            "evaluate_every_steps": steps,
            "patience_evaluations": None,
            "reasons": reasons,
        }
    )


def training_s(run: Run, plan: Plan) -> float:
    """Seconds that the updates of a run take, by its own log; 0 where it did not log any."""
    rates = [float(one["images_per_second"]) for one in run.timing.read()]
    return plan.last_step * plan.batch_size / statistics.median(rates) if rates else 0.0

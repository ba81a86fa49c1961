"""A run's own data: opened, decoded and split as they were when it was trained, or refused.

What judges, exports, explains or continues a run needs the very images that it was trained on. Four
things decide whether they are the same: the classes, the files with their labels, the splits that
vidi cut (by a rule, and by what the audit found to be copies), and which rows cannot be decoded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from vidi.comparing import facts_of
from vidi.config import Config, parse
from vidi.data import (
    Audit,
    Dataset,
    PixelStore,
    cache_folder,
    open_dataset,
    open_store,
)
from vidi.data_source import is_own_code
from vidi.errors import DamagedError, DataError, MismatchError, UsageError
from vidi.facts import DatasetFacts
from vidi.metrics import Replaced
from vidi.plan import Plan
from vidi.run import Run

DECODING_SAID_EVERY_S: Final = 5.0

Say = Callable[[str], None]
Kept = TypeVar("Kept")


class Decoded(NamedTuple):
    """Rows of a data set with their pixels, and what the audit of the run had found on them."""

    dataset: Dataset
    store: PixelStore
    audit: Audit | None


def _silent(line: str) -> None:
    del line


def own_data(
    run: Run,
    data: str | Path | None = None,
    *,
    fix: str = "say where the data are as they were: --data FOLDER",
    say: Say = _silent,
) -> Decoded:
    """The images that a run was trained on, all decoded, split as they were split then.

    Args:
        data: where they are now; where they were in training if left out.
        fix: what to do where they are not there, or are others.

    Raises:
        DataError: they are not where they were.
        MismatchError: they have changed since.
        UsageError: they were the user's own object, which has to be given again.
    """
    dataset = _opened(run, data, fix)
    facts = facts_of(run)
    _check_classes(run, dataset, facts, fix)
    ready = as_trained(run, *decoded_first(dataset, plan_of(run), config_of(run), say=say))
    _check_contents(run, ready.dataset, facts, fix)
    return ready


def own_dataset(run: Run, data: str | Path | None = None) -> Dataset:
    """`own_data` without pixels, where names, labels and splits are enough; raises the same."""
    fix = "say where the data are as they were: --data FOLDER"
    dataset = _opened(run, data, fix)
    facts = facts_of(run)
    _check_classes(run, dataset, facts, fix)
    found = audit_of(run)
    dataset = dataset if found is None else found.regroup(dataset)
    _check_contents(run, dataset, facts, fix)
    return dataset


def as_trained(run: Run, dataset: Dataset, store: PixelStore) -> Decoded:
    """The same rows, split as the run's audit had left them."""
    found = audit_of(run)
    return Decoded(dataset if found is None else found.regroup(dataset), store, found)


def audit_of(run: Run) -> Audit | None:
    """What the run found on its images before it began; None where an older version began it.

    Raises DamagedError.
    """
    return _kept(run, "audit", Audit.from_json)


def replaced_of(run: Run) -> Replaced | None:
    """The run that this one stands in for, having learnt from its validation images as well.

    Raises DamagedError.
    """
    return _kept(run, "replaces", Replaced.model_validate_json)


def _kept(run: Run, name: str, read: Callable[[str], Kept]) -> Kept | None:
    if not run.has_text(name):
        return None
    try:
        return read(run.text(name))
    except ValueError as error:
        raise DamagedError(f"{name}.json of {run.path} cannot be read: {error}") from error


def config_of(run: Run) -> Config:
    """What was asked of a run."""
    return parse(run.text("config"), origin=str(run.config_path))


def plan_of(run: Run) -> Plan:
    """What was decided for a run."""
    return Plan.from_json(run.text("plan"), origin=f"{run.path}: plan.json")


def where_trained(run: Run) -> str:
    """Where the data of a run were when it was trained. Raises DamagedError."""
    try:
        return str(json.loads(run.text("environment"))["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"environment.json of {run.path} cannot be read: {error}") from error


def _opened(run: Run, data: str | Path | None, fix: str) -> Dataset:
    if data is not None:
        return open_dataset(data, config_of(run).data)
    source = where_trained(run)
    if is_own_code(source):
        # A name that stands in a file is never imported: the file may come from anywhere.
        raise UsageError(
            f"{run.path} was trained on your own object '{source}', and names in files are not "
            "imported",
            fix=f"{fix.rpartition(':')[0]}: give it again, as {source}",
        )
    try:
        return open_dataset(source, config_of(run).data)
    except UsageError as error:
        raise DataError(
            f"the data of {run.path} are not where they were in training: {error.message}", fix=fix
        ) from error


def _check_classes(run: Run, dataset: Dataset, facts: DatasetFacts, fix: str) -> None:
    if dataset.classes != facts.classes:
        raise MismatchError(
            f"{dataset.name} is not what {run.path} was trained on: its classes are "
            f"{', '.join(dataset.classes[:8])}, not {', '.join(facts.classes[:8])}",
            fix=fix,
        )


def _check_contents(run: Run, dataset: Dataset, facts: DatasetFacts, fix: str) -> None:
    if dataset.fingerprint != facts.fingerprint:
        raise MismatchError(
            f"{dataset.name} is not what {run.path} was trained on: {what_changed(dataset, facts)}",
            fix=fix,
        )


def what_changed(dataset: Dataset, facts: DatasetFacts) -> str:
    """Between the data of a run and those of now, in words."""
    now = {split: sum(dataset.counts(split)) for split in facts.counts}
    parts = [
        f"{split} had {sum(before):,} images, now {now[split]:,}"
        for split, before in facts.counts.items()
        if sum(before) != now[split]
    ]
    return "; ".join(parts) or "some files have other contents or names"


# Decoding -----------------------------------------------------------------------------------------


def decoded_first(
    dataset: Dataset, plan: Plan, config: Config, *, say: Say = _silent
) -> tuple[Dataset, PixelStore]:
    """`decoded` where nothing trains meanwhile, so that there is nothing to decode alongside."""
    execution = plan.execution.model_copy(update={"build": "before"})
    return decoded(dataset, plan.model_copy(update={"execution": execution}), config, say=say)


def decoded(
    dataset: Dataset, plan: Plan, config: Config, *, say: Say
) -> tuple[Dataset, PixelStore]:
    """The decoded pixels, and the data set without what could not be decoded.

    Raises:
        DataError: more files are unreadable than the config allows.
    """
    store = open_store(
        dataset,
        plan.pixels,
        cache_dir=cache_folder(config.data.cache_dir),
        threads=plan.execution.threads,
        progress=_said_now_and_then(say),
        place=plan.execution.store,
        build=plan.execution.build,
        say=say,
    )
    if has_gaps(plan):
        # Which rows cannot be decoded shows on the way; the order must not depend on when.
        return dataset, store
    return readable(dataset, store, say=say), store


def _said_now_and_then(say: Say) -> Callable[[int, int], None]:
    """A progress for decoding: a line every few seconds, none when it is quick."""
    said_at = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= DECODING_SAID_EVERY_S:
            said_at = time.monotonic()
            say(f"decoded {done:,} of {of:,} images")

    return progress


def has_gaps(plan: Plan) -> bool:
    """Whether rows that cannot be decoded keep their place in the order, and are missing there."""
    return plan.execution.store == "stream" or plan.execution.build == "alongside"


def readable(dataset: Dataset, store: PixelStore, *, say: Say) -> Dataset:
    """The data set without what could not be decoded, once everything was tried."""
    if store.unreadable:
        first = store.unreadable[0]
        name = dataset.name_of(first.id)
        count = len(store.unreadable)
        more = f" and {count - 1} more" if count > 1 else ""
        say(f"left out, unreadable: {name} ({first.reason}: {first.message}){more}")
    for reason in sorted({row.reason for row in store.unreadable}):
        rows = [row for row in store.unreadable if row.reason == reason]
        dataset = dataset.without([row.id for row in rows], reason, [row.message for row in rows])
    return dataset

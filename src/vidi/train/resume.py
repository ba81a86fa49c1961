"""A run that was stopped, opened again: same plan, same state, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vidi import probe
from vidi.config import Config
from vidi.data import open_dataset
from vidi.errors import MismatchError
from vidi.facts import Facts
from vidi.own_data import Say, as_trained, config_of, decoded, has_gaps, plan_of, what_changed
from vidi.plan import Plan, epochs_of, make, with_sharding
from vidi.restore import Initial, build_model, unpacked
from vidi.run import Checkpoint, Run
from vidi.train.prepare import (
    Extensions,
    Looked,
    Prepared,
    build_state,
    own_model,
)
from vidi.train.state import State
from vidi.words import class_difference

# Settings that may change between two parts of a run: they do not change what is learnt, only how
# fast, or how often it is saved.
FREE = (
    "machine.threads",
    "machine.loader_threads",
    "machine.device",
    "machine.probe",
    "machine.sharding",
    "machine.timeout_s",
    "checkpoint",
    "evaluate",
)


class Reopened(NamedTuple):
    """A run as it was; the caller rewinds its logs to `checkpoint` before it goes on."""

    prepared: Prepared
    state: State
    checkpoint: Checkpoint | None


def reopened(
    run: Run,
    data: str | Path,
    config: Config,
    extensions: Extensions,
    *,
    say: Say,
    force: bool,
) -> Reopened:
    """Everything as it was at the newest valid checkpoint, or at the start when there is none.

    Raises:
        MismatchError: the config, the classes or the data are not those of the run; all differing
            fields are named. `force` goes on and keeps a note; other classes are never accepted.
        DamagedError: no checkpoint is valid although there are some.
    """
    probe.keep_memory()
    plan = plan_of(run)
    facts = Facts.model_validate_json(run.text("facts"))
    before = config_of(run)
    notes: list[str] = []
    changed = differing(before, config)
    if changed == ["train.epochs"] and _longer(before, config):
        plan = _lengthened(plan, config, facts)
        run.write_text("plan", plan.model_dump_json(indent=1))
        run.write_text("config", config.to_toml())
        notes.append(f"lengthened to {_asked_length(config)}: the learning rate rises again")
    elif changed:
        _refuse_or_note(run, f"the settings differ: {', '.join(changed)}", notes, force=force)

    dataset = open_dataset(data, config.data)
    if dataset.classes != facts.dataset.classes:
        raise MismatchError(
            f"{run.path} was trained on other classes: "
            f"{class_difference(dataset.classes, facts.dataset.classes)}",
            fix="give a new --out, or the data that the run began with",
        )
    dataset, store, found = as_trained(run, *decoded(dataset, plan, config, say=say))
    if dataset.fingerprint != facts.dataset.fingerprint:
        changes = what_changed(dataset, facts.dataset)
        _refuse_or_note(run, f"the data changed: {changes}", notes, force=force)
    looked = Looked(dataset, store, facts, plan, found)
    return restored(run, looked, config, extensions, notes, say=say)


def restored(
    run: Run,
    looked: Looked,
    config: Config,
    extensions: Extensions,
    notes: list[str],
    *,
    say: Say,
    initial: Initial | None = None,
) -> Reopened:
    """The plan's model and state as the newest valid checkpoint has them, on data that are open.

    Raises:
        DamagedError: no checkpoint is valid although there are some.
    """
    dataset, store, facts, plan, found = looked
    plan = _on_these_processes(plan, notes)
    plan = plan.model_copy(update={"execution": _execution(plan, config)})
    plan = _divided_as_asked(plan, config, notes)
    if len(dataset.indices("train")) != plan.num_train and not has_gaps(plan):
        plan = plan.model_copy(update={"num_train": len(dataset.indices("train"))})

    probe.configure(plan.execution)
    checkpoint, damaged = run.newest_checkpoint()
    for line in damaged:
        say(f"damaged, passed over: {line}")
    saved = None
    # What a network is like that began with pretrained weights, its own tell as well: nothing is
    # downloaded again.
    if checkpoint is not None and plan.model.weights != "none":
        origin = f"{run.path}, step {checkpoint.step}"
        saved = unpacked(checkpoint.read("model.safetensors"), origin=origin)
    own = own_model(plan, config, extensions)
    classifier = build_model(plan, own, initial=initial, saved=saved)
    state = build_state(plan, classifier)
    if checkpoint is not None:
        state.restore(checkpoint)
        say(f"continuing {run.path} from step {state.step} of {plan.last_step}")
    state.notes += [*notes, *damaged]
    for note in notes:
        say(note)
    return Reopened(Prepared(dataset, store, facts, plan, classifier, found), state, checkpoint)


def _refuse_or_note(run: Run, what: str, notes: list[str], *, force: bool) -> None:
    if not force:
        raise MismatchError(
            f"{run.path} cannot be continued: {what}",
            fix="give a new --out to start afresh, or --force-resume to continue all the same",
        )
    notes.append(f"continued by force although {what}")


def differing(before: Config, now: Config) -> list[str]:
    """The settings that two parts of one run may not have different, by their dotted names."""
    old, new = _flat(before), _flat(now)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [name for name in names if not name.startswith(FREE)]


def _flat(config: Config) -> dict[str, Any]:
    tree = config.model_dump(exclude={"data": {"cache_dir"}})
    return {f"{section}.{name}": value for section in tree for name, value in tree[section].items()}


def _longer(before: Config, now: Config) -> bool:
    old, new = before.train.epochs, now.train.epochs
    return old is not None and new is not None and new > old


def _asked_length(config: Config) -> str:
    assert config.train.epochs is not None
    return epochs_of(config.train.epochs)


def _lengthened(plan: Plan, config: Config, facts: Facts) -> Plan:
    steps = make(config, facts).horizon_steps
    reasons = {**plan.reasons, "horizon_steps": f"lengthened to {_asked_length(config)}"}
    return plan.model_copy(update={"horizon_steps": steps, "last_step": steps, "reasons": reasons})


def _execution(plan: Plan, config: Config) -> Any:
    """The execution as planned, with what the user now asks of the machine."""
    asked = {
        name: value
        for name in ("device", "threads", "loader_threads")
        if (value := getattr(config.machine, name)) is not None
    }
    return plan.execution.model_copy(update=asked)


def _divided_as_asked(plan: Plan, config: Config, notes: list[str]) -> Plan:
    """One process has the model whole, whatever was asked; several as they are asked now."""
    several = plan.execution.world_size > 1
    asked = (config.machine.sharding or "none") if several else "none"
    if asked == plan.execution.sharding:
        return plan
    how = "divided between the processes" if asked == "full" else "whole in each process"
    notes.append(f"continued with the model {how}: not the same bits")
    return with_sharding(plan, asked)


def _on_these_processes(plan: Plan, notes: list[str]) -> Plan:
    """The plan for as many processes as there are now: the same batches in the same order."""
    world, local = probe.counted()
    before = plan.execution.world_size
    if world == before:
        return plan
    if plan.batch_size % world:
        raise MismatchError(
            f"the run's batches of {plan.batch_size} images cannot be shared by {world} processes",
            fix=f"continue with {before}, or another number that divides {plan.batch_size}",
        )
    notes.append(
        f"continued by {world} instead of {before} processes: the same images in the same order, "
        "not the same bits"
    )
    threads = max(1, probe.machine().usable_cores // local)
    execution = plan.execution.model_copy(update={"world_size": world, "threads": threads})
    accumulate = max(1, -(-(plan.batch_size // world) // plan.micro_batch_size))
    return plan.model_copy(update={"execution": execution, "accumulate": accumulate})

"""From a folder and a config to a plan and the built half of a run: look, decide, build."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from vidi import augment, model, optim, probe, schedule
from vidi.augment import ImageRandom, Transform
from vidi.batch import Batch
from vidi.config import Config, load
from vidi.data import (
    OF_PIXELS,
    Audit,
    Dataset,
    Indices,
    Loader,
    PixelStore,
    audit_store,
    balanced_weights,
    cache_folder,
    free_bytes,
    measure_symmetry,
    open_dataset,
)
from vidi.data.hashing import draws
from vidi.data.split import stratified
from vidi.errors import ConfigError, MismatchError, UsageError
from vidi.facts import DatasetFacts, Facts, Measurements, Split, Where
from vidi.memory import Limit
from vidi.model import Classifier
from vidi.own_data import Say, decoded, has_gaps
from vidi.plan import Plan, choose_model, make
from vidi.plan.optimizing import SCHEDULE_FREE
from vidi.restore import Initial, build_model
from vidi.schedule import Plateau
from vidi.step import StepSettings
from vidi.train.loop import Job
from vidi.train.ranks import ALONE, Ranks
from vidi.train.state import State, Window
from vidi.winograd import takes_any
from vidi.words import count, first_line

# Batches of fewer values are augmented several at a time, until there are so many: digits at 16 px
# train at 0.85 of the bare step with 32 Ki, at 0.95 with 128 Ki (docs/measurements.md).
AUGMENT_AT_ONCE = 128 << 10
# So many images tell how small patches vary; see `model.start_from`.
START_IMAGES = 2_000
# Which images are in a part of the training images is drawn apart from which are in a split.
OF_PARTS = 1_000
# Runs that a guess puts below this are not worth a probe.
PROBE_WORTH_S = 60.0


@dataclass(frozen=True)
class Extensions:
    """The user's own functions, given as objects; names of functions stand in the config."""

    model: Callable[..., nn.Module] | None = None
    transforms: Sequence[Transform] = ()
    schedule: Callable[[float], float] | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that is known and decided before the first step."""

    dataset: Dataset
    store: PixelStore
    facts: Facts
    plan: Plan
    model: Classifier
    # What the stored pixels told; None where not all of them were there yet.
    audit: Audit | None


def prepare(
    data: str | Path,
    config: Config,
    extensions: Extensions,
    *,
    say: Say,
    started_at: float,
) -> Prepared:
    """Look at data and machine, decide everything, and build the model. Trains nothing.

    Args:
        say: told what is going on, one line at a time.
        started_at: `time.monotonic()` when the clock of `train.minutes` began.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
    """
    probe.keep_memory()
    looked = looked_at(data, config, say=say)
    return planned(looked, config, extensions, say=say, started_at=started_at)


def planned(
    looked: Looked,
    config: Config,
    extensions: Extensions,
    *,
    say: Say,
    started_at: float,
    initial: Initial | None = None,
) -> Prepared:
    """From what the pixels told to the plan and the built model: the second half of `prepare`.

    What is known of the network already (`facts.model`, `initial`) is not counted or drawn again.
    """
    dataset, store, facts, second, found = looked
    probe.configure(second.execution)
    classifier = build_model(second, own_model(second, config, extensions), initial=initial)
    if classifier.fit is not None:
        say(f"weights {second.model.weights}: {classifier.fit}")
    if facts.model is None:
        facts = facts.model_copy(update={"model": model.facts(classifier)})
    _check_sizes(second, classifier)
    with store.pause():
        measured = _measured(second, config, facts, dataset, store, classifier, extensions, say=say)
    if measured is not None:
        spent_s = time.monotonic() - started_at
        measured = measured.model_copy(update={"spent_s": spent_s})
        facts = facts.model_copy(update={"measured": measured})
    final = make(config, facts)
    assert final.pixels == second.pixels, "the pixels were decided before they were decoded"
    probe.configure(final.execution)
    return Prepared(dataset, store, facts, final, classifier, found)


def _check_sizes(plan: Plan, classifier: Classifier) -> None:
    """Raises ConfigError when the network cannot take the sizes of the images along the run."""
    was_training = classifier.training
    classifier.eval()
    for px in sorted({stage.image_px for stage in plan.stages} - {classifier.image_px}):
        image = torch.zeros(1, classifier.channels, px, px, device=classifier.scale.device)
        try:
            with torch.inference_mode():
                classifier(image)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"train.progressive_px: '{plan.model.name}' cannot take images of {px} px: "
                f"{first_line(error)}",
                fix="give larger sizes, or another network: mlp and its like take one size only",
            ) from None
    classifier.train(was_training)


def followed(
    plan: Plan,
    facts: Facts,
    data: str | Path,
    config: Config,
    extensions: Extensions,
    audit: Audit | None,
) -> Prepared:
    """What another process has prepared, built here from its plan.

    Raises:
        MismatchError: the data are not the same here.
    """
    dataset = open_dataset(data, config.data)
    dataset, store = decoded(dataset, plan, config, say=lambda _: None)
    if audit is not None:
        dataset = audit.regroup(dataset)
    if dataset.fingerprint != facts.dataset.fingerprint:
        raise MismatchError(
            f"this process sees other images in {facts.dataset.name} than the first one",
            fix="give all processes the same files, readable for all",
        )
    probe.configure(plan.execution)
    classifier = build_model(plan, own_model(plan, config, extensions))
    return Prepared(dataset, store, facts, plan, classifier, audit)


class Looked(NamedTuple):
    """What the pixels tell; the plan has everything about the images, and guesses of the rest."""

    dataset: Dataset
    store: PixelStore
    facts: Facts
    plan: Plan
    # None where not all pixels are there yet.
    audit: Audit | None


def check_names(config: Config) -> None:
    """Raises UsageError for a network, an optimizer or a schedule that does not exist: known
    before any data are opened."""
    asked = config.train
    if config.model.name is not None:
        model.check_name(config.model.name)
    if asked.optimizer is not None:
        optim.check_name(asked.optimizer)
    if asked.schedule is not None and ":" not in asked.schedule:
        schedule.check_name(asked.schedule)


def looked_at(data: str | Path, config: Config, *, say: Say) -> Looked:
    """Open the data, decide about the pixels, decode them, and measure what they say.

    Copies of a picture are put on one side of every split that vidi cuts.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
    """
    check_names(config)
    machine = probe.machine()
    dataset = open_dataset(data, config.data, say=say)
    free = free_bytes(cache_folder(config.data.cache_dir))
    facts = Facts(dataset=dataset.facts(), machine=machine, cache_free_bytes=free)
    counted = _counted(facts.dataset)
    for line in _described(dataset):
        say(line)
    choice = choose_model(config, facts)
    model.fetch_weights(choice.name, choice.weights, say)
    facts = facts.model_copy(update={"weights": model.weights_facts(choice.name, choice.weights)})
    first = make(config, facts)
    dataset, store = decoded(dataset, first, config, say=say)
    found = None
    if first.execution.store == "stream" and not store.complete:
        say("copies and leaks are not looked for, because no pixels are kept; `vidi audit` does it")
    elif has_gaps(first):
        say("copies and leaks are looked for after training: not all images are decoded yet")
    else:
        dataset, found = audit_store(dataset, store)
        say_findings(found, say)
    facts = facts.model_copy(update={"dataset": _with_symmetry(dataset, store, config.train.seed)})
    if (now := _counted(facts.dataset)) != counted:
        say(f"used: {now}")
    if dataset.quarantined or dataset.ignored:
        say(f"every file that is not used, with its reason: vidi audit {shlex.quote(str(data))}")
    return Looked(dataset, store, facts, make(config, facts), found)


def say_findings(audit: Audit, say: Say) -> None:
    """What only the pixels tell, a line a finding; what can be read off the files was said."""
    for finding in audit.findings:
        if finding.severity != "note" and finding.code in OF_PIXELS:
            example = " = ".join((finding.groups[0] if finding.groups else finding.paths)[:2])
            say(finding.message + (f", e.g. {example}" if example else ""))


def build_optimizer(
    plan: Plan, network: nn.Module, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a plan over a network's parameter groups.

    `fused`: instead of what the plan says, where that is open.
    """
    settings = plan.optimizer
    stages = network.stages if isinstance(network, Classifier) and plan.layer_decay < 1.0 else ()
    return optim.make(
        settings.name,
        optim.groups(network, stages=stages, layer_decay=plan.layer_decay),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        batch_size=plan.batch_size_each,
        fused=plan.execution.fused if fused is None else fused,
    )


def own_model(
    plan: Plan, config: Config, extensions: Extensions
) -> Callable[..., nn.Module] | None:
    """The user's own network: handed over as an object, or named in what was asked just now."""
    if (
        extensions.model is not None
        or config.model.name is None
        or plan.model.name != config.model.name
    ):
        return extensions.model
    return model.own(config.model.name) if model.is_own(config.model.name) else None


def build_state(plan: Plan, classifier: Classifier) -> State:
    """A run before its first step."""
    average = None
    schedule_free = plan.optimizer.name in SCHEDULE_FREE
    if plan.ema_decay or plan.swa_fraction or schedule_free:
        average = optim.Average(classifier, plan.ema_decay, uniform=plan.swa_fraction > 0.0)
    device = torch.device(plan.execution.device)
    if plan.execution.sync_batch_norm:
        shared = nn.SyncBatchNorm.convert_sync_batchnorm
        classifier.network = shared(classifier.network)  # type: ignore[no-untyped-call]
    return State(
        model=classifier,
        optimizer=build_optimizer(plan, classifier),
        average=average,
        window=Window.empty(device),
        training_limit=Limit(plan.micro_batch_size),
        evaluation_limit=Limit(plan.evaluation_batch_size),
        scaler=torch.amp.GradScaler(device.type) if plan.execution.precision == "float16" else None,
    )


def build_job(
    plan: Plan,
    config: Config,
    dataset: Dataset,
    store: PixelStore,
    extensions: Extensions,
    ranks: Ranks = ALONE,
) -> Job:
    """Loaders, augmentation and schedule of a plan; of several processes each gets its part."""
    shares = {stage.data_share for stage in plan.stages} - {1.0}
    return Job(
        train=_training_loader(plan, dataset, store, ranks),
        parts={share: _training_loader(plan, dataset, store, ranks, share) for share in shares},
        validation=evaluation_loader(plan, dataset, store, "validation", ranks)
        if len(dataset.indices("validation"))
        else None,
        augment=transform_of(plan, config, extensions),
        augment_together=_augment_together(plan, config, extensions),
        schedule=_schedule(plan, extensions),
        device=torch.device(plan.execution.device),
        plateau=_plateau(plan, extensions),
        ranks=ranks,
    )


def _training_loader(
    plan: Plan,
    dataset: Dataset,
    store: PixelStore,
    ranks: Ranks = ALONE,
    share: float = 1.0,
) -> Loader:
    ids = part_of_training(dataset, share)
    return Loader(
        store,
        dataset.labels,
        ids,
        batch_size=plan.batch_size,
        seed=plan.seed,
        shuffle=True,
        drop_last=True,
        weights=_weights(plan, dataset, ids),
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=plan.execution.loader_threads,
        device=torch.device(plan.execution.device),
        resident=plan.execution.store == "device",
    )


def part_of_training(dataset: Dataset, share: float) -> Indices:
    """Ids of that share of the training images, the same of every class; a smaller part lies in
    every larger one."""
    ids = dataset.indices("train")
    if share == 1.0:
        return ids
    order = draws(dataset.source.hashes()[ids], OF_PARTS)
    out = stratified(dataset.labels[ids], order, fraction=1.0 - share)
    return ids[~out]


def start_from_images(
    plan: Plan, classifier: Classifier, dataset: Dataset, store: PixelStore
) -> None:
    """What a network computes from training images instead of learning it, before the first step.

    They are the same images for any number of processes.
    """

    def some() -> Tensor:
        ids = dataset.indices("train")
        number = min(START_IMAGES, len(ids))
        images = Loader(
            store,
            dataset.labels,
            ids,
            batch_size=number,
            seed=plan.seed,
            shuffle=True,
            drop_last=True,
            threads=plan.execution.loader_threads,
            device=torch.device(plan.execution.device),
        )
        with contextlib.closing(images.batches(epoch=0)) as batches:
            return next(batches).images.to(plan.execution.device)

    model.start_from(classifier, some)


def _weights(plan: Plan, dataset: Dataset, ids: Indices) -> Any:
    """(N,): how often each of `ids` is drawn; None for each once."""
    match plan.sampling:
        case "each":
            return None
        case "balanced":
            return balanced_weights(dataset.labels[ids])
        case "weighted":
            if dataset.weights is None:
                raise UsageError(
                    f"train.sampling = 'weighted', but {dataset.name} has no weights",
                    fix="give a table with a column `weight`, or train.sampling = 'balanced'",
                )
            return dataset.weights[ids].astype("float64")


def evaluation_loader(
    plan: Plan, dataset: Dataset, store: PixelStore, split: Split, ranks: Ranks = ALONE
) -> Loader:
    """Every image of a split, once, in order; of several processes each gets its part."""
    return Loader(
        store,
        dataset.labels,
        dataset.indices(split),
        batch_size=plan.evaluation_batch_size * ranks.world_size,
        seed=plan.seed,
        shuffle=False,
        drop_last=False,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=plan.execution.loader_threads,
        device=torch.device(plan.execution.device),
        resident=plan.execution.store == "device",
    )


def _augment_together(plan: Plan, config: Config, extensions: Extensions) -> int:
    """How many batches are augmented at a time: a pure function of what was asked and planned."""
    # A function of the user's may look at the whole batch, and images are mixed in pairs. Images
    # that grow along the run are not joined with larger ones.
    sizes = {stage.image_px for stage in plan.stages}
    alone = config.augment.extra or extensions.transforms or len(sizes) > 1
    if alone or plan.batch_size % 2:
        return 1
    # Of all processes together, so that their number changes nothing.
    values = plan.batch_size * plan.pixels.channels * plan.pixels.store_px**2
    return max(1, min(8, AUGMENT_AT_ONCE // values))


def transform_of(plan: Plan, config: Config, extensions: Extensions) -> Transform:
    """The planned augmentation, then the user's own functions."""
    own = [load(name) for name in config.augment.extra]
    planned = {stage.image_px: _at_size(plan, stage.image_px) for stage in plan.stages}

    def at_its_size(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        stage = plan.stage_at(round(done * plan.horizon_steps))
        return planned[stage.image_px](batch, rng, done)

    first = planned.popitem()[1] if len(planned) == 1 else at_its_size
    return augment.compose((first, *own, *extensions.transforms))


def _at_size(plan: Plan, image_px: int) -> Transform:
    """The planned augmentation, for a stage in which the model sees images of that size."""
    full_px = plan.augment.image_px
    if image_px == full_px:
        return augment.from_settings(plan.augment)
    if plan.augment.crop == "resized":
        return augment.from_settings(plan.augment.model_copy(update={"image_px": image_px}))

    def shrunk(batch: Batch, rng: ImageRandom, done: float) -> Batch:
        del rng, done
        images = functional.interpolate(
            batch.images.float(), size=image_px, mode="bilinear", antialias=True
        )
        return replace(batch, images=images)

    # Cropping would show less of the image, where it is to be shown smaller.
    return augment.compose((augment.from_settings(plan.augment), shrunk))


def _schedule(plan: Plan, extensions: Extensions) -> Callable[[float], float]:
    name: Any = extensions.schedule or plan.schedule.name
    settings: dict[str, Any] = {}
    if isinstance(name, str) and ":" not in name:
        settings = dict(plan.schedule.settings)
    if isinstance(name, str) and ":" in name:
        name = load(name)
    return schedule.make(name, warmup_fraction=plan.schedule.warmup_fraction, **settings)


def _plateau(plan: Plan, extensions: Extensions) -> Plateau | None:
    if extensions.schedule is not None or plan.schedule.name != "plateau":
        return None
    return schedule.plateau(plan.schedule.settings)


def _with_symmetry(dataset: Dataset, store: PixelStore, seed: int) -> Any:
    plain, flipped = measure_symmetry(store, dataset.labels, dataset.indices("train"), seed=seed)
    return dataset.facts().model_copy(
        update={"neighbour_agreement": plain, "neighbour_agreement_flipped": flipped}
    )


def _counted(facts: DatasetFacts) -> str:
    parts = [f"{facts.num_images(split):,} {split}" for split in facts.counts]
    return f"{', '.join(parts)} images of {facts.num_classes} classes ({facts.split_rule})"


def _described(dataset: Dataset) -> list[str]:
    """What was found: counts, the owner's notes, and what is not used."""
    facts = dataset.facts()
    lines = [f"{facts.name}: {_counted(facts)}", *dataset.notes]
    for what, reasons in (("left out", facts.quarantined), ("ignored", facts.ignored)):
        if reasons:
            counted = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            lines.append(f"{what}: {counted}")
    return lines


def _measured(
    plan: Plan,
    config: Config,
    facts: Facts,
    dataset: Dataset,
    store: PixelStore,
    classifier: Classifier,
    extensions: Extensions,
    *,
    say: Say,
) -> Measurements | None:
    """Time the candidates on real batches, unless the run is too short for it to pay."""
    asked_s = config.train.minutes * 60 if config.train.minutes else None
    guess_s = asked_s or _guessed_s(plan, facts)
    if config.machine.probe == "never" or plan.head == "only":
        return None
    if plan.execution.sharding == "full":
        # Its step takes all processes, and those that could be measured alone may not fit.
        return None
    if asked_s is None and guess_s < PROBE_WORTH_S and config.machine.probe is None:
        return None
    assert facts.model is not None
    limit_s = probe.allowance_s(guess_s)
    options = _options(plan, config, facts, classifier, limit_s)
    cache_dir = cache_folder(config.data.cache_dir)
    key = probe.key_of(facts.machine, facts.model, plan, options)
    if config.machine.probe != "fresh" and (known := probe.recalled(cache_dir, key)) is not None:
        ways = count(len(known.steps), "way")
        say(f"the training step was measured before: {ways} of computing it")
        return known.model_copy(update={"probe_s": 0.0})
    say(f"measuring ways to compute a training step, for up to {limit_s:.0f} s")
    measured = probe.measure(
        classifier,
        lambda network, fused: build_optimizer(plan, network, fused=fused),
        some_batches(plan, config, dataset, store, extensions, 4),
        replace(StepSettings.of(plan), world_size=1),
        options,
        limit_s=limit_s,
        feed=_feed(plan, config, dataset, store, extensions)
        if len(options.augment_on) > 1
        else None,
    )
    if len(measured.steps) > 1:
        # Where there was time for one way only, it was cut short or met a busy moment: measured
        # again the next time, and no later run is planned by it.
        probe.keep(cache_dir, key, measured)
    return measured


def _feed(
    plan: Plan, config: Config, dataset: Dataset, store: PixelStore, extensions: Extensions
) -> probe.Feed:
    """Batches that are augmented in their step, on the device or beside it."""
    first = Ranks(0, plan.execution.world_size)
    transform = transform_of(plan, config, extensions)
    device = torch.device(plan.execution.device)
    done = 1.0 - 1.0 / max(1, plan.horizon_steps)
    with contextlib.closing(_training_loader(plan, dataset, store, first).batches(0)) as some:
        raw = [batch.to("cpu") for batch in itertools.islice(some, 4)]

    def batch_of(step: int, where: Where) -> Batch:
        batch = raw[step % len(raw)]
        if where == "device":
            batch = batch.to(device)
        return transform(batch, ImageRandom(plan.seed, step, batch.keys), done).to(device)

    return batch_of


def some_batches(
    plan: Plan,
    config: Config,
    dataset: Dataset,
    store: PixelStore,
    extensions: Extensions,
    count: int,
) -> list[Batch]:
    """The first batches of a run as its model sees them at the end, on the device.

    Of several processes' batches the part of the first.
    """
    first = Ranks(0, plan.execution.world_size)
    transform = transform_of(plan, config, extensions)
    device = torch.device(plan.execution.device)
    done = 1.0 - 1.0 / max(1, plan.horizon_steps)
    batches: list[Batch] = []
    loader = _training_loader(plan, dataset, store, first)
    for epoch in range(count):
        with contextlib.closing(loader.batches(epoch)) as some:
            for batch in some:
                moved = Batch(
                    batch.images.to(device), batch.targets.to(device), batch.ids.to(device)
                )
                rng = ImageRandom(plan.seed, epoch, batch.keys.to(device))
                batches.append(transform(moved, rng, done))
                if len(batches) == count:
                    return batches
    return batches


def _options(
    plan: Plan, config: Config, facts: Facts, classifier: Classifier, limit_s: float
) -> probe.Space:
    """What may be tried: what the machine allows, does not change what is learnt, and was not asked
    for by hand."""
    asked = config.machine
    options = probe.space(
        plan.execution.device,
        facts.machine,
        batch_size=plan.local_batch_size,
        threads=plan.execution.threads,
        limit_s=limit_s,
        optimizer=plan.optimizer.name,
        # What is computed again in the backward pass is computed outside of the step's context.
        winograd=takes_any(classifier) and not plan.execution.recompute,
    )
    if plan.execution.store == "device":
        options = replace(options, augment_on=("device",))
    normalised = any(isinstance(module, _BatchNorm) for module in classifier.modules())
    if normalised and not plan.model.freeze_batch_norm:
        # Batch norms would learn from the statistics of smaller batches.
        options = replace(options, micro_batch_sizes=(plan.local_batch_size,))
    fixed: dict[str, Any] = {
        "precisions": asked.precision,
        "channels_last": asked.channels_last,
        "threads": asked.threads,
        "compile": asked.compile,
        "keep_memory": asked.keep_memory,
        "fused": asked.fused,
        "cuda_graphs": asked.cuda_graphs,
        "augment_on": asked.augment_on,
        "winograd": asked.winograd,
        "micro_batch_sizes": None if config.train.accumulate is None else plan.micro_batch_size,
    }
    if asked.compile is False:
        fixed["cuda_graphs"] = False
    if asked.cuda_graphs:
        fixed["compile"] = True
    if asked.winograd:
        fixed["compile"] = False
    return replace(
        options, **{name: (value,) for name, value in fixed.items() if value is not None}
    )


def _guessed_s(plan: Plan, facts: Facts) -> float:
    """A guess of the run's length at 20 billion multiply-adds a second and core, three passes."""
    assert facts.model is not None
    rate = 20e9 * facts.machine.usable_cores * (50 if plan.execution.device != "cpu" else 1)
    return plan.horizon_steps * plan.batch_size * 3 * facts.model.multiply_adds / rate

"""The commands that are one call over what a run directory holds, or that change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from vidi import augment, storage
from vidi.augment import Transform
from vidi.batch import Batch
from vidi.comparing import facts_of
from vidi.config import Config
from vidi.data import (
    Audit,
    CachedStore,
    Dataset,
    cache_folder,
    list_stores,
    open_dataset,
    pictures,
)
from vidi.data import audit as look_at
from vidi.data import prune as remove_unused
from vidi.doctor import Findings, examine
from vidi.errors import DataError, MismatchError, UsageError
from vidi.events import write_events
from vidi.explain import explain as make_explanations
from vidi.facts import SPLITS, Split
from vidi.image import encode_png
from vidi.metrics import Evaluation
from vidi.model import Listing, list_models
from vidi.own_data import Decoded, Say, as_trained, config_of, decoded_first, own_data, plan_of
from vidi.plan import Plan
from vidi.predictor.trained import view_kind
from vidi.probe import RangeTest, machine, picture, range_test
from vidi.report import PICTURE_PX, audit_pictures, render_audit, write, write_study
from vidi.restore import trained_model
from vidi.run import Run
from vidi.step import StepSettings
from vidi.study import Study
from vidi.train.finish import fitted_temperature, judge, judged
from vidi.train.prepare import (
    Extensions,
    Prepared,
    build_optimizer,
    looked_at,
    prepare,
    some_batches,
    transform_of,
)
from vidi.words import class_difference

# The learning-rate range test: steps, and how long it may take.
RANGE_STEPS: Final = 100
RANGE_LIMIT_S: Final = 60.0


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


def contact_sheet(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    transforms: Sequence[Transform] = (),
    num_images: int = 8,
    columns: int = 8,
    done: float = 1.0,
    show: Callable[[Any], None] | None = None,
) -> tuple[Path, Plan]:
    """Draw what training would do to some images of `data`, as one PNG file to look at.

    A row for each image, the classes in turn: first as it is stored, then in `columns` epochs.

    Args:
        out: where to write it; `augment.png` in the current folder when left out.
        transforms: your own functions after the planned ones, as for `train`.
        num_images, columns: how many images and epochs, 1 to 64 each.
        done: how far training has come, 0 to 1, which strength may depend on.

    Returns:
        The file, and the plan that it shows.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
        StorageError: the file cannot be written.
    """
    if not (1 <= num_images <= 64 and 1 <= columns <= 64 and 0 <= done <= 1):
        raise UsageError(
            f"a sheet of {num_images} images in {columns} epochs at {done:g} of training",
            fix="1 to 64 images, 1 to 64 epochs, and a share of 0 to 1",
        )
    asked = (config or Config()).with_settings(settings or {})
    path = Path(out) if out is not None else Path("augment.png")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", fix="name a file: --out augment.png")
    dataset, store, _, made, _ = looked_at(data, asked, say=show or (lambda _: None))
    ids = _some_of_each_class(dataset, num_images)
    images = torch.from_numpy(store.take(ids)[0]).permute(0, 3, 1, 2)
    batch = Batch(images, torch.from_numpy(dataset.labels[ids]), torch.from_numpy(ids))
    transform = transform_of(made, asked, Extensions(transforms=tuple(transforms)))
    sheet = augment.contact_sheet(batch, transform, columns=columns, seed=made.seed, done=done)
    # Digits of 8 px are too small to see anything.
    factor = max(1, _SHOWN_PX // store.contract.store_px)
    picture = sheet.numpy().repeat(factor, axis=0).repeat(factor, axis=1)
    storage.write_file(path, encode_png(picture))
    return path, made


# Images on a contact sheet are at least about this large.
_SHOWN_PX = 96


def _some_of_each_class(dataset: Dataset, count: int) -> Any:
    """(count or fewer,) ids of training images: the first of each class, then the second, ..."""
    ids = dataset.indices("train")
    labels = dataset.labels[ids]
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], labels[order], side="left")
    place = np.arange(len(ids)) - firsts
    return ids[order[np.lexsort((labels[order], place))[:count]]]


def audit(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Decode every image once and say what is wrong: unreadable files, copies, leaks, odd pictures.

    Args:
        out: a folder for `audit.html`, a page with the images that are spoken of, and `audit.json`.
        progress: told (images done, images in all).

    Raises:
        UsageError: there are no data at that place, or `out` lies among them.
        DataError: it is no data set of at least two classes.
        StorageError: the page cannot be written.
    """
    asked = (config or Config()).with_settings(settings or {})
    folder = None if out is None else Path(out)
    if folder is not None and Path(data).is_dir():
        _refuse_among(folder, Path(data))
    threads = asked.machine.loader_threads or machine().usable_cores
    dataset, found = look_at(open_dataset(data, asked.data), threads=threads, progress=progress)
    if folder is not None:
        shown = dict(pictures(dataset, audit_pictures(found), PICTURE_PX))
        storage.make_folder(folder)
        storage.write_file(folder / AUDIT_JSON, found.to_json(indent=1).encode())
        storage.write_file(folder / AUDIT_PAGE, render_audit(found, shown).encode())
    return found


# What `audit` writes into the folder that it is given.
AUDIT_JSON: Final = "audit.json"
AUDIT_PAGE: Final = "audit.html"


def _refuse_among(folder: Path, root: Path) -> None:
    if folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{folder} lies inside the data {root}, where nothing is written",
            fix="give --out a folder outside of them",
        )


def find_learning_rate(
    data: str | Path,
    config: Config | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    out: str | Path = "learning-rate.svg",
    show: Callable[[Any], None] | None = None,
) -> RangeTest:
    """Raise the learning rate until the loss leaves, on a copy of the planned model; draw it.

    Returns:
        The test; `per_256` is what `train.learning_rate` wants to be set to.

    Raises:
        UsageError, ConfigError: the request cannot be.
        DataError: the data do not allow it.
        StorageError: the picture cannot be written.
    """
    asked = (config or Config()).with_settings(settings or {})
    tell = show or (lambda _: None)
    prepared = prepare(data, asked, Extensions(), say=tell, started_at=time.monotonic())
    made = prepared.plan
    tell("raising the learning rate until the loss leaves")
    test = range_test(
        prepared.model,
        lambda network: build_optimizer(made, network),
        some_batches(made, asked, prepared.dataset, prepared.store, Extensions(), RANGE_STEPS),
        StepSettings.of(made),
        low=made.optimizer.learning_rate * 1e-3,
        high=made.optimizer.learning_rate * 1e2,
        steps=RANGE_STEPS,
        scale=made.optimizer.learning_rate / made.optimizer.learning_rate_per_256,
        limit_s=RANGE_LIMIT_S,
    )
    title = f"{made.model.name}, {made.optimizer.name}, batch {made.batch_size}"
    storage.write_file(Path(out), picture(test, title).encode())
    return test


def tensorboard(run: str | Path | Run, out: str | Path) -> Path:
    """Write a run's curves, settings and mistakes as event files for TensorBoard into `out`.

    Raises:
        UsageError: not a run, or `out` is not empty.
        MissingExtra: the package tensorboard is not installed.
    """
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    return write_events(opened, Path(out))


def evaluate(
    run: str | Path | Run,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    model: Callable[..., nn.Module] | None = None,
    tta: bool = False,
    show: Callable[[Any], None] | None = None,
) -> Evaluation:
    """Judge a run's best weights; the run's own data when `data` is left out.

    The numbers of the run's own data are written into the run, those of other data are not.

    Args:
        tta: average the predictions over several views of each image (mirror images where training
            used them, corners where images are stored with a margin); written beside the plain
            numbers, as `<split>_tta`.

    Raises:
        UsageError: not a run, no such split, or no views that the model was trained for.
        MismatchError: `data` has classes that the model does not know.
        DamagedError: no valid checkpoint.
    """
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    tell = show or (lambda _: None)
    made = plan_of(opened)
    kind = view_kind(made) if tta else "plain"
    dataset, store, found = _to_judge(opened, data, made, tell)
    own = dataset.fingerprint == facts_of(opened).fingerprint
    chosen = _split(split, dataset)
    torch.set_num_threads(made.execution.threads)
    classifier, _ = trained_model(opened, made, model)
    # The temperature was fitted to plain predictions; averaged ones are less sharp.
    fitted = chosen != "validation" and not tta
    temperature = fitted_temperature(opened) if fitted else None
    kept = opened if own else None
    evaluation = judged(
        judge(
            kept,
            made,
            dataset,
            store,
            classifier,
            chosen,
            temperature=temperature,
            leaked_ids=found.leaked.get(chosen, ()) if found is not None else (),
            kind=kind,
        )
    )
    if own:
        write(opened)
    return evaluation


def _to_judge(run: Run, data: str | Path | None, made: Plan, say: Say) -> Decoded:
    """The run's own data, wherever they are now, or other data with the same classes."""
    if data is None:
        return own_data(run, fix=f"say where the data are: vidi evaluate {run.path} DATA", say=say)
    config, facts = config_of(run), facts_of(run)
    dataset = open_dataset(data, config.data)
    if dataset.classes != facts.classes:
        raise MismatchError(
            f"{dataset.name} has other classes than the model in {run.path}: "
            f"{class_difference(dataset.classes, facts.classes)}",
            fix="name the folders of the data as the classes were named in training",
        )
    dataset, store = decoded_first(dataset, made, config, say=say)
    own = as_trained(run, dataset, store)
    # What the run knows about copies, it knows of its own rows.
    same = own.dataset.fingerprint == facts.fingerprint
    return own if same else Decoded(dataset, store, None)


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


def cache(
    *,
    prune: bool = False,
    unused_days: float = 30.0,
    max_gb: float | None = None,
    cache_dir: str | Path | None = None,
) -> tuple[list[CachedStore], list[CachedStore]]:
    """What the cache of decoded pixels holds, and what was removed from it.

    Args:
        prune: remove what interrupted runs left, what is damaged or was decoded by another version,
            and what was not used for `unused_days`; a run that needs it decodes it again.
        max_gb: and then, while more than that is left, what was not used for longest.
        cache_dir: another cache than the user's.

    Returns:
        Stores that are there, the last used one first, and those that were removed.
    """
    folder = cache_folder(cache_dir)
    if max_gb is not None and not max_gb >= 0:
        raise UsageError(f"a cache of {max_gb:g} GB", fix="give a number from 0 on")
    most = None if max_gb is None else int(max_gb * 1e9)
    removed = remove_unused(folder, unused_days=unused_days, max_bytes=most) if prune else []
    return list_stores(folder), removed


def report(
    run: str | Path | Run | Study,
    *,
    explain: bool = False,
    data: str | Path | None = None,
    model: Callable[..., nn.Module] | None = None,
    show: Callable[[Any], None] | None = None,
) -> Path:
    """Write the report of a run or a study again; returns where it is.

    Args:
        explain: also where the model looked, the training images it finds alike, and a map of what
            it finds alike; needs the data, at `data` if they are elsewhere now.
        model: your own network, if the run trained one.

    Raises:
        UsageError: neither a run nor a study, or `explain` of a study.
        MismatchError: the data are not those of the run.
    """
    if isinstance(run, str | Path) and Study.exists(run):
        run = Study.open(run)
    if isinstance(run, Study):
        if explain:
            raise UsageError(
                f"{run.path} is a study, and what a model looks at is explained for a run",
                fix=f"vidi report {run.final_path} --explain",
            )
        return write_study(run)
    opened = run if isinstance(run, Run) else Run.open(Path(run))
    if explain:
        make_explanations(opened, data=data, model=model, show=show or (lambda _: None))
    return write(opened)


def doctor() -> Findings:
    """What this machine has, what is missing, and what to do about it."""
    return examine()


def models(filter: str = "", *, timm: bool = False) -> tuple[Listing, ...]:
    """The models whose names contain `filter`, with what they cost; no weight is allocated.

    Args:
        filter: part of a name, or a pattern such as "resnet*"; "" for all.
        timm: those of timm too, by name and with what is published of them.

    Raises:
        MissingExtra: timm is asked for and not installed.
        UsageError: nothing is called like that.
    """
    found = list_models(filter, timm=timm)
    if not found:
        raise UsageError(
            f"no model is called like '{filter}'",
            fix="`vidi models` lists all, `vidi models --timm` those of timm too",
        )
    return found

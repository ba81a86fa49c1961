"""`fit`: everything under one wall-clock budget, from the images to the answer that is shipped."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vidi.config import Config
from vidi.errors import ConfigError, Interrupted, UsageError, nearest
from vidi.plan import Choice, choose_model, is_enlarged
from vidi.plan.budget import EXPORT_S, FEW_HELD_OUT
from vidi.run import data_name
from vidi.signals import Stop, watched
from vidi.study import Study, default_study_path
from vidi.train.prepare import Extensions
from vidi.train.trial import Shared
from vidi.tune.answer import compare, finish
from vidi.tune.clock import Clock, kept
from vidi.tune.pretrained import fit_pretrained
from vidi.tune.scratch import fit_from_scratch, from_scratch_too
from vidi.tune.work import Doing, Show, Work

__all__ = ["Doing", "Show", "fit"]


def fit(
    data: str | Path,
    config: Config | None = None,
    *,
    minutes: float,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    to: str = "best",
    retrain: bool = False,
    model: Callable[..., Any] | None = None,
    show: Show | None = None,
    started_at: float | None = None,
) -> Study:
    """The best classifier of `data` that so many minutes can buy, judged, reported and exported.

    What fits into the time is forecast from measurements, and nothing is started that cannot
    finish. An answer is there early and only gets better. The images of the test split are looked
    at once, at the end. A call that was killed goes on where it was, its clock too.

    Args:
        data: as for `train`.
        config: what is asked; everything that it leaves open is decided and explained.
        minutes: wall-clock time for everything.
        settings: single settings on top, such as `{"train.learning_rate": 0.1}`.
        out: the study's directory; a new one under `studies/` when left out.
        to: what the answer is exported to, as for `export`; "best" is ONNX where its packages are
            installed, else torch; "none" leaves it out.
        retrain: of a network from scratch, keep time to train the best once more in the end, as it
            was, on its validation images as well; that is judged on the test images. Where it
            cannot be, it is said why.
        model: your own network, as for `train`.
        show: told every line, every `Progress`, and what is being done and why.
        started_at: `time.monotonic()` when the clock began; now, if left out.

    Returns:
        The study; `Run.open(study.final_path)` is the answer.

    Raises:
        UsageError: the time is too short for anything; it says what is needed.
        ConfigError, DataError, DamagedError, MismatchError, InUseError, StorageError: as `train`.
        Interrupted: a signal came before there was any answer, or one that was not Ctrl-C; the
            same call goes on. After Ctrl-C the best answer so far is finished and given back.
        TrainingError: every training failed.
    """
    started_at = time.monotonic() if started_at is None else started_at
    if not minutes > 0:
        raise UsageError(f"{minutes:g} minutes", fix="give a time above zero")
    asked = (config or Config()).with_settings(settings or {})
    if asked.train.minutes is not None or asked.train.epochs is not None:
        raise ConfigError(
            "a fit decides by its minutes how long it trains",
            fix="leave train.minutes and train.epochs out",
        )
    target = _export_target(to)
    path = (
        Path(out)
        if out is not None
        else default_study_path(Path("studies"), data_name(data), datetime.now())
    )
    told: dict[str, object] = {"minutes": minutes, "data": data_name(data), "retrain": retrain}
    with watched() as stop:
        _check_before(stop)
        if Study.exists(path):
            study = Study.open(path)
        else:
            study = Study.create(path, kind="fit", config=asked, asked=told)
        with study.lock():
            study.go_on(asked, told, kind="fit", may_change=("minutes", "retrain"))
            tell = show or (lambda _: None)
            if _is_over(study):
                tell(f"already complete: {study.path}; to spend more minutes, give another --out")
                return study
            clock = Clock(started_at, minutes * 60, _spent_before(study))
            extensions = Extensions(model=model)
            work = Work(study, data, asked, extensions, clock, tell, stop, target, retrain)
            work.has_answer = work.best() is not None
            stop.said = work.said
            with kept(study, clock):
                _run(work)
    return study


def _run(work: Work) -> None:
    work.doing("looking at the images", "what they are decides how they are learnt")
    # Which network is worth it depends on the time that there is for it.
    timed = work.config.with_settings({"train.minutes": work.clock.budget_s / 60})
    with Shared(work.data, timed, work.extensions, say=work.say) as shared:
        work.check()
        _warn_of_few(work, shared)
        choice = _network(work, timed, shared)
        if choice.weights != "none":
            fit_pretrained(work, shared)
            if _might_be_better_from_scratch(work, shared):
                from_scratch_too(work, shared)
        else:
            # A training without minutes might have time for a pretrained one.
            if choose_model(work.config, shared.facts).weights != "none":
                work.config = work.config.with_settings({"model.weights": "none"})
            fit_from_scratch(work, shared)
        compare(work, first=1)
        finish(work, shared)


def _might_be_better_from_scratch(work: Work, shared: Shared) -> bool:
    """Where the network was our choice, and the images are not what its weights have seen."""
    asked = work.config.model
    ours = asked.name is None and asked.weights is None and work.extensions.model is None
    return ours and is_enlarged(shared.facts.dataset, pretrained=True)


def _network(work: Work, timed: Config, shared: Shared) -> Choice:
    """Written down, because a continuation may be given other minutes."""
    if "network" not in work.study.decided:
        work.study.decide(network=choose_model(timed, shared.facts)._asdict())
    return Choice(**work.study.decided["network"])


def _warn_of_few(work: Work, shared: Shared) -> None:
    num = shared.facts.dataset.num_images("validation")
    if num < FEW_HELD_OUT:
        images = "one image is" if num == 1 else f"{num} images are"
        work.tell(
            f"only {images} held out to choose by: each is {100 / num:.0f} points, so what looks "
            "better there may be chance; more images, or data.validation_fraction, tell more"
        )
        work.study.note("few held out", images=num)


def _check_before(stop: Stop) -> None:
    if stop.signal_number is not None:
        raise Interrupted(
            "stopped before anything began; nothing was lost", signal_number=stop.signal_number
        )


def _is_over(study: Study) -> bool:
    return any(event["event"] == "ended" for event in study.events.read())


def _spent_before(study: Study) -> float:
    noted = (float(event.get("spent_s", 0.0)) for event in study.events.read())
    return max(study.spent_s(), *noted, 0.0)


def _export_target(to: str) -> str | None:
    """What the answer is exported to; None for nothing."""
    if to == "best":
        needed = ("onnx", "onnxruntime", "onnxscript")
        return "onnx" if all(map(importlib.util.find_spec, needed)) else "torch"
    if to not in (*EXPORT_S, "none"):
        raise UsageError(f"a fit exports nothing to '{to}'", fix=nearest(to, (*EXPORT_S, "none")))
    return None if to == "none" else to

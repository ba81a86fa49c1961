"""What the page of a study is made from, and what its trials say when they are compared."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from pydantic import ValidationError

from vidi import effects as statistics
from vidi.effects import Effect
from vidi.errors import DamagedError, VidiError
from vidi.facts import DatasetFacts, Facts
from vidi.metrics import Evaluation
from vidi.plan import Plan
from vidi.run import Run
from vidi.study import Rung, Study, Trial

View = dict[str, Any]

_JUDGE_AGAIN: Final = "vidi evaluate writes it again"


@dataclass(frozen=True)
class StudyData:
    """Everything that the page of a study shows; what is not there yet is None or empty."""

    name: str
    kind: str
    asked: Mapping[str, Any]
    config: Mapping[str, Any]
    trials: Sequence[Trial]
    # Shares of a training at which trials are compared, the end last; empty where only ends are.
    shares: Sequence[float] = ()
    # The number of the trial that the study chose, where it has.
    answer: int | None = None
    # The lines of events.jsonl, in order.
    events: Sequence[Mapping[str, Any]] = ()
    # How long the study has been at work, where it keeps that.
    spent_s: float = 0.0
    dataset: DatasetFacts | None = None
    # (step, accuracy) of every validation of a trial, by its number.
    curves: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    # Of trials that nothing suggested: their settings are only what they change.
    plans: Mapping[int, Plan] = field(default_factory=dict)
    best_toml: str | None = None
    # What the final run is worth, on images that the study never looked at where there are such.
    final: Evaluation | None = None
    # Where the report of the final run is, seen from the page of the study.
    final_report: str | None = None
    # Of an ablation.
    effects: Sequence[Effect] = ()

    # What follows from them.

    @cached_property
    def num_rungs(self) -> int:
        return max(1, len(self.shares), *(len(trial.rungs) for trial in self.trials))

    @cached_property
    def common(self) -> frozenset[str]:
        """The settings that every suggestion names, where there are such; what depends on others
        is not among them."""
        suggested = [trial for trial in self.trials if _is_suggested(trial)]
        named = [frozenset(trial.settings) for trial in suggested or self.trials]
        return frozenset.intersection(*named) if named else frozenset()

    @cached_property
    def values(self) -> Mapping[int, Mapping[str, Any]]:
        """By its number, what each trial was trained with. The default and other starts name only
        what they change: the rest of `common` is as their plans say, where they do."""
        return {trial.number: self._values(trial) for trial in self.trials}

    def _values(self, trial: Trial) -> Mapping[str, Any]:
        plan = self.plans.get(trial.number)
        if plan is None:
            return trial.settings
        decided = {name: plan.setting(name) for name in sorted(self.common - set(trial.settings))}
        known = {name: value for name, value in decided.items() if value is not None}
        return {**known, **trial.settings}


def _is_suggested(trial: Trial) -> bool:
    """Whether a sampler drew it, so that all that it draws is named; what it is told of a start
    names more than the start does."""
    return 0 < len(trial.parameters) <= len(trial.settings)


def load_study(study: Study) -> StudyData:
    """Read a study directory. A trial whose run cannot be read is shown by what the study knows.

    Raises:
        DamagedError: a file of the study itself cannot be read.
    """
    trials = study.trials()
    curves = {}
    plans = {}
    dataset = None
    for trial in trials:
        with contextlib.suppress(VidiError, ValidationError):
            run = study.trial_run(trial.number)
            curves[trial.number] = _validated(run.metrics.read())
            if dataset is None:
                dataset = Facts.model_validate_json(run.text("facts")).dataset
            if not _is_suggested(trial):
                plans[trial.number] = Plan.from_json(run.text("plan"))
    best = study.best_path
    # A fit decides so only where it searches.
    decided = study.decided.get("search", study.decided)
    return StudyData(
        name=study.path.absolute().name,
        kind=study.kind,
        asked=study.asked,
        config=study.config.model_dump(exclude_unset=True, mode="json"),
        trials=trials,
        shares=decided.get("shares", ()),
        answer=study.decided.get("answer"),
        events=study.events.read(),
        spent_s=study.spent_s(),
        dataset=dataset,
        curves=curves,
        plans=plans,
        best_toml=best.read_text(encoding="utf-8") if best.exists() else None,
        final=_final(study),
        final_report=_final_report(study),
        effects=statistics.of_study(study) if study.kind == "ablate" else (),
    )


def _validated(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [
        (int(each["step"]), float(each["accuracy"]))
        for each in records
        if each.get("kind") == "validation" and each.get("accuracy") is not None
    ]


def _final(study: Study) -> Evaluation | None:
    if not Run.exists(study.final_path):
        return None
    run = Run.open(study.final_path)
    split = next((each for each in ("test", "validation") if each in run.evaluated_splits()), None)
    if split is None:
        return None
    try:
        return Evaluation.model_validate_json(run.read_evaluation(split))
    except ValidationError as error:
        raise DamagedError(
            f"the evaluation of {study.final_path} is not one of this version", fix=_JUDGE_AGAIN
        ) from error


def _final_report(study: Study) -> str | None:
    if not Run.exists(study.final_path):
        return None
    path = Run.open(study.final_path).report_path
    return path.relative_to(study.path).as_posix() if path.exists() else None


def rungs_of(data: StudyData, trial: Trial) -> dict[int, Rung]:
    """What it was worth at each rung, from 0: an equal share of its training, in however many
    updates. The end is the last one; where it was not looked at there is nothing."""
    numbers = {rung.step: number for number, rung in enumerate(trial.rungs)}
    if trial.status == "finished" and trial.last is not None:
        numbers[trial.last.step] = data.num_rungs - 1
    return {numbers[rung.step]: rung for rung in trial.rungs}


def compared_rung(data: StudyData) -> int:
    """The latest rung at which at least half of the judged trials were judged, from 0.

    Trials that were stopped early are compared with the others there, and nowhere later.
    """
    judged = [rungs_of(data, trial) for trial in data.trials if trial.rungs]
    reached = Counter(number for rungs in judged for number in rungs)
    most = [number for number, n in reached.items() if 2 * n >= len(judged)]
    return max(most, default=max(reached, default=0))


def place(data: StudyData, trial: Trial) -> tuple[int, float, float]:
    """How far it came and what it was worth there: the larger is the better trial."""
    last = trial.last
    if last is None:
        return -1, 0.0, 0.0
    log_loss = math.inf if last.log_loss is None else last.log_loss
    return max(rungs_of(data, trial)), last.accuracy, -log_loss


def best_trial(data: StudyData) -> Trial | None:
    """The one that the study chose; before it has, the one that it would choose now."""
    judged = [trial for trial in data.trials if trial.last and trial.status != "failed"]
    chosen = [trial for trial in judged if trial.number == data.answer]
    return max(chosen or judged, key=lambda trial: place(data, trial), default=None)


def where(data: StudyData, rung: int) -> str:
    """A rung in words."""
    if rung == data.num_rungs - 1:
        return "the whole training"
    if rung < len(data.shares):
        return f"{data.shares[rung]:.0%} of the training"
    return f"rung {rung + 1} of {data.num_rungs}"


def num_validation(data: StudyData) -> int | None:
    if data.dataset is None:
        return None
    return data.dataset.num_images("validation") or None


def median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def finding(level: str, title: str, detail: str, section: str) -> View:
    return {"level": level, "title": title, "detail": detail, "section": section}


def step_to(title: str, detail: str, section: str = "", command: str = "") -> View:
    return {"title": title, "detail": detail, "section": section, "command": command}


def short(value: float | None) -> Any:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def shorts(values: Iterable[float]) -> list[Any]:
    return [short(value) for value in values]

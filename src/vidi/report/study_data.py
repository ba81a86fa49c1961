"""What the page of a study is made from, and what its trials say when they are compared."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from vidi import effects as statistics
from vidi.effects import Effect
from vidi.errors import DamagedError, VidiError
from vidi.facts import DatasetFacts, Facts
from vidi.metrics import Evaluation
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
    # The lines of events.jsonl, in order.
    events: Sequence[Mapping[str, Any]] = ()
    dataset: DatasetFacts | None = None
    # (step, accuracy) of every validation of a trial, by its number.
    curves: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    best_toml: str | None = None
    # What the final run is worth, on images that the study never looked at where there are such.
    final: Evaluation | None = None
    # Of an ablation.
    effects: Sequence[Effect] = ()


def load_study(study: Study) -> StudyData:
    """Read a study directory. A trial whose run cannot be read is shown by what the study knows.

    Raises:
        DamagedError: a file of the study itself cannot be read.
    """
    trials = study.trials()
    curves = {}
    dataset = None
    for trial in trials:
        with contextlib.suppress(VidiError, ValidationError):
            run = study.trial_run(trial.number)
            curves[trial.number] = _validated(run.metrics.read())
            if dataset is None:
                dataset = Facts.model_validate_json(run.text("facts")).dataset
    best = study.best_path
    return StudyData(
        name=study.path.absolute().name,
        kind=study.kind,
        asked=study.asked,
        config=study.config.model_dump(exclude_unset=True, mode="json"),
        trials=trials,
        events=study.events.read(),
        dataset=dataset,
        curves=curves,
        best_toml=best.read_text(encoding="utf-8") if best.exists() else None,
        final=_final(study),
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


def compared_step(trials: Sequence[Trial]) -> int | None:
    """The latest step at which at least half of the judged trials were judged.

    Trials that were stopped early are compared with the others there, and nowhere later.
    """
    judged = [trial for trial in trials if trial.rungs]
    reached = Counter(rung.step for trial in judged for rung in trial.rungs)
    most = [step for step, n in reached.items() if 2 * n >= len(judged)]
    return max(most, default=max(reached, default=None))


def rung_at(trial: Trial, step: int | None) -> Rung | None:
    return next((rung for rung in trial.rungs if rung.step == step), None)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The most accurate of those that came furthest, as the study itself chooses."""
    judged = [trial for trial in trials if trial.last is not None]
    if not judged:
        return None
    furthest = max(trial.last.step for trial in judged if trial.last)
    last = [trial for trial in judged if trial.last and trial.last.step == furthest]
    return max(last, key=lambda trial: trial.last.accuracy if trial.last else 0.0)


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

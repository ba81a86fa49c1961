"""A study -> one self-contained HTML page: what was tried, what it was worth, what to do next."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from vidi import effects as statistics
from vidi.effects import ALPHA, Effect
from vidi.errors import DamagedError, VidiError
from vidi.facts import DatasetFacts, Facts
from vidi.metrics import Evaluation, wilson
from vidi.report.importance import LEAST_TRIALS, Axis, axes_of, importances, worded
from vidi.report.page import STUDY, assemble
from vidi.report.words import between, count, public, without_places
from vidi.run import Run
from vidi.study import Rung, Study, Trial

View = dict[str, Any]

# Lines of the picture of all curves, and points of one of them.
_MOST_LINES: Final = 400
_MOST_POINTS: Final = 60
# Settings that are drawn: more are not read.
_MOST_AXES: Final = 12
# Half an interval wider than this is worth a word, as in the report of a run.
_WIDE: Final = 0.03
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


def write_study(study: Study) -> Path:
    """Write `report.html` into the study directory and return its path.

    Raises:
        DamagedError: a file of the study cannot be read.
        StorageError: the page could not be written; an earlier one is as it was.
    """
    return study.write_report(render_study(load_study(study)))


def render_study(data: StudyData) -> str:
    """The page as text."""
    return assemble(study_views(data), title=f"{data.name} \u00b7 vidi", kind=STUDY)


def study_views(data: StudyData) -> dict[str, View]:
    """All parts by name: what `vidi show STUDY VIEW --json` prints and the page reads."""
    axes = axes_of([trial.settings for trial in data.trials])[:_MOST_AXES]
    compared = _compared_step(data.trials)
    made: dict[str, View] = {"summary": _summary(data)}
    judged = any(trial.rungs for trial in data.trials)
    if data.kind == "ablate":
        made["effects"] = _effects(data)
    if judged:
        made["curves"] = _curves(data)
        if axes and data.kind != "ablate":
            made["parallel"] = {"axes": [dataclasses.asdict(axis) for axis in axes]}
            made["slices"] = {"axes": [dataclasses.asdict(axis) for axis in axes]}
            made["importance"] = _importance(data, axes, compared)
        if data.kind != "ablate":
            made["rungs"] = _rungs(data.trials)
    if data.best_toml is not None:
        made["best"] = _best(data)
    made["time"] = _time(data)
    made["trials"] = _trials(data, axes, compared)
    return made


# ---- What is known of the trials -----------------------------------------------------------------


def _compared_step(trials: Sequence[Trial]) -> int | None:
    """The latest step at which at least half of the judged trials were judged.

    Trials that were stopped early are compared with the others there, and nowhere later.
    """
    judged = [trial for trial in trials if trial.rungs]
    reached = Counter(rung.step for trial in judged for rung in trial.rungs)
    most = [step for step, n in reached.items() if 2 * n >= len(judged)]
    return max(most, default=max(reached, default=None))


def _at(trial: Trial, step: int | None) -> Rung | None:
    return next((rung for rung in trial.rungs if rung.step == step), None)


def _best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The most accurate of those that came furthest, as the study itself chooses."""
    judged = [trial for trial in trials if trial.last is not None]
    if not judged:
        return None
    furthest = max(trial.last.step for trial in judged if trial.last)
    last = [trial for trial in judged if trial.last and trial.last.step == furthest]
    return max(last, key=lambda trial: trial.last.accuracy if trial.last else 0.0)


def _num_validation(data: StudyData) -> int | None:
    if data.dataset is None:
        return None
    return data.dataset.num_images("validation") or None


# ---- The first screen ----------------------------------------------------------------------------


def _summary(data: StudyData) -> View:
    best = _best_trial(data.trials)
    view: View = {
        "study": data.name,
        "kind": data.kind,
        "dataset": without_places(data.dataset.name) if data.dataset else "",
        "judged": _judged(data, best),
        "tried": _tried(data, best),
        "steps": _next(data, best),
        "figures": _figures(data),
    }
    if data.kind == "ablate":
        view["headline"] = _headline(data)
    return view


def _judged(data: StudyData, best: Trial | None) -> View | None:
    """The number at the top, and how sure it is."""
    final = data.final
    if data.kind == "ablate":
        return None
    if final is not None and final.split == "test":
        return {
            "split": "test",
            "accuracy": _short(final.accuracy),
            "interval": _shorts(final.accuracy_interval),
            "n": final.n_evaluated,
            "n_right": round(final.accuracy * final.n_evaluated),
            "majority": _short(final.majority_accuracy),
            "sentence": (
                "On images that the study never looked at. On ever more images like these it "
                f"would settle somewhere from {between(final.accuracy_interval)}."
            ),
        }
    n = _num_validation(data)
    if best is None or best.last is None or n is None or data.dataset is None:
        return None
    accuracy = best.last.accuracy
    interval = wilson(round(accuracy * n), n)
    judged = sum(1 for trial in data.trials if trial.rungs)
    counts = data.dataset.counts["validation"]
    return {
        "split": "validation",
        "accuracy": _short(accuracy),
        "interval": _shorts(interval),
        "n": n,
        "n_right": round(accuracy * n),
        "majority": _short(max(counts) / n),
        "sentence": (
            f"On the images that chose it among {count(judged, 'trial')}, so it is a little "
            f"flattering. These images alone leave it somewhere from {between(interval)}."
        ),
    }


def _tried(data: StudyData, best: Trial | None) -> list[View]:
    """What was tried, as findings: a level, a title, a sentence, the part that shows it."""
    said: list[View] = []
    ended = Counter(trial.status for trial in data.trials)
    if data.kind == "ablate":
        said += _tried_in_ablation(data)
    elif data.trials:
        axes = axes_of([trial.settings for trial in data.trials])
        names = ", ".join(_plain(axis.name) for axis in axes[:4])
        more = " and more" if axes[4:] else ""
        furthest = sum(
            1
            for trial in data.trials
            if trial.last and best and best.last and trial.last.step == best.last.step
        )
        said.append(
            _finding(
                "fine",
                f"{count(len(data.trials), 'trial')}, {furthest:,} to the end",
                f"{count(len(axes), 'setting')} varied: {names}{more}." if axes else "None varied.",
                "trials",
            )
        )
        if best is not None and best.last is not None:
            said.append(_rivals(data, best))
    if ended["failed"]:
        first = next(trial for trial in data.trials if trial.status == "failed")
        said.append(
            _finding(
                "watch",
                f"{count(ended['failed'], 'trial')} failed",
                without_places(first.reason) or "No reason was kept.",
                "trials",
            )
        )
    unfinished = ended["waiting"] + ended["running"]
    if unfinished:
        said.append(
            _finding(
                "watch",
                f"{count(unfinished, 'trial')} not finished",
                "The same command goes on where it stopped.",
                "trials",
            )
        )
    if not data.trials:
        said.append(_finding("watch", "Nothing yet", "No trial has begun.", "trials"))
    return said


def _rivals(data: StudyData, best: Trial) -> View:
    """How many other trials may be as good: the best of many is partly the luckiest."""
    assert best.last is not None
    n = _num_validation(data)
    others = [
        trial.last.accuracy
        for trial in data.trials
        if trial.last and trial.last.step == best.last.step and trial.number != best.number
    ]
    if n is None or not others:
        return _finding(
            "watch", "One trial came to the end", "There is nothing to hold it against.", "trials"
        )
    top = best.last.accuracy
    # Both answer the same images, so the true margin is narrower: this errs on the careful side.
    noise = 1.96 * math.sqrt(2.0 * top * (1.0 - top) / n)
    near = sum(1 for each in others if top - each <= noise)
    if near:
        return _finding(
            "watch",
            f"{near:,} of {len(others):,} others may be as good",
            f"On {count(n, 'validation image')} less than {100 * noise:.1f} points is inside the "
            "noise. Which one came first is partly luck.",
            "trials",
        )
    return _finding(
        "fine",
        "The best one stands out",
        f"No other came within {100 * noise:.1f} points, which is what "
        f"{count(n, 'validation image')} can tell apart.",
        "trials",
    )


def _next(data: StudyData, best: Trial | None) -> list[View]:
    if data.kind == "ablate":
        return [*_next_of_ablation(data)]
    if best is None or best.last is None:
        return [_step("Give it time", "No trial was judged yet; the same command goes on.")]
    said = []
    if data.best_toml is not None:
        said.append(
            _step(
                "Train with the best settings",
                "They are below, as a file; with other seeds it shows how steady they are.",
                "best",
                "vidi train DATA --config best.toml",
            )
        )
    axis = _at_the_edge(data.trials)
    if axis is not None:
        said.append(
            _step(
                f"Widen {_plain(axis[0].name)}",
                f"The best trials lie at its {axis[1]} end; what is beyond was not tried.",
                "slices",
            )
        )
    n = _num_validation(data)
    if n is not None and 1.96 * math.sqrt(0.25 / n) > _WIDE:
        said.append(
            _step(
                f"Hold out more than {count(n, 'image')}",
                "So few cannot tell good settings from lucky ones.",
                "trials",
            )
        )
    if data.final is not None:
        said.append(
            _step(
                "Use it",
                "Any image file in, the class and its probability out.",
                "",
                "vidi predict STUDY/final photo.jpg",
            )
        )
    return said


def _at_the_edge(trials: Sequence[Trial]) -> tuple[Axis, str] | None:
    """A number whose best trials all lie in the last fifth of what was tried, and which end."""
    judged = sorted(
        (trial for trial in trials if trial.last is not None),
        key=lambda trial: (trial.last.step, trial.last.accuracy) if trial.last else (0, 0.0),
    )
    top = judged[-max(3, len(judged) // 10) :]
    if len(judged) < LEAST_TRIALS:
        return None
    for axis in axes_of([trial.settings for trial in judged]):
        if axis.scale == "choice" or any(axis.name not in trial.settings for trial in top):
            continue
        low, high = axis.low, axis.high
        places = [float(trial.settings[axis.name]) for trial in top]
        if axis.scale == "log":
            low, high = math.log(low), math.log(high)
            places = [math.log(each) for each in places]
        if max(places) <= low + 0.2 * (high - low):
            return axis, "lower"
        if min(places) >= high - 0.2 * (high - low):
            return axis, "upper"
    return None


def _figures(data: StudyData) -> list[View]:
    """Small numbers under the first screen, as text."""
    seconds = sum(trial.last.seconds for trial in data.trials if trial.last)
    steps = sum(trial.last.step for trial in data.trials if trial.last)
    shown = [
        {"label": "Trials", "value": f"{len(data.trials):,}", "hint": _by_status(data.trials)},
        {"label": "Training", "value": _duration(seconds), "hint": f"{steps:,} updates in all"},
    ]
    wall = _wall_seconds(data.events)
    if wall is not None:
        shown.append(
            {"label": "From first to last", "value": _duration(wall), "hint": "on a clock"}
        )
    n = _num_validation(data)
    if n is not None:
        shown.append(
            {"label": "Chosen on", "value": f"{n:,}", "hint": "validation images, never the test"}
        )
    return shown


def _by_status(trials: Sequence[Trial]) -> str:
    counts = Counter(trial.status for trial in trials)
    words = {"paused": "stopped early"}
    return ", ".join(f"{n:,} {words.get(status, status)}" for status, n in counts.most_common())


def _wall_seconds(events: Sequence[Mapping[str, Any]]) -> float | None:
    times = [float(each["at"]) for each in events if isinstance(each.get("at"), int | float)]
    return max(times) - min(times) if len(times) > 1 else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


# ---- The parts -----------------------------------------------------------------------------------


def _curves(data: StudyData) -> View:
    """Accuracy over steps of the trials, the best ones for certain."""
    lines: list[View] = []
    for trial in data.trials:
        points = dict(data.curves.get(trial.number, ()))
        points |= {rung.step: rung.accuracy for rung in trial.rungs}
        if points:
            steps = _thinned(sorted(points))
            lines.append(
                {
                    "number": trial.number,
                    "steps": steps,
                    "accuracy": [_short(points[step]) for step in steps],
                }
            )
    best = _best_trial(data.trials)
    lines.sort(key=lambda each: -each["accuracy"][-1])
    kept = lines[:_MOST_LINES]
    kept.sort(key=lambda each: each["number"])
    return {
        "lines": kept,
        "left_out": len(lines) - len(kept),
        "best": best.number if best else None,
        "rungs": sorted({rung.step for trial in data.trials for rung in trial.rungs})[:12]
        if data.kind != "ablate"
        else [],
    }


def _thinned(steps: Sequence[int]) -> list[int]:
    if len(steps) <= _MOST_POINTS:
        return list(steps)
    every = (len(steps) - 1) / (_MOST_POINTS - 1)
    return [steps[round(i * every)] for i in range(_MOST_POINTS)]


def _importance(data: StudyData, axes: Sequence[Axis], step: int | None) -> View:
    at = [(trial, rung) for trial in data.trials if (rung := _at(trial, step)) is not None]
    found = importances(
        [trial.settings for trial, _ in at], [rung.accuracy for _, rung in at], axes
    )
    apart = [axis.name for axis in axes if any(axis.name not in trial.settings for trial, _ in at)]
    view: View = {"step": step, "trials": len(at), "least": LEAST_TRIALS, "apart": apart}
    if found is None:
        return view | {"shares": [], "predicted": None, "resamples": 0}
    return view | {
        "shares": [
            {"name": each.name, "share": _short(each.share)}
            | {"low": _short(each.low), "high": _short(each.high)}
            for each in found.shares
        ],
        "predicted": _short(found.predicted),
        "resamples": found.resamples,
    }


def _rungs(trials: Sequence[Trial]) -> View:
    rows = []
    steps = sorted({rung.step for trial in trials for rung in trial.rungs})
    for step in steps:
        here = [(trial, rung) for trial in trials if (rung := _at(trial, step)) is not None]
        accuracies = sorted(rung.accuracy for _, rung in here)
        went_on = sum(1 for trial, _ in here if trial.last and trial.last.step > step)
        rows.append(
            {
                "step": step,
                "reached": len(here),
                "went_on": went_on,
                "best": _short(accuracies[-1]),
                "median": _short(_median(accuracies)),
                "seconds": _short(sum(_own_seconds(trial, step) for trial, _ in here)),
            }
        )
    return {"rows": rows, "order": _order_kept(trials, steps)}


def _own_seconds(trial: Trial, step: int) -> float:
    before = [rung.seconds for rung in trial.rungs if rung.step < step]
    here = _at(trial, step)
    return max(0.0, (here.seconds if here else 0.0) - (before[-1] if before else 0.0))


def _order_kept(trials: Sequence[Trial], steps: Sequence[int]) -> list[View]:
    """Between one rung and the next: how often of two trials the better one stayed the better."""
    found = []
    for early, late in itertools.pairwise(steps):
        pairs = [
            (first.accuracy, then.accuracy)
            for trial in trials
            if (first := _at(trial, early)) is not None and (then := _at(trial, late)) is not None
        ]
        kept = total = 0
        for i, (a, b) in enumerate(pairs):
            for c, d in pairs[:i]:
                if a != c and b != d:
                    total += 1
                    kept += (a > c) == (b > d)
        if total:
            found.append(
                {"early": early, "late": late, "trials": len(pairs), "kept": _short(kept / total)}
            )
    return found


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _best(data: StudyData) -> View:
    best = _best_trial(data.trials)
    return {
        "toml": _public_toml(data.best_toml or ""),
        "number": best.number if best else None,
        "origin": without_places(best.origin) if best else "",
    }


def _public_toml(text: str) -> str:
    """A machine's own folders are left out: the file itself keeps them."""
    return "\n".join(without_places(line) for line in text.splitlines())


def _time(data: StudyData) -> View:
    """Where the seconds went: trials by what became of them, and what the study noted itself."""
    parts: dict[str, float] = {}
    words = {
        "finished": "trials that finished",
        "paused": "trials that were stopped early",
        "failed": "trials that failed",
        "running": "trials that are running",
    }
    for trial in data.trials:
        if trial.last is not None:
            name = words.get(trial.status, "trials that wait")
            parts[name] = parts.get(name, 0.0) + trial.last.seconds
    # What a study notes with "seconds" and without a trial is work of its own.
    for each in data.events:
        seconds = each.get("seconds")
        if isinstance(seconds, int | float) and "trial" not in each:
            name = without_places(str(each.get("event", "")))
            parts[name] = parts.get(name, 0.0) + float(seconds)
    rows = sorted(parts.items(), key=lambda part: -part[1])
    started = next((float(e["at"]) for e in data.events if isinstance(e.get("at"), float)), None)
    return {
        "parts": [{"what": name, "seconds": _short(seconds)} for name, seconds in rows],
        "wall_s": _short(_wall_seconds(data.events)),
        "events": [
            {
                "at_s": _short(max(0.0, float(each["at"]) - started)),
                "event": without_places(str(each.get("event", ""))),
                "trial": each.get("trial") if isinstance(each.get("trial"), int) else None,
                "about": _about(each),
            }
            for each in data.events[-_MOST_EVENTS:]
            if started is not None and isinstance(each.get("at"), int | float)
        ],
    }


_MOST_EVENTS: Final = 2_000


def _about(event: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in public(dict(event)).items() if k not in ("event", "at", "trial")}
    why = rest.pop("why", None)
    said = [f"{name} {_told(value)}" for name, value in rest.items() if value is not None]
    return "; ".join([*([str(why)] if why else []), *said])


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_told(each)}" for name, each in value.items())
    return worded(value)


def _trials(data: StudyData, axes: Sequence[Axis], step: int | None) -> View:
    best = _best_trial(data.trials)
    rows = []
    for trial in data.trials:
        at, last = _at(trial, step), trial.last
        rows.append(
            {
                "number": trial.number,
                "status": trial.status,
                "origin": without_places(trial.origin),
                "reason": without_places(trial.reason),
                "retries": trial.retries,
                "settings": {
                    str(name): without_places(worded(value))
                    for name, value in trial.settings.items()
                },
                "values": [
                    None
                    if axis.name not in trial.settings
                    else axis.choices.index(worded(trial.settings[axis.name]))
                    if axis.scale == "choice"
                    else trial.settings[axis.name]
                    for axis in axes
                ],
                # Judged where it can be compared with the others, and as far as it came.
                "score": _short(at.accuracy) if at else None,
                "accuracy": _short(last.accuracy) if last else None,
                "log_loss": _short(last.log_loss) if last else None,
                "step": last.step if last else 0,
                "seconds": _short(last.seconds) if last else None,
            }
        )
    return {"rows": rows, "compared_step": step, "best": best.number if best else None}


# ---- Ablations -----------------------------------------------------------------------------------


def _effects(data: StudyData) -> View:
    rows = []
    for effect in data.effects:
        known = effect.estimate
        rows.append(
            {
                "factor": effect.factor,
                "level": without_places(effect.level),
                "settings": {str(k): worded(v) for k, v in public(dict(effect.settings)).items()},
                "verdict": effect.verdict,
                "seeds": effect.seeds,
                "failed": effect.failed,
                "reason": without_places(effect.reason),
                "accuracy": _short(effect.accuracy),
                "base_accuracy": _short(effect.base_accuracy),
                "differences": _shorts(effect.differences),
                "difference": _short(known.difference) if known else None,
                "interval": _shorts(known.interval) if known else None,
                "wide": _shorts(known.wide) if known else None,
                "p_value": _short(known.p_value) if known else None,
                "p_adjusted": _short(known.p_adjusted) if known else None,
                "from_seeds": _short(known.from_seeds) if known else None,
                "from_images": _short(known.from_images) if known else None,
                "log_loss": _short(effect.log_loss),
                "seconds": _short(effect.seconds),
            }
        )
    judged = sum(1 for effect in data.effects if effect.estimate)
    return {
        "rows": rows,
        "base": {str(k): worded(v) for k, v in public(dict(data.asked.get("base", {}))).items()},
        "seeds": data.asked.get("seeds"),
        "n": _num_validation(data),
        "alpha": ALPHA,
        "judged": judged,
        "by_chance": _short(judged * ALPHA),
    }


def _headline(data: StudyData) -> View:
    """The largest gain, or loss, that is there for certain, or that none is."""
    sure = [each for each in data.effects if each.verdict in ("helps", "hurts")]
    # The largest gain, and only where nothing helps the largest loss.
    sure.sort(
        key=lambda each: (
            each.verdict != "helps",
            -abs(each.estimate.difference) if each.estimate else 0.0,
        )
    )
    judged = sum(1 for each in data.effects if each.estimate)
    return {
        "helps": sum(1 for each in sure if each.verdict == "helps"),
        "hurts": sum(1 for each in sure if each.verdict == "hurts"),
        "judged": judged,
        "planned": len(data.effects),
        "largest": [
            {
                "name": f"{each.factor}: {without_places(each.level)}",
                "difference": _short(each.estimate.difference),
                "interval": _shorts(each.estimate.interval),
            }
            for each in sure[:1]
            if each.estimate
        ],
        "sentence": (
            f"Each change alone, {data.asked.get('seeds')} seeds paired with the base"
            + (f", {n:,} validation images" if (n := _num_validation(data)) else "")
            + ". Said to be there only when the chance of any false alarm among all of them is "
            "below 5% (Holm)."
        ),
    }


def _tried_in_ablation(data: StudyData) -> list[View]:
    said = []
    for verdict, level in (("helps", "fine"), ("hurts", "bad")):
        found = [each for each in data.effects if each.verdict == verdict]
        found.sort(key=lambda each: -abs(each.estimate.difference) if each.estimate else 0.0)
        for each in found[:3]:
            assert each.estimate is not None
            low, high = each.estimate.interval
            said.append(
                _finding(
                    level,
                    f"{_capital(each.factor)}: {without_places(each.level)} {verdict}",
                    f"{100 * each.estimate.difference:+.1f} points, "
                    f"{100 * low:+.1f} to {100 * high:+.1f}.",
                    "effects",
                )
            )
    unclear = [each for each in data.effects if each.verdict == "cannot tell" and each.estimate]
    if unclear:
        widest = sorted(
            (e.estimate.interval[1] - e.estimate.interval[0]) / 2 for e in unclear if e.estimate
        )
        said.append(
            _finding(
                "watch",
                f"{count(len(unclear), 'change')} of which nothing can be said",
                f"Effects below about {100 * _median(widest):.1f} points do not show with so few "
                "seeds and images.",
                "effects",
            )
        )
    left = [each for each in data.effects if not each.estimate and not each.failed]
    if left:
        names = ", ".join(dict.fromkeys(each.factor for each in left))
        said.append(
            _finding(
                "watch",
                f"{count(len(left), 'change')} not tried",
                f"The time did not allow: {without_places(names)}.",
                "effects",
            )
        )
    return said


def _next_of_ablation(data: StudyData) -> Iterable[View]:
    helping = [each for each in data.effects if each.verdict == "helps"]
    helping.sort(key=lambda each: -each.estimate.difference if each.estimate else 0.0)
    if helping:
        best = helping[0]
        settings = " ".join(f"--set {k}={_toml(v)}" for k, v in best.settings.items())
        yield _step(
            f"Use {best.factor}: {without_places(best.level)}",
            "The largest gain that is there for certain. Gains do not simply add up: change one, "
            "then look again from there.",
            "effects",
            f"vidi train DATA {settings}",
        )
    if any(each.verdict == "cannot tell" and each.estimate for each in data.effects):
        seeds = int(data.asked.get("seeds") or 3)
        yield _step(
            "Ask about fewer changes with more seeds",
            "Four times as many seeds halve the part of an interval that seeds make.",
            "effects",
            f"vidi ablate DATA --factors NAME --seeds {4 * seeds}",
        )
    yield _step(
        "Try it at full length",
        "Runs were short. What helps in long ones (averages, strong augmentation) shows less here.",
        "trials",
    )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- Words ---------------------------------------------------------------------------------------


def _finding(level: str, title: str, detail: str, section: str) -> View:
    return {"level": level, "title": title, "detail": detail, "section": section}


def _step(title: str, detail: str, section: str = "", command: str = "") -> View:
    return {"title": title, "detail": detail, "section": section, "command": command}


def _plain(name: str) -> str:
    """ "train.learning_rate" -> "learning rate"."""
    return without_places(name.split(".")[-1].replace("_", " "))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(value: float | None) -> Any:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _shorts(values: Iterable[float]) -> list[Any]:
    return [_short(value) for value in values]

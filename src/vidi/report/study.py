"""A study -> one self-contained HTML page: what was tried, what it was worth, what to do next."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vidi.metrics import wilson
from vidi.report import ablation
from vidi.report.importance import LEAST_TRIALS, Axis, axes_of, importances, worded
from vidi.report.page import STUDY, assemble
from vidi.report.study_data import (
    StudyData,
    View,
    best_trial,
    compared_rung,
    finding,
    load_study,
    median,
    num_validation,
    place,
    rungs_of,
    short,
    shorts,
    step_to,
    where,
)
from vidi.study import Rung, Study, Trial
from vidi.words import between, count, public, without_places

# Lines of the picture of all curves, and points of one of them.
_MOST_LINES: Final = 400
_MOST_POINTS: Final = 60
# Settings that are drawn: more are not read.
_MOST_AXES: Final = 12
# Half an interval wider than this is worth a word, as in the report of a run.
_WIDE: Final = 0.03


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
    axes = axes_of([*data.values.values()])[:_MOST_AXES]
    compared = compared_rung(data)
    made: dict[str, View] = {"summary": _summary(data)}
    judged = any(trial.rungs for trial in data.trials)
    if data.kind == "ablate":
        made["effects"] = ablation.effects_view(data)
    if judged:
        made["curves"] = _curves(data)
        if axes and data.kind != "ablate":
            made["parallel"] = {"axes": [dataclasses.asdict(axis) for axis in axes]}
            made["slices"] = {"axes": [dataclasses.asdict(axis) for axis in axes]}
            made["importance"] = _importance(data, axes, compared)
        if data.kind != "ablate" and data.num_rungs > 1:
            made["rungs"] = _rungs(data)
    if data.best_toml is not None:
        made["best"] = _best(data)
    made["time"] = _time(data)
    made["trials"] = _trials(data, axes, compared)
    return made


# ---- The first screen ----------------------------------------------------------------------------


def _summary(data: StudyData) -> View:
    best = best_trial(data)
    view: View = {
        "study": data.name,
        "kind": data.kind,
        "dataset": without_places(data.dataset.name) if data.dataset else "",
        "judged": _judged(data, best),
        "tried": _tried(data, best),
        "steps": _next(data, best),
        "figures": _figures(data),
        "final_report": data.final_report,
    }
    if data.kind == "ablate":
        view["headline"] = ablation.headline(data)
    return view


def _judged(data: StudyData, best: Trial | None) -> View | None:
    """The number at the top, and how sure it is."""
    final = data.final
    if data.kind == "ablate":
        return None
    if final is not None and final.split == "test":
        return {
            "split": "test",
            "accuracy": short(final.accuracy),
            "interval": shorts(final.accuracy_interval),
            "n": final.n_evaluated,
            "n_right": round(final.accuracy * final.n_evaluated),
            "majority": short(final.majority_accuracy),
            "sentence": (
                "On images that the study never looked at. On ever more images like these it "
                f"would settle somewhere from {between(final.accuracy_interval)}."
            ),
        }
    n = num_validation(data)
    if best is None or best.last is None or n is None or data.dataset is None:
        return None
    accuracy = best.last.accuracy
    interval = wilson(round(accuracy * n), n)
    judged = sum(1 for trial in data.trials if trial.rungs)
    counts = data.dataset.counts["validation"]
    return {
        "split": "validation",
        "accuracy": short(accuracy),
        "interval": shorts(interval),
        "n": n,
        "n_right": round(accuracy * n),
        "majority": short(max(counts) / n),
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
        said += ablation.tried(data)
    elif data.trials:
        axes = axes_of([*data.values.values()])
        names = ", ".join(_plain(axis.name) for axis in axes[:4])
        more = " and more" if axes[4:] else ""
        said.append(
            finding(
                "fine",
                f"{count(len(data.trials), 'trial')}, {ended['finished']:,} to the end",
                f"{count(len(axes), 'setting')} varied: {names}{more}." if axes else "None varied.",
                "trials",
            )
        )
        if best is not None and best.last is not None:
            said += [_rivals(data, best), *_against_the_first(data)]
    if ended["failed"]:
        first = next(trial for trial in data.trials if trial.status == "failed")
        said.append(
            finding(
                "watch",
                f"{count(ended['failed'], 'trial')} failed",
                without_places(first.reason) or "No reason was kept.",
                "trials",
            )
        )
    unfinished = ended["waiting"] + ended["running"]
    if unfinished:
        said.append(
            finding(
                "watch",
                f"{count(unfinished, 'trial')} not finished",
                "The same command goes on where it stopped.",
                "trials",
            )
        )
    if not data.trials:
        said.append(finding("watch", "Nothing yet", "No trial has begun.", "trials"))
    return said


def _rivals(data: StudyData, best: Trial) -> View:
    """How many other trials may be as good: the best of many is partly the luckiest."""
    assert best.last is not None
    n = num_validation(data)
    others = [
        trial.last.accuracy
        for trial in data.trials
        if trial.last and trial.number != best.number and _came_as_far(data, trial, best)
    ]
    if n is None or not others:
        return finding(
            "watch", "One trial came to the end", "There is nothing to hold it against.", "trials"
        )
    top = best.last.accuracy
    # Both answer the same images, so the true margin is narrower: this errs on the careful side.
    noise = 1.96 * math.sqrt(2.0 * top * (1.0 - top) / n)
    near = sum(1 for each in others if top - each <= noise)
    if near:
        return finding(
            "watch",
            f"{near:,} of {len(others):,} others may be as good",
            f"On {count(n, 'validation image')} less than {100 * noise:.1f} points is inside the "
            "noise. Which one came first is partly luck.",
            "trials",
        )
    return finding(
        "fine",
        "The best one stands out",
        f"No other came within {100 * noise:.1f} points, which is what "
        f"{count(n, 'validation image')} can tell apart.",
        "trials",
    )


def _came_as_far(data: StudyData, trial: Trial, best: Trial) -> bool:
    return trial.status != "failed" and place(data, trial)[0] == place(data, best)[0]


_GAINS: Final = {
    "better": ("fine", "Better than the first by more than chance"),
    "worse": ("watch", "Worse than the first by more than chance"),
    "cannot tell": ("watch", "The gain is inside the noise"),
}


def _against_the_first(data: StudyData) -> list[View]:
    """What the study found of its answer and its first trial, image by image."""
    noted = [each for each in data.events if each.get("event") == "compared"]
    gain = _GAINS.get(str(noted[-1].get("verdict"))) if noted else None
    if gain is None:
        return []
    return [finding(*gain, without_places(str(noted[-1].get("why", ""))), "trials")]


def _next(data: StudyData, best: Trial | None) -> list[View]:
    if data.kind == "ablate":
        return [*ablation.next_steps(data)]
    if best is None or best.last is None:
        return [step_to("Give it time", "No trial was judged yet; the same command goes on.")]
    said = []
    if data.best_toml is not None:
        said.append(
            step_to(
                "Train with the best settings",
                "They are below, as a file; with other seeds it shows how steady they are.",
                "best",
                "vidi train DATA --config best.toml",
            )
        )
    axis = _at_the_edge(data)
    if axis is not None:
        said.append(
            step_to(
                f"Widen {_plain(axis[0].name)}",
                f"The best trials lie at its {axis[1]} end; what is beyond was not tried.",
                "slices",
            )
        )
    n = num_validation(data)
    if n is not None and 1.96 * math.sqrt(0.25 / n) > _WIDE:
        said.append(
            step_to(
                f"Hold out more than {count(n, 'image')}",
                "So few cannot tell good settings from lucky ones.",
                "trials",
            )
        )
    if data.final is not None:
        said.append(
            step_to(
                "Use it",
                "Any image file in, the class and its probability out.",
                "",
                "vidi predict STUDY/final photo.jpg",
            )
        )
    return said


def _at_the_edge(data: StudyData) -> tuple[Axis, str] | None:
    """A number whose best trials all lie in the last fifth of what was tried, and which end."""
    ranked = sorted(
        (trial for trial in data.trials if trial.last is not None),
        key=lambda trial: place(data, trial),
    )
    judged = [data.values[trial.number] for trial in ranked]
    top = judged[-max(3, len(judged) // 10) :]
    if len(judged) < LEAST_TRIALS:
        return None
    for axis in axes_of(judged):
        if axis.scale == "choice" or any(axis.name not in values for values in top):
            continue
        low, high = axis.low, axis.high
        places = [float(values[axis.name]) for values in top]
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
    n = num_validation(data)
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
                    "accuracy": [short(points[step]) for step in steps],
                }
            )
    best = best_trial(data)
    lines.sort(key=lambda each: -each["accuracy"][-1])
    kept = lines[:_MOST_LINES]
    kept.sort(key=lambda each: each["number"])
    return {
        "lines": kept,
        "left_out": len(lines) - len(kept),
        "best": best.number if best else None,
        "rungs": _common_steps(data) if data.kind != "ablate" else [],
    }


def _common_steps(data: StudyData) -> list[int]:
    """The rungs that all trials met at the same update: with other batches it is another one."""
    met: dict[int, set[int]] = {}
    for trial in data.trials:
        for number, rung in rungs_of(data, trial).items():
            met.setdefault(number, set()).add(rung.step)
    return sorted(min(steps) for steps in met.values() if len(steps) == 1)


def _thinned(steps: Sequence[int]) -> list[int]:
    if len(steps) <= _MOST_POINTS:
        return list(steps)
    every = (len(steps) - 1) / (_MOST_POINTS - 1)
    return [steps[round(i * every)] for i in range(_MOST_POINTS)]


def _importance(data: StudyData, axes: Sequence[Axis], compared: int) -> View:
    common = [axis for axis in axes if axis.name in data.common]
    at = [
        (data.values[trial.number], rungs[compared].accuracy)
        for trial in data.trials
        # A plan may not say all, such as a dropout that is the network's own.
        if compared in (rungs := rungs_of(data, trial))
        and all(axis.name in data.values[trial.number] for axis in common)
    ]
    found = importances([values for values, _ in at], [score for _, score in at], common)
    view: View = {
        "compared": where(data, compared),
        "trials": len(at),
        "least": LEAST_TRIALS,
        "apart": [axis.name for axis in axes if axis not in common],
    }
    if found is None:
        return view | {"shares": [], "predicted": None, "resamples": 0}
    return view | {
        "shares": [
            {"name": each.name, "share": short(each.share)}
            | {"low": short(each.low), "high": short(each.high)}
            for each in found.shares
        ],
        "predicted": short(found.predicted),
        "resamples": found.resamples,
    }


def _rungs(data: StudyData) -> View:
    rows = []
    known = [rungs_of(data, trial) for trial in data.trials]
    numbers = sorted({number for rungs in known for number in rungs})
    for number in numbers:
        here = [rungs for rungs in known if number in rungs]
        accuracies = sorted(rungs[number].accuracy for rungs in here)
        rows.append(
            {
                "rung": number + 1,
                "after": where(data, number),
                "reached": len(here),
                "went_on": sum(1 for rungs in here if max(rungs) > number),
                "best": short(accuracies[-1]),
                "median": short(median(accuracies)),
                "seconds": short(sum(_own_seconds(rungs, number) for rungs in here)),
            }
        )
    return {"rows": rows, "order": _order_kept(data, known, numbers)}


def _own_seconds(rungs: Mapping[int, Rung], number: int) -> float:
    before = max((n for n in rungs if n < number), default=None)
    return max(0.0, rungs[number].seconds - (0.0 if before is None else rungs[before].seconds))


def _order_kept(
    data: StudyData, known: Sequence[Mapping[int, Rung]], numbers: Sequence[int]
) -> list[View]:
    """Between one rung and the next: how often of two trials the better one stayed the better."""
    found = []
    for early, late in itertools.pairwise(numbers):
        pairs = [
            (rungs[early].accuracy, rungs[late].accuracy)
            for rungs in known
            if early in rungs and late in rungs
        ]
        kept = total = 0
        for i, (a, b) in enumerate(pairs):
            for c, d in pairs[:i]:
                if a != c and b != d:
                    total += 1
                    kept += (a > c) == (b > d)
        if total:
            ends = {"early": where(data, early), "late": where(data, late)}
            found.append({**ends, "trials": len(pairs), "kept": short(kept / total)})
    return found


def _best(data: StudyData) -> View:
    best = best_trial(data)
    return {
        "toml": _public_toml(data.best_toml or ""),
        "number": best.number if best else None,
        "origin": without_places(best.origin) if best else "",
    }


def _public_toml(text: str) -> str:
    """A machine's own folders are left out: the file itself keeps them."""
    return "\n".join(without_places(line) for line in text.splitlines())


def _time(data: StudyData) -> View:
    """Where the seconds went, and everything that happened."""
    parts = _doings(data) or _by_trials(data)
    rows = sorted(parts.items(), key=lambda part: -part[1])
    started = next((float(e["at"]) for e in data.events if isinstance(e.get("at"), float)), None)
    return {
        "parts": [{"what": name, "seconds": short(seconds)} for name, seconds in rows],
        "wall_s": short(_wall_seconds(data.events)),
        "events": [
            {
                "at_s": short(max(0.0, float(each["at"]) - started)),
                "event": without_places(_happened(each)),
                "trial": each.get("trial") if isinstance(each.get("trial"), int) else None,
                "about": _about(each),
            }
            for each in data.events[-_MOST_EVENTS:]
            if started is not None and isinstance(each.get("at"), int | float)
        ],
    }


_MOST_EVENTS: Final = 2_000


def _doings(data: StudyData) -> dict[str, float]:
    """Seconds by what a fit was doing; nothing of a study that does many things at a time."""
    parts: dict[str, float] = {}
    noted = [each for each in data.events if each.get("event") == "doing"]
    begins = [float(each.get("spent_s", 0.0)) for each in noted]
    ends = [*begins[1:], data.spent_s] if noted else []
    for each, begin, end in zip(noted, begins, ends, strict=True):
        name = without_places(_happened(each))
        parts[name] = parts.get(name, 0.0) + max(0.0, end - begin)
    return parts


def _by_trials(data: StudyData) -> dict[str, float]:
    """Seconds of trials by what became of them, and of what the study did besides."""
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
    return parts


def _happened(event: Mapping[str, Any]) -> str:
    """What a fit is doing is its event; others are called by what they are."""
    return str(event.get("what" if event.get("event") == "doing" else "event", ""))


def _about(event: Mapping[str, Any]) -> str:
    said_already = {"event", "at", "trial"} | ({"what"} if event.get("event") == "doing" else set())
    rest = {k: v for k, v in public(dict(event)).items() if k not in said_already}
    why = rest.pop("why", None)
    said = [f"{name} {_told(value)}" for name, value in rest.items() if value is not None]
    return "; ".join([*([str(why)] if why else []), *said])


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_told(each)}" for name, each in value.items())
    return worded(value)


def _trials(data: StudyData, axes: Sequence[Axis], compared: int) -> View:
    best = best_trial(data)
    rows = []
    for trial in data.trials:
        at, last = rungs_of(data, trial).get(compared), trial.last
        values = data.values[trial.number]
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
                    if axis.name not in values
                    else axis.choices.index(worded(values[axis.name]))
                    if axis.scale == "choice"
                    else values[axis.name]
                    for axis in axes
                ],
                # Judged where it can be compared with the others, and as far as it came.
                "score": short(at.accuracy) if at else None,
                "accuracy": short(last.accuracy) if last else None,
                "log_loss": short(last.log_loss) if last else None,
                "step": last.step if last else 0,
                "seconds": short(last.seconds) if last else None,
            }
        )
    return {
        "rows": rows,
        "compared": where(data, compared),
        "best": best.number if best else None,
    }


# ---- Words ---------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """ "train.learning_rate" -> "learning rate"."""
    return without_places(name.split(".")[-1].replace("_", " "))
